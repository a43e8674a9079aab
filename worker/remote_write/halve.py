"""How a batch that a receiver does not take is cut to find out what in it is to blame.

A receiver refuses samples for their age, which all samples of a timestamp share, or for something about their series.
So a batch is cut by timestamp first, then by bucket, then by series. Pure; knows nothing of HTTP or of the ledger.
"""

from array import array
from collections.abc import Iterator
from random import Random

from worker.buckets import Batch, StoredBucket

_ID_BYTES, _VALUE_BYTES = 4, 8


def halves(batch: Batch) -> tuple[Batch, Batch] | None:
    """The older and the newer half of a batch, about equal in samples; None for a single sample.

    Each sample is in exactly one of them, each of them has at least one, and what is cut apart inside a bucket keeps
    its `bucket_id`.
    """
    buckets = sorted((bucket for bucket in batch.buckets if bucket.sample_count), key=lambda b: b.timestamp_ms)
    if len(buckets) > 1:
        cut = _cut(buckets)
        return Batch(tuple(buckets[:cut]), batch.series), Batch(tuple(buckets[cut:]), batch.series)
    if not buckets or buckets[0].sample_count == 1:
        return None
    middle = buckets[0].sample_count // 2
    older, newer = piece(buckets[0], 0, middle), piece(buckets[0], middle, buckets[0].sample_count)
    return Batch((older,), batch.series), Batch((newer,), batch.series)


def piece(bucket: StoredBucket, start: int, end: int) -> StoredBucket:
    """The samples [start, end) of a bucket."""
    return StoredBucket(
        bucket.bucket_id,
        bucket.timestamp_ms,
        series_ids=bucket.series_ids[_ID_BYTES * start : _ID_BYTES * end],
        values=bucket.values[_VALUE_BYTES * start : _VALUE_BYTES * end],
    )


def newest(batch: Batch) -> Batch:
    """The newest sample of a batch, alone."""
    bucket = max(batch.buckets, key=lambda each: each.timestamp_ms)
    return alone(Batch((piece(bucket, bucket.sample_count - 1, bucket.sample_count),), batch.series))


def alone(single: Batch) -> Batch:
    """The same batch of a few samples without the labels of others, to be kept for long."""
    wanted = {number for bucket in single.buckets for number in array("I", bucket.series_ids)}
    return Batch(single.buckets, {number: single.series[number] for number in wanted})


def spread(batch: Batch, count: int, turn: int = 0) -> tuple[list[Batch], Batch]:
    """`count` single samples of the batch, chosen by chance, and what is left between them.

    `count` is less than the number of samples. The same batch always gives the same ones, in another `turn` others.
    """
    chance = Random(f"{turn} {[bucket.bucket_id for bucket in batch.buckets]}")  # noqa: S311 - guards nothing
    chosen = set(chance.sample(range(batch.sample_count), count))
    singles: list[Batch] = []
    rest: list[StoredBucket] = []
    at = 0
    for bucket in batch.buckets:
        start = 0
        for index in sorted(number - at for number in chosen if at <= number < at + bucket.sample_count):
            singles.append(Batch((piece(bucket, index, index + 1),), batch.series))
            rest.append(piece(bucket, start, index))
            start = index + 1
        rest.append(piece(bucket, start, bucket.sample_count))
        at += bucket.sample_count
    return singles, Batch(tuple(part for part in rest if part.sample_count), batch.series)


def _cut(buckets: list[StoredBucket]) -> int:
    """Where the list is cut: between two timestamps if it has several, as near to the middle as can be."""
    half = sum(bucket.sample_count for bucket in buckets) / 2
    places = list(_changes_of_timestamp(buckets)) or list(range(1, len(buckets)))
    before = {0: 0}
    for index, bucket in enumerate(buckets):
        before[index + 1] = before[index] + bucket.sample_count
    return min(places, key=lambda place: abs(before[place] - half))


def _changes_of_timestamp(buckets: list[StoredBucket]) -> Iterator[int]:
    for index in range(1, len(buckets)):
        if buckets[index].timestamp_ms != buckets[index - 1].timestamp_ms:
            yield index
