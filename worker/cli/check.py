"""`cfrw check`: what is found, a line each, and an exit code for whoever asks by a script."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import click

from worker.app import api_of
from worker.check import Finding, State, look, ok
from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of, start_logging
from worker.cli.tables import new_table, print_json, print_line, terminal, text_column, word_column
from worker.clock import SystemClock
from worker.config import Settings, describe
from worker.datasets import Chosen, catalogue_of, chosen
from worker.errors import UsageError
from worker.observe import Redactor
from worker.remote_write import RemoteWriteClient


@click.command()
@config_option
@click.option("--config-only", is_flag=True, help="Look at the configuration only; send no request.")
@click.option("--no-probe", is_flag=True, help="Send no samples to find out how old they may be for a receiver.")
@json_option
def check(config_file: Path | None, *, config_only: bool, no_probe: bool, as_json: bool) -> None:
    """Say whether this set-up is sound."""
    settings = settings_of(config_file)
    collected = chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
    if config_only:
        if no_probe:
            msg = "--no-probe says nothing beside --config-only, which sends no request at all"
            raise UsageError(msg)
        _show_configuration(settings, as_json=as_json)
        return
    redactor = start_logging(settings)
    findings = asyncio.run(_check(settings, collected, redactor, probe=not no_probe, is_shown=not as_json))
    if as_json:
        print_json({"findings": findings})
    failures = sum(finding.state is State.FAILURE for finding in findings)
    if not as_json:
        warnings = sum(finding.state is State.WARNING for finding in findings)
        click.echo(f"{_counted(failures, 'failure')}, {_counted(warnings, 'warning')}")
    if failures:
        sys.exit(EXIT_INCOMPLETE)


def _show_configuration(settings: Settings, *, as_json: bool) -> None:
    rows = describe(settings)
    if as_json:
        print_json(dict(rows))
        return
    table = new_table(word_column("setting"), text_column("value"))
    for name, value in rows:
        table.add_row(name, value)
    click.echo("The configuration is sound:")
    terminal().print(table)


async def _check(
    settings: Settings, collected: Chosen, redactor: Redactor, *, probe: bool, is_shown: bool
) -> list[Finding]:
    """Look at everything; a finding is shown as soon as there is one."""
    console = terminal()
    findings = []
    async for found in _found(settings, collected, probe=probe):
        # Every part keeps secrets out of its words; nothing is told in spite of that.
        finding = replace(found, what=redactor.text(found.what), to_do=redactor.text(found.to_do))
        findings.append(finding)
        if is_shown:
            to_do = f" -> {finding.to_do}" if finding.to_do else ""
            print_line(console, f"{finding.state:8} {finding.section:12} {finding.what}{to_do}")
    return findings


async def _found(settings: Settings, collected: Chosen, *, probe: bool) -> AsyncIterator[Finding]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        senders = {each.name: RemoteWriteClient(each, clock) for each in settings.destinations}
        for sender in senders.values():
            stack.push_async_callback(sender.aclose)
        apis = {token.name: api_of(token, clock) for token in settings.cloudflare.by_token()}
        for api in apis.values():
            stack.push_async_callback(api.aclose)
        count = len(collected.datasets) + len(collected.fact_sets)
        what = f"sound: {_counted(count, 'dataset')}, {_counted(len(senders), 'destination')}"
        yield ok("config", what)
        async for finding in look(settings, collected, apis=apis, senders=senders, clock=clock, probe=probe):
            yield finding


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
