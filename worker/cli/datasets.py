"""`cfrw datasets`: the catalogue, and what of it zones and accounts are denied."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from worker.cli.options import config_option, json_option, require_known
from worker.cli.tables import (
    count_of,
    new_table,
    number_column,
    print_json,
    print_table,
    terminal,
    text_column,
    word_column,
)
from worker.cloudflare import SchemaCheck
from worker.datasets import (
    DatasetListing,
    Known,
    check_datasets,
    ledger_path_of,
    list_datasets,
    list_scopes,
    read_known,
)
from worker.errors import LedgerDamagedError, LedgerUnusableError, UsageError
from worker.times import instant, span


@click.command()
@config_option
@click.option(
    "--check",
    "schema_file",
    type=click.Path(path_type=Path),
    metavar="SCHEMA",
    help="Validate every query of every dataset against this GraphQL schema instead.",
)
@click.option("--zone", metavar="ZONE", help="Only those of this zone or account (name or id), and what it is denied.")
@json_option
def datasets(config_file: Path | None, *, schema_file: Path | None, zone: str | None, as_json: bool) -> None:
    """List the catalogue: every dataset that can be collected, whether it is, and how many zones are denied it.

    What zones and accounts are denied is read from the ledger, if there is one.
    """
    if schema_file is not None:
        if zone is not None:
            msg = "--check is about the catalogue, --zone about the ledger; give one of them"
            raise click.UsageError(msg)
        _check_datasets(check_datasets(schema_file, config_file, os.environ), as_json=as_json)
        return
    if zone is not None:
        _datasets_of(zone, config_file, as_json=as_json)
        return
    listed = list_datasets(config_file, os.environ, _known(ledger_path_of(config_file, os.environ)))
    if as_json:
        print_json(listed)
        return
    console = terminal()
    for scope in dict.fromkeys(each.scope for each in listed):
        of_scope = [each for each in listed if each.scope == scope]
        console.print(f"{len(of_scope)} datasets of {scope}s; * is collected\n", soft_wrap=True)
        print_table(_listed(of_scope))
        for each in of_scope:
            for reason, count in each.denied.items():
                console.print(f"{each.name}: denied to {count_of(scope, count)}: {reason}", soft_wrap=True)
        console.print("")
    console.print("--json has their metrics", soft_wrap=True)


def _known(ledger_path: Path) -> Known | None:
    """What the ledger knows of zones and accounts; None without one. A broken one does not cost the list."""
    if not ledger_path.exists():
        return None
    try:
        return asyncio.run(read_known(ledger_path))
    except (LedgerUnusableError, LedgerDamagedError) as error:
        click.echo(f"what zones and accounts are denied is not known: {error}", err=True)
        return None


def _datasets_of(zone: str, config_file: Path | None, *, as_json: bool) -> None:
    """All that one zone, or account, could be asked for."""
    listed = list_datasets(config_file, os.environ)
    known = asyncio.run(read_known(ledger_path_of(config_file, os.environ)))
    names = [*(scope.name for scope in known.scopes), *(scope.tag for scope in known.scopes)]
    require_known("--zone", [zone], names)
    found = list_scopes(listed, known, zone)
    if as_json:
        print_json(found)
        return
    console = terminal()
    for scope in found:
        console.print(f"{scope.kind} {scope.name} ({scope.scope}); * is collected, and was looked at\n", soft_wrap=True)
        table = new_table(word_column("dataset"), word_column("denied since"), text_column("because"))
        for each in scope.datasets:
            since = "" if each.denied_since is None else instant(each.denied_since)
            table.add_row(f"{each.dataset}{'*' if each.is_collected else ''}", since, each.reason or "")
        print_table(table)


def _check_datasets(found: SchemaCheck, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        for each in found.refusals:
            click.echo(f"{each.dataset}, windows of {', '.join(map(span, each.widths_seconds))}: {each.reason}")
        verdict = "some are not valid, see above" if found.refusals else "all are valid"
        click.echo(f"{found.queries:,} queries of {found.datasets:,} datasets: {verdict}")
    if found.refusals:
        sys.exit(UsageError.exit_code)


def _listed(listed: Sequence[DatasetListing]) -> Table:
    names = word_column("dataset"), text_column("groups"), text_column("labels")
    table = new_table(
        *names, number_column("metrics"), text_column("widths"), number_column("delay"), number_column("denied")
    )
    for each in listed:
        table.add_row(
            f"{each.name}{'*' if each.is_collected else ''}",
            # The scope is a group, too, and stands above the table.
            ", ".join(group for group in each.groups if group != each.scope),
            ", ".join(each.labels),
            str(len(each.metrics)),
            each.widths,
            span(each.delay_seconds),
            _denied_to(each),
        )
    return table


def _denied_to(listed: DatasetListing) -> str:
    """Of how many zones or accounts; nothing where it was never looked at."""
    if listed.scope_count is None or not (listed.is_collected or listed.denied):
        return ""
    return f"{sum(listed.denied.values()):,}/{listed.scope_count:,}"
