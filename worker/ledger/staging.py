"""Verbs of importing: buckets that a command has read from files wait here, whole, until the holder captures them.

A command writes them beside a running worker, in many transactions; only the one that makes the import `asked` lets
anybody capture them. An import that never gets there is given up after STAGING_SECONDS, and what it staged is deleted.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from worker.buckets import Bucket, Window
from worker.errors import UsageError
from worker.ledger.capture import capture
from worker.ledger.jobs import Import, ImportResult, Job, JobState, Progress, ask, keep_progress
from worker.ledger.packing import SERIES_ID_TYPE, checksum, is_intact
from worker.ledger.scopes import Scope, dataset_number, scope_number
from worker.ledger.session import Session

STAGING_SECONDS = 3600
"""What is staged was read and checked before: a million samples take seconds, so whoever needs an hour was killed."""

_GIVEN_UP = "import {} was given up, as it was not complete after an hour; nothing was imported, run it once more"

# Rows deleted in one transaction, as many as retention deletes.
_DELETED_AT_ONCE = 2_000


class Comparison(Enum):
    """A bucket beside what the ledger has of its window."""

    NEW = auto()
    """Nothing."""

    SAME = auto()
    """The same values of the same series, at the same time."""

    DIFFERENT = auto()
    """Anything else."""

    OVERLAPS = auto()
    """Nothing, but a window of another width that shares some of its time."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing; `series`: the first label block with another value; None where it is something else."""

    comparison: Comparison
    series: bytes | None = None


def all_scopes(session: Session) -> tuple[Scope, ...]:
    """Every zone and account that was ever listed."""
    return tuple(Scope(*row) for row in session.rows("all_scopes"))


def compared(session: Session, buckets: Sequence[Bucket], *, widths_seconds: Sequence[int]) -> tuple[Compared, ...]:
    """Of each bucket what the ledger has of it; `widths_seconds`: of the windows that there may be."""
    widths = json.dumps(list(widths_seconds))
    return tuple(_compared(session, bucket, widths) for bucket in buckets)


def _compared(session: Session, bucket: Bucket, widths: str) -> Compared:
    key = {
        "dataset_id": session.number_of("dataset_id", bucket.dataset),
        "scope_id": scope_number(session, bucket.scope),
        "width_seconds": bucket.window.width_seconds,
        "start": bucket.window.start,
    }
    for _, timestamp_ms, series_ids, values, seal in session.rows("captured_content", **key):
        intact = is_intact(seal, **key, timestamp_ms=timestamp_ms, series_ids=series_ids, values=values)
        blocks = session.series.blocks(array(SERIES_ID_TYPE, series_ids)) if intact else None
        if blocks is None or timestamp_ms != bucket.timestamp_ms or set(blocks.values()) != set(bucket.series):
            return Compared(Comparison.DIFFERENT)
        before = dict(zip(blocks.values(), array("d", values), strict=True))
        for series, value in zip(bucket.series, bucket.values, strict=True):
            if _bits(before[series]) != _bits(value):
                return Compared(Comparison.DIFFERENT, series)
        return Compared(Comparison.SAME)
    if session.number("overlapping_widths", **key, widths=widths):
        return Compared(Comparison.OVERLAPS)
    return Compared(Comparison.NEW)


def _bits(value: float) -> bytes:
    """What makes two values the same; a text has one word for all that is not a number."""
    return array("d", [value]).tobytes() if value == value else b""  # noqa: PLR0124 - only NaN differs from itself


def begin_import(
    session: Session,
    arguments: Import,
    buckets: Sequence[Bucket],
    *,
    reason: str,
    asked_by: str,
    now: float,
    total: int,
) -> int:
    """Put an import on record as one that is still being staged, with the first of its `total` buckets; its number."""
    number = ask(session, arguments, reason=reason, asked_by=asked_by, now=now, total=total)
    session.change("begin_staging", id=number)
    stage(session, number, buckets)
    return number


def stage(session: Session, job_id: int, buckets: Iterable[Bucket]) -> None:
    """Add buckets to an import; UsageError where it was given up meanwhile."""
    if not session.number("is_staging", id=job_id):
        raise UsageError(_GIVEN_UP.format(job_id))
    for bucket in buckets:
        key = {
            "dataset_id": dataset_number(session, bucket.dataset),
            "scope_id": scope_number(session, bucket.scope),
            "width_seconds": bucket.window.width_seconds,
            "start": bucket.window.start,
            "timestamp_ms": bucket.timestamp_ms,
        }
        series_ids = session.series.packed_ids(bucket.series)
        values = bucket.values.tobytes()
        seal = checksum(**key, series_ids=series_ids, values=values)
        session.change("stage", job_id=job_id, **key, series_ids=series_ids, sample_values=values, checksum=seal)


def release(session: Session, job_id: int, now: float) -> int:
    """All of an import is staged: from now on it is asked for. Its number; UsageError where it was given up."""
    if not session.change("release", id=job_id, now=int(now)):
        raise UsageError(_GIVEN_UP.format(job_id))
    return job_id


def capture_staged(session: Session, job: Job, now: float, *, most: int) -> bool:
    """Capture the next buckets of an import and queue them as its own; whether those were the last ones.

    A window that was captured meanwhile stays as it is.
    """
    rows = list(_staged(session, job.job_id, most))
    captured = capture(session, [bucket for _, bucket in rows if bucket is not None], now, job_id=job.job_id)
    session.many("unstage", ({"id": number} for number, _ in rows))
    before = job.result if isinstance(job.result, ImportResult) else ImportResult()
    done = job.progress.done + len(rows)
    # Behind the last row nothing follows, whatever a damaged file has lost of them.
    lost = max(0, job.progress.total - done) if len(rows) < most else 0
    result = replace(
        before,
        buckets=before.buckets + captured.buckets,
        samples=before.samples + captured.samples,
        unchanged=before.unchanged + captured.unchanged,
        differing=before.differing + captured.drifted,
        damaged=before.damaged + sum(bucket is None for _, bucket in rows) + lost,
    )
    progress = Progress(done + lost, job.progress.total)
    keep_progress(session, job.job_id, progress, result)
    return len(rows) < most


def _staged(session: Session, job_id: int, most: int) -> Iterator[tuple[int, Bucket | None]]:
    """The next rows of an import, with None instead of a bucket that is not what was staged."""
    for (
        number,
        dataset,
        tag,
        dataset_id,
        scope_id,
        width_seconds,
        start,
        timestamp_ms,
        series_ids,
        values,
        seal,
    ) in session.rows("staged", job_id=job_id, most=most):
        intact = is_intact(
            seal,
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        )
        blocks = session.series.blocks(array(SERIES_ID_TYPE, series_ids)) if intact else None
        if blocks is None:
            yield number, None
        else:
            window = Window(start, width_seconds)
            yield number, Bucket(dataset, tag, window, timestamp_ms, tuple(blocks.values()), array("d", values))


def give_up_staging(session: Session, *, begun_before: float, now: float) -> int:
    """End the imports that began to be staged before this time and never were asked for; return how many."""
    return session.change(
        "give_up_staging",
        begun_before=int(begun_before),
        now=int(now),
        state=JobState.FAILED,
        note="the command ended before all of it was staged; nothing was imported",
    )


def delete_unstaged(session: Session) -> int:
    """Delete some of what was staged for imports that have ended; return how many rows."""
    return session.change("delete_unstaged", most=_DELETED_AT_ONCE)
