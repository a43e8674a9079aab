import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.simulator.worlds import NOW
from worker.simulator.fleet import BucketTruth, Fleet, Plan, ZoneStatus
from worker.simulator.settling import Settling
from worker.simulator.traffic import Rhythm

FLEET = Fleet(seed=1, zones=5)
HOUR = NOW - NOW % 3600
DAY = NOW - NOW % 86_400

minutes = st.integers(min_value=DAY // 60 - 1440, max_value=DAY // 60 + 1440).map(lambda minute: minute * 60)


def amounts(truth: BucketTruth | None) -> dict[tuple[str, object], int]:
    """Everything of a bucket that must add up."""
    found: dict[tuple[str, object], int] = {}
    if truth is None:
        return found
    for field in dataclasses.fields(truth):
        value = getattr(truth, field.name)
        if field.name == "clients":
            continue
        if isinstance(value, Mapping):
            found.update({(field.name, label): amount for label, amount in value.items()})
        else:
            found[field.name, None] = value
    return found


def summed(truths: list[BucketTruth | None]) -> dict[tuple[str, object], int]:
    total: dict[tuple[str, object], int] = {}
    for truth in truths:
        for key, amount in amounts(truth).items():
            total[key] = total.get(key, 0) + amount
    return total


def of_rhythm(rhythm: Rhythm) -> str:
    return next(zone.tag for zone in FLEET.zones if zone.rhythm is rhythm)


def digest(fleet: Fleet) -> str:
    truths = [fleet.bucket(zone.tag, HOUR, 3600) for zone in fleet.zones]
    return hashlib.blake2b(repr((fleet.zones, truths)).encode(), digest_size=8).hexdigest()


def test_the_truth_is_the_same_in_every_process() -> None:
    program = "from tests.unit.simulator.test_fleet import FLEET, digest; print(digest(FLEET))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {digest(FLEET)}


def test_the_truth_is_the_same_in_every_version_of_python() -> None:
    truth = FLEET.bucket(FLEET.zones[0].tag, HOUR, 3600)
    assert truth is not None
    assert (FLEET.zones[0].tag, truth.requests, truth.unique_visitors) == (
        "f93f9b7043828ccd71cb43307e6557c1",
        286_902,
        609,
    )


def test_another_seed_is_another_fleet() -> None:
    other = Fleet(seed=2, zones=5)
    assert not {zone.tag for zone in other.zones} & {zone.tag for zone in FLEET.zones}
    assert other.bucket(other.zones[0].tag, HOUR, 3600) != FLEET.bucket(FLEET.zones[0].tag, HOUR, 3600)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 4), start=minutes, count=st.integers(min_value=1, max_value=200))
def test_the_minutes_of_a_window_add_up_to_it(place: int, start: int, count: int) -> None:
    tag = FLEET.zones[place].tag
    parts = [FLEET.bucket(tag, start + 60 * place, 60) for place in range(count)]
    whole = FLEET.bucket(tag, start, 60 * count)
    assert amounts(whole) == summed(parts)


def test_the_hours_of_a_day_add_up_to_it() -> None:
    for zone in FLEET.zones:
        hours = [FLEET.bucket(zone.tag, DAY + 3600 * hour, 3600) for hour in range(24)]
        assert amounts(FLEET.bucket(zone.tag, DAY, 86_400)) == summed(hours)


def test_visitors_of_a_window_are_the_union_of_its_minutes_and_not_their_sum() -> None:
    tag = of_rhythm(Rhythm.BUSY)
    parts = [FLEET.bucket(tag, HOUR - 3600 + 60 * minute, 60) for minute in range(60)]
    whole = FLEET.bucket(tag, HOUR - 3600, 3600)
    assert whole is not None
    union = 0
    for part in parts:
        union |= part.clients if part else 0
    assert whole.clients == union
    visitors = [part.unique_visitors for part in parts if part]
    assert max(visitors) < whole.unique_visitors < sum(visitors)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 4), start=minutes, width=st.sampled_from([60, 300, 3600]))
def test_every_map_adds_up_to_its_total(place: int, start: int, width: int) -> None:
    truth = FLEET.bucket(FLEET.zones[place].tag, start, width)
    if truth is None:
        return
    of_requests = (
        truth.country_requests,
        truth.status_requests,
        truth.content_type_requests,
        truth.http_version_requests,
        truth.tls_version_requests,
        truth.ip_class_requests,
    )
    for by_label in of_requests:
        assert sum(by_label.values()) == truth.requests
    assert sum(truth.country_response_bytes.values()) == truth.response_bytes
    assert sum(truth.content_type_response_bytes.values()) == truth.response_bytes
    assert sum(truth.browser_page_views.values()) == truth.page_views
    assert sum(truth.country_threats.values()) == truth.threats == sum(truth.threat_type_requests.values())
    assert truth.requests - truth.tls_version_requests.get("none", 0) == truth.encrypted_requests
    assert truth.country_requests.keys() == truth.country_response_bytes.keys() == truth.country_threats.keys()
    assert 1 <= truth.unique_visitors <= truth.requests
    assert truth.page_views <= truth.requests
    for requests, response_bytes in (
        (truth.cached_requests, truth.cached_response_bytes),
        (truth.encrypted_requests, truth.encrypted_response_bytes),
    ):
        assert requests <= truth.requests
        assert (requests == 0) == (response_bytes == 0)
        assert (requests == truth.requests) == (response_bytes == truth.response_bytes)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 4), start=minutes, width=st.sampled_from([60, 300, 3600]), ages=st.data())
def test_what_is_visible_only_grows_until_it_is_the_truth(
    place: int, start: int, width: int, ages: st.DataObject
) -> None:
    tag = FLEET.zones[place].tag
    end = start + width
    earlier, later = sorted(ages.draw(st.lists(st.integers(-width, 400), min_size=2, max_size=2)))
    seen = [FLEET.visible_bucket(tag, start, width, now=end + age, settling=Settling()) for age in (earlier, later)]
    truth = FLEET.bucket(tag, start, width)
    for less, more in ((seen[0], seen[1]), (seen[1], truth)):
        assert all(amount <= amounts(more).get(key, 0) for key, amount in amounts(less).items())
        clients = less.clients if less else 0
        assert clients & (more.clients if more else 0) == clients
    assert FLEET.visible_bucket(tag, start, width, now=end + 300, settling=Settling()) == truth


def test_a_minute_that_is_not_over_shows_nothing() -> None:
    tag = of_rhythm(Rhythm.BUSY)
    assert FLEET.visible_bucket(tag, HOUR, 60, now=HOUR + 60, settling=Settling()) is None


def test_an_hour_that_is_going_on_shows_the_minutes_that_have_arrived() -> None:
    tag = of_rhythm(Rhythm.BUSY)
    seen = FLEET.visible_bucket(tag, HOUR, 3600, now=HOUR + 1800, settling=Settling())
    settled = FLEET.bucket(tag, HOUR, 1500)
    whole = FLEET.bucket(tag, HOUR, 3600)
    assert seen is not None
    assert settled is not None
    assert whole is not None
    assert settled.requests < seen.requests < whole.requests


def test_sparse_zones_have_minutes_without_traffic_and_office_zones_hours_and_days() -> None:
    sparse = [FLEET.bucket(of_rhythm(Rhythm.SPARSE), HOUR + 60 * minute, 60) for minute in range(60)]
    assert 5 < sparse.count(None) < 55
    office = of_rhythm(Rhythm.OFFICE)
    assert FLEET.bucket(office, DAY, 3600) is None
    assert FLEET.bucket(office, DAY + 9 * 3600, 3600) is not None
    saturday = DAY + 4 * 86_400
    assert FLEET.bucket(office, saturday, 86_400) is None


def test_labels_come_and_go() -> None:
    tag = of_rhythm(Rhythm.BUSY)
    minute_labels = [
        frozenset(truth.country_requests)
        for truth in (FLEET.bucket(tag, HOUR - 3600 + 60 * minute, 60) for minute in range(60))
        if truth
    ]
    assert len(set(minute_labels)) > 1


def test_a_vast_zone_has_bytes_that_a_float64_cannot_count() -> None:
    truth = FLEET.bucket(of_rhythm(Rhythm.VAST), HOUR - 3600, 3600)
    assert truth is not None
    assert truth.response_bytes > 2**53
    assert int(float(truth.response_bytes)) != truth.response_bytes
    day = FLEET.bucket(of_rhythm(Rhythm.VAST), DAY, 86_400)
    assert day is not None
    assert day.response_bytes < 2**64


def test_tags_are_those_of_cloudflare_and_zones_are_dealt_out_over_accounts_and_plans() -> None:
    fleet = Fleet(zones=6, accounts=2, plans=(Plan.FREE, Plan.PRO), pending_zones=1)
    tags = [*(zone.tag for zone in fleet.zones), *(account.tag for account in fleet.accounts)]
    assert len(set(tags)) == 8
    assert all(len(tag) == 32 and int(tag, 16) for tag in tags)
    assert [zone.account for zone in fleet.zones] == [*fleet.accounts] * 3
    assert [zone.plan for zone in fleet.zones] == [Plan.FREE, Plan.PRO] * 3
    assert [zone.status for zone in fleet.zones] == [ZoneStatus.ACTIVE] * 5 + [ZoneStatus.PENDING]


def test_a_window_that_is_not_made_of_minutes_is_refused() -> None:
    with pytest.raises(ValueError, match="not made of full minutes"):
        FLEET.bucket(FLEET.zones[0].tag, HOUR + 1, 60)


def test_a_zone_of_another_fleet_is_refused() -> None:
    with pytest.raises(KeyError):
        FLEET.bucket("0" * 32, HOUR, 60)
