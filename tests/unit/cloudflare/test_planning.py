from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloudflare.datasets import HTTP_REQUESTS
from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.cloudflare.planning import Group, Plan, Remedy, limit_of, remedies, verdict
from worker.cloudflare.quota import LIVE_SHARE, RateLimitType

WIDTHS = (60, 300, 900, 1800, 3600, 86400)
NO_DIMENSION = replace(HTTP_REQUESTS, grains=tuple(replace(grain, dimension=None) for grain in HTTP_REQUESTS.grains))


def plan(
    zones: int, width_seconds: int, *, zone_datasets: int = 8, account_datasets: int = 6, interval_seconds: int = 60
) -> Plan:
    groups = (
        Group(ScopeKind.ZONE, zones, (HTTP_REQUESTS,) * zone_datasets),
        Group(ScopeKind.ACCOUNT, 1, (HTTP_REQUESTS,) * account_datasets),
    )
    return Plan(groups, width_seconds, interval_seconds, limit=300)


@pytest.mark.parametrize(
    ("zones", "requests", "share_of_a_minute"), [(10, 4, 0.0667), (1000, 202, 3.3667), (10_000, 2002, 33.3667)]
)
def test_requests_and_the_share_of_the_quota_follow_from_zones_datasets_and_width(
    zones: int, requests: int, share_of_a_minute: float
) -> None:
    for width in (60, 300, 3600):
        one = plan(zones, width, interval_seconds=1)
        assert one.requests == one.requests_per_window == requests
        assert one.share == pytest.approx(share_of_a_minute * 60 / width, abs=1e-4)
        assert one.fits == (one.share <= LIVE_SHARE)


def test_windows_that_become_final_together_share_their_requests() -> None:
    five = plan(1000, 60, interval_seconds=300)
    assert (five.windows_at_once, five.period_seconds, five.requests) == (5, 300, 202)
    assert five.requests_per_window == pytest.approx(40.4)
    assert five.fits
    assert plan(1000, 60, interval_seconds=359).windows_at_once == 5
    assert plan(1000, 60, interval_seconds=36_000).windows_at_once == 60


def test_datasets_whose_rows_do_not_name_their_window_are_asked_for_window_by_window() -> None:
    group = Group(ScopeKind.ZONE, 20, (HTTP_REQUESTS, HTTP_REQUESTS, NO_DIMENSION))
    assert group.requests(60, 1) == 2
    assert group.requests(60, 5) == 2 * (1 + 5)
    with pytest.raises(ValueError, match="no windows of 7 s"):
        group.requests(7, 1)


def test_accounts_are_asked_for_one_by_one_and_groups_of_zones_for_themselves() -> None:
    assert Group(ScopeKind.ACCOUNT, 11, (HTTP_REQUESTS,) * 6).requests(60, 1) == 22
    apart = replace(plan(0, 60), groups=tuple(Group(ScopeKind.ZONE, 1, (HTTP_REQUESTS,)) for _ in range(3)))
    assert apart.requests == 3


def test_more_requests_than_the_quota_has_at_once_wait_for_it() -> None:
    assert plan(1000, 60).seconds_to_collect == pytest.approx(202 / 4)
    assert plan(1490, 60).seconds_to_collect == pytest.approx(300 / 4)
    assert plan(1500, 60).seconds_to_collect == pytest.approx(300 + 2 / 4)
    assert plan(10_000, 60).seconds_to_collect == pytest.approx(1800 + 202 / 4)


def test_each_account_adds_its_quota_where_accounts_are_counted_up_to_that_of_all_requests() -> None:
    assert limit_of(300, 1200, RateLimitType.TOKEN, [7, 7, 7]) == 300
    assert limit_of(300, 1200, RateLimitType.ACCOUNT, [7, 7, 7]) == 900
    assert limit_of(300, 1200, RateLimitType.ACCOUNT) == 300
    assert limit_of(300, 1200, RateLimitType.ACCOUNT, [7] * 9) == 1200
    assert limit_of(4500, 1200, RateLimitType.TOKEN) == 1200


def test_an_account_that_needs_most_of_the_requests_is_not_helped_by_the_quota_of_small_ones() -> None:
    assert limit_of(300, 1200, RateLimitType.ACCOUNT, [90, 5, 5]) == 333


def test_zones_of_different_accounts_share_no_query_where_accounts_are_counted() -> None:
    group = Group(ScopeKind.ZONE, 25, (HTTP_REQUESTS,) * 6, apart=(11, 10, 4))
    assert group.requests(60, 1) == (2 + 1 + 1) * 2
    assert replace(group, apart=()).requests(60, 1) == 3 * 2
    assert "CF_SHARD" in verdict(replace(plan(0, 60), groups=(replace(group, apart=()),), limit=30), WIDTHS)
    assert "CF_SHARD" not in verdict(replace(plan(0, 60), groups=(group,), limit=30), WIDTHS)


def test_the_arithmetic_is_told_in_one_sentence() -> None:
    assert verdict(plan(1000, 300), WIDTHS) == (
        "1,000 zones x 8 datasets and 1 account x 6 datasets in windows of 5m: 202 requests every 5m, 67.3% of the 300"
        " that are allowed, answered within 51s."
    )


def test_what_cannot_fit_is_told_with_what_would() -> None:
    assert verdict(plan(1000, 60, zone_datasets=20), WIDTHS).splitlines() == [
        (
            "1,000 zones x 20 datasets and 1 account x 6 datasets in windows of 1m: 402 requests every 1m, 670.0%"
            " of the 60 that are allowed, answered within 5m 26s. That is more than the 84% that recent windows can"
            " count on beside everything else. What would fit:"
        ),
        "  CF_BUCKET_SECONDS=900 (44.7%)",
        "  CF_COLLECTION_INTERVAL_SECONDS=480: 8 windows in a request, up to 7m later (83.8%)",
        "  CF_SHARD=1/9 to 9/9: 9 workers, each with a token of its own (83.3%)",
    ]
    assert remedies(plan(1000, 300, zone_datasets=12), WIDTHS)[2] == Remedy(
        "CF_DATASETS with at most 10 datasets of zones", 202 / 300
    )
    assert remedies(plan(300, 60), WIDTHS)[1].change.startswith("CF_COLLECTION_INTERVAL_SECONDS=120: 2 windows")
    hopeless = replace(plan(10_000_000, 86_400), limit=1)
    assert verdict(hopeless, WIDTHS).endswith("What would fit: nothing that a setting could change.")


def test_only_widths_that_all_datasets_have_are_suggested() -> None:
    minutes: Dataset = replace(HTTP_REQUESTS, grains=HTTP_REQUESTS.grains[:1])
    narrow = replace(plan(1000, 60), groups=(Group(ScopeKind.ZONE, 1000, (minutes,)),))
    assert [remedy.change.partition("=")[0] for remedy in remedies(narrow, WIDTHS)] == [
        "CF_COLLECTION_INTERVAL_SECONDS",
        "CF_SHARD",
    ]


@given(st.integers(1, 30_000), st.integers(1, 30), st.sampled_from(WIDTHS), st.sampled_from([60, 300, 3600]))
def test_every_remedy_fits_and_is_the_smallest_change_of_its_kind(
    zones: int, datasets: int, width: int, interval: int
) -> None:
    asked = plan(zones, width, zone_datasets=datasets, interval_seconds=interval)
    for remedy in remedies(asked, WIDTHS):
        assert remedy.share <= LIVE_SHARE
        if remedy.change.startswith("CF_BUCKET"):
            chosen = int(remedy.change.partition("=")[2])
            assert not any(replace(asked, width_seconds=other).fits for other in WIDTHS if width < other < chosen)
