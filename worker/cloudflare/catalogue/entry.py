"""One entry of a catalogue's file: from its keys to a dataset, or to what is wrong with it.

Owns the syntax: which keys there are, what each takes, and what has to fit together. Knows nothing of files or of what
other datasets there are, but for the names of metrics that are taken.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from worker.cloudflare.catalogue.model import (
    Breakdown,
    Dataset,
    Grain,
    Label,
    Metric,
    ScopeKind,
    TimeType,
    Top,
    Total,
)
from worker.cloudflare.catalogue.nodes import Item, NodeReader, nearest
from worker.cloudflare.catalogue.personal import is_personal
from worker.series import LABEL_NAME, METRIC_NAME

ALL = "all"
"""The group of every dataset."""

WIDTHS_SECONDS = (60, 300, 900, 1800, 3600, 86400)
"""The widths of windows that there are."""

UNITS = (
    *("bytes", "seconds", "GB-seconds", "US dollars", "ratio"),
    *(
        "requests",
        "subrequests",
        "visits",
        "visitors",
        "page views",
        "queries",
        "events",
        "sessions",
        "users",
        "logins",
    ),
    *("errors", "disconnects", "challenges", "operations", "messages", "retries", "steps", "rows", "keys", "objects"),
    *("uploads", "records", "files", "tokens", "neurons", "vectors", "vector dimensions", "units", "devices"),
    *("packets", "checks", "failures", "reports", "measurements", "connections", "consumers"),
)
"""What a metric may count."""

# The time dimensions of Cloudflare's nodes whose rows are windows of one of the widths, and how wide those are. The
# singular of five minutes is what the node of WARP devices has.
_TIME_DIMENSIONS = {
    "datetimeMinute": 60,
    "datetimeFiveMinute": 300,
    "datetimeFiveMinutes": 300,
    "datetimeFifteenMinutes": 900,
    "datetimeHalfOfHour": 1800,
    "datetimeHour": 3600,
    "datetimeDay": 86400,
    "date": 86400,
}

# What windows are cut out with, and how fine that cuts, in seconds: fields `..._geq` and `..._lt` of the filter.
_TIME_FILTERS = {"datetime": 1, **_TIME_DIMENSIONS}

_DATE = "date"

# Labels that every series has, or that a sample's quality is told by.
_TAKEN_LABELS = frozenset({"zone", "zone_id", "account", "account_id", "dataset"})

# Names of datasets and groups, as they stand in CF_DATASETS and in the label `dataset`.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Names of GraphQL; a field of a metric is `count`, or an object and a number in it.
_GRAPHQL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELD = re.compile(r"count|[a-z][A-Za-z]*\.[A-Za-z_][A-Za-z0-9_]*")

_MOST_KEPT = 10_000  # combinations of a window: a page of rows, of which Cloudflare answers 10,000 at most
_LONGEST_DELAY_SECONDS = 86_400  # a day, as for CF_DELAY_SECONDS

_TIMES_HELP = f"a time dimension: {', '.join(_TIME_DIMENSIONS)}"


@dataclass
class EntryReader:
    """Makes the datasets of one file, entry by entry.

    metrics: names of metrics that are taken.
    """

    reader: NodeReader
    metrics: set[str]

    def dataset(self, item: Item) -> Dataset:
        """One dataset; where something is wrong with it, it is noted, and what is returned is of no use."""
        reader, name = self.reader, item.key.value
        if not _NAME.fullmatch(name):
            reader.wrong(item.key, "a dataset's name has small letters, digits and underscores only")
        if name == ALL:
            reader.wrong(item.key, "is the group of all datasets, so none can be called that")
        optional = (
            *("groups", "node", "times", "time_filter", "widths", "where", "labels", "top", "sampled"),
            *("delay_seconds", "maps"),
        )
        keys = reader.fields(item.value, name, required=("help", "scope", "metrics"), optional=optional)
        labels = tuple(self._labels(keys["labels"])) if "labels" in keys else ()
        top = self._top(keys["top"]) if "top" in keys else None
        totals = tuple(self._totals(keys["metrics"])) if "metrics" in keys else ()
        breakdowns = tuple(self._breakdowns(keys["maps"])) if "maps" in keys else ()
        self._check_labels(keys, item.key, labels, top, totals)
        delay = keys.get("delay_seconds")
        what = "delay_seconds"
        return Dataset(
            name=name,
            help=self._sentence(keys.get("help")),
            grains=self._grains(keys, item.key),
            totals=totals,
            breakdowns=breakdowns,
            scope=ScopeKind.ACCOUNT
            if reader.word(keys.get("scope"), "scope", tuple(ScopeKind)) == ScopeKind.ACCOUNT
            else ScopeKind.ZONE,
            groups=tuple(self._groups(keys.get("groups"))),
            labels=labels,
            where=tuple(self._where(keys["where"])) if "where" in keys else (),
            top=top,
            delay_seconds=None
            if delay is None
            else reader.whole(delay, what, minimum=0, maximum=_LONGEST_DELAY_SECONDS),
            is_sampled=reader.truth(keys.get("sampled"), "sampled", default=False),
        )

    def _sentence(self, node: yaml.Node | None) -> str:
        text = self.reader.text(node, "help")
        if node is not None and text and not text.endswith("."):
            self.reader.wrong(node, "help must be a sentence, with a full stop at its end")
        return text

    def _groups(self, node: yaml.Node | None) -> Iterator[str]:
        for group, where in self.reader.texts(node, "groups").items():
            if group == ALL or (group and not _NAME.fullmatch(group)):
                self.reader.wrong(where, f"a group's name has small letters, digits and underscores, and is not {ALL}")
            yield group

    # ------------------------------------------------------------------------------------------------------ windows

    def _grains(self, keys: Mapping[str, yaml.Node], key: yaml.Node) -> tuple[Grain, ...]:
        if "widths" in keys:
            if spare := [name for name in ("node", "times", "time_filter") if name in keys]:
                self.reader.wrong(keys[spare[0]], f"{spare[0]} says what widths says already; give one of them")
            return tuple(self._grain_of_width(item) for item in self.reader.mapping(keys["widths"], "widths").values())
        if missing := [name for name in ("node", "times") if name not in keys]:
            self.reader.wrong(key, f"lacks {', '.join(missing)}, or widths instead of both")
            return ()
        return tuple(self._grains_of_node(keys))

    def _grain_of_width(self, item: Item) -> Grain:
        reader = self.reader
        width = reader.whole(item.key, "a width", minimum=WIDTHS_SECONDS[0], maximum=WIDTHS_SECONDS[-1])
        if width not in WIDTHS_SECONDS:
            reader.wrong(item.key, f"a width must be one of {', '.join(map(str, WIDTHS_SECONDS))}")
        keys = reader.fields(item.value, "a width", required=("node", "filter"), optional=("dimension", "type"))
        cut = self._graphql(keys.get("filter"), "filter")
        kind = reader.word(keys.get("type"), "type", tuple(TimeType))
        return Grain(
            width_seconds=width,
            node=self._graphql(keys.get("node"), "node"),
            dimension=self._graphql(keys["dimension"], "dimension") if "dimension" in keys else None,
            since=f"{cut}_geq",
            until=f"{cut}_lt",
            time=TimeType.DATE if kind == TimeType.DATE else TimeType.TIME,
        )

    def _grains_of_node(self, keys: Mapping[str, yaml.Node]) -> Iterator[Grain]:
        """One for each width that the node's filter can cut out."""
        reader = self.reader
        node = self._graphql(keys["node"], "node")
        cut = reader.word(keys.get("time_filter"), "time_filter", tuple(_TIME_FILTERS)) or "datetime"
        dimensions: dict[int, str] = {}
        for name, where in reader.texts(keys["times"], "times").items():
            if name not in _TIME_DIMENSIONS:
                reader.wrong(where, f"is not {_TIMES_HELP}{nearest(name, _TIME_DIMENSIONS)}")
            elif (width := _TIME_DIMENSIONS[name]) in dimensions:
                reader.wrong(where, f"is as wide as {dimensions[width]}; give one of them")
            else:
                dimensions[width] = name
        for width in WIDTHS_SECONDS:
            dimension = dimensions.get(width)
            if _DATE in {dimension, cut}:
                if width == _TIME_DIMENSIONS[_DATE]:
                    yield Grain(width, node, dimension, f"{_DATE}_geq", f"{_DATE}_lt", TimeType.DATE)
            elif width >= _TIME_FILTERS.get(cut, 1):
                yield Grain(width, node, dimension, f"{cut}_geq", f"{cut}_lt", TimeType.TIME)

    def _where(self, node: yaml.Node) -> Iterator[tuple[str, str | int | bool | tuple[str | int, ...]]]:
        for name, item in self.reader.mapping(node, "where").items():
            self._graphql(item.key, "a field of where")
            yield name, self.reader.condition(item.value, "a condition")

    # ------------------------------------------------------------------------------------------- labels and metrics

    def _labels(self, node: yaml.Node) -> Iterator[Label]:
        for name, item in self.reader.mapping(node, "labels").items():
            self._check_label(item.key)
            yield Label(name, self._dimension(item.value))

    def _check_label(self, key: yaml.ScalarNode) -> None:
        if not LABEL_NAME.fullmatch(key.value) or key.value.startswith("__"):
            self.reader.wrong(key, "a label's name has letters, digits and underscores, and does not start with two")
        elif key.value in _TAKEN_LABELS:
            self.reader.wrong(key, f"is the worker's own label; own are {', '.join(sorted(_TAKEN_LABELS))}")

    def _dimension(self, node: yaml.Node | None) -> str:
        dimension = self._graphql(node, "a dimension")
        if node is not None and is_personal(dimension):
            self.reader.wrong(node, "is personal data, or text that may hold some, and never becomes a label")
        return dimension

    def _check_labels(
        self,
        keys: Mapping[str, yaml.Node],
        key: yaml.Node,
        labels: tuple[Label, ...],
        top: Top | None,
        totals: tuple[Total, ...],
    ) -> None:
        """What the model asks of labels, `top`, `maps` and metrics together."""
        reader = self.reader
        states = [total.metric.name for total in totals if not total.metric.additive]
        if "top" in keys and states:
            problem = f"the rest of a top is summed up, and {', '.join(states)} cannot be: move it to another dataset"
            reader.wrong(keys["top"], problem)
        if top is not None and top.by not in [total.path for total in totals]:
            ranked = ".".join(top.by)
            fields = [".".join(total.path) for total in totals]
            reader.wrong(keys["top"], f"top is by {ranked}, which no metric has{nearest(ranked, fields)}")
        if "top" in keys and not labels:
            reader.wrong(keys["top"], "top needs labels")
        if labels and "top" not in keys and len(states) < len(totals):
            reader.wrong(keys["labels"], "labels need a top, which bounds how many series there are")
        if labels and "maps" in keys:
            reader.wrong(keys["maps"], "maps are for datasets without labels")
        if not totals and "metrics" in keys and "maps" not in keys:
            reader.wrong(key, "has no metric")

    def _top(self, node: yaml.Node) -> Top:
        keys = self.reader.fields(node, "top", required=("keep", "by"))
        keep = self.reader.whole(keys.get("keep"), "keep", minimum=1, maximum=_MOST_KEPT)
        return Top(keep, self._path(keys.get("by")))

    def _totals(self, node: yaml.Node) -> Iterator[Total]:
        reader = self.reader
        for item in reader.mapping(node, "metrics").values():
            keys = reader.fields(
                item.value,
                item.key.value,
                required=("field", "unit", "help"),
                optional=("scale", "additive", "zero"),
            )
            path = self._path(keys.get("field"))
            additive = reader.truth(keys.get("additive"), "additive", default=True)
            if additive and len(path) > 1 and path[0] != "sum":
                reader.wrong(keys["field"], "may not be summed over windows: say `additive: false`")
            yield Total(
                path,
                self._metric(item.key, keys, additive=additive),
                scale=reader.positive(keys["scale"], "scale") if "scale" in keys else 1.0,
                has_zero=reader.truth(keys.get("zero"), "zero", default=True),
            )

    def _breakdowns(self, node: yaml.Node) -> Iterator[Breakdown]:
        reader = self.reader
        for label, item in reader.mapping(node, "maps").items():
            self._check_label(item.key)
            keys = reader.fields(item.value, f"the map {label}", required=("field", "key", "metrics"))
            path = self._path(keys.get("field"))
            values = []
            for metric in reader.mapping(keys["metrics"], "metrics").values() if "metrics" in keys else ():
                of = reader.fields(metric.value, metric.key.value, required=("field", "unit", "help"))
                values.append((self._graphql(of.get("field"), "field"), self._metric(metric.key, of, additive=True)))
            yield Breakdown((path[0], path[-1]), self._dimension(keys.get("key")), label, tuple(values))

    def _metric(self, key: yaml.ScalarNode, keys: Mapping[str, yaml.Node], *, additive: bool) -> Metric:
        reader, name = self.reader, key.value
        unit = reader.word(keys.get("unit"), "unit", UNITS)
        if not METRIC_NAME.fullmatch(name):
            reader.wrong(key, "a metric's name has letters, digits, underscores and colons, and starts with no digit")
        elif name.endswith("_total"):
            reader.wrong(key, "must not end in _total, which promises a counter: values are those of one window")
        elif unit in {"bytes", "seconds"} and not name.endswith(f"_{unit}"):
            reader.wrong(key, f"counts {unit}, so its name must end in _{unit}")
        if name in self.metrics:
            reader.wrong(key, "is the name of another metric, too")
        self.metrics.add(name)
        return Metric(name, self._sentence(keys.get("help")), unit, additive)

    def _path(self, node: yaml.Node | None) -> tuple[str, ...]:
        text = self.reader.text(node, "field")
        if text and node is not None and not _FIELD.fullmatch(text):
            self.reader.wrong(node, "a field is `count`, or an object and a number in it, such as sum.requests")
        return tuple(text.split("."))

    def _graphql(self, node: yaml.Node | None, what: str) -> str:
        text = self.reader.text(node, what)
        if text and node is not None and not _GRAPHQL.fullmatch(text):
            self.reader.wrong(node, f"{what} must be a name of Cloudflare's schema")
        return text
