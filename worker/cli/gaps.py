"""`cfrw gaps`: every hole, and the commands that would fill them."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import click

from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of, stretch
from worker.cli.resend import require_names
from worker.cli.tables import (
    MOST_ROWS,
    new_table,
    number_column,
    period_column,
    print_json,
    print_line,
    print_table,
    rest,
    terminal,
    text_column,
)
from worker.clock import SystemClock
from worker.config import Settings
from worker.datasets import catalogue_of, chosen
from worker.errors import UsageError
from worker.gaps import FETCHED_BY_ITSELF, Cause, Gap, Gaps, find_gaps
from worker.ledger import Ledger, Resend
from worker.times import instant

# The first sentence of what was said tells what is wrong.
_MOST_DETAIL_CHARACTERS = 160

# Names that show whom a gap of many is about.
_FIRST_NAMES = 2

# Not a thing that anybody can do something about, or that is not to be there.
_IS_FINE = {Cause.DENIED}


@click.command()
@config_option
@click.option("--since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@json_option
def gaps(
    *,
    config_file: Path | None,
    since: str,
    until: str | None,
    zones: Sequence[str],
    datasets: Sequence[str],
    as_json: bool,
) -> None:
    """List every hole with its reason, and the commands that would fill them.

    Looks at the ledger only. The exit code is 3 where something is missing that a plan does not deny.
    """
    settings = settings_of(config_file, needs_token=False)
    now = SystemClock().now()
    first, last = stretch("--since", since, "--until", until, now)
    options = () if config_file is None else ("--config", str(config_file))
    asked = Resend(first, last, tuple(zones), tuple(datasets))
    found = asyncio.run(_find(settings, asked, options, now))
    if as_json:
        print_json(found)
    else:
        _print(found)
        if first < found.since:
            click.echo(
                f"what is older than {instant(found.since)} was not looked at: the ledger deletes it once it is"
                f" delivered (LEDGER_RETENTION_HOURS={settings.ledger.retention_hours})"
            )
    if any(gap.cause not in _IS_FINE for gap in found.gaps):
        sys.exit(EXIT_INCOMPLETE)


async def _find(settings: Settings, asked: Resend, options: Sequence[str], now: float) -> Gaps:
    """The gaps of what a resend would be of, and commands that get these options."""
    retention_hours = settings.ledger.retention_hours
    if asked.until <= now - retention_hours * 3600:
        msg = (
            f"all windows before {instant(asked.until)} are older than the ledger keeps buckets"
            f" (LEDGER_RETENTION_HOURS={retention_hours}), so that it cannot tell what is missing"
        )
        raise UsageError(msg)
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        await require_names(ledger, settings, asked)
        return await find_gaps(
            ledger,
            settings.cloudflare,
            chosen(settings.cloudflare, catalogue_of(settings.cloudflare)).datasets,
            since=asked.since,
            until=asked.until,
            zones=asked.zones,
            datasets=asked.datasets,
            options=options,
            retention_hours=retention_hours,
            now=now,
        )
    finally:
        await ledger.close()


def _print(found: Gaps) -> None:
    console = terminal()
    if found.gaps:
        table = new_table(
            text_column("dataset"),
            text_column("zones or accounts"),
            period_column("time"),
            number_column("windows"),
            text_column("why"),
        )
        for gap in found.gaps[:MOST_ROWS]:
            why = gap.cause if gap.destination is None else f"{gap.cause} to {gap.destination}"
            when = f"{instant(gap.since)} to {instant(gap.until)}"
            table.add_row(gap.dataset, _names(gap), when, f"{gap.windows:,}", why)
        print_table(table)
        click.echo(rest(len(found.gaps)), nl=False)
        for gap in found.gaps[:MOST_ROWS]:
            if gap.detail:
                detail = shorten(gap.detail, _MOST_DETAIL_CHARACTERS, placeholder="…")
                print_line(console, f"{gap.dataset}, {_names(gap)}: {gap.cause}: {detail}")
        by_itself = {gap.command for gap in found.gaps if gap.cause in FETCHED_BY_ITSELF}
        commands = dict.fromkeys(gap.command for gap in found.gaps if gap.command)
        _print_commands("What would fill them:", [each for each in commands if each not in by_itself])
        title = "What failed or waits, `cfrw run` fetches by itself; without it, this would:"
        _print_commands(title, [each for each in commands if each in by_itself])
    else:
        click.echo("nothing is missing")
    if found.not_final:
        click.echo(f"{found.not_final:,} windows are not due: they are not final yet")


def _print_commands(title: str, commands: Sequence[str]) -> None:
    if not commands:
        return
    click.echo(f"\n{title}")
    for command in commands[:MOST_ROWS]:
        print_line(terminal(), f"  {command}")
    click.echo(rest(len(commands)), nl=False)


def _names(gap: Gap) -> str:
    more = len(gap.scopes) - _FIRST_NAMES
    return ", ".join(gap.scopes[:_FIRST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
