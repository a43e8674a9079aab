import io

from rich.console import Console

from tests.clocks import ManualClock
from worker.demo.display import Progress, display_on, print_outcome
from worker.demo.outcome import Comparison, Outcome, ZoneCount


def progress(waiting_windows: int = 110, doing: str = "Prometheus is down.") -> Progress:
    return Progress(
        now=1_750_172_400.0,
        doing=doing,
        in_trouble=True,
        total=550,
        captured=455,
        acknowledged=345,
        waiting_windows=waiting_windows,
        waiting_samples=3_969 if waiting_windows else 0,
    )


def outcome(*, acknowledged: int = 110) -> Outcome:
    return Outcome(
        receiver="Prometheus 3.5.3",
        zones=(ZoneCount("a.example", 110, 110, 110), ZoneCount("b.example", 110, 110, acknowledged)),
        comparison=Comparison(compared=20_108),
        waiting_samples=3_969,
        drain_seconds=0.44,
    )


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


async def test_without_a_terminal_an_event_is_a_line_with_its_time() -> None:
    console, clock = plain(), ManualClock()
    with display_on(console, clock) as display:
        await clock.advance(11.0)
        display.say("Prometheus is stopped. " * 10)
    assert lines_of(console) == ["  11 s  " + "Prometheus is stopped. " * 10]


async def test_without_a_terminal_progress_is_a_line_every_few_seconds() -> None:
    console, clock = plain(), ManualClock()
    with display_on(console, clock) as display:
        for _ in range(90):
            await clock.advance(0.1)
            display.show(progress())
    assert lines_of(console) == [
        f"   {seconds} s    2025-06-17T15:00:00Z: 455 of 550 windows captured, 345 acknowledged; "
        "110 windows wait, 3,969 samples"
        for seconds in (4, 8)
    ]


def test_on_a_terminal_progress_stays_in_its_place_and_is_gone_at_the_end() -> None:
    console = terminal()
    with display_on(console, ManualClock()) as display:
        display.show(progress())
        shown = "\n".join(lines_of(console))
        assert "345" in shown
        assert "110 windows wait, 3,969 samples" in shown
        assert "Prometheus is down." in shown
        display.show(progress(waiting_windows=0))
        assert "nothing waits" in "\n".join(lines_of(console))
    assert isinstance(console.file, io.StringIO)
    # The cursor goes up line by line and erases.
    assert console.file.getvalue().endswith("\x1b[1A\x1b[2K" * 6)


def test_progress_fits_into_80_columns() -> None:
    console = terminal(80)
    with display_on(console, ManualClock()) as display:
        display.show(progress())
    assert "3,969 samples" in "\n".join(lines_of(console))


def test_on_a_dumb_terminal_there_are_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with display_on(console, ManualClock()) as display:
        display.say("Prometheus is stopped.")
    assert lines_of(console) == ["   0 s  Prometheus is stopped."]


def test_the_end_is_a_table_a_comparison_and_how_many_are_missing() -> None:
    console = plain()
    print_outcome(console, outcome())
    lines = lines_of(console)
    assert [line.split("│")[1:-1] for line in lines if "a.example" in line or "b.example" in line] == [
        [" a.example ", "      110 ", "      110 ", "          110 ", "       0 "],
        [" b.example ", "      110 ", "      110 ", "          110 ", "       0 "],
    ]
    assert lines[-3:] == [
        "3,969 samples waited in SQLite when Prometheus 3.5.3 came back; 0.4 s later none did.",
        "Every sample in Prometheus 3.5.3 equals Cloudflare's number: 20,108 compared.",
        "0 missing",
    ]


def test_the_last_line_adds_up_what_is_missing() -> None:
    console = plain()
    print_outcome(console, outcome(acknowledged=97))
    assert lines_of(console)[-1] == "13 missing"
