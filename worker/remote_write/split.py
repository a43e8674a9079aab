"""Where a batch is cut, so that each part makes one request of a size that its receiver takes.

Decides before anything is encoded, by the sizes of what will be. Knows nothing of HTTP, of destinations or of the
ledger.
"""

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from worker.buckets import Batch, StoredBucket
from worker.config import Message
from worker.remote_write.encode_v1 import metadata_v1
from worker.remote_write.halve import piece
from worker.remote_write.labels import LABELS_OF
from worker.remote_write.samples import SAMPLE_BYTES, SERIES_ID_TYPE, repeated_timestamp_ms
from worker.series import MetricMetadata, varint


def split_batch(
    batch: Batch,
    max_samples: int,
    max_bytes: int,
    message: Message = Message.V2,
    metadata: Mapping[str, MetricMetadata] = {},
) -> list[Batch]:
    """The batch in parts that make one request each, in the order in which they have to be sent.

    No part holds more than `max_samples`, or makes a `write_request` with that metadata of more than `max_bytes`:
    except for a single sample that is larger by itself, which is a part of its own. Cut for version 2.0, it keeps the
    limit in version 1.0 too, for a receiver that turns out not to know the newer one; cut for 1.0, for a destination
    that nothing else is sent to, more fits into a part. No part holds two samples of one series and timestamp.

    A part holds whole buckets, in their order. Only a bucket that is too large alone is cut, by series: its pieces
    carry its `bucket_id`, follow one another, and share a part with no other bucket. It is delivered when all of them
    are.
    """
    sizes = _Sizes(max_bytes, message, metadata)
    if batch.buckets and _fits(batch, max_samples, sizes):
        return [batch]
    parts: list[Batch] = []
    part = _Part(batch.series, max_samples, sizes)
    for bucket in batch.buckets:
        if part.take(bucket):
            continue
        if part.buckets:
            parts.append(part.batch())
            part = _Part(batch.series, max_samples, sizes)
        if not part.take(bucket):
            parts += [Batch((cut,), batch.series) for cut in _pieces(bucket, batch.series, max_samples, sizes)]
    if part.buckets:
        parts.append(part.batch())
    return parts


class _Sizes:
    """Upper bounds for the bytes of what a request is made of.

    A TimeSeries of version 1.0 is its tag, its length and its label block. In version 2.0 the same strings are symbols,
    which are counted as if no two series had one in common: then a label is longer by its two references, and shorter
    by the tag and the length, at least two bytes, around its name and its value.

    max_bytes: that the whole request may have; no length in it takes more bytes than this one as a varint.
    request:   what every request has.
    """

    def __init__(self, max_bytes: int, message: Message, metadata: Mapping[str, MetricMetadata]) -> None:
        self.max_bytes = max_bytes
        prefix_bytes = 1 + len(varint(max_bytes))
        self.request = 0
        self._of_series = prefix_bytes
        self._of_label = 0
        if message is Message.V2:
            # A symbol has a tag, a length and a character, so that there are at most a third as many as bytes.
            reference_bytes = len(varint(max_bytes // 3))
            # The first symbol: a tag and the length 0.
            self.request = 2
            # labels_refs; metadata: its own prefix, the type, help_ref and unit_ref with their tags.
            self._of_series += prefix_bytes + 2 + 2 + 2 * (1 + reference_bytes)
            self._of_label = 2 * reference_bytes - 2
        # What version 1.0 says of a metric is more than the two symbols that version 2.0 adds.
        self._of_metric = {metric: len(metadata_v1(metric, known)) for metric, known in metadata.items()}

    def series(self, blocks: Collection[bytes]) -> int:
        """Of these series, without their samples."""
        size = len(blocks) * self._of_series + sum(map(len, blocks))
        if self._of_label:
            # Every label has two of these bytes, as tags; whatever else is such a byte makes the bound no less true.
            size += self._of_label * (b"".join(blocks).count(b"\n") // 2)
        return size

    def metadata(self, metrics: Iterable[str]) -> int:
        """Of what is said about these metrics."""
        return sum(map(self._of_metric.__getitem__, metrics))

    def all_metadata(self) -> int:
        """Of what is said about all metrics."""
        return sum(self._of_metric.values())

    def described(self, blocks: Iterable[bytes]) -> set[str]:
        """The metrics of these series of which something is said."""
        return {LABELS_OF[block].metric for block in blocks} & self._of_metric.keys() if self._of_metric else set()


def _fits(batch: Batch, max_samples: int, sizes: _Sizes) -> bool:
    """Whether the whole batch is one part, as it nearly always is: found at a fraction of the price of cutting it."""
    samples = batch.sample_count
    size = sizes.request + SAMPLE_BYTES * samples + sizes.series(batch.series.values()) + sizes.all_metadata()
    if samples > max_samples or size > sizes.max_bytes:
        return False
    timestamps = {bucket.timestamp_ms for bucket in batch.buckets}
    return len(timestamps) == len(batch.buckets) or repeated_timestamp_ms(batch.buckets) is None


class _Part:
    """A part while it grows."""

    def __init__(self, series: Mapping[int, bytes], max_samples: int, sizes: _Sizes) -> None:
        self.buckets: list[StoredBucket] = []
        self._series = series
        self._sizes = sizes
        self._samples_left = max_samples
        self._bytes_left = sizes.max_bytes - sizes.request
        self._series_ids: set[int] = set()
        self._series_ids_at: defaultdict[int, set[int]] = defaultdict(set)
        self._described: set[str] = set()

    def take(self, bucket: StoredBucket) -> bool:
        """Add the bucket if the part keeps its limits with it; tell whether it did."""
        series_ids = set(array(SERIES_ID_TYPE, bucket.series_ids))
        added = series_ids - self._series_ids
        blocks = [self._series[series_id] for series_id in added]
        described = self._sizes.described(blocks) - self._described
        size = SAMPLE_BYTES * bucket.sample_count + self._sizes.series(blocks) + self._sizes.metadata(described)
        if bucket.sample_count > self._samples_left or size > self._bytes_left:
            return False
        if not self._series_ids_at[bucket.timestamp_ms].isdisjoint(series_ids):
            return False
        self.buckets.append(bucket)
        self._samples_left -= bucket.sample_count
        self._bytes_left -= size
        self._series_ids |= added
        self._series_ids_at[bucket.timestamp_ms] |= series_ids
        self._described |= described
        return True

    def batch(self) -> Batch:
        return Batch(tuple(self.buckets), self._series)


def _pieces(
    bucket: StoredBucket, series: Mapping[int, bytes], max_samples: int, sizes: _Sizes
) -> Iterator[StoredBucket]:
    """The bucket in pieces that keep the limits, or hold one sample."""
    series_ids = array(SERIES_ID_TYPE, bucket.series_ids)
    start, size = 0, sizes.request
    described: set[str] = set()
    for index, series_id in enumerate(series_ids):
        blocks = [series[series_id]]
        sample_size = SAMPLE_BYTES + sizes.series(blocks)
        metrics = sizes.described(blocks)
        added = sample_size + sizes.metadata(metrics - described)
        if index > start and (index - start == max_samples or size + added > sizes.max_bytes):
            yield piece(bucket, start, index)
            start, size = index, sizes.request
            described = set()
            added = sample_size + sizes.metadata(metrics)
        size += added
        described |= metrics
    yield piece(bucket, start, len(series_ids))
