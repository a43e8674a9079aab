from pathlib import Path
from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    build_ast_schema,
    build_schema,
    is_required_argument,
    is_specified_scalar_type,
    parse,
    validate,
    validate_schema,
)

from tests.unit.simulator.entries import ENTRIES
from worker.simulator.nodes import shipped_datasets
from worker.simulator.rollups import ROLLUPS
from worker.simulator.schema import schema_of, schema_text

SIMULATED = schema_of((*shipped_datasets(), *ENTRIES))
SCHEMA = SIMULATED.graphql
CLOUDFLARES = Path(__file__).parents[4] / "shared" / "cloudflare" / "schema.graphql"

OURS = {
    name: kind
    for name, kind in SCHEMA.type_map.items()
    if not name.startswith("__") and not (isinstance(kind, GraphQLScalarType) and is_specified_scalar_type(kind))
}


@pytest.fixture(scope="module")
def theirs() -> GraphQLSchema:
    if not CLOUDFLARES.exists():
        pytest.skip(f"Cloudflare's schema is not at {CLOUDFLARES}")
    return build_ast_schema(parse(CLOUDFLARES.read_text(), no_location=True), assume_valid_sdl=True)


def disagreements(ours: Any, theirs: Any) -> list[str]:
    """What the simulated type has that Cloudflare's has not, or has otherwise."""
    match ours, theirs:
        case GraphQLScalarType(), GraphQLScalarType():
            return []
        case GraphQLEnumType(), GraphQLEnumType():
            return [f"value {value}" for value in ours.values if value not in theirs.values]
        case GraphQLInputObjectType(), GraphQLInputObjectType():
            return fields_that_differ(ours, theirs)
        case GraphQLObjectType(), GraphQLObjectType():
            return fields_that_differ(ours, theirs) + [
                f"argument {argument} of {name}"
                for name, field in ours.fields.items()
                if name in theirs.fields
                for argument in arguments_that_differ(field.args, theirs.fields[name].args)
            ]
        case _:
            return [f"is {type(theirs).__name__}"]


def fields_that_differ(ours: Any, theirs: Any) -> list[str]:
    return [
        f"field {name}: {field.type}"
        for name, field in ours.fields.items()
        if name not in theirs.fields or str(theirs.fields[name].type) != str(field.type)
    ]


def arguments_that_differ(ours: Any, theirs: Any) -> list[str]:
    odd = [
        name for name, argument in ours.items() if name not in theirs or str(theirs[name].type) != str(argument.type)
    ]
    return odd + [name for name, argument in theirs.items() if is_required_argument(argument) and name not in ours]


def test_every_type_field_argument_and_value_is_cloudflares_own(theirs: GraphQLSchema) -> None:
    found = {
        name: disagreements(kind, theirs.type_map[name]) if name in theirs.type_map else ["no such type"]
        for name, kind in OURS.items()
    }
    assert {name: odd for name, odd in found.items() if odd} == {}


def test_no_field_of_a_simulated_dataset_is_left_out(theirs: GraphQLSchema) -> None:
    for rollup in ROLLUPS.values():
        for name, kind in OURS.items():
            if name.startswith(rollup.type_name):
                other: Any = theirs.type_map[name]
                members = "values" if isinstance(kind, GraphQLEnumType) else "fields"
                assert getattr(kind, members).keys() == getattr(other, members).keys(), name


def test_the_schema_is_valid() -> None:
    assert validate_schema(build_schema(schema_text(SIMULATED.sources))) == []


def test_a_query_for_all_of_a_dataset_is_valid() -> None:
    for rollup in ROLLUPS.values():
        parts: dict[str, list[str]] = {}
        for field in rollup.fields:
            part, _, name = field.partition("_")
            parts.setdefault(part, []).append(f"{name} {{ __typename }}" if name.endswith("Map") else name)
        selected = " ".join(f"{part} {{ {' '.join(names)} }}" for part, names in parts.items())
        text = f"{{ viewer {{ zones {{ {rollup.name}(limit: 1, filter: {{}}) {{ {selected} }} }} }} }}"
        assert validate(SCHEMA, parse(text)) == []


def rows(node: str, arguments: str, fields: str = "sum { requests }") -> str:
    return f"{{ viewer {{ zones {{ {node}({arguments}) {{ {fields} }} }} }} }}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (rows("httpRequests1hGroups", "filter: {}"), "limit"),
        (rows("httpRequests1hGroups", "limit: 1"), "filter"),
        (rows("httpRequests1hGroups", "limit: 1, filter: {}", "count"), "count"),
        (rows("httpRequests1hGroups", 'limit: "1", filter: {}'), "uint64"),
        (rows("httpRequests1hGroups", "limit: -1, filter: {}"), "uint64"),
        (rows("httpRequests1hGroups", "limit: 1, filter: {}, orderBy: [sum_countryMap_ASC]"), "OrderBy"),
        (rows("httpRequests1hGroups", 'limit: 1, filter: {datetime_geq: "2026-02-22"}'), "Time"),
        (rows("httpRequests1dGroups", 'limit: 1, filter: {date: "2026-02-30"}'), "Date"),
        (rows("httpRequests1dGroups", 'limit: 1, filter: {datetime_geq: "2026-02-22T00:00:00Z"}'), "datetime_geq"),
        ("query ($tag: String!) { viewer { zones(filter: {zoneTag: $tag}) { zoneTag } } }", "String"),
    ],
)
def test_a_query_that_cloudflare_would_not_take_is_not_valid(text: str, complaint: str) -> None:
    errors = validate(SCHEMA, parse(text))
    assert errors
    assert complaint in errors[0].message
