import asyncio
import contextlib
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import JumpingClock, ManualClock
from worker.cloudflare.quota import (
    ALL_REQUESTS,
    GRAPHQL_REQUESTS,
    LIVE_SHARE,
    PLACES_PER_TURN,
    WINDOW_SECONDS,
    Api,
    Lease,
    Paused,
    Priority,
    Quota,
    RateLimitType,
)


async def lease(quota: Quota, api: Api, priority: Priority = Priority.LIVE, *, account: str = "") -> Lease:
    granted = await quota.acquire(api, priority, account=account)
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


async def test_a_pause_that_begins_while_somebody_waits_is_told_at_once_and_costs_no_place() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        pass
    waiting = asyncio.create_task(quota.acquire(Api.GRAPHQL))
    await clock.advance(200)
    quota.pause(Api.GRAPHQL, 250)
    assert await waiting == Paused(250)
    await clock.advance(251)
    assert quota.remaining(Api.GRAPHQL) == 1


async def test_a_pause_of_a_scope_stops_what_concerns_it_and_nothing_else() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    quota.pause(Api.GRAPHQL, 100, scope="zone-a")
    quota.pause(Api.GRAPHQL, 50, scope="zone-a")
    assert await quota.acquire(Api.GRAPHQL, scopes=["zone-b", "zone-a"]) == Paused(100, ("zone-a",))
    with await lease(quota, Api.GRAPHQL):  # concerns no scope
        pass
    one, other = (asyncio.create_task(quota.acquire(Api.GRAPHQL, scopes=[zone])) for zone in ("zone-b", "zone-c"))
    await clock.advance(200)
    assert quota.paused_seconds(Api.GRAPHQL, "zone-a") == 0
    quota.pause(Api.GRAPHQL, 300, scope="zone-b")
    assert await one == Paused(300, ("zone-b",))
    await clock.advance(101)
    assert isinstance(await other, Lease)


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


async def test_whoever_gives_up_after_a_place_was_handed_to_him_passes_it_on() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=2)
    quota.remember(Api.GRAPHQL, [100.0, 0.0])
    waiting, next_one = (asyncio.create_task(quota.acquire(Api.GRAPHQL)) for _ in range(2))
    await clock.advance(0)
    clock.set(clock.now() + 201)
    with await lease(quota, Api.REST):  # whoever asks serves everybody
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await clock.advance(0)
    assert next_one.done()
    assert isinstance(next_one.result(), Lease)
    assert quota.remaining(Api.GRAPHQL) == 0


@dataclass(frozen=True)
class Granted:
    """A request that was sent; moments are seconds of the clock."""

    number: int
    api: Api
    priority: Priority
    asked_at: float
    at: float
    counted_at: float


Request = tuple[float, Api, Priority, float, float]
"""When it is asked for, its API and priority, how long it takes, and in which part of that Cloudflare counts it."""


async def sent(quota: Quota, clock: ManualClock, plan: list[Request]) -> list[Granted]:
    """What becomes of requests, by the moment at which a place was handed out."""
    log: list[Granted] = []

    async def one(number: int, request: Request) -> None:
        at, api, priority, takes, counted = request
        await clock.sleep(at)
        asked_at = clock.monotonic()
        with await lease(quota, api, priority):
            now = clock.monotonic()
            log.append(Granted(number, api, priority, asked_at, now, now + takes * counted))
            await clock.sleep(takes)

    tasks = [asyncio.create_task(one(number, request)) for number, request in enumerate(plan)]
    while not all(task.done() for task in tasks):
        await clock.advance(600)
    await asyncio.gather(*tasks)
    return log


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 1.0, 30.0, 299.9, 300.0, 450.0]),
            st.sampled_from([Api.GRAPHQL, Api.GRAPHQL, Api.REST]),
            st.sampled_from(Priority),
            st.sampled_from([0.0, 0.3, 30.0]),
            st.floats(0, 1),
        ),
        min_size=20,
        max_size=40,
    )
)
async def test_whatever_waits_the_limit_is_kept_and_everybody_is_served(plan: list[Request]) -> None:
    clock = ManualClock()
    log = await sent(Quota(clock, graphql=8, total=12), clock, plan)
    assert sorted(each.number for each in log) == list(range(len(plan)))
    assert most_in_five_minutes([each.counted_at for each in log if each.api is Api.GRAPHQL]) <= 8
    assert most_in_five_minutes([each.counted_at for each in log]) <= 12
    for priority in Priority:
        for api in Api:
            served = sorted((each.at, each.asked_at) for each in log if each.priority is priority and each.api is api)
            assert [asked_at for _, asked_at in served] == sorted(asked_at for _, asked_at in served)


@settings(max_examples=5, deadline=None)
@given(st.permutations([each for each in Priority for _ in range(60 if each is Priority.LIVE else 16)]))
async def test_live_requests_are_behind_no_more_than_the_floors_of_lower_ones_and_none_starves(
    priorities: list[Priority],
) -> None:
    quota = Quota(clock := ManualClock(), graphql=25)
    quota.remember(Api.GRAPHQL, map(float, range(25)))  # so that one place comes free at a time
    log = await sent(quota, clock, [(1.0, Api.GRAPHQL, priority, 0.0, 0.0) for priority in priorities])
    order = [each.priority for each in log]
    assert order[: PLACES_PER_TURN - 1] == [Priority.LIVE] * (PLACES_PER_TURN - 1)
    beside_live = order[: len(order) - order[::-1].index(Priority.LIVE)]
    assert beside_live.count(Priority.LIVE) / len(beside_live) >= LIVE_SHARE - 0.01
    for lower in tuple(Priority)[1:]:
        assert beside_live.count(lower) <= -(-len(beside_live) // PLACES_PER_TURN)
        served = [0, *(place for place, each in enumerate(order, 1) if each is lower)]
        gaps = [after - before for before, after in pairwise(served)]
        # Its turn comes after 24 others, and behind that of at most three whose turn it is too.
        assert max(gaps) <= PLACES_PER_TURN + 3


async def test_the_most_urgent_request_goes_first() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    with await lease(quota, Api.GRAPHQL):
        pass
    plan = [(0.0, Api.GRAPHQL, priority, 0.0, 0.0) for priority in reversed(Priority)]
    assert [each.priority for each in await sent(quota, clock, plan)] == list(Priority)


async def test_of_equal_priority_whoever_asked_first_goes_first_whatever_the_api() -> None:
    clock = ManualClock()
    for apis in ((Api.GRAPHQL, Api.REST), (Api.REST, Api.GRAPHQL)):
        quota = Quota(clock, total=1)
        quota.remember(Api.REST, [0.0])
        plan = [(float(number), api, Priority.LIVE, 0.0, 0.0) for number, api in enumerate(apis)]
        assert [each.number for each in await sent(quota, clock, plan)] == [0, 1]


async def test_a_priority_has_a_turn_only_for_places_that_it_could_have_taken() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=1)
    quota.remember(Api.GRAPHQL, [0.0])
    backfill = asyncio.create_task(quota.acquire(Api.GRAPHQL, Priority.BACKFILL))
    await clock.advance(1)
    for _ in range(2 * PLACES_PER_TURN):
        with await lease(quota, Api.REST):
            pass
    live = asyncio.create_task(quota.acquire(Api.GRAPHQL))
    await clock.advance(300)
    assert live.done()
    assert isinstance(live.result(), Lease)
    backfill.cancel()


async def test_a_backlog_is_paced_and_live_requests_find_places_beside_it() -> None:
    clock = ManualClock()
    quota = Quota(clock)
    backlog = [(0.0, Api.GRAPHQL, Priority.BACKFILL, 0.0, 0.0)] * 400
    live = [(290.0, Api.GRAPHQL, Priority.LIVE, 0.0, 0.0)] * 60
    log = await sent(quota, clock, backlog + live)
    assert sum(each.at < 60 for each in log) == 48
    assert most_in_five_minutes([each.at for each in log if each.priority is Priority.BACKFILL]) == 240
    assert {each.at for each in log if each.priority is Priority.LIVE} == {290.0}


async def test_each_account_has_places_of_its_own_where_accounts_are_counted() -> None:
    clock = ManualClock()
    quota = Quota(clock, graphql=2, total=5, rate_limit_type=RateLimitType.ACCOUNT)
    quota.remember(Api.GRAPHQL, [299.0])
    for account in ("a", "b"):
        assert quota.has_place(account)
        with await lease(quota, Api.GRAPHQL, account=account):
            pass
        assert not quota.has_place(account)
    assert quota.remaining(Api.GRAPHQL) == 0
    second = asyncio.create_task(quota.acquire(Api.GRAPHQL, account="a"))
    await clock.advance(2)
    assert isinstance(await second, Lease)
    with await lease(quota, Api.GRAPHQL, account="b"), await lease(quota, Api.REST):  # the last two of five
        assert quota.remaining(Api.REST) == 0
        assert quota.recent_seconds_ago(Api.GRAPHQL) == [2.0, 2.0, 0.0, 0.0]


async def test_the_account_of_a_query_does_not_matter_where_tokens_are_counted() -> None:
    quota = Quota(ManualClock(), graphql=2)
    for account in ("a", "b"):
        with await lease(quota, Api.GRAPHQL, account=account):
            pass
    assert quota.remaining(Api.GRAPHQL) == 0


async def test_requests_slow_down_where_cloudflare_has_fewer_left_than_this_quota() -> None:
    clock = ManualClock()
    quota = Quota(clock)
    quota.learn(None, None)
    quota.learn(-1, -1)
    assert (quota.cost_per_request, quota.budget_left, quota.remaining(Api.GRAPHQL)) == (None, None, 300)
    quota.learn(2, 10_000)
    assert (quota.cost_per_request, quota.budget_left, quota.remaining(Api.GRAPHQL)) == (2.0, 10_000, 300)
    quota.learn(2, 200)
    assert quota.remaining(Api.GRAPHQL) == 100
    quota.learn(10, 200)
    assert quota.cost_per_request == 3.0
    assert quota.remaining(Api.GRAPHQL) == 66
    quota.learn(None, 0)
    assert quota.remaining(Api.GRAPHQL) == 30
    await clock.advance(301)
    assert quota.remaining(Api.GRAPHQL) == 300
