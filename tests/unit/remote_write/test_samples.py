import struct
from array import array

import pytest
from hypothesis import given, settings

from tests.unit.remote_write.batches import START_MS, batch, batches, bucket, samples_of
from worker.buckets import Batch, StoredBucket
from worker.remote_write.proto.remote_write_v1_pb2 import TimeSeries
from worker.remote_write.samples import (
    ORDINARY_NAN,
    SAMPLE_BYTES,
    STALE_MARKER,
    repeated_timestamp_ms,
    samples_by_series,
)
from worker.series import label_block


def samples_in(series: bytes) -> list[tuple[int, bytes]]:
    parsed = TimeSeries()
    parsed.ParseFromString(series)
    return [(sample.timestamp, struct.pack("<d", sample.value)) for sample in parsed.samples]


def values_sent(stored: list[bytes]) -> list[bytes]:
    """What is sent for these eight bytes each, of as many series."""
    one = StoredBucket(1, START_MS, array("I", range(len(stored))).tobytes(), b"".join(stored))
    _, samples = samples_by_series(Batch((one,), batch(one).series))
    return [value for series in samples for _, value in samples_in(series)]


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches())
def test_every_series_is_there_once_with_all_its_samples_in_order_bit_by_bit(given_batch: Batch) -> None:
    blocks, samples = samples_by_series(given_batch)
    assert len(set(blocks)) == len(blocks)
    assert samples_of(given_batch) == dict(zip(blocks, map(samples_in, samples), strict=True))


def test_a_zero_is_written_out() -> None:
    _, [samples] = samples_by_series(batch(bucket(1, START_MS, [1], [0.0])))
    assert samples == b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes.fromhex("8080b3c19c33")
    assert samples_in(samples) == [(START_MS, bytes(8))]


def test_a_series_that_lies_in_different_layouts_is_still_one() -> None:
    layouts = batch(
        bucket(1, START_MS, [1, 2], [1.0, 2.0]),
        bucket(2, START_MS, [7], [70.0]),
        bucket(3, START_MS + 1, [2, 1, 3], [2.5, 1.5, 3.5]),
        bucket(4, START_MS + 2, [1, 2], [11.0, 12.0]),
    )
    number_of = {block: number for number, block in layouts.series.items()}
    blocks, samples = samples_by_series(layouts)
    values = {
        number_of[block]: [struct.unpack("<d", value)[0] for _, value in samples_in(of_series)]
        for block, of_series in zip(blocks, samples, strict=True)
    }
    assert values == {1: [1.0, 1.5, 11.0], 2: [2.0, 2.5, 12.0], 3: [3.5], 7: [70.0]}


def test_buckets_may_come_in_any_order_of_time() -> None:
    _, [samples] = samples_by_series(batch(bucket(2, START_MS + 9, [1], [2.0]), bucket(1, START_MS, [1], [1.0])))
    assert [timestamp_ms for timestamp_ms, _ in samples_in(samples)] == [START_MS, START_MS + 9]


@pytest.mark.parametrize("timestamp_ms", [2**35, 2**42 - 1])
def test_the_first_and_the_last_timestamp_take_as_many_bytes_as_any_other(timestamp_ms: int) -> None:
    _, [samples] = samples_by_series(batch(bucket(1, timestamp_ms, [1], [1.5])))
    assert [timestamp_ms] == [at for at, _ in samples_in(samples)]
    assert len(samples) == SAMPLE_BYTES


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**35 - 1, 2**42, 2**63])
def test_a_timestamp_that_no_window_has_is_refused(timestamp_ms: int) -> None:
    with pytest.raises(ValueError, match=f"bucket 17 is stamped {timestamp_ms} ms"):
        samples_by_series(batch(bucket(17, timestamp_ms, [1], [1.0])))


@pytest.mark.parametrize(
    ("first", "second"), [([1, 2], [1, 2]), ([1, 2], [2, 3]), ([1, 1], [])], ids=["same layout", "overlap", "itself"]
)
def test_two_samples_of_one_series_and_timestamp_are_refused(first: list[int], second: list[int]) -> None:
    pair = batch(bucket(1, START_MS, first, [1.0] * len(first)), bucket(2, START_MS, second, [1.0] * len(second)))
    with pytest.raises(ValueError, match=f"a series has two samples at {START_MS} ms"):
        samples_by_series(pair)


@pytest.mark.parametrize(
    ("others", "repeated"),
    [([3, 4], None), ([2, 3], START_MS + 1), ([4, 4], START_MS + 1), ([1, 2], START_MS + 1)],
    ids=["none in common", "one in common", "one twice", "the same"],
)
def test_a_repeated_timestamp_is_found_among_many_buckets_of_few_layouts(
    others: list[int], repeated: int | None
) -> None:
    many = [bucket(number, START_MS + 10 * number, [1, 2], [1.0, 2.0]) for number in range(5)]
    many += [bucket(10 + number, START_MS + 1 + 10 * number, others, [1.0, 2.0]) for number in range(5)]
    many.append(bucket(20, START_MS + 1, [1, 2], [1.0, 2.0]))
    assert repeated_timestamp_ms(many) == repeated


@pytest.mark.parametrize("second", [bucket(2, START_MS + 1, [2], [2.0]), bucket(2, START_MS + 1, [1, 2], [1.0, 2.0])])
def test_two_series_with_the_same_labels_are_refused(second: StoredBucket) -> None:
    same = label_block("requests", {"zone": "x"})
    pair = Batch((bucket(1, START_MS, [1], [1.0]), second), {1: same, 2: bytes(bytearray(same))})
    with pytest.raises(ValueError, match="two series of a batch have the same labels"):
        samples_by_series(pair)


def test_the_marker_of_a_series_that_has_ended_is_never_sent() -> None:
    others = [struct.pack("<d", value) for value in (float("inf"), float("nan"), -0.0)]
    # The sign and the payload tell other values that are not a number from it.
    others += [bytes.fromhex("020000000000f0ff"), bytes.fromhex("020000000000f87f"), bytes.fromhex("030000000000f07f")]
    assert values_sent([STALE_MARKER, *others, STALE_MARKER]) == [ORDINARY_NAN, *others, ORDINARY_NAN]


def test_the_bytes_of_that_marker_across_two_values_are_left_alone() -> None:
    values = bytes.fromhex("aabb") + STALE_MARKER + bytes.fromhex("ccddeeff") + b"\x7f\x7f"
    assert values_sent([values[:8], values[8:]]) == [values[:8], values[8:]]


def test_that_marker_is_not_sent_in_many_windows_of_a_series_either() -> None:
    windows = [StoredBucket(w, START_MS + w, array("I", [1, 2]).tobytes(), bytes(8) + STALE_MARKER) for w in range(3)]
    _, samples = samples_by_series(batch(*windows))
    assert [[value for _, value in samples_in(one)] for one in samples] == [[bytes(8)] * 3, [ORDINARY_NAN] * 3]
