"""`cfrw check`: what is found, a line each, and an exit code for whoever asks by a script."""

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import click

from worker.app import api_of
from worker.check import DESTINATION, Finding, State, failure, look, ok, skipped, warning
from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of, start_logging
from worker.cli.repair import carry_out, is_delivered
from worker.cli.tables import new_table, print_hanging, print_json, terminal, text_column, word_column
from worker.clock import SystemClock
from worker.config import DestinationSettings, Settings, describe
from worker.datasets import Chosen, catalogue_of, chosen
from worker.errors import ConfigError, UsageError, WorkerError
from worker.ledger import Job, JobState, Ledger, Resend, ResendResult, Verify, VerifyResult, newest_acknowledged
from worker.observe import Redactor
from worker.remote_write import ReadBack, RemoteWriteClient, query_url
from worker.times import instant

_REPAIR = "repair"


@click.command()
@config_option
@click.option("--config-only", is_flag=True, help="Look at the configuration only; send no request.")
@click.option("--no-probe", is_flag=True, help="Send no samples to find out how old they may be for a receiver.")
@click.option("--repair-test", is_flag=True, help="Send one acknowledged bucket again, as a repair of its own.")
@json_option
def check(config_file: Path | None, *, config_only: bool, no_probe: bool, repair_test: bool, as_json: bool) -> None:
    """Say whether this set-up is sound."""
    settings = settings_of(config_file)
    collected = chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
    if config_only:
        if no_probe or repair_test:
            msg = "--config-only sends no request at all: leave --no-probe and --repair-test out"
            raise UsageError(msg)
        _show_configuration(settings, as_json=as_json)
        return
    redactor = start_logging(settings)
    shown = _Shown(redactor, is_quiet=as_json)
    asyncio.run(_check(settings, collected, shown, probe=not no_probe))
    if repair_test:
        _test_repair(settings, redactor, shown)
    failures, warnings = shown.count(State.FAILURE), shown.count(State.WARNING)
    if as_json:
        print_json({"findings": shown.findings})
    else:
        click.echo(f"{_counted(failures, 'failure')}, {_counted(warnings, 'warning')}")
    if failures:
        sys.exit(EXIT_INCOMPLETE)


class _Shown:
    """The findings so far, each on a line as soon as there is one."""

    def __init__(self, redactor: Redactor, *, is_quiet: bool) -> None:
        self.findings: list[Finding] = []
        self._redactor = redactor
        self._is_quiet = is_quiet

    def add(self, found: Finding) -> None:
        # Every part keeps secrets out of its words; nothing is told in spite of that.
        finding = replace(found, what=self._redactor.text(found.what), to_do=self._redactor.text(found.to_do))
        self.findings.append(finding)
        if not self._is_quiet:
            to_do = f" -> {finding.to_do}" if finding.to_do else ""
            print_hanging(f"{finding.state:8} {finding.section:12} ", f"{finding.what}{to_do}")

    def count(self, state: State) -> int:
        return sum(finding.state is state for finding in self.findings)


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


async def _check(settings: Settings, collected: Chosen, shown: _Shown, *, probe: bool) -> None:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        senders = {each.name: RemoteWriteClient(each, clock) for each in settings.destinations}
        for sender in senders.values():
            stack.push_async_callback(sender.aclose)
        readers: dict[str, ReadBack | ConfigError] = {}
        for each in settings.destinations:
            try:
                reader = ReadBack(each, clock)
            except ConfigError as error:
                readers[each.name] = error
            else:
                readers[each.name] = reader
                stack.push_async_callback(reader.aclose)
        apis = {token.name: api_of(token, clock) for token in settings.cloudflare.by_token()}
        for api in apis.values():
            stack.push_async_callback(api.aclose)
        count = len(collected.datasets) + len(collected.fact_sets)
        what = f"sound: {_counted(count, 'dataset')}, {_counted(len(senders), 'destination')}"
        shown.add(ok("config", what))
        async for finding in look(
            settings, collected, apis=apis, senders=senders, readers=readers, clock=clock, probe=probe
        ):
            shown.add(finding)


def _test_repair(settings: Settings, redactor: Redactor, shown: _Shown) -> None:
    """Have a bucket of every destination sent again, the whole way from the journal to the receiver's answer."""
    if any(finding.state is State.FAILURE and finding.section == DESTINATION for finding in shown.findings):
        shown.add(skipped(_REPAIR, "not tried while a destination does not answer as it should"))
        return
    for destination in settings.destinations:
        try:
            resend = asyncio.run(_newest_acknowledged(settings, destination.name))
            if resend is None:
                what = f"{destination.name}: not tried, as it has acknowledged nothing within CF_REPLAY_HOURS"
                shown.add(skipped(_REPAIR, what))
                continue
            found = carry_out(settings, redactor, resend, reason=None, total=1, on_interrupt="cancel")
            sent = _repaired(destination.name, resend, found)
            shown.add(sent)
            if sent.state is State.OK:
                shown.add(_read_back(settings, redactor, destination, resend))
        except WorkerError as error:
            shown.add(failure(_REPAIR, f"{destination.name}: {error}"))


def _read_back(settings: Settings, redactor: Redactor, destination: DestinationSettings, resend: Resend) -> Finding:
    """Whether what was sent again is there."""
    name = destination.name
    try:
        query_url(destination)
    except ConfigError as error:
        return skipped(_REPAIR, f"{name}: not read back: {error.mistakes[0]}")
    wanted = Verify(resend.since, resend.until, resend.zones, resend.datasets, resend.destinations)
    found = carry_out(settings, redactor, wanted, reason=None, total=1, on_interrupt="cancel")
    result = found.result if isinstance(found.result, VerifyResult) else VerifyResult()
    if result.not_read:
        reason = result.not_read[0].reason
        what = f"{name}: could not be read back: {reason}"
        return warning(_REPAIR, what, "correct query_url") if destination.query_url else skipped(_REPAIR, what)
    equal = sum(count.equal for count in result.totals)
    if found.state is JobState.DONE and result.is_good and equal:
        return ok(_REPAIR, f"{name}: all {equal:,} were found there, as repair {found.job_id} read back")
    missing = sum(count.missing + count.different for count in result.totals)
    what = f"{name}: {missing:,} were acknowledged and are not there, {equal:,} are"
    return failure(_REPAIR, what, f"see `cfrw journal {found.job_id}`")


async def _newest_acknowledged(settings: Settings, destination: str) -> Resend | None:
    if not await asyncio.to_thread(settings.ledger.path.exists):
        return None
    since = SystemClock().now() - settings.cloudflare.replay_hours * 3600 - settings.cloudflare.bucket_seconds
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        return await ledger.read(newest_acknowledged, destination, since=since)
    finally:
        await ledger.close()


def _repaired(destination: str, resend: Resend, found: Job) -> Finding:
    result = found.result if isinstance(found.result, ResendResult) else ResendResult()
    samples = sum(count.samples for count in result.outcome)
    what = f"{destination}: {_counted(samples, 'sample')} of {resend.datasets[0]} from {instant(resend.since)}"
    if samples and is_delivered(found, result.outcome):
        return ok(_REPAIR, f"{what} went out again as repair {found.job_id}, and were acknowledged")
    reasons = "; ".join(f"{each.state}: {' '.join(each.reason.split())}" for each in result.reasons)
    to_do = f"see `cfrw journal {found.job_id}`"
    return failure(_REPAIR, f"{what} were not sent again: {reasons or f'the repair is {found.state}'}", to_do)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
