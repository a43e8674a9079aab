"""What becomes of a request that is refused, or that fails again and again: its parts are tried, nothing else waits."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.ledger.fleet import HOUR, NOW
from tests.unit.pushing import (
    ACCEPTED,
    BUSY,
    DOWN,
    HOUR_NOW,
    OUT_OF_BOUNDS,
    TOO_LARGE,
    ZONES,
    Sample,
    Scene,
    Sent,
    about,
    manual,
    never_takes,
    samples_of,
    scene,
    sees,
    strict,
)
from worker.config import QueueSettings
from worker.ledger import expire, next_pending, still_pending
from worker.remote_write import Fate, Later, Refused, Verdict

__all__ = ["manual", "scene", "strict"]  # fixtures

POISON = Later("HTTP 500: something in it breaks the receiver", Fate.RETRY, 500)


async def assert_all_but(bad: Collection[Sample], everything: Collection[Sample], scene: Scene) -> None:
    """Everything else is delivered; these are recorded as refused."""
    assert set(scene.receiver.accepted) == set(everything) - set(bad)
    assert (await scene.refused()).keys() == set(bad)
    of_window = Counter((zone, hour) for zone, hour, _ in everything)
    bad_of_window = Counter((zone, hour) for zone, hour, _ in bad)
    assert await scene.states() == {
        window: "acknowledged"
        if not bad_of_window[window]
        else "refused"
        if bad_of_window[window] == of_window[window]
        else "partial"
        for window in of_window
    }


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_one_bad_sample_costs_one_sample_and_few_requests(status: int, scene: Scene) -> None:
    await scene.captured([1], range(20), samples=50)
    bad = {(1, 7, "C31")}
    scene.receiver.answer = never_takes(bad, Refused(status, "no"))
    with capture_logs() as lines:
        await scene.pusher().drain(scene.stopping)
    await assert_all_but(bad, samples_of([1], range(20), 50), scene)
    assert await scene.refused() == {(1, 7, "C31"): (status, "no")}
    assert set(scene.receiver.accepted.values()) == {1}
    assert len(scene.receiver.sent) <= 2 * math.log2(1000) + 2
    assert scene.value("cfrw_push_splits_total") == 1
    assert scene.value("cfrw_push_split_requests_total") == len(scene.receiver.sent) - 1
    assert scene.value("cfrw_push_samples_failed_total", status=str(status)) == 1
    refusal = next(line for line in lines if line["log_level"] == "error")
    assert (refusal["samples"], refusal["status"], refusal["answer"]) == (1, status, "no")


async def test_bad_samples_of_several_lanes_are_all_found(scene: Scene) -> None:
    await scene.captured(ZONES, range(12))
    bad = {(zone, hour, f"C{hour % 3}") for zone in ZONES for hour in range(zone, 12, 4)}
    scene.receiver.answer = never_takes(bad)
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    await assert_all_but(bad, samples_of(ZONES, range(12)), scene)


async def test_a_failure_while_a_refused_request_is_searched_is_met_by_sending_the_same_bytes_again(
    scene: Scene,
) -> None:
    await scene.captured([1], range(4))
    bad = {(1, 2, "C1")}

    def answer(sent: Sent) -> Verdict:
        if len(scene.receiver.sent) > 1 and not sent.attempt:
            return DOWN
        return never_takes(bad)(sent)

    scene.receiver.answer = answer
    await scene.pusher().drain(scene.stopping)
    await assert_all_but(bad, samples_of([1], range(4)), scene)
    attempts: dict[bytes, list[int]] = {}
    for sent in scene.receiver.sent[1:]:
        attempts.setdefault(sent.body, []).append(sent.attempt)
    assert set(map(tuple, attempts.values())) == {(0, 1)}


# ------------------------------------------------------------------------------------------ what fails for ever


@pytest.mark.parametrize("failures", [1, 2, 5])
async def test_a_request_that_fails_so_often_is_tried_in_parts_so_that_poison_costs_one_sample(
    failures: int, scene: Scene
) -> None:
    await scene.captured([1], range(10))
    bad = {(1, 7, "C1")}
    scene.receiver.answer = never_takes(bad, POISON)
    await scene.pusher(split_after_failures=failures).drain(scene.stopping)
    await assert_all_but(bad, samples_of([1], range(10)), scene)
    assert await scene.refused() == dict.fromkeys(bad, (500, POISON.reason))
    whole = scene.receiver.sent[0].body
    assert [sent.attempt for sent in scene.receiver.sent if sent.body == whole] == list(range(failures))


async def test_an_outage_refuses_nothing_however_long_it_lasts(scene: Scene) -> None:
    await scene.captured(ZONES, range(10))
    scene.receiver.answer = lambda _sent: DOWN if scene.clock.now() < NOW + 6 * HOUR else ACCEPTED
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    await assert_all_but([], samples_of(ZONES, range(10)), scene)
    assert len(scene.receiver.sent) < 4 * 6 * 60 + 500, "in each lane one request a minute, and little more afterwards"


# ------------------------------------------------------------------------------------------ what a limit holds back


@pytest.mark.parametrize("most", [30, 3])
async def test_a_limit_on_everything_is_met_with_a_request_a_minute_in_each_lane_and_hardly_any_search(
    most: int, scene: Scene
) -> None:
    await scene.captured(ZONES, range(10))
    scene.receiver.answer = lambda _sent: BUSY if scene.clock.now() < NOW + 6 * HOUR else ACCEPTED
    await scene.pusher(max_samples_per_send=most).drain(scene.stopping)
    await assert_all_but([], samples_of(ZONES, range(10)), scene)
    during = [sent for sent in scene.receiver.sent if sent.at < NOW + 6 * HOUR]
    # In each lane besides, a sample every five minutes is to find out whether it is a limit on something else.
    assert len(during) < 4 * (6 * 60 + 6 * 12 + 10)
    assert scene.value("cfrw_push_splits_total") <= 4
    assert sum(len(sent.samples) for sent in during) < most * 4 * (6 * 60 + 10)
    afterwards = [len(sent.samples) for sent in scene.receiver.sent if sent not in during]
    assert set(afterwards) <= {1, most - 1, most}, "nothing was cut"


async def test_a_limit_on_a_series_holds_up_nothing_but_its_samples_which_are_recorded_in_the_end(scene: Scene) -> None:
    await scene.captured([1, 5], range(10, 20))  # in one lane
    over = {sample for sample in samples_of([1], range(10, 20)) if sample[2] == "C1"}
    scene.receiver.answer = never_takes(over, BUSY)
    draining = asyncio.create_task(scene.pusher(max_samples_per_send=3).drain(scene.stopping))
    await sees(lambda: scene.receiver.accepted.keys() >= samples_of([5], range(10, 20)), draining)
    assert scene.clock.now() < NOW + HOUR / 2, "they did not wait for it"
    assert not await scene.refused()
    await draining
    await assert_all_but(over, samples_of([1, 5], range(10, 20)), scene)
    assert {status for status, _ in (await scene.refused()).values()} == {429}
    # Once it is known to be a limit, nothing waits for another one's five attempts.
    assert sum(sent.attempt >= 2 for sent in scene.receiver.sent) <= 12


async def test_what_fails_once_beside_what_a_limit_holds_back_is_sent_again_and_not_searched(scene: Scene) -> None:
    await scene.captured([1, 5], range(10, 20))
    once: list[Sent] = []

    def answer(sent: Sent) -> Verdict:
        scene.clock.set(scene.clock.now() + 10)  # so that what is held is due before the rest has gone out
        if sent.content == ((5, 15),) and len(sent.samples) == 3:
            once.append(sent)
            return DOWN if len(once) == 1 else ACCEPTED
        return never_takes({(1, 10, "C1")}, BUSY)(sent)

    scene.receiver.answer = answer
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    await assert_all_but({(1, 10, "C1")}, samples_of([1, 5], range(10, 20)), scene)
    assert [sent.attempt for sent in once] == [0, 1]
    assert scene.value("cfrw_push_splits_total") == 1


async def test_a_limit_on_a_series_of_every_window_is_found_out_though_nothing_is_taken_at_first(scene: Scene) -> None:
    await scene.captured([1], range(10, 30), samples=20)
    over = {sample for sample in samples_of([1], range(10, 30), 20) if sample[2] == "C7"}
    scene.receiver.answer = never_takes(over, BUSY)
    await scene.pusher().drain(scene.stopping)
    await assert_all_but(over, samples_of([1], range(10, 30), 20), scene)


async def test_a_limit_that_is_lifted_before_a_sample_is_blamed_costs_nothing(scene: Scene) -> None:
    await scene.captured([1], range(10, 20))
    over = {(1, 13, "C1"), (1, 17, "C0")}
    scene.receiver.answer = lambda sent: (
        never_takes(over, BUSY)(sent) if scene.clock.now() < NOW + 0.9 * HOUR else ACCEPTED
    )
    await scene.pusher(max_samples_per_send=6).drain(scene.stopping)
    await assert_all_but([], samples_of([1], range(10, 20)), scene)
    alone = [sent for sent in scene.receiver.sent if set(sent.samples) <= over]
    assert alone, "it had been found"


async def test_a_strict_receiver_s_queue_waits_for_a_limit(strict: Scene) -> None:
    await strict.captured([1, 2], range(10))
    strict.receiver.answer = lambda sent: (
        about([(1, 3)], BUSY)(sent) if strict.clock.now() < NOW + 5 * HOUR else ACCEPTED
    )
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    await assert_all_but([], samples_of([1, 2], range(10)), strict)
    assert set(strict.receiver.accepted.values()) == {1}
    assert strict.receiver.windows()[-1] == (2, 9)
    assert len({sent.body for sent in strict.receiver.sent}) == 10


async def test_a_run_that_ends_leaves_what_a_limit_holds_back_and_delivers_the_rest(scene: Scene) -> None:
    await scene.captured([1, 5], range(10, 14))
    scene.receiver.answer = about([(1, 10)], BUSY)
    await scene.pusher(attempts=9, max_samples_per_send=3).drain(scene.stopping)
    states = await scene.states()
    assert states.pop((1, 10)) == "pending"
    assert set(states.values()) == {"acknowledged"}


async def test_poison_does_not_hold_up_the_windows_that_come_in(scene: Scene) -> None:
    poison = samples_of([1], [10])
    live = range(HOUR_NOW, HOUR_NOW + 8)
    await scene.captured([1], [10])
    scene.receiver.answer = never_takes(poison, POISON)
    running = asyncio.create_task(scene.pusher(max_shards=1).run(scene.stopping))
    for hour in live:
        await scene.captured([1], [hour])
        await sees(lambda: samples_of([1], [hour]) <= set(scene.receiver.accepted), running)  # noqa: B023 - awaited here
    hour = live.stop
    while not scene.refused_with(500):
        await scene.captured([1], [hour])
        await sees(lambda: samples_of([1], [hour]) <= set(scene.receiver.accepted), running)  # noqa: B023 - awaited here
        hour += 1
    scene.stopping.set()
    await running
    await assert_all_but(poison, poison | samples_of([1], range(HOUR_NOW, hour)), scene)


@pytest.mark.parametrize("to_the_whole", [POISON, OUT_OF_BOUNDS], ids=["it fails", "it is refused and its parts fail"])
@pytest.mark.parametrize(
    "poisonous",
    [
        [10],
        [10, HOUR_NOW - 2, HOUR_NOW - 1],
        pytest.param([10, 11, 12], marks=pytest.mark.soak),
        pytest.param([10, HOUR_NOW - 1], marks=pytest.mark.soak),
    ],
)
async def test_windows_that_are_poison_as_a_whole_are_given_up_once_other_windows_go_through(
    poisonous: list[int], to_the_whole: Verdict, scene: Scene
) -> None:
    await scene.captured([1], poisonous)
    bad = samples_of([1], poisonous)
    good = 0

    async def answer(sent: Sent) -> Verdict:
        nonlocal good
        assert len(scene.receiver.sent) < 500, "it goes on for ever"
        if len(scene.receiver.sent) % 5 == 0:
            await scene.captured([1], [HOUR_NOW + good])
            good += 1
        return never_takes(bad, to_the_whole if len(sent.samples) > 1 else POISON)(sent)

    scene.receiver.answer = answer
    pusher = scene.pusher(max_shards=1, max_samples_per_send=3, live_window_seconds=7200)
    running = asyncio.create_task(pusher.run(scene.stopping))
    await sees(lambda: scene.refused_with(500) == len(bad), running)
    scene.stopping.set()
    await running
    assert (await scene.refused()).keys() == bad
    assert not set(scene.receiver.accepted) & bad


@pytest.mark.parametrize("poisonous", [[10], [10, 11], [10, 12, 14, 16]])
async def test_poison_holds_up_nothing_of_the_backlog_behind_it(poisonous: list[int], scene: Scene) -> None:
    # Nothing else comes in: what shows that the receiver works is the rest of the backlog.
    await scene.captured([1], range(10, 60))
    bad = samples_of([1], poisonous)
    scene.receiver.answer = never_takes(bad, POISON)
    running = asyncio.create_task(scene.pusher(max_samples_per_send=3).run(scene.stopping))
    good = samples_of([1], range(10, 60)) - bad
    await sees(lambda: scene.clock.now() > NOW + 3 * HOUR or scene.receiver.accepted.keys() >= good, running)
    scene.stopping.set()
    await running
    assert set(scene.receiver.accepted) == good
    assert (await scene.refused()).keys() <= bad


async def test_an_outage_in_the_middle_of_a_backlog_is_not_met_with_one_request_after_the_other(scene: Scene) -> None:
    await scene.captured([1], range(200))
    scene.receiver.answer = lambda _sent: DOWN if scene.clock.now() < NOW + 2 * HOUR else ACCEPTED
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    during = [sent.at for sent in scene.receiver.sent if sent.at < NOW + 2 * HOUR]
    # One a minute, and one a minute of the search; the first five came sooner.
    assert len(during) <= 2 * 120 + 5
    assert set(scene.receiver.accepted) == samples_of([1], range(200))
    assert not await scene.refused()


async def test_what_fails_beside_a_search_is_sent_again_in_the_same_bytes_once_a_minute_until_something_is_taken(
    scene: Scene,
) -> None:
    poison = samples_of([1], [10, HOUR_NOW - 1])
    await scene.captured([1], [10, HOUR_NOW - 1])
    scene.receiver.answer = never_takes(poison, POISON)
    running = asyncio.create_task(scene.pusher(max_shards=1, max_samples_per_send=3).run(scene.stopping))
    await sees(lambda: scene.clock.now() > NOW + 3 * HOUR, running)
    scene.stopping.set()
    await running
    whole: dict[tuple[tuple[int, int], ...], list[Sent]] = {}
    for sent in scene.receiver.sent:
        if len(sent.samples) == 3:
            whole.setdefault(sent.content, []).append(sent)
    searched, held = sorted(whole.values(), key=len)
    assert len(searched) == 5
    assert [sent.attempt for sent in held] == list(range(len(held)))
    assert len({sent.body for sent in held}) == 1
    assert all(later.at - earlier.at >= 30 for earlier, later in pairwise(held))


async def test_recent_windows_do_not_wait_behind_all_the_windows_that_are_held(scene: Scene) -> None:
    poison = samples_of([1], range(10, 50))
    live = range(HOUR_NOW + 3, HOUR_NOW + 6)
    scene.receiver.answer = lambda sent: (
        DOWN if scene.clock.now() < NOW + 3 * HOUR else never_takes(poison, POISON)(sent)
    )
    await scene.captured([1], range(10, 50))
    running = asyncio.create_task(scene.pusher(max_shards=1, max_samples_per_send=3).run(scene.stopping))
    await sees(lambda: scene.clock.now() > NOW + 3 * HOUR, running)
    for hour in live:
        await scene.captured([1], [hour])
        since = len(scene.receiver.sent)
        await sees(lambda: (1, hour, "C0") in scene.receiver.accepted, running)  # noqa: B023 - awaited here
        whole = [sent for sent in scene.receiver.sent[since:] if len(sent.samples) == 3 and sent.content[0][1] < 50]
        assert len(whole) <= 10  # and not all of them; a few may go out before it is noticed
    scene.stopping.set()
    await running


async def test_series_that_fail_while_a_part_of_the_receiver_is_away_are_refused_never_and_delivered_when_it_is_back(
    scene: Scene,
) -> None:
    # One series of every zone is kept by the part that is away, as with one of several ingesters.
    away = {sample for sample in samples_of(ZONES, range(HOUR_NOW)) if sample[2] == "C1"}
    scene.receiver.answer = never_takes(away, DOWN)
    await scene.captured(ZONES, range(HOUR_NOW - 20, HOUR_NOW))
    running = asyncio.create_task(scene.pusher(max_samples_per_send=30).run(scene.stopping))
    everything = samples_of(ZONES, range(HOUR_NOW - 20, HOUR_NOW))
    await sees(lambda: scene.receiver.accepted.keys() >= everything - away, running)
    await sees(lambda: scene.clock.now() > NOW + 3 * HOUR, running)
    scene.receiver.answer = lambda _sent: ACCEPTED
    await sees(lambda: scene.receiver.accepted.keys() >= everything, running)
    scene.stopping.set()
    await running
    assert not await scene.refused()


@pytest.mark.parametrize("blame_after_seconds", [1200, 7200])
async def test_a_sample_is_blamed_for_a_500_only_after_the_time_that_is_set(
    blame_after_seconds: int, scene: Scene
) -> None:
    bad = {(1, 7, "C1")}
    await scene.captured([1], range(10))
    scene.receiver.answer = never_takes(bad, POISON)
    await scene.pusher(blame_after_seconds=blame_after_seconds).drain(scene.stopping)
    await assert_all_but(bad, samples_of([1], range(10)), scene)
    alone = [sent.at for sent in scene.receiver.sent if set(sent.samples) == bad]
    assert blame_after_seconds <= scene.clock.now() - alone[0] < 1.5 * blame_after_seconds
    assert len(alone) < 60


@pytest.mark.parametrize(("blame_after_seconds", "seconds"), [(3600, 600), (300, 300)])
async def test_a_strict_receiver_s_queue_waits_ten_minutes_at_most_for_a_sample_that_fails_with_a_500(
    blame_after_seconds: int, seconds: int, strict: Scene
) -> None:
    bad = {(1, 7, "C1")}
    await strict.captured([1], range(10))
    strict.receiver.answer = never_takes(bad, POISON)
    await strict.pusher(window_seconds=0, blame_after_seconds=blame_after_seconds).drain(strict.stopping)
    await assert_all_but(bad, samples_of([1], range(10)), strict)
    alone = [sent.at for sent in strict.receiver.sent if set(sent.samples) == bad]
    behind = next(sent.at for sent in strict.receiver.sent if (1, 8) in sent.content)
    assert seconds <= behind - alone[0] < 1.5 * seconds


@pytest.mark.parametrize("status", [503, None, *(pytest.param(each, marks=pytest.mark.soak) for each in (502, 504))])
async def test_what_speaks_of_the_receiver_only_is_never_blamed_on_a_sample(status: int | None, scene: Scene) -> None:
    bad = {(1, 7, "C1")}
    await scene.captured([1], range(10))
    scene.receiver.answer = never_takes(bad, Later("not there", Fate.RETRY, status))
    running = asyncio.create_task(scene.pusher(blame_after_seconds=0).run(scene.stopping))
    await sees(lambda: scene.clock.now() > NOW + 20 * HOUR, running)
    assert not await scene.refused()
    scene.receiver.answer = lambda _sent: ACCEPTED
    await sees(lambda: scene.receiver.accepted.keys() >= bad, running)
    scene.stopping.set()
    await running
    await assert_all_but([], samples_of([1], range(10)), scene)


async def test_recent_windows_do_not_wait_behind_a_backlog_that_is_bad_all_over(scene: Scene) -> None:
    backlog = range(HOUR_NOW - 400, HOUR_NOW - 200)
    await scene.captured([1], backlog)
    bad = {(1, hour, f"C{hour % 3}") for hour in backlog}
    waited: list[int] = []
    since = 0

    def answer(sent: Sent) -> Verdict:
        nonlocal since
        if sent.content == ((1, HOUR_NOW - 1),):
            waited.append(len(scene.receiver.sent) - since)
        return never_takes(bad)(sent)

    scene.receiver.answer = answer
    running = asyncio.create_task(scene.pusher(max_shards=1, max_samples_per_send=30).run(scene.stopping))
    await sees(lambda: len(scene.receiver.sent) > 40, running)
    since = len(scene.receiver.sent)
    await scene.captured([1], [HOUR_NOW - 1])
    await sees(lambda: bool(waited), running)
    scene.stopping.set()
    await running
    # Each of the searches beside it sends one request before it is its turn, and so does the backlog.
    assert waited[0] <= 40


@pytest.mark.parametrize("to_the_whole", [POISON, OUT_OF_BOUNDS], ids=["it fails", "it is refused and its parts fail"])
async def test_a_bucket_in_pieces_that_are_poison_is_given_up_as_a_whole(to_the_whole: Verdict, scene: Scene) -> None:
    await scene.captured([1], [10], samples=6)
    bad = samples_of([1], [10], 6)
    good = 0

    async def answer(sent: Sent) -> Verdict:
        nonlocal good
        assert len(scene.receiver.sent) < 500, "it goes on for ever"
        if len(scene.receiver.sent) % 5 == 0:
            await scene.captured([1], [HOUR_NOW + good], samples=1)
            good += 1
        return never_takes(bad, to_the_whole if len(sent.samples) > 1 else POISON)(sent)

    scene.receiver.answer = answer
    running = asyncio.create_task(scene.pusher(max_shards=1, max_samples_per_send=2).run(scene.stopping))
    await sees(lambda: scene.refused_with(500) == len(bad), running)
    scene.stopping.set()
    await running
    assert (await scene.refused()).keys() == bad
    assert (await scene.states())[1, 10] == "refused"


async def test_poison_of_which_nobody_can_tell_is_given_up_with_the_replay_bound_and_not_sent_for_ever(
    strict: Scene,
) -> None:
    # Nothing goes through beside it, as the receiver is strict and the window the first: it looks like an outage.
    await strict.captured([1], [0])
    strict.receiver.answer = lambda _sent: POISON
    running = asyncio.create_task(strict.pusher(window_seconds=0).run(strict.stopping))
    await sees(lambda: strict.clock.now() > NOW + 2 * HOUR, running)
    assert await strict.ledger.write(expire, ended_before=NOW, now=strict.clock.now())
    under_way = len(strict.receiver.sent)
    await strict.captured([1], [HOUR_NOW])
    strict.receiver.answer = lambda _sent: ACCEPTED
    await sees(lambda: (1, HOUR_NOW, "C0") in strict.receiver.accepted, running)
    strict.stopping.set()
    await running
    assert await strict.states() == {(1, 0): "expired", (1, HOUR_NOW): "acknowledged"}
    assert len(strict.receiver.sent) <= under_way + 2


# ------------------------------------------------------------------------------------------ beside the other work


async def test_a_search_goes_on_beside_the_other_work_of_the_lane_where_the_receiver_takes_any_order(
    manual: Scene,
) -> None:
    await manual.captured([1], range(20))
    bad = {(1, 4, "C1")}
    manual.receiver.answer = never_takes(bad)
    # One request of the search per minute: nothing of it but the first part is tried while the clock stands still.
    pusher = manual.pusher(max_shards=1, max_split_requests_per_minute=1)
    running = asyncio.create_task(pusher.run(manual.stopping))
    await sees(lambda: len(manual.receiver.sent) == 2, running)
    await manual.captured([1], range(HOUR_NOW - 2, HOUR_NOW))
    await sees(lambda: (1, HOUR_NOW - 1, "C0") in manual.receiver.accepted, running)
    assert manual.clock.now() == NOW
    assert not await manual.refused()
    while "pending" in (await manual.states()).values():
        await manual.clock.advance(60)
    manual.stopping.set()
    await running
    await assert_all_but(bad, samples_of([1], [*range(20), HOUR_NOW - 2, HOUR_NOW - 1]), manual)


async def test_a_search_holds_up_the_lane_where_the_receiver_takes_nothing_out_of_order(strict: Scene) -> None:
    await strict.captured(ZONES, range(6), samples=5)
    bad = {(zone, hour, "C2") for zone in ZONES for hour in (1, 3)}
    strict.receiver.answer = never_takes(bad)
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    await assert_all_but(bad, samples_of(ZONES, range(6), 5), strict)
    hours = [hour for _, hour in strict.receiver.windows()]
    assert hours == sorted(hours), "nothing newer is sent before all that is older is decided on"


async def test_what_is_being_searched_is_not_read_again(manual: Scene) -> None:
    await manual.captured([1], range(10))
    manual.receiver.answer = never_takes({(1, 4, "C1")})
    pusher = manual.pusher(max_shards=1, max_split_requests_per_minute=1)
    running = asyncio.create_task(pusher.run(manual.stopping))
    whole = samples_of([1], range(10))
    while not await manual.refused():
        await manual.captured([1], [HOUR_NOW + len(manual.receiver.sent)])
        await manual.clock.advance(60)
    manual.stopping.set()
    await running
    assert sum(whole == set(sent.samples) for sent in manual.receiver.sent) == 1
    assert set(manual.receiver.accepted.values()) == {1}


async def test_a_search_in_one_lane_does_not_hold_up_another(manual: Scene) -> None:
    await manual.captured([1, 2], range(10))
    manual.receiver.answer = never_takes({(1, 4, "C1")})
    running = asyncio.create_task(manual.pusher(max_split_requests_per_minute=1).run(manual.stopping))
    await sees(lambda: samples_of([2], range(10)) <= set(manual.receiver.accepted), running)
    await manual.captured([2], range(10, 20))
    await sees(lambda: samples_of([2], range(20)) <= set(manual.receiver.accepted), running)
    assert manual.clock.now() == NOW
    manual.stopping.set()
    await running


async def test_there_are_no_more_requests_that_search_than_the_cap_allows(scene: Scene) -> None:
    await scene.captured(ZONES, range(10))
    bad = {sample for number, sample in enumerate(sorted(samples_of(ZONES, range(10)))) if number % 7 == 0}
    scene.receiver.answer = never_takes(bad)
    await scene.pusher(max_split_requests_per_minute=30).drain(scene.stopping)
    await assert_all_but(bad, samples_of(ZONES, range(10)), scene)
    whole = len({zone % 4 for zone in ZONES})
    at = [sent.at for sent in scene.receiver.sent[whole:]]
    assert len(at) > 60
    for first in range(len(at)):
        within_a_minute = sum(at[first] <= moment < at[first] + 60 for moment in at)
        assert within_a_minute <= 60 + 1, "30 that were saved up and 30 that grew back"
    assert at[-1] - at[0] >= (len(at) - 31) * 2 - 1


async def test_a_stop_in_the_middle_of_a_search_leaves_what_is_undecided_pending_and_the_next_run_decides_on_it(
    scene: Scene,
) -> None:
    bad = {(1, 4, "C1"), (1, 8, "C0")}
    everything = samples_of([1], range(10))
    await scene.captured([1], range(10))
    for requests in (1, 3, 4, 5):
        sent_before = len(scene.receiver.sent)

        def stop_then(sent: Sent, until: int = sent_before + requests) -> Verdict:
            if len(scene.receiver.sent) == until:
                scene.stopping.set()
            return never_takes(bad)(sent)

        scene.receiver.answer = stop_then
        await scene.pusher().drain(scene.stopping)
        assert len(scene.receiver.sent) == sent_before + requests
        states = await scene.states()
        for window, state in states.items():
            if state == "acknowledged":
                assert {sample for sample in everything if sample[:2] == window} <= set(scene.receiver.accepted)
        assert (await scene.refused()).keys() <= bad
        scene.stopping.clear()
    scene.receiver.answer = never_takes(bad)
    await scene.pusher().drain(scene.stopping)
    await assert_all_but(bad, everything, scene)


async def test_a_run_with_a_number_of_attempts_ends_although_a_search_does_not(scene: Scene) -> None:
    await scene.captured([1], [0])

    def answer(sent: Sent) -> Verdict:
        assert len(scene.receiver.sent) < 100, "it goes on for ever"
        return OUT_OF_BOUNDS if (1, 0, "C0") in sent.samples else POISON

    scene.receiver.answer = answer
    await scene.pusher(attempts=3).drain(scene.stopping)
    assert await scene.states() == {(1, 0): "pending"}


async def test_what_is_given_up_in_the_middle_of_a_search_is_not_sent_on_and_the_rest_is_searched(scene: Scene) -> None:
    await scene.captured([1], [0, *range(600, 608)])
    bad = {(1, 0, "C1"), (1, 605, "C2")}

    async def answer(sent: Sent) -> Verdict:
        if len(scene.receiver.sent) == 3:
            await scene.ledger.write(expire, ended_before=NOW - 29 * 24 * HOUR, now=scene.clock.now())
        assert len(scene.receiver.sent) <= 4 or (1, 0) not in sent.content
        return never_takes(bad)(sent)

    scene.receiver.answer = answer
    await scene.pusher().drain(scene.stopping)
    assert (await scene.states())[1, 0] == "expired"
    assert (await scene.refused()).keys() == {(1, 605, "C2")}


# ------------------------------------------------------------------------------------------ in a run that ends


async def test_a_run_that_ends_leaves_what_fails_alone_pending_rather_than_wait_until_it_can_be_blamed(
    scene: Scene,
) -> None:
    await scene.captured([1], range(10))
    scene.receiver.answer = never_takes({(1, 7, "C1")}, POISON)
    await scene.pusher(attempts=5).drain(scene.stopping)
    assert {window for window, state in (await scene.states()).items() if state != "acknowledged"} == {(1, 7)}
    assert (await scene.states())[1, 7] == "pending"
    assert scene.clock.now() < NOW + 300


async def test_a_run_that_ends_delivers_all_but_what_fails_also_where_that_was_held(scene: Scene) -> None:
    poison = samples_of([1], [11])
    await scene.captured([1], range(10, 40))
    scene.receiver.answer = lambda sent: DOWN if len(scene.receiver.sent) <= 9 else never_takes(poison, POISON)(sent)
    await scene.pusher(attempts=5, max_samples_per_send=3).drain(scene.stopping)
    states = await scene.states()
    assert [window for window, state in states.items() if state != "acknowledged"] == [(1, 11)]


async def test_a_run_that_ends_delivers_what_waited_for_a_search_that_ends_during_the_last_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.captured([1], range(10, 20))
    bad = {(1, 10, "C1")}
    scene.receiver.answer = never_takes(bad)
    read = scene.ledger.read

    goes_on, ends = asyncio.Event(), 0

    async def slowly(verb: Callable[..., Any], *args: Any, **named: Any) -> Any:
        nonlocal ends
        if verb is still_pending:
            await goes_on.wait()  # the search
        found = await read(verb, *args, **named)
        ends += verb is next_pending and found is None
        if ends == 2 and not goes_on.is_set():
            goes_on.set()
            while (await scene.states())[1, 10] == "pending":
                pass
            for _ in range(20):
                await asyncio.sleep(0)
        return found

    monkeypatch.setattr(scene.ledger, "read", slowly)
    await scene.pusher(max_shards=1, max_samples_per_send=3).drain(scene.stopping)
    await assert_all_but(bad, samples_of([1], range(10, 20)), scene)


async def test_a_run_that_ends_gives_up_when_more_fails_than_can_be_held(scene: Scene) -> None:
    await scene.captured([1], range(HOUR_NOW - 60, HOUR_NOW))

    def answer(_sent: Sent) -> Verdict:
        assert len(scene.receiver.sent) < 100, "it goes on for ever"
        return DOWN

    scene.receiver.answer = answer
    pusher = scene.pusher(attempts=5, max_samples_per_send=3, live_window_seconds=100 * HOUR)
    await pusher.drain(scene.stopping)
    assert set((await scene.states()).values()) == {"pending"}


async def test_a_run_that_ends_gives_up_what_is_held_after_its_attempts(scene: Scene) -> None:
    # The search ends with refusals: what is held has no other sign of life to wait for.
    await scene.captured([1], range(10, 14))

    def answer(sent: Sent) -> Verdict:
        assert len(scene.receiver.sent) < 100, "it goes on for ever"
        return OUT_OF_BOUNDS if len(sent.samples) == 1 and sent.content == ((1, 10),) else DOWN

    scene.receiver.answer = answer
    await scene.pusher(attempts=5, max_samples_per_send=3).drain(scene.stopping)
    assert Counter((await scene.states()).values()) == {"refused": 1, "pending": 3}
    assert max(Counter(sent.body for sent in scene.receiver.sent).values()) <= 5


# ------------------------------------------------------------------------------------------ learnt sizes


@pytest.mark.parametrize("refusal", [TOO_LARGE, Refused(400, "no more than so many")], ids=["413", "400"])
async def test_the_size_that_a_receiver_takes_is_learnt(refusal: Refused, scene: Scene) -> None:
    await scene.captured([1], range(100), samples=40)
    scene.receiver.answer = lambda sent: refusal if len(sent.samples) > 130 else ACCEPTED
    pusher = scene.pusher(max_shards=1, max_samples_per_send=400)
    await pusher.drain(scene.stopping)
    await assert_all_but([], samples_of([1], range(100), 40), scene)
    refused = [sent for sent in scene.receiver.sent if len(sent.samples) > 130]
    # Of ten requests that are too large, the first and the one that was ready by then are sent so; the rest is cut
    # before, but for some to see whether it still has to be.
    assert len(refused) < 15
    assert scene.value("cfrw_push_splits_total") < 6
    assert scene.value("cfrw_push_max_bytes_per_send") < QueueSettings().max_bytes_per_send


async def test_a_receiver_that_takes_larger_requests_again_gets_them(scene: Scene) -> None:
    await scene.captured([1], range(300), samples=10)
    scene.receiver.answer = lambda sent: TOO_LARGE if len(scene.receiver.sent) == 1 and sent.samples else ACCEPTED
    await scene.pusher(max_shards=1, max_samples_per_send=100).drain(scene.stopping)
    await assert_all_but([], samples_of([1], range(300), 10), scene)
    sizes = [len(sent.samples) for sent in scene.receiver.sent]
    assert min(sizes[1:]) <= 50
    assert max(sizes[-3:]) == 100


async def test_bad_samples_say_nothing_about_the_size_of_a_request(scene: Scene) -> None:
    await scene.captured([1], range(20))
    scene.receiver.answer = never_takes({(1, 7, "C1")})
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    assert scene.value("cfrw_push_max_bytes_per_send") == QueueSettings().max_bytes_per_send


@pytest.mark.parametrize("was_cut_off", [True, False])
async def test_what_fails_says_something_about_its_size_only_if_it_was_cut_off_in_the_middle(
    *, was_cut_off: bool, scene: Scene
) -> None:
    await scene.captured([1], range(20))
    broken = Later("the connection failed", was_cut_off=was_cut_off)
    scene.receiver.answer = lambda sent: broken if len(sent.samples) > 50 else ACCEPTED
    await scene.pusher().drain(scene.stopping)
    await assert_all_but([], samples_of([1], range(20)), scene)
    is_learnt = scene.value("cfrw_push_max_bytes_per_send") < QueueSettings().max_bytes_per_send
    assert is_learnt == was_cut_off


# ------------------------------------------------------------------------------------------ what is too old

DAY_HOURS = 24


@pytest.mark.parametrize(
    ("window_seconds", "sample_age_limit_seconds"),
    [(DAY_HOURS * HOUR, 0), (10 * DAY_HOURS * HOUR, DAY_HOURS * HOUR), (DAY_HOURS * HOUR, 10 * DAY_HOURS * HOUR)],
)
async def test_what_is_older_than_the_receiver_takes_is_not_sent_but_expired_with_a_hint(
    window_seconds: int, sample_age_limit_seconds: float, scene: Scene
) -> None:
    oldest_taken = HOUR_NOW - DAY_HOURS
    await scene.captured(ZONES, range(oldest_taken - 3, HOUR_NOW))
    pusher = scene.pusher(window_seconds=window_seconds, sample_age_limit_seconds=sample_age_limit_seconds)
    await pusher.drain(scene.stopping)
    decisions = await scene.decisions()
    for (_, hour), (state, status, reason) in decisions.items():
        assert state == ("acknowledged" if hour >= oldest_taken else "expired")
        if state == "expired":
            assert status is None
            assert reason is not None
            assert "out_of_order_time_window" in reason
            assert "sample_age_limit" in reason
            assert reason.startswith("older than 1d")
            assert "cfrw resend" in reason
    assert set(scene.receiver.accepted) == samples_of(ZONES, range(oldest_taken, HOUR_NOW))


async def test_a_strict_receiver_s_age_limit_is_kept_and_without_one_nothing_is_too_old(strict: Scene) -> None:
    await strict.captured([1], [0, HOUR_NOW - 2])
    await strict.pusher(window_seconds=0, sample_age_limit_seconds=DAY_HOURS * HOUR).drain(strict.stopping)
    assert await strict.states() == {(1, 0): "expired", (1, HOUR_NOW - 2): "acknowledged"}
    await strict.captured([2], [0, HOUR_NOW - 2])
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    states = await strict.states()
    assert states[2, 0] == states[2, HOUR_NOW - 2] == "acknowledged"


@pytest.mark.parametrize("failure", [DOWN, Later("HTTP 429: busy", Fate.RATE_LIMITED, 429, 60.0)], ids=["503", "429"])
async def test_what_becomes_too_old_during_an_outage_is_not_sent_in_vain_afterwards(
    failure: Later, scene: Scene
) -> None:
    hours = range(HOUR_NOW - 20, HOUR_NOW)
    await scene.captured(ZONES, hours)
    outage_hours = 10
    scene.receiver.answer = lambda _sent: failure if scene.clock.now() < NOW + outage_hours * HOUR else ACCEPTED
    await scene.pusher(max_samples_per_send=6, window_seconds=DAY_HOURS * HOUR).drain(scene.stopping)
    states = await scene.states()
    oldest_taken = HOUR_NOW + outage_hours - DAY_HOURS + 1
    for (_, hour), state in states.items():
        if hour < oldest_taken - 1:
            assert state == "expired"
        elif hour > oldest_taken:
            assert state == "acknowledged"
    too_old = {sample for sample in scene.receiver.accepted if sample[1] < oldest_taken - 1}
    assert not too_old


async def test_what_becomes_too_old_while_a_long_backlog_is_worked_off_is_not_sent_in_vain(scene: Scene) -> None:
    hours = range(HOUR_NOW - DAY_HOURS, HOUR_NOW)
    await scene.captured([1], hours)
    late: list[Sample] = []

    async def slowly(sent: Sent) -> Verdict:
        late.extend(sample for sample in sent.samples if sample[1] < HOUR_NOW - DAY_HOURS + (sent.at - NOW) / HOUR - 1)
        for _ in range(10):  # behind these, what comes next has been read
            await scene.ledger.read(still_pending, "prom", [])
        scene.clock.set(scene.clock.now() + 2 * HOUR)
        return ACCEPTED

    scene.receiver.answer = slowly
    await scene.pusher(max_shards=1, max_samples_per_send=3, window_seconds=DAY_HOURS * HOUR).drain(scene.stopping)
    assert not late
    assert set((await scene.states()).values()) == {"acknowledged", "expired"}


async def test_after_a_window_that_is_too_old_for_a_strict_receiver_the_next_ones_cost_three_requests_each(
    strict: Scene,
) -> None:
    hours = range(HOUR_NOW - 30, HOUR_NOW)
    await strict.captured([1], hours, samples=40)
    too_old = samples_of([1], range(HOUR_NOW - 30, HOUR_NOW - 2), 40)
    strict.receiver.answer = never_takes(too_old)
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    await assert_all_but(too_old, samples_of([1], hours, 40), strict)
    assert len(strict.receiver.sent) == (1 + 16) + 27 * (1 + 2) + 2


async def test_a_window_that_is_taken_in_between_makes_the_next_one_cost_seventeen_requests_again(
    strict: Scene,
) -> None:
    first, taken, second = (HOUR_NOW - hours for hours in (30, 20, 10))
    await strict.captured([1], [first, taken, second], samples=40)
    too_old = samples_of([1], [first, second], 40)
    strict.receiver.answer = never_takes(too_old)
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    await assert_all_but(too_old, samples_of([1], [first, taken, second], 40), strict)
    assert Counter(hour for _, hour in strict.receiver.windows()) == {first: 1 + 16, taken: 1, second: 1 + 16}
