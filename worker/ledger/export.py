"""Verbs that read captured buckets as they are, for files: by dataset and scope, a stretch of time at once."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from worker.buckets import Batch, StoredBucket
from worker.ledger.packing import SERIES_ID_TYPE, is_intact, samples_of
from worker.ledger.session import Session
from worker.series import metric_name


@dataclass(frozen=True, slots=True)
class CapturedScope:
    """A dataset of one zone or account of which buckets are captured.

    name:           of the zone or account.
    widths_seconds: of the windows.
    """

    dataset: str
    tag: str
    name: str
    widths_seconds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CapturedBuckets:
    """Buckets of one dataset and scope, by their timestamps.

    batch:   those that hold what was captured.
    damaged: the starts of the windows of those that do not, unix seconds.
    """

    batch: Batch
    damaged: tuple[int, ...]


def captured_scopes(
    session: Session,
    *,
    since: int,
    until: int,
    widths_seconds: Sequence[int],
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> tuple[CapturedScope, ...]:
    """What windows that start in [since, until) were captured of, by dataset and in the order of the scopes' numbers.

    widths_seconds:  of the windows that are looked for.
    zones, datasets: names, or tags; empty means all.
    """
    return tuple(
        CapturedScope(dataset, tag, name, msgspec.json.decode(widths, type=tuple[int, ...]))
        for dataset, tag, name, widths in session.rows(
            "captured_scopes",
            since=since,
            until=until,
            widths=_json(widths_seconds),
            zones=_json(zones),
            datasets=_json(datasets),
        )
    )


def captured_buckets(
    session: Session,
    scope: CapturedScope,
    *,
    since: int,
    until: int,
    stamped: range,
    metrics: Sequence[str] = (),
    undelivered_to: str | None = None,
) -> CapturedBuckets:
    """The buckets of windows that start in [since, until) and carry a timestamp in `stamped`, unix milliseconds.

    metrics:        names; empty means all. A bucket without any of them is left out.
    undelivered_to: a destination: only what it has refused, what expired before it, and what it was never to get.
    """
    buckets: list[StoredBucket] = []
    damaged: list[int] = []
    series: dict[int, bytes] = {}
    layouts: dict[bytes, set[int] | None] = {}
    for bucket_id, *identity, timestamp_ms, series_ids, values, seal, refused in session.rows(
        "captured_buckets",
        dataset=scope.dataset,
        tag=scope.tag,
        widths=_json(scope.widths_seconds),
        since=since,
        until=until,
        from_ms=stamped.start,
        before_ms=stamped.stop,
        destination=undelivered_to,
    ):
        key = dict(zip(("dataset_id", "scope_id", "width_seconds", "start"), identity, strict=True))
        intact = is_intact(seal, **key, timestamp_ms=timestamp_ms, series_ids=series_ids, values=values)
        if intact and series_ids not in layouts:
            blocks = session.series.blocks(array(SERIES_ID_TYPE, series_ids))
            series |= blocks or {}
            layouts[series_ids] = (
                None
                if blocks is None
                else {number for number, block in blocks.items() if not metrics or metric_name(block) in metrics}
            )
        wanted = layouts.get(series_ids) if intact else None
        if wanted is None:
            damaged.append(key["start"])
            continue
        if refused is not None:
            wanted = wanted & {number for each in msgspec.json.decode(refused) for number in _numbers(each)}
        part = samples_of(series_ids, values, wanted)
        if part[0]:
            buckets.append(StoredBucket(bucket_id, timestamp_ms, *part))
    return CapturedBuckets(Batch(tuple(buckets), series), tuple(damaged))


def _numbers(packed_in_hex: str) -> "array[int]":
    packed = bytes.fromhex(packed_in_hex)
    return array(SERIES_ID_TYPE, packed[: len(packed) // 4 * 4])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
