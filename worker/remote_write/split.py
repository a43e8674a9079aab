"""Where a batch is cut, so that each part makes one request of a size that its receiver takes.

Decides before anything is encoded, by the sizes of what will be. Knows nothing of HTTP, of destinations or of the
ledger.
"""

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from worker.buckets import Batch, StoredBucket
from worker.remote_write.encode import SAMPLE_BYTES, SERIES_ID_TYPE, repeated_timestamp_ms
from worker.series import varint


def split_batch(batch: Batch, max_samples: int, max_bytes: int) -> list[Batch]:
    """The batch in parts that make one request each, in the order in which they have to be sent.

    No part holds more than `max_samples`, or makes a `write_request` of more than `max_bytes`: except for a single
    sample that is larger by itself, which is a part of its own. No part holds two samples of one series and timestamp.

    A part holds whole buckets, in their order. Only a bucket that is too large alone is cut, by series: its pieces
    carry its `bucket_id`, follow one another, and share a part with no other bucket. It is delivered when all of them
    are.
    """
    if batch.buckets and _fits(batch, max_samples, max_bytes):
        return [batch]
    parts: list[Batch] = []
    part = _Part(batch.series, max_samples, max_bytes)
    for bucket in batch.buckets:
        if part.take(bucket):
            continue
        if part.buckets:
            parts.append(part.batch())
            part = _Part(batch.series, max_samples, max_bytes)
        if not part.take(bucket):
            parts += [Batch((piece,), batch.series) for piece in _pieces(bucket, batch.series, max_samples, max_bytes)]
    if part.buckets:
        parts.append(part.batch())
    return parts


def _fits(batch: Batch, max_samples: int, max_bytes: int) -> bool:
    """Whether the whole batch is one part, as it nearly always is: found at a fraction of the price of cutting it."""
    samples = batch.sample_count
    if samples > max_samples or SAMPLE_BYTES * samples + _series_bytes(batch.series.values(), max_bytes) > max_bytes:
        return False
    timestamps = {bucket.timestamp_ms for bucket in batch.buckets}
    return len(timestamps) == len(batch.buckets) or repeated_timestamp_ms(batch.buckets) is None


class _Part:
    """A part while it grows."""

    def __init__(self, series: Mapping[int, bytes], max_samples: int, max_bytes: int) -> None:
        self.buckets: list[StoredBucket] = []
        self._series = series
        self._samples_left = max_samples
        self._bytes_left = max_bytes
        self._max_bytes = max_bytes
        self._series_ids: set[int] = set()
        self._series_ids_at: defaultdict[int, set[int]] = defaultdict(set)

    def take(self, bucket: StoredBucket) -> bool:
        """Add the bucket if the part keeps its limits with it; tell whether it did."""
        series_ids = set(array(SERIES_ID_TYPE, bucket.series_ids))
        added = series_ids - self._series_ids
        labels = [self._series[series_id] for series_id in added]
        size = SAMPLE_BYTES * bucket.sample_count + _series_bytes(labels, self._max_bytes)
        if bucket.sample_count > self._samples_left or size > self._bytes_left:
            return False
        if not self._series_ids_at[bucket.timestamp_ms].isdisjoint(series_ids):
            return False
        self.buckets.append(bucket)
        self._samples_left -= bucket.sample_count
        self._bytes_left -= size
        self._series_ids |= added
        self._series_ids_at[bucket.timestamp_ms] |= series_ids
        return True

    def batch(self) -> Batch:
        return Batch(tuple(self.buckets), self._series)


def _pieces(
    bucket: StoredBucket, series: Mapping[int, bytes], max_samples: int, max_bytes: int
) -> Iterator[StoredBucket]:
    """The bucket in pieces that keep the limits, or hold one sample."""
    series_ids = array(SERIES_ID_TYPE, bucket.series_ids)
    start = size = 0
    for index, series_id in enumerate(series_ids):
        sample_size = SAMPLE_BYTES + _series_bytes([series[series_id]], max_bytes)
        if index > start and (index - start == max_samples or size + sample_size > max_bytes):
            yield _piece(bucket, start, index)
            start, size = index, 0
        size += sample_size
    yield _piece(bucket, start, len(series_ids))


def _piece(bucket: StoredBucket, start: int, end: int) -> StoredBucket:
    return StoredBucket(
        bucket.bucket_id,
        bucket.timestamp_ms,
        series_ids=bucket.series_ids[4 * start : 4 * end],
        values=bucket.values[8 * start : 8 * end],
    )


def _series_bytes(labels: Collection[bytes], max_bytes: int) -> int:
    """Bytes of these series in a request without their samples.

    A TimeSeries is its tag, its length and its label block; the length is taken to be as long as the whole request's.
    """
    return len(labels) * (1 + len(varint(max_bytes))) + sum(map(len, labels))
