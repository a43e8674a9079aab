"""The catalogue: which datasets exist, how each is asked for, and which fields become which metrics and labels.

Data only. A dataset is added by writing it down here; building its queries and decoding its answers follow from the
description. Names of nodes, dimensions and fields are those of Cloudflare's GraphQL Analytics schema.
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
    """A number per window. A settled window that Cloudflare has no row for is a 0 of it: no traffic.

    path: object and field of a row, for example ("sum", "requests").
    """

    path: tuple[str, str]
    metric: Metric

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


class TimeType(StrEnum):
    """The scalar of the schema that a node's time dimension and its filter have."""

    TIME = "Time"
    DATE = "Date"


@dataclass(frozen=True, slots=True)
class Grain:
    """How windows of one width are asked for.

    width_seconds: the windows' width.
    node:          the GraphQL node.
    dimension:     the time dimension that rows are grouped and ordered by; its value is the window's start.
    since, until:  the filter's fields for the first instant and for the first instant that is not asked any more.
    time:          the scalar type of all three.
    """

    width_seconds: int
    node: str
    dimension: str
    since: str
    until: str
    time: TimeType


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of the catalogue: the same fields at several widths.

    name:       what users write in CF_DATASETS.
    help:       one sentence for people.
    grains:     one per supported width, narrowest first.
    totals:     numbers per window.
    breakdowns: maps per window.
    """

    name: str
    help: str
    grains: tuple[Grain, ...]
    totals: tuple[Total, ...]
    breakdowns: tuple[Breakdown, ...]

    @property
    def widths_seconds(self) -> tuple[int, ...]:
        """The window widths that it can be collected at."""
        return tuple(grain.width_seconds for grain in self.grains)

    def grain(self, width_seconds: int) -> Grain:
        """How windows of this width are asked for; ValueError where the dataset has none."""
        for grain in self.grains:
            if grain.width_seconds == width_seconds:
                return grain
        message = f"{self.name} has no windows of {width_seconds} s, only of {self.widths_seconds}"
        raise ValueError(message)

    def metrics(self) -> Iterator[tuple[Metric, str | None]]:
        """Every metric, with the label that breaks it down."""
        for total in self.totals:
            yield total.metric, None
        for breakdown in self.breakdowns:
            for _, metric in breakdown.values:
                yield metric, breakdown.label

    def fields_named(self, name: str) -> frozenset[str]:
        """The fields that `name` may mean, to be handed to `without`.

        Cloudflare refuses a field by its last name in lower case ('clientasn'), which several places may share: then
        the place closest to the root is meant. Empty where nothing has that name.
        """
        wanted = name.lower().replace(".", "_")
        whole: list[tuple[str, str]] = [(item.field, item.path[-1]) for item in self.totals]
        whole += [(item.field, item.path[-1]) for item in self.breakdowns]
        keys = [(item.field, item.key) for item in self.breakdowns]
        leaves = [(f"{item.field}_{leaf}", leaf) for item in self.breakdowns for leaf, _ in item.values]
        for level in (whole, keys, leaves):
            if found := frozenset(field for field, last in level if wanted in (field.lower(), last.lower())):
                return found
        return frozenset()

    def without(self, fields: Iterable[str]) -> "Dataset":
        """The same dataset without these fields, named like `sum_threats`, `sum_countryMap`, `sum_countryMap_bytes`."""
        dropped = frozenset(fields)
        narrowed = (
            replace(item, values=tuple(pair for pair in item.values if f"{item.field}_{pair[0]}" not in dropped))
            for item in self.breakdowns
            if item.field not in dropped
        )
        return replace(
            self,
            totals=tuple(total for total in self.totals if total.field not in dropped),
            breakdowns=tuple(item for item in narrowed if item.values),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to ask for."""
        return not self.totals and not self.breakdowns


def _requests_by(path: str, key: str, label: str, what: str) -> Breakdown:
    """A map of the HTTP rollups that counts requests only."""
    metric = Metric(f"cloudflare_zone_{label}_requests", f"Requests in the window, by {what}.", "requests")
    return Breakdown(("sum", path), key, label, (("requests", metric),))


HTTP_REQUESTS = Dataset(
    name="http_requests",
    help="HTTP traffic of a zone, from Cloudflare's rollups, which are not sampled adaptively.",
    grains=(
        Grain(60, "httpRequests1mGroups", "datetimeMinute", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(300, "httpRequests1mGroups", "datetimeFiveMinutes", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(900, "httpRequests1mGroups", "datetimeFifteenMinutes", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(1800, "httpRequests1mGroups", "datetimeHalfOfHour", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(3600, "httpRequests1hGroups", "datetime", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(86400, "httpRequests1dGroups", "date", "date_geq", "date_lt", TimeType.DATE),
    ),
    totals=(
        Total(("sum", "requests"), Metric("cloudflare_zone_requests", "Requests in the window.", "requests")),
        Total(
            ("uniq", "uniques"),
            Metric(
                "cloudflare_zone_unique_visitors",
                "Different client IP addresses in the window; must not be summed over windows or zones.",
                "visitors",
                additive=False,
            ),
        ),
        Total(
            ("sum", "bytes"),
            Metric("cloudflare_zone_response_bytes", "Bytes returned to clients in the window.", "bytes"),
        ),
        Total(
            ("sum", "cachedRequests"),
            Metric("cloudflare_zone_cached_requests", "Requests in the window that the cache answered.", "requests"),
        ),
        Total(
            ("sum", "cachedBytes"),
            Metric(
                "cloudflare_zone_cached_response_bytes",
                "Bytes returned to clients from the cache in the window.",
                "bytes",
            ),
        ),
        Total(
            ("sum", "encryptedRequests"),
            Metric("cloudflare_zone_encrypted_requests", "Requests over TLS in the window.", "requests"),
        ),
        Total(
            ("sum", "encryptedBytes"),
            Metric(
                "cloudflare_zone_encrypted_response_bytes",
                "Bytes returned to clients over TLS in the window.",
                "bytes",
            ),
        ),
        Total(
            ("sum", "pageViews"),
            Metric("cloudflare_zone_page_views", "Successful requests for HTML in the window.", "page views"),
        ),
        Total(
            ("sum", "threats"),
            Metric("cloudflare_zone_threats", "Requests in the window that were classified as threats.", "requests"),
        ),
    ),
    breakdowns=(
        Breakdown(
            ("sum", "countryMap"),
            "clientCountryName",
            "country",
            (
                (
                    "requests",
                    Metric(
                        "cloudflare_zone_country_requests",
                        "Requests in the window, by the client's country.",
                        "requests",
                    ),
                ),
                (
                    "bytes",
                    Metric(
                        "cloudflare_zone_country_response_bytes",
                        "Bytes returned to clients in the window, by the client's country.",
                        "bytes",
                    ),
                ),
                (
                    "threats",
                    Metric(
                        "cloudflare_zone_country_threats",
                        "Requests in the window that were classified as threats, by the client's country.",
                        "requests",
                    ),
                ),
            ),
        ),
        _requests_by("responseStatusMap", "edgeResponseStatus", "status", "the HTTP status returned to the client"),
        Breakdown(
            ("sum", "contentTypeMap"),
            "edgeResponseContentTypeName",
            "content_type",
            (
                (
                    "requests",
                    Metric(
                        "cloudflare_zone_content_type_requests",
                        "Requests in the window, by the content type of the response.",
                        "requests",
                    ),
                ),
                (
                    "bytes",
                    Metric(
                        "cloudflare_zone_content_type_response_bytes",
                        "Bytes returned to clients in the window, by the content type of the response.",
                        "bytes",
                    ),
                ),
            ),
        ),
        Breakdown(
            ("sum", "browserMap"),
            "uaBrowserFamily",
            "browser",
            (
                (
                    "pageViews",
                    Metric(
                        "cloudflare_zone_browser_page_views",
                        "Successful requests for HTML in the window, by the client's browser.",
                        "page views",
                    ),
                ),
            ),
        ),
        _requests_by("clientHTTPVersionMap", "clientHTTPProtocol", "http_version", "HTTP version"),
        _requests_by("clientSSLMap", "clientSSLProtocol", "tls_version", "TLS version; `none` is plain HTTP"),
        _requests_by("ipClassMap", "ipType", "ip_class", "class of the client's IP address"),
        _requests_by("threatPathingMap", "threatPathingName", "threat_type", "kind of threat they were classified as"),
    ),
)

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in (HTTP_REQUESTS,)}
"""Every dataset, by name."""
