"""`cfrw resend`."""

import asyncio
import getpass
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from worker.app import Worker, stop_on_signals
from worker.cli.options import (
    EXIT_INCOMPLETE,
    config_option,
    json_option,
    past_moment,
    require_known,
    settings_of,
    start_logging,
)
from worker.cli.tables import new_table, number_column, print_json, terminal, text_column, word_column
from worker.clock import SystemClock, wait_for_any
from worker.cloudflare import FACT_SETS
from worker.config import Settings
from worker.datasets import catalogue_of
from worker.errors import LedgerHeldError, UsageError
from worker.ledger import Ledger, Resend, ResendCount, ask_for_resend, job, plan_resend, resent, scope_reports
from worker.observe import Redactor
from worker.times import instant

# How often a command looks whether the running worker has done what it was asked for.
_FOLLOW_SECONDS = 0.5

# A reason is a sentence; a command line that names a hundred zones is longer than anybody reads in a journal.
_MOST_REASON_CHARACTERS = 1000


@click.command()
@config_option
@click.option("--since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option("--destination", "destinations", multiple=True, metavar="NAME", help="Only there; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@click.option("--reason", metavar="TEXT", help="Why, for the journal; the command line by default.")
@json_option
def resend(
    *,
    since: str,
    config_file: Path | None = None,
    until: str | None = None,
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
    destinations: Sequence[str] = (),
    reason: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Push captured buckets again, refused and expired ones included.

    Nothing is fetched from Cloudflare: what the ledger holds is sent with the same timestamps and values as before.
    A running worker does it; without one, this command does it itself.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    wanted = Resend(
        since=int(past_moment("--since", since, now)),
        until=int(now if until is None else past_moment("--until", until, now)),
        zones=tuple(zones),
        datasets=tuple(datasets),
        destinations=tuple(destinations),
    )
    if wanted.since >= wanted.until:
        msg = f"nothing lies between --since {instant(wanted.since)} and --until {instant(wanted.until)}"
        raise UsageError(msg)
    plan = asyncio.run(_plan(settings, wanted, now))
    if not as_json:
        _print_counts("Would be sent again" if dry_run else "To be sent again", plan)
    if dry_run:
        if as_json:
            print_json(plan)
        return
    redactor = start_logging(settings)
    why = for_the_journal(reason or shlex.join(["cfrw", *sys.argv[1:]]), redactor)
    outcome = asyncio.run(_resend(settings, wanted, why))
    if as_json:
        print_json(outcome)
    elif outcome is not None:
        _print_counts("What became of it", outcome)
        if _is_pending(outcome):
            click.echo(
                "What is pending stays pending: a running worker goes on with it, else the next `cfrw run` does."
            )
    if outcome is None or any(count.state != "acknowledged" for count in outcome):
        sys.exit(EXIT_INCOMPLETE)


async def _plan(settings: Settings, wanted: Resend, now: float) -> tuple[ResendCount, ...]:
    """What a resend would send, after a look at whether what it names exists."""
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        # Reports of no time at all: they name every zone, those that have disappeared included.
        scopes = await ledger.read(scope_reports, since=now, final_until=now)
        # A zone is there once for each width that its windows ever had.
        known_zones = dict.fromkeys([*(scope.name for scope in scopes), *(scope.tag for scope in scopes)])
        require_known("--zone", wanted.zones, list(known_zones))
        require_known("--dataset", wanted.datasets, [*catalogue_of(settings.cloudflare), *FACT_SETS])
        require_known("--destination", wanted.destinations, [each.name for each in settings.destinations])
        return await ledger.read(plan_resend, wanted)
    finally:
        await ledger.close()


async def _resend(settings: Settings, wanted: Resend, reason: str) -> tuple[ResendCount, ...] | None:
    """Have it done by whoever holds the ledger; what became of it, None where it was not begun, which is told."""
    clock = SystemClock()
    stopping = asyncio.Event()
    ask = partial(ask_for_resend, resend=wanted, reason=reason, asked_by=asked_by(), now=clock.now())
    with stop_on_signals(stopping):
        try:
            worker = Worker(settings, clock, once=True)
        except LedgerHeldError:
            return await _resend_by_running_worker(settings, wanted, ask, stopping)
        async with worker:
            number = await worker.ledger.write(ask)
            await worker.push_once(stopping)
            outcome = await _what_became(worker.ledger, number, wanted)
    if outcome is None:
        why = "the ledger's volume is full; make room on it"
        click.echo(f"nothing was sent again: {why}, and the next run does it (repair {number})", err=True)
    return outcome


async def _resend_by_running_worker(
    settings: Settings, wanted: Resend, ask: Callable[..., int], stopping: asyncio.Event
) -> tuple[ResendCount, ...] | None:
    """Ask the worker that holds the ledger, and watch it until everything is decided or a signal comes."""
    clock = SystemClock()
    ledger = Ledger.open_to_ask(settings.ledger.path)
    try:
        number = await ledger.write(ask)
        click.echo(f"asked the running worker (repair {number}); Ctrl-C stops watching, not the repair", err=True)
        is_stopped = False
        while not is_stopped:
            # The whole range is every bucket in it; what this repair itself still waits for stands in an index.
            if not _is_pending(await ledger.read(resent, number)):
                outcome = await _what_became(ledger, number, wanted)
                if outcome is not None and not _is_pending(outcome):
                    return outcome
            is_stopped = await wait_for_any(clock, _FOLLOW_SECONDS, stopping)
        outcome = await _what_became(ledger, number, wanted)
    finally:
        await ledger.close()
    if outcome is None:
        click.echo("the running worker has not come to it yet; it will, and its status page shows it", err=True)
    return outcome


async def _what_became(ledger: Ledger, number: int, wanted: Resend) -> tuple[ResendCount, ...] | None:
    """The states of all that a resend asked for, also of what a later one took over; None where it was not begun."""
    asked = await ledger.read(job, number)
    if asked is None or asked.queued is None:
        return None
    return await ledger.read(plan_resend, wanted)


def _is_pending(counts: Sequence[ResendCount]) -> bool:
    return any(count.state == "pending" for count in counts)


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


def _print_counts(title: str, counts: Sequence[ResendCount]) -> None:
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
