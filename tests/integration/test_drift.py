"""Captured windows are read again from the simulated API: what has changed is measured, and nothing else happens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock
from worker.cloudflare import Api, CloudflareApi, Priority, Quota, shipped
from worker.collect import LOOP, Collector
from worker.config import CloudflareSettings
from worker.drift import DriftMeter
from worker.health import Health
from worker.ledger import Ledger, captured_samples, newest_readings, register_destinations
from worker.observe import Metrics
from worker.series import metric_name
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import Incident
from worker.simulator.fleet import Fleet, Plan

DATASET = shipped()["http_requests"]
NOW = 1_750_032_600.0  # 2025-06-16T00:10:00Z
WIDTH_SECONDS = 300
NEWEST = 1_750_031_700  # the window that ends at midnight
FIRST_READ = NEWEST - 6 * WIDTH_SECONDS  # those before it were captured more than half an hour after they were final
REQUESTS = "cloudflare_zone_requests"
ZONES = 6
QUARTER, HOUR, SIX_HOURS = 900, 3600, 21_600


class StandingClock(JumpingClock):
    """A clock that can be told to stand still: whoever sleeps then never wakes."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.stands = False
        self.somebody_sleeps = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if not self.stands:
            await super().sleep(seconds)
            return
        self.somebody_sleeps.set()
        await asyncio.Event().wait()


@dataclass
class Scene:
    """A collector and a meter with one token, the simulated API behind it, and one ledger."""

    clock: StandingClock
    simulated: SimulatedApi
    ledger: Ledger
    collector: Collector
    meter: DriftMeter
    sent: Counter[Priority]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def collect(self) -> bool:
        return await self.collector.collect_due(self.stopping)

    async def read_at(self, moment: float) -> None:
        self.clock.set(moment)
        await self.meter.read_due(self.stopping)

    async def differences(self, after_seconds: int) -> dict[tuple[str, int], float | None]:
        """The relative differences that were found so long after the capture, by zone and window."""
        windows = await self.ledger.read(captured_windows)
        return {
            windows[each.bucket_id]: each.relative_difference
            for each in await self.ledger.read(newest_readings, DATASET.name, most=1000)
            if each.after_seconds == after_seconds
        }

    async def true_differences(self) -> dict[tuple[str, int], float]:
        """What each of the windows that are read again lacked of its requests when it was captured."""
        found = {}
        for number, (tag, start) in (await self.ledger.read(captured_windows)).items():
            samples = await self.ledger.read(captured_samples, number) or {}
            (captured,) = (value for series, value in samples.items() if metric_name(series) == REQUESTS)
            truth = self.simulated.fleet.bucket(tag, start, WIDTH_SECONDS)
            requests = truth.requests if truth else 0
            if start >= FIRST_READ:
                found[tag, start] = (requests - captured) / captured if captured else float(requests > 0)
        return found


def captured_windows(session: Any) -> dict[int, tuple[str, int]]:
    rows = session._connection.execute("SELECT bucket.id, tag, start FROM bucket JOIN scope ON scope.id = scope_id")
    return {number: (tag, start) for number, tag, start in rows}


def what_is_to_stay(session: Any) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: session._connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - names of this file
        for table in ("bucket", "delivery", "series", "hole", "drift", "expectation")
    }


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = StandingClock(NOW)
    simulated = SimulatedApi(Fleet(seed=17, zones=ZONES, plans=(Plan.ENTERPRISE,)), clock)
    sent: Counter[Priority] = Counter()

    def count(api: Api, priority: Priority, _outcome: str, _seconds: float) -> None:
        sent[priority] += api is Api.GRAPHQL

    settings = CloudflareSettings(
        api_token=SecretStr(ACCEPTED_BEARER),
        bucket_seconds=WIDTH_SECONDS,
        replay_hours=1,
        drift_sample_percent=100,
    )
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=1860, liveness_seconds=960)
    metrics = Metrics(clock, health, version="1", sqlite_version="3")
    api = CloudflareApi(
        api_url="http://127.0.0.1/client/v4",
        token=ACCEPTED_BEARER,
        clock=clock,
        on_request=count,
        quota=Quota(clock, graphql=25),  # of which 4 a minute are for what is not live
        transport=httpx.ASGITransport(simulated),
    )
    collector = Collector(
        settings,
        datasets=[DATASET],
        max_ledger_bytes=2**30,
        api=api,
        ledger=ledger,
        clock=clock,
        health=health,
        metrics=metrics,
    )
    meter = DriftMeter(settings, datasets=[DATASET], api=api, ledger=ledger, clock=clock, metrics=metrics)
    yield Scene(clock, simulated, ledger, collector, meter, sent)
    await api.aclose()
    await ledger.close()


async def test_traffic_that_arrives_after_the_capture_is_measured_and_nothing_is_overwritten(scene: Scene) -> None:
    # A tenth of the newest window is visible 50 minutes after each minute: after the reading at +15 min.
    scene.simulated.faults.add(Incident(start=NEWEST, end=NEWEST + WIDTH_SECONDS, delay_seconds=3000, percent=10))
    assert await scene.collect()
    captured = await scene.ledger.read(what_is_to_stay)
    live = scene.sent.copy()

    await scene.read_at(NOW + QUARTER)
    await scene.read_at(NOW + HOUR)
    await scene.read_at(NOW + SIX_HOURS)

    at_first, later = await scene.differences(QUARTER), await scene.differences(HOUR)
    assert set(at_first.values()) == {0.0}
    assert len(at_first) == 7 * ZONES
    assert later == await scene.true_differences()
    assert {start for (_, start), difference in later.items() if difference} == {NEWEST}
    assert await scene.differences(SIX_HOURS) == later
    assert await scene.ledger.read(what_is_to_stay) == captured
    assert scene.sent - live == {Priority.DRIFT: 3 * 7}


async def test_live_windows_are_captured_at_once_while_readings_wait_for_the_quota(scene: Scene) -> None:
    assert await scene.collect()
    scene.clock.set(NOW + QUARTER)
    scene.clock.stands = True
    reading = asyncio.create_task(scene.meter.read_due(scene.stopping))
    await scene.clock.somebody_sleeps.wait()
    assert scene.sent[Priority.DRIFT] == 4
    before = len(await scene.ledger.read(captured_windows))

    assert await scene.collect()

    assert len(await scene.ledger.read(captured_windows)) == before + 3 * ZONES
    assert scene.clock.now() == NOW + QUARTER
    assert not reading.done()
    reading.cancel()
    await asyncio.wait([reading])
