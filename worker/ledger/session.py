"""What a verb of the ledger works with: the connection, the statements, and the numbers of the series.

A session belongs to one thread. Verbs are functions that take it as their first argument; `worker.ledger.ledger` runs
each of them inside one transaction.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeAlias

import apsw

from worker.ledger.packing import SERIES_ID_TYPE, is_series_intact, series_checksum

Value: TypeAlias = int | float | str | bytes | None
"""What a column of SQLite may hold."""

# A label block of 150 bytes with its two dictionary entries takes about 400 bytes: 100,000 of them stay at 40 MB.
# More series than that work too; the ones remembered first are then looked up in the file again.
_MAX_CACHED_SERIES = 100_000

# The numbers of a bucket's series, packed, take 12 bytes a series with the tuple they belong to: 6 MB.
_MAX_CACHED_PACKED = 500_000


def _load_queries() -> MappingProxyType[str, str]:
    """The statements of queries.sql by the name in the `-- name:` line above each."""
    text = resources.files("worker.ledger").joinpath("queries.sql").read_text(encoding="utf-8")
    queries: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, statement = block.partition("\n")
        queries[name.strip()] = statement.strip()
    return MappingProxyType(queries)


QUERIES = _load_queries()


class SeriesIndex:
    """Label blocks to numbers and back, remembered within bounds."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._id_of: dict[bytes, int] = {}
        self._block_of: dict[int, bytes] = {}
        self._packed: dict[tuple[bytes, ...], bytes] = {}
        self._packed_series = 0

    def packed_ids(self, blocks: tuple[bytes, ...]) -> bytes:
        """The numbers of these label blocks as a bucket's row has them.

        Remembered for all of them together: window after window of a zone tends to have the same series.
        """
        packed = self._packed.get(blocks)
        if packed is None:
            packed = self.ids(blocks).tobytes()
            self._packed_series += len(blocks)
            if self._packed_series > _MAX_CACHED_PACKED:
                self._packed.clear()
                self._packed_series = len(blocks)
            self._packed[blocks] = packed
        return packed

    def ids(self, blocks: Sequence[bytes]) -> "array[int]":
        """The numbers of these label blocks, in order; a block that was never seen gets one."""
        known = self._id_of
        try:
            return array(SERIES_ID_TYPE, list(map(known.__getitem__, blocks)))
        except KeyError:
            return array(SERIES_ID_TYPE, [known.get(block) or self._look_up_or_add(block) for block in blocks])

    def blocks(self, ids: Iterable[int]) -> dict[int, bytes] | None:
        """The label blocks of these numbers; None if the row of one of them is damaged."""
        known = self._block_of
        blocks: dict[int, bytes] = {}
        for number in ids:
            block = known.get(number) or self._look_up(number)
            if block is None:
                return None
            blocks[number] = block
        return blocks

    def forget(self) -> None:
        """Drop what is remembered: after a rollback some of it is not in the file."""
        self._id_of.clear()
        self._block_of.clear()
        self._packed.clear()
        self._packed_series = 0

    def _look_up_or_add(self, block: bytes) -> int:
        row = self._connection.execute(QUERIES["series_by_labels"], (block,)).fetchone()
        if row is None:
            number: int = self._connection.execute(QUERIES["next_series_id"]).get
            self._connection.execute(QUERIES["add_series"], (number, block, series_checksum(number, block)))
        else:
            number, seal = row
            if not is_series_intact(seal, number, block):
                message = f"the row of series {number} does not match its checksum"
                raise apsw.CorruptError(message)
        self._remember(number, block)
        return number

    def _look_up(self, number: int) -> bytes | None:
        row = self._connection.execute(QUERIES["series_by_id"], (number,)).fetchone()
        if row is None:
            return None
        block: bytes
        block, seal = row
        if not is_series_intact(seal, number, block):
            return None
        self._remember(number, block)
        return block

    def _remember(self, number: int, block: bytes) -> None:
        if len(self._id_of) >= _MAX_CACHED_SERIES:
            for old in list(islice(self._id_of, _MAX_CACHED_SERIES // 4)):
                self._block_of.pop(self._id_of.pop(old), None)
        self._id_of[block] = number
        self._block_of[number] = block


class Session:
    """One connection with its series."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.series = SeriesIndex(connection)
        self._numbers: dict[tuple[str, str], int] = {}
        self.chapters: set[tuple[int, int, int]] = set()
        """Rows that the table chapter is known to have. Retention deletes some, and then this is to be emptied."""

    def rows(self, query: str, **bindings: Value) -> apsw.Cursor:
        """Run a named statement and iterate over its rows."""
        return self._connection.execute(QUERIES[query], bindings)

    def row(self, query: str, **bindings: Value) -> tuple[Any, ...]:
        """The first row of a named statement that cannot but have one, on a file that is sound."""
        row: tuple[Any, ...] | None = self._connection.execute(QUERIES[query], bindings).fetchone()
        if row is None:
            message = f"a row that has to be there is not found ({query})"
            raise apsw.CorruptError(message)
        return row

    def value(self, query: str, **bindings: Value) -> Value:
        """The only value of a named statement, or None when it has no row."""
        value: Value = self._connection.execute(QUERIES[query], bindings).get
        return value

    def number(self, query: str, **bindings: Value) -> int:
        """The only value of a named statement that yields an integer; no row and NULL count as 0."""
        value = self.value(query, **bindings)
        return value if isinstance(value, int) else 0

    def number_of(self, query: str, name: str) -> int:
        """The number that a named statement has for a name; 0 where there is none. Once there is, it never changes."""
        known = self._numbers.get((query, name))
        if known is None:
            known = self._connection.execute(QUERIES[query], (name,)).get
            if known is None:
                return 0
            self._numbers[query, name] = known
        return known

    def forget(self) -> None:
        """Drop what is remembered: after a rollback some of it is not in the file."""
        self._numbers.clear()
        self.chapters.clear()
        self.series.forget()

    def many(self, query: str, rows: Iterable[Mapping[str, Value] | Sequence[Value]]) -> int:
        """Run a named statement for every row; return how many rows of tables they changed, with those of cascades.

        At a third of the price of `change` for each; and without RETURNING, for which SQLite keeps a copy of every page
        that a statement changes.
        """
        before = self._connection.total_changes()
        self._connection.executemany(QUERIES[query], rows)
        return self._connection.total_changes() - before

    def change(self, query: str, **bindings: Value) -> int:
        """Run a named statement; return how many rows of its table it changed, without those of cascades."""
        self._connection.execute(QUERIES[query], bindings)
        return self._connection.changes()

    def pragma(self, name: str, value: int | None = None) -> int:
        """Set or read a pragma that answers a number."""
        answer = self._connection.pragma(name) if value is None else self._connection.pragma(name, value)
        return answer if isinstance(answer, int) else 0
