import struct

import pytest
from hypothesis import given, settings

from tests.unit.remote_write.batches import METADATA, batches, samples_of
from worker.buckets import Batch
from worker.config import Message
from worker.remote_write.decode import (
    MAX_BODY_BYTES,
    InvalidRequestError,
    ReceivedSeries,
    bits,
    read_request,
    read_write_request,
    shown,
)
from worker.remote_write.encode import compress, write_request
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.remote_write.proto.remote_write_v1_pb2 import Label, MetricMetadata, Sample, TimeSeries, WriteRequest
from worker.series import MetricMetadata as Known
from worker.series import parse_label_block, varint


def series(labels: list[tuple[str, str]], timestamps_ms: list[int]) -> TimeSeries:
    return TimeSeries(
        labels=[Label(name=name, value=value) for name, value in labels],
        samples=[Sample(value=1.0, timestamp=timestamp_ms) for timestamp_ms in timestamps_ms],
    )


def packed(*all_series: TimeSeries) -> bytes:
    return compress(WriteRequest(timeseries=all_series).SerializeToString())


UP = [("__name__", "up"), ("job", "x")]
GAUGE = v2.Metadata(type=v2.Metadata.METRIC_TYPE_GAUGE)


def series_v2(refs: list[int], timestamps_ms: list[int], metadata: v2.Metadata = GAUGE) -> v2.TimeSeries:
    return v2.TimeSeries(
        labels_refs=refs,
        samples=[v2.Sample(value=1.0, timestamp=timestamp_ms) for timestamp_ms in timestamps_ms],
        metadata=metadata,
    )


def packed_v2(symbols: list[str], *all_series: v2.TimeSeries) -> bytes:
    return compress(v2.Request(symbols=symbols, timeseries=all_series).SerializeToString())


UP_V2 = ["", "__name__", "up", "job", "x"]


def test_a_request_is_read_as_it_was_sent() -> None:
    read = read_write_request(packed(series(UP, [1, 2]), series([("__name__", "down")], [-5])))
    assert read == [
        ReceivedSeries((("__name__", "up"), ("job", "x")), ((1, 1.0), (2, 1.0))),
        ReceivedSeries((("__name__", "down"),), ((-5, 1.0),)),
    ]


def test_a_request_of_version_2_is_read_as_it_was_sent() -> None:
    helpful = v2.Metadata(type=v2.Metadata.METRIC_TYPE_GAUGE, help_ref=5, unit_ref=4)
    read = read_request(
        packed_v2([*UP_V2, "help"], series_v2([1, 2, 3, 4], [1, 2], helpful), series_v2([1, 4], [-5])), Message.V2
    )
    assert read.series == [
        ReceivedSeries((("__name__", "up"), ("job", "x")), ((1, 1.0), (2, 1.0))),
        ReceivedSeries((("__name__", "x"),), ((-5, 1.0),)),
    ]
    assert read.metadata == {"up": Known("help", "x"), "x": Known("", "")}
    assert (read.sample_count, read.broken_rules) == (3, [])


def test_metadata_of_version_1_is_read_as_it_was_sent() -> None:
    up = MetricMetadata(type=MetricMetadata.GAUGE, metric_family_name="up", help="help", unit="x")
    read = read_request(compress(WriteRequest(metadata=[up]).SerializeToString()), Message.V1)
    assert read.metadata == {"up": Known("help", "x")}


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches(), METADATA)
def test_whatever_the_worker_sends_breaks_no_rule_and_reads_as_it_was_stored(
    batch: Batch, metadata: dict[str, Known]
) -> None:
    expected = {tuple(parse_label_block(block).items()): of for block, of in samples_of(batch).items()}
    metrics = {dict(labels)["__name__"] for labels in expected}
    for message in Message:
        read = read_request(compress(write_request(batch, message, metadata)), message)
        assert read.broken_rules == []
        assert expected == {
            one.labels: [(timestamp_ms, bits(value)) for timestamp_ms, value in one.samples] for one in read.series
        }
        assert {metric: metadata[metric] for metric in metrics & metadata.keys()} == {
            metric: known for metric, known in read.metadata.items() if metric in metadata
        }


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
        ([series([("__name__", "up"), ("__replica__", "x")], [1])], "'__replica__' is reserved"),
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


@pytest.mark.parametrize(
    ("symbols", "broken", "rule"),
    [
        (UP_V2, series_v2([3, 4, 1, 2], [1]), "not sorted"),
        (UP_V2, series_v2([1, 2, 3, 4, 3, 2], [1]), "a label occurs twice"),
        (UP_V2, series_v2([3, 4], [1]), "has no __name__"),
        (UP_V2, series_v2([], [1]), "has no __name__"),
        (UP_V2, series_v2([1, 2, 3, 0], [1]), "empty name or value"),
        (UP_V2, series_v2([0, 4, 1, 2], [1]), "empty name or value"),
        ([*UP_V2, "__replica__"], series_v2([1, 2, 5, 4], [1]), "'__replica__' is reserved"),
        (UP_V2, series_v2([1, 2, 3], [1]), "TimeSeries 1: a label has a name and no value"),
        (UP_V2, series_v2([1, 5], [1]), "TimeSeries 1: there is no symbol 5"),
        (UP_V2, series_v2([1, 2], [1], v2.Metadata(type="METRIC_TYPE_GAUGE", help_ref=5)), "there is no symbol 5"),
        (UP_V2, series_v2([1, 2], [1], v2.Metadata(type="METRIC_TYPE_GAUGE", unit_ref=6)), "there is no symbol 6"),
        (UP_V2, series_v2([1, 2], [1], v2.Metadata()), "its metadata has no type"),
        (UP_V2, series_v2([1, 2], [1], v2.Metadata.FromString(b"\x08\x63")), "the type 99, which there is not"),
        (UP_V2, series_v2([1, 2], []), "no samples"),
        (UP_V2, series_v2([1, 2], [2, 1]), "a sample of 1 ms follows one of 2 ms"),
        (UP_V2, series_v2([1, 2], [1, 3, 3]), "a sample of 3 ms follows one of 3 ms"),
        (UP_V2, series_v2([1, 4], [9]), "x{} has two TimeSeries"),
    ],
)
def test_every_rule_that_is_broken_in_version_2_is_named_and_the_rest_is_read(
    symbols: list[str], broken: v2.TimeSeries, rule: str
) -> None:
    good = series_v2([1, 4], [1])
    body = packed_v2(symbols, good, broken, series_v2([1, 3], [7]))
    read = read_request(body, Message.V2)
    assert [one.labels for one in read.series] == [(("__name__", "x"),), (("__name__", "job"),)]
    assert rule in read.broken_rules[0]
    assert len(read.broken_rules) == 1
    assert read.sample_count == 2 + len(broken.samples)
    assert set(read.metadata) == {"x", "job"}
    with pytest.raises(InvalidRequestError):
        read_write_request(body, Message.V2)


@pytest.mark.parametrize(
    ("symbols", "rule"),
    [
        ([], "the first symbol is not the empty string"),
        (["__name__", "", "up"], "the first symbol is not the empty string"),
        (["", "__name__", "up", "up"], "a symbol occurs twice"),
        (["", "__name__", "up", ""], "a symbol occurs twice"),
    ],
)
def test_nothing_is_read_with_a_table_of_symbols_that_is_wrong(symbols: list[str], rule: str) -> None:
    with pytest.raises(InvalidRequestError, match=rule):
        read_request(packed_v2(symbols, series_v2([1, 2], [1])), Message.V2)


def test_names_of_version_2_may_be_any_text() -> None:
    symbols = ["", "__name__", "requêtes par zone", "pays d'origine", "€"]
    read = read_request(packed_v2(symbols, series_v2([1, 2, 3, 4], [1])), Message.V2)
    assert [one.labels for one in read.series] == [(("__name__", "requêtes par zone"), ("pays d'origine", "€"))]


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ([MetricMetadata(type=MetricMetadata.GAUGE)], "metadata without a metric"),
        ([MetricMetadata(type=MetricMetadata.GAUGE, metric_family_name="up")] * 2, "up has metadata twice"),
        ([MetricMetadata(metric_family_name="up")], "up: its metadata has no type"),
        ([MetricMetadata.FromString(b"\x08\x63\x12\x02up")], "up: its metadata has the type 99"),
    ],
)
def test_every_rule_that_metadata_of_version_1_breaks_is_named(metadata: list[MetricMetadata], rule: str) -> None:
    body = compress(WriteRequest(timeseries=[series(UP, [1])], metadata=metadata).SerializeToString())
    with pytest.raises(InvalidRequestError, match=rule):
        read_write_request(body)


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


def test_neither_version_is_taken_for_an_empty_one_of_the_other() -> None:
    with pytest.raises(InvalidRequestError, match=r"fields that prometheus\.WriteRequest does not"):
        read_request(packed_v2(UP_V2, series_v2([1, 2], [1])), Message.V1)
    with pytest.raises(InvalidRequestError, match=r"fields that io\.prometheus\.write\.v2\.Request does not"):
        read_request(packed(series(UP, [1])), Message.V2)


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
