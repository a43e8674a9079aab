"""In which order windows are sent: a backlog first, recent ones every few seconds, those of a series one by one."""

import asyncio
import tempfile
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import DATASET, HOUR, NOW, tag, window
from tests.unit.pushing import (
    ACCEPTED,
    BUSY,
    DOWN,
    HOUR_NOW,
    TOO_LARGE,
    ZONES,
    Sample,
    Scene,
    Sent,
    a_scene,
    never_takes,
    samples_of,
    scene,
    strict,
)
from worker.ledger import Hole, HoleReason, record_holes
from worker.remote_write import Later, Verdict
from worker.turns import LIVE_INTERVAL_SECONDS

__all__ = ["scene", "strict"]  # fixtures

LIVE = (HOUR_NOW - 2, HOUR_NOW - 1)
"""The hours that started within the two that are not taken for a backlog."""


def is_live(sent: Sent) -> bool:
    (live,) = {hour in LIVE or hour >= HOUR_NOW for _, hour in sent.content}
    return live


# ------------------------------------------------------------------------------------------ live and backlog


def taking(scene: Scene, seconds: float) -> None:
    """Let every request take so long."""
    scene.clock.set(scene.clock.now() + seconds)


@pytest.mark.parametrize(("seconds", "backlog_between"), [(1.0, 10), (5.0, 2), (10.0, 1), (100.0, 1)])
async def test_recent_windows_have_a_turn_every_ten_seconds_beside_a_backlog_that_goes_first(
    seconds: float, backlog_between: int, scene: Scene
) -> None:
    await scene.captured(ZONES, [*range(8), *LIVE])

    def answer(_sent: Sent) -> Verdict:
        taking(scene, seconds)
        return ACCEPTED

    scene.receiver.answer = answer
    await scene.pusher(max_shards=1, max_samples_per_send=3).drain(scene.stopping)
    turns = [is_live(sent) for sent in scene.receiver.sent]
    first = turns.index(True)
    # The next request is ready by the time that one ends.
    assert backlog_between <= first <= backlog_between + 1
    between = [len(list(group)) for live, group in groupby(turns[first:40]) if not live]
    assert set(between[:-1]) <= {max(1, backlog_between - 1), backlog_between, backlog_between + 1}
    backlog = [sent.content[0] for sent in scene.receiver.sent if not is_live(sent)]
    live = [sent.content[0] for sent in scene.receiver.sent if is_live(sent)]
    for zone in ZONES:
        assert [hour for number, hour in backlog if number == zone] == list(range(8)), "oldest first"
        assert [hour for number, hour in live if number == zone] == list(LIVE)


async def test_recent_windows_that_come_in_do_not_wait_behind_the_backlog(scene: Scene) -> None:
    await scene.captured([1], range(40))
    asked_at: dict[int, int] = {}
    seen_at: dict[int, int] = {}

    async def answer(sent: Sent) -> Verdict:
        taking(scene, LIVE_INTERVAL_SECONDS)
        number = len(scene.receiver.sent)
        seen_at.update((hour, number) for _, hour in sent.content if hour >= HOUR_NOW)
        if number % 7 == 0:
            asked_at[HOUR_NOW + number] = number
            await scene.captured([1], [HOUR_NOW + number])
        return ACCEPTED

    scene.receiver.answer = answer
    await scene.pusher(max_shards=1, max_samples_per_send=3).drain(scene.stopping)
    assert len(asked_at) > 4
    for hour, number in asked_at.items():
        assert seen_at[hour] - number <= 3, "one request was ready, and the backlog may be next"


async def test_a_backlog_does_not_wait_behind_recent_windows_that_never_end(scene: Scene) -> None:
    await scene.captured([1], range(20))
    await scene.captured([1], LIVE)

    async def answer(sent: Sent) -> Verdict:
        taking(scene, LIVE_INTERVAL_SECONDS)
        if is_live(sent) and (1, 19, "C0") not in scene.receiver.accepted:
            await scene.captured([1], [HOUR_NOW + len(scene.receiver.sent), HOUR_NOW + 1000 + len(scene.receiver.sent)])
        return ACCEPTED

    scene.receiver.answer = answer
    await scene.pusher(max_shards=1, max_samples_per_send=3).drain(scene.stopping)
    turns = [is_live(sent) for sent in scene.receiver.sent]
    until_the_end = turns[: len(turns) - turns[::-1].index(False)]
    assert until_the_end.count(False) == 20
    assert not any(now and then for now, then in pairwise(until_the_end)), "never two recent ones in a row"


async def test_how_recent_a_window_has_to_be_is_a_setting(scene: Scene) -> None:
    await scene.captured([1], range(HOUR_NOW - 10, HOUR_NOW))

    def answer(_sent: Sent) -> Verdict:
        taking(scene, LIVE_INTERVAL_SECONDS)
        return ACCEPTED

    scene.receiver.answer = answer
    await scene.pusher(max_shards=1, max_samples_per_send=3, live_window_seconds=4 * HOUR).drain(scene.stopping)
    hours = [HOUR_NOW - hour for _, hour in scene.receiver.windows()]
    assert [hour for hour in hours if hour > 4] == [10, 9, 8, 7, 6, 5]
    assert [hour for hour in hours if hour <= 4] == [4, 3, 2, 1]
    assert hours.index(4) < hours.index(8)


async def test_a_strict_receiver_gets_everything_in_the_order_of_time(strict: Scene) -> None:
    await strict.captured(ZONES, [*range(8), *LIVE])
    await strict.pusher(window_seconds=0, max_samples_per_send=3).drain(strict.stopping)
    hours = [hour for _, hour in strict.receiver.windows()]
    assert hours == sorted(hours)
    assert set(strict.receiver.accepted) == samples_of(ZONES, [*range(8), *LIVE])


# ------------------------------------------------------------------------------------------ a window that is missing


async def test_an_older_window_that_comes_in_goes_before_the_backlog_of_a_strict_receiver(strict: Scene) -> None:
    await strict.captured([1], range(2, 9))

    async def slowly(sent: Sent) -> Verdict:
        if sent.content == ((1, 2),):
            await strict.captured([2], [1])
        return ACCEPTED

    strict.receiver.answer = slowly
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    # One may have been read before it was there.
    assert (2, 1) in strict.receiver.windows()[1:3]


async def test_a_strict_receiver_s_windows_wait_for_the_one_before_them_until_it_is_there(strict: Scene) -> None:
    missing = Hole(DATASET, tag(1), window(HOUR_NOW + 1), HoleReason.FAILED, "")
    await strict.ledger.write(record_holes, [missing], NOW)
    await strict.captured([1, 2], [HOUR_NOW, HOUR_NOW + 2])
    strict.clock.set(missing.window.end + 1000)
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    states = await strict.states()
    assert states[1, HOUR_NOW] == "acknowledged"
    assert states[1, HOUR_NOW + 2] == "pending"
    assert states[2, HOUR_NOW + 2] == "acknowledged", "another zone does not wait for it"
    await strict.captured([1], [HOUR_NOW + 1])
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    assert [hour - HOUR_NOW for zone, hour in strict.receiver.windows() if zone == 1] == [0, 1, 2]


async def test_a_window_that_is_missing_for_too_long_is_not_waited_for(strict: Scene) -> None:
    missing = Hole(DATASET, tag(1), window(HOUR_NOW), HoleReason.FAILED, "")
    await strict.ledger.write(record_holes, [missing], NOW)
    await strict.captured([1], [HOUR_NOW + 1])
    for seconds, state in ((999, "pending"), (1001, "acknowledged")):
        strict.clock.set(missing.window.end + seconds)
        await strict.pusher(window_seconds=0, max_wait_for_missing_window_seconds=1000).drain(strict.stopping)
        assert (await strict.states())[1, HOUR_NOW + 1] == state


async def test_a_receiver_that_takes_any_order_does_not_wait_for_a_missing_window(scene: Scene) -> None:
    missing = Hole(DATASET, tag(1), window(HOUR_NOW - 2), HoleReason.FAILED, "")
    await scene.ledger.write(record_holes, [missing], NOW)
    await scene.captured([1], [HOUR_NOW - 1])
    await scene.pusher().drain(scene.stopping)
    assert set((await scene.states()).values()) == {"acknowledged"}


# ------------------------------------------------------------------------------------------ order within a series

FAULTS = st.sampled_from([ACCEPTED, ACCEPTED, ACCEPTED, DOWN, BUSY, Later("no answer"), TOO_LARGE])


@settings(max_examples=12)
@given(
    bad=st.sets(st.tuples(st.integers(1, 3), st.integers(0, 3), st.sampled_from(["C0", "C2"])), max_size=4),
    faults=st.lists(FAULTS, max_size=20),
    most=st.sampled_from([2, 7, 10_000]),
)
def test_the_windows_of_a_series_keep_their_order_at_a_strict_receiver_through_refusals_failures_and_splits(
    bad: set[Sample], faults: list[Verdict], most: int
) -> None:
    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with a_scene(Path(folder), JumpingClock(NOW), strict=True) as scene:
                await scene.captured([1, 2, 3], range(4))
                left = list(faults)

                def answer(sent: Sent) -> Verdict:
                    answered = never_takes(bad)(sent)
                    fault = left.pop(0) if left and answered is ACCEPTED else answered
                    return ACCEPTED if fault is TOO_LARGE and len(sent.samples) == 1 else fault

                scene.receiver.answer = answer
                await scene.pusher(window_seconds=0, max_samples_per_send=most, split_after_failures=2).drain(
                    scene.stopping
                )
                assert set(scene.receiver.accepted) >= samples_of([1, 2, 3], range(4)) - bad
                for zone in ZONES:
                    hours = [hour for number, hour in scene.receiver.windows() if number == zone]
                    assert all(earlier <= later for earlier, later in pairwise(hours))

    asyncio.run(play())


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
async def test_two_requests_with_samples_of_one_series_are_never_under_way_at_once(shards: int, scene: Scene) -> None:
    await scene.captured(ZONES, [*range(30), *LIVE])
    bad = {(zone, hour, "C1") for zone in ZONES for hour in (3, 4, 17)}
    failed = 0

    async def slowly(sent: Sent) -> Verdict:
        nonlocal failed
        # Every lane has work, so each comes to this point.
        while scene.receiver.most_under_way < shards:  # noqa: ASYNC110 - nobody tells when one more is under way
            await asyncio.sleep(0)
        for _ in range(7):
            await asyncio.sleep(0)
        failed += 1
        return DOWN if failed % 5 == 0 else never_takes(bad)(sent)

    scene.receiver.answer = slowly  # the receiver of these tests looks for it
    await scene.pusher(max_shards=shards, max_samples_per_send=9).drain(scene.stopping)
    assert scene.receiver.most_under_way == shards
    assert set(scene.receiver.accepted) == samples_of(ZONES, [*range(30), *LIVE]) - bad
    assert scene.value("cfrw_push_shards") == shards


async def test_as_many_lanes_as_are_asked_for_at_least(scene: Scene) -> None:
    scene.pusher(min_shards=7, max_shards=9)
    assert scene.value("cfrw_push_shards") == 7


async def test_what_waits_behind_a_request_that_is_tried_again_is_not_sent_before_it(scene: Scene) -> None:
    await scene.captured([1], range(10))
    left = 4

    def fail_at_first(sent: Sent) -> Verdict:
        nonlocal left
        if (1, 3) in sent.content and left:
            left -= 1
            return DOWN
        return ACCEPTED

    scene.receiver.answer = fail_at_first
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    assert [hour for _, hour in scene.receiver.windows()] == [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7, 8, 9]
