import asyncio

import pytest

from tests.clocks import JumpingClock, ManualClock
from worker.rate import Allowance


async def test_all_permissions_can_be_had_at_once_and_the_next_one_is_waited_for() -> None:
    clock = JumpingClock()
    allowance = Allowance(10, per_seconds=60.0, clock=clock)
    stopping = asyncio.Event()
    assert [await allowance.take(stopping) for _ in range(10)] == [True] * 10
    assert clock.monotonic() == 0
    assert await allowance.take(stopping)
    assert clock.monotonic() == pytest.approx(6.0)


@pytest.mark.parametrize(("most", "per_seconds"), [(600, 60.0), (1, 60.0), (7, 10.0), (60_000, 60.0)])
async def test_on_the_long_run_there_are_no_more_than_allowed_after_the_first_ones(
    most: int, per_seconds: float
) -> None:
    clock = JumpingClock()
    allowance = Allowance(most, per_seconds=per_seconds, clock=clock)
    taken = min(3 * most, most + 200)
    for _ in range(taken):
        assert await allowance.take(asyncio.Event())
    assert clock.monotonic() == pytest.approx((taken - most) * per_seconds / most, rel=1e-6)


async def test_permissions_grow_back_evenly_up_to_the_first_number_and_no_further() -> None:
    clock = ManualClock()
    allowance = Allowance(10, per_seconds=60.0, clock=clock)
    stopping = asyncio.Event()
    for _ in range(10):
        await allowance.take(stopping)
    await clock.advance(13.0)
    assert [await allowance.take(stopping) for _ in range(2)] == [True, True]
    await clock.advance(100_000.0)
    assert [await allowance.take(stopping) for _ in range(10)] == [True] * 10
    waiting = asyncio.create_task(allowance.take(stopping))
    await clock.advance(5.9)
    assert not waiting.done(), "an hour without a search does not let the next one do more at once"
    await clock.advance(0.2)
    assert await waiting


async def test_several_that_wait_share_what_grows_back() -> None:
    clock = ManualClock()
    allowance = Allowance(10, per_seconds=60.0, clock=clock)
    stopping = asyncio.Event()
    for _ in range(10):
        await allowance.take(stopping)
    waiting = [asyncio.create_task(allowance.take(stopping)) for _ in range(3)]
    for expected in (1, 2, 3):
        await clock.advance(6.1)
        assert sum(task.done() for task in waiting) == expected
    assert all([await task for task in waiting])


async def test_a_stop_ends_the_wait_at_once_and_without_a_permission() -> None:
    clock = ManualClock()
    allowance = Allowance(1, per_seconds=60.0, clock=clock)
    stopping = asyncio.Event()
    assert await allowance.take(stopping)
    waiting = asyncio.create_task(allowance.take(stopping))
    await clock.advance(1.0)
    stopping.set()
    assert not await waiting
    assert clock.monotonic() == 1.0


async def test_there_is_no_permission_once_it_is_stopping() -> None:
    stopping = asyncio.Event()
    stopping.set()
    assert not await Allowance(10, per_seconds=60.0, clock=ManualClock()).take(stopping)
