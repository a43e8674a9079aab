"""Batches made by hand and by hypothesis, and what a request of one must hold."""

import struct
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from worker.buckets import Batch, StoredBucket
from worker.remote_write.samples import ORDINARY_NAN, STALE_MARKER, TIMESTAMPS_MS
from worker.series import MetricMetadata, label_block

START_MS = 1_760_000_000_000


def bucket(bucket_id: int, timestamp_ms: int, series_ids: Sequence[int], values: Sequence[float]) -> StoredBucket:
    return StoredBucket(bucket_id, timestamp_ms, array("I", series_ids).tobytes(), array("d", values).tobytes())


def series_blocks(series_ids: Sequence[int]) -> dict[int, bytes]:
    return {number: label_block("requests", {"zone": f"zone-{number}.example"}) for number in series_ids}


def batch(*buckets: StoredBucket) -> Batch:
    series_ids = {number for stored in buckets for number in array("I", stored.series_ids)}
    return Batch(buckets, series_blocks(sorted(series_ids)))


def samples_of(batch: Batch) -> dict[bytes, list[tuple[int, bytes]]]:
    """The samples by label block as they are to be sent, the oldest first: timestamp and the eight bytes of each."""
    samples: defaultdict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
    for stored in batch.buckets:
        for index, series_id in enumerate(array("I", stored.series_ids)):
            value = stored.values[8 * index : 8 * index + 8]
            sent = ORDINARY_NAN if value == STALE_MARKER else value
            samples[batch.series[series_id]].append((stored.timestamp_ms, sent))
    return {block: sorted(of_series) for block, of_series in samples.items()}


def occurrences(batch: Batch) -> list[tuple[int, int, int, bytes]]:
    """Every sample in the order of the batch: bucket id, timestamp, series id, the eight bytes of the value."""
    return [
        (stored.bucket_id, stored.timestamp_ms, series_id, stored.values[8 * index : 8 * index + 8])
        for stored in batch.buckets
        for index, series_id in enumerate(array("I", stored.series_ids))
    ]


# Signalling NaNs with a payload, one next to the one that Prometheus reserves for stale series, and that one itself.
_NANS = [bytes.fromhex("010000000000f47f"), bytes.fromhex("030000000000f07f"), STALE_MARKER, ORDINARY_NAN]
_FLOATS = [0.0, -0.0, 1.0, 1e308, 5e-324, -2.2e-308, float("inf"), float("-inf"), float("nan")]
_VALUES = st.sampled_from([struct.pack("<d", value) for value in _FLOATS] + _NANS) | st.binary(min_size=8, max_size=8)
_LABELS = st.dictionaries(
    # Capitals come before `__name__`.
    st.text("abz_Z9", max_size=4).map(lambda text: f"l{text}") | st.sampled_from("AZ"),
    st.text(max_size=8) | st.text("é", max_size=80) | st.sampled_from(["bytes", "__name__"]),
    max_size=3,
)

METADATA = st.dictionaries(
    st.sampled_from([f"metric_{number}:of" for number in range(4)]),
    st.builds(
        MetricMetadata,
        help=st.text(max_size=8) | st.text("é", min_size=60, max_size=80),
        unit=st.sampled_from(["", "bytes", "metric_0:of"]),
    ),
    max_size=4,
)
"""Help and unit, also of metrics that no batch has."""


@st.composite
def series_of_any_kind(draw: st.DrawFn) -> Mapping[int, bytes]:
    """Label blocks by series id."""
    labels = draw(st.lists(_LABELS, min_size=1, max_size=8))
    blocks = {label_block(f"metric_{index % 3}:of", of_series) for index, of_series in enumerate(labels)}
    first = draw(st.sampled_from([0, 2**32 - 20]))
    return {first + index: block for index, block in enumerate(sorted(blocks))}


@st.composite
def batches(draw: st.DrawFn, *, distinct_timestamps: bool = True) -> Batch:
    """Few layouts that buckets share, overlap in or do not, in any order of time."""
    series = draw(series_of_any_kind())
    layouts = draw(st.lists(st.lists(st.sampled_from(sorted(series)), unique=True), min_size=1, max_size=4))
    timestamps = st.integers(TIMESTAMPS_MS.start, TIMESTAMPS_MS.stop - 1) if distinct_timestamps else st.integers(0, 3)
    stamped = draw(st.lists(timestamps, max_size=12, unique=distinct_timestamps))
    buckets = []
    for number, drawn in enumerate(stamped):
        layout = draw(st.sampled_from(layouts))
        values = draw(st.lists(_VALUES, min_size=len(layout), max_size=len(layout)))
        timestamp_ms = drawn if distinct_timestamps else START_MS + 60_000 * drawn
        buckets.append(StoredBucket(number, timestamp_ms, array("I", layout).tobytes(), b"".join(values)))
    return Batch(tuple(buckets), series)
