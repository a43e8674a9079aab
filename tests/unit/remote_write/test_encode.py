import struct
from array import array
from collections.abc import Mapping

import pytest
import snappy  # type: ignore[import-untyped]  # ships no types
from hypothesis import given, settings

from tests.unit.remote_write.batches import METADATA, START_MS, batch, batches, bucket, samples_of
from worker.buckets import Batch
from worker.config import Message
from worker.remote_write.encode import compress, write_request
from worker.remote_write.encode_v2 import _Frames
from worker.remote_write.proto import remote_write_v1_pb2 as v1
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.series import MetricMetadata, label_block, parse_label_block

METADATA_OF_NONE: Mapping[str, MetricMetadata] = {}
POSITIVE_ZERO = bytes(8)
HELPFUL = MetricMetadata("What was asked for.", "requests")

Labels = tuple[tuple[str, str], ...]
Metadata = Mapping[str, MetricMetadata]

# Time says nothing on a busy machine.
without_deadline = settings(deadline=None)


def parsed_v1(body: bytes) -> v1.WriteRequest:
    request = v1.WriteRequest()
    request.ParseFromString(body)
    return request


def parsed_v2(body: bytes) -> v2.Request:
    request = v2.Request()
    request.ParseFromString(body)
    return request


def expected_samples(batch: Batch) -> dict[Labels, list[tuple[int, float]]]:
    return {
        tuple(parse_label_block(block).items()): [(at, struct.unpack("<d", value)[0]) for at, value in samples]
        for block, samples in samples_of(batch).items()
    }


def message_v1(batch: Batch, metadata: Metadata, order: list[Labels]) -> v1.WriteRequest:
    """The request made of protobuf's own objects, its series in that order."""
    samples = expected_samples(batch)
    metrics = dict.fromkeys(dict(labels)["__name__"] for labels in order)
    return v1.WriteRequest(
        timeseries=[
            v1.TimeSeries(
                labels=[v1.Label(name=name, value=value) for name, value in labels],
                samples=[v1.Sample(value=value, timestamp=at) for at, value in samples.pop(labels)],
            )
            for labels in order
        ],
        metadata=[
            v1.MetricMetadata(
                type=v1.MetricMetadata.GAUGE,
                metric_family_name=metric,
                help=metadata[metric].help,
                unit=metadata[metric].unit,
            )
            for metric in metrics
            if metric in metadata
        ],
    )


def message_v2(batch: Batch, metadata: Metadata, order: list[Labels], symbols: list[str]) -> v2.Request:
    """The request made of protobuf's own objects, its series and symbols in that order."""
    samples = expected_samples(batch)
    reference = {symbol: index for index, symbol in enumerate(symbols)}
    series = []
    for labels in order:
        known = metadata.get(dict(labels)["__name__"], MetricMetadata("", ""))
        described = v2.Metadata(
            type=v2.Metadata.METRIC_TYPE_GAUGE, help_ref=reference[known.help], unit_ref=reference[known.unit]
        )
        series.append(
            v2.TimeSeries(
                labels_refs=[reference[text] for label in labels for text in label],
                samples=[v2.Sample(value=value, timestamp=at) for at, value in samples.pop(labels)],
                metadata=described,
            )
        )
    return v2.Request(symbols=symbols, timeseries=series)


def series_v1(request: v1.WriteRequest) -> list[Labels]:
    return [tuple((label.name, label.value) for label in series.labels) for series in request.timeseries]


def series_v2(request: v2.Request) -> list[Labels]:
    return [
        tuple(
            (request.symbols[name], request.symbols[value])
            for name, value in zip(series.labels_refs[::2], series.labels_refs[1::2], strict=True)
        )
        for series in request.timeseries
    ]


def has_a_zero(batch: Batch) -> bool:
    """Only the value 0.0 is written differently: protobuf leaves it out."""
    return any(value == POSITIVE_ZERO for samples in samples_of(batch).values() for _, value in samples)


@without_deadline
@given(batches(), METADATA)
def test_version_1_is_byte_for_byte_what_protobuf_makes_of_the_same_message(batch: Batch, metadata: Metadata) -> None:
    body = write_request(batch, Message.V1, metadata)
    request = parsed_v1(body)
    order = series_v1(request)
    assert len(order) == len(expected_samples(batch))
    expected = message_v1(batch, metadata, order).SerializeToString()
    assert expected == request.SerializeToString()
    assert has_a_zero(batch) or expected == body


@without_deadline
@given(batches(), METADATA)
def test_version_2_is_byte_for_byte_what_protobuf_makes_of_the_same_message(batch: Batch, metadata: Metadata) -> None:
    body = write_request(batch, Message.V2, metadata)
    request = parsed_v2(body)
    order = series_v2(request)
    assert len(order) == len(expected_samples(batch))
    expected = message_v2(batch, metadata, order, list(request.symbols)).SerializeToString()
    assert expected == request.SerializeToString()
    assert has_a_zero(batch) or expected == body


@without_deadline
@given(batches(), METADATA)
def test_the_symbols_are_the_strings_of_the_request_each_once_behind_an_empty_one(
    batch: Batch, metadata: Metadata
) -> None:
    order = expected_samples(batch)
    described = [known for labels in order if (known := metadata.get(dict(labels)["__name__"]))]
    strings = {text for labels in order for label in labels for text in label}
    strings |= {text for known in described for text in (known.help, known.unit)}
    symbols = list(parsed_v2(write_request(batch, Message.V2, metadata)).symbols)
    assert symbols[0] == ""
    assert sorted(strings | {""}) == sorted(symbols)


@without_deadline
@given(batches(), METADATA)
def test_the_same_batch_always_gives_the_same_bytes(given_batch: Batch, metadata: Metadata) -> None:
    again = Batch(tuple(given_batch.buckets), dict(given_batch.series))
    for message in Message:
        assert write_request(given_batch, message, metadata) == write_request(again, message, dict(metadata))


def test_version_1_without_metadata_is_the_default() -> None:
    one = batch(bucket(1, START_MS, [1], [1.0]))
    assert write_request(one) == write_request(one, Message.V1, {})
    assert not parsed_v1(write_request(one)).metadata


@pytest.mark.parametrize("message", Message)
def test_many_windows_of_a_scope_become_one_time_series_per_series(message: Message) -> None:
    windows = [bucket(w, START_MS + 60_000 * w, [5, 3, 9], [w, w + 0.5, -w]) for w in range(50)]
    body = write_request(batch(*windows), message)
    series = parsed_v1(body).timeseries if message is Message.V1 else parsed_v2(body).timeseries
    assert [len(one.samples) for one in series] == [50, 50, 50]
    assert [float(w) for w in range(50)] == [sample.value for sample in series[0].samples]
    assert [w + 0.5 for w in range(50)] == [sample.value for sample in series[1].samples]
    assert [START_MS + 60_000 * w for w in range(50)] == [sample.timestamp for sample in series[2].samples]


@pytest.mark.parametrize("count", [1, 127, 128, 16_383, 16_384, 20_000])
def test_references_may_take_several_bytes(count: int) -> None:
    request = parsed_v2(write_request(batch(bucket(1, START_MS, range(count), [1.0] * count)), Message.V2))
    assert [f"zone-{number}.example" for number in range(count)] == [dict(one)["zone"] for one in series_v2(request)]
    assert len(request.symbols) == len({"", "__name__", "requests", "zone"}) + count


def test_a_string_is_one_symbol_wherever_it_stands() -> None:
    one = Batch((bucket(1, START_MS, [1], [1.0]),), {1: label_block("unit", {"help": "unit", "unit": "help"})})
    request = parsed_v2(write_request(one, Message.V2, {"unit": MetricMetadata(help="help", unit="unit")}))
    assert sorted(request.symbols) == ["", "__name__", "help", "unit"]


def test_every_series_of_version_2_is_a_gauge_with_the_help_and_unit_of_its_metric() -> None:
    series = {1: label_block("known", {}), 2: label_block("unknown", {}), 3: label_block("known", {"zone": "x"})}
    one = Batch((bucket(1, START_MS, [1, 2, 3], [1.0, 2.0, 3.0]),), series)
    request = parsed_v2(write_request(one, Message.V2, {"known": HELPFUL, "elsewhere": HELPFUL}))
    assert [
        (each.metadata.type, request.symbols[each.metadata.help_ref], request.symbols[each.metadata.unit_ref])
        for each in request.timeseries
    ] == [(v2.Metadata.METRIC_TYPE_GAUGE, HELPFUL.help, HELPFUL.unit), (2, "", ""), (2, HELPFUL.help, HELPFUL.unit)]


def test_requests_with_the_same_series_differ_in_samples_and_metadata_alone() -> None:
    one, other = (batch(bucket(w, START_MS + 60_000 * w, [5, 3], [w, -w])) for w in (1, 2))
    bodies = [
        write_request(given, Message.V2, metadata)
        for given, metadata in ((one, {}), (other, {}), (other, {"requests": HELPFUL}), (other, {}), (one, {}))
    ]
    assert bodies[:2] == bodies[:2:-1]
    assert len(set(bodies)) == 3
    assert [series_v2(parsed_v2(body)) for body in bodies] == [series_v2(parsed_v2(bodies[0]))] * 5
    assert HELPFUL.help in parsed_v2(bodies[2]).symbols


def test_what_is_remembered_of_requests_is_bounded() -> None:
    frames = _Frames(10)
    requests = [tuple(label_block("m", {"n": str(n)}) for n in range(first, first + 4)) for first in range(9)]
    for _ in range(2):
        for blocks in requests:
            assert frames.around(blocks, METADATA_OF_NONE) is frames.around(blocks, METADATA_OF_NONE)
            assert sum(map(len, frames._frames)) == frames._series <= 10


def test_version_1_tells_once_of_each_metric_that_it_has_samples_and_metadata_of() -> None:
    series = {1: label_block("known", {}), 2: label_block("unknown", {}), 3: label_block("known", {"zone": "x"})}
    one = Batch((bucket(1, START_MS, [1, 2, 3], [1.0, 2.0, 3.0]),), series)
    request = parsed_v1(write_request(one, Message.V1, {"known": HELPFUL, "elsewhere": HELPFUL}))
    assert [(each.type, each.metric_family_name, each.help, each.unit) for each in request.metadata] == [
        (v1.MetricMetadata.GAUGE, "known", HELPFUL.help, HELPFUL.unit)
    ]


def test_an_empty_batch_is_an_empty_request() -> None:
    for empty in (Batch((), {}), Batch((bucket(1, START_MS, [], []),), {})):
        assert write_request(empty, Message.V1, {"known": HELPFUL}) == b""
        # The table of symbols must be there, with the empty string first.
        assert write_request(empty, Message.V2, {"known": HELPFUL}) == b"\x22\x00"


def test_neither_version_reads_as_the_other() -> None:
    one = batch(bucket(1, START_MS, [1], [1.0]))
    assert not parsed_v1(write_request(one, Message.V2)).timeseries
    assert not parsed_v2(write_request(one, Message.V1)).timeseries


@pytest.mark.parametrize("message", Message)
def test_the_body_is_compressed_in_the_block_format(message: Message) -> None:
    body = write_request(batch(bucket(1, START_MS, range(100), array("d", bytes(800)))), message)
    compressed = compress(body)
    assert body == snappy.uncompress(compressed)
    assert len(compressed) < len(body)
    # The framed format starts with a chunk that says sNaPpY; the block format with the length.
    assert b"sNaPpY" not in compressed
