"""From stored buckets to the body of a remote write 1.0 request.

Owns every byte that is sent. Label blocks are serialized already (`worker.series`) and samples are written by column,
so a request is made by concatenation, without a message object. Knows nothing of HTTP, of destinations or of the
ledger.

A sample takes 18 bytes inside its TimeSeries message:

    12 10           TimeSeries.samples = 2, 16 bytes long
    09 <8 bytes>    Sample.value = 1, IEEE 754 double, little-endian
    10 <6 bytes>    Sample.timestamp = 2, varint of the milliseconds since the unix epoch

The value is written even where it is 0.0, which protobuf's own encoder leaves out; a reader sees no difference.
"""

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import add
from struct import Struct

import snappy  # type: ignore[import-untyped]  # ships no types

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

_BEFORE_VALUE = b"\x12\x10\x09"
_NO_VALUE = bytes(8)
_BEFORE_TIMESTAMP = b"\x10"
_TIME_SERIES = b"\x0a"  # WriteRequest.timeseries = 1, length-delimited


def compress(body: bytes) -> bytes:
    """The body in Snappy's block format, the only one that remote write allows."""
    compressed: bytes = snappy.compress(body)
    return compressed


def write_request(batch: Batch) -> bytes:
    """The serialized `prometheus.WriteRequest` of a batch, uncompressed.

    Every series has one TimeSeries, its samples ascending in time; every value keeps its bits, NaN and -0.0 included.
    ValueError where a series would get two samples of one timestamp, of which receivers silently drop one
    (`split_batch` keeps them apart), and where a timestamp is not in `TIMESTAMPS_MS`.
    """
    buckets = sorted((bucket for bucket in batch.buckets if bucket.series_ids), key=_timestamp_ms)
    runs = _runs(buckets)
    if _repeat_a_series(run[0] for run in runs):
        repeated_ms = repeated_timestamp_ms(buckets)
        if repeated_ms is not None:
            raise _repeated(repeated_ms)
        series_ids, samples = _merged(buckets)
    else:
        series_ids, samples = _side_by_side(runs)
    labels = list(map(batch.series.__getitem__, series_ids))
    prefixes = _Prefixes()
    pieces = [b""] * (3 * len(labels))
    pieces[0::3] = map(prefixes.__getitem__, map(add, map(len, labels), map(len, samples)))
    pieces[1::3] = labels
    pieces[2::3] = samples
    return b"".join(pieces)


def repeated_timestamp_ms(buckets: Iterable[StoredBucket]) -> int | None:
    """The first timestamp of which some series has two samples in these buckets; None where there is none."""
    for timestamp_ms, at_once in groupby(sorted(buckets, key=_timestamp_ms), key=_timestamp_ms):
        if _repeat_a_series(at_once):
            return timestamp_ms
    return None


def _timestamp_ms(bucket: StoredBucket) -> int:
    return bucket.timestamp_ms


def _runs(buckets: Iterable[StoredBucket]) -> list[list[StoredBucket]]:
    """The buckets, those with the same series in the same order together."""
    runs: defaultdict[bytes, list[StoredBucket]] = defaultdict(list)
    for bucket in buckets:
        runs[bucket.series_ids].append(bucket)
    return list(runs.values())


def _repeat_a_series(buckets: Iterable[StoredBucket]) -> bool:
    series_ids = array(SERIES_ID_TYPE, b"".join(bucket.series_ids for bucket in buckets))
    return len(set(series_ids)) < len(series_ids)


def _side_by_side(runs: Iterable[Sequence[StoredBucket]]) -> tuple[list[int], list[bytes]]:
    """The series of all runs, and the serialized samples of each: one after the other, as its buckets follow.

    Runs of equal length are written as one table of samples, a column of bytes at a time: first every sample with its
    timestamp and no value, by repetition, then the eight bytes of all values.
    """
    by_length: defaultdict[int, list[Sequence[StoredBucket]]] = defaultdict(list)
    for run in runs:
        by_length[len(run)].append(run)
    all_series_ids: list[int] = []
    all_samples: list[bytes] = []
    for length, alike in by_length.items():
        series_ids = array(SERIES_ID_TYPE, b"".join(run[0].series_ids for run in alike))
        values = b"".join(map(_values_by_series, alike))
        table = bytearray().join(_samples_without_values(run) * run[0].sample_count for run in alike)
        for byte in range(8):
            table[len(_BEFORE_VALUE) + byte :: SAMPLE_BYTES] = values[byte::8]
        all_series_ids += series_ids
        # One format item a series: a single call cuts the table. The module's own functions would keep the format.
        all_samples += Struct(f"{SAMPLE_BYTES * length}s" * len(series_ids)).unpack(table)
    return all_series_ids, all_samples


def _values_by_series(run: Sequence[StoredBucket]) -> bytes:
    """The values of all buckets, those of the first series first."""
    if len(run) == 1:
        return run[0].values
    values = array("d", bytes(sum(len(bucket.values) for bucket in run)))
    for index, bucket in enumerate(run):
        values[index :: len(run)] = array("d", bucket.values)
    return values.tobytes()


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


def _merged(buckets: Sequence[StoredBucket]) -> tuple[list[int], list[bytes]]:
    """The same as `_side_by_side`, of buckets in the order of time that share some of their series."""
    by_series: defaultdict[int, list[bytes]] = defaultdict(list)
    for series_id, sample in zip(*_side_by_side([bucket] for bucket in buckets), strict=True):
        by_series[series_id].append(sample)
    return list(by_series), list(map(b"".join, by_series.values()))


def _repeated(timestamp_ms: int) -> ValueError:
    return ValueError(f"a series has two samples at {timestamp_ms} ms")


class _Prefixes(dict[int, bytes]):
    """What stands before a TimeSeries message of a given length; many are equally long."""

    def __missing__(self, length: int) -> bytes:
        prefix = self[length] = _TIME_SERIES + varint(length)
        return prefix
