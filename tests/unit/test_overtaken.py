"""What comes too late for a bucket changes nothing about another one, and nothing waits behind what was given up."""

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.ledger.fleet import (
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    carry_out_next,
    pending_ids,
    queue,
    refuse_whole,
)
from tests.unit.pushing import (
    ACCEPTED,
    ZONES,
    Scene,
    Sent,
    scene,
    strict,
)
from worker.ledger import (
    Ledger,
    Resend,
    acknowledge,
    capture,
    expire,
    prune,
    set_aside,
)
from worker.remote_write import Fate, Later, Refused, Verdict

__all__ = ["scene", "strict"]  # fixtures

OLD, NEW = 0, 700
"""An hour that is given up in the middle of a test, and one that is not."""

TOO_OLD = Later("HTTP 500: too old", Fate.RETRY, 500)

REPLAY_HOURS = 24


async def give_up_old(ledger: Ledger) -> int:
    return await ledger.write(expire, ended_before=T0 + NEW * HOUR, now=NOW)


def never_takes_old(scene: Scene, *, attempts: int = 3) -> Callable[[Sent], Awaitable[Verdict]]:
    """500 to whatever holds an old window, which is given up after so many attempts; 204 to the rest."""
    refusals = 0

    async def answer(sent: Sent) -> Verdict:
        nonlocal refusals
        if all(hour != OLD for _, hour in sent.content):
            return ACCEPTED
        refusals += 1
        if refusals == attempts:
            assert await give_up_old(scene.ledger)
        assert refusals < attempts + 10, "what was given up is still being sent"
        return TOO_OLD

    return answer


# ------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize("decision", ["acknowledge", "refuse", "set aside"])
async def test_a_late_answer_decides_on_no_bucket_that_was_captured_since(decision: str, scene: Scene) -> None:
    await scene.captured([1], [0, 1])
    under_way = await pending_ids(scene.ledger)
    await give_up_old(scene.ledger)
    await scene.ledger.write(prune, ended_before=T0 + NEW * HOUR)
    await scene.captured([1], [NEW, NEW + 1])
    match decision:
        case "acknowledge":
            await scene.ledger.write(acknowledge, "prom", under_way, now=NOW)
        case "refuse":
            await scene.ledger.write(refuse_whole, "prom", under_way)
        case _:
            await scene.ledger.write(set_aside, "prom", under_way, now=NOW)
    assert await queue(scene.ledger) == [(1, NEW), (1, NEW + 1)]


async def test_the_id_of_a_bucket_is_not_given_again_after_a_restart_either(scene: Scene) -> None:
    await scene.captured([1], [0, 1])
    under_way = await pending_ids(scene.ledger)
    await give_up_old(scene.ledger)
    await scene.ledger.write(prune, ended_before=T0 + NEW * HOUR)
    await scene.ledger.close()
    reopened = Ledger.open(scene.ledger.path)
    await reopened.write(capture, [bucket(1, NEW)], NOW)
    assert min(await pending_ids(reopened)) > max(under_way)
    await reopened.close()


async def test_the_answer_to_a_request_whose_buckets_are_gone_is_taken_note_of_and_changes_nothing(
    scene: Scene,
) -> None:
    await scene.captured([1], [OLD])

    async def meanwhile(sent: Sent) -> Verdict:
        if sent.content == ((1, OLD),):
            await give_up_old(scene.ledger)
            await scene.ledger.write(prune, ended_before=T0 + NEW * HOUR)
            await scene.captured([1], [NEW])
        return ACCEPTED

    scene.receiver.answer = meanwhile
    await scene.pusher().drain(scene.stopping)
    assert scene.receiver.windows() == [(1, OLD), (1, NEW)], "the new bucket is sent, and not taken for the old one"
    assert await scene.states() == {(1, NEW): "acknowledged"}


# ------------------------------------------------------------------------------------------ what was given up


@pytest.mark.parametrize("samples_per_send", [3, 10_000], ids=["alone", "with others in a request"])
async def test_a_request_whose_buckets_were_given_up_is_dropped_and_what_is_behind_it_is_delivered(
    samples_per_send: int, scene: Scene
) -> None:
    await scene.captured([1], [OLD, NEW, NEW + 1])
    scene.receiver.answer = never_takes_old(scene)
    await scene.pusher(max_samples_per_send=samples_per_send).drain(scene.stopping)
    assert await scene.states() == {(1, OLD): "expired", (1, NEW): "acknowledged", (1, NEW + 1): "acknowledged"}
    assert Counter(scene.receiver.windows())[1, OLD] == 3
    assert set(scene.receiver.accepted.values()) == {1}


@pytest.mark.parametrize("attempts", [1, 5, 12])
async def test_every_lane_drops_what_was_given_up(attempts: int, scene: Scene) -> None:
    await scene.captured(ZONES, [OLD, NEW, NEW + 1])
    scene.receiver.answer = never_takes_old(scene, attempts=attempts)
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    states = await scene.states()
    assert {states[zone, OLD] for zone in ZONES} == {"expired"}
    assert {states[zone, hour] for zone in ZONES for hour in (NEW, NEW + 1)} == {"acknowledged"}
    for zone in ZONES:
        accepted = list(dict.fromkeys(hour for number, hour, _ in scene.receiver.accepted if number == zone))
        assert accepted == [NEW, NEW + 1]


async def test_a_strict_receiver_gets_what_is_behind_a_window_that_was_given_up(strict: Scene) -> None:
    await strict.captured(ZONES, [OLD, NEW])
    strict.receiver.answer = never_takes_old(strict)
    await strict.pusher(window_seconds=0).drain(strict.stopping)
    states = await strict.states()
    assert {states[zone, NEW] for zone in ZONES} == {"acknowledged"}


async def test_pieces_of_a_bucket_that_was_given_up_are_not_sent_on(scene: Scene) -> None:
    await scene.captured([1], [OLD, NEW], samples=6)
    pieces = 0

    async def first_piece_only(sent: Sent) -> Verdict:
        nonlocal pieces
        if sent.content != ((1, OLD),):
            return ACCEPTED
        pieces += 1
        if pieces == 2:
            await give_up_old(scene.ledger)
        return ACCEPTED if pieces == 1 else TOO_OLD

    scene.receiver.answer = first_piece_only
    await scene.pusher(max_samples_per_send=2).drain(scene.stopping)
    assert pieces == 2
    assert await scene.states() == {(1, OLD): "expired", (1, NEW): "acknowledged"}


async def test_what_is_taken_after_all_although_it_was_given_up_counts_as_delivered(scene: Scene) -> None:
    await scene.captured([1], [OLD])

    async def at_last(_sent: Sent) -> Verdict:
        await give_up_old(scene.ledger)
        return ACCEPTED

    scene.receiver.answer = at_last
    await scene.pusher().drain(scene.stopping)
    assert await scene.states() == {(1, OLD): "acknowledged"}


async def test_what_another_answer_has_decided_on_meanwhile_is_not_sent_again(scene: Scene) -> None:
    await scene.captured([1], [OLD, NEW])

    async def decided_elsewhere(sent: Sent) -> Verdict:
        assert len(scene.receiver.sent) < 5
        if sent.content == ((1, OLD),):
            await acknowledge_all(scene.ledger)
            return TOO_OLD
        return ACCEPTED

    scene.receiver.answer = decided_elsewhere
    await scene.pusher(max_samples_per_send=3).drain(scene.stopping)
    assert scene.receiver.windows() == [(1, OLD)]


# ------------------------------------------------------------------------------------------ what was asked for again


@pytest.mark.parametrize("age_hours", [1, 100])
async def test_a_resent_bucket_that_is_never_taken_is_given_up_when_the_replay_bound_has_passed_since_it_was_asked_for(
    age_hours: int, scene: Scene
) -> None:
    await scene.captured([1], [int(NOW - T0) // HOUR - age_hours])
    await acknowledge_all(scene.ledger)
    await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
    await scene.ledger.write(carry_out_next, NOW)
    given_up_at: list[float] = []

    async def never(sent: Sent) -> Verdict:
        assert sent.at < NOW + 48 * HOUR, "it is sent for ever"
        scene.clock.set(sent.at + 600)
        now = scene.clock.now()
        if await scene.ledger.write(expire, ended_before=now - REPLAY_HOURS * HOUR, now=now):
            given_up_at.append(now)
        return Refused(400, "late") if given_up_at and given_up_at[-1] != now else TOO_OLD

    scene.receiver.answer = never
    await scene.pusher().drain(scene.stopping)
    (at,) = given_up_at
    assert NOW + REPLAY_HOURS * HOUR < at < NOW + (REPLAY_HOURS + 1) * HOUR
    assert set((await scene.states()).values()) == {"expired"}
    assert await queue(scene.ledger) == []


async def test_a_second_resend_begins_a_time_of_its_own(scene: Scene) -> None:
    await scene.captured([1], [OLD])
    for asked_at in (NOW, NOW + 12 * HOUR):
        await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=asked_at)
        await scene.ledger.write(carry_out_next, asked_at)
    assert not await scene.ledger.write(expire, ended_before=NOW + 1, now=NOW + 24 * HOUR + 1)
    assert not await scene.ledger.write(expire, ended_before=NOW + 12 * HOUR, now=NOW + 36 * HOUR)
    assert await scene.ledger.write(expire, ended_before=NOW + 12 * HOUR + 1, now=NOW + 36 * HOUR + 1)


async def test_a_resend_of_what_is_being_refused_lets_new_windows_through_once_it_is_given_up(scene: Scene) -> None:
    await scene.captured([1], [OLD])
    await acknowledge_all(scene.ledger)
    await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
    await scene.ledger.write(carry_out_next, NOW)
    await scene.captured([1, 5], [NEW])

    async def never_old(sent: Sent) -> Verdict:
        if (1, OLD) not in sent.content:
            return ACCEPTED
        assert sent.at < NOW + 48 * HOUR, "it is sent for ever"
        scene.clock.set(sent.at + HOUR)
        now = scene.clock.now()
        # The new windows have another bound than the one that was asked for again: here only the latter passes.
        await scene.ledger.write(expire, ended_before=min(now - 24 * HOUR, NOW + 1), now=now)
        return TOO_OLD

    # The new windows end before NOW, too: they are asked for again, so that only the first resend grows old.
    await scene.ledger.write(ask_for_resend, Resend(T0 + NEW * HOUR, 2**40), reason="", asked_by="", now=NOW + 90_000)
    await scene.ledger.write(carry_out_next, NOW + 90_000)
    scene.receiver.answer = never_old
    await scene.pusher(max_samples_per_send=3, blame_after_seconds=48 * HOUR).drain(scene.stopping)
    assert await scene.states() == {(1, OLD): "expired", (1, NEW): "acknowledged", (5, NEW): "acknowledged"}
