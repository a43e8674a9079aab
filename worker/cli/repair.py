"""What every command of repair does: put it on record, have it carried out, show how far it is, tell what came of it.

A running worker carries a repair out; without one the command holds the ledger and does it itself, by the same code.
"""

import asyncio
import getpass
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from textwrap import shorten
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from worker.app import Worker, stop_on_signals
from worker.cli.tables import new_table, number_column, print_line, terminal, text_column, word_column
from worker.clock import SystemClock, wait_for_any
from worker.config import Settings
from worker.errors import LedgerHeldError
from worker.ledger import (
    Arguments,
    BackfillResult,
    ImportResult,
    Job,
    JobState,
    Ledger,
    ResendCount,
    ResendResult,
    Undelivered,
    Verify,
    ask,
    ask_to_cancel,
    job,
    release,
    resent,
)
from worker.observe import Redactor
from worker.report import outcome_of

# How often a command looks how far the repair is.
_FOLLOW_SECONDS = 0.5

# Without a terminal, a line this often.
_LINE_SECONDS = 15.0

# A reason is a sentence; a command line that names a hundred zones is longer than anybody reads in a journal.
_MOST_REASON_CHARACTERS = 1000

# The first sentence of a receiver's answer says what is wrong; the status has all of it.
_MOST_ANSWER_CHARACTERS = 240

reason_option = click.option("--reason", metavar="TEXT", help="Why, for the journal; the command line by default.")
on_interrupt_option = click.option(
    "--on-interrupt",
    type=click.Choice(["detach", "cancel"]),
    default="detach",
    show_default=True,
    help="What Ctrl-C does: stop watching, or end the repair where it is.",
)


def carry_out(
    settings: Settings,
    redactor: Redactor,
    arguments: Arguments,
    *,
    reason: str | None,
    total: int,
    on_interrupt: str,
) -> Job:
    """Have a repair carried out by whoever holds the ledger; how it stands when that is done, or Ctrl-C came.

    total: how many buckets or windows it is about.

    Where this command does it itself, it also pushes what waits, unless the repair is one that only reads.
    """
    why = for_the_journal(reason or shlex.join(["cfrw", *sys.argv[1:]]), redactor)
    put_on_record = partial(
        ask, arguments=arguments, reason=why, asked_by=asked_by(), now=SystemClock().now(), total=total
    )
    only_reads = isinstance(arguments, Verify)
    return _told(
        asyncio.run(_carry_out(settings, put_on_record, cancels=on_interrupt == "cancel", only_reads=only_reads))
    )


def carry_out_staged(settings: Settings, number: int, *, on_interrupt: str) -> Job:
    """The same of an import that is staged: it is on record already, and now it is asked for."""
    put_on_record = partial(release, job_id=number, now=SystemClock().now())
    return _told(asyncio.run(_carry_out(settings, put_on_record, cancels=on_interrupt == "cancel", only_reads=False)))


def _told(found: Job) -> Job:
    """The repair, after a line about its end where that was not the one that was asked for."""
    if found.state in {JobState.FAILED, JobState.CANCELLED}:
        click.echo(f"repair {found.job_id}: {outcome_of(found)}", err=True)
    return found


async def _carry_out(settings: Settings, put_on_record: Callable[..., int], *, cancels: bool, only_reads: bool) -> Job:
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        try:
            worker = Worker(settings, SystemClock(), once=True)
        except LedgerHeldError:
            return await _by_the_running_worker(settings, put_on_record, stopping, cancels=cancels)
        async with worker:
            number = await worker.ledger.write(put_on_record)
            with _Display(number) as display:
                once = worker.read_back_once if only_reads else worker.push_once
                working = asyncio.create_task(once(stopping))
                while not working.done():
                    display.show(await _found(worker.ledger, number))
                    await asyncio.wait([working], timeout=_FOLLOW_SECONDS)
                await working
                if stopping.is_set() and cancels:
                    await worker.ledger.write(ask_to_cancel, number, SystemClock().now())
                    await worker.repairer.step_all()
                found = await as_it_stands(worker.ledger, await _found(worker.ledger, number))
                display.show(found)
    if found.is_open:
        what = "ends when what it queued is delivered" if found.cancel_asked else "is not finished"
        click.echo(f"repair {number} {what}: a running worker goes on with it, else the next `cfrw run`", err=True)
    return found


async def _by_the_running_worker(
    settings: Settings, put_on_record: Callable[..., int], stopping: asyncio.Event, *, cancels: bool
) -> Job:
    """Ask the worker that holds the ledger, and watch it until the repair has ended or a signal comes."""
    clock = SystemClock()
    ledger = Ledger.open_to_ask(settings.ledger.path)
    try:
        number = await ledger.write(put_on_record)
        what_it_does = "ends it" if cancels else f"stops watching, and `cfrw journal --cancel {number}` ends it"
        click.echo(f"asked the running worker (repair {number}); Ctrl-C {what_it_does}", err=True)
        with _Display(number) as display:
            found = await _found(ledger, number)
            while found.is_open and not stopping.is_set():
                display.show(found)
                await wait_for_any(clock, _FOLLOW_SECONDS, stopping)
                found = await _found(ledger, number)
            if found.is_open and cancels:
                await ledger.write(ask_to_cancel, number, clock.now())
            display.show(found)
        found = await as_it_stands(ledger, await _found(ledger, number))
    finally:
        await ledger.close()
    if found.is_open:
        what = "is asked to end, and what it queued is still delivered" if cancels else "goes on"
        click.echo(f"repair {number} {what}; `cfrw journal {number}` shows it", err=True)
    return found


async def _found(ledger: Ledger, number: int) -> Job:
    found = await ledger.read(job, number)
    if found is None:
        message = f"repair {number} is not in the journal any more"
        raise LookupError(message)
    return found


async def as_it_stands(ledger: Ledger, found: Job) -> Job:
    """A repair, with what has become of its deliveries so far where it has not ended."""
    match found.result:
        case ResendResult() | BackfillResult() | ImportResult() as result if found.is_open:
            return replace(found, result=replace(result, outcome=await ledger.read(resent, found.job_id)))
        case _:
            return found


class _Display:
    """How far a repair is, on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._bar: Progress | None = None
        self._told_at = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(f"repair {number}", total=None, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, found: Job) -> None:
        progress = found.progress
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total or None, note=progress.note)
        elif found.is_open and time.monotonic() > self._told_at + _LINE_SECONDS:
            self._told_at = time.monotonic()
            note = f"; {progress.note}" if progress.note else ""
            click.echo(f"repair {self._number}: {progress.done:,} of {progress.total:,}{note}", err=True)


def for_the_journal(reason: str, redactor: Redactor) -> str:
    """The reason without secrets, which a person may have pasted, and bounded."""
    clean = redactor.text(reason)
    return clean if len(clean) <= _MOST_REASON_CHARACTERS else f"{clean[: _MOST_REASON_CHARACTERS - 1]}…"


def asked_by() -> str:
    """Who runs this command, for the journal."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container the user often has a number only.
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def print_counts(title: str, counts: Sequence[ResendCount]) -> None:
    """A table of buckets by destination and state."""
    if not counts:
        click.echo(f"{title}: nothing")
        return
    table = new_table(
        text_column("destination"), word_column("state"), number_column("buckets"), number_column("samples")
    )
    for count in counts:
        table.add_row(count.destination, count.state, f"{count.buckets:,}", f"{count.samples:,}")
    click.echo(f"{title}:")
    terminal().print(table)


def print_outcome(found: Job, counts: Sequence[ResendCount], reasons: Sequence[Undelivered]) -> None:
    """What became of what a repair queued, and a line for each reason why something of it is not delivered.

    Of one that has not ended, or was cut short, nothing means that it had not come to that.
    """
    if counts or found.state is JobState.DONE:
        print_counts("What became of it so far" if found.is_open else "What became of it", counts)
    for each in reasons:
        status = "" if each.status is None else f"HTTP {each.status}: "
        reason = shorten(each.reason, _MOST_ANSWER_CHARACTERS, placeholder="…")
        print_line(terminal(), f"{each.destination}: {each.buckets:,} {each.state}: {status}{reason}")


def is_delivered(found: Job, counts: Sequence[ResendCount]) -> bool:
    """Whether a repair has ended and left nothing behind."""
    return found.state is JobState.DONE and all(count.state in {"acknowledged", "already there"} for count in counts)
