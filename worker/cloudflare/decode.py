"""Decoding: from the body of an answer to the samples of every window that was asked for.

Lenient about what it does not use, strict about what it does: every zone's part either becomes samples for all windows
asked, or a failure that says what is wrong with it. A window without a row is a window without traffic: its totals are
0 and its breakdowns are empty. Knows nothing of HTTP and of asking again.

Cloudflare leaves the value of some breakdown keys empty (a country that could not be told, for example). A label with
an empty value is no label at all for Prometheus, and the sample would take the identity of another series; so an empty
value is spelt `unknown`, and where both occur in one row their numbers are summed.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, assert_never

import msgspec

from worker.cloudflare.catalogue import Breakdown, Dataset, TimeType
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.query import WindowsQuery
from worker.cloudflare.zone import Zone
from worker.series import label_block

UNKNOWN = "unknown"
"""The label value that stands for an empty one."""

# About 250 bytes each with its place in a dict: 100,000 blocks are 25 MB and hold a thousand zones of a hundred series.
MAX_CACHED_BLOCKS = 100_000


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one window of one zone.

    series: one label block (`worker.series`) per sample; distinct.
    values: one float64 per series, in the same order. An integer over 2**53 is the float64 nearest to it.
    """

    series: tuple[bytes, ...]
    values: "array[float]"


Decoded = Mapping[int, Samples] | ApiFailure
"""The samples of every window asked, by its start; or why there are none."""


class Decoder:
    """Decodes answers; keeps the label blocks of recent zones, so that a series is not serialized for every window."""

    def __init__(self, max_cached_blocks: int = MAX_CACHED_BLOCKS) -> None:
        self._max_cached_blocks = max_cached_blocks
        self._blocks: dict[tuple[Dataset, Zone], _ZoneBlocks] = {}  # least recently used first
        self._cached = 0

    def decode(self, body: bytes, query: WindowsQuery) -> dict[str, Decoded]:
        """What the answer to `query` says about each of its zones, by tag."""
        try:
            entries = _ANSWER.decode(body).data.viewer.zones
        except (ValueError, RecursionError) as error:
            failure = _malformed(f"the answer cannot be read: {error}")
            return {zone.tag: failure for zone in query.zones}
        rows_of: dict[str, msgspec.Raw | ApiFailure] = {}
        absent = ApiFailure(
            ErrorKind.MISSING_ZONE,
            "the answer leaves the zone out without an error: the token may lack permission to read its analytics",
        )
        for entry in entries:
            try:
                zone = _ZONE.decode(entry)
            except (ValueError, RecursionError) as error:
                absent = _malformed(f"the answer has an entry that belongs to no zone: {error}")
                continue
            twice = zone.zoneTag in rows_of
            rows_of[zone.zoneTag] = _malformed("the answer has the zone twice") if twice else zone.rows
        return {zone.tag: self._zone(rows_of.get(zone.tag, absent), zone, query) for zone in query.zones}

    def _zone(self, rows: msgspec.Raw | ApiFailure, zone: Zone, query: WindowsQuery) -> Decoded:
        if isinstance(rows, ApiFailure):
            return rows
        shape = _shape(query.dataset, query.grain.time)
        try:
            decoded = shape.rows.decode(rows)
        except (ValueError, RecursionError) as error:
            return _malformed(f"a row is not as it should be: {error}")
        if len(decoded) >= query.limit:
            text = f"{len(decoded)} rows for {len(query.starts)} windows: rows may have been cut off"
            return ApiFailure(ErrorKind.TRUNCATED, text)
        blocks = self._take_blocks(query.dataset, zone)
        samples = _windows(decoded, shape, blocks, query)
        self._put_blocks(query.dataset, zone, blocks)
        return samples

    def _take_blocks(self, dataset: Dataset, zone: Zone) -> "_ZoneBlocks":
        known = self._blocks.pop((dataset, zone), None)
        if known is None:
            return _ZoneBlocks(dataset, zone)
        self._cached -= known.count()
        return known

    def _put_blocks(self, dataset: Dataset, zone: Zone, blocks: "_ZoneBlocks") -> None:
        self._blocks[dataset, zone] = blocks
        self._cached += blocks.count()
        while self._cached > self._max_cached_blocks:
            least_recent = next(iter(self._blocks))
            self._cached -= self._blocks.pop(least_recent).count()


class _ZoneBlocks:
    """The label blocks of one zone, and the way from a row to samples that needs them."""

    def __init__(self, dataset: Dataset, zone: Zone) -> None:
        self._labels = zone.labels()
        self._totals = tuple((total.path[0], total.path[1]) for total in dataset.totals)
        self._total_blocks = tuple(label_block(total.metric.name, self._labels) for total in dataset.totals)
        # Per breakdown: where it is in a row, how to read an element, and the blocks of each label value seen.
        self._breakdowns: list[tuple[Breakdown, attrgetter[tuple[Any, ...]], dict[str | int, tuple[bytes, ...]]]] = [
            (item, attrgetter(item.key, *(leaf for leaf, _ in item.values)), {}) for item in dataset.breakdowns
        ]

    def count(self) -> int:
        """How many blocks it holds."""
        maps = sum(len(blocks) * len(breakdown.values) for breakdown, _, blocks in self._breakdowns)
        return len(self._total_blocks) + maps

    def no_traffic(self) -> Samples:
        """The samples of a window without a row."""
        return Samples(self._total_blocks, array("d", bytes(8 * len(self._total_blocks))))

    def samples(self, row: Any) -> Samples:
        """The samples of a row; an object that is null has the totals 0 and no breakdowns."""
        series = list(self._total_blocks)
        values = array("d")
        for name, leaf in self._totals:
            holder = getattr(row, name)
            values.append(0.0 if holder is None else getattr(holder, leaf))
        for breakdown, read, known in self._breakdowns:
            holder = getattr(row, breakdown.path[0])
            if holder is None:
                continue
            for element in getattr(holder, breakdown.path[1]):
                label, *numbers = read(element)
                blocks = known.get(label)
                if blocks is None:
                    blocks = known[label] = self._serialized(breakdown, str(label) or UNKNOWN)
                series += blocks
                values.extend(numbers)
        if len(set(series)) != len(series):
            return _summed(series, values)
        return Samples(tuple(series), values)

    def _serialized(self, breakdown: Breakdown, value: str) -> tuple[bytes, ...]:
        labels = {**self._labels, breakdown.label: value}
        return tuple(label_block(metric.name, labels) for _, metric in breakdown.values)


def _windows(rows: list[Any], shape: "_Shape", blocks: _ZoneBlocks, query: WindowsQuery) -> Decoded:
    """The rows of one zone as samples of every window asked."""
    samples: dict[int, Samples] = {}
    for row in rows:
        start = shape.start(row.dimensions.start)
        if start not in query.starts:
            return _malformed(f"a row for {row.dimensions.start}, which is no window that was asked for")
        if start in samples:
            return _malformed(f"two rows for the window {row.dimensions.start}")
        samples[start] = blocks.samples(row)
    return {start: samples.get(start) or blocks.no_traffic() for start in query.starts}


def _summed(series: list[bytes], values: "array[float]") -> Samples:
    """Samples whose series repeat, made distinct; only breakdowns can repeat, and all of them are additive."""
    sums: dict[bytes, float] = {}
    for block, value in zip(series, values, strict=True):
        sums[block] = sums.get(block, 0.0) + value
    return Samples(tuple(sums), array("d", sums.values()))


# --- the shape of an answer ------------------------------------------------------------------------------------------


class _Viewer(msgspec.Struct):
    zones: list[msgspec.Raw]


class _Data(msgspec.Struct):
    viewer: _Viewer


class _Answer(msgspec.Struct):
    data: _Data


class _ZoneRows(msgspec.Struct):
    zoneTag: str  # noqa: N815 - the schema's name
    rows: msgspec.Raw


_ANSWER = msgspec.json.Decoder(_Answer)
_ZONE = msgspec.json.Decoder(_ZoneRows)

# The schema's uint64 and float64. Negative, boolean, textual, infinite and missing numbers are all refused.
_Number = Annotated[float, msgspec.Meta(ge=0)]
_Key = str | Annotated[int, msgspec.Meta(ge=0)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class _Shape:
    """The rows of one dataset: their decoder, and what kind of time they start at."""

    rows: msgspec.json.Decoder[list[Any]]
    time: TimeType

    def start(self, moment: Any) -> int:
        """Unix seconds of a row's window; -1 for a moment between two seconds, which starts no window."""
        match self.time:
            case TimeType.TIME:
                return -1 if moment.microsecond else int(moment.timestamp())
            case TimeType.DATE:
                return int(datetime.combine(moment, datetime.min.time(), UTC).timestamp())
            case _:
                assert_never(self.time)


@lru_cache(maxsize=256)
def _shape(dataset: Dataset, time: TimeType) -> _Shape:
    objects: dict[str, list[tuple[str, Any]]] = {}
    for total in dataset.totals:
        objects.setdefault(total.path[0], []).append((total.path[1], _Number))
    for item in dataset.breakdowns:
        element = msgspec.defstruct("Element", [(item.key, _Key), *((leaf, _Number) for leaf, _ in item.values)])
        objects.setdefault(item.path[0], []).append((item.path[1], list[element]))  # type: ignore[valid-type]  # made at run time
    start = _Time if time is TimeType.TIME else date
    fields: list[tuple[str, Any]] = [("dimensions", msgspec.defstruct("Dimensions", [("start", start)]))]
    fields += [(name, msgspec.defstruct(name, leaves) | None) for name, leaves in objects.items()]
    return _Shape(msgspec.json.Decoder(list[msgspec.defstruct("Row", fields)]), time)  # type: ignore[misc]  # made at run time


def _malformed(text: str) -> ApiFailure:
    return ApiFailure(ErrorKind.MALFORMED, one_line(text))
