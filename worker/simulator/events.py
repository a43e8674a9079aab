"""What happened at every node but the rollups: the events that its rows are groups of, and their truth.

Owns the invention of events: which kinds of them a scope has at a node (the values of all dimensions), how many of each
come when, and what every number of a row is made of. All of it follows from the fleet's seed, so that a test computes
what a worker must have seen (`Events.truth`) without asking the API that the worker asked. Knows no clock, no GraphQL.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.simulator import rollups
from worker.simulator.filters import holds
from worker.simulator.fleet import HOUR_SECONDS, Fleet
from worker.simulator.nodes import SAMPLE_INTERVAL, ZONE_TAG, Node, NodeKey, Path, condition
from worker.simulator.pools import pool
from worker.simulator.scalars import Value
from worker.simulator.settling import Settling
from worker.simulator.traffic import MINUTE_SECONDS, Rhythm, has_hours

Number = int | float

# An hour's events are 10 of 130 bytes on average, 120 in the first scope: some 10 MB.
_REMEMBERED_HOURS = 4_096
# 1,000 zones at eight nodes; of each, some 2 kB of values: 16 MB.
_REMEMBERED_STREAMS = 8_192


class Measure(NamedTuple):
    """How many kinds of events there are, how many events an hour has, and the most that one of them counts."""

    kinds: int
    events: int
    most: int


# Few, so that a month of 30 zones with everything is answered within a test.
_MEASURES = {
    Rhythm.BUSY: Measure(40, 24, 600),
    Rhythm.STEADY: Measure(16, 6, 90),
    Rhythm.SPARSE: Measure(12, 3, 3),
    Rhythm.OFFICE: Measure(16, 6, 60),
    # Floats add up exactly as long as nothing passes 2^53 = 9.0e15: 8e3 x 6 events x 24 hours x 65,536 = 7.5e10 a day.
    Rhythm.VAST: Measure(16, 6, 8_000),
}
# The first zone and the first account have many, so that there are more combinations of labels than a dataset keeps.
_DENSE = Measure(150, 120, 400)
# Half of a sparse scope's hours have nothing.
_SPARSE_PRESENCE = 128
# The most frequent of 150 kinds has 183 of 1,024 places, the rarest has one.
_PLACES = 1_024
# One of eight scopes has never anything at a node.
_QUIET = 8
# A state rises and falls again within hours to days: at most 50,000 + 7 x 2,095 / 2 = 57,332, which a uint16 holds.
_LEAST_PERIOD_MINUTES = 97


Event = tuple[int, int, int]
"""Some requests (queries, reads, ...) of one kind at one moment: which of the stream's kinds, how many, and the unix
second. A bare tuple, because millions are made: one with names takes four times as long."""


class State(NamedTuple):
    """A number that is a state and not a count: it rises from `base` by `step` a minute, and falls again."""

    base: int
    step: int
    period_minutes: int

    def at(self, second: int) -> int:
        place = second // MINUTE_SECONDS % self.period_minutes
        return self.base + self.step * min(place, self.period_minutes - place)


class Stream:
    """All that ever happens in one scope at one node.

    tag:   the scope's; `is_first` of its kind in the fleet.
    kinds: how many kinds of events there are; everything that is said of every kind has as many elements.
    parts: the streams that it is made of, each with the number of its first kind.
    """

    def __init__(self, key: str, tag: str, node: Node, rhythm: Rhythm, *, is_first: bool) -> None:
        self.tag = tag
        self.parts: tuple[tuple[Stream, int], ...] = ((self, 0),)
        self._key = key.encode()
        self._node = node
        self._rhythm = rhythm
        self.kinds, self._events, self._most = _DENSE if is_first else _MEASURES[rhythm]
        # Nothing of the catalogue is empty as a whole: the first zone and the first account have everything.
        self._is_quiet = not is_first and self._draw("quiet", 1)[0] % _QUIET == 0
        self._values: dict[str, tuple[Value, ...]] = {}
        self._units: dict[Path, tuple[Number, ...]] = {}
        self._states: dict[Path, tuple[State, ...]] = {}

    def hour(self, start: int) -> tuple[Event, ...]:
        """The events of the hour that starts at `start` (unix seconds), in no order."""
        if self._is_quiet or not has_hours(self._rhythm, start):
            return ()
        draw = hashlib.shake_128(self._key + start.to_bytes(8)).digest(1 + 8 * self._events)
        if self._rhythm is Rhythm.SPARSE and draw[0] < _SPARSE_PRESENCE:
            return ()
        kinds, most = _ranks(self.kinds), self._most
        return tuple(
            (kinds[each & 0x3FF], 1 + ((each >> 10 & 0xFFFF) * most >> 16), start + (each >> 26) % HOUR_SECONDS)
            for each in struct.unpack_from(f">{self._events}Q", draw, 1)
        )

    def values(self, dimension: str) -> tuple[Value, ...]:
        """The dimension's value of every kind."""
        if dimension not in self._values:
            found = pool(dimension, self._node.dimensions[dimension], self._node.named.get(dimension, ()))
            self._values[dimension] = tuple(found[each % len(found)] for each in self._numbers(dimension))
        return self._values[dimension]

    def keys(self, path: Path, key: str) -> tuple[Value, ...]:
        """The value that the elements of a map have in their field `key`, of every kind."""
        if key not in self._values:
            found = pool(key, self._node.maps[path][key])
            self._values[key] = tuple(found[each % len(found)] for each in self._numbers(key))
        return self._values[key]

    def units(self, path: Path, scalar: str) -> tuple[Number, ...]:
        """What one of every kind adds to a sum; nothing at all in one of four."""
        if path not in self._units:
            # Eighths add up exactly in a float64.
            part = 8 if scalar.startswith("float") else 1
            self._units[path] = tuple(
                0 if each % 4 == 3 else (each + 1) / part if part > 1 else each + 1
                for each in self._numbers("/".join(path))
            )
        return self._units[path]

    def states(self, path: Path) -> tuple[State, ...]:
        """How the state goes, of every kind."""
        if path not in self._states:
            self._states[path] = tuple(
                State(each % 50_000, 1 + each % 7, _LEAST_PERIOD_MINUTES + each % 1_999)
                for each in self._numbers("/".join(path))
            )
        return self._states[path]

    def _numbers(self, purpose: str) -> tuple[int, ...]:
        return struct.unpack(f">{self.kinds}H", self._draw(purpose, 2 * self.kinds))

    def _draw(self, purpose: str, size: int) -> bytes:
        return hashlib.shake_128(b"%b/%b" % (self._key, purpose.encode())).digest(size)


class JoinedStream:
    """What happens in all zones of an account, where the account's node tells them apart (`zoneTag`)."""

    def __init__(self, tag: str, streams: Sequence[Stream]) -> None:
        self.tag = tag
        firsts = [0]
        for stream in streams:
            firsts.append(firsts[-1] + stream.kinds)
        self.kinds = firsts[-1]
        self.parts = tuple(zip(streams, firsts, strict=False))

    def values(self, dimension: str) -> tuple[Value, ...]:
        if dimension == ZONE_TAG:
            return tuple(stream.tag for stream, _ in self.parts for _ in range(stream.kinds))
        return tuple(value for stream, _ in self.parts for value in stream.values(dimension))

    def keys(self, path: Path, key: str) -> tuple[Value, ...]:
        return tuple(value for stream, _ in self.parts for value in stream.keys(path, key))

    def units(self, path: Path, scalar: str) -> tuple[Number, ...]:
        return tuple(unit for stream, _ in self.parts for unit in stream.units(path, scalar))

    def states(self, path: Path) -> tuple[State, ...]:
        return tuple(state for stream, _ in self.parts for state in stream.states(path))


AnyStream = Stream | JoinedStream


class Events:
    """The events of a whole fleet at the nodes of a catalogue.

    fleet: whose zones and accounts there are.
    nodes: by scope and name.
    """

    def __init__(self, fleet: Fleet, nodes: Mapping[NodeKey, Node]) -> None:
        self.fleet = fleet
        self.nodes = nodes
        self._rhythms = {zone.tag: (zone.rhythm, index) for index, zone in enumerate(fleet.zones)}
        self._rhythms |= {account.tag: (Rhythm.STEADY, index) for index, account in enumerate(fleet.accounts)}
        self.stream = lru_cache(_REMEMBERED_STREAMS)(self._stream)
        self._hour = lru_cache(_REMEMBERED_HOURS)(Stream.hour)

    def truth(
        self, scope_tag: str, dataset: Dataset, start: int, width_seconds: int
    ) -> dict[tuple[Value, ...], dict[Path, Number]]:
        """What Cloudflare must say in the end of a dataset's window, by the values of its labels, before any top-N.

        The numbers are those of the dataset's totals, by their path and before their scale, and those of its maps by
        path, key and field: ("sum", "countryMap", "DE", "requests"). A combination of labels of which there was nothing
        is not in it; without labels the one key is (), also missing where nothing happened.
        `start` is in unix seconds; both are multiples of 60. KeyError for a scope that is not in the fleet.
        """
        name = dataset.grain(width_seconds).node
        if dataset.scope is ScopeKind.ZONE and name in rollups.ROLLUPS:
            return self._rollup_truth(scope_tag, dataset, start, width_seconds)
        node = self.nodes[dataset.scope, name]
        stream = self.stream(scope_tag, node)
        dimensions = [stream.values(label.dimension) for label in dataset.labels]
        conditions = [(*condition(field), value) for field, value in dataset.where]
        tested = [(stream.values(dimension), comparison, value) for dimension, comparison, value in conditions]
        by_labels: dict[tuple[Value, ...], list[Event]] = {}
        for kind, amount, second in self._all(stream, start, start + width_seconds):
            if all(holds(comparison, values[kind], wanted) for values, comparison, wanted in tested):
                labels = tuple(values[kind] for values in dimensions)
                by_labels.setdefault(labels, []).append((kind, amount, second))
        return {
            labels: {
                **{total.path: number(stream, node, total.path, events) for total in dataset.totals},
                **_of_maps(stream, node, dataset, events),
            }
            for labels, events in by_labels.items()
        }

    def visible(self, stream: AnyStream, start: int, end: int, *, now: float, settling: Settling) -> list[Event]:
        """The events of [start, end), unix seconds, as far as Cloudflare shows them at `now`."""
        found: list[Event] = []
        for part, first in stream.parts:
            for hour in range(start - start % HOUR_SECONDS, min(end, int(now) + 1), HOUR_SECONDS):
                events: Sequence[Event] = self._hour(part, hour)
                if hour < start or hour + HOUR_SECONDS > end:
                    events = [event for event in events if start <= event[2] < end]
                if not settling.has_settled(part.tag, max(hour, start), min(hour + HOUR_SECONDS, end), now):
                    events = _arrived(part.tag, events, now, settling)
                found += events if first == 0 else _shifted(events, first)
        return found

    def _all(self, stream: AnyStream, start: int, end: int) -> Iterator[Event]:
        for part, first in stream.parts:
            for hour in range(start - start % HOUR_SECONDS, end, HOUR_SECONDS):
                for kind, amount, second in self._hour(part, hour):
                    if start <= second < end:
                        yield kind + first, amount, second

    def _stream(self, scope_tag: str, node: Node) -> AnyStream:
        if node.scope is ScopeKind.ACCOUNT and ZONE_TAG in node.dimensions:
            zones = [zone.tag for zone in self.fleet.zones if zone.account.tag == scope_tag]
            return JoinedStream(scope_tag, [self._own_stream(tag, node) for tag in zones])
        return self._own_stream(scope_tag, node)

    def _own_stream(self, scope_tag: str, node: Node) -> Stream:
        rhythm, index = self._rhythms[scope_tag]
        key = f"{self.fleet.seed}/{scope_tag}/{node.name}"
        return Stream(key, scope_tag, node, rhythm, is_first=index == 0)

    def _rollup_truth(
        self, zone_tag: str, dataset: Dataset, start: int, width_seconds: int
    ) -> dict[tuple[Value, ...], dict[Path, Number]]:
        truth = self.fleet.bucket(zone_tag, start, width_seconds)
        if truth is None:
            return {}
        row = rollups.row(truth, {})
        numbers = {total.path: row[total.path[0]][total.path[1]] for total in dataset.totals}
        for item in dataset.breakdowns:
            for element in row[item.path[0]][item.path[1]]:
                numbers |= {(*item.path, str(element[item.key]), leaf): element[leaf] for leaf, _ in item.values}
        return {(): numbers}


def number(stream: AnyStream, node: Node, path: Path, events: Sequence[Event]) -> Number:
    """The number at `path` in the row that is made of these events, of which there is at least one."""
    scalar = node.numbers[path]
    if path == SAMPLE_INTERVAL:
        return 1
    match path[0]:
        case "count":
            return _amount(events)
        case "sum":
            units = stream.units(path, scalar)
            return sum(amount * units[kind] for kind, amount, _ in events)
        case "uniq":
            # As many different clients as there are different pairs of kind and amount.
            return len({(kind, amount) for kind, amount, _ in events})
        case part:
            return _state(part, scalar, stream.states(path), events)


def _of_maps(stream: AnyStream, node: Node, dataset: Dataset, events: Sequence[Event]) -> dict[Path, Number]:
    found: dict[Path, Number] = {}
    for item in dataset.breakdowns:
        keys = stream.keys(item.path, item.key)
        for leaf, _ in item.values:
            units = stream.units((*item.path, leaf), node.maps[item.path][leaf])
            for kind, amount, _ in events:
                path = (*item.path, str(keys[kind]), leaf)
                found[path] = found.get(path, 0) + amount * units[kind]
    return found


def _state(part: str, scalar: str, states: Sequence[State], events: Sequence[Event]) -> Number:
    seen = [states[kind].at(second) for kind, _, second in events]
    match part:
        case "max":
            return max(seen)
        case "min":
            return min(seen)
        case _:
            weighed = sum(value * amount for value, (_, amount, _) in zip(seen, events, strict=True))
            weight = _amount(events)
            return weighed / weight if scalar.startswith("float") else weighed // weight


def _amount(events: Sequence[Event]) -> int:
    return sum(amount for _, amount, _ in events)


def _arrived(tag: str, events: Sequence[Event], now: float, settling: Settling) -> list[Event]:
    arrived = []
    for kind, amount, second in events:
        permille = settling.permille(tag, second - second % MINUTE_SECONDS, now)
        if visible := amount * permille // 1_000:
            arrived.append((kind, visible, second))
    return arrived


def _shifted(events: Sequence[Event], first: int) -> list[Event]:
    return [(kind + first, amount, second) for kind, amount, second in events]


@lru_cache
def _ranks(kinds: int) -> tuple[int, ...]:
    """The kinds by place: each has about as many as its rank is high (1, 1/2, 1/3, ...), and none has none."""
    weight = sum(1 / rank for rank in range(1, kinds + 1))
    places = [kind for kind in range(kinds) for _ in range(max(1, int(_PLACES / weight / (kind + 1))))]
    # What rounding has left over or taken too much is the first kind's.
    return tuple(sorted([*places, *([0] * (_PLACES - len(places)))])[:_PLACES])
