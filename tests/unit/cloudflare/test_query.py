from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from graphql import GraphQLSchema, OperationDefinitionNode, build_schema, parse, validate
from graphql.execution.values import get_variable_values

from tests.unit.cloudflare.datasets import (
    ACCOUNT_DATASETS,
    HTTP_CACHE,
    HTTP_OVERVIEW,
    HTTP_REQUESTS,
    HTTP_STATUS,
    KV_STORED,
    WORKERS,
    WORKERS_TOTAL,
    ZONE_DATASETS,
)
from tests.unit.cloudflare.fake import zone
from worker.cloudflare.catalogue import Dataset, ScopeKind, shipped
from worker.cloudflare.query import Source, WindowsQuery
from worker.cloudflare.scope import Account, Scope

SCHEMA = Path(__file__).parents[3].parent / "shared" / "cloudflare" / "schema.graphql"
HOUR = 1_749_999_600


@pytest.fixture(scope="module")
def schema() -> GraphQLSchema:
    if not SCHEMA.exists():
        pytest.skip("Cloudflare's schema is not here")
    return build_schema(SCHEMA.read_text(), assume_valid=True, no_location=True)


def query(width_seconds: int, windows: int = 3, dataset: Dataset = HTTP_REQUESTS) -> WindowsQuery:
    since = HOUR - HOUR % width_seconds
    starts = range(since, since + windows * width_seconds, width_seconds)
    scopes: tuple[Scope, ...] = (zone(1), zone(2)) if dataset.scope is ScopeKind.ZONE else (Account("a" * 32),)
    return WindowsQuery((Source(dataset, dataset.grain(width_seconds)),), scopes, starts)


def droppable(dataset: Dataset) -> list[str]:
    fields = [item.field for item in dataset.totals] + [item.field for item in dataset.breakdowns]
    fields += [f"{item.field}_{leaf}" for item in dataset.breakdowns for leaf, _ in item.values]
    return fields + ["avg_sampleInterval"] * dataset.is_sampled


def test_every_query_is_valid_for_cloudflares_schema(schema: GraphQLSchema) -> None:
    texts = set()
    for dataset in (HTTP_REQUESTS, *ZONE_DATASETS, *ACCOUNT_DATASETS):
        fields = droppable(dataset)
        for width in dataset.widths_seconds:
            if dataset.scope is ScopeKind.ZONE:
                texts.add(replace(query(width, dataset=dataset), account="a" * 32).text)
            for dropped in ((), *((field,) for field in fields), tuple(fields[1:]), tuple(fields[:-1])):
                if not dataset.without(dropped).is_empty:
                    texts.add(query(width, dataset=dataset.without(dropped)).text)
    assert len(texts) > 200
    for text in texts:
        assert validate(schema, parse(text)) == [], text


@pytest.mark.parametrize("width", HTTP_REQUESTS.widths_seconds)
@pytest.mark.parametrize("kind", ScopeKind)
def test_every_shipped_dataset_can_be_asked_for_at_every_width(
    kind: ScopeKind, width: int, schema: GraphQLSchema
) -> None:
    """Whole and together, as it is fast; `cfrw datasets --check` tries each alone and without each of its fields."""
    meant = [each for each in shipped().values() if each.scope is kind and width in each.widths_seconds]
    sources = tuple(Source(dataset, dataset.grain(width)) for dataset in meant)
    assert len(sources) > 50
    for account in ("", "a" * 32):
        assert validate(schema, parse(WindowsQuery(sources, (), range(0, width, width), account).text)) == []


@pytest.mark.parametrize("datasets", [(HTTP_REQUESTS, *ZONE_DATASETS), ACCOUNT_DATASETS])
def test_a_query_for_several_datasets_is_valid_and_so_are_its_variables(
    schema: GraphQLSchema, datasets: tuple[Dataset, ...]
) -> None:
    kind = datasets[0].scope
    scopes: tuple[Scope, ...] = (zone(1), zone(2)) if kind is ScopeKind.ZONE else (Account("a" * 32),)
    for width in (60, 300, 3600, 86400):
        starts = range(0, width, width)
        sources = tuple(Source(dataset, dataset.grain(width)) for dataset in datasets)
        for asked in (WindowsQuery(sources, scopes, starts), WindowsQuery(sources, scopes, starts, "a" * 32)):
            document = parse(asked.text)
            assert validate(schema, document) == []
            (operation,) = document.definitions
            assert isinstance(operation, OperationDefinitionNode)
            declared = operation.variable_definitions or ()
            values = get_variable_values(schema, declared, asked.variables)
            assert not isinstance(values, list), values
            assert {each.variable.name.value for each in declared} == set(asked.variables)


def test_rows_are_grouped_by_the_labels_and_filtered_by_the_conditions() -> None:
    text = query(300, dataset=HTTP_CACHE).text
    assert "{ start: datetimeFiveMinutes cacheStatus }" in text
    assert 'requestSource: "eyeball", edgeResponseStatus_in: [200,404] }' in text
    assert "count sum { edgeResponseBytes originResponseDurationMs } avg { sampleInterval }" in text


def test_a_page_of_a_labelled_dataset_is_the_nodes() -> None:
    grain = HTTP_CACHE.grain(60)
    asked = WindowsQuery(
        (Source(HTTP_CACHE, grain), Source(HTTP_OVERVIEW, grain), Source(HTTP_STATUS, grain, page_rows=500)),
        (zone(1),),
        range(0, 600, 60),
    )
    assert [asked.variables[f"limit{number}"] for number in range(3)] == [10_000, 11, 500]


def test_without_a_time_dimension_rows_are_ordered_by_the_first_label() -> None:
    assert "orderBy: [scriptName_ASC]" in query(300, 1, WORKERS).text
    assert "dimensions { scriptName status }" in query(300, 1, WORKERS).text
    assert "orderBy" not in query(300, 1, WORKERS_TOTAL).text
    assert "dimensions" not in query(300, 1, WORKERS_TOTAL).text


def test_zones_can_be_asked_for_through_their_account() -> None:
    asked = replace(query(300), account="a" * 32)
    head = "viewer { accounts(filter: { accountTag: $account }) { zones(filter: { zoneTag_in: $zones }) { zoneTag r0: "
    assert head in asked.text
    assert asked.variables == query(300).variables | {"account": "a" * 32}


def test_an_account_is_asked_for_alone() -> None:
    asked = query(300, dataset=KV_STORED)
    assert "accounts(filter: { accountTag: $account }) { accountTag r0: kvStorageAdaptiveGroups(" in asked.text
    assert asked.variables["account"] == "a" * 32


def test_a_query_asks_ordered_and_with_one_row_more_than_windows() -> None:
    asked = query(300)
    assert "orderBy: [datetimeFiveMinutes_ASC]" in asked.text
    assert "r0: httpRequests1mGroups(" in asked.text
    assert "dimensions { start: datetimeFiveMinutes }" in asked.text
    assert asked.variables == {
        "zones": [zone(1).tag, zone(2).tag],
        "sinceTime": "2025-06-15T15:00:00Z",
        "untilTime": "2025-06-15T15:15:00Z",
        "limit0": 4,
    }


def test_days_are_asked_for_as_dates() -> None:
    asked = query(86400, windows=2)
    assert "$sinceDate: Date!" in asked.text
    assert "date_geq: $sinceDate, date_lt: $untilDate" in asked.text
    assert (asked.variables["sinceDate"], asked.variables["untilDate"]) == ("2025-06-15", "2025-06-17")


def test_a_payload_is_the_document_and_its_variables() -> None:
    asked = query(60)
    assert msgspec.json.decode(asked.payload()) == {"query": asked.text, "variables": asked.variables}


def test_a_dropped_field_is_not_asked_for() -> None:
    text = query(60, dataset=HTTP_REQUESTS.without({"uniq_uniques", "sum_countryMap_bytes"})).text
    assert "uniq" not in text
    assert "countryMap { clientCountryName requests threats }" in text
