from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.remote_write.proto.remote_write_v1_pb2 import TimeSeries
from worker.series import label_block, metric_name, parse_label_block, read_varint, varint

NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,20}", fullmatch=True)
LABELS = st.dictionaries(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,20}", fullmatch=True), st.text(st.characters(exclude_categories=["Cs"]))
)


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**64 - 1, "ff" * 9 + "01")],
)
def test_a_varint_is_encoded_as_protobuf_documents_it(number: int, encoded: str) -> None:
    assert varint(number).hex() == encoded


@given(st.integers(0, 2**70), st.binary(max_size=3), st.binary(max_size=3))
def test_a_varint_is_read_back_from_where_it_stands(number: int, before: bytes, after: bytes) -> None:
    data = before + varint(number) + after
    assert read_varint(data, len(before)) == (number, len(data) - len(after))


def test_a_negative_number_has_no_varint() -> None:
    with pytest.raises(ValueError, match="-1 has no unsigned varint"):
        varint(-1)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff"])
def test_a_varint_that_ends_too_early_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="ends inside a varint"):
        read_varint(data, 0)


@given(NAMES, LABELS)
def test_a_block_is_what_protobuf_reads_as_the_sorted_labels(name: str, labels: dict[str, str]) -> None:
    message = TimeSeries.FromString(label_block(name, labels))
    expected = {"__name__": name} | {label: value for label, value in labels.items() if value}
    assert [(label.name, label.value) for label in message.labels] == sorted(
        expected.items(), key=lambda pair: pair[0].encode()
    )


@given(NAMES, LABELS)
def test_a_block_is_read_back(name: str, labels: dict[str, str]) -> None:
    parsed = parse_label_block(label_block(name, labels))
    assert parsed == {"__name__": name} | {label: value for label, value in labels.items() if value}


@given(NAMES, LABELS)
def test_the_metric_s_name_is_read_from_a_block_wherever_it_stands(name: str, labels: dict[str, str]) -> None:
    assert metric_name(label_block(name, labels)) == name


def test_a_block_without_a_metric_has_no_name() -> None:
    with pytest.raises(ValueError, match="no __name__"):
        metric_name(label_block("up", {"zone": "example.com"}).replace(b"__name__", b"__eman__"))


def test_the_order_in_which_labels_are_given_makes_no_other_series() -> None:
    assert label_block("up", {"b": "2", "A": "1"}) == label_block("up", {"A": "1", "b": "2"})


def test_an_empty_label_is_an_absent_one() -> None:
    assert label_block("up", {"account": ""}) == label_block("up", {})


@pytest.mark.parametrize("name", ["", "1up", "üp", "up down", "up\n"])
def test_a_name_that_is_no_metric_s_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a metric name"):
        label_block(name, {})


@pytest.mark.parametrize("label", ["", "1", "a:b", "a-b", "zöne", "__name__", "__private", "zone\n"])
def test_a_name_that_is_no_label_s_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is not a label name"):
        label_block("up", {label: "x"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: block[:-1],
        lambda block: b"\x12" + block[1:],
        lambda block: block + b"\x0a",
        lambda block: block[:1] + b"\x05" + block[2:],
        # A label of three fields.
        lambda _: bytes.fromhex("0a090a0161120162120163"),
        # A name that is not UTF-8.
        lambda _: bytes.fromhex("0a060a01ff120162"),
    ],
)
def test_what_is_no_block_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"data|field|label|codec"):
        parse_label_block(damage(label_block("up", {"zone": "example.com"})))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_block_or_refused(data: bytes) -> None:
    try:
        parse_label_block(data)
    except ValueError:
        return
    TimeSeries.FromString(data)
