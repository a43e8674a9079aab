import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import JumpingClock, ManualClock
from worker.cloudflare.quota import ALL_REQUESTS, GRAPHQL_REQUESTS, WINDOW_SECONDS, Api, Lease, Paused, Quota


async def lease(quota: Quota, api: Api) -> Lease:
    granted = await quota.acquire(api)
    assert isinstance(granted, Lease)
    return granted


def most_in_five_minutes(moments: list[float]) -> int:
    """The largest number of moments in any closed interval of 300 s."""
    moments = sorted(moments)
    return max((sum(first <= each <= first + WINDOW_SECONDS for each in moments) for first in moments), default=0)


def test_the_limits_are_cloudflares() -> None:
    quota = Quota(ManualClock())
    assert (GRAPHQL_REQUESTS, ALL_REQUESTS) == (300, 1200)
    assert (quota.remaining(Api.GRAPHQL), quota.remaining(Api.REST)) == (300, 1200)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Api),
            st.sampled_from([0.0, 0.0, 0.01, 1.0, 29.9, 120.0, 299.0, 300.0, 301.0]),  # the pause before it
            st.sampled_from([0.0, 0.2, 30.0, 290.0]),  # how long the exchange takes
            st.floats(0, 1),  # when in between Cloudflare counts it
            st.booleans(),  # whether the next one starts before it ends
        ),
        max_size=40,
    )
)
async def test_no_five_minutes_ever_hold_more_than_the_limit(plan: list[tuple[Api, float, float, float, bool]]) -> None:
    clock = JumpingClock()
    quota = Quota(clock, graphql=4, total=6)
    counted: dict[Api, list[float]] = {api: [] for api in Api}
    async with contextlib.AsyncExitStack() as overlapping:
        for api, pause, duration, share, overlaps in plan:
            await clock.sleep(pause)
            granted = await lease(quota, api)
            counted[api].append(clock.monotonic() + (0 if overlaps else share * duration))
            if overlaps and len(counted[api]) < 3:
                overlapping.enter_context(granted)
                continue
            with granted:
                await clock.sleep(duration)
    assert most_in_five_minutes(counted[Api.GRAPHQL]) <= 4
    assert most_in_five_minutes(counted[Api.GRAPHQL] + counted[Api.REST]) <= 6


async def test_the_full_limit_is_used_and_the_next_request_waits_until_the_first_is_five_minutes_old() -> None:
    clock = JumpingClock()
    quota = Quota(clock)
    for _ in range(GRAPHQL_REQUESTS):
        with await lease(quota, Api.GRAPHQL):
            await clock.sleep(0.1)
    assert quota.remaining(Api.GRAPHQL) == 0
    assert quota.remaining(Api.REST) == ALL_REQUESTS - GRAPHQL_REQUESTS
    with await lease(quota, Api.GRAPHQL):
        assert clock.monotonic() == pytest.approx(300.1, abs=0.01)


async def test_a_place_is_free_five_minutes_after_the_end_of_a_request_not_after_its_start() -> None:
    clock = JumpingClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        await clock.sleep(25)
    with await lease(quota, Api.GRAPHQL):
        assert clock.monotonic() >= 325


async def test_a_place_is_not_free_a_moment_before_five_minutes_are_over() -> None:
    clock = JumpingClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        pass
    await clock.sleep(299.999)
    assert quota.remaining(Api.GRAPHQL) == 0
    with await lease(quota, Api.GRAPHQL):
        assert clock.monotonic() > WINDOW_SECONDS


async def test_requests_of_all_kinds_share_one_limit() -> None:
    clock = JumpingClock()
    quota = Quota(clock, graphql=3, total=4)
    for api in (Api.REST, Api.REST, Api.GRAPHQL, Api.REST):
        with await lease(quota, api):
            pass
    assert (quota.remaining(Api.GRAPHQL), quota.remaining(Api.REST)) == (0, 0)
    with await lease(quota, Api.GRAPHQL):
        assert clock.monotonic() >= WINDOW_SECONDS


async def test_a_request_that_failed_counts_too() -> None:
    quota = Quota(ManualClock(), graphql=2)
    with pytest.raises(KeyError), await lease(quota, Api.GRAPHQL):
        raise KeyError
    assert quota.remaining(Api.GRAPHQL) == 1


async def test_a_request_under_way_holds_its_place_for_as_long_as_it_takes() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        waiting = asyncio.create_task(quota.acquire(Api.GRAPHQL))
        await clock.advance(1000)
        assert not waiting.done()
    await clock.advance(299)
    assert not waiting.done()
    await clock.advance(3)
    assert isinstance(await waiting, Lease)


async def test_places_are_handed_out_in_the_order_in_which_they_were_asked_for() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    order: list[int] = []

    async def ask(number: int) -> None:
        with await lease(quota, Api.GRAPHQL):
            order.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(4)]
    await clock.advance(2000)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_whoever_gives_up_waiting_takes_no_place() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        pass
    waiting = asyncio.create_task(quota.acquire(Api.GRAPHQL))
    await clock.advance(10)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await clock.advance(300)
    assert quota.remaining(Api.GRAPHQL) == 1


async def test_a_pause_refuses_at_once_and_only_the_api_it_is_for() -> None:
    clock = ManualClock()
    quota = Quota(clock)
    quota.pause(Api.GRAPHQL, 300)
    quota.pause(Api.GRAPHQL, 5)
    assert await quota.acquire(Api.GRAPHQL) == Paused(300)
    assert quota.remaining(Api.GRAPHQL) == 0
    assert quota.remaining(Api.REST) == ALL_REQUESTS
    await clock.advance(299)
    assert await quota.acquire(Api.GRAPHQL) == Paused(1)
    await clock.advance(1)
    assert isinstance(await quota.acquire(Api.GRAPHQL), Lease)


async def test_a_pause_that_begins_while_somebody_waits_is_noticed() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        pass
    waiting = asyncio.create_task(quota.acquire(Api.GRAPHQL))
    await clock.advance(200)
    quota.pause(Api.GRAPHQL, 300)
    await clock.advance(101)
    match await waiting:
        case Paused(left):
            assert left == pytest.approx(200, abs=0.1)
        case Lease():
            pytest.fail("a request was let through a pause")


async def test_what_another_process_sent_counts_until_five_minutes_after_its_end() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=3)
    quota.remember(Api.GRAPHQL, [299.0, 10.0, -5.0])
    assert quota.remaining(Api.GRAPHQL) == 0
    await clock.advance(2)
    assert quota.remaining(Api.GRAPHQL) == 1
    assert quota.recent_seconds_ago(Api.GRAPHQL) == [12.0, 2.0]
    with await lease(quota, Api.GRAPHQL):
        assert quota.recent_seconds_ago(Api.GRAPHQL) == [12.0, 2.0, 0.0]
