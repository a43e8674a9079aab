"""The worker's client and the simulated API where queries are counted by account: it answers as it does otherwise."""

from collections.abc import Sequence

import httpx

from tests.clocks import ManualClock
from worker.cloudflare import CloudflareApi, ErrorKind, Failed, Quota, RateLimitType, Scope, ScopeAnswer, Zone, shipped
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits

NOW = 1_750_032_600
HOUR = NOW - NOW % 3600 - 4 * 3600
DATASETS = [shipped()["http_requests"], shipped()["firewall_events"]]


async def asked(simulated: SimulatedApi, clock: ManualClock, kind: RateLimitType, rounds: int = 1) -> list[ScopeAnswer]:
    """What a client with generous limits of its own gets for every zone, in the last of some rounds."""
    zones: list[Scope] = [
        Zone(zone.tag, zone.name, zone.account.tag, zone.account.name) for zone in simulated.fleet.zones
    ]
    api = CloudflareApi(
        api_url=f"http://simulated{BASE_PATH}",
        token=ACCEPTED_BEARER,
        clock=clock,
        quota=Quota(clock, graphql=1000, rate_limit_type=kind),
        transport=httpx.ASGITransport(simulated),
    )
    found: list[ScopeAnswer] = []
    for _ in range(rounds):
        await api.discover(DATASETS, 3600, zones)
        found = await api.fetch(DATASETS, 3600, zones, range(HOUR, HOUR + 7200, 3600))
    await api.aclose()
    return found


def told(answers: Sequence[ScopeAnswer]) -> list[object]:
    """Every sample; of a failure its kind, and not the words, which name a position in the query."""
    return [(each.scope, each.dataset, each.failure.kind) if isinstance(each, Failed) else each for each in answers]


def failed(answers: Sequence[ScopeAnswer]) -> set[ErrorKind]:
    return {each.failure.kind for each in answers if isinstance(each, Failed)}


async def test_every_zone_is_answered_alike_however_its_queries_are_counted() -> None:
    clock = ManualClock(NOW)
    fleet = Fleet(3, zones=24, accounts=3, plans=(Plan.ENTERPRISE, Plan.FREE))
    by_token, by_account = SimulatedApi(fleet, clock), SimulatedApi(fleet, clock)
    expected = await asked(by_token, clock, RateLimitType.TOKEN)
    assert told(await asked(by_account, clock, RateLimitType.ACCOUNT)) == told(expected)
    assert failed(expected) == {ErrorKind.PLAN_DATASET}
    assert len(expected) == 2 * 24
    owners = {zone.tag: zone.account.tag for zone in fleet.zones}
    looked_at = [each for record in by_account.stats.queries for each in record.asked]
    assert {each.path for each in looked_at} == {("viewer", "accounts", "0", "zones")}
    assert all(len({owners[tag] for tag in each.scope_tags}) == 1 for each in looked_at)


async def test_accounts_have_a_quota_each_and_a_token_has_one_for_all() -> None:
    clock = ManualClock(NOW)
    # 24 zones of 3 accounts: a round is 3 queries for settings and 3 for windows, either way.
    fleet = Fleet(3, zones=24, accounts=3, plans=(Plan.ENTERPRISE,))

    async def outcome(kind: RateLimitType, rounds: int) -> set[ErrorKind]:
        simulated = SimulatedApi(fleet, clock, quota=QuotaLimits(graphql_requests=5))
        return failed(await asked(simulated, clock, kind, rounds))

    assert await outcome(RateLimitType.TOKEN, 1) == {ErrorKind.RATE}
    assert await outcome(RateLimitType.ACCOUNT, 2) == set()
    assert await outcome(RateLimitType.ACCOUNT, 3) == {ErrorKind.RATE}
