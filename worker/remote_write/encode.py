"""From stored buckets to the body of a remote write request.

Owns every byte that is sent. Label blocks are serialized already (`worker.series`) and samples are written by column
(`worker.remote_write.samples`), so a request is made by concatenation, without a message object. Knows nothing of HTTP,
of destinations or of the ledger.
"""

from collections.abc import Mapping
from typing import assert_never

import snappy  # type: ignore[import-untyped]  # ships no types

from worker.buckets import Batch
from worker.config import Message
from worker.remote_write.encode_v1 import write_request_v1
from worker.remote_write.encode_v2 import write_request_v2
from worker.remote_write.samples import samples_by_series
from worker.series import MetricMetadata


def compress(body: bytes) -> bytes:
    """The body in Snappy's block format, the only one that remote write allows."""
    compressed: bytes = snappy.compress(body)
    return compressed


def write_request(batch: Batch, message: Message = Message.V1, metadata: Mapping[str, MetricMetadata] = {}) -> bytes:
    """The serialized message of a batch, uncompressed.

    Every series has one TimeSeries, its samples ascending in time; every value keeps its bits, -0.0 and NaN included
    (`worker.remote_write.samples` tells the one exception). The same arguments always give the same bytes.

    metadata: help and unit by metric name. Version 2.0 says of every series that it is a gauge, with or without them;
              version 1.0 says it of the metrics that are named here.

    ValueError where a series would get two samples of one timestamp, of which receivers silently drop one
    (`split_batch` keeps them apart); where two series ids have the same labels, for the same reason; and where a
    timestamp is not in `TIMESTAMPS_MS`.
    """
    blocks, samples = samples_by_series(batch)
    match message:
        case Message.V1:
            return write_request_v1(blocks, samples, metadata)
        case Message.V2:
            return write_request_v2(blocks, samples, metadata)
        case _:
            assert_never(message)
