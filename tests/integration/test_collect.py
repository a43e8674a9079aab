"""Collection from the simulated API over a real connection: what the collector and the client make of it together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock
from worker.buckets import final_window_starts
from worker.cloudflare import CloudflareApi, Quota, RateLimitType, shipped
from worker.collect import LOOP, Collector
from worker.config import CloudflareSettings
from worker.health import Health, TokenState
from worker.ledger import HoleReason, Ledger, denials
from worker.observe import Metrics
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import GraphqlError, HttpStatus, Surface, TokenRevoked, ZoneMissing
from worker.simulator.fleet import Fleet, Plan, Zone
from worker.simulator.quota import QuotaLimits
from worker.simulator.refusals import RefusalKind
from worker.simulator.serving import serve

HOUR = 3600
NOW = 1_750_032_600.0  # 2025-06-16T00:10:00Z


@dataclass
class Scene:
    """A collector, the simulated API that it collects from, and the ledger that it collects into."""

    clock: JumpingClock
    simulated: SimulatedApi
    settings: CloudflareSettings
    ledger: Ledger
    health: Health
    collector: Collector
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def zones(self) -> Sequence[Zone]:
        return self.simulated.fleet.zones

    async def next_pass(self, pause_seconds: float = 60.0) -> bool:
        self.clock.set(self.clock.now() + pause_seconds)
        return await self.collector.collect_due(self.stopping)

    def due(self) -> list[int]:
        return list(
            final_window_starts(
                self.clock.now(),
                width_seconds=self.settings.bucket_seconds,
                delay_seconds=self.settings.delay_seconds,
                reach_seconds=self.settings.replay_hours * HOUR,
            )
        )

    async def lacking(self) -> dict[str, list[int]]:
        """The windows that are due and not captured, of the zones that lack any."""
        captured = await self.ledger.read(captured_starts)
        missing = {zone.tag: [start for start in self.due() if start not in captured[zone.tag]] for zone in self.zones}
        return {tag: starts for tag, starts in missing.items() if starts}

    async def reasons(self) -> Counter[tuple[str, str]]:
        """Of which zone how many windows have no bucket, for which reason."""
        return await self.ledger.read(hole_reasons)


def captured_starts(session: Any) -> dict[str, set[int]]:
    starts: dict[str, set[int]] = {tag: set() for (tag,) in session._connection.execute("SELECT tag FROM scope")}
    for tag, start in session._connection.execute("SELECT tag, start FROM bucket JOIN scope ON scope.id = scope_id"):
        starts[tag].add(start)
    return starts


def hole_reasons(session: Any) -> Counter[tuple[str, str]]:
    return Counter(session._connection.execute("SELECT tag, reason FROM hole JOIN scope ON scope.id = scope_id"))


MakeScene = Callable[..., Any]


@pytest.fixture
def a_scene(tmp_path: Path) -> MakeScene:
    @asynccontextmanager
    async def make(
        *,
        zones: int = 12,
        plans: tuple[Plan, ...] = (Plan.ENTERPRISE,),
        quota: QuotaLimits | None = None,
        **changes: Any,
    ) -> AsyncIterator[Scene]:
        clock = JumpingClock(NOW)
        simulated = SimulatedApi(Fleet(seed=17, zones=zones, plans=plans), clock, quota=quota)
        async with serve(simulated) as api_url:
            given = {"api_token": SecretStr(ACCEPTED_BEARER), "api_url": api_url, "replay_hours": 6}
            settings = CloudflareSettings.model_validate(given | changes)
            ledger = Ledger.open(tmp_path / "ledger.db")
            health = Health(clock)
            health.expect(LOOP, allowance_seconds=1860, liveness_seconds=960)
            counting = Quota(clock, rate_limit_type=RateLimitType(settings.rate_limit_type))
            api = CloudflareApi(api_url=api_url, token=ACCEPTED_BEARER, clock=clock, quota=counting)
            collector = Collector(
                settings,
                datasets=[shipped()["http_requests"]],
                max_ledger_bytes=2**30,
                api=api,
                ledger=ledger,
                clock=clock,
                health=health,
                metrics=Metrics(clock, health, version="1", sqlite_version="3", datasets=["http_requests"]),
            )
            try:
                yield Scene(clock, simulated, settings, ledger, health, collector)
            finally:
                await api.aclose()
                await ledger.close()

    return make


@pytest.mark.parametrize("width", [60, 1800, 3600, 86_400])
async def test_everything_that_is_due_is_captured_with_few_queries(width: int, a_scene: MakeScene) -> None:
    async with a_scene(bucket_seconds=width, replay_hours=48 if width > HOUR else 6) as scene:
        assert await scene.next_pass()
        assert await scene.lacking() == {}
        # Twelve zones are two groups, of sixty windows at a time; and what each of them is entitled to.
        assert scene.simulated.stats.requests["graphql"] == 2 * -(-len(scene.due()) // 60) + 2


async def test_where_accounts_are_counted_everything_that_is_due_is_captured_through_them(a_scene: MakeScene) -> None:
    async with a_scene(bucket_seconds=HOUR, rate_limit_type="account", zones=22) as scene:
        assert await scene.next_pass()
        assert await scene.lacking() == {}
        # Two accounts of eleven zones are two groups each; and what their zones are entitled to.
        assert scene.simulated.stats.requests["graphql"] == 4 + 4
        assert scene.simulated.stats.statuses.keys() == {200}
        asked = [each for query in scene.simulated.stats.queries for each in query.asked]
        assert {each.path for each in asked} == {("viewer", "accounts", "0", "zones")}


@pytest.mark.parametrize("kind", [RefusalKind.UNABLE, RefusalKind.INTERNAL, RefusalKind.TOO_BUSY])
async def test_a_zone_that_cloudflare_always_fails_for_costs_its_neighbours_a_few_passes_at_most(
    kind: RefusalKind, a_scene: MakeScene
) -> None:
    async with a_scene() as scene:
        bad = scene.zones[4].tag
        scene.simulated.faults.add(GraphqlError(error=kind, zone=bad))
        for _ in range(4):
            assert not await scene.next_pass()
        assert await scene.lacking() == {bad: scene.due()}
        assert await scene.reasons() == {(bad, HoleReason.FAILED): len(scene.due())}
        scene.simulated.faults.clear()
        assert await scene.next_pass(HOUR / 2)
        assert await scene.lacking() == {}


@pytest.mark.parametrize("kind", [RefusalKind.ZONE_UNAUTHORIZED, RefusalKind.PATH_ACCESS])
async def test_a_zone_that_is_denied_costs_its_neighbours_nothing(kind: RefusalKind, a_scene: MakeScene) -> None:
    async with a_scene() as scene:
        bad = scene.zones[4].tag
        scene.simulated.faults.add(GraphqlError(error=kind, zone=bad))
        assert not await scene.next_pass()
        assert await scene.lacking() == {bad: scene.due()}
        assert await scene.reasons() == {(bad, HoleReason.DENIED): len(scene.due())}
        asked = scene.simulated.stats.requests["graphql"]
        for _ in range(10):
            await scene.next_pass()
        assert scene.simulated.stats.requests["graphql"] == asked
        scene.simulated.faults.clear()
        assert await scene.next_pass(HOUR)
        assert await scene.lacking() == {}


async def test_zones_whose_plan_has_no_minutes_are_denied_and_the_others_collected(a_scene: MakeScene) -> None:
    async with a_scene(zones=6, plans=(Plan.FREE, Plan.BUSINESS), bucket_seconds=300) as scene:
        assert await scene.next_pass()
        free = {zone.tag for zone in scene.zones if zone.plan is Plan.FREE}
        assert set(await scene.lacking()) == free
        assert await scene.reasons() == {}
        assert {denial.tag: denial.detail for denial in await scene.ledger.read(denials)} == dict.fromkeys(
            free, "the plan does not include httpRequests1mGroups"
        )
        asked = 1 + -(-len(scene.due()) // 60)
        assert scene.simulated.stats.requests["graphql"] == asked, "nobody asks for what is denied"


async def test_windows_past_the_retention_of_a_plan_are_given_up_once(a_scene: MakeScene) -> None:
    async with a_scene(zones=6, plans=(Plan.FREE, Plan.BUSINESS), replay_hours=100) as scene:
        assert await scene.next_pass()
        free = {zone.tag for zone in scene.zones if zone.plan is Plan.FREE}
        lacking = await scene.lacking()
        assert set(lacking) == free
        # A free zone keeps three days of hours.
        assert all(start < NOW - 70 * HOUR for starts in lacking.values() for start in starts)
        assert set(await scene.reasons()) == {(tag, HoleReason.EXPIRED) for tag in free}
        asked = scene.simulated.stats.requests["graphql"]
        assert await scene.next_pass()
        assert scene.simulated.stats.requests["graphql"] == asked


async def test_a_zone_that_is_left_out_of_the_answers_has_a_reason(a_scene: MakeScene) -> None:
    async with a_scene() as scene:
        missing = scene.zones[2].tag
        scene.simulated.faults.add(ZoneMissing(zone=missing, on=Surface.GRAPHQL))
        assert not await scene.next_pass()
        assert set(await scene.lacking()) == {missing}
        assert set(await scene.reasons()) == {(missing, HoleReason.FAILED)}
        scene.simulated.faults.clear()
        assert await scene.next_pass()


async def test_a_quota_that_somebody_else_uses_up_is_waited_out(a_scene: MakeScene) -> None:
    async with a_scene(zones=60, quota=QuotaLimits(graphql_requests=3)) as scene:
        passes = 1
        while not await scene.next_pass():
            passes += 1
        assert await scene.lacking() == {}
        assert passes > 5
        # After each refusal nothing is sent for five minutes.
        assert scene.simulated.stats.statuses[429] <= scene.clock.monotonic() / 300 * 4


async def test_a_token_that_is_revoked_and_given_back_costs_no_window(a_scene: MakeScene) -> None:
    async with a_scene() as scene:
        await scene.next_pass()
        states = [scene.health.token]
        scene.simulated.faults.add(TokenRevoked())
        await scene.next_pass(HOUR)
        states.append(scene.health.token)
        scene.simulated.faults.clear()
        await scene.next_pass()
        states.append(scene.health.token)
        assert states == [TokenState.ACCEPTED, TokenState.REFUSED, TokenState.ACCEPTED]
        assert await scene.lacking() == {}


async def test_an_outage_of_a_day_costs_what_is_past_the_replay_bound_and_nothing_else(a_scene: MakeScene) -> None:
    async with a_scene() as scene:
        await scene.next_pass()
        scene.simulated.faults.add(HttpStatus(is_html=True))
        for _ in range(26):
            assert not await scene.next_pass(HOUR)
        scene.simulated.faults.clear()
        assert await scene.next_pass()
        assert await scene.lacking() == {}
        assert scene.health.token is TokenState.ACCEPTED
