"""`cfrw check`."""

from pathlib import Path

import click

from worker.cli.options import config_option, json_option, settings_of
from worker.cli.tables import new_table, print_json, terminal, text_column, word_column
from worker.config import describe
from worker.datasets import catalogue_of, chosen
from worker.errors import UsageError


@click.command()
@config_option
@click.option("--config-only", is_flag=True, help="Look at the configuration only; send no request.")
@json_option
def check(config_file: Path | None, *, config_only: bool, as_json: bool) -> None:
    """Say whether this set-up is sound."""
    if not config_only:
        msg = "this version checks the configuration only: add --config-only"
        raise UsageError(msg)
    settings = settings_of(config_file)
    chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
    rows = describe(settings)
    if as_json:
        print_json(dict(rows))
        return
    table = new_table(word_column("setting"), text_column("value"))
    for name, value in rows:
        table.add_row(name, value)
    click.echo("The configuration is sound:")
    terminal().print(table)
