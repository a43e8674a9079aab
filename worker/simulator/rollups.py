"""The HTTP rollups of a zone: what they consist of, and their rows as Cloudflare would show them at a given time.

Groups what is visible by the dimensions that were asked for and gives it Cloudflare's field names. A slice of time in
which nothing is visible has no row. Knows no GraphQL, no limits and no plan.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from worker.simulator.filters import Span
from worker.simulator.fleet import BucketTruth, Fleet
from worker.simulator.settling import Settling
from worker.simulator.traffic import Tally, add

Row = dict[str, Any]

HOUR_SECONDS = 3_600
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Rollup:
    """One dataset of a zone whose rows are made in advance, per `width_seconds`.

    name:          its field on `zone`.
    width_seconds: of the finest rows it has.
    widths:        what its rows can be grouped by: dimensions of time, each with the seconds that it is truncated to.
    """

    name: str
    width_seconds: int
    widths: Mapping[str, int]

    @property
    def type_name(self) -> str:
        return f"Zone{self.name[0].upper()}{self.name[1:]}"

    @property
    def filters_only(self) -> frozenset[str]:
        """Times that a filter knows and rows cannot be grouped by: none."""
        return frozenset()

    @property
    def fields(self) -> list[str]:
        """Every field in the form in which `settings` lists them, for example `sum_requests`."""
        return sorted(
            [
                *(f"avg_{name}" for name in AVERAGES),
                *(f"dimensions_{name}" for name in self.widths),
                *(f"sum_{name}" for name in (*SUMS, *MAPS)),
                "uniq_uniques",
            ]
        )


ROLLUPS = {
    rollup.name: rollup
    for rollup in (
        Rollup(
            "httpRequests1mGroups",
            60,
            {
                "date": DAY_SECONDS,
                "datetime": 60,
                "datetimeDay": DAY_SECONDS,
                "datetimeFifteenMinutes": 900,
                "datetimeFiveMinutes": 300,
                "datetimeHalfOfHour": 1_800,
                "datetimeHour": HOUR_SECONDS,
                "datetimeMinute": 60,
            },
        ),
        Rollup("httpRequests1hGroups", HOUR_SECONDS, {"date": DAY_SECONDS, "datetime": HOUR_SECONDS}),
        Rollup("httpRequests1dGroups", DAY_SECONDS, {"date": DAY_SECONDS}),
    )
}

AVERAGES = ("bytes", "edgeRequestBytes", "sampleInterval")
SUMS = (
    "bytes",
    "cachedBytes",
    "cachedRequests",
    "edgeRequestBytes",
    "encryptedBytes",
    "encryptedRequests",
    "pageViews",
    "requests",
    "threats",
)
MAPS: Mapping[str, Mapping[str, str]] = {
    "browserMap": {"pageViews": "uint64", "uaBrowserFamily": "string"},
    "clientHTTPVersionMap": {"clientHTTPProtocol": "string", "requests": "uint64"},
    "clientSSLMap": {"clientSSLProtocol": "string", "requests": "uint64"},
    "contentTypeMap": {"bytes": "uint64", "edgeResponseContentTypeName": "string", "requests": "uint64"},
    "countryMap": {"bytes": "uint64", "clientCountryName": "string", "requests": "uint64", "threats": "uint64"},
    "ipClassMap": {"ipType": "string", "requests": "uint64"},
    "responseStatusMap": {"edgeResponseStatus": "uint64", "requests": "uint64"},
    "threatPathingMap": {"requests": "uint64", "threatPathingName": "string"},
}


def rows(
    fleet: Fleet,
    zone_tag: str,
    rollup: Rollup,
    spans: Sequence[Span],
    dimensions: Sequence[str],
    *,
    now: float,
    settling: Settling,
) -> list[Row]:
    """One row per combination of the dimensions' values that has anything to show at `now`, oldest first."""
    groups: defaultdict[tuple[int, ...], list[Tally]] = defaultdict(list)
    widths = [rollup.widths[dimension] for dimension in dimensions]
    for first, end in spans:
        for start in range(first, min(end, int(now) + 1), rollup.width_seconds):
            tally = fleet.visible_tally(zone_tag, start, rollup.width_seconds, now=now, settling=settling)
            if tally is not None:
                groups[tuple(start - start % width for width in widths)].append(tally)
    found: list[Row] = []
    for starts, tallies in groups.items():
        truth = fleet.truth_of(zone_tag, add(tallies))
        if truth is not None:
            found.append(
                row(truth, {name: time_text(name, start) for name, start in zip(dimensions, starts, strict=True)})
            )
    return found


def ordered(found: Sequence[Row], orders: Sequence[str], salt: str) -> list[Row]:
    """The rows by `orders`, names of the dataset's OrderBy enum of which the first counts most; else in no order."""
    result = shuffled(found, salt)
    for order in reversed(orders):
        field, _, direction = order.rpartition("_")
        part, _, name = field.rpartition("_")
        result = _sorted(result, part or "dimensions", name, is_descending=direction == "DESC")
    return result


def _sorted(found: Sequence[Row], part: str, name: str, *, is_descending: bool) -> list[Row]:
    return sorted(found, key=lambda each: each[part][name], reverse=is_descending)


def shuffled(items: Sequence[Any], salt: str) -> list[Any]:
    """The items in an order that depends on nothing but `salt` and their places."""
    places = sorted(range(len(items)), key=lambda place: hashlib.blake2b(f"{salt}/{place}".encode()).digest())
    return [items[place] for place in places]


def ordering_dimensions(orders: Sequence[str]) -> list[str]:
    """The dimensions among what the rows are to be ordered by."""
    fields = (order.rpartition("_")[0] for order in orders)
    return [field for field in fields if "_" not in field]


@lru_cache(1_024)
def time_text(dimension: str, start: int) -> str:
    """The value that a time dimension has in a row, of unix seconds."""
    moment = datetime.fromtimestamp(start, UTC)
    return f"{moment:%Y-%m-%d}" if dimension == "date" else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def row(truth: BucketTruth, dimensions: Mapping[str, str]) -> Row:
    """The whole row of a window: every field that Cloudflare has, under its name."""
    return {
        "dimensions": dimensions,
        "avg": {
            "bytes": truth.response_bytes / truth.requests,
            "edgeRequestBytes": truth.edge_request_bytes / truth.requests,
            # Rollups count every request.
            "sampleInterval": 1.0,
        },
        "sum": {
            "requests": truth.requests,
            "bytes": truth.response_bytes,
            "cachedRequests": truth.cached_requests,
            "cachedBytes": truth.cached_response_bytes,
            "encryptedRequests": truth.encrypted_requests,
            "encryptedBytes": truth.encrypted_response_bytes,
            "edgeRequestBytes": truth.edge_request_bytes,
            "pageViews": truth.page_views,
            "threats": truth.threats,
            "countryMap": [
                {
                    "clientCountryName": country,
                    "requests": requests,
                    "bytes": truth.country_response_bytes[country],
                    "threats": truth.country_threats[country],
                }
                for country, requests in truth.country_requests.items()
            ],
            "contentTypeMap": [
                {
                    "edgeResponseContentTypeName": content_type,
                    "requests": requests,
                    "bytes": truth.content_type_response_bytes[content_type],
                }
                for content_type, requests in truth.content_type_requests.items()
            ],
            "responseStatusMap": _elements("edgeResponseStatus", "requests", truth.status_requests),
            "browserMap": _elements("uaBrowserFamily", "pageViews", truth.browser_page_views),
            "clientHTTPVersionMap": _elements("clientHTTPProtocol", "requests", truth.http_version_requests),
            "clientSSLMap": _elements("clientSSLProtocol", "requests", truth.tls_version_requests),
            "ipClassMap": _elements("ipType", "requests", truth.ip_class_requests),
            "threatPathingMap": _elements("threatPathingName", "requests", truth.threat_type_requests),
        },
        "uniq": {"uniques": truth.unique_visitors},
    }


def _elements(label_field: str, amount_field: str, amounts: Mapping[Any, int]) -> list[dict[str, Any]]:
    return [{label_field: label, amount_field: amount} for label, amount in amounts.items()]
