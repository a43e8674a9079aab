"""The part of Cloudflare's GraphQL schema that is simulated: zones and accounts, the rollups, and a catalogue's nodes.

Owns the schema text made from them. Type, field and scalar names are Cloudflare's, lower case included, so that a query
that is valid here is valid there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from graphql import GraphQLError, GraphQLScalarType, GraphQLSchema, build_ast_schema, parse

from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.simulator.nodes import Node, NodeKey, Path, nodes_of
from worker.simulator.rollups import AVERAGES, MAPS, ROLLUPS, SUMS, Rollup
from worker.simulator.scalars import SCALARS

Source = Rollup | Node
"""What a dataset's field of a zone or an account is answered from."""

_COMPARISONS = ("geq", "gt", "leq", "lt", "neq")
_MEMBERSHIPS = ("in", "notin")
_LIKENESSES = ("like", "notlike")

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

type Settings {
  availableFields: [string!]!
  enabled: bool!
  maxDuration: int64!
  maxNumberOfFields: int64!
  maxPageSize: int64!
  notOlderThan: int64!
}
"""


@dataclass(frozen=True, eq=False)
class Schema:
    """What can be asked.

    sources: what answers each dataset's field, by the scope that has it and its name.
    """

    sources: Mapping[NodeKey, Source]

    @cached_property
    def nodes(self) -> dict[NodeKey, Node]:
        """All of them but the zones' rollups."""
        return {key: source for key, source in self.sources.items() if isinstance(source, Node)}

    @cached_property
    def graphql(self) -> GraphQLSchema:
        """The schema that queries are checked by."""
        # Its validity is a test's concern: to find it out takes several times as long as all the rest.
        document = parse(schema_text(self.sources), no_location=True)
        schema = build_ast_schema(document, assume_valid=True, assume_valid_sdl=True)
        for name, (expected, accepted) in SCALARS.items():
            scalar = schema.type_map[name]
            if isinstance(scalar, GraphQLScalarType):
                scalar.coerce_input_value = _coercion(name, expected, accepted)
        return schema


# The schema of 80 nodes takes 0.2 seconds to make and some 20 MB; tests have a few small ones of their own.
@lru_cache(4)
def schema_of(datasets: tuple[Dataset, ...]) -> Schema:
    """The schema with the zones' rollups and the nodes that the datasets use."""
    return Schema({**{(ScopeKind.ZONE, name): rollup for name, rollup in ROLLUPS.items()}, **nodes_of(datasets)})


def schema_text(sources: Mapping[NodeKey, Source]) -> str:
    """The schema in GraphQL's own language."""
    scalars = "\n".join(f"scalar {name}" for name in SCALARS)
    of_zones, of_accounts = (
        {name: source for (scope, name), source in sources.items() if scope is kind} for kind in ScopeKind
    )
    zones = "zones(filter: ZoneFilter_InputObject, limit: uint64)"
    return "\n".join(
        [
            scalars,
            _FRAME,
            _scope_text(ScopeKind.ZONE, of_zones, {"zoneTag": "string!"}),
            _scope_text(ScopeKind.ACCOUNT, of_accounts, {"accountTag": "string!", zones: "[zone!]!"}),
            *(_source_text(source) for source in sources.values()),
        ]
    )


def _scope_text(scope: ScopeKind, sources: Mapping[str, Source], fields: Mapping[str, str]) -> str:
    fields = {
        **fields,
        **{
            f"{name}(filter: {source.type_name}Filter_InputObject!, limit: uint64!, "
            f"orderBy: [{source.type_name}OrderBy!])": f"[{source.type_name}!]!"
            for name, source in sources.items()
        },
    }
    if not sources:
        return _block(f"type {scope}", fields)
    settings = f"{scope.capitalize()}Settings"
    return "\n".join(
        [
            _block(f"type {settings}", dict.fromkeys(sources, "Settings!")),
            _block(f"type {scope}", {**fields, "settings": settings}),
        ]
    )


def _source_text(source: Source) -> str:
    numbers: dict[Path, str]
    maps: Mapping[Path, Mapping[str, str]]
    if isinstance(source, Rollup):
        numbers = {
            **{("avg", name): "float64" for name in AVERAGES},
            **{("sum", name): "uint64" for name in SUMS},
            ("uniq", "uniques"): "uint64",
        }
        maps = {("sum", name): fields for name, fields in MAPS.items()}
        dimensions = {}
    else:
        numbers, maps, dimensions = dict(source.numbers), source.maps, dict(source.dimensions)
    times = {name: "Date" if name == "date" else "Time" for name in source.widths}
    comparable = dimensions | times
    dimensions |= {name: scalar for name, scalar in times.items() if name not in source.filters_only}
    name = source.type_name
    parts: dict[str, dict[str, str]] = {"": {}}
    for path, scalar in numbers.items():
        parts.setdefault(path[0] if len(path) > 1 else "", {})[path[-1]] = f"{scalar}!"
    for path in maps:
        parts.setdefault(path[0], {})[path[1]] = f"[{_element(name, path[1])}!]!"
    # A node that is only asked for single windows without labels has none.
    if dimensions:
        parts["dimensions"] = {dimension: f"{scalar}!" for dimension, scalar in dimensions.items()}
    own = parts.pop("")
    orders = [*dimensions, *("_".join(path) for path in numbers)]
    return "\n".join(
        [
            _block(f"type {name}", {**own, **{part: f"{name}{_capitalized(part)}" for part in parts}}),
            *(_block(f"type {name}{_capitalized(part)}", fields) for part, fields in parts.items()),
            *(
                _block(f"type {_element(name, path[1])}", {field: f"{scalar}!" for field, scalar in fields.items()})
                for path, fields in maps.items()
            ),
            _block(f"input {name}Filter_InputObject", _filter_fields(name, comparable)),
            # In an enum a value has no type; the dimensions are named without their prefix.
            _block(f"enum {name}OrderBy", {f"{order}_{way}": "" for order in orders for way in ("ASC", "DESC")}),
        ]
    )


def _filter_fields(name: str, dimensions: Mapping[str, str]) -> dict[str, str]:
    fields = dict.fromkeys(("AND", "OR"), f"[{name}Filter_InputObject!]")
    for dimension, scalar in dimensions.items():
        fields[dimension] = scalar
        fields |= {f"{dimension}_{comparison}": scalar for comparison in _COMPARISONS}
        # Cloudflare has lists of uint8 as a scalar of their own, which is not simulated.
        if scalar != "uint8":
            fields |= {f"{dimension}_{membership}": f"[{scalar}!]" for membership in _MEMBERSHIPS}
        if scalar == "string":
            fields |= {f"{dimension}_{likeness}": scalar for likeness in _LIKENESSES}
    return fields


def _element(type_name: str, map_name: str) -> str:
    return f"{type_name}{_capitalized(map_name)}Elem"


def _capitalized(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}"


def _block(head: str, members: Mapping[str, str]) -> str:
    lines = (f"  {name}: {kind}" if kind else f"  {name}" for name, kind in members.items())
    return "\n".join([f"{head} {{", *lines, "}", ""])


def _coercion(name: str, expected: str, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def coerce(value: Any) -> Any:
        parsed = parse(value)
        if parsed is None:
            message = f"{name} must be {expected}"
            raise GraphQLError(message)
        return parsed

    return coerce
