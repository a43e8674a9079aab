"""The samples of stored buckets as bytes, which are the same in both messages of remote write.

Owns how a sample is written. Samples are written by column, without a message object. Knows nothing of labels, nor of
what stands around the samples of a series.

A sample takes 18 bytes inside its TimeSeries message, of `prometheus.WriteRequest` as of
`io.prometheus.write.v2.Request`:

    12 10           TimeSeries.samples = 2, 16 bytes long
    09 <8 bytes>    Sample.value = 1, IEEE 754 double, little-endian
    10 <6 bytes>    Sample.timestamp = 2, varint of the milliseconds since the unix epoch

The value is written even where it is 0.0, which protobuf's own encoder leaves out; a reader sees no difference.

Every value keeps its bits, with one exception: the NaN that says "this series has ended" is written as Prometheus'
ordinary NaN. Both specifications reserve it for that, and the worker never says so: its samples carry explicit
timestamps, and a window without a row ends no series. Nothing that is collected can have these bits, but an import or
another program's ledger could, and a receiver would hide the series until its next sample.
"""

import sys
from array import array
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import groupby
from struct import Struct

from worker.buckets import Batch, StoredBucket
from worker.series import varint

if sys.byteorder != "little":  # pragma: no cover - no such machine is supported
    message = "requests are built from values in the machine's byte order, which has to be little-endian"
    raise ImportError(message)

TIMESTAMPS_MS = range(1 << 35, 1 << 42)
"""The timestamps that can be encoded, unix milliseconds: those whose varint has 6 bytes of 7 bits, so that every sample
is as long as any other. They reach from February 1971 to May 2109."""

SAMPLE_BYTES = 18
"""Bytes of one sample inside its TimeSeries message: 2 + 1 + 8 + 1 + 6."""

SERIES_ID_TYPE = "I"
"""Type code of the packed series ids of a stored bucket: 4 bytes, unsigned."""

STALE_MARKER = (0x7FF0000000000002).to_bytes(8, "little")
"""The value by which a sender of remote write says that a series has ended; never written."""

ORDINARY_NAN = (0x7FF8000000000001).to_bytes(8, "little")
"""What Prometheus itself writes for a value that is not a number."""

# Only infinities, values that are no number and those from 2^1009 on have it too: most requests are done with one look.
_TOP_OF_STALE_MARKER = STALE_MARKER[7]

_BEFORE_VALUE = b"\x12\x10\x09"
_NO_VALUE = bytes(8)
_BEFORE_TIMESTAMP = b"\x10"


def samples_by_series(batch: Batch) -> tuple[list[bytes], list[bytes]]:
    """The label blocks of all series in a batch, each once, and the serialized samples of each, ascending in time.

    ValueError where a series would get two samples of one timestamp, of which receivers silently drop one; where two
    series ids stand for the same labels, which would come to that; and where a timestamp is not in `TIMESTAMPS_MS`.
    """
    buckets = sorted([bucket for bucket in batch.buckets if bucket.series_ids], key=_timestamp_ms)
    runs = _runs(buckets)
    series_ids = _series_ids(run[0] for run in runs)
    # More ids than there are series: some of them are there twice, without a look at each.
    if len(series_ids) <= len(batch.series):
        blocks = list(map(batch.series.__getitem__, series_ids))
        if _are_distinct(blocks):
            return blocks, _side_by_side(runs)
    repeated_ms = repeated_timestamp_ms(buckets)
    if repeated_ms is not None:
        raise _repeated(repeated_ms)
    by_series = _merged(buckets)
    blocks = list(map(batch.series.__getitem__, by_series))
    if not _are_distinct(blocks):
        msg = "two series of a batch have the same labels: one of them has to be left out before"
        raise ValueError(msg)
    return blocks, list(map(b"".join, by_series.values()))


def repeated_timestamp_ms(buckets: Iterable[StoredBucket]) -> int | None:
    """The first timestamp of which some series has two samples in these buckets; None where there is none."""
    buckets = list(buckets)
    # Mostly, buckets have the same series, or none in common: then a look at one of each kind is enough.
    kinds = {bucket.series_ids: bucket for bucket in buckets}
    if (
        len(kinds) <= len(buckets) // 2
        and _are_distinct([(bucket.series_ids, bucket.timestamp_ms) for bucket in buckets])
        and _are_distinct(_series_ids(kinds.values()))
    ):
        return None
    for timestamp_ms, at_once in groupby(sorted(buckets, key=_timestamp_ms), key=_timestamp_ms):
        if not _are_distinct(_series_ids(at_once)):
            return timestamp_ms
    return None


def _timestamp_ms(bucket: StoredBucket) -> int:
    return bucket.timestamp_ms


def _series_ids(buckets: Iterable[StoredBucket]) -> "array[int]":
    return array(SERIES_ID_TYPE, b"".join([bucket.series_ids for bucket in buckets]))


def _are_distinct(values: Collection[Hashable]) -> bool:
    return len(set(values)) == len(values)


def _runs(buckets: Iterable[StoredBucket]) -> list[list[StoredBucket]]:
    """The buckets, those with the same series in the same order together; the shortest runs first."""
    runs: defaultdict[bytes, list[StoredBucket]] = defaultdict(list)
    for bucket in buckets:
        runs[bucket.series_ids].append(bucket)
    return sorted(runs.values(), key=len)


def _side_by_side(runs: Iterable[Sequence[StoredBucket]]) -> list[bytes]:
    """The serialized samples of each series, run by run, the shortest first: one sample behind the other in its order.

    Runs of equal length are written as one table of samples, a column of bytes at a time: first every sample with its
    timestamp and no value, by repetition, then the eight bytes of all values.
    """
    all_samples: list[bytes] = []
    for length, group in groupby(runs, key=len):
        alike = list(group)
        values = b"".join(map(_values_by_series, alike))
        if _TOP_OF_STALE_MARKER in values[7::8]:
            values = _without_stale_markers(values)
        table = bytearray().join(_samples_without_values(run) * run[0].sample_count for run in alike)
        for byte in range(8):
            table[len(_BEFORE_VALUE) + byte :: SAMPLE_BYTES] = values[byte::8]
        # One format item a series: a single call cuts the table. The module's own functions would keep the format.
        all_samples += Struct(f"{SAMPLE_BYTES * length}s" * (len(values) // 8 // length)).unpack(table)
    return all_samples


def _values_by_series(run: Sequence[StoredBucket]) -> bytes:
    """The values of all buckets, those of the first series first."""
    if len(run) == 1:
        return run[0].values
    values = array("d", bytes(len(run[0].values) * len(run)))
    for index, bucket in enumerate(run):
        values[index :: len(run)] = array("d", bucket.values)
    return values.tobytes()


def _without_stale_markers(values: bytes) -> bytes:
    return b"".join(ORDINARY_NAN if value == STALE_MARKER else value for (value,) in Struct("8s").iter_unpack(values))


def _samples_without_values(run: Sequence[StoredBucket]) -> bytes:
    """The samples of one series of the run, every value still zero."""
    samples = bytearray()
    previous_ms = TIMESTAMPS_MS.start - 1
    for bucket in run:
        timestamp_ms = bucket.timestamp_ms
        if timestamp_ms not in TIMESTAMPS_MS:
            message = f"bucket {bucket.bucket_id} is stamped {timestamp_ms} ms, which is not between 1971 and 2109"
            raise ValueError(message)
        if timestamp_ms == previous_ms:
            raise _repeated(timestamp_ms)
        previous_ms = timestamp_ms
        samples += _BEFORE_VALUE + _NO_VALUE + _BEFORE_TIMESTAMP + varint(timestamp_ms)
    return bytes(samples)


def _merged(buckets: Sequence[StoredBucket]) -> dict[int, list[bytes]]:
    """The serialized samples of each series, of buckets in the order of time that share some of their series."""
    by_series: defaultdict[int, list[bytes]] = defaultdict(list)
    for series_id, sample in zip(_series_ids(buckets), _side_by_side([bucket] for bucket in buckets), strict=True):
        by_series[series_id].append(sample)
    return by_series


def _repeated(timestamp_ms: int) -> ValueError:
    return ValueError(f"a series has two samples at {timestamp_ms} ms")
