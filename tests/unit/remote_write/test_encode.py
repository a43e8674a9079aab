import struct
from array import array

import pytest
import snappy  # type: ignore[import-untyped]  # ships no types
from hypothesis import given, settings

from tests.unit.remote_write.batches import START_MS, batch, batches, bucket, samples_of
from worker.buckets import Batch
from worker.remote_write.encode import SAMPLE_BYTES, compress, write_request
from worker.remote_write.proto.remote_write_v1_pb2 import Label, Sample, TimeSeries, WriteRequest
from worker.series import parse_label_block

POSITIVE_ZERO = bytes(8)


def parsed(body: bytes) -> WriteRequest:
    request = WriteRequest()
    request.ParseFromString(body)
    return request


def samples_in(request: WriteRequest) -> list[tuple[dict[str, str], list[tuple[int, bytes]]]]:
    return [
        (
            {label.name: label.value for label in series.labels},
            [(sample.timestamp, struct.pack("<d", sample.value)) for sample in series.samples],
        )
        for series in request.timeseries
    ]


def message_of(batch: Batch, order: WriteRequest) -> WriteRequest:
    """The same request made of protobuf's own objects, its series in the order of another one."""
    samples = samples_of(batch)
    blocks = {tuple(parse_label_block(block).items()): block for block in samples}
    return WriteRequest(
        timeseries=[
            TimeSeries(
                labels=[Label(name=label.name, value=label.value) for label in series.labels],
                samples=[
                    Sample(value=struct.unpack("<d", value)[0], timestamp=timestamp_ms)
                    for timestamp_ms, value in samples[
                        blocks[tuple((label.name, label.value) for label in series.labels)]
                    ]
                ],
            )
            for series in order.timeseries
        ]
    )


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches())
def test_a_request_holds_every_series_once_with_all_its_samples_in_order_bit_by_bit(given_batch: Batch) -> None:
    in_request = samples_in(parsed(write_request(given_batch)))
    expected = [(parse_label_block(block), samples) for block, samples in samples_of(given_batch).items()]
    assert sorted(expected, key=repr) == sorted(in_request, key=repr)


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches())
def test_a_request_is_byte_for_byte_what_protobuf_makes_of_the_same_message(given_batch: Batch) -> None:
    body = write_request(given_batch)
    request = parsed(body)
    expected = message_of(given_batch, request).SerializeToString()
    assert expected == request.SerializeToString()
    # Only the value 0.0 is written differently: protobuf leaves it out.
    if not any(value == POSITIVE_ZERO for samples in samples_of(given_batch).values() for _, value in samples):
        assert expected == body


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches())
def test_the_same_batch_always_gives_the_same_bytes(given_batch: Batch) -> None:
    again = Batch(tuple(given_batch.buckets), dict(given_batch.series))
    assert write_request(given_batch) == write_request(again)


def test_a_zero_is_written_out() -> None:
    body = write_request(batch(bucket(1, START_MS, [1], [0.0])))
    assert body.endswith(b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes.fromhex("8080b3c19c33"))
    assert parsed(body).timeseries[0].samples[0].value == 0.0


def test_many_windows_of_a_scope_become_one_time_series_per_series() -> None:
    windows = [bucket(w, START_MS + 60_000 * w, [5, 3, 9], [w, w + 0.5, -w]) for w in range(50)]
    request = parsed(write_request(batch(*windows)))
    assert [len(series.samples) for series in request.timeseries] == [50, 50, 50]
    assert [float(w) for w in range(50)] == [sample.value for sample in request.timeseries[0].samples]
    assert [w + 0.5 for w in range(50)] == [sample.value for sample in request.timeseries[1].samples]
    assert [START_MS + 60_000 * w for w in range(50)] == [s.timestamp for s in request.timeseries[2].samples]


def test_a_series_that_lies_in_different_layouts_still_gets_one_time_series() -> None:
    request = parsed(
        write_request(
            batch(
                bucket(1, START_MS, [1, 2], [1.0, 2.0]),
                bucket(2, START_MS, [7], [70.0]),
                bucket(3, START_MS + 1, [2, 1, 3], [2.5, 1.5, 3.5]),
                bucket(4, START_MS + 2, [1, 2], [11.0, 12.0]),
            )
        )
    )
    values = {
        {label.name: label.value for label in series.labels}["zone"]: [sample.value for sample in series.samples]
        for series in request.timeseries
    }
    assert values == {
        "zone-1.example": [1.0, 1.5, 11.0],
        "zone-2.example": [2.0, 2.5, 12.0],
        "zone-3.example": [3.5],
        "zone-7.example": [70.0],
    }


def test_buckets_may_come_in_any_order_of_time() -> None:
    request = parsed(write_request(batch(bucket(2, START_MS + 9, [1], [2.0]), bucket(1, START_MS, [1], [1.0]))))
    assert [sample.value for sample in request.timeseries[0].samples] == [1.0, 2.0]


def test_an_empty_batch_is_an_empty_request() -> None:
    assert write_request(Batch((), {})) == b""
    assert write_request(Batch((bucket(1, START_MS, [], []),), {})) == b""


@pytest.mark.parametrize("timestamp_ms", [2**35, 2**42 - 1])
def test_the_first_and_the_last_timestamp_take_as_many_bytes_as_any_other(timestamp_ms: int) -> None:
    one = batch(bucket(1, timestamp_ms, [1], [1.5]))
    body = write_request(one)
    assert timestamp_ms == parsed(body).timeseries[0].samples[0].timestamp
    assert len(body) == 2 + len(one.series[1]) + SAMPLE_BYTES


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**35 - 1, 2**42, 2**63])
def test_a_timestamp_that_no_window_has_is_refused(timestamp_ms: int) -> None:
    with pytest.raises(ValueError, match=f"bucket 17 is stamped {timestamp_ms} ms"):
        write_request(batch(bucket(17, timestamp_ms, [1], [1.0])))


@pytest.mark.parametrize(
    ("first", "second"), [([1, 2], [1, 2]), ([1, 2], [2, 3]), ([1, 1], [])], ids=["same layout", "overlap", "itself"]
)
def test_two_samples_of_one_series_and_timestamp_are_refused(first: list[int], second: list[int]) -> None:
    pair = batch(bucket(1, START_MS, first, [1.0] * len(first)), bucket(2, START_MS, second, [1.0] * len(second)))
    with pytest.raises(ValueError, match=f"a series has two samples at {START_MS} ms"):
        write_request(pair)


def test_the_body_is_compressed_in_the_block_format() -> None:
    body = write_request(batch(bucket(1, START_MS, range(100), array("d", bytes(800)))))
    compressed = compress(body)
    assert body == snappy.uncompress(compressed)
    assert len(compressed) < len(body) / 2
    # The framed format starts with a chunk that says sNaPpY; the block format with the length.
    assert b"sNaPpY" not in compressed
