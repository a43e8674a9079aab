"""Fetching where Cloudflare counts the queries of each account by themselves."""

from typing import Any

import pytest

from tests.clocks import ManualClock
from tests.unit.cloudflare.datasets import HTTP_REQUESTS, KV_STORED
from tests.unit.cloudflare.fake import NOW, Asked, FakeCloudflare, answer_of, decode, error, refusal, tag
from worker.cloudflare import (
    Account,
    Answered,
    Api,
    ApiFailure,
    CloudflareApi,
    ErrorKind,
    Failed,
    Quota,
    RateLimitType,
    Zone,
)
from worker.cloudflare.query import Source, WindowsQuery

ONE, OTHER = tag(0xAA), tag(0xBB)
START = NOW - NOW % 60 - 600
ZONES = [Zone(tag(number), f"z{number}", ONE if number % 3 else OTHER) for number in range(1, 31)]


def api_of(fake: FakeCloudflare, graphql: int = 300) -> CloudflareApi:
    clock = ManualClock(NOW)
    return fake.api(clock, quota=Quota(clock, graphql=graphql, rate_limit_type=RateLimitType.ACCOUNT))


async def failures(api: CloudflareApi, zones: list[Zone]) -> dict[str, ErrorKind]:
    """By the tag of the zone; every zone has an answer."""
    answers = await api.fetch([HTTP_REQUESTS], 60, zones, [START])
    assert [each.scope for each in answers] == zones
    return {each.scope.tag: each.failure.kind for each in answers if isinstance(each, Failed)}


async def test_zones_are_asked_for_in_tens_of_an_account_and_counted_against_it() -> None:
    fake = FakeCloudflare()
    api = api_of(fake)
    assert await failures(api, ZONES) == {}
    assert sorted((asked.account, len(asked.zones)) for asked in fake.asked) == [(ONE, 10), (ONE, 10), (OTHER, 10)]
    assert all(
        {each.tag for each in ZONES if each.account_tag == asked.account}.issuperset(asked.zones)
        for asked in fake.asked
    )
    assert api.quota.remaining(Api.GRAPHQL) == 298


async def test_a_zone_whose_account_is_not_known_is_asked_for_alone() -> None:
    fake = FakeCloudflare()
    assert await failures(api_of(fake), [Zone(tag(number), f"z{number}") for number in (1, 2)]) == {}
    assert [(asked.account, asked.zones) for asked in fake.asked] == [(None, (tag(1),)), (None, (tag(2),))]


async def test_accounts_themselves_are_asked_for_as_ever() -> None:
    fake = FakeCloudflare()
    api = api_of(fake)
    answers = await api.fetch([KV_STORED], 60, [Account(ONE), Account(OTHER)], [START])
    assert all(isinstance(each, Answered) for each in answers)
    assert [asked.zones for asked in fake.asked] == [(ONE,), (OTHER,)]
    assert api.quota.remaining(Api.GRAPHQL) == 299


@pytest.mark.parametrize("position", [3, "3"])
async def test_the_position_of_a_zone_within_its_account_tells_which_one_is_denied(position: Any) -> None:
    guilty = ZONES[3].tag

    def refuse(asked: Asked) -> Any:
        if guilty not in asked.zones:
            return None
        index = type(position)(asked.zones.index(guilty))
        path = ["viewer", "accounts", type(position)(0), "zones", index, "r0"]
        return refusal(error("no access: does not have access to the path", code="authz", path=path))

    fake = FakeCloudflare(refuse=refuse)
    assert await failures(api_of(fake), ZONES[:10]) == {guilty: ErrorKind.PLAN_DATASET}
    # Two queries for the two accounts, and one more each for the suspect and for the others.
    assert len(fake.asked) == 4


async def test_an_account_that_the_token_may_not_read_costs_a_query_for_ten_of_its_zones() -> None:
    path = ["viewer", "accounts"]
    fake = FakeCloudflare(
        refuse=lambda asked: (
            refusal(error("not authorized for that account", code="authz", path=path), status=403)
            if asked.account == ONE
            else None
        )
    )
    denied = {each.tag for each in ZONES if each.account_tag == ONE}
    assert await failures(api_of(fake), ZONES) == dict.fromkeys(denied, ErrorKind.AUTH_SCOPE)
    assert len(fake.asked) == 3


async def test_an_account_whose_quota_is_used_up_pauses_alone_and_for_all_of_its_zones() -> None:
    text = f"Account {ONE} has exceeded its rate limit. Please try again after 5 minutes."
    fake = FakeCloudflare(refuse=lambda asked: refusal(error(text, code="budget")) if asked.account == ONE else None)
    api = api_of(fake)
    assert set((await failures(api, ZONES[:5])).items()) == {
        (each.tag, ErrorKind.RATE) for each in ZONES[:5] if each.account_tag == ONE
    }
    fake.asked.clear()
    assert len(await failures(api, ZONES[5:])) == 16
    assert {asked.account for asked in fake.asked} == {OTHER}


def test_zones_are_found_in_the_answer_of_their_account() -> None:
    query = WindowsQuery((Source(HTTP_REQUESTS, HTTP_REQUESTS.grain(60)),), (ZONES[0],), range(0, 60, 60), ONE)
    pair = (ZONES[0].tag, HTTP_REQUESTS.name)
    found = decode(answer_of({ZONES[0].tag: [[]]}, nested=True), query)[pair]
    assert not isinstance(found, ApiFailure)
    assert list(found) == [0]
    for viewer, kind in (
        ('{"accounts": []}', ErrorKind.MISSING_ZONE),
        ('{"accounts": [{"zones": []}]}', ErrorKind.MISSING_ZONE),
        ('{"accounts": [{}]}', ErrorKind.MALFORMED),
        ('{"zones": []}', ErrorKind.MALFORMED),
    ):
        missing = decode(f'{{"data": {{"viewer": {viewer}}}}}'.encode(), query)[pair]
        assert isinstance(missing, ApiFailure)
        assert missing.kind is kind


async def test_a_pause_of_one_account_costs_the_zones_of_others_nothing_where_they_share_queries() -> None:
    api = FakeCloudflare().api()
    api.quota.pause(Api.GRAPHQL, 300, ONE)
    owned = {each.tag for each in ZONES if each.account_tag == ONE}
    assert await failures(api, ZONES) == dict.fromkeys(owned, ErrorKind.RATE)
