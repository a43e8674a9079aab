"""Rows with labels: what a window's combinations of label values become."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cloudflare.datasets import (
    D1_QUERIES,
    HTTP_CACHE,
    HTTP_OVERVIEW,
    HTTP_STATUS,
    KV_STORED,
    WORKERS,
    WORKERS_TOTAL,
)
from tests.unit.cloudflare.fake import decode, instant, zone
from worker.cloudflare import Account, ApiFailure, Dataset, ErrorKind, Samples, Scope
from worker.cloudflare.catalogue import Breakdown, Label, Metric, ScopeKind, Top
from worker.cloudflare.decode import Decoded
from worker.cloudflare.query import Source, WindowsQuery
from worker.series import parse_label_block

HOUR = 1_749_999_600
FIRST, SECOND = instant(HOUR), instant(HOUR + 3600)
ACCOUNT = Account("a" * 32, "Example Inc")


def asked_for(*datasets: Dataset, windows: int = 2, page_rows: int = 10_000) -> WindowsQuery:
    scope: Scope = zone(1) if datasets[0].scope is ScopeKind.ZONE else ACCOUNT
    sources = tuple(Source(dataset, dataset.grain(3600), page_rows) for dataset in datasets)
    return WindowsQuery(sources, (scope,), range(HOUR, HOUR + windows * 3600, 3600))


def answer(query: WindowsQuery, *rows: Any) -> bytes:
    """The body of an answer with these rows per dataset."""
    kind = query.kind
    entry = {f"{kind}Tag": query.scopes[0].tag} | {f"r{number}": found for number, found in enumerate(rows)}
    return msgspec.json.encode({"data": {"viewer": {f"{kind}s": [entry]}}, "errors": None})


def decoded(dataset: Dataset, rows: Any, **options: Any) -> Decoded:
    query = asked_for(dataset, **options)
    (found,) = decode(answer(query, rows), query).values()
    return found


def windows(dataset: Dataset, rows: Any, **options: Any) -> Mapping[int, Samples]:
    found = decoded(dataset, rows, **options)
    assert not isinstance(found, ApiFailure), found
    return found


def first(dataset: Dataset, rows: Any, **options: Any) -> dict[str, float]:
    return readable(windows(dataset, rows, **options)[HOUR])


def readable(samples: Samples) -> dict[str, float]:
    """Value by metric and the dataset's own labels."""
    found = {}
    for block, value in zip(samples.series, samples.values, strict=True):
        labels = parse_label_block(block)
        own = [labels[key] for key in labels if key not in ("__name__", "zone", "zone_id", "account", "account_id")]
        name = labels["__name__"].removeprefix("cloudflare_zone_").removeprefix("cloudflare_account_")
        found[f"{name}{{{','.join(own)}}}"] = value
    assert len(found) == len(samples.series)
    return found


def cache(status: str, count: Any, start: str = FIRST, milliseconds: Any = 0, interval: Any = 1) -> dict[str, Any]:
    return {
        "dimensions": {"start": start, "cacheStatus": status},
        "count": count,
        "sum": {"edgeResponseBytes": 10 * count, "originResponseDurationMs": milliseconds},
        "avg": {"sampleInterval": interval},
    }


def stored(namespace: Any, size: Any) -> dict[str, Any]:
    return {
        "dimensions": {"start": FIRST, "namespaceId": namespace},
        "max": size if size is None else {"byteCount": size, "keyCount": 1},
    }


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_sample_per_total_in_the_metrics_unit_with_its_label() -> None:
    rows = [cache("hit", 5, milliseconds=1500), cache("miss", 2, start=SECOND, interval=10)]
    found = windows(HTTP_CACHE, rows, windows=3)
    assert readable(found[HOUR]) == {
        "cache_requests{hit}": 5,
        "cache_response_bytes{hit}": 50,
        "cache_seconds{hit}": 1.5,
        "sample_interval{http_cache}": 1,
    }
    assert readable(found[HOUR + 3600])["sample_interval{http_cache}"] == 10
    assert found[HOUR + 7200] == Samples((), found[HOUR + 7200].values), "no row of a breakdown is nothing"
    assert [found[start].rows for start in found] == [1, 1, 0]


def test_labels_are_text_whatever_they_are_in_the_schema() -> None:
    def row(host: Any, status: Any) -> dict[str, Any]:
        dimensions = {"start": FIRST, "clientRequestHTTPHost": host, "edgeResponseStatus": status}
        return {"dimensions": dimensions, "count": 1, "avg": None}

    rows = [row("a.example", 200), row("", 404), row("b.example", True), row("c.example", 200.0)]
    rows += [row("d.example", 0.5)]
    assert first(replace(HTTP_STATUS, top=Top(9, ("count",))), rows) == {
        "status_class_requests{a.example,200}": 1,
        "status_class_requests{unknown,404}": 1,
        "status_class_requests{b.example,true}": 1,
        "status_class_requests{c.example,200}": 1,
        "status_class_requests{d.example,0.5}": 1,
    }


def test_series_of_accounts_carry_the_account_and_its_name_where_it_has_one() -> None:
    query = asked_for(KV_STORED, windows=1)
    for scope, name in ((ACCOUNT, "Example Inc"), (Account("a" * 32), None)):
        one = replace(query, scopes=(scope,))
        found = decode(answer(one, [stored("n", 7)]), one)[scope.tag, "kv_stored"]
        assert not isinstance(found, ApiFailure)
        labels = parse_label_block(found[HOUR].series[0])
        assert (labels["account_id"], labels.get("account"), labels["namespace_id"]) == ("a" * 32, name, "n")
        assert "zone" not in labels


def test_the_sample_interval_is_the_largest_of_the_window() -> None:
    rows = [cache("hit", 1, interval=1), cache("miss", 1, interval=100.5), cache("bypass", 1, interval=10)]
    assert first(HTTP_CACHE, rows)["sample_interval{http_cache}"] == 100.5
    overview = [{"dimensions": {"start": FIRST}, "count": 3, "avg": {"sampleInterval": 4}}]
    found = windows(HTTP_OVERVIEW, overview)
    assert readable(found[HOUR]) == {"overview_requests{}": 3, "sample_interval{http_overview}": 4}
    assert readable(found[HOUR + 3600]) == {"overview_requests{}": 0}, "nothing was sampled"


def test_the_sample_interval_is_a_metric_of_the_dataset_until_a_plan_denies_it() -> None:
    def names(dataset: Dataset) -> list[tuple[str, tuple[str, ...]]]:
        return [(metric.name, labels) for metric, labels in dataset.metrics()]

    interval = ("cloudflare_zone_sample_interval", ("dataset",))
    assert interval in names(HTTP_CACHE)
    assert HTTP_CACHE.fields_named("sampleinterval") == {"avg_sampleInterval"}
    narrowed = HTTP_CACHE.without({"avg_sampleInterval"})
    assert interval not in names(narrowed)
    assert len(first(narrowed, [cache("hit", 1)])) == 3


def test_without_the_number_that_ranks_another_one_does() -> None:
    narrowed = HTTP_CACHE.without({"count"})
    assert narrowed.top == Top(3, ("sum", "edgeResponseBytes"))
    assert first(narrowed, [cache("hit", 1)])


def test_a_state_without_a_row_or_an_object_is_absent_and_not_zero() -> None:
    found = windows(KV_STORED, [stored("a", 5), stored("b", None)])
    assert readable(found[HOUR]) == {"kv_stored_bytes{a}": 5, "kv_keys{a}": 1}
    assert not found[HOUR + 3600].series


def test_a_traffic_object_that_is_null_is_zero() -> None:
    assert first(HTTP_CACHE, [cache("hit", 5) | {"sum": None, "avg": None}]) == {
        "cache_requests{hit}": 5,
        "cache_response_bytes{hit}": 0,
        "cache_seconds{hit}": 0,
    }


def test_without_a_time_dimension_all_rows_are_the_window_asked_for() -> None:
    def row(script: str, status: str, requests: int) -> dict[str, Any]:
        return {
            "dimensions": {"scriptName": script, "status": status},
            "sum": {"requests": requests, "cpuTimeUs": 2_000_000},
            "avg": {"sampleInterval": 1},
        }

    assert first(WORKERS, [row("a", "success", 2), row("a", "error", 1)], windows=1) == {
        "worker_requests{a,success}": 2,
        "worker_requests{a,error}": 1,
        "worker_cpu_seconds{a,success}": 2,
        "worker_cpu_seconds{a,error}": 2,
        "sample_interval{workers}": 1,
    }
    assert first(WORKERS_TOTAL, [{"sum": {"requests": 3}}], windows=1) == {"workers_requests{}": 3}
    assert first(WORKERS_TOTAL, [], windows=1) == {"workers_requests{}": 0}
    failed = decoded(WORKERS_TOTAL, [{"sum": {"requests": 3}}] * 2, windows=1)
    assert isinstance(failed, ApiFailure)


# --- duplicates and the top ------------------------------------------------------------------------------------------


def test_spellings_of_the_same_labels_are_summed_as_integers() -> None:
    odd = 2**53 + 1
    rows = [cache("", odd), cache("unknown", odd + 2)]
    assert first(HTTP_CACHE, rows)["cache_requests{unknown}"] == 2 * odd + 2
    rows = [*(cache(status, 2**60) for status in "abc"), cache("d", odd), cache("e", odd), cache("f", 2)]
    assert first(HTTP_CACHE, rows)["cache_requests{other}"] == 2 * odd + 2


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [
        (KV_STORED, [stored("a", 5), stored("b", 4), stored("a", 5)]),
        (KV_STORED, [stored("", 5), stored("unknown", 4)]),  # a state has no sum
        (HTTP_CACHE, [cache("hit", 5), cache("miss", 4), cache("hit", 5)]),
    ],
)
def test_a_row_that_comes_twice_is_not_counted_twice_but_not_believed(dataset: Dataset, rows: Any) -> None:
    failed = decoded(dataset, rows)
    assert isinstance(failed, ApiFailure)
    assert failed.kind is ErrorKind.MALFORMED


def test_the_same_labels_in_another_window_are_another_row() -> None:
    found = windows(HTTP_CACHE, [cache("hit", 5), cache("hit", 5, start=SECOND)])
    assert [readable(samples)["cache_requests{hit}"] for samples in found.values()] == [5, 5]


def test_the_top_keep_their_values_and_all_others_are_one() -> None:
    counts = {"e": 1, "d": 4, "c": 4, "b": 4, "a": 4, "f": 9}
    found = windows(HTTP_CACHE, [cache(status, count) for status, count in counts.items()])[HOUR]
    assert {key: value for key, value in readable(found).items() if key.startswith("cache_requests")} == {
        "cache_requests{f}": 9,
        "cache_requests{a}": 4,
        "cache_requests{b}": 4,
        "cache_requests{other}": 9,
    }
    assert readable(found)["cache_response_bytes{other}"] == 90
    assert found.folded == 3


def test_a_real_other_belongs_to_the_rest_even_if_it_is_the_largest() -> None:
    rows = [cache("other", 99), *(cache(status, 1) for status in "abcd")]
    found = windows(HTTP_CACHE, rows)[HOUR]
    assert readable(found)["cache_requests{other}"] == 100
    assert found.folded == 1
    few = windows(HTTP_CACHE, rows[:3])[HOUR]
    assert readable(few)["cache_requests{other}"] == 99
    assert few.folded == 0


_VALUE = st.sampled_from(["", "unknown", "other", "a", "b", "c", "d", "e", 0, 1, 200])
_COUNT = st.integers(0, 2**60) | st.integers(0, 3)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([FIRST, SECOND]), _VALUE, _VALUE, _COUNT), max_size=40, unique_by=lambda row: row[:3]
    ),
    keep=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_the_sums_of_a_window_stay_and_no_order_of_rows_matters(
    rows: Sequence[tuple[str, Any, Any, int]], keep: int, seed: int
) -> None:
    dataset = replace(HTTP_STATUS, top=Top(keep, ("count",)))
    content = [
        {
            "dimensions": {"start": start, "clientRequestHTTPHost": host, "edgeResponseStatus": status},
            "count": number,
            "avg": {"sampleInterval": 1},
        }
        for start, host, status, number in rows
    ]
    found = windows(dataset, content)
    random.Random(seed).shuffle(content)
    assert windows(dataset, content) == found
    for start, text in ((HOUR, FIRST), (HOUR + 3600, SECOND)):
        truth: Counter[tuple[str, str]] = Counter()
        for moment, host, status, number in rows:
            if moment == text:
                truth[str(host) or "unknown", str(status) or "unknown"] += number
        real = {values: number for values, number in truth.items() if values != ("other", "other")}
        ranked = sorted(real, key=lambda values: (-real[values], values))
        expected = {values: real[values] for values in ranked[:keep]}
        rest = sum(truth.values()) - sum(expected.values())
        if len(truth) > len(expected):
            expected["other", "other"] = rest
        series = readable(found[start])
        series.pop("sample_interval{http_status}", None)
        # Every value is the float64 nearest to an exact integer, so the integers are conserved.
        assert series == {
            f"status_class_requests{{{','.join(values)}}}": float(number) for values, number in expected.items()
        }
        assert len(series) <= keep + 1
        assert found[start].folded == max(0, len(real) - keep)


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.floats(0, 1e15) | st.integers(0, 2**53), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_sums_of_floats_do_not_depend_on_the_order_either(numbers: list[float], seed: int) -> None:
    rows = [
        {
            "dimensions": {"start": FIRST, "databaseId": f"db{number}"},
            "sum": {"readQueries": 1, "queryBatchResponseBytes": value},
            "avg": {"sampleInterval": 1},
        }
        for number, value in enumerate(numbers)
    ]
    dataset = replace(D1_QUERIES, top=Top(3, ("sum", "readQueries")))
    found = windows(dataset, rows)
    random.Random(seed).shuffle(rows)
    assert windows(dataset, rows) == found
    total = sum(value for name, value in readable(found[HOUR]).items() if "response_bytes" in name)
    assert total == pytest.approx(sum(numbers))


# --- what is no bucket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["count", "edgeResponseBytes", "sampleInterval"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1", "-0.5", "null", '"7"', "true", "[]", "9" * 400])
def test_what_is_no_number_makes_no_bucket(field: str, number: str) -> None:
    query = asked_for(HTTP_CACHE)
    # Over 2**53 - 1, so that it occurs once in the body.
    row = cache("hit", 5)
    holder: dict[str, Any] = {"count": row, "edgeResponseBytes": row["sum"], "sampleInterval": row["avg"]}[field]
    holder[field] = 9_876_543_210_123
    body = answer(query, [row]).replace(b"9876543210123", number.encode())
    (found,) = decode(body, query).values()
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.MALFORMED


def test_sums_and_scales_that_leave_the_range_of_float64_make_no_bucket() -> None:
    huge = [cache("hit", 10**308) for _ in range(10)]
    scaled = replace(
        HTTP_OVERVIEW,
        totals=tuple(replace(total, scale=1e10) for total in HTTP_OVERVIEW.totals),
        is_sampled=False,
    )
    for dataset, rows in (
        (HTTP_CACHE, huge),
        (scaled, [{"dimensions": {"start": FIRST}, "count": 1e308}]),
        (scaled, [{"dimensions": {"start": FIRST}, "count": 10**308}]),
    ):
        found = decoded(dataset, rows)
        assert isinstance(found, ApiFailure)
        assert found.kind is ErrorKind.MALFORMED


@pytest.mark.parametrize(
    "changed",
    [
        {"dimensions": {"start": FIRST}},
        {"dimensions": {"cacheStatus": "hit"}},
        {"dimensions": {"start": FIRST, "cacheStatus": None}},
        {"dimensions": {"start": FIRST, "cacheStatus": ["hit"]}},
        {"dimensions": {"start": 1_749_999_600, "cacheStatus": "hit"}},
        {"dimensions": {"start": instant(HOUR + 60), "cacheStatus": "hit"}},
        {"dimensions": {"start": instant(HOUR - 3600), "cacheStatus": "hit"}},
        {"dimensions": {"start": instant(HOUR + 7200), "cacheStatus": "hit"}},
        {"dimensions": {"start": "2025-06-15", "cacheStatus": "hit"}},
        {"dimensions": None},
        {"sum": {}},
        {"avg": {}},
    ],
)
def test_a_row_of_another_shape_or_window_makes_no_bucket(changed: dict[str, Any]) -> None:
    found = decoded(HTTP_CACHE, [cache("miss", 1), cache("hit", 1) | changed])
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.MALFORMED


def test_a_full_page_makes_no_bucket() -> None:
    rows = [cache(f"status{number}", 1) for number in range(5)]
    assert windows(HTTP_CACHE, rows, page_rows=6)
    found = decoded(HTTP_CACHE, rows, page_rows=5)
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.TRUNCATED


def test_one_datasets_rows_do_not_cost_another_its_windows() -> None:
    query = asked_for(HTTP_CACHE, HTTP_OVERVIEW, HTTP_STATUS)
    bodies = [
        answer(query, [cache("hit", -1)], [{"dimensions": {"start": FIRST}, "count": 3, "avg": None}]),
        answer(query, None, [], []),
        answer(query, [], {}, "text"),
        answer(query, []),
    ]
    kinds = [
        [found.kind if isinstance(found, ApiFailure) else "answered" for found in decode(body, query).values()]
        for body in bodies
    ]
    assert kinds == [
        ["malformed", "answered", "malformed"],
        ["malformed", "answered", "answered"],
        ["answered", "malformed", "malformed"],
        ["answered", "malformed", "malformed"],
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["", "hit", FIRST, "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["start", "cacheStatus"]), inner),
    max_leaves=5,
)
_FIELDS = ["dimensions", "count", "sum", "avg"]


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=2), max_size=5))
def test_any_rows_are_an_outcome_and_what_is_answered_is_finite_and_distinct(changes: list[dict[str, Any]]) -> None:
    query = asked_for(HTTP_CACHE)
    body = answer(query, [cache("hit", 1) | changed for changed in changes])
    (found,) = decode(body, query).values()
    if isinstance(found, ApiFailure):
        assert found.kind in (ErrorKind.MALFORMED, ErrorKind.TRUNCATED)
        return
    for samples in found.values():
        assert all(isfinite(value) and value >= 0 for value in samples.values)
        assert len(set(samples.series)) == len(samples.series) == len(samples.values)


def test_a_dataset_may_have_a_dimension_whose_name_is_pythons() -> None:
    dataset = replace(HTTP_CACHE, labels=(Label("sender", "from"),))
    row = cache("hit", 1)
    row["dimensions"] = {"start": FIRST, "from": "a"}
    assert first(dataset, [row])["cache_requests{a}"] == 1


def test_elements_of_a_map_are_summed_as_integers_too() -> None:
    count = Metric("cloudflare_zone_country_requests", "For tests.", "requests")
    breakdown = Breakdown(("sum", "countryMap"), "country", "country", (("requests", count),))
    dataset = replace(HTTP_OVERVIEW, breakdowns=(breakdown,), is_sampled=False)
    elements = [
        {"country": "", "requests": 2**53},
        {"country": "unknown", "requests": 1},
        {"country": "", "requests": 1},
    ]
    row = {"dimensions": {"start": FIRST}, "count": 1, "sum": {"countryMap": elements}}
    assert first(dataset, [row])["country_requests{unknown}"] == 2**53 + 2
