"""The part of Cloudflare's GraphQL schema that is simulated: zones, accounts, and three datasets with their settings.

Owns the rollups as data (`ROLLUPS`), the schema text made from them, and what each scalar accepts. Type, field and
scalar names are Cloudflare's, lower case included, so that a query that is valid here is valid there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from graphql import GraphQLError, GraphQLScalarType, GraphQLSchema, build_schema

HOUR_SECONDS = 3_600
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Rollup:
    """One dataset of a zone whose rows are made in advance, per `width_seconds`.

    node:          its field on `zone`.
    width_seconds: of the finest rows it has.
    dimensions:    what its rows can be grouped by; each with the seconds that it is truncated to.
    """

    node: str
    width_seconds: int
    dimensions: Mapping[str, int]

    @property
    def type_name(self) -> str:
        return f"Zone{self.node[0].upper()}{self.node[1:]}"


ROLLUPS = {
    rollup.node: rollup
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

_COMPARISONS = ("geq", "gt", "leq", "lt", "neq")
_MEMBERSHIPS = ("in", "notin")

_FRAME = """
type Query {
  cost: uint64!
  viewer: viewer
}

type viewer {
  accounts(filter: AccountFilter_InputObject): [account!]!
  budget: uint64!
  zones(filter: ZoneFilter_InputObject, limit: uint64): [zone!]!
}

input AccountFilter_InputObject {
  accountTag: string!
}

input ZoneFilter_InputObject {
  zoneTag: string
  zoneTag_gt: string
  zoneTag_in: [string!]
}

type account {
  accountTag: string!
  zones(filter: ZoneFilter_InputObject, limit: uint64): [zone!]!
}

type Settings {
  availableFields: [string!]!
  enabled: bool!
  maxDuration: int64!
  maxNumberOfFields: int64!
  maxPageSize: int64!
  notOlderThan: int64!
}
"""


def available_fields(rollup: Rollup) -> list[str]:
    """Every field of the rollup in the form in which `settings` lists them, for example `sum_requests`."""
    return sorted(
        [
            *(f"avg_{name}" for name in AVERAGES),
            *(f"dimensions_{name}" for name in rollup.dimensions),
            *(f"sum_{name}" for name in (*SUMS, *MAPS)),
            "uniq_uniques",
        ]
    )


def schema_text() -> str:
    """The schema in GraphQL's own language."""
    scalars = "\n".join(f"scalar {name}" for name in _SCALARS)
    settings = _block("type ZoneSettings", dict.fromkeys(ROLLUPS, "Settings!"))
    zone = _block(
        "type zone",
        {
            **{
                f"{node}(filter: {rollup.type_name}Filter_InputObject!, limit: uint64!, "
                f"orderBy: [{rollup.type_name}OrderBy!])": f"[{rollup.type_name}!]!"
                for node, rollup in ROLLUPS.items()
            },
            "settings": "ZoneSettings",
            "zoneTag": "string!",
        },
    )
    return "\n".join([scalars, _FRAME, settings, zone, *(_rollup_text(rollup) for rollup in ROLLUPS.values())])


def _rollup_text(rollup: Rollup) -> str:
    name = rollup.type_name
    filter_fields: dict[str, str] = {
        "AND": f"[{name}Filter_InputObject!]",
        "OR": f"[{name}Filter_InputObject!]",
    }
    for dimension in rollup.dimensions:
        scalar = _dimension_scalar(dimension)
        filter_fields[dimension] = scalar
        filter_fields.update({f"{dimension}_{comparison}": scalar for comparison in _COMPARISONS})
        filter_fields.update({f"{dimension}_{membership}": f"[{scalar}!]" for membership in _MEMBERSHIPS})
    orders = [
        f"{field}_{direction}"
        for field in available_fields(rollup)
        if field.removeprefix("sum_") not in MAPS
        for direction in ("ASC", "DESC")
    ]
    return "\n".join(
        [
            _block(
                f"type {name}", {part: f"{name}{part.capitalize()}" for part in ("avg", "dimensions", "sum", "uniq")}
            ),
            _block(f"type {name}Avg", dict.fromkeys(AVERAGES, "float64!")),
            _block(f"type {name}Dimensions", {field: f"{_dimension_scalar(field)}!" for field in rollup.dimensions}),
            _block(
                f"type {name}Sum",
                {**dict.fromkeys(SUMS, "uint64!"), **{field: f"[{_element(name, field)}!]!" for field in MAPS}},
            ),
            _block(f"type {name}Uniq", {"uniques": "uint64!"}),
            *(
                _block(f"type {_element(name, map_name)}", {field: f"{scalar}!" for field, scalar in fields.items()})
                for map_name, fields in MAPS.items()
            ),
            _block(f"input {name}Filter_InputObject", filter_fields),
            # In an enum a value has no type; the dimensions are named without their prefix.
            _block(f"enum {name}OrderBy", {order.removeprefix("dimensions_"): "" for order in orders}),
        ]
    )


def _element(type_name: str, map_name: str) -> str:
    return f"{type_name}{map_name[0].upper()}{map_name[1:]}Elem"


def _dimension_scalar(dimension: str) -> str:
    return "Date" if dimension == "date" else "Time"


def _block(head: str, members: Mapping[str, str]) -> str:
    lines = (f"  {name}: {kind}" if kind else f"  {name}" for name, kind in members.items())
    return "\n".join([f"{head} {{", *lines, "}", ""])


def _integer(lowest: int, highest: int) -> Callable[[Any], int | None]:
    def parse(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest else None

    return parse


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


# RFC 3339, section 5.6; `fromisoformat` alone takes more than that.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _time(value: Any) -> float | None:
    """Unix seconds."""
    return _moment(value) if isinstance(value, str) and _TIME.fullmatch(value) else None


def _date(value: Any) -> float | None:
    """Unix seconds of its midnight in UTC."""
    return _moment(f"{value}T00:00:00Z") if isinstance(value, str) and _DATE.fullmatch(value) else None


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # the 30th of February
        return None


# What each scalar accepts, in words and as a function that gives None for anything else.
_SCALARS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "Date": ("a date like 2026-02-22", _date),
    "Time": ("a time like 2026-02-22T20:00:00Z", _time),
    "bool": ("true or false", _bool),
    "float64": ("a number", _float),
    "int64": ("an integer of 64 bits", _integer(-(2**63), 2**63 - 1)),
    "string": ("a string", _string),
    "uint64": ("an integer of 64 bits that is not negative", _integer(0, 2**64 - 1)),
}


def _coercion(name: str, expected: str, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def coerce(value: Any) -> Any:
        parsed = parse(value)
        if parsed is None:
            message = f"{name} must be {expected}"
            raise GraphQLError(message)
        return parsed

    return coerce


def _built() -> GraphQLSchema:
    schema = build_schema(schema_text())
    for name, (expected, parse) in _SCALARS.items():
        scalar = schema.type_map[name]
        if isinstance(scalar, GraphQLScalarType):
            scalar.coerce_input_value = _coercion(name, expected, parse)
    return schema


SCHEMA = _built()
