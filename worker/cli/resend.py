"""`cfrw resend`."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from worker.cli.options import (
    EXIT_INCOMPLETE,
    config_option,
    json_option,
    require_known,
    settings_of,
    start_logging,
    stretch,
)
from worker.cli.repair import carry_out, is_delivered, on_interrupt_option, print_counts, print_outcome, reason_option
from worker.cli.tables import print_json
from worker.clock import SystemClock
from worker.cloudflare import FACT_SETS
from worker.config import DestinationSettings, Settings
from worker.datasets import catalogue_of, metadata_of
from worker.ledger import Ledger, Resend, ResendCount, ResendResult, all_scopes, plan_resend, stamped_before
from worker.remote_write import query_url
from worker.times import span


@dataclass(frozen=True, slots=True)
class TooOld:
    """Buckets of a plan that are older than a destination says it takes."""

    destination: str
    buckets: int
    window_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a resend would do.

    counts:   buckets by destination and state.
    too_old:  what will be refused, or given up, for its age.
    strict:   destinations that take nothing older than the newest sample they have of a series.
    """

    counts: tuple[ResendCount, ...]
    too_old: tuple[TooOld, ...]
    strict: tuple[str, ...]

    @property
    def buckets(self) -> int:
        """How many deliveries there are to make."""
        return sum(count.buckets for count in self.counts)


@click.command()
@config_option
@click.option("--since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Only this metric; repeatable.")
@click.option("--destination", "destinations", multiple=True, metavar="NAME", help="Only there; repeatable.")
@click.option("--only-missing", is_flag=True, help="Read back first, and send only what a destination lacks.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@reason_option
@on_interrupt_option
@json_option
def resend(
    *,
    since: str,
    config_file: Path | None = None,
    until: str | None = None,
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
    metrics: Sequence[str] = (),
    destinations: Sequence[str] = (),
    only_missing: bool = False,
    reason: str | None = None,
    on_interrupt: str = "detach",
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Push captured buckets again, refused and expired ones included.

    Nothing is fetched from Cloudflare: what the ledger holds is sent with the same timestamps and values as before.
    A running worker does it; without one, this command does it itself.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    first, last = stretch("--since", since, "--until", until, now)
    wanted = Resend(
        since=first,
        until=last,
        zones=tuple(zones),
        datasets=tuple(datasets),
        metrics=tuple(metrics),
        destinations=tuple(destinations),
        only_missing=only_missing,
    )
    plan = asyncio.run(_plan(settings, wanted, now))
    if not as_json:
        _print_plan(plan, only_missing=only_missing, dry_run=dry_run)
    if dry_run:
        if as_json:
            print_json(plan)
        return
    redactor = start_logging(settings)
    found = carry_out(settings, redactor, wanted, reason=reason, total=plan.buckets, on_interrupt=on_interrupt)
    result = found.result if isinstance(found.result, ResendResult) else ResendResult()
    if as_json:
        print_json(found)
    else:
        print_outcome(found, result.outcome, result.reasons)
    if not is_delivered(found, result.outcome):
        sys.exit(EXIT_INCOMPLETE)


def _print_plan(plan: Plan, *, only_missing: bool, dry_run: bool) -> None:
    what = "sent again where it is missing" if only_missing else "sent again"
    print_counts(f"{'Would' if dry_run else 'To'} be {what}", plan.counts)
    print_too_old(plan.too_old)
    for name in plan.strict:
        click.echo(
            f"{name} takes nothing older than the newest sample it has of a series (out_of_order_time_window: 0): what"
            " is older than that will be refused"
        )
    if not only_missing and any(count.state == "acknowledged" for count in plan.counts):
        click.echo(
            "A VictoriaMetrics without deduplication counts samples twice that it has already: --only-missing leaves"
            " those out."
        )


def print_too_old(too_old: Sequence[TooOld]) -> None:
    """What a destination will not get for its age, a line each."""
    for each in too_old:
        click.echo(
            f"{each.destination}: {each.buckets:,} of them are older than {span(each.window_seconds)}, which is all"
            " that it takes: they will be recorded as expired"
        )


def age_limit_seconds(destination: DestinationSettings) -> float | None:
    """How old a sample may be for a destination to take it, as far as the settings say."""
    limits = (destination.out_of_order_time_window_seconds, destination.queue.sample_age_limit_seconds)
    return min((seconds for seconds in limits if seconds), default=None)


async def _plan(settings: Settings, wanted: Resend, now: float) -> Plan:
    """What a resend would send, after a look at whether what it names exists."""
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        await require_names(ledger, settings, wanted)
        for destination in settings.destinations if wanted.only_missing else ():
            if not wanted.destinations or destination.name in wanted.destinations:
                query_url(destination)  # ConfigError where it does not say where to read
        counts = await ledger.read(plan_resend, wanted)
        too_old = []
        for destination in settings.destinations:
            window_seconds = age_limit_seconds(destination)
            if window_seconds is None or (wanted.destinations and destination.name not in wanted.destinations):
                continue
            if buckets := await ledger.read(stamped_before, wanted, now - window_seconds):
                too_old.append(TooOld(destination.name, buckets, window_seconds))
        named = {count.destination for count in counts}
        strict = (each.name for each in settings.destinations if each.is_strict)
        return Plan(counts, tuple(too_old), tuple(name for name in strict if name in named))
    finally:
        await ledger.close()


async def require_names(ledger: Ledger, settings: Settings, wanted: Resend) -> None:
    """UsageError where something that a repair names does not exist; what has disappeared does."""
    scopes = await ledger.read(all_scopes)
    catalogue = catalogue_of(settings.cloudflare)
    require_known("--zone", wanted.zones, [*(scope.name for scope in scopes), *(scope.tag for scope in scopes)])
    require_known("--dataset", wanted.datasets, [*catalogue, *FACT_SETS])
    require_known("--metric", wanted.metrics, list(metadata_of(catalogue)))
    require_known("--destination", wanted.destinations, [each.name for each in settings.destinations])
