"""`cfrw import`."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, assert_never

import click
import msgspec

from worker.cli.export import RECEIPT, Receipt
from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of, start_logging
from worker.cli.repair import (
    asked_by,
    carry_out_staged,
    for_the_journal,
    is_delivered,
    on_interrupt_option,
    print_outcome,
    reason_option,
)
from worker.cli.tables import count_of, print_json
from worker.clock import SystemClock
from worker.cloudflare import FACT_SETS
from worker.config import BUCKET_SECONDS, Settings
from worker.datasets import catalogue_of
from worker.errors import LedgerFullError, UsageError
from worker.importing import Gathering, Imported, Problem
from worker.ledger import (
    Compared,
    Comparison,
    Import,
    ImportResult,
    Job,
    Ledger,
    all_scopes,
    begin_import,
    compared,
    room,
    stage,
)
from worker.times import instant, span

# Compared, or staged, in one transaction: with 100 samples each 600 kB, a few milliseconds in which nothing else gets
# at the ledger.
_BUCKETS_AT_ONCE = 500


@dataclass(slots=True)
class Plan:
    """What an import would do.

    buckets, samples: new to the ledger.
    unchanged:        windows that the ledger has with the same content.
    since, until:     from the first new window's start to the last one's end.
    """

    buckets: int = 0
    samples: int = 0
    unchanged: int = 0
    since: int = 0
    until: int = 0
    # Without a repr: `asyncio.run` makes one of what it returns (for a message that nobody sees), of gigabytes here.
    new: list[Imported] = field(default_factory=list, repr=False)


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@config_option
@click.option("--dry-run", is_flag=True, help="Show what would be imported; change nothing.")
@reason_option
@on_interrupt_option
@json_option
def import_(
    *,
    files: Sequence[str],
    config_file: Path | None,
    dry_run: bool,
    reason: str | None,
    on_interrupt: str,
    as_json: bool,
) -> None:
    """Capture what OpenMetrics files hold, as buckets that are pushed like any others; - is standard input.

    All or nothing: where a line does not fit, or the ledger has another value, nothing is imported. What the ledger has
    already is skipped. A running worker does it; without one, this command does it itself.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    plan = asyncio.run(_plan(settings, files, now))
    if not as_json:
        _print_plan(plan, dry_run=dry_run)
    if dry_run or not plan.new:
        if as_json:
            print_json({name: getattr(plan, name) for name in ("buckets", "samples", "unchanged", "since", "until")})
        return
    why = for_the_journal(reason or shlex.join(["cfrw", *sys.argv[1:]]), start_logging(settings))
    number = asyncio.run(_stage(settings, plan, files, why, now))
    plan.new.clear()
    found = carry_out_staged(settings, number, on_interrupt=on_interrupt)
    result = found.result if isinstance(found.result, ImportResult) else ImportResult()
    if as_json:
        print_json(found)
    else:
        print_imported(found, result)
    if not is_delivered(found, result.outcome) or result.differing or result.damaged:
        sys.exit(EXIT_INCOMPLETE)


def print_imported(found: Job, result: ImportResult) -> None:
    """What came of an import in the ledger, and of its buckets after that."""
    so_far = " so far" if found.is_open else ""
    click.echo(f"Imported {count_of('bucket', result.buckets)} with {count_of('sample', result.samples)}{so_far}")
    if result.unchanged:
        click.echo(f"{count_of('bucket', result.unchanged)} were captured meanwhile, with the same content")
    if result.differing:
        click.echo(f"{count_of('bucket', result.differing)} were captured meanwhile with other content, which stays")
    if result.damaged:
        click.echo(f"{count_of('bucket', result.damaged)} were damaged on their way; import the files once more")
    print_outcome(found, result.outcome, result.reasons)


def _print_plan(plan: Plan, *, dry_run: bool) -> None:
    if plan.unchanged:
        click.echo(f"{count_of('window', plan.unchanged)} in the ledger already, with the same content: skipped")
    if not plan.new:
        click.echo("Nothing is new to the ledger")
        return
    what = "Would be imported" if dry_run else "To be imported"
    stretch = f"{instant(plan.since)} to {instant(plan.until)}"
    click.echo(f"{what}: {count_of('bucket', plan.buckets)} with {count_of('sample', plan.samples)}, {stretch}")


async def _plan(settings: Settings, files: Sequence[str], now: float) -> Plan:
    """What of the files is new to the ledger; UsageError with the first mistakes where something does not fit."""
    _require_whole(settings, files)
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        gathering = Gathering(
            settings.cloudflare,
            catalogue_of(settings.cloudflare),
            await ledger.read(all_scopes),
            retention_hours=settings.ledger.retention_hours,
            now=now,
        )
        for name in files:
            with _opened(name) as stream:
                gathering.read("standard input" if name == "-" else name, stream)
        plan = Plan()
        chunk: list[Imported] = []
        for found in gathering.buckets():
            chunk.append(found)
            if len(chunk) == _BUCKETS_AT_ONCE:
                await _compare(ledger, gathering, plan, chunk)
                chunk = []
        await _compare(ledger, gathering, plan, chunk)
        if gathering.mistakes:
            raise UsageError(_message(gathering))
        if (await ledger.read(room)).used_bytes >= settings.ledger.max_bytes:
            msg = "the ledger has reached LEDGER_MAX_BYTES; there is no room for an import"
            raise LedgerFullError(msg)
    finally:
        await ledger.close()
    return plan


def _require_whole(settings: Settings, files: Sequence[str]) -> None:
    """UsageError where a receipt beside the files says that they have parts of buckets only, or other windows."""
    given = {Path(name).absolute() for name in files if name != "-"}
    for folder in sorted({file.parent for file in given}):
        if not (folder / RECEIPT).is_file():
            continue
        try:
            receipt = msgspec.json.decode((folder / RECEIPT).read_bytes(), type=Receipt)
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{folder / RECEIPT}, which says what the files hold, cannot be read: {error}"
            raise UsageError(msg) from None
        if problem := _why_in_parts(settings, folder, receipt, given):
            msg = f"{folder / RECEIPT} says {problem}"
            raise UsageError(msg)


def _why_in_parts(settings: Settings, folder: Path, receipt: Receipt, given: AbstractSet[Path]) -> str | None:
    stretches = {file.stretch for file in receipt.files if folder / file.name in given}
    if not stretches:
        return None
    if receipt.metrics or receipt.only_undelivered or receipt.labels_of_destination:
        return "that these files were exported with --metric, --undelivered or --destination: buckets are not whole so"
    for file in receipt.files:
        if file.stretch in stretches and folder / file.name not in given:
            return (
                f"that {file.name} has samples of the same time: buckets are whole with all of them only; name it too"
            )
    for name, widths in receipt.widths_seconds.items():
        width = settings.cloudflare.bucket_seconds
        width = FACT_SETS[name].window_seconds(width) if name in FACT_SETS else width
        if list(widths) != [width]:
            return (
                f"that windows of {name} were {' and '.join(map(span, widths))} long; with CF_BUCKET_SECONDS they are "
                f"{span(width)}"
            )
    return None


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(name).open("rb") as stream:
            yield stream
    except OSError as error:
        msg = f"{name} cannot be read: {error.strerror or error}"
        raise UsageError(msg) from error


async def _compare(ledger: Ledger, gathering: Gathering, plan: Plan, chunk: Sequence[Imported]) -> None:
    beside = await ledger.read(compared, [each.bucket for each in chunk], widths_seconds=BUCKET_SECONDS)
    for found, what in zip(chunk, beside, strict=True):
        window = found.bucket.window
        match what.comparison:
            case Comparison.NEW:
                plan.new.append(found)
                plan.buckets += 1
                plan.samples += len(found.bucket.values)
                plan.since = min(plan.since or window.start, window.start)
                plan.until = max(plan.until, window.end)
            case Comparison.SAME:
                plan.unchanged += 1
            case Comparison.DIFFERENT:
                gathering.tell(*_difference(found, what))
            case Comparison.OVERLAPS:
                problem = Problem("the ledger has a window of another width at that time; widths never overlap")
                gathering.tell(found.places.place(0), problem)
            case other:
                assert_never(other)


def _difference(found: Imported, what: Compared) -> tuple[str, Problem]:
    """Where a bucket differs from that of the ledger, and how."""
    bucket = found.bucket
    start = instant(bucket.window.start)
    stays = "what is captured never changes"
    if what.series is None:
        words = f"the ledger has other series, or another time, in this window; {stays}"
        return found.places.place(0), Problem(words, start)
    return found.places.place(bucket.series.index(what.series)), Problem(
        f"the ledger has another value; {stays}", start
    )


def _message(gathering: Gathering) -> str:
    further = [f"and {count_of('line', gathering.untold)} with other mistakes"] if gathering.untold else []
    return "\n  ".join(["nothing is imported:", *map(str, gathering.mistakes), *further])


async def _stage(settings: Settings, plan: Plan, files: Sequence[str], reason: str, now: float) -> int:
    """Write the new buckets into the ledger, beside a running worker, where nobody captures them yet."""
    ledger = Ledger.open_to_ask(settings.ledger.path)
    chunks = [
        [each.bucket for each in plan.new[first : first + _BUCKETS_AT_ONCE]]
        for first in range(0, len(plan.new), _BUCKETS_AT_ONCE)
    ]
    arguments = Import(since=plan.since, until=plan.until, files=tuple(files))
    try:
        number = await ledger.write(
            begin_import, arguments, chunks[0], reason=reason, asked_by=asked_by(), now=now, total=plan.buckets
        )
        with click.progressbar(chunks[1:], label="stage", file=sys.stderr, hidden=not sys.stderr.isatty()) as rest:
            for chunk in rest:
                await ledger.write(stage, number, chunk)
    finally:
        await ledger.close()
    return number
