"""The rows of a node: its events grouped as a query asks, with the numbers that it asks for.

A combination of values of which nothing is visible has no row. Knows no GraphQL, no limits and no plan.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from worker.simulator.events import AnyStream, Event, number
from worker.simulator.filters import Conditions, accepts
from worker.simulator.nodes import COUNT, SAMPLE_INTERVAL, Node, Path
from worker.simulator.rollups import time_text
from worker.simulator.scalars import Value

Row = tuple[Any, ...]

_DIMENSIONS = "dimensions"

# Of 8,192 streams (1,000 zones at eight nodes) two conditions each; a set of 16 numbers is some 700 bytes: 12 MB.
_REMEMBERED = 16_384


@dataclass(frozen=True, slots=True)
class Sampling:
    """How adaptive nodes thin out what they count, so that a query reads a bounded number of events.

    most_counted: the most that is counted one by one; beyond, one of 10 counts for ten, and then one of 100.
    """

    most_counted: int = 10_000

    def interval(self, counted: int) -> int:
        """For how many each that is counted stands."""
        return next((each for each in (1, 10) if counted <= self.most_counted * each), 100)


@lru_cache(_REMEMBERED)
def kinds_that(stream: AnyStream, node: Node, conditions: Conditions) -> frozenset[int]:
    """The kinds of events whose values the conditions let through."""
    values = {dimension: stream.values(dimension) for dimension in node.dimensions}
    return frozenset(
        kind
        for kind in range(stream.kinds)
        if accepts(conditions, {dimension: of_kinds[kind] for dimension, of_kinds in values.items()})
    )


def rows(
    events: Iterable[Event], stream: AnyStream, node: Node, columns: Sequence[Path], *, interval: int = 1
) -> list[Row]:
    """One row per combination of the dimensions' values among the columns, in the order of the columns.

    columns:  ("dimensions", name) for a dimension, else the path of a number or of a list; at least one.
    interval: for how many each that was counted stands.
    """
    dimensions = [path[1] for path in columns if path[0] == _DIMENSIONS]
    times = [name for name in dimensions if name in node.widths]
    others = [name for name in dimensions if name not in node.widths]
    values = list(zip(*map(stream.values, others), strict=True)) if others else [()] * stream.kinds
    by_key: defaultdict[tuple[Any, ...], list[Event]] = defaultdict(list)
    match [node.widths[name] for name in times]:
        case []:
            for event in events:
                by_key[values[event[0]]].append(event)
        case [width]:
            for event in events:
                kind, _, second = event
                by_key[(second - second % width, *values[kind])].append(event)
        case widths:
            for event in events:
                kind, _, second = event
                moments = (second - second % width for width in widths)
                by_key[(*moments, *values[kind])].append(event)
    # By columns, because a call per cell is what costs the most.
    keyed = dict(zip((*times, *others), zip(*by_key, strict=True), strict=False))
    members = list(by_key.values())
    filled = [
        _dimension(node, path[1], keyed.get(path[1], ()))
        if path[0] == _DIMENSIONS
        else _numbers(stream, node, path, members, interval)
        for path in columns
    ]
    return list(zip(*filled, strict=True))


def ordered(found: list[Row], order: Sequence[tuple[int, bool]], salt: str) -> list[Row]:
    """The rows by columns, of which the first counts most, each upwards or (True) downwards; else in no order."""
    if len(found) < 2:
        return found
    # No secret: only so that nobody relies on the order in which equal rows come.
    draw = random.Random(salt)  # noqa: S311
    if not order:
        draw.shuffle(found)
        return found
    first = draw.randrange(len(found))
    found = found[first:] + found[:first]
    for column, is_descending in reversed(order):
        found.sort(key=itemgetter(column), reverse=is_descending)
    return found


def thinned(events: Sequence[Event], interval: int, salt: str) -> list[Event]:
    """The events as a sample sees them: each that is counted is kept with a chance of 1/interval."""
    if interval == 1:
        return list(events)
    # Not a secret: only so that the same query sees another sample the next time.
    draw = random.Random(salt).random  # noqa: S311
    seen = []
    for kind, amount, second in events:
        kept = sum(draw() * interval < 1 for _ in range(amount))
        if kept:
            seen.append((kind, kept * interval, second))
    return seen


def _dimension(node: Node, name: str, values: Sequence[Any]) -> Sequence[Any]:
    return [time_text(name, moment) for moment in values] if name in node.widths else values


def _numbers(
    stream: AnyStream, node: Node, path: Path, members: Sequence[Sequence[Event]], interval: int
) -> Sequence[Any]:
    """The number or list at `path` of every row, from the events that it is made of."""
    if path == SAMPLE_INTERVAL:
        return [interval if node.numbers[path].startswith("uint") else float(interval)] * len(members)
    if path in node.maps:
        return [_elements(stream, node, path, events) for events in members]
    if path == COUNT:
        return [sum([amount for _, amount, _ in events]) for events in members]
    if path[0] == "sum":
        units = stream.units(path, node.numbers[path])
        return [sum([amount * units[kind] for kind, amount, _ in events]) for events in members]
    return [number(stream, node, path, events) for events in members]


def _elements(stream: AnyStream, node: Node, path: Path, events: Sequence[Event]) -> list[dict[str, Value]]:
    """The elements of a map: its key's values, each with its numbers."""
    key, *leaves = node.maps[path]
    keys = stream.keys(path, key)
    by_key: dict[Value, dict[str, Any]] = {}
    for kind, amount, _ in events:
        element = by_key.setdefault(keys[kind], {key: keys[kind], **dict.fromkeys(leaves, 0)})
        for leaf in leaves:
            element[leaf] += amount * stream.units((*path, leaf), node.maps[path][leaf])[kind]
    return list(by_key.values())
