import asyncio
from array import array
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.ledger.fleet import (
    HOUR,
    NOW,
    T0,
    ask_for_resend,
    bucket,
    carry_out_next,
    tag,
    true_value,
)
from tests.unit.pushing import (
    ACCEPTED,
    DOWN,
    OUT_OF_BOUNDS,
    ZONES,
    Scene,
    Sent,
    about,
    in_turn,
    manual,
    never_takes,
    samples_of,
    scene,
    sees,
    strict,
)
from worker.buckets import Bucket
from worker.config import Message, RelabelRule
from worker.config.relabel_rules import RelabelAction
from worker.errors import LedgerFullError
from worker.ledger import (
    Resend,
    acknowledge,
    capture,
    destination_reports,
    expire,
    refusals,
    refuse,
    set_aside,
)
from worker.push import IDLE_SECONDS
from worker.remote_write import Fate, Later, Refused, Verdict
from worker.remote_write.decode import read_request
from worker.series import MetricMetadata, label_block

__all__ = ["manual", "scene", "strict"]  # fixtures


# ------------------------------------------------------------------------------------------ what is delivered


async def test_everything_that_is_pending_is_delivered_and_acknowledged(scene: Scene) -> None:
    await scene.captured(ZONES, range(24))
    await scene.pusher().drain(scene.stopping)
    assert set((await scene.states()).values()) == {"acknowledged"}
    assert scene.receiver.accepted == Counter(
        (zone, hour, f"C{number}") for zone in ZONES for hour in range(24) for number in range(3)
    )


async def test_the_windows_of_a_zone_arrive_oldest_first_and_nothing_twice(scene: Scene) -> None:
    await scene.captured(ZONES, reversed(range(150)))
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    for zone in ZONES:
        assert [hour for number, hour in scene.receiver.windows() if number == zone] == list(range(150))
    assert max(len(sent.samples) for sent in scene.receiver.sent) == 30


async def test_a_receiver_that_takes_any_order_gets_many_windows_of_a_zone_in_a_request_and_several_requests_at_once(
    scene: Scene,
) -> None:
    await scene.captured(ZONES, range(64))

    async def together(_sent: Sent) -> Verdict:
        await sees(lambda: scene.receiver.most_under_way == 4)
        return ACCEPTED

    scene.receiver.answer = together
    await scene.pusher().drain(scene.stopping)
    assert scene.receiver.most_under_way == 4
    assert sorted(len(sent.content) for sent in scene.receiver.sent) == [64, 64, 64, 128]


async def test_a_receiver_that_takes_nothing_out_of_order_gets_one_window_at_a_time_and_one_request(
    strict: Scene,
) -> None:
    await strict.captured(ZONES, range(8))
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    assert strict.receiver.most_under_way == 1
    for sent in strict.receiver.sent:
        assert len({zone for zone, _ in sent.content}) == len(sent.content)
    hours = [hour for _, hour in strict.receiver.windows()]
    assert hours == sorted(hours)
    assert set((await strict.states()).values()) == {"acknowledged"}


async def test_windows_that_come_in_behind_the_place_of_delivery_are_delivered_all_the_same(scene: Scene) -> None:
    await scene.captured([1], range(100, 130))

    async def backfill(_sent: Sent) -> Verdict:
        if len(scene.receiver.sent) == 3:
            await scene.captured([1, 5], range(10))
        return ACCEPTED

    scene.receiver.answer = backfill
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    assert set((await scene.states()).values()) == {"acknowledged"}
    assert max(Counter(scene.receiver.windows()).values()) == 1


async def test_a_bucket_that_is_to_be_sent_again_while_it_is_under_way_is_acknowledged_once_it_was_taken(
    scene: Scene,
) -> None:
    await scene.captured([1], range(2))

    async def ask_meanwhile(_sent: Sent) -> Verdict:
        scene.receiver.answer = lambda _sent: ACCEPTED
        await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
        await scene.ledger.write(carry_out_next, NOW)
        return ACCEPTED

    scene.receiver.answer = ask_meanwhile
    await scene.pusher().drain(scene.stopping)
    assert set((await scene.states()).values()) == {"acknowledged"}


async def test_a_damaged_bucket_is_set_aside_and_the_others_are_delivered(scene: Scene) -> None:
    await scene.captured([1], range(10))
    await scene.ledger.write(damage, T0 + 3 * HOUR)
    await scene.pusher(max_samples_per_send=9).drain(scene.stopping)
    states = await scene.states()
    assert states.pop((1, 3)) == "damaged"
    assert set(states.values()) == {"acknowledged"}
    assert (1, 3) not in scene.receiver.windows()


async def test_a_queue_of_nothing_but_damaged_buckets_ends(scene: Scene) -> None:
    await scene.captured([1], range(3))
    for hour in range(3):
        await scene.ledger.write(damage, T0 + hour * HOUR)
    await scene.pusher().drain(scene.stopping)
    assert set((await scene.states()).values()) == {"damaged"}
    assert scene.receiver.sent == []


def damage(session: Any, start: int) -> None:
    session._connection.execute(
        "UPDATE bucket SET sample_values = zeroblob(length(sample_values)) WHERE start = ?", (start,)
    )


# ------------------------------------------------------------------------------------------ what is not taken


async def test_what_is_refused_is_recorded_with_the_receiver_s_words_and_the_rest_is_delivered(scene: Scene) -> None:
    await scene.captured([1], range(10))
    scene.receiver.answer = about([(1, 4)], OUT_OF_BOUNDS)
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    decisions = await scene.decisions()
    assert decisions.pop((1, 4)) == ("refused", 400, "out of bounds")
    assert {state for state, _, _ in decisions.values()} == {"acknowledged"}
    assert await scene.refused() == dict.fromkeys(samples_of([1], [4]), (400, "out of bounds"))
    assert set(scene.receiver.accepted.values()) == {1}


async def test_what_is_not_taken_is_sent_again_with_the_same_bytes_until_it_is(scene: Scene) -> None:
    await scene.captured([1], range(3))
    scene.receiver.answer = in_turn(DOWN, DOWN, Later("no answer came"), DOWN)
    await scene.pusher().drain(scene.stopping)
    assert [sent.attempt for sent in scene.receiver.sent] == [0, 1, 2, 3, 4]
    assert len({sent.body for sent in scene.receiver.sent}) == 1
    assert set((await scene.states()).values()) == {"acknowledged"}


async def test_while_nothing_is_taken_waits_grow_to_the_cap_also_when_a_request_is_tried_in_parts(scene: Scene) -> None:
    await scene.captured([1], [0])
    scene.receiver.answer = in_turn(*[DOWN] * 40)
    await scene.pusher(min_backoff_seconds=0.5, max_backoff_seconds=20).drain(scene.stopping)
    waits = [later.at - earlier.at for earlier, later in pairwise(scene.receiver.sent[:41])]
    for failures, wait in enumerate(waits):
        expected = min(0.5 * 2**failures, 20)
        assert expected <= wait <= expected * 1.1 + 1e-6, failures
    assert set((await scene.states()).values()) == {"acknowledged"}


async def test_what_the_receiver_says_about_its_load_leads_to_no_search_for_half_an_hour(scene: Scene) -> None:
    await scene.captured([1], [0])
    scene.receiver.answer = in_turn(*[Later("busy", Fate.RATE_LIMITED, 429, retry_after_seconds=7.0)] * 29)
    await scene.pusher().drain(scene.stopping)
    assert len({sent.body for sent in scene.receiver.sent}) == 1
    assert [sent.attempt for sent in scene.receiver.sent] == list(range(30))
    assert scene.clock.now() > NOW + 1500


async def test_a_429_that_is_not_to_be_tried_again_refuses_the_request_as_a_whole(scene: Scene) -> None:
    await scene.captured([1], range(10))
    scene.receiver.answer = about([(1, 4)], Refused(429, "too many requests"))
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    assert len(scene.receiver.sent) == 10
    assert (await scene.decisions())[1, 4] == ("refused", 429, "too many requests")


async def test_what_has_passed_the_replay_bound_while_it_waited_is_given_up_and_the_rest_goes_on(
    scene: Scene,
) -> None:
    await scene.captured([1], range(20))

    async def fail_until_some_are_too_old(sent: Sent) -> Verdict:
        if sent.attempt == 2:
            await scene.ledger.write(expire, ended_before=T0 + 5 * HOUR, now=scene.clock.now())
        return DOWN if len(scene.receiver.sent) <= 3 else ACCEPTED

    scene.receiver.answer = fail_until_some_are_too_old
    await scene.pusher(max_samples_per_send=30).drain(scene.stopping)
    states = await scene.states()
    assert [states[1, hour] for hour in range(20)] == ["expired"] * 4 + ["acknowledged"] * 16
    assert {hour for _, hour, _ in scene.receiver.accepted} == set(range(4, 20))


async def test_a_run_with_a_number_of_attempts_gives_up_and_leaves_everything_pending(scene: Scene) -> None:
    await scene.captured([1], range(20))
    scene.receiver.answer = lambda _sent: DOWN
    await scene.pusher(attempts=3, max_samples_per_send=30).drain(scene.stopping)
    assert [sent.attempt for sent in scene.receiver.sent] == [0, 1, 2]
    assert set((await scene.states()).values()) == {"pending"}


async def test_one_destination_that_is_down_does_not_hold_up_another(manual: Scene) -> None:
    await manual.captured(ZONES, range(24))
    down = manual.pusher(name="other")
    manual.receiver.answer = lambda _sent: DOWN
    failing = asyncio.create_task(down.run(manual.stopping))
    await sees(lambda: len(manual.clock.slept) == 4, failing)
    manual.receiver.answer = lambda _sent: ACCEPTED
    await manual.pusher().drain(manual.stopping)
    assert set((await manual.states()).values()) == {"acknowledged"}
    assert set((await manual.states("other")).values()) == {"pending"}
    manual.stopping.set()
    await failing


async def test_a_lane_that_waits_out_an_outage_does_not_hold_up_the_new_work_of_others(manual: Scene) -> None:
    await manual.captured([1], [0])
    manual.receiver.answer = about([(1, 0)], DOWN)
    running = asyncio.create_task(manual.pusher().run(manual.stopping))
    await sees(lambda: len(manual.receiver.sent) == 1, running)
    await manual.captured([2, 5], [1])
    await sees(lambda: len(manual.receiver.sent) == 2, running)
    assert manual.receiver.sent[1].content == ((2, 1),), "what is behind the request that waits goes on waiting"
    assert manual.clock.now() == NOW
    manual.stopping.set()
    await running


# ------------------------------------------------------------------------------------------ large buckets, in pieces


async def test_a_bucket_larger_than_a_request_is_cut_and_acknowledged_when_every_piece_is_taken(scene: Scene) -> None:
    await scene.captured([1], [0, 1], samples=5)
    states: list[str] = []

    async def look(_sent: Sent) -> Verdict:
        states.append((await scene.states())[1, 0])
        return ACCEPTED

    scene.receiver.answer = look
    await scene.pusher(max_samples_per_send=2).drain(scene.stopping)
    assert [len(sent.samples) for sent in scene.receiver.sent] == [2, 2, 1, 2, 2, 1]
    assert states == ["pending"] * 3 + ["acknowledged"] * 3
    assert sum(scene.receiver.accepted.values()) == 10


async def test_a_bucket_of_which_some_pieces_are_refused_is_delivered_in_part(scene: Scene) -> None:
    await scene.captured([1], [0, 1], samples=5)
    bad = {(1, 0, "C2"), (1, 0, "C3"), (1, 0, "C4")}
    scene.receiver.answer = never_takes(bad)
    await scene.pusher(max_samples_per_send=2).drain(scene.stopping)
    assert await scene.decisions() == {
        (1, 0): ("partial", 400, "out of bounds"),
        (1, 1): ("acknowledged", None, None),
    }
    assert (await scene.refused()).keys() == bad
    assert set(scene.receiver.accepted) == samples_of([1], [0, 1], 5) - bad


async def test_a_bucket_of_which_all_pieces_are_refused_is_refused(scene: Scene) -> None:
    await scene.captured([1], [0, 1], samples=5)
    scene.receiver.answer = about([(1, 0)], OUT_OF_BOUNDS)
    await scene.pusher(max_samples_per_send=2).drain(scene.stopping)
    assert await scene.states() == {(1, 0): "refused", (1, 1): "acknowledged"}
    assert (await scene.refused()).keys() == samples_of([1], [0], 5)


async def test_a_bucket_of_which_a_piece_was_not_taken_stays_pending_as_a_whole(scene: Scene) -> None:
    await scene.captured([1], [0], samples=5)
    scene.receiver.answer = in_turn(ACCEPTED, *[DOWN] * 9)
    await scene.pusher(max_samples_per_send=2, attempts=3).drain(scene.stopping)
    assert await scene.states() == {(1, 0): "pending"}


async def test_a_turn_that_is_too_many_bytes_for_one_request_is_cut_and_each_request_is_recorded_when_it_is_answered(
    scene: Scene,
) -> None:
    await scene.captured([1, 5], range(30), samples=100)
    acknowledged: list[int] = []

    async def count(_sent: Sent) -> Verdict:
        acknowledged.append(list((await scene.states()).values()).count("acknowledged"))
        return ACCEPTED

    scene.receiver.answer = count
    await scene.pusher(max_bytes_per_send=40_000).drain(scene.stopping)
    assert len(acknowledged) > 2
    assert acknowledged == sorted(set(acknowledged))
    assert set((await scene.states()).values()) == {"acknowledged"}


# ------------------------------------------------------------------------------------------ stopping


async def test_a_stop_during_a_wait_ends_it_at_once_and_leaves_everything_pending(manual: Scene) -> None:
    await manual.captured([1], range(20))
    manual.receiver.answer = lambda _sent: DOWN
    running = asyncio.create_task(manual.pusher(max_samples_per_send=30).run(manual.stopping))
    await sees(lambda: any(wait < IDLE_SECONDS for wait in manual.clock.slept), running)
    manual.stopping.set()
    await running
    assert manual.clock.now() == NOW
    assert set((await manual.states()).values()) == {"pending"}


@pytest.mark.parametrize(
    ("verdict", "state"), [(ACCEPTED, "acknowledged"), (OUT_OF_BOUNDS, "pending"), (DOWN, "pending")]
)
async def test_a_request_under_way_when_the_worker_stops_is_finished_and_recorded_and_is_the_last(
    verdict: Verdict, state: str, manual: Scene
) -> None:
    await manual.captured([1], range(20))
    answered = asyncio.Event()

    async def slowly(_sent: Sent) -> Verdict:
        await answered.wait()
        return verdict

    manual.receiver.answer = slowly
    running = asyncio.create_task(manual.pusher(max_samples_per_send=30).run(manual.stopping))
    await sees(lambda: len(manual.receiver.sent) == 1, running)
    manual.stopping.set()
    answered.set()
    await running
    assert len(manual.receiver.sent) == 1
    states = await manual.states()
    assert [states[1, hour] for hour in range(20)] == [state] * 10 + ["pending"] * 10


async def test_a_stop_between_the_requests_of_a_turn_keeps_what_was_answered_and_sends_no_more(scene: Scene) -> None:
    await scene.captured([1], range(30), samples=100)

    def stop(_sent: Sent) -> Verdict:
        if len(scene.receiver.sent) == 2:
            scene.stopping.set()
        return ACCEPTED

    scene.receiver.answer = stop
    await scene.pusher(max_bytes_per_send=40_000).drain(scene.stopping)
    assert len(scene.receiver.sent) == 2
    delivered = set(scene.receiver.windows())
    assert {window for window, state in (await scene.states()).items() if state == "acknowledged"} == delivered


async def test_a_delivery_that_is_cut_off_leaves_its_buckets_pending(manual: Scene) -> None:
    await manual.captured([1], range(20))

    async def never(_sent: Sent) -> Verdict:
        await asyncio.Event().wait()
        return ACCEPTED

    manual.receiver.answer = never
    running = asyncio.create_task(manual.pusher().run(manual.stopping))
    await sees(lambda: len(manual.receiver.sent) == 1, running)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert set((await manual.states()).values()) == {"pending"}


# ------------------------------------------------------------------------------------------ when there is no room


@pytest.mark.parametrize("verb", [acknowledge, refuse, set_aside])
async def test_a_decision_that_a_full_volume_did_not_take_is_written_later_and_nothing_is_sent_again(
    verb: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.captured([1], range(6))
    await scene.ledger.write(damage, T0 + 5 * HOUR)
    full_for(3, verb, scene, monkeypatch)
    scene.receiver.answer = about([(1, 2)], OUT_OF_BOUNDS)
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    states = await scene.states()
    assert [states[1, hour] for hour in (2, 5)] == ["refused", "damaged"]
    assert [states[1, hour] for hour in (0, 1, 3, 4)] == ["acknowledged"] * 4
    assert scene.receiver.accepted == Counter(samples_of([1], [0, 1, 3, 4]))
    assert scene.clock.slept.count(5.0) == 3


async def test_a_run_with_a_number_of_attempts_does_not_wait_for_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.captured([1], range(3))
    full_for(10, acknowledge, scene, monkeypatch)
    with pytest.RaisesGroup(LedgerFullError, flatten_subgroups=True):
        await scene.pusher(attempts=3).drain(scene.stopping)


def full_for(times: int, verb: Any, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next so many writes of this verb meet a full volume."""
    write = scene.ledger.write
    left = [times]

    async def write_or_fail(given: Any, *args: Any, **kwargs: Any) -> Any:
        if left[0] and getattr(given, "func", given) is verb:
            left[0] -= 1
            message = "no room is left"
            raise LedgerFullError(message)
        return await write(given, *args, **kwargs)

    monkeypatch.setattr(scene.ledger, "write", write_or_fail)


# ------------------------------------------------------------------------------------------ work as it comes in


async def test_new_work_is_taken_up_when_it_is_announced(manual: Scene) -> None:
    running = asyncio.create_task(manual.pusher().run(manual.stopping))
    await sees(lambda: len(manual.clock.slept) == 4, running)
    assert manual.receiver.sent == []
    await manual.captured([1], [0])
    await sees(lambda: len(manual.receiver.sent) == 1, running)
    assert manual.clock.now() == NOW
    manual.stopping.set()
    await running


async def test_work_that_nobody_announced_is_found_all_the_same(manual: Scene) -> None:
    running = asyncio.create_task(manual.pusher().run(manual.stopping))
    await sees(lambda: len(manual.clock.slept) == 4, running)
    await manual.ledger.write(capture, [bucket(1, 0)], NOW)
    await manual.clock.advance(IDLE_SECONDS)
    await sees(lambda: len(manual.receiver.sent) == 1, running)
    manual.stopping.set()
    await running


async def test_a_pusher_without_work_completes_passes_and_looks_no_more_often_than_it_has_to(scene: Scene) -> None:
    running = asyncio.create_task(scene.pusher().run(scene.stopping))
    await sees(lambda: len(scene.clock.slept) > 8, running)
    scene.stopping.set()
    await running
    assert set(scene.clock.slept) == {IDLE_SECONDS}
    assert scene.health.loops()["push:prom"].completed_at is not None


async def test_an_outage_of_the_receiver_makes_the_worker_neither_unready_nor_unhealthy(scene: Scene) -> None:
    await scene.captured([1], [0])
    verdicts: list[bool] = []
    scene.health.ledger_writable()
    scene.health.token_accepted()

    def answer(_sent: Sent) -> Verdict:
        if len(scene.receiver.sent) > 1:
            verdicts.append(scene.health.readiness().ok and scene.health.liveness().ok)
        return DOWN if len(scene.receiver.sent) < 50 else ACCEPTED

    scene.receiver.answer = answer
    await scene.pusher(max_backoff_seconds=300).drain(scene.stopping)
    assert scene.clock.now() > NOW + 3 * HOUR
    assert verdicts == [True] * (len(scene.receiver.sent) - 1)


async def test_what_is_refused_of_a_series_that_is_sent_under_the_id_of_another_is_sent_again_when_asked_for(
    scene: Scene,
) -> None:
    """An account was renamed, and a rule drops its name: the series before and after are one to the receiver."""
    before, after = (of_three_metrics(hour, account) for hour, account in ((0, "old"), (1, "new")))
    await scene.ledger.write(capture, [before, after], NOW)
    pusher = scene.pusher(rules=(RelabelRule(action=RelabelAction.LABELDROP, regex="account"),))
    scene.receiver.answer = never_takes({(1, 1, "C0")})
    await pusher.drain(scene.stopping)
    [refusal] = await scene.ledger.read(refusals, "prom", newest=2)
    assert refusal.series == after.series[:1]
    await scene.ledger.write(ask_for_resend, Resend(T0 + HOUR, int(NOW), metrics=("metric_2",)))
    await scene.ledger.write(carry_out_next, NOW)
    scene.receiver.sent.clear()
    scene.receiver.answer = in_turn()
    await pusher.drain(scene.stopping)
    assert [sent.samples for sent in scene.receiver.sent] == [((1, 1, "C0"), (1, 1, "C2"))]
    assert set((await scene.states()).values()) == {"acknowledged"}


@pytest.mark.parametrize(
    ("message", "sends", "is_told"),
    [(Message.V1, None, False), (Message.V1, True, True), (Message.V2, None, True), (Message.V2, False, False)],
)
async def test_what_a_metric_means_is_told_in_version_2_and_in_version_1_only_where_that_is_asked_for(
    message: Message, scene: Scene, *, sends: bool | None, is_told: bool
) -> None:
    await scene.captured([1], [0])
    told = MetricMetadata("How many requests there were.", "")
    known = {"cloudflare_zone_requests": told}
    await scene.pusher(message=message, metadata=known, sends_metadata=sends).drain(scene.stopping)
    [sent] = scene.receiver.sent
    assert (told in read_request(sent.body, message).metadata.values()) is is_told


@pytest.mark.parametrize(
    ("label", "regex", "dropped", "told"),
    [
        ("__name__", "node_.*", 6, 1),
        ("__name__", "metric_.*", 0, 0),
        ("__name__", "metric_1", 4, 0),
        ("account", "a", 3, 0),
    ],
)
async def test_what_rules_drop_is_counted_and_told_where_they_let_nothing_pass(
    scene: Scene, capsys: pytest.CaptureFixture[str], *, label: str, regex: str, dropped: int, told: int
) -> None:
    await scene.ledger.write(capture, [of_three_metrics(0, "a"), of_three_metrics(1, "b")], NOW)
    keep = RelabelRule(action=RelabelAction.KEEP, source_labels=(label,), regex=regex)
    rules = (keep, RelabelRule(action=RelabelAction.LABELDROP, regex="account"))
    await scene.pusher(rules=rules, max_samples_per_send=3).drain(scene.stopping)
    assert scene.value("cfrw_push_samples_dropped_total") == dropped
    assert capsys.readouterr().out.count("have let none pass") == told
    assert sum(len(sent.samples) for sent in scene.receiver.sent) == 6 - dropped
    assert set((await scene.states()).values()) == {"acknowledged"}
    report = next(each for each in await scene.ledger.read(destination_reports) if each.name == "prom")
    assert (report.last_success_at is None) is (not scene.receiver.sent)


@pytest.mark.parametrize("answer", [ACCEPTED, OUT_OF_BOUNDS], ids=["it is taken", "it is refused"])
async def test_a_bucket_that_is_asked_for_while_a_part_of_it_is_under_way_is_sent_as_a_whole(
    answer: Verdict, scene: Scene
) -> None:
    await scene.ledger.write(capture, [of_three_metrics(0, "one")], NOW)
    pusher = scene.pusher(rules=(RelabelRule(action=RelabelAction.LABELDROP, regex="account"),))
    await pusher.drain(scene.stopping)

    async def asked_for(*metrics: str) -> None:
        await scene.ledger.write(ask_for_resend, Resend(T0, int(NOW), metrics=metrics))
        await scene.ledger.write(carry_out_next, NOW)

    async def meanwhile(sent: Sent) -> Verdict:
        if len(sent.samples) > 1:
            return ACCEPTED
        await asked_for()
        return answer

    await asked_for("metric_2")
    scene.receiver.sent.clear()
    scene.receiver.answer = meanwhile
    await pusher.drain(scene.stopping)
    assert [len(sent.samples) for sent in scene.receiver.sent] == [1, 3]
    assert set((await scene.states()).values()) == {"acknowledged"}


def of_three_metrics(hour: int, account: str) -> Bucket:
    """A bucket of zone 1 whose series have a label more than those that its values belong to."""
    names = [(f"metric_{number}", {"zone_id": tag(1), "country": f"C{number}"}) for number in range(3)]
    series = tuple(label_block(name, {**labels, "account": account}) for name, labels in names)
    template = bucket(1, hour)
    values = array("d", [true_value(label_block(*name), template.timestamp_ms) for name in names])
    return replace(template, series=series, values=values)


async def test_every_exchange_is_counted_by_its_outcome(scene: Scene) -> None:
    await scene.captured([1], range(3))
    scene.receiver.answer = in_turn(DOWN, Refused(429, "too many"))
    pusher = scene.pusher(max_samples_per_send=3)
    await pusher.drain(scene.stopping)
    for outcome, requests in (("accepted", 2), ("refused", 1), ("later", 1)):
        assert scene.value("cfrw_push_requests_total", outcome=outcome) == requests
        assert scene.value("cfrw_push_samples_total", outcome=outcome) == 3 * requests
    assert scene.value("cfrw_push_samples_retried_total") == 3
    assert scene.value("cfrw_push_samples_failed_total", status="429") == 3
    assert scene.value("cfrw_push_bytes_total") == sum(len(sent.body) for sent in scene.receiver.sent)
    assert scene.value("cfrw_push_sent_batch_duration_seconds_count") == 4
    assert scene.value("cfrw_push_last_success_timestamp_seconds") == scene.clock.now()
    assert scene.value("cfrw_push_queue_highest_sent_timestamp_seconds") == T0 + 2 * HOUR
    report = next(each for each in await scene.ledger.read(destination_reports) if each.name == pusher.name)
    assert report.last_success_at == int(scene.clock.now())
    assert report.last_failure == "refused with status 429: too many"


def test_the_zones_of_these_tests_are_those_of_the_ledger_s() -> None:
    assert [int(tag(zone), 16) for zone in ZONES] == list(ZONES)
