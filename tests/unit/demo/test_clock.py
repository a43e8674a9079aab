import asyncio

import pytest

from worker.demo.clock import DemoClock

# So fast that no test waits for it.
SPEED = 1e9


async def test_time_stands_still_until_it_is_let_run() -> None:
    clock = DemoClock(1000.0, 5000.0, SPEED)
    assert (clock.now(), clock.monotonic()) == (1000.0, 0.0)


async def test_nobody_wakes_before_time_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.demo.clock._SHORTEST_SLEEP_SECONDS", 0.0)
    clock = DemoClock(1000.0, 5000.0, SPEED)
    sleeper = asyncio.create_task(clock.sleep(1.0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not sleeper.done()
    clock.run()
    await sleeper


async def test_at_its_end_the_time_of_day_stands_still_and_durations_go_on() -> None:
    clock = DemoClock(1000.0, 5000.0, SPEED)
    clock.run()
    await clock.sleep(60.0)
    assert clock.now() == 5000.0
    before = clock.monotonic()
    await clock.sleep(60.0)
    assert clock.now() == 5000.0
    assert clock.monotonic() > before > 4000.0
