"""The nodes that a catalogue uses, as far as it uses them: what a simulated schema has besides the zones' rollups.

Made from the catalogue's own entries, so that whatever a user adds to a catalogue can be asked of the simulator.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker.cloudflare.catalogue import Dataset, ScopeKind, shipped
from worker.simulator.rollups import ROLLUPS
from worker.simulator.scalars import Value, dimension_scalar, number_scalar

NodeKey = tuple[ScopeKind, str]
Path = tuple[str, ...]

SAMPLE_INTERVAL: Path = ("avg", "sampleInterval")
COUNT: Path = ("count",)
ZONE_TAG = "zoneTag"

_WIDTHS = {
    "date": 86_400,
    # Events of adaptive nodes carry their second.
    "datetime": 1,
    "datetimeTenSeconds": 10,
    "datetimeMinute": 60,
    "datetimeFiveMinute": 300,
    "datetimeFiveMinutes": 300,
    "datetimeTenMinute": 600,
    "datetimeTenMinutes": 600,
    "datetimeFifteenMinutes": 900,
    "datetimeHalfOfHour": 1_800,
    "datetimeHour": 3_600,
    "datetimeSixHours": 21_600,
    "datetimeDay": 86_400,
}


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One node of the schema whose rows are groups of events.

    scope:        whose field it is.
    name:         that field.
    widths:       its dimensions of time, each with the seconds that it is truncated to.
    filters_only: of these, those that the catalogue only compares with; some nodes cannot group by them.
    dimensions:   its other dimensions, each with its scalar.
    named:        of these, the values that conditions of the catalogue name.
    numbers:      the numbers of a row, by their path, each with its scalar.
    maps:         lists in a row, by their path: each element's key and its numbers, with their scalars.
    """

    scope: ScopeKind
    name: str
    widths: Mapping[str, int]
    filters_only: frozenset[str]
    dimensions: Mapping[str, str]
    named: Mapping[str, tuple[Value, ...]]
    numbers: Mapping[Path, str]
    maps: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)

    @property
    def key(self) -> NodeKey:
        return self.scope, self.name

    @property
    def type_name(self) -> str:
        return f"{self.scope.capitalize()}{self.name[0].upper()}{self.name[1:]}"

    @property
    def fields(self) -> list[str]:
        """Every field in the form in which `settings` lists them, for example `sum_requests`, `count`."""
        times = (name for name in self.widths if name not in self.filters_only)
        dimensions = [f"dimensions_{name}" for name in (*times, *self.dimensions)]
        return sorted([*dimensions, *("_".join(path) for path in (*self.numbers, *self.maps))])


def shipped_datasets() -> tuple[Dataset, ...]:
    """The catalogue that the worker comes with."""
    return tuple(shipped().values())


def nodes_of(datasets: Iterable[Dataset]) -> dict[NodeKey, Node]:
    """The nodes that the datasets use, without the zones' rollups; ValueError for a time dimension that is unknown."""
    using: defaultdict[NodeKey, list[Dataset]] = defaultdict(list)
    for dataset in datasets:
        for name in dict.fromkeys(grain.node for grain in dataset.grains):
            if dataset.scope is not ScopeKind.ZONE or name not in ROLLUPS:
                using[dataset.scope, name].append(dataset)
    # Zones and accounts share the values of a node, so that an account's node can show what its zones' nodes show.
    named: defaultdict[str, defaultdict[str, dict[Value, None]]] = defaultdict(lambda: defaultdict(dict))
    for (_, name), users in using.items():
        for dimension, value in (pair for dataset in users for pair in _named(dataset)):
            named[name][dimension][value] = None
    return {
        (scope, name): _node(scope, name, users, {key: tuple(values) for key, values in named[name].items()})
        for (scope, name), users in using.items()
    }


def condition(field_name: str) -> tuple[str, str]:
    """The dimension of a filter's field and its comparison, "" for equality: `status_geq` is ("status", "geq")."""
    dimension, _, comparison = field_name.partition("_")
    return dimension, comparison


def _named(dataset: Dataset) -> Iterator[tuple[str, Value]]:
    """Every value that a condition names, with its dimension."""
    for field_name, value in dataset.where:
        dimension, _ = condition(field_name)
        yield from ((dimension, each) for each in (value if isinstance(value, tuple) else (value,)))


def _node(scope: ScopeKind, name: str, datasets: Sequence[Dataset], named: Mapping[str, tuple[Value, ...]]) -> Node:
    grains = [grain for dataset in datasets for grain in dataset.grains if grain.node == name]
    grouped = {grain.dimension for grain in grains if grain.dimension is not None}
    compared = {condition(bound)[0] for grain in grains for bound in (grain.since, grain.until)}
    widths = {time: _width(name, time) for time in sorted(grouped | compared)}
    dimensions: dict[str, str] = {}
    numbers: dict[Path, str] = {}
    maps: defaultdict[Path, dict[str, str]] = defaultdict(dict)
    for dataset in datasets:
        for label in dataset.labels:
            dimensions[label.dimension] = dimension_scalar(name, label.dimension)
        for dimension, _ in _named(dataset):
            dimensions[dimension] = dimension_scalar(name, dimension)
        for total in dataset.totals:
            numbers[total.path] = number_scalar(name, total.path)
        if dataset.is_sampled:
            numbers[SAMPLE_INTERVAL] = number_scalar(name, SAMPLE_INTERVAL)
        for item in dataset.breakdowns:
            maps[item.path][item.key] = "string" if dimension_scalar(name, item.key) == "string" else "uint64"
            maps[item.path].update({leaf: number_scalar(name, (item.path[0], leaf)) for leaf, _ in item.values})
    return Node(scope, name, widths, frozenset(compared - grouped), dimensions, named, numbers, maps)


# The rollups of accounts are named by their width, like those of zones.
_ROLLUP = re.compile(r"httpRequests1([mhd])Groups")
_ROLLUP_WIDTHS = {"m": 60, "h": 3_600, "d": 86_400}


def _width(node: str, dimension: str) -> int:
    if dimension not in _WIDTHS:
        message = f"{node} is asked by {dimension}, which is no dimension of time; there are {', '.join(_WIDTHS)}"
        raise ValueError(message)
    rollup = _ROLLUP.fullmatch(node)
    if rollup is not None and dimension == "datetime":
        return _ROLLUP_WIDTHS[rollup[1]]
    return _WIDTHS[dimension]
