"""`cfrw journal`: the repairs on record."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import click

from worker.cli.export import print_left_out
from worker.cli.imports import print_imported
from worker.cli.options import config_option, json_option
from worker.cli.repair import as_it_stands, print_counts, print_outcome
from worker.cli.tables import (
    new_table,
    number_column,
    period_column,
    print_json,
    print_line,
    print_table,
    terminal,
    text_column,
    word_column,
)
from worker.cli.usage import WholeNumber
from worker.cli.verify import print_verified
from worker.clock import SystemClock
from worker.datasets import ledger_path_of
from worker.errors import UsageError
from worker.ledger import (
    BackfillResult,
    ExportResult,
    ImportResult,
    Job,
    JobState,
    Ledger,
    ResendResult,
    VerifyResult,
    ask_to_cancel,
    job,
    jobs,
)
from worker.report import asked_for, outcome_of
from worker.times import instant

# Of SQLite's integers.
_LARGEST = 2**63 - 1


@click.command()
@click.argument("number", type=WholeNumber(1, _LARGEST), required=False)
@config_option
@click.option("--newest", default=20, show_default=True, type=WholeNumber(1, _LARGEST), help="How many are listed.")
@click.option("--cancel", "cancels", is_flag=True, help="Ask whoever carries repair NUMBER out to end it.")
@json_option
def journal(number: int | None, *, config_file: Path | None, newest: int, cancels: bool, as_json: bool) -> None:
    """List the repairs on record, newest first, or show repair NUMBER."""
    path = ledger_path_of(config_file, os.environ)
    if number is None:
        if cancels:
            msg = "--cancel needs the number of a repair; `cfrw journal` lists them"
            raise UsageError(msg)
        _print_all(asyncio.run(_read_all(path, newest)), as_json=as_json)
        return
    found = asyncio.run(_cancel(path, number) if cancels else _read_one(path, number))
    if as_json:
        print_json(found)
    else:
        _print_one(found)


async def _read_all(path: Path, newest: int) -> tuple[Job, ...]:
    ledger = Ledger.open_read_only(path)
    try:
        return await ledger.read(jobs, newest=newest)
    finally:
        await ledger.close()


async def _read_one(path: Path, number: int) -> Job:
    ledger = Ledger.open_read_only(path)
    try:
        return await as_it_stands(ledger, _known(await ledger.read(job, number), number))
    finally:
        await ledger.close()


async def _cancel(path: Path, number: int) -> Job:
    ledger = Ledger.open_to_ask(path)
    try:
        found = _known(await ledger.read(job, number), number)
        if not await ledger.write(ask_to_cancel, number, SystemClock().now()):
            if found.state is JobState.STAGING:
                msg = f"import {number} is not asked for yet: end its command, and nothing of it is imported"
            else:
                msg = f"repair {number} has ended ({found.state}); there is nothing to cancel"
            raise UsageError(msg)
        return _known(await ledger.read(job, number), number)
    finally:
        await ledger.close()


def _known(found: Job | None, number: int) -> Job:
    if found is None:
        msg = f"there is no repair {number}; `cfrw journal` lists those on record"
        raise UsageError(msg)
    return found


def _print_all(found: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no repair is on record")
        return
    table = new_table(
        number_column("repair"),
        word_column("asked at"),
        period_column("what"),
        text_column("by"),
        text_column("outcome"),
    )
    for each in found:
        table.add_row(str(each.job_id), instant(each.asked_at), asked_for(each), each.asked_by, outcome_of(each))
    print_table(table)


def _print_one(found: Job) -> None:
    console = terminal()
    for name, value in (
        ("repair", f"{found.job_id}: {asked_for(found)}"),
        ("asked", f"{instant(found.asked_at)} by {found.asked_by}"),
        ("reason", found.reason),
        ("state", found.state + ("; asked to end" if found.is_open and found.cancel_asked else "")),
        ("finished", "" if found.finished_at is None else instant(found.finished_at)),
        ("outcome", outcome_of(found)),
    ):
        if value:
            print_line(console, f"{name + ':':10}{value}")
    match found.result:
        case ResendResult(queued=queued, outcome=outcome, reasons=reasons):
            print_counts("Queued, by the state before", queued)
            print_outcome(found, outcome, reasons)
        case BackfillResult(outcome=outcome, reasons=reasons, out_of_reach=out_of_reach):
            for each in out_of_reach:
                print_line(
                    console, f"{each.dataset}: {each.windows:,} windows out of reach ({each.reason}): {each.detail}"
                )
            print_outcome(found, outcome, reasons)
        case VerifyResult() as result if result.totals or not found.is_open:
            print_verified(result)
        case ImportResult() as result:
            print_imported(found, result)
        case ExportResult(damaged=damaged, left_out=left_out):
            print_left_out(damaged, left_out)
        case None | VerifyResult():
            pass
        case result:
            assert_never(result)
