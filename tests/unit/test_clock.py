import asyncio
import time

import pytest

from tests.clocks import JumpingClock, ManualClock
from worker.clock import Clock, ScaledClock, SystemClock, wait_for_any


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def others() -> set["asyncio.Task[object]"]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_an_event_that_is_set_already_is_not_waited_for() -> None:
    clock = ManualClock()
    event = asyncio.Event()
    event.set()
    assert await wait_for_any(clock, 60, asyncio.Event(), event)
    assert clock.slept == []


@pytest.mark.parametrize("which", [0, 1])
async def test_any_event_ends_the_wait_at_once(which: int) -> None:
    clock = ManualClock()
    events = [asyncio.Event(), asyncio.Event()]
    waiting = asyncio.create_task(wait_for_any(clock, 60, *events))
    await settled()
    events[which].set()
    assert await waiting
    assert clock.monotonic() == 0


async def test_without_an_event_the_wait_ends_with_its_time() -> None:
    clock = ManualClock()
    waiting = asyncio.create_task(wait_for_any(clock, 60, asyncio.Event()))
    await clock.advance(59.9)
    assert not waiting.done()
    await clock.advance(0.1)
    assert not await waiting


async def test_a_wait_of_no_time_still_lets_others_run() -> None:
    assert not await wait_for_any(JumpingClock(), 0, asyncio.Event())


@pytest.mark.parametrize("end", ["event", "time", "cancelled"])
async def test_a_wait_leaves_nothing_behind_however_it_ends(end: str) -> None:
    clock = ManualClock()
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_for_any(clock, 60, event))
    await settled()
    match end:
        case "event":
            event.set()
        case "time":
            await clock.advance(60)
        case _:
            waiting.cancel()
    await asyncio.wait([waiting])
    await settled()
    assert waiting.cancelled() == (end == "cancelled")
    assert others() == set()


@pytest.mark.parametrize("clock", [SystemClock(), ScaledClock(0.0, 1e6)])
async def test_a_negative_sleep_is_none(clock: Clock) -> None:
    await clock.sleep(-1e9)


def test_the_system_s_clock_is_the_machine_s() -> None:
    clock = SystemClock()
    before = time.time(), time.monotonic()
    between = clock.now(), clock.monotonic()
    after = time.time(), time.monotonic()
    assert before[0] <= between[0] <= after[0]
    assert before[1] <= between[1] <= after[1]


async def test_a_scaled_clock_starts_at_its_origin_and_sleeps_in_its_own_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = [100.0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(time, "monotonic", lambda: machine[0])
    clock = ScaledClock(1_750_000_000.0, 60.0)
    assert (clock.now(), clock.monotonic()) == (1_750_000_000.0, 0.0)
    machine[0] += 2.0
    assert (clock.now(), clock.monotonic()) == (1_750_000_120.0, 120.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await clock.sleep(30.0)
    assert slept == [0.5]
