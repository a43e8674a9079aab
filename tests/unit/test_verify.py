import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.ledger.fleet import HOUR, NOW, T0
from tests.unit.reading_back import Scene, reading_back, stored
from worker.health import Health
from worker.ledger import jobs
from worker.observe import Metrics
from worker.remote_write import Fate, Found, Later
from worker.verify import FIRST_SECONDS, ContinuousVerification

HOURS = int(NOW - T0) // HOUR + 9


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with reading_back(tmp_path, monkeypatch) as made:
        yield made


async def metrics_after(scene: Scene, *passes: Found | Later) -> dict[str, float]:
    """What is on /metrics when the loop has read this, a pass each."""
    metrics = Metrics(scene.clock, Health(scene.clock), version="0", sqlite_version="0")
    loop = ContinuousVerification(scene.verification, ("prom",), hours=HOURS, clock=scene.clock, metrics=metrics)
    stopping = asyncio.Event()

    def end() -> Later:
        stopping.set()
        return Later("the test ends", Fate.PARK)

    scene.answers = [*(partial(_same, each) for each in passes), end]
    await loop.run(stopping)
    exposition, _ = metrics.exposition("")
    lines = (line.rpartition(" ") for line in exposition.decode().splitlines() if line.startswith("cfrw_verify_"))
    return {name.removeprefix("cfrw_verify_"): float(number) for name, _, number in lines}


def _same(found: Found | Later) -> Found | Later:
    return found


async def test_the_last_hours_are_read_back_once_an_hour_and_told(scene: Scene) -> None:
    with capture_logs() as logs:
        shown = await metrics_after(scene, Found(stored()), Found(stored(range(3))))

    assert shown['samples{destination="prom",finding="equal"}'] == 9
    assert shown['samples{destination="prom",finding="missing"}'] == 3
    assert shown['last_success_timestamp_seconds{destination="prom"}'] > NOW + HOUR
    assert [at for _, at, _ in scene.asked] == [T0 * 1000] * len(scene.asked)
    (told,) = (log for log in logs if log["log_level"] == "error")
    assert (told["destination"], told["missing"]) == ("prom", 3)
    assert await scene.ledger.read(jobs, newest=9) == (), "what nobody has asked for is not in the journal"


async def test_a_destination_that_cannot_be_read_keeps_its_numbers_and_their_time(scene: Scene) -> None:
    with capture_logs() as logs:
        shown = await metrics_after(scene, Found(stored()), Later("no such place", Fate.PARK))

    assert shown['samples{destination="prom",finding="equal"}'] == 12
    assert NOW < shown['last_success_timestamp_seconds{destination="prom"}'] < NOW + HOUR
    assert {log["reason"] for log in logs if log["log_level"] == "warning"} == {"no such place", "the test ends"}


async def test_nothing_is_read_in_the_first_minutes(scene: Scene) -> None:
    await metrics_after(scene)
    assert scene.clock.slept[0] == FIRST_SECONDS
