"""`cfrw verify`."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of, start_logging, stretch
from worker.cli.repair import carry_out, is_delivered, on_interrupt_option, print_counts, print_outcome, reason_option
from worker.cli.resend import require_names
from worker.cli.tables import (
    MOST_ROWS,
    new_table,
    number_column,
    print_json,
    print_line,
    print_table,
    rest,
    terminal,
    text_column,
    word_column,
)
from worker.clock import SystemClock
from worker.config import Settings
from worker.config.endpoints import shown_url
from worker.ledger import (
    Job,
    JobState,
    Ledger,
    Resend,
    ResendCount,
    ResendResult,
    Verify,
    VerifyCount,
    VerifyResult,
    plan_resend,
)
from worker.remote_write import query_url
from worker.times import instant


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be read back.

    query_urls: where from, by destination; without what may be secret in them.
    counts:     buckets by destination and state.
    """

    query_urls: dict[str, str]
    counts: tuple[ResendCount, ...]


@click.command()
@config_option
@click.option("--since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Only this metric; repeatable.")
@click.option("--destination", "destinations", multiple=True, metavar="NAME", help="Only there; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be read back, and where from; send no request.")
@click.option("--repair", "repairs", is_flag=True, help="Send what is missing again, when all is read.")
@reason_option
@on_interrupt_option
@json_option
def verify(
    *,
    since: str,
    config_file: Path | None,
    until: str | None,
    zones: Sequence[str],
    datasets: Sequence[str],
    metrics: Sequence[str],
    destinations: Sequence[str],
    dry_run: bool,
    repairs: bool,
    reason: str | None,
    on_interrupt: str,
    as_json: bool,
) -> None:
    """Read back what the destinations have stored, and compare it with the ledger sample by sample.

    Changes nothing, but with --repair. A running worker does it; without one, this command does it itself.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    first, last = stretch("--since", since, "--until", until, now)
    wanted = Verify(
        since=first,
        until=last,
        zones=tuple(zones),
        datasets=tuple(datasets),
        metrics=tuple(metrics),
        destinations=tuple(destinations),
    )
    plan = asyncio.run(_plan(settings, wanted))
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return
    redactor = start_logging(settings)
    total = sum(count.buckets for count in plan.counts)
    found = carry_out(settings, redactor, wanted, reason=reason, total=total, on_interrupt=on_interrupt)
    result = found.result if isinstance(found.result, VerifyResult) else VerifyResult()
    is_good = found.state is JobState.DONE and result.is_good
    if not as_json and (result.totals or not found.is_open):
        print_verified(result)
    healed = None
    if repairs and any(count.missing for count in result.totals) and found.state is JobState.DONE:
        healed = carry_out(
            settings,
            redactor,
            same_of_resend(wanted),
            reason=reason or f"repair {found.job_id} found samples missing",
            total=total,
            on_interrupt=on_interrupt,
        )
        is_good = _is_healed(result, healed)
        if not as_json:
            outcome = healed.result if isinstance(healed.result, ResendResult) else ResendResult()
            print_outcome(healed, outcome.outcome, outcome.reasons)
    if as_json:
        print_json([found, healed] if repairs else found)
    if not is_good:
        sys.exit(EXIT_INCOMPLETE)


def same_of_resend(wanted: Verify) -> Resend:
    """The resend that sends what is missing of what was read."""
    return Resend(
        since=wanted.since,
        until=wanted.until,
        zones=wanted.zones,
        datasets=wanted.datasets,
        destinations=wanted.destinations,
        metrics=wanted.metrics,
        only_missing=True,
    )


def _is_healed(result: VerifyResult, healed: Job) -> bool:
    outcome = healed.result.outcome if isinstance(healed.result, ResendResult) else ()
    others = result.not_read or result.damaged or any(count.different for count in result.totals)
    return is_delivered(healed, outcome) and not others


async def _plan(settings: Settings, wanted: Verify) -> Plan:
    """What would be read, after a look at whether what it names exists and can be read from."""
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        await require_names(ledger, settings, same_of_resend(wanted))
        urls = {
            each.name: shown_url(str(query_url(each)))
            for each in settings.destinations
            if not wanted.destinations or each.name in wanted.destinations
        }
        return Plan(urls, await ledger.read(plan_resend, same_of_resend(wanted)))
    finally:
        await ledger.close()


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    for name, url in plan.query_urls.items():
        click.echo(f"{name} would be read back from {url}")
    print_counts("In the ledger", plan.counts)


def print_verified(result: VerifyResult) -> None:
    """What is not as it should be, by metric and zone, and the totals of each destination."""
    kinds = ("equal", "missing", "different", "extra", "duplicated", "undelivered")
    if result.unequal:
        # Beside names as long as those of metrics there is no room for columns of zeros.
        found = [kind for kind in kinds if any(getattr(count, kind) for count in result.unequal)]
        numbers = [number_column(kind) for kind in found]
        table = new_table(word_column("destination"), text_column("metric"), text_column("zone"), *numbers)
        for count in result.unequal[:MOST_ROWS]:
            table.add_row(count.destination, count.metric, count.zone, *_numbers(count, found))
        click.echo("Not all as in the ledger:")
        print_table(table)
        click.echo(rest(len(result.unequal) + result.unlisted), nl=False)
    for example in result.examples:
        there = f"found {', '.join(example.found)}" if example.found else "not there"
        expected = "not in the ledger" if example.expected is None else f"ledger {example.expected}"
        line = f"{example.destination}: {example.finding}: {example.series} at {instant(example.timestamp_ms / 1000)}"
        print_line(terminal(), f"{line}: {expected}, {there}")
    if result.damaged:
        click.echo(f"{result.damaged:,} buckets of the ledger are damaged and say nothing")
    for each in result.not_read:
        print_line(terminal(), f"{each.destination} was not read to the end: {each.reason}")
    if not result.totals:
        click.echo("Compared: nothing")
        return
    table = new_table(word_column("destination"), *(number_column(kind) for kind in kinds))
    for count in result.totals:
        table.add_row(count.destination, *_numbers(count, kinds))
    click.echo("Samples compared:")
    terminal().print(table)


def _numbers(count: VerifyCount, kinds: Sequence[str]) -> list[str]:
    return [f"{getattr(count, kind):,}" for kind in kinds]
