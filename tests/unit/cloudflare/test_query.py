from pathlib import Path

import msgspec
import pytest
from graphql import GraphQLSchema, build_schema, parse, validate

from tests.unit.cloudflare.fake import zone
from worker.cloudflare.catalogue import DATASETS, HTTP_REQUESTS, Dataset
from worker.cloudflare.query import WindowsQuery

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
    return WindowsQuery(dataset, dataset.grain(width_seconds), (zone(1), zone(2)), starts)


def test_every_query_is_valid_for_cloudflares_schema(schema: GraphQLSchema) -> None:
    checked = 0
    for dataset in DATASETS.values():
        fields = [item.field for item in dataset.totals] + [item.field for item in dataset.breakdowns]
        fields += [f"{item.field}_{leaf}" for item in dataset.breakdowns for leaf, _ in item.values]
        for width in dataset.widths_seconds:
            for dropped in ((), *((field,) for field in fields), tuple(fields[1:]), tuple(fields[:-1])):
                text = query(width, dataset=dataset.without(dropped)).text
                assert validate(schema, parse(text)) == [], text
                checked += 1
    assert checked == 6 * 31


def test_a_query_asks_ordered_and_with_one_row_more_than_windows() -> None:
    asked = query(300)
    assert asked.limit == 4
    assert "orderBy: [datetimeFiveMinutes_ASC]" in asked.text
    assert "rows: httpRequests1mGroups(" in asked.text
    assert "dimensions { start: datetimeFiveMinutes }" in asked.text
    assert asked.variables == {
        "zones": [zone(1).tag, zone(2).tag],
        "since": "2025-06-15T15:00:00Z",
        "until": "2025-06-15T15:15:00Z",
        "limit": 4,
    }


def test_days_are_asked_for_as_dates() -> None:
    asked = query(86400, windows=2)
    assert "$since: Date!" in asked.text
    assert "date_geq: $since, date_lt: $until" in asked.text
    assert (asked.variables["since"], asked.variables["until"]) == ("2025-06-15", "2025-06-17")


def test_a_payload_is_the_document_and_its_variables() -> None:
    asked = query(60)
    assert msgspec.json.decode(asked.payload()) == {"query": asked.text, "variables": asked.variables}


def test_a_dropped_field_is_not_asked_for() -> None:
    text = query(60, dataset=HTTP_REQUESTS.without({"uniq_uniques", "sum_countryMap_bytes"})).text
    assert "uniq" not in text
    assert "countryMap { clientCountryName requests threats }" in text
