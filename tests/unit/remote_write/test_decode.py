import struct

import pytest
from hypothesis import given, settings

from tests.unit.remote_write.batches import batches, samples_of
from worker.buckets import Batch
from worker.remote_write.decode import (
    MAX_BODY_BYTES,
    InvalidRequestError,
    ReceivedSeries,
    bits,
    read_write_request,
    shown,
)
from worker.remote_write.encode import compress, write_request
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.remote_write.proto.remote_write_v1_pb2 import Label, Sample, TimeSeries, WriteRequest
from worker.series import parse_label_block, varint


def series(labels: list[tuple[str, str]], timestamps_ms: list[int]) -> TimeSeries:
    return TimeSeries(
        labels=[Label(name=name, value=value) for name, value in labels],
        samples=[Sample(value=1.0, timestamp=timestamp_ms) for timestamp_ms in timestamps_ms],
    )


def packed(*all_series: TimeSeries) -> bytes:
    return compress(WriteRequest(timeseries=all_series).SerializeToString())


UP = [("__name__", "up"), ("job", "x")]


def test_a_request_is_read_as_it_was_sent() -> None:
    read = read_write_request(packed(series(UP, [1, 2]), series([("__name__", "down")], [-5])))
    assert read == [
        ReceivedSeries((("__name__", "up"), ("job", "x")), ((1, 1.0), (2, 1.0))),
        ReceivedSeries((("__name__", "down"),), ((-5, 1.0),)),
    ]


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches())
def test_whatever_the_worker_sends_breaks_no_rule_and_reads_as_it_was_stored(batch: Batch) -> None:
    read = read_write_request(compress(write_request(batch)))
    samples = {one.labels: [(timestamp_ms, bits(value)) for timestamp_ms, value in one.samples] for one in read}
    assert samples == {tuple(parse_label_block(block).items()): of for block, of in samples_of(batch).items()}


@pytest.mark.parametrize(
    ("all_series", "rule"),
    [
        ([series([("job", "x"), ("__name__", "up")], [1])], "not sorted"),
        ([series([("__name__", "up"), ("é", "x"), ("z", "y")], [1])], "not sorted"),
        ([series([*UP, ("job", "y")], [1])], "a label occurs twice"),
        ([series([*UP, ("job", "x")], [1])], "a label occurs twice"),
        ([series([("job", "x")], [1])], "has no __name__"),
        ([series([], [1])], "has no __name__"),
        ([series([("__name__", "up"), ("job", "")], [1])], "empty name or value"),
        ([series([("", "x"), ("__name__", "up")], [1])], "empty name or value"),
        ([series([("__name__", "")], [1])], "empty name or value"),
        ([series([("__name__", "5xx")], [1])], "'5xx' is not a metric name"),
        ([series([("__name__", "up\n")], [1])], "is not a metric name"),
        ([series([("__name__", "up"), ("a:b", "x")], [1])], "'a:b' is not a label name"),
        ([series([("__name__", "up"), ("__replica__", "x")], [1])], "'__replica__' is not a label name"),
        ([series([("__name__", "up"), ("é", "x")], [1])], "'é' is not a label name"),
        ([series(UP, [])], "no samples"),
        ([series(UP, [2, 1])], "a sample of 1 ms follows one of 2 ms"),
        ([series(UP, [1, 3, 3])], "a sample of 3 ms follows one of 3 ms"),
        ([series(UP, [1]), series([("__name__", "x")], [1]), series(UP, [2])], 'up{job="x"} has two TimeSeries'),
    ],
)
def test_every_rule_that_is_broken_is_named(all_series: list[TimeSeries], rule: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_write_request(packed(*all_series))
    assert rule in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"\xff", b"plain text", b"\x05\x10", b"\xff\x06\x00\x00sNaPpY"])
def test_what_is_not_in_the_block_format_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not in Snappy's block format"):
        read_write_request(body)


def test_a_body_that_says_it_is_huge_is_not_unpacked() -> None:
    with pytest.raises(InvalidRequestError, match=f"unpacks to {MAX_BODY_BYTES + 1} bytes"):
        read_write_request(varint(MAX_BODY_BYTES + 1) + b"\x00")


@pytest.mark.parametrize("body", [b"\x0a\xff", b"not protobuf", b"\x0a\x08\x0a\x06\x0a\x01\xff\x12\x01x"])
def test_what_is_not_a_write_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"not a prometheus\.WriteRequest"):
        read_write_request(compress(body))


def test_a_request_of_version_2_is_not_taken_for_an_empty_one() -> None:
    request = v2.Request(symbols=["", "__name__", "up"], timeseries=[v2.TimeSeries(labels_refs=[1, 2])])
    with pytest.raises(InvalidRequestError, match="has fields that"):
        read_write_request(compress(request.SerializeToString()))


def test_what_is_outside_the_specification_is_refused_where_it_stands() -> None:
    with_exemplar = series(UP, [1]).SerializeToString() + b"\x1a\x00"
    body = b"\x0a" + varint(len(with_exemplar)) + with_exemplar
    with pytest.raises(InvalidRequestError, match="has fields that"):
        read_write_request(compress(body))


def test_a_series_is_shown_as_people_write_it() -> None:
    assert shown((("__name__", "up"), ("instance", "y"), ("job", "x"))) == 'up{instance="y", job="x"}'
    assert shown(()) == "{}"


def test_values_are_told_apart_by_their_bits() -> None:
    (nan,) = struct.unpack("<d", bytes.fromhex("020000000000f07f"))
    assert bits(nan) == bytes.fromhex("020000000000f07f") != bits(float("nan"))
    assert bits(0.0) != bits(-0.0)
