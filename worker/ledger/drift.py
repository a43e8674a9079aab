"""Verbs about drift: a sample of the captured windows, and what Cloudflare answered for them when they were read again.

A reading is kept beside its bucket and never changes it; it goes when the bucket goes.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.buckets import Window
from worker.ledger.packing import SERIES_ID_TYPE, is_intact
from worker.ledger.session import Session

_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class CapturedWindow:
    """A captured bucket without its samples.

    bucket_id:   its number in the ledger.
    captured_at: unix seconds.
    read_after:  after how many seconds it was read again already.
    """

    bucket_id: int
    dataset: str
    scope: str
    window: Window
    captured_at: int
    read_after: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a window was when it was read again, against its bucket.

    age_seconds:         how long after the window's end its bucket was captured.
    after_seconds:       how long after that it was read again.
    samples_differing:   samples whose value was another one, with those that only one of the two had.
    relative_difference: (later - captured) / captured of the total of the first metric; None where none can be summed.
    """

    bucket_id: int
    age_seconds: int
    after_seconds: int
    samples_differing: int
    relative_difference: float | None


def is_chosen(dataset: str, scope: str, start: int, percent: float) -> bool:
    """Whether a window is one of the `percent` of all that are read again: always the same ones."""
    digest = hashlib.blake2b(f"{dataset}/{scope}/{start}".encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big") * 100 < percent * (1 << 8 * _HASH_BYTES)


def last_captured_before(session: Session, moment: float) -> int:
    """The number behind which all buckets were captured at `moment` or later; their numbers ascend as time does."""
    numbers = range(1, session.number("newest_bucket") + 1)
    return bisect_left(numbers, moment, key=lambda number: session.number("captured_at_from", id=number))


def chosen_after(
    session: Session, after_id: int, *, percent: float, most: int
) -> tuple[int | None, tuple[CapturedWindow, ...]]:
    """Of the next `most` buckets behind a number those that are read again, and the last of all their numbers.

    None instead of a number where there is no bucket behind it.
    """
    last = None
    chosen = []
    for last, dataset, scope, width_seconds, start, captured_at in session.rows(
        "captured_after", after_id=after_id, most=most
    ):
        if is_chosen(dataset, scope, start, percent):
            window = Window(start, width_seconds)
            read_after = frozenset(after for (after,) in session.rows("readings_of", bucket_id=last))
            chosen.append(CapturedWindow(last, dataset, scope, window, captured_at, read_after))
    return last, tuple(chosen)


def captured_samples(session: Session, bucket_id: int) -> Mapping[bytes, float] | None:
    """The values of a bucket by label block; None where it is damaged or not there any more."""
    for dataset_id, scope_id, width_seconds, start, timestamp_ms, series_ids, values, seal in session.rows(
        "whole_bucket", id=bucket_id
    ):
        if is_intact(
            seal,
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        ):
            blocks = session.series.blocks(array(SERIES_ID_TYPE, series_ids))
            return None if blocks is None else dict(zip(blocks.values(), array("d", values), strict=True))
    return None


def record_readings(session: Session, readings: Sequence[Reading], now: float) -> None:
    """Keep readings; one that is there stays as it is, and so does every bucket."""
    session.many(
        "record_reading",
        [
            {
                "bucket_id": reading.bucket_id,
                "after_seconds": reading.after_seconds,
                "now": int(now),
                "samples_differing": reading.samples_differing,
                "relative_difference": reading.relative_difference,
            }
            for reading in readings
        ],
    )


def newest_readings(session: Session, dataset: str, *, most: int) -> tuple[Reading, ...]:
    """Readings of the most recently captured windows of a dataset that were read again, newest window first."""
    return tuple(Reading(*row) for row in session.rows("newest_readings", dataset=dataset, most=most))
