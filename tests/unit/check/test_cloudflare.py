from collections.abc import Collection, Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.collected_fleet import ShiftedClock
from worker.check.cloudflare import look_at_cloudflare
from worker.check.finding import Finding, State
from worker.check.memory import Memory
from worker.cloudflare import CloudflareApi, Quota, TokenAccepted, shipped
from worker.config import CloudflareSettings
from worker.datasets import catalogue_of, chosen
from worker.ledger import Denial, Room, Scope
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.faults import (
    EntitlementChanged,
    Fault,
    GraphqlError,
    HttpStatus,
    Surface,
    TokenRevoked,
    ZoneMissing,
)
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.refusals import RefusalKind

NOW = 1_750_000_000
HTTP_HOURS = shipped()["http_requests"].grain(3600).node
FLEET = Fleet(seed=11, zones=5, accounts=2, pending_zones=1)
ACTIVE = sorted(zone.name for zone in FLEET.zones)[:4]


def remembered(**changes: Any) -> Memory:
    given: dict[str, Any] = {
        "scopes": (),
        "denials": (),
        "requests": {},
        "readings": {},
        "room": Room(0, 0),
        "covered": None,
    }
    return Memory(**(given | changes))


class World:
    def __init__(self, fleet: Fleet = FLEET, *faults: Fault, ahead_seconds: float = 0.0, graphql: int = 300) -> None:
        self.clock = ManualClock(NOW)
        self.simulated = SimulatedApi(fleet, ShiftedClock(self.clock, -ahead_seconds))
        self.simulated.faults.add(*faults)
        self.api = CloudflareApi(
            api_url=f"http://simulated{BASE_PATH}",
            token=ACCEPTED_BEARER,
            clock=self.clock,
            quota=Quota(self.clock, graphql=graphql),
            transport=httpx.ASGITransport(self.simulated),
        )
        self.sent = 0

    async def looked(
        self, memory: Memory | None = None, *, taken: Collection[str] = (), **changes: Any
    ) -> list[Finding]:
        settings = CloudflareSettings.model_validate({"api_token": "t"} | changes)
        collected = chosen(settings, catalogue_of(settings))
        try:
            findings = look_at_cloudflare(settings, collected, self.api, memory, self.clock, taken=set(taken))
            return [each async for each in findings]
        finally:
            await self.api.aclose()


def by_section(findings: Sequence[Finding]) -> Mapping[str, list[State]]:
    found: dict[str, list[State]] = {}
    for finding in findings:
        found.setdefault(finding.section, []).append(finding.state)
    return found


def the(findings: Sequence[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.what]
    return found


async def test_a_sound_token_is_told_with_its_zones_and_what_they_cost_in_few_requests() -> None:
    world = World()
    findings = await world.looked()
    assert by_section(findings) == {
        "token": [State.OK, State.OK],
        "clock": [State.OK],
        "zones": [State.OK],
        "datasets": [State.OK],
        "API budget": [State.OK],
    }
    assert "4 of the 4 active zones" in the(findings, "are selected").what
    assert "it reads the analytics of 4 zones" in the(findings, "analytics").what
    assert "4 zones x 1 dataset" in the(findings, "every 1h").what
    assert not any(finding.to_do for finding in findings)
    assert sum(world.simulated.stats.requests.values()) == 3


@pytest.mark.parametrize(
    ("faults", "changes", "section", "state", "what", "to_do"),
    [
        ([TokenRevoked()], {}, "token", State.FAILURE, "refuses it", "CF_API_TOKEN"),
        ([HttpStatus(status=503)], {}, "token", State.FAILURE, "could not be asked", "CF_API_URL"),
        (
            [GraphqlError(error=RefusalKind.ZONE_UNAUTHORIZED)],
            {},
            "token",
            State.FAILURE,
            "does not read the analytics of 4 of 4 zones",
            "Zone > Analytics > Read",
        ),
        (
            [HttpStatus(status=502, on=Surface.GRAPHQL)],
            {},
            "token",
            State.WARNING,
            "not known whether it reads",
            "check again",
        ),
        ([], {"zones": "nowhere.test"}, "zones", State.FAILURE, "0 of the 4 active zones", "CF_ZONES"),
        ([], {"zones": f"{ACTIVE[0]},{ACTIVE[1]}x"}, "zones", State.FAILURE, f"names {ACTIVE[1]}x", ACTIVE[1]),
        ([], {"exclude_zones": "a.test"}, "zones", State.WARNING, "CF_EXCLUDE_ZONES names a.test", "correct"),
        ([], {"exclude_zones": ACTIVE[0]}, "zones", State.OK, "settings leave 1 out", ""),
        ([], {"shard": "1/2"}, "zones", State.OK, "of other shards", ""),
        ([], {"datasets": "kv_storage", "accounts": "nobody"}, "accounts", State.FAILURE, "there is none", "CF_ACC"),
        ([], {"datasets": "kv_storage"}, "accounts", State.OK, "2 that the token reads", ""),
        ([], {"graphql_requests_per_5_minutes": 1, "bucket_seconds": 60, "datasets": "zone"}, "API budget",
         State.FAILURE, "What would fit: CF_BUCKET_SECONDS=", "does not start so"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_told_with_what_to_do(
    *, faults: list[Fault], changes: dict[str, Any], section: str, state: State, what: str, to_do: str
) -> None:
    findings = await World(FLEET, *faults).looked(**changes)
    found = the(findings, what)
    assert (found.section, found.state) == (section, state)
    assert to_do in found.to_do
    assert bool(found.to_do) is bool(to_do)
    assert all("\n" not in finding.what for finding in findings)


@pytest.mark.parametrize(("days", "state"), [(15, State.OK), (13, State.WARNING)])
async def test_a_token_that_ends_soon_is_a_warning_and_no_reason_to_look_no_further(
    monkeypatch: pytest.MonkeyPatch, days: int, state: State
) -> None:
    async def verified() -> TokenAccepted:
        return TokenAccepted(NOW + days * 86_400)

    world = World()
    monkeypatch.setattr(world.api, "verify_token", verified)
    findings = await world.looked()
    assert the(findings, "Cloudflare accepts it until 2025-0").state is state
    assert by_section(findings)["zones"] == [State.OK]


async def test_what_other_shards_collect_costs_this_worker_nothing() -> None:
    findings = [await World().looked(shard=f"{number}/2") for number in (1, 2)]
    costs = [int(the(each, "every 1h").what.split()[0]) for each in findings]
    assert sum(costs) == 4
    assert 0 not in costs


async def test_what_is_asked_with_a_token_before_is_left_to_it() -> None:
    others = {zone.tag for zone in FLEET.zones if zone.name in ACTIVE[:3]}
    findings = await World().looked(taken=others)
    assert f": {ACTIVE[3]}; 3 are asked with a token before it" in the(findings, "are selected").what
    assert "1 zone x 1 dataset" in the(findings, "every 1h").what


async def test_nothing_is_listed_with_a_token_that_is_refused() -> None:
    world = World(FLEET, TokenRevoked())
    findings = await world.looked()
    assert by_section(findings) == {"token": [State.FAILURE], "clock": [State.OK], "zones": [State.SKIPPED]}


async def test_a_token_that_reads_no_zone_is_a_failure() -> None:
    findings = await World(FLEET, *(ZoneMissing(zone=zone.tag) for zone in FLEET.zones)).looked()
    assert the(findings, "reads no active zone").state is State.FAILURE


async def test_a_clock_that_is_ahead_of_cloudflare_s_is_a_warning() -> None:
    findings = await World(ahead_seconds=600).looked()
    assert the(findings, "10m ahead of Cloudflare's").state is State.WARNING


@pytest.mark.parametrize(("denied", "state"), [(1, State.OK), (4, State.WARNING)])
async def test_a_dataset_is_told_with_its_reason_and_how_many_are_denied_it(denied: int, state: State) -> None:
    zones = sorted(FLEET.zones, key=lambda zone: zone.name)[:denied]
    changed = [EntitlementChanged(scope=zone.tag, node=HTTP_HOURS, is_enabled=False) for zone in zones]
    findings = await World(FLEET, *changed).looked()
    found = the(findings, f"http_requests is denied to {denied} of 4 zones: ")
    assert found.state is state
    assert f"{4 - denied} zone" in the(findings, "every 1h").what or denied == 4


async def test_what_is_not_asked_for_now_is_known_from_the_ledger() -> None:
    fleet = Fleet(seed=11, zones=25, accounts=1, plans=[Plan.ENTERPRISE])
    zones = sorted(fleet.zones, key=lambda zone: zone.name)
    scopes = tuple(Scope(zone.tag, zone.name, zone.account.tag, zone.account.name, "") for zone in zones)
    denials = tuple(
        Denial("http_requests", zone.tag, zone.name, NOW, "the plan lacks it") for zone in (zones[0], zones[20])
    )

    findings = await World(fleet).looked(remembered(scopes=scopes[:22], denials=denials))

    assert "the analytics of 10 zones, the first of 25" in the(findings, "analytics").what
    # Of the first one Cloudflare says something newer.
    assert "denied to 1 of 25 zones: the plan lacks it" in the(findings, "denied to").what
    assert the(findings, "3 zones not looked at").state is State.SKIPPED
    assert "24 zones x 1 dataset" in the(findings, "every 1h").what


@pytest.mark.parametrize(
    ("requests", "is_asked"),
    [({"graphql": 290}, False), ({"rest": 1190}, False), ({"graphql": 200, "rest": 900}, True)],
)
async def test_what_the_worker_has_sent_counts_and_nothing_is_asked_without_a_place(
    requests: dict[str, int], *, is_asked: bool
) -> None:
    world = World()
    sent = {api: [NOW - 10.0] * count for api, count in requests.items()}
    findings = await world.looked(remembered(requests={"default": sent}))
    assert (sum(world.simulated.stats.requests.values()) > 0) is is_asked
    assert (by_section(findings) == {"token": [State.SKIPPED]}) is not is_asked
