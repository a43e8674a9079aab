"""`cfrw export`."""

import asyncio
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from worker.cli.options import (
    EXIT_INCOMPLETE,
    config_option,
    settings_of,
    start_logging,
    stretch,
)
from worker.cli.repair import asked_by, for_the_journal, reason_option
from worker.cli.resend import require_names
from worker.cli.tables import count_of, print_line, terminal
from worker.cli.usage import WholeNumber
from worker.clock import SystemClock
from worker.config import Settings
from worker.config.values import InvalidValueError, size_bytes
from worker.datasets import catalogue_of, metadata_of
from worker.errors import UsageError
from worker.export import FORMATS, Exported, ExportedFile, Exporter, Folder, Stream
from worker.ledger import Export, ExportResult, Ledger, LeftOut, Resend, record
from worker.times import instant

RECEIPT = "receipt.json"
"""Beside the files: what they hold, and what is done with them."""

# Blocks of Prometheus begin at every second full hour. `promtool` looks through a file once for each: with a day of it
# that is 12 times, 9 s for 470,000 samples.
_BLOCK_HOURS = 2
_DEFAULT_HOURS = 24

# A piece that is never cut: less would only make files of one each.
_LEAST_FILE_BYTES = 2**20

# Prometheus keeps the newest samples in its head for one and a half blocks. When it starts, it takes back from its
# write-ahead log only what lies behind the end of the newest block: of 50 minutes beside a block that had ended half an
# hour before, it had 34 afterwards.
_HEAD_SECONDS = 3 * 3600

_TOO_NEW = (
    "Some samples are younger than three hours. Do not load those by blocks: Prometheus has that time in its head, and"
    " loses of it, at its next start, whatever lies before the end of a block."
)

_MOST_DAMAGED = 10


class Receipt(msgspec.Struct):
    """What an export was, for whoever finds its files."""

    exported_at: str
    exported_by: str
    reason: str
    windows_from: str
    windows_to: str
    format: str
    zones: Sequence[str]
    datasets: Sequence[str]
    metrics: Sequence[str]
    labels_of_destination: str
    only_undelivered: bool
    widths_seconds: Mapping[str, Sequence[int]]
    samples: int
    damaged_buckets: int
    left_out: Sequence[LeftOut]
    files: Sequence[ExportedFile]
    steps: Sequence[str]


@click.command()
@config_option
@click.option("--from", "since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--to", "until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="Only this metric; repeatable.")
@click.option("--destination", metavar="NAME", help="With the labels that this destination gets.")
@click.option("--undelivered", is_flag=True, help="Only what --destination refused, what expired, or never was its.")
@click.option(
    "--format", "how", type=click.Choice(list(FORMATS)), default="openmetrics", help="For promtool, or people."
)
@click.option("--output", metavar="PATH", help="A new folder for the files, or - for standard output.")
@click.option("--block-hours", type=WholeNumber(_BLOCK_HOURS), help="How long a stretch a file holds, by the clock.")
@click.option("--max-bytes", metavar="SIZE", help="Go on in a further file where one would be larger.")
@reason_option
def export(
    *,
    config_file: Path | None,
    since: str,
    until: str | None,
    zones: Sequence[str],
    datasets: Sequence[str],
    metrics: Sequence[str],
    destination: str | None,
    undelivered: bool,
    how: str,
    output: str | None,
    block_hours: int | None,
    max_bytes: str | None,
    reason: str | None,
) -> None:
    """Write captured buckets into files: OpenMetrics that promtool makes blocks of, or CSV.

    Nothing is fetched from Cloudflare, and nothing about delivery changes. Works beside a running worker and without
    one.
    """
    settings = settings_of(config_file)
    now = SystemClock().now()
    first, last = stretch("--from", since, "--to", until, now)
    wanted = Export(
        since=first,
        until=last,
        zones=tuple(zones),
        datasets=tuple(datasets),
        metrics=tuple(metrics),
        destination=destination or "",
        undelivered=undelivered,
        output=output or "",
    )
    if undelivered and not destination:
        msg = "--undelivered needs --destination: each has its own"
        raise UsageError(msg)
    if output == "-" and (block_hours or max_bytes):
        msg = "--block-hours and --max-bytes part files; standard output is one"
        raise UsageError(msg)
    if output != "-":
        name = f"cfrw-export-{instant(wanted.since)}-{instant(wanted.until)}".replace(":", "")
        wanted = replace(wanted, output=str(Path(output or name).absolute()))
    hours = block_hours or _DEFAULT_HOURS
    if hours % _BLOCK_HOURS:
        msg = f"--block-hours {hours} has to be even: Prometheus' blocks begin at every second hour"
        raise UsageError(msg)
    why = for_the_journal(reason or shlex.join(["cfrw", *sys.argv[1:]]), start_logging(settings))
    size = _size(max_bytes)
    try:
        asyncio.run(_export(settings, wanted, how, hours=hours, max_bytes=size, reason=why, now=now))
    except OSError as error:
        msg = f"the export cannot be written to {wanted.output}: {error.strerror or error}; nothing is left of it"
        raise UsageError(msg) from error


async def _export(
    settings: Settings, wanted: Export, how: str, *, hours: int, max_bytes: int | None, reason: str, now: float
) -> None:
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        destinations = (wanted.destination,) if wanted.destination else ()
        named = Resend(wanted.since, wanted.until, wanted.zones, wanted.datasets, destinations, wanted.metrics)
        await require_names(ledger, settings, named)
        _hint_at_labels(settings, wanted)
        exporter = Exporter(
            ledger,
            wanted,
            FORMATS[how],
            metadata=metadata_of(catalogue_of(settings.cloudflare)),
            destination=next((each for each in settings.destinations if each.name == wanted.destination), None),
            stretch_seconds=None if wanted.output == "-" else hours * 3600,
            max_bytes=max_bytes,
        )
        if wanted.output == "-":
            exported = await _write(exporter, Stream(sys.stdout.buffer))
            if not exported.files:
                sys.stdout.buffer.write(FORMATS[how].end)
        else:
            with Folder(Path(wanted.output)) as folder:
                exported = await _write(exporter, folder)
                if exported.files:
                    receipt = _receipt(wanted, how, exported, reason, now)
                    folder.write(RECEIPT, msgspec.json.format(msgspec.json.encode(receipt), indent=2))
                    folder.complete()
    finally:
        await ledger.close()
    if exported.files:
        await _record(settings, wanted, exported, reason, now)
    _tell(wanted, how, exported, now)
    if exported.damaged or exported.left_out:
        sys.exit(EXIT_INCOMPLETE)


async def _write(exporter: Exporter, place: Folder | Stream) -> Exported:
    parts = 1000
    with click.progressbar(length=parts, label="export", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        return await exporter.write(place, lambda done: bar.update(int(done * parts) - bar.pos))


async def _record(settings: Settings, wanted: Export, exported: Exported, reason: str, now: float) -> None:
    result = ExportResult(
        files=0 if wanted.output == "-" else len(exported.files),
        samples=exported.samples,
        size_bytes=sum(file.size_bytes for file in exported.files),
        damaged=len(exported.damaged),
        left_out=exported.left_out,
    )
    journal = Ledger.open_to_ask(settings.ledger.path)
    try:
        await journal.write(record, wanted, result, reason=reason, asked_by=asked_by(), now=now)
    finally:
        await journal.close()


def _hint_at_labels(settings: Settings, wanted: Export) -> None:
    """Say where a destination knows the series by other labels than the file has."""
    renamed = [each.name for each in settings.destinations if each.external_labels or each.write_relabel_configs]
    if renamed and not wanted.destination:
        click.echo(
            f"The labels are those of the ledger. Others, by external_labels or write_relabel_configs, are sent to"
            f" {', '.join(renamed)}: --destination gives the export those of one.",
            err=True,
        )


def _receipt(wanted: Export, how: str, exported: Exported, reason: str, now: float) -> Receipt:
    return Receipt(
        exported_at=instant(now),
        exported_by=asked_by(),
        reason=reason,
        windows_from=instant(wanted.since),
        windows_to=instant(wanted.until),
        format=how,
        zones=wanted.zones,
        datasets=wanted.datasets,
        metrics=wanted.metrics,
        labels_of_destination=wanted.destination,
        only_undelivered=wanted.undelivered,
        widths_seconds=exported.widths,
        samples=exported.samples,
        damaged_buckets=len(exported.damaged),
        left_out=exported.left_out,
        files=exported.files,
        steps=_steps(Path(wanted.output), exported, now) if how == "openmetrics" else (),
    )


def _steps(folder: Path, exported: Exported, now: float) -> Sequence[str]:
    quoted = shlex.quote(str(folder))
    steps = [
        "Into Prometheus, as its own user: make blocks, look at them, move them into its data directory.",
        f'for file in {quoted}/*.om; do promtool tsdb create-blocks-from openmetrics "$file" {quoted}/blocks; done',
        f"promtool tsdb list --human-readable {quoted}/blocks",
        f"mv {quoted}/blocks/* /path/of/prometheus/data/",
        "It reads them within two minutes, or at its start.",
        "Back into a ledger: cfrw import, with all files at once.",
        f"When it is done: rm -r {quoted}",
    ]
    return steps if _is_settled(exported, now) else [_TOO_NEW, *steps]


def _is_settled(exported: Exported, now: float) -> bool:
    return exported.newest_ms < (now - _HEAD_SECONDS) * 1000


def _tell(wanted: Export, how: str, exported: Exported, now: float) -> None:
    """What was written; on standard error, as the text itself may be on standard output."""
    if not exported.files:
        what = f"undelivered to {wanted.destination}" if wanted.undelivered else "captured"
        click.echo(f"nothing of what is asked for is {what}; no file was written", err=True)
    elif wanted.output == "-":
        click.echo(f"{count_of('sample', exported.samples)} written", err=True)
    else:
        files = count_of("file", len(exported.files))
        click.echo(f"{count_of('sample', exported.samples)} in {files}: {wanted.output}", err=True)
        click.echo(f"{Path(wanted.output) / RECEIPT} says what is in them, and how they are loaded", err=True)
    if exported.files and how == "openmetrics" and not _is_settled(exported, now):
        click.echo(_TOO_NEW, err=True)
    for dataset, scope, start in exported.damaged[:_MOST_DAMAGED]:
        click.echo(f"damaged, and left out: {dataset} of {scope}, window of {instant(start)}", err=True)
    if len(exported.damaged) > _MOST_DAMAGED:
        click.echo(f"{len(exported.damaged):,} buckets are damaged in all", err=True)
    for each in exported.left_out:
        click.echo(f"left out: {count_of('sample', each.samples)}: {each.reason}", err=True)


def print_left_out(damaged: int, left_out: Sequence[LeftOut]) -> None:
    """What an export on record lacks."""
    if damaged:
        click.echo(f"left out: {count_of('damaged bucket', damaged)}")
    for each in left_out:
        print_line(terminal(), f"left out: {count_of('sample', each.samples)}: {each.reason}")


def _size(text: str | None) -> int | None:
    try:
        return None if text is None else size_bytes(text, minimum=_LEAST_FILE_BYTES)
    except InvalidValueError as error:
        msg = f"--max-bytes {error.given}: {error.problem}"
        raise UsageError(msg) from None
