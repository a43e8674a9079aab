"""No window is captured before Cloudflare's own clock says that it is final, and none before an older one of its zone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.truth import expected_samples
from tests.unit.test_collect import (
    DELAY,
    HOUR,
    NOW,
    TOKEN,
    FakeCloudflare,
    Scene,
    WallClock,
    a_scene,
    due,
    failure,
    hole_reasons,
    scene,
    zone,
)
from worker.cloudflare import (
    Answered,
    ApiFailure,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    TokenRefused,
    Zone,
    ZoneAnswer,
)
from worker.collect import ZONES_REFRESH_SECONDS
from worker.ledger import HoleReason, drifted_buckets, scope_reports
from worker.simulator.api import SimulatedApi
from worker.simulator.fleet import Fleet, Plan

__all__ = ["scene"]  # a fixture

AHEAD_SECONDS = 3 * HOUR

FLEET = Fleet(7, zones=3, plans=(Plan.ENTERPRISE,))


class RightClock(ManualClock):
    """Cloudflare's clock: the worker's, without what somebody set that one ahead by."""

    def __init__(self, clock: WallClock) -> None:
        super().__init__()
        self._wall = clock

    def now(self) -> float:
        return self._wall.now() - self._wall.ahead_seconds


@pytest.fixture
async def simulated(tmp_path: Path) -> AsyncIterator[Scene]:
    """A collector before the simulated API, which knows the right time and shows young windows incompletely."""
    async with a_scene(tmp_path, bucket_seconds=300) as made:
        simulator = SimulatedApi(FLEET, RightClock(made.clock), tokens=(TOKEN,))
        api = CloudflareApi(
            api_url="http://127.0.0.1/client/v4",
            token=TOKEN,
            clock=made.clock,
            transport=httpx.ASGITransport(simulator),
        )
        given: Any = api
        yield replace(made, api=given).restarted()
        await api.aclose()


def captured_samples(session: Any) -> dict[tuple[str, int], int]:
    """How many samples each captured window has, by zone and start."""
    rows = session._connection.execute(
        """SELECT scope.tag, bucket.start, length(bucket.sample_values) / 8
        FROM bucket JOIN scope ON scope.id = bucket.scope_id"""
    )
    return {(tag, start): samples for tag, start, samples in rows}


async def assert_true(scene: Scene) -> None:
    """Everything that is captured has the values that a window has when it is final."""
    for each in FLEET.zones:
        starts = [start for start in (await scene.captured()).get(each.tag, [])]
        for start in starts:
            truth = expected_samples(FLEET, each.tag, start, 300)
            assert await scene.ledger.read(values_of, each.tag, start) == truth


def values_of(session: Any, tag: str, start: int) -> Any:
    raise NotImplementedError
