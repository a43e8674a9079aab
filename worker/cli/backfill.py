"""`cfrw backfill`."""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import click

from worker.app import api_of
from worker.backfill import BackfillPlan, plan_backfill, seconds_for
from worker.budget import recall_requests
from worker.cli.options import (
    EXIT_INCOMPLETE,
    config_option,
    json_option,
    require_known,
    settings_of,
    start_logging,
    stretch,
)
from worker.cli.repair import carry_out, is_delivered, on_interrupt_option, print_outcome, reason_option
from worker.cli.resend import TooOld, age_limit_seconds, print_too_old
from worker.cli.tables import new_table, number_column, print_json, print_line, terminal, text_column
from worker.cli.usage import WholeNumber
from worker.clock import SystemClock
from worker.cloudflare import FACT_SETS, Api, Dataset
from worker.config import CloudflareSettings, Settings
from worker.datasets import catalogue_of, chosen
from worker.errors import UsageError
from worker.ledger import Backfill, BackfillResult, HoleReason, Ledger, OutOfReach, added, present_scopes
from worker.outstanding import Worklist
from worker.owners import all_recalled
from worker.times import instant, span


@dataclass(frozen=True, slots=True)
class Missing:
    """Windows of a dataset that would be fetched, of so many zones or accounts."""

    dataset: str
    width_seconds: int
    scopes: int
    windows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill would do.

    missing:      what there is to fetch.
    windows:      all of that together.
    not_final:    windows that are not final yet, which the worker collects in time.
    requests:     to Cloudflare, at least.
    seconds:      how long that takes at the pace of a backfill.
    out_of_reach: what cannot be had.
    too_old:      what will be recorded as expired at a destination, for its age.
    """

    missing: tuple[Missing, ...]
    windows: int
    not_final: int
    requests: int
    seconds: float
    out_of_reach: tuple[OutOfReach, ...]
    too_old: tuple[TooOld, ...]


@click.command()
@config_option
@click.option("--from", "since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--to", "until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option(
    "--max-hours",
    type=WholeNumber(1),
    metavar="HOURS",
    help="How far back it may reach; CF_BACKFILL_MAX_HOURS by default.",
)
@click.option("--coarser", is_flag=True, help="Take wider windows where Cloudflare has no others any more.")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched and what it costs; change nothing.")
@reason_option
@on_interrupt_option
@json_option
def backfill(
    *,
    since: str,
    config_file: Path | None,
    until: str | None,
    zones: Sequence[str],
    datasets: Sequence[str],
    max_hours: int | None,
    coarser: bool,
    dry_run: bool,
    reason: str | None,
    on_interrupt: str,
    as_json: bool,
) -> None:
    """Fetch windows that the ledger lacks from Cloudflare, and push them.

    What was captured is never fetched again. A running worker does it, behind its live work; without one, this command
    does it itself.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    first, last = stretch("--from", since, "--to", until, now)
    wanted = Backfill(
        since=first,
        until=last,
        zones=tuple(zones),
        datasets=tuple(datasets),
        coarser=coarser,
    )
    _require_sound(settings, wanted, max_hours, now)
    plan = asyncio.run(_plan(settings, wanted, now))
    if not as_json:
        _print_plan(plan, dry_run=dry_run)
    if dry_run or not plan.windows:
        if as_json:
            print_json(plan)
        if not dry_run and _is_lost(plan.out_of_reach):
            sys.exit(EXIT_INCOMPLETE)
        return
    redactor = start_logging(settings)
    found = carry_out(settings, redactor, wanted, reason=reason, total=plan.windows, on_interrupt=on_interrupt)
    result = found.result if isinstance(found.result, BackfillResult) else BackfillResult()
    if as_json:
        print_json(found)
    else:
        so_far = " so far" if found.is_open else ""
        click.echo(f"Captured {result.buckets:,} buckets with {result.samples:,} samples{so_far}")
        _print_out_of_reach(result.out_of_reach)
        print_outcome(found, result.outcome, result.reasons)
    if not is_delivered(found, result.outcome) or _is_lost(result.out_of_reach):
        sys.exit(EXIT_INCOMPLETE)


def _require_sound(settings: Settings, wanted: Backfill, max_hours: int | None, now: float) -> None:
    """UsageError where it makes no sense, or reaches further back than it may."""
    allowed_hours = settings.cloudflare.backfill_max_hours if max_hours is None else max_hours
    if wanted.since < now - allowed_hours * 3600 - 1:
        hours = ceil((now - wanted.since - 1) / 3600)
        bound = f"CF_BACKFILL_MAX_HOURS ({allowed_hours} h)" if max_hours is None else f"--max-hours {max_hours}"
        msg = f"--from {instant(wanted.since)} is further back than {bound} allows; --max-hours {hours} goes that far"
        raise UsageError(msg)
    kept_hours = settings.ledger.retention_hours
    if wanted.since < now - kept_hours * 3600:
        hours = ceil((now - wanted.since) / 3600) + 1
        msg = (
            f"--from {instant(wanted.since)} is older than the ledger keeps buckets"
            f" (LEDGER_RETENTION_HOURS={kept_hours}): they would be deleted as soon as they are delivered;"
            f" set it to {hours} at least"
        )
        raise UsageError(msg)
    catalogue = catalogue_of(settings.cloudflare)
    for name in wanted.datasets:
        if name in FACT_SETS:
            msg = f"--dataset {name}: facts have no past, Cloudflare tells only how they are at the moment"
            raise UsageError(msg)
        require_known("--dataset", [name], list(catalogue))
        if settings.cloudflare.bucket_seconds not in catalogue[name].widths_seconds:
            widths = ", ".join(span(width) for width in catalogue[name].widths_seconds)
            msg = f"--dataset {name} has no windows of {span(settings.cloudflare.bucket_seconds)}, only of {widths}"
            raise UsageError(msg)


async def _plan(settings: Settings, wanted: Backfill, now: float) -> Plan:
    catalogue = catalogue_of(settings.cloudflare)
    collected = chosen(settings.cloudflare, catalogue).datasets
    datasets = [catalogue[name] for name in wanted.datasets] or collected
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        known = all_recalled(await ledger.read(present_scopes), settings.cloudflare)
        if not known:
            msg = "no zone has been listed yet: `cfrw run --once` lists them and fetches what is recent"
            raise UsageError(msg)
        require_known("--zone", wanted.zones, [*(each.name for each in known), *(each.tag for each in known)])
        plans = [await _plan_with(token, wanted, datasets, ledger, now) for token in settings.cloudflare.by_token()]
    finally:
        await ledger.close()
    requests = [plan.requests() for plan, _ in plans]
    worklists = [each for plan, _ in plans for each in plan.worklists]
    return Plan(
        missing=_missing(worklists),
        windows=sum(plan.windows for plan, _ in plans),
        not_final=sum(plan.not_final for plan, _ in plans),
        requests=sum(requests),
        # Each token has a pace of its own.
        seconds=max(seconds_for(count, limit) for count, (_, limit) in zip(requests, plans, strict=True)),
        out_of_reach=added(*(plan.out_of_reach for plan, _ in plans)),
        too_old=tuple(_too_old(settings, worklists, now)),
    )


async def _plan_with(
    settings: CloudflareSettings, wanted: Backfill, datasets: Sequence[Dataset], ledger: Ledger, now: float
) -> tuple[BackfillPlan, int]:
    """What would be fetched with one token, and how many queries it allows in five minutes."""
    clock = SystemClock()
    api = api_of(settings, clock)
    try:
        await recall_requests(settings.name, api.quota, ledger, clock)
        plan = await plan_backfill(wanted, datasets, settings=settings, ledger=ledger, api=api, now=now)
        return plan, api.quota.limit(Api.GRAPHQL)
    finally:
        await api.aclose()


def _missing(worklists: Sequence[Worklist]) -> tuple[Missing, ...]:
    """One for each dataset and width, whichever tokens it is fetched with."""
    scopes: Counter[tuple[str, int]] = Counter()
    windows: Counter[tuple[str, int]] = Counter()
    for each in worklists:
        scopes[each.dataset.name, each.width_seconds] += len(each.outstanding)
        windows[each.dataset.name, each.width_seconds] += sum(len(found.windows) for found in each.outstanding.values())
    return tuple(Missing(*key, scopes=count, windows=windows[key]) for key, count in scopes.items())


def _too_old(settings: Settings, worklists: Sequence[Worklist], now: float) -> list[TooOld]:
    found = []
    for destination in settings.destinations:
        limit_seconds = age_limit_seconds(destination)
        if limit_seconds is None:
            continue
        windows = sum(
            len(entry.windows.before(now - limit_seconds)) for each in worklists for entry in each.outstanding.values()
        )
        if windows:
            found.append(TooOld(destination.name, windows, limit_seconds))
    return found


def _print_plan(plan: Plan, *, dry_run: bool) -> None:
    if plan.missing:
        click.echo("Would be fetched:" if dry_run else "To be fetched:")
        table = new_table(
            text_column("dataset"),
            number_column("width"),
            number_column("zones or\naccounts"),
            number_column("windows"),
        )
        for each in plan.missing:
            table.add_row(each.dataset, span(each.width_seconds), f"{each.scopes:,}", f"{each.windows:,}")
        terminal().print(table)
        many = "request" if plan.requests == 1 else "requests"
        click.echo(f"{plan.windows:,} windows, about {plan.requests:,} {many} to Cloudflare, {span(plan.seconds)}")
    else:
        click.echo("Nothing is missing that can be fetched")
    if plan.not_final:
        click.echo(f"{plan.not_final:,} windows are not final yet: `cfrw run` collects them in time")
    _print_out_of_reach(plan.out_of_reach)
    print_too_old(plan.too_old)


def _print_out_of_reach(out_of_reach: Sequence[OutOfReach]) -> None:
    for each in out_of_reach:
        print_line(terminal(), f"{each.dataset}: {each.windows:,} windows {_WHY[each.reason]}: {each.detail}")


_WHY = {
    HoleReason.DENIED: "are denied",
    HoleReason.EXPIRED: "are out of reach",
    HoleReason.FAILED: "could not be fetched",
}


def _is_lost(out_of_reach: Sequence[OutOfReach]) -> bool:
    """Whether windows are missing for good, or for now, that a plan does not deny."""
    return any(each.reason is not HoleReason.DENIED for each in out_of_reach)
