"""Verbs of collection: a bucket is written once, and a window that has none says why.

The first capture wins. Writing a window again changes nothing; where the values differ, that is kept as drift.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from worker.buckets import Bucket, Window
from worker.ledger.packing import checksum, is_intact, values_by_series
from worker.ledger.scopes import dataset_number, scope_number
from worker.ledger.session import Session

# Enough for a sentence of the API; the rest of an HTML page helps nobody.
_MAX_DETAIL_CHARACTERS = 500


class HoleReason(StrEnum):
    """Why a window that was asked for has no bucket."""

    FAILED = "failed"
    """The last attempt failed; it will be tried again."""

    DENIED = "denied"
    """The plan or the token does not give access; asked again now and then."""

    EXPIRED = "expired"
    """Cloudflare has no data for it any more: it will never have a bucket."""


@dataclass(frozen=True, slots=True)
class Hole:
    """One attempt at a window that brought no bucket."""

    dataset: str
    scope: str
    window: Window
    reason: HoleReason
    detail: str


@dataclass(frozen=True, slots=True)
class CapturedCount:
    """What became of buckets that were handed to `capture`.

    buckets:   newly written.
    samples:   in them.
    unchanged: windows that were captured before with the same content.
    drifted:   windows that were captured before with another content; what was captured stays.
    """

    buckets: int
    samples: int
    unchanged: int
    drifted: int


@dataclass(frozen=True, slots=True)
class Captured(CapturedCount):
    """The same of all of them, and of those of each dataset."""

    by_dataset: Mapping[str, CapturedCount] = field(compare=False, default_factory=dict)


def capture(session: Session, buckets: Sequence[Bucket], now: float, *, job_id: int | None = None) -> Captured:
    """Write buckets, queue them for every destination, and close the holes they fill; all of it or nothing.

    job_id: the repair that asked for them.
    """
    outcomes = {bucket.dataset: Counter[str]() for bucket in buckets}
    dataset_ids = {name: dataset_number(session, name) for name in {bucket.dataset for bucket in buckets}}
    scope_ids = {tag: scope_number(session, tag) for tag in {bucket.scope for bucket in buckets}}
    first_id = 0
    for bucket in buckets:
        window = bucket.window
        outcome = outcomes[bucket.dataset]
        key = {
            "dataset_id": dataset_ids[bucket.dataset],
            "scope_id": scope_ids[bucket.scope],
            "width_seconds": window.width_seconds,
            "start": window.start,
        }
        series_ids = session.series.packed_ids(bucket.series)
        values = bucket.values.tobytes()
        seal = checksum(**key, timestamp_ms=bucket.timestamp_ms, series_ids=series_ids, values=values)
        bucket_id = session.add(
            "add_bucket",
            **key,
            timestamp_ms=bucket.timestamp_ms,
            captured_at=int(now),
            series_ids=series_ids,
            sample_values=values,
            checksum=seal,
        )
        if not bucket_id:
            outcome[_compare(session, key, series_ids, values, now)] += 1
            continue
        first_id = first_id or bucket_id
        outcome["buckets"] += 1
        outcome["samples"] += len(bucket.values)
    if first_id:
        # Numbers are given in ascending order and never twice: from this one on, all are of this call.
        session.change("close_holes", first_id=first_id)
        session.change("enqueue", first_id=first_id, job_id=job_id)
    by_dataset = {name: _counted(outcome) for name, outcome in outcomes.items()}
    total = _counted(sum(outcomes.values(), Counter[str]()))
    return Captured(total.buckets, total.samples, total.unchanged, total.drifted, by_dataset)


def _counted(outcome: Counter[str]) -> CapturedCount:
    return CapturedCount(outcome["buckets"], outcome["samples"], outcome["unchanged"], outcome["drifted"])


def record_holes(session: Session, holes: Sequence[Hole], now: float) -> None:
    """Keep why these windows have no bucket. The newest attempt replaces the one before; a captured window has none."""
    session.many(
        "record_hole",
        [
            {
                "dataset_id": dataset_number(session, hole.dataset),
                "scope_id": scope_number(session, hole.scope),
                "width_seconds": hole.window.width_seconds,
                "start": hole.window.start,
                "reason": hole.reason,
                "detail": hole.detail[:_MAX_DETAIL_CHARACTERS],
                "now": int(now),
            }
            for hole in holes
        ],
    )


def _compare(session: Session, key: dict[str, int], series_ids: bytes, values: bytes, now: float) -> str:
    bucket_id, timestamp_ms, captured_ids, captured_values, seal = next(session.rows("captured_content", **key))
    if (captured_ids, captured_values) == (series_ids, values):
        return "unchanged"
    intact = is_intact(seal, **key, timestamp_ms=timestamp_ms, series_ids=captured_ids, values=captured_values)
    before = values_by_series(captured_ids, captured_values) if intact else {}
    after = values_by_series(series_ids, values)
    differing = sum(before.get(series) != after.get(series) for series in before.keys() | after.keys())
    if not differing:
        return "unchanged"
    session.change("record_drift", bucket_id=bucket_id, now=int(now), samples_differing=differing)
    return "drifted"
