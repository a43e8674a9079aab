import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.remote_write.batches import series_of_any_kind
from worker.remote_write.labels import Label, LabelMemory, SeriesLabels
from worker.series import label_block, parse_label_block


class Echo(dict[Label, bytes]):
    """Has every label's own text for it."""

    def __missing__(self, label: Label) -> bytes:
        return f"{label.name}={label.value}".encode()


def texts(labels: SeriesLabels) -> list[str]:
    return [text.decode() for text in labels.pick(Echo())]


def block(number: int) -> bytes:
    return label_block("requests", {"zone": f"{number:04}"})


@settings(deadline=None)  # time says nothing on a busy machine
@given(series_of_any_kind(), st.integers(1, 500))
def test_a_block_is_taken_apart_into_its_labels_in_their_order(series: dict[int, bytes], max_bytes: int) -> None:
    memory = LabelMemory(max_bytes)
    for one in (*series.values(), *series.values()):
        labels = parse_label_block(one)
        assert memory[one].metric == labels["__name__"]
        assert [f"{name}={value}" for name, value in labels.items()] == texts(memory[one])


def test_a_series_of_one_label_is_taken_apart_too() -> None:
    assert texts(LabelMemory(100)[label_block("up", {})]) == ["__name__=up"]


def test_a_series_without_a_name_has_no_metric() -> None:
    nameless = label_block("up", {"zone": "x"}).removeprefix(label_block("up", {}))
    assert LabelMemory(100)[nameless].metric == ""
    assert texts(LabelMemory(100)[nameless]) == ["zone=x"]


def test_an_empty_block_has_no_labels() -> None:
    assert LabelMemory(100)[b""].metric == ""
    assert texts(LabelMemory(100)[b""]) == []


def test_series_share_their_labels() -> None:
    memory = LabelMemory(1000)
    counts: dict[Label, bytes] = {}

    class Counting(dict[Label, bytes]):
        def __missing__(self, label: Label) -> bytes:
            counts[label] = self[label] = b""
            return b""

    counting = Counting()
    for number in range(5):
        memory[block(number)].pick(counting)
    assert len(counts) == 1 + 5


def test_no_more_is_remembered_than_fits() -> None:
    size = len(block(0))
    memory = LabelMemory(10 * size)
    for number in range(35):
        assert texts(memory[block(number)])[1] == f"zone={number:04}"
        assert sum(map(len, memory)) <= 10 * size
    assert set(memory) == {block(number) for number in range(30, 35)}


def test_what_is_remembered_is_not_taken_apart_again() -> None:
    memory = LabelMemory(1000)
    assert memory[block(1)] is memory[block(1)]


def test_what_is_no_label_block_is_refused() -> None:
    for damaged in (block(1)[:-1], b"\x12" + block(1)[1:], b"\x0a", b"\x0a\xff", b"\x0a\x00"):
        with pytest.raises(ValueError, match=r"."):
            LabelMemory(1000)[damaged]
