import pytest

from tests.unit.cloudflare.datasets import HTTP_REQUESTS
from worker.cloudflare import Breakdown, Metric, shipped
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL_LABEL
from worker.series import LABEL_NAME, METRIC_NAME


def test_the_http_rollups_have_the_metrics_that_users_are_promised() -> None:
    prefix = "cloudflare_zone_"
    assert {(metric.name.removeprefix(prefix), labels) for metric, labels in HTTP_REQUESTS.metrics()} == {
        ("requests", ()),
        ("unique_visitors", ()),
        ("response_bytes", ()),
        ("cached_requests", ()),
        ("cached_response_bytes", ()),
        ("encrypted_requests", ()),
        ("encrypted_response_bytes", ()),
        ("page_views", ()),
        ("threats", ()),
        ("country_requests", ("country",)),
        ("country_response_bytes", ("country",)),
        ("country_threats", ("country",)),
        ("status_requests", ("status",)),
        ("content_type_requests", ("content_type",)),
        ("content_type_response_bytes", ("content_type",)),
        ("browser_page_views", ("browser",)),
        ("http_version_requests", ("http_version",)),
        ("tls_version_requests", ("tls_version",)),
        ("ip_class_requests", ("ip_class",)),
        ("threat_type_requests", ("threat_type",)),
    }


def test_every_metric_and_label_has_a_valid_name_and_a_sentence_and_occurs_once() -> None:
    names = []
    for dataset in shipped().values():
        for metric, labels in dataset.metrics():
            assert METRIC_NAME.fullmatch(metric.name)
            assert all(map(LABEL_NAME.fullmatch, labels))
            assert metric.help.endswith(".")
            assert metric.unit
            if labels != (SAMPLE_INTERVAL_LABEL,):  # the one that sampled datasets share
                names.append(metric.name)
    assert len(names) == len(set(names))


def test_only_unique_visitors_must_not_be_summed() -> None:
    assert [metric.name for metric, _ in HTTP_REQUESTS.metrics() if not metric.additive] == [
        "cloudflare_zone_unique_visitors"
    ]


def test_the_http_rollups_have_six_widths() -> None:
    assert HTTP_REQUESTS.widths_seconds == (60, 300, 900, 1800, 3600, 86400)
    assert HTTP_REQUESTS.grain(1800).dimension == "datetimeHalfOfHour"
    with pytest.raises(ValueError, match="no windows of 120 s"):
        HTTP_REQUESTS.grain(120)


def test_a_breakdown_of_something_that_cannot_be_summed_is_refused() -> None:
    uniques = Metric("visitors", "Visitors.", "visitors", additive=False)
    with pytest.raises(ValueError, match="must be additive"):
        Breakdown(("sum", "countryMap"), "clientCountryName", "country", (("uniques", uniques),))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("uniques", {"uniq_uniques"}),
        ("sum_requests", {"sum_requests"}),
        ("sum.requests", {"sum_requests"}),
        ("requests", {"sum_requests"}),
        ("countrymap", {"sum_countryMap"}),
        ("sum_countryMap", {"sum_countryMap"}),
        ("clientcountryname", {"sum_countryMap"}),
        ("sum_countrymap_bytes", {"sum_countryMap_bytes"}),
        ("clientasn", set()),
        ("", set()),
    ],
)
def test_a_denied_field_is_found_by_the_name_that_cloudflare_gives_it(name: str, fields: set[str]) -> None:
    assert HTTP_REQUESTS.fields_named(name) == fields


def test_a_leaf_is_meant_once_the_total_of_that_name_is_gone() -> None:
    narrowed = HTTP_REQUESTS.without({"sum_threats"})
    assert narrowed.fields_named("threats") == {"sum_countryMap_threats"}


def test_a_dropped_field_takes_exactly_its_metrics_with_it() -> None:
    def names(*dropped: str) -> set[str]:
        return {metric.name for metric, _ in HTTP_REQUESTS.without(dropped).metrics()}

    everything = names()
    assert everything - names("sum_threats") == {"cloudflare_zone_threats"}
    assert everything - names("sum_countryMap_bytes") == {"cloudflare_zone_country_response_bytes"}
    assert everything - names("sum_browserMap_pageViews") == {"cloudflare_zone_browser_page_views"}
    assert "browserMap" not in str(HTTP_REQUESTS.without({"sum_browserMap_pageViews"}).breakdowns)


def test_a_dataset_without_all_of_its_fields_is_empty() -> None:
    fields = [item.field for item in HTTP_REQUESTS.totals] + [item.field for item in HTTP_REQUESTS.breakdowns]
    assert HTTP_REQUESTS.without(fields).is_empty
    assert not HTTP_REQUESTS.without(fields[1:]).is_empty
