"""How the demo looks: live on a terminal, in lines without one.

An event is a sentence that is said once and stays; progress is what is shown until there is newer. Decides nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.clock import Clock
from worker.demo.outcome import Outcome, comparison_line
from worker.times import instant

# Without a terminal, this often; ten lines for the whole demo.
_LINE_SECONDS = 4.0

# With the words beside it, a line fits into 80 columns.
_BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the demo stands.

    now:     simulated time, unix seconds.
    doing:   what is going on, in a sentence.
    in_trouble: whether that is the outage.
    total:   windows of all zones, which are to be captured and acknowledged by the end.
    waiting: windows and samples that are captured and not acknowledged.
    """

    now: float
    doing: str
    in_trouble: bool
    total: int
    captured: int
    acknowledged: int
    waiting_windows: int
    waiting_samples: int

    @property
    def backlog(self) -> str:
        if not self.waiting_windows:
            return "nothing waits"
        return f"{self.waiting_windows:,} windows wait, {self.waiting_samples:,} samples"


class Display(Protocol):
    """Where events and progress are shown."""

    def say(self, event: str) -> None: ...

    def show(self, progress: Progress) -> None: ...


@contextmanager
def display_on(console: Console, clock: Clock) -> Iterator[Display]:
    """The display that suits the console; on a terminal nothing but the events stays of it."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, clock)
        return
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
    with live:
        yield _Screen(live, clock)


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The table, what the comparison has shown, and how many windows are missing."""
    table = Table(title="Windows of one minute", title_justify="left")
    table.add_column("zone")
    for column in ("expected", "captured", "acknowledged", "missing"):
        table.add_column(column, justify="right")
    for zone in outcome.zones:
        style = "bold red" if zone.missing else None
        table.add_row(zone.zone, *_numbers(zone.expected, zone.captured, zone.acknowledged, zone.missing), style=style)
    console.print()
    console.print(table)
    _print(
        console,
        f"{outcome.waiting_samples:,} samples waited in SQLite when {outcome.receiver} came back; "
        f"{outcome.drain_seconds:.1f} s later none did.",
    )
    _print(console, comparison_line(outcome.receiver, outcome.comparison))
    _print(console, f"{outcome.missing:,} missing", style="bold green" if outcome.is_good else "bold red")


class _Lines:
    """One line per event, and one every few seconds."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._started = self._shown = self._clock.monotonic()

    def say(self, event: str) -> None:
        self._print(event)

    def show(self, progress: Progress) -> None:
        now = self._clock.monotonic()
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._print(
                f"  {instant(progress.now)}: {progress.captured:,} of {progress.total:,} windows captured, "
                f"{progress.acknowledged:,} acknowledged; {progress.backlog}"
            )

    def _print(self, text: str) -> None:
        _print(self._console, f"{self._clock.monotonic() - self._started:4.0f} s  {text}")


class _Screen:
    """Events go by above; below them the progress stays in its place."""

    def __init__(self, live: Live, clock: Clock) -> None:
        self._live = live
        self._clock = clock
        self._started = self._clock.monotonic()

    def say(self, event: str) -> None:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(Text(f"{self._clock.monotonic() - self._started:4.0f} s", style="dim"), Text(event))
        self._live.console.print(line)

    def show(self, progress: Progress) -> None:
        self._live.update(_picture(progress), refresh=True)


def _picture(progress: Progress) -> RenderableType:
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(width=_BAR_WIDTH)
    rows.add_column(no_wrap=True)
    for name, style, windows, words in (
        ("captured", "cyan", progress.captured, f"{progress.captured:,} of {progress.total:,} windows"),
        ("acknowledged", "green", progress.acknowledged, f"{progress.acknowledged:,}"),
        ("backlog", "red", progress.waiting_windows, progress.backlog),
    ):
        bar = ProgressBar(
            total=progress.total, completed=windows, width=_BAR_WIDTH, complete_style=style, finished_style=style
        )
        rows.add_row(name, bar, words)
    head = Text.assemble((instant(progress.now), "bold"), (" simulated time", "dim"))
    doing = Text(progress.doing, style="bold red" if progress.in_trouble else "bold")
    return Padding(Group(head, rows, doing), (1, 0, 0, 2))


def _numbers(*numbers: int) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _print(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=not console.is_terminal)
