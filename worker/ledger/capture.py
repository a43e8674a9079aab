"""Verbs of collection: a bucket is written once, and a window that has none says why.

The first capture wins. Writing a window again changes nothing; where the values differ, that is kept as drift.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from worker.buckets import Bucket, Window
from worker.ledger.packing import checksum, is_intact, values_by_series
from worker.ledger.scopes import dataset_number, scope_number
from worker.ledger.session import Session

# Enough for a sentence of the API; the rest of an HTML page helps nobody.
_MAX_DETAIL_CHARACTERS = 500

# What became of a bucket is told by the name of its count; this one is of those that are newly written.
_NEW = "buckets"

# As schema.sql has it, and the reason.
_WINDOWS_OF_A_CHAPTER = 64


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


class _Row(NamedTuple):
    """A bucket as its row in the file, in the order of the statement `add_bucket`."""

    dataset_id: int
    scope_id: int
    width_seconds: int
    start: int
    timestamp_ms: int
    captured_at: int
    series_ids: bytes
    values: bytes
    checksum: int


def capture(session: Session, buckets: Sequence[Bucket], now: float, *, job_id: int | None = None) -> Captured:
    """Write buckets, queue them for every destination, and close the holes they fill; all of it or nothing.

    job_id: the repair that asked for them.
    """
    names = [bucket.dataset for bucket in buckets]
    dataset_ids = {name: dataset_number(session, name) for name in dict.fromkeys(names)}
    rows = [_row(session, dataset_ids[bucket.dataset], bucket, int(now)) for bucket in buckets]
    newest_before = session.number("newest_bucket")
    written = session.many("add_bucket", rows)
    chapters = {
        (row.dataset_id, row.width_seconds, row.start // (_WINDOWS_OF_A_CHAPTER * row.width_seconds)) for row in rows
    }
    if written == len(rows):
        outcomes = [_NEW] * written
        chapters -= session.chapters
    else:
        # Those of buckets that were captured before, too: where a damaged file has lost a chapter, they are in none.
        new = deque(session.rows("keys_after", id=newest_before))
        outcomes = [_NEW if _is_next(row, new) else _compare(session, row) for row in rows]
    if chapters:
        session.many("begin_chapter", chapters)
        session.chapters |= chapters
    if written:
        # Numbers are given in ascending order and never twice: from this one on, all are of this call.
        starts = [row.start for row in rows]
        # Windows that were never tried in vain have none, which one look at their time tells of most.
        if session.number("has_holes", first_start=min(starts), last_start=max(starts)):
            session.change("close_holes", first_id=newest_before + 1)
        session.change("enqueue", first_id=newest_before + 1, job_id=job_id)
    counts = Counter(zip(names, outcomes, strict=True))
    samples = dict.fromkeys(names, 0)
    for bucket, outcome in zip(buckets, outcomes, strict=True):
        if outcome is _NEW:
            samples[bucket.dataset] += len(bucket.values)
    by_dataset = {
        name: CapturedCount(counts[name, _NEW], samples[name], counts[name, "unchanged"], counts[name, "drifted"])
        for name in samples
    }
    return Captured(
        buckets=written,
        samples=sum(samples.values()),
        unchanged=outcomes.count("unchanged"),
        drifted=outcomes.count("drifted"),
        by_dataset=by_dataset,
    )


def _row(session: Session, dataset_id: int, bucket: Bucket, now: int) -> _Row:
    scope_id = scope_number(session, bucket.scope)
    start, width_seconds = bucket.window.start, bucket.window.width_seconds
    series_ids = session.series.packed_ids(bucket.series)
    values = bucket.values.tobytes()
    seal = checksum(
        dataset_id=dataset_id,
        scope_id=scope_id,
        width_seconds=width_seconds,
        start=start,
        timestamp_ms=bucket.timestamp_ms,
        series_ids=series_ids,
        values=values,
    )
    return _Row(dataset_id, scope_id, width_seconds, start, bucket.timestamp_ms, now, series_ids, values, seal)


def record_holes(session: Session, holes: Sequence[Hole], now: float) -> None:
    """Keep why these windows have no bucket. The newest attempt replaces the one before; a captured window has none."""
    if not holes:
        return
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


def _is_next(row: _Row, new: deque[tuple[int, ...]]) -> bool:
    """Whether a bucket is the first of `new`, which it then leaves: keys of those of a call that were newly written.

    They were written in the order of the call. Not looked up by their keys: in a damaged file that finds others.
    """
    is_next = bool(new) and new[0] == row[:4]
    if is_next:
        new.popleft()
    return is_next


def _compare(session: Session, row: _Row) -> str:
    """What became of a bucket whose window was captured before, if only by the same call."""
    key = {
        "dataset_id": row.dataset_id,
        "scope_id": row.scope_id,
        "width_seconds": row.width_seconds,
        "start": row.start,
    }
    bucket_id, timestamp_ms, series_ids, values, seal = session.row("captured_content", **key)
    if (series_ids, values) == (row.series_ids, row.values):
        return "unchanged"
    intact = is_intact(seal, **key, timestamp_ms=timestamp_ms, series_ids=series_ids, values=values)
    before = values_by_series(series_ids, values) if intact else {}
    after = values_by_series(row.series_ids, row.values)
    differing = sum(before.get(series) != after.get(series) for series in before.keys() | after.keys())
    if not differing:
        return "unchanged"
    session.change("record_drift", bucket_id=bucket_id, now=row.captured_at, samples_differing=differing)
    return "drifted"
