"""What a dataset is: a node of Cloudflare's schema, how it is asked for, and what becomes of its rows.

A row of a dataset without labels is one window; a row of one with labels is one window and one combination of their
values. Frozen values without behaviour of their own; where they come from is not known here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Metric:
    """What one family of samples means.

    name:     the metric's name at the receiver.
    help:     one sentence for people.
    unit:     what one counts: `bytes`, or the things counted (`requests`, `visitors`, ...).
    additive: whether values of different windows, zones or labels may be summed.
    """

    name: str
    help: str
    unit: str
    additive: bool = True


@dataclass(frozen=True, slots=True)
class Total:
    """A number of every row.

    path:     where it is in a row, for example ("sum", "requests") or ("count",).
    scale:    what Cloudflare's number is multiplied by to be in the metric's unit; 0.001 for milliseconds.
    has_zero: whether a settled window without a row is a 0 of it: no traffic. Not so where it is a state (bytes stored,
              users online), and nowhere in a dataset with labels, as there is no telling which of them would be 0.
    """

    path: tuple[str, ...]
    metric: Metric
    scale: float = 1.0
    has_zero: bool = True

    @property
    def field(self) -> str:
        """Its name in Cloudflare's `settings.availableFields`: `sum_requests`."""
        return "_".join(self.path)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A map in every row: some numbers per value of one label. A value that is not in the map has no sample.

    path:   object and field of a row that hold the list, for example ("sum", "countryMap").
    key:    the element's field whose value becomes the label's value.
    label:  the label.
    values: the element's other fields, each with its metric. All additive: should a row name a value twice, the
            numbers are summed.
    """

    path: tuple[str, str]
    key: str
    label: str
    values: tuple[tuple[str, Metric], ...]

    def __post_init__(self) -> None:
        for _, metric in self.values:
            if not metric.additive:
                message = f"{metric.name} is part of a breakdown, so it must be additive"
                raise ValueError(message)

    @property
    def field(self) -> str:
        """Its name in Cloudflare's `settings.availableFields`: `sum_countryMap`."""
        return "_".join(self.path)


@dataclass(frozen=True, slots=True)
class Label:
    """A dimension that rows are grouped by, besides their window.

    name:      the label.
    dimension: the dimension's field, for example "cacheStatus".
    """

    name: str
    dimension: str


@dataclass(frozen=True, slots=True)
class Top:
    """Which rows of a window keep their label values; all others are summed up in one, whose labels say `other`.

    keep: how many.
    by:   the path of the number that they are ranked by, one of the dataset's totals.
    """

    keep: int
    by: tuple[str, ...]


class ScopeKind(StrEnum):
    """What a dataset is asked for: the field of `viewer` is the plural of it."""

    ZONE = "zone"
    ACCOUNT = "account"


SAMPLE_INTERVAL: Mapping[ScopeKind, Metric] = {
    kind: Metric(
        f"cloudflare_{kind}_sample_interval",
        "The most events in the window that one stored event stands for, by dataset; 1 is an exact count.",
        "events",
        additive=False,
    )
    for kind in ScopeKind
}
"""The metric that every sampled dataset has beside its own; its one label is SAMPLE_INTERVAL_LABEL."""

SAMPLE_INTERVAL_LABEL = "dataset"

SAMPLE_INTERVAL_PATH = ("avg", "sampleInterval")
"""Where it is in a row."""


class TimeType(StrEnum):
    """The scalar of the schema that a node's time dimension and its filter have."""

    TIME = "Time"
    DATE = "Date"


@dataclass(frozen=True, slots=True)
class Grain:
    """How windows of one width are asked for.

    width_seconds: the windows' width.
    node:          the GraphQL node.
    dimension:     the time dimension that rows are grouped and ordered by; its value is the window's start. None where
                   the node has none of this width: then a query asks for a single window.
    since, until:  the filter's fields for the first instant and for the first instant that is not asked any more.
    time:          the scalar type of all three.
    """

    width_seconds: int
    node: str
    dimension: str | None
    since: str
    until: str
    time: TimeType


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of the catalogue: the same fields at several widths.

    name:          what users write in CF_DATASETS.
    help:          one sentence for people.
    grains:        one per supported width, narrowest first.
    totals:        numbers of every row. Where there is a `top`, all of them are additive.
    breakdowns:    maps in every row; none where there are labels.
    scope:         what it is asked for.
    groups:        further names in CF_DATASETS that it is meant by, with others.
    labels:        what its rows are grouped by.
    where:         further conditions of the filter: its field and the value, which is put into the query as JSON.
    top:           how many combinations of label values a bucket may have; None without labels, and for states (no
                   total is additive), whose rest cannot be summed up: there one page of rows is the bound.
    delay_seconds: how long after a window's end it is final, where it needs longer than others; None otherwise.
    is_sampled:    whether its rows tell how much they were sampled (`avg { sampleInterval }`).
    """

    name: str
    help: str
    grains: tuple[Grain, ...]
    totals: tuple[Total, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    scope: ScopeKind = ScopeKind.ZONE
    groups: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    where: tuple[tuple[str, str | int | bool | tuple[str | int, ...]], ...] = ()
    top: Top | None = None
    delay_seconds: int | None = None
    is_sampled: bool = False

    @property
    def widths_seconds(self) -> tuple[int, ...]:
        """The window widths that it can be collected at."""
        return tuple(grain.width_seconds for grain in self.grains)

    def final_after_seconds(self, delay_seconds: int) -> int:
        """How long after a window's end it is final, where others are after `delay_seconds`."""
        return max(delay_seconds, self.delay_seconds or 0)

    def grain(self, width_seconds: int) -> Grain:
        """How windows of this width are asked for; ValueError where the dataset has none."""
        for grain in self.grains:
            if grain.width_seconds == width_seconds:
                return grain
        message = f"{self.name} has no windows of {width_seconds} s, only of {self.widths_seconds}"
        raise ValueError(message)

    def metrics(self) -> Iterator[tuple[Metric, tuple[str, ...]]]:
        """Every metric, with the labels that break it down."""
        labels = tuple(label.name for label in self.labels)
        for total in self.totals:
            yield total.metric, labels
        for breakdown in self.breakdowns:
            for _, metric in breakdown.values:
                yield metric, (breakdown.label,)
        if self.is_sampled:
            yield SAMPLE_INTERVAL[self.scope], (SAMPLE_INTERVAL_LABEL,)

    def fields_named(self, name: str) -> frozenset[str]:
        """The fields that `name` may mean, to be handed to `without`.

        Cloudflare refuses a field by its last name in lower case ('clientasn'), which several places may share: then
        the place closest to the root is meant. Empty where nothing has that name.
        """
        wanted = name.lower().replace(".", "_")
        whole: list[tuple[str, str]] = [(item.field, item.path[-1]) for item in self.totals]
        whole += [(item.field, item.path[-1]) for item in self.breakdowns]
        if self.is_sampled:
            whole.append(("_".join(SAMPLE_INTERVAL_PATH), SAMPLE_INTERVAL_PATH[-1]))
        keys = [(item.field, item.key) for item in self.breakdowns]
        leaves = [(f"{item.field}_{leaf}", leaf) for item in self.breakdowns for leaf, _ in item.values]
        for level in (whole, keys, leaves):
            if found := frozenset(field for field, last in level if wanted in (field.lower(), last.lower())):
                return found
        return frozenset()

    def without(self, fields: Iterable[str]) -> "Dataset":
        """The same dataset without these fields, named like `sum_threats`, `sum_countryMap`, `sum_countryMap_bytes`.

        Without the number that rows are ranked by, they are ranked by the first that is left.
        """
        dropped = frozenset(fields)
        if not dropped:
            return self
        totals = tuple(total for total in self.totals if total.field not in dropped)
        top = self.top
        if top and totals and top.by not in (total.path for total in totals):
            top = replace(top, by=totals[0].path)
        narrowed = (
            replace(item, values=tuple(pair for pair in item.values if f"{item.field}_{pair[0]}" not in dropped))
            for item in self.breakdowns
            if item.field not in dropped
        )
        return replace(
            self,
            totals=totals,
            breakdowns=tuple(item for item in narrowed if item.values),
            top=top,
            is_sampled=self.is_sampled and "_".join(SAMPLE_INTERVAL_PATH) not in dropped,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to ask for."""
        return not self.totals and not self.breakdowns
