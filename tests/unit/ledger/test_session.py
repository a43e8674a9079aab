from array import array
from collections.abc import Iterator

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.ledger import session
from worker.ledger.migrations import create
from worker.ledger.packing import checksum, is_intact, is_series_intact, values_by_series
from worker.ledger.session import SeriesIndex


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    with apsw.Connection(":memory:") as made:
        create(made)
        yield made


def block(number: int) -> bytes:
    return b"labels of series %d" % number


def test_a_series_keeps_its_number(connection: apsw.Connection) -> None:
    index = SeriesIndex(connection)

    assert list(index.ids([block(7), block(3)])) == [1, 2]
    assert list(index.ids([block(3), block(9), block(7)])) == [2, 3, 1]
    assert list(SeriesIndex(connection).ids([block(9)])) == [3]


def test_more_series_than_are_remembered_work_too(connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_CACHED_SERIES", 10)
    index = SeriesIndex(connection)
    blocks = [block(number) for number in range(35)]

    for _ in range(3):
        ids = index.ids(blocks)
        assert list(ids) == list(range(1, 36))
        assert index.blocks(ids) == dict(zip(ids, blocks, strict=True))

    assert len(index._id_of) <= 10
    assert len(index._id_of) == len(index._block_of)


def test_series_that_come_together_are_remembered_together_and_within_bounds(
    connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_MAX_CACHED_PACKED", 10)
    index = SeriesIndex(connection)
    sets = [tuple(block(number) for number in range(first, first + 4)) for first in range(20)]

    for _ in range(3):
        for first, blocks in enumerate(sets):
            assert array("I", index.packed_ids(blocks)).tolist() == list(range(first + 1, first + 5))
            assert array("I", index.packed_ids(blocks[::-1])).tolist() == list(range(first + 4, first, -1))
            assert sum(map(len, index._packed)) == index._packed_series <= 10


def test_a_series_whose_row_is_damaged_is_neither_read_nor_written_under(connection: apsw.Connection) -> None:
    SeriesIndex(connection).ids([block(1), block(2)])
    connection.execute("UPDATE series SET checksum = checksum + 1 WHERE id = 2")
    index = SeriesIndex(connection)

    assert index.blocks([1]) == {1: block(1)}
    assert index.blocks([1, 2]) is None
    with pytest.raises(apsw.CorruptError, match="series 2"):
        index.ids([block(1), block(2)])


def test_the_numbers_of_series_stay_within_their_four_bytes(connection: apsw.Connection) -> None:
    connection.execute("INSERT INTO series (id, labels, checksum) VALUES (4294967295, x'01', 0)")

    with pytest.raises(apsw.ConstraintError):
        SeriesIndex(connection).ids([block(1)])


ROW = {"dataset_id": 1, "scope_id": 2, "width_seconds": 3600, "start": 7200, "timestamp_ms": 7_200_000}


@given(
    series_ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
    flip=st.integers(0, 2**20),
)
def test_every_flipped_bit_of_a_bucket_is_noticed(series_ids: list[int], flip: int) -> None:
    ids = array("I", series_ids).tobytes()
    values = array("d", [float(number) for number in series_ids]).tobytes()
    seal = checksum(**ROW, series_ids=ids, values=values)
    assert is_intact(seal, **ROW, series_ids=ids, values=values)

    damaged = bytearray(ids + values)
    damaged[flip % len(damaged)] ^= 1 << flip % 8
    assert not is_intact(seal, **ROW, series_ids=bytes(damaged[: len(ids)]), values=bytes(damaged[len(ids) :]))
    for name, value in ROW.items():
        assert not is_intact(seal, **{**ROW, name: value ^ 1 << flip % 60}, series_ids=ids, values=values)
    assert not is_intact(seal ^ 1 << flip % 32, **ROW, series_ids=ids, values=values)


@pytest.mark.parametrize("value", [None, "text", 3, 2.5])
def test_a_column_that_became_something_else_is_noticed(value: object) -> None:
    seal = checksum(**ROW, series_ids=b"\0\0\0\1", values=bytes(8))

    assert not is_intact(value, **ROW, series_ids=b"\0\0\0\1", values=bytes(8))  # type: ignore[arg-type] # damage
    assert not is_intact(seal, **ROW, series_ids=value, values=bytes(8))  # type: ignore[arg-type] # damage
    assert not is_intact(seal, **{**ROW, "start": value}, series_ids=b"\0\0\0\1", values=bytes(8))  # type: ignore[arg-type] # damage


@pytest.mark.parametrize(("series_id", "labels"), [(1, None), (1, "text"), (1, 2.5), (1.5, b""), (None, b"")])
def test_a_column_of_a_series_that_became_something_else_is_noticed(series_id: object, labels: object) -> None:
    assert not is_series_intact(0, series_id, labels)  # type: ignore[arg-type] # damage


def test_samples_that_are_cut_off_are_noticed_even_with_a_fitting_checksum() -> None:
    seal = checksum(**ROW, series_ids=b"\0\0\0\1", values=bytes(7))

    assert not is_intact(seal, **ROW, series_ids=b"\0\0\0\1", values=bytes(7))


def test_values_are_told_by_their_series() -> None:
    ids, values = array("I", [5, 3]).tobytes(), array("d", [1.0, 2.0]).tobytes()

    assert values_by_series(ids, values) == {5: values[:8], 3: values[8:]}
