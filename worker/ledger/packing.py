"""How the samples of a bucket lie in its row, and how damage to them is noticed.

    series_ids     n x uint32, little-endian
    sample_values  n x float64, little-endian, in the same order: 12 bytes a sample together
    checksum       CRC-32 over the row's identity and both

The checksum covers the identity too (dataset, scope, window, timestamp), so that a flipped bit cannot move good samples
to another window. SQLite checks its own pages of the write-ahead log, but not those of the database.
"""

import struct
import sys
import zlib
from array import array

if sys.byteorder != "little":  # pragma: no cover - no such machine is supported
    message = "the ledger is written in the machine's byte order, which has to be little-endian"
    raise ImportError(message)

SERIES_ID_TYPE = "I"
"""Type code of a packed series id: 4 bytes, 4.2 billion series."""

_IDENTITY = struct.Struct("<qqqqq")


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


def values_by_series(series_ids: bytes, values: bytes) -> dict[int, bytes]:
    """The 8 raw bytes of each sample by its series: raw, so that NaN and -0.0 compare by their bits."""
    return {
        series_id: values[index * 8 : index * 8 + 8]
        for index, series_id in enumerate(array(SERIES_ID_TYPE, series_ids))
    }
