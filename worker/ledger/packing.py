"""How the samples of a bucket lie in its row, and how damage to them is noticed.

    series_ids     n x uint32, little-endian
    sample_values  n x float64, little-endian, in the same order: 12 bytes a sample together
    checksum       CRC-32 over the row's identity and both

The checksum covers the identity too (dataset, scope, window, timestamp), so that a flipped bit cannot move good samples
to another window; that of a series covers its number, so that none can move them to another series. SQLite checks its
own pages of the write-ahead log, but not those of the database.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Collection

if sys.byteorder != "little":  # pragma: no cover - no such machine is supported
    message = "the ledger is written in the machine's byte order, which has to be little-endian"
    raise ImportError(message)

SERIES_ID_TYPE = "I"
"""Type code of a packed series id: 4 bytes, 4.2 billion series."""

_IDENTITY = struct.Struct("<qqqqq")
_SERIES_ID = struct.Struct("<q")


def checksum(
    *,
    dataset_id: int,
    scope_id: int,
    width_seconds: int,
    start: int,
    timestamp_ms: int,
    series_ids: bytes,
    values: bytes,
) -> int:
    """The CRC-32 of one bucket's row."""
    identity = _IDENTITY.pack(dataset_id, scope_id, width_seconds, start, timestamp_ms)
    return zlib.crc32(values, zlib.crc32(series_ids, zlib.crc32(identity)))


def is_intact(
    seal: int,
    *,
    dataset_id: int,
    scope_id: int,
    width_seconds: int,
    start: int,
    timestamp_ms: int,
    series_ids: bytes,
    values: bytes,
) -> bool:
    """Whether a bucket's row is what was written."""
    try:
        expected = checksum(
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        )
    except (TypeError, struct.error):  # a flipped bit in a row's header makes something else of a column
        return False
    return seal == expected and len(series_ids) * 2 == len(values)


def series_checksum(series_id: int, labels: bytes) -> int:
    """The CRC-32 of one series' row."""
    return zlib.crc32(labels, zlib.crc32(_SERIES_ID.pack(series_id)))


def is_series_intact(seal: int, series_id: int, labels: bytes) -> bool:
    """Whether a series' row is what was written."""
    try:
        return seal == series_checksum(series_id, labels)
    except (TypeError, struct.error):
        return False


def values_by_series(series_ids: bytes, values: bytes) -> dict[int, bytes]:
    """The 8 raw bytes of each sample by its series: raw, so that NaN and -0.0 compare by their bits."""
    return {
        series_id: values[index * 8 : index * 8 + 8]
        for index, series_id in enumerate(array(SERIES_ID_TYPE, series_ids))
    }


def samples_of(series_ids: bytes, values: bytes, wanted: Collection[int]) -> tuple[bytes, bytes]:
    """Of a bucket's samples those of the series that are wanted, packed as they were."""
    numbers = array(SERIES_ID_TYPE, series_ids)
    at = [index for index, number in enumerate(numbers) if number in wanted]
    if len(at) == len(numbers):
        return series_ids, values
    return (
        array(SERIES_ID_TYPE, [numbers[index] for index in at]).tobytes(),
        b"".join(values[8 * index : 8 * index + 8] for index in at),
    )
