from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloudflare.datasets import HTTP_REQUESTS
from worker.cloudflare import ApiFailure, ErrorKind
from worker.cloudflare.catalogue import Dataset, Grain, Label, Metric, TimeType, Top, Total
from worker.cloudflare.entitlements import Denied, Entitlement, Entitlements, Narrowed, entitled, signature

HOUR = 3600
UNKNOWN = ApiFailure(ErrorKind.SERVER, "down")
FIREWALL = Dataset(
    name="firewall_events",
    help="Firewall events.",
    grains=(Grain(60, "firewallEventsAdaptiveGroups", None, "datetime_geq", "datetime_lt", TimeType.TIME),),
    totals=(
        Total(("sum", "visits"), Metric("visits", "Visits.", "visits")),
        Total(("count",), Metric("events", "Events.", "events")),
    ),
    labels=(Label("action", "action"), Label("source", "source")),
    top=Top(50, ("count",)),
    is_sampled=True,
)


def fields_of(dataset: Dataset) -> set[str]:
    return {item.field for item in dataset.totals} | {item.field for item in dataset.breakdowns}


def allowing(*fields: str, **bounds: int) -> Entitlement:
    return Entitlement(enabled=True, fields=frozenset(fields), **bounds)


ALL = allowing(*fields_of(HTTP_REQUESTS), "dimensions_datetime")


def test_everything_that_is_listed_is_asked_for() -> None:
    assert entitled(HTTP_REQUESTS, HOUR, ALL) == Narrowed(HTTP_REQUESTS)


@pytest.mark.parametrize(
    "entitlement", [UNKNOWN, allowing(), allowing("requests", "uniques", "browsers"), allowing("", "_", "count.x")]
)
def test_what_is_not_known_or_not_understood_denies_nothing(entitlement: Entitlement | ApiFailure) -> None:
    assert entitled(HTTP_REQUESTS, HOUR, entitlement) == Narrowed(HTTP_REQUESTS)


@pytest.mark.parametrize(
    ("entitlement", "reason"),
    [
        (replace(ALL, enabled=False), "the plan does not include httpRequests1hGroups"),
        (
            replace(ALL, retention_seconds=4199),
            "the plan keeps httpRequests1hGroups for 1h 9m, too short for windows of 1h",
        ),
        (
            replace(ALL, max_duration_seconds=3599),
            "the plan allows 59m 59s of httpRequests1hGroups in a query, less than a window of 1h",
        ),
        (
            allowing("sum_edgeRequestBytes", "dimensions_datetime"),
            "the plan includes none of the fields of httpRequests1hGroups that http_requests is made of",
        ),
        (
            replace(ALL, max_fields=1),
            "the plan allows 1 fields of httpRequests1hGroups in a query, fewer than are needed",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_denied_with_the_reason(entitlement: Entitlement, reason: str) -> None:
    assert entitled(HTTP_REQUESTS, HOUR, entitlement, delay_seconds=600) == Denied(reason)


def test_bounds_that_just_fit_deny_nothing() -> None:
    fitting = replace(ALL, retention_seconds=4200, max_duration_seconds=3600, max_fields=29)
    found = entitled(HTTP_REQUESTS, HOUR, fitting, delay_seconds=600)
    assert found == Narrowed(HTTP_REQUESTS, retention_seconds=4200)


def test_fields_and_parts_of_maps_that_are_not_listed_are_left_out() -> None:
    listed = fields_of(HTTP_REQUESTS) - {"sum_threats", "sum_browserMap", "sum_countryMap", "sum_contentTypeMap"}
    listed |= {"sum_countryMap_clientCountryName", "sum_countryMap.bytes", "SUM_COUNTRYMAP_REQUESTS"}
    listed |= {"sum_contentTypeMap_bytes"}  # without the key that its values are for
    answer = entitled(HTTP_REQUESTS, HOUR, allowing(*listed))
    assert isinstance(answer, Narrowed)
    assert answer.dropped == {"sum_threats", "sum_browserMap", "sum_countryMap_threats", "sum_contentTypeMap"}
    assert answer.dataset == HTTP_REQUESTS.without(answer.dropped)


def test_too_many_fields_cost_maps_before_totals() -> None:
    answer = entitled(HTTP_REQUESTS, HOUR, replace(ALL, max_fields=14))
    assert isinstance(answer, Narrowed)
    assert [item.field for item in answer.dataset.breakdowns] == ["sum_countryMap"]
    assert len(answer.dataset.totals) == 9
    answer = entitled(HTTP_REQUESTS, HOUR, replace(ALL, max_fields=3))
    assert isinstance(answer, Narrowed)
    assert fields_of(answer.dataset) == {"sum_requests", "uniq_uniques"}
    assert answer.dropped == fields_of(HTTP_REQUESTS) - {"sum_requests", "uniq_uniques"}


def test_a_label_that_is_not_listed_denies_the_dataset_where_labels_are_listed_at_all() -> None:
    denied = entitled(FIREWALL, 60, allowing("count", "sum_visits", "dimensions_action"))
    assert denied == Denied("the plan does not include the dimension source of firewallEventsAdaptiveGroups")
    for dimensions in ((), ("dimensions_datetime",), ("dimensions_action", "dimensions_source")):
        listed = allowing("count", "sum_visits", "avg_sampleInterval", *dimensions)
        assert entitled(FIREWALL, 60, listed) == Narrowed(FIREWALL)


def test_the_sample_interval_is_a_field_like_others_and_the_number_that_ranks_is_kept_longest() -> None:
    answer = entitled(FIREWALL, 60, allowing("count", "sum_visits"))
    assert isinstance(answer, Narrowed)
    assert answer.dropped == {"avg_sampleInterval"}
    assert answer.dataset == replace(FIREWALL, is_sampled=False)
    answer = entitled(FIREWALL, 60, allowing("sum_visits", "avg_sampleInterval"))
    assert isinstance(answer, Narrowed)
    assert answer.dataset.top == Top(50, ("sum", "visits"))
    answer = entitled(replace(FIREWALL, is_sampled=False), 60, allowing("count", "sum_visits", max_fields=3))
    assert isinstance(answer, Narrowed)
    assert fields_of(answer.dataset) == {"count"}


def test_a_width_that_the_dataset_has_not_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no windows of 7 s"):
        entitled(HTTP_REQUESTS, 7, ALL)


@given(st.sets(st.sampled_from(sorted(fields_of(HTTP_REQUESTS)))), st.integers(1, 40))
def test_nothing_is_asked_for_that_is_not_listed_and_nothing_listed_is_left_out_without_need(
    listed: set[str], max_fields: int
) -> None:
    entitlement = allowing("dimensions_datetime", *listed, max_fields=max_fields)
    match entitled(HTTP_REQUESTS, HOUR, entitlement):
        case Denied():
            assert not listed or max_fields <= 3
        case Narrowed(dataset, dropped):
            assert fields_of(dataset) <= listed
            assert fields_of(dataset) | dropped == fields_of(HTTP_REQUESTS)
            assert max_fields < 29 or fields_of(dataset) == listed


def test_scopes_with_equal_entitlements_have_equal_signatures() -> None:
    one: Entitlements = {"a": ALL, "b": UNKNOWN}
    assert signature(one) == signature({"b": ApiFailure(ErrorKind.RATE, "other"), "a": replace(ALL)})
    others: list[Entitlements] = [{"a": ALL}, {"a": replace(ALL, max_fields=7), "b": UNKNOWN}]
    assert len({signature(each) for each in (one, *others)}) == 3
