import asyncio
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import JumpingClock, ManualClock
from tests.unit.ledger.fleet import HOUR, NOW, T0, bucket, scope, tag, true_value
from worker.config import DestinationSettings, QueueSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import (
    Ledger,
    Resend,
    acknowledge,
    ask_for_resend,
    capture,
    carry_out_next,
    destination_reports,
    expire,
    record_scopes,
    refuse,
    register_destinations,
    set_aside,
)
from worker.observe import Metrics
from worker.push import IDLE_SECONDS, Pusher
from worker.remote_write import Accepted, Later, Refused, Verdict
from worker.remote_write.decode import read_write_request
from worker.series import label_block

ACCEPTED = Accepted(204)
DOWN = Later("HTTP 503: the receiver is made to fail", 503)
OUT_OF_BOUNDS = Refused(400, "out of bounds")

ZONES = (1, 2, 3, 4, 5)
"""Of the four lanes of a destination, zones 1 and 5 share one; the others have one each."""

Window = tuple[int, int]
"""A zone's number and an hour's."""

Decision = tuple[str, int | None, str | None]
"""The state of a delivery, with status and reason where it was decided against."""


@dataclass(frozen=True)
class Sent:
    """A request as it arrived. content: which zone and hour its samples are of, in their order, once each."""

    at: float
    attempt: int
    body: bytes
    content: tuple[Window, ...]
    samples: int


@dataclass
class FakeReceiver:
    """Reads every request as a strict receiver does, looks that each value is the truth, and answers as told."""

    clock: ManualClock
    answer: Callable[[Sent], Verdict | Awaitable[Verdict]] = lambda _sent: ACCEPTED
    sent: list[Sent] = field(default_factory=list)
    accepted: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    under_way: int = 0
    most_under_way: int = 0

    async def send(self, body: bytes, attempt: int) -> Verdict:
        samples = list(read_samples(body))
        content = tuple(dict.fromkeys((zone, hour) for zone, hour, _ in samples))
        sent = Sent(self.clock.now(), attempt, body, content, len(samples))
        self.sent.append(sent)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            answer = self.answer(sent)
            verdict = await answer if isinstance(answer, Awaitable) else answer
        finally:
            self.under_way -= 1
        if isinstance(verdict, Accepted):
            self.accepted.update(samples)
        return verdict

    def windows(self) -> list[Window]:
        """What arrived, in the order in which it did."""
        return [window for sent in self.sent for window in sent.content]


def read_samples(body: bytes) -> Iterable[tuple[int, int, str]]:
    """Zone, hour and country of every sample, which must have its true value."""
    for series in read_write_request(body):
        labels = dict(series.labels)
        block = label_block(labels.pop("__name__"), labels)
        for timestamp_ms, value in series.samples:
            assert value == true_value(block, timestamp_ms)
            yield int(labels["zone_id"], 16), (timestamp_ms // 1000 - T0) // HOUR, labels["country"]


@dataclass
class Scene:
    """A pusher between a real ledger and a receiver that a test makes up."""

    clock: ManualClock
    ledger: Ledger
    health: Health
    metrics: Metrics
    receiver: FakeReceiver
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def pusher(
        self, *, name: str = "prom", attempts: int | None = None, window_seconds: int = 86_400, **queue: Any
    ) -> Pusher:
        destination = DestinationSettings(
            name=name,
            url="http://127.0.0.1:9/api/v1/write",
            out_of_order_time_window_seconds=window_seconds,
            queue=QueueSettings(**queue),
        )
        self.health.expect(f"push:{name}", allowance_seconds=500, liveness_seconds=500)
        return Pusher(
            destination,
            ledger=self.ledger,
            sender=self.receiver,
            clock=self.clock,
            health=self.health,
            metrics=self.metrics,
            attempts_allowed=attempts,
        )

    async def captured(self, zones: Iterable[int], hours: Iterable[int], *, samples: int = 3) -> None:
        hours = list(hours)
        await self.ledger.write(capture, [bucket(zone, hour, samples=samples) for zone in zones for hour in hours], NOW)
        self.ledger.announce()

    async def states(self, name: str = "prom") -> dict[Window, str]:
        """The state of the delivery of every bucket."""
        return {window: state for window, (state, _, _) in (await self.decisions(name)).items()}

    async def decisions(self, name: str = "prom") -> dict[Window, Decision]:
        rows = await self.ledger.read(delivery_rows, name)
        return {
            (int(zone, 16), (start - T0) // HOUR): (state, status, reason)
            for zone, start, state, status, reason in rows
        }

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics._registry.get_sample_value(name, {"destination": "prom", **labels})
        assert found is not None
        return found


def delivery_rows(session: Any, destination: str) -> list[tuple[Any, ...]]:
    return list(
        session._connection.execute(
            """SELECT scope.tag, bucket.start, delivery.state, delivery.status, delivery.reason FROM delivery
            JOIN bucket ON bucket.id = delivery.bucket_id JOIN scope ON scope.id = bucket.scope_id
            JOIN destination ON destination.id = delivery.destination_id WHERE destination.name = ?""",
            (destination,),
        )
    )


@asynccontextmanager
async def a_scene(path: Path, clock: ManualClock, *, strict: bool = False) -> AsyncIterator[Scene]:
    ledger = Ledger.open(path / "ledger.db")
    await ledger.write(record_scopes, [scope(zone) for zone in ZONES], NOW)
    await ledger.write(register_destinations, {"prom": strict, "other": strict}, replay_since=0, now=NOW)
    health = Health(clock)
    metrics = Metrics(clock, health, version="1", sqlite_version="3", destinations=["prom", "other"])
    try:
        yield Scene(clock, ledger, health, metrics, FakeReceiver(clock))
    finally:
        await ledger.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(tmp_path, JumpingClock(NOW)) as made:
        yield made


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(tmp_path, JumpingClock(NOW), strict=True) as made:
        yield made


@pytest.fixture
async def manual(tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene whose clock stands still until it is moved."""
    async with a_scene(tmp_path, ManualClock(NOW)) as made:
        yield made


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


def in_turn(*verdicts: Verdict) -> Callable[[Sent], Verdict]:
    """These answers one after the other, then acceptance."""
    left = list(verdicts)
    return lambda _sent: left.pop(0) if left else ACCEPTED


def about(windows: Sequence[Window], verdict: Verdict) -> Callable[[Sent], Verdict]:
    """This answer to every request that holds one of these windows, acceptance for the rest."""
    return lambda sent: verdict if any(window in windows for window in sent.content) else ACCEPTED


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
    assert max(sent.samples for sent in scene.receiver.sent) == 30


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
    assert max(Counter(scene.receiver.windows()).values()) == 1, "what was refused is not sent again"


async def test_what_is_not_taken_is_sent_again_with_the_same_bytes_until_it_is(scene: Scene) -> None:
    await scene.captured([1], range(3))
    scene.receiver.answer = in_turn(DOWN, DOWN, Later("no answer came"), DOWN)
    await scene.pusher().drain(scene.stopping)
    assert [sent.attempt for sent in scene.receiver.sent] == [0, 1, 2, 3, 4]
    assert len({sent.body for sent in scene.receiver.sent}) == 1
    assert set((await scene.states()).values()) == {"acknowledged"}


async def test_waits_double_up_to_the_cap_and_differ_by_a_tenth_at_most(scene: Scene) -> None:
    await scene.captured([1], [0])
    scene.receiver.answer = in_turn(*[DOWN] * 40)
    await scene.pusher(min_backoff_seconds=0.5, max_backoff_seconds=20).drain(scene.stopping)
    waits = [later.at - earlier.at for earlier, later in pairwise(scene.receiver.sent)]
    for attempt, wait in enumerate(waits):
        expected = min(0.5 * 2**attempt, 20)
        assert expected <= wait <= expected * 1.1 + 1e-6
    assert len(set(waits[10:])) > 1, "workers that met the same outage must not come back at the same instant"


async def test_a_wait_that_the_receiver_asks_for_is_kept_where_it_is_the_longer_one(scene: Scene) -> None:
    await scene.captured([1], [0])
    scene.receiver.answer = in_turn(
        Later("busy", 429, retry_after_seconds=120.0), Later("busy", 429, retry_after_seconds=0.0), DOWN
    )
    await scene.pusher(min_backoff_seconds=10, max_backoff_seconds=30).drain(scene.stopping)
    waits = [later.at - earlier.at for earlier, later in pairwise(scene.receiver.sent)]
    for wait, expected in zip(waits, [120, 20, 30], strict=True):
        assert expected <= wait <= expected * 1.1


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
    assert [sent.samples for sent in scene.receiver.sent] == [2, 2, 1, 2, 2, 1]
    assert states == ["pending"] * 3 + ["acknowledged"] * 3
    assert sum(scene.receiver.accepted.values()) == 10


async def test_a_bucket_of_which_a_piece_is_refused_is_refused_and_its_other_pieces_are_delivered(
    scene: Scene,
) -> None:
    await scene.captured([1], [0, 1], samples=5)
    scene.receiver.answer = in_turn(ACCEPTED, OUT_OF_BOUNDS, Refused(413, "too large"))
    await scene.pusher(max_samples_per_send=2).drain(scene.stopping)
    assert await scene.decisions() == {
        (1, 0): ("refused", 400, "out of bounds"),
        (1, 1): ("acknowledged", None, None),
    }


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
    ("verdict", "state"), [(ACCEPTED, "acknowledged"), (OUT_OF_BOUNDS, "refused"), (DOWN, "pending")]
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
    assert scene.receiver.windows() == [(1, hour) for hour in range(5)]
    assert scene.clock.slept == [5.0] * 3


async def test_a_run_with_a_number_of_attempts_does_not_wait_for_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.captured([1], range(3))
    full_for(10, acknowledge, scene, monkeypatch)
    with pytest.RaisesGroup(LedgerFullError):
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
    assert verdicts == [True] * 49


async def test_every_exchange_is_counted_by_its_outcome(scene: Scene) -> None:
    await scene.captured([1], range(3))
    scene.receiver.answer = in_turn(DOWN, OUT_OF_BOUNDS)
    pusher = scene.pusher(max_samples_per_send=3)
    await pusher.drain(scene.stopping)
    for outcome, requests in (("accepted", 2), ("refused", 1), ("later", 1)):
        assert scene.value("cfrw_push_requests_total", outcome=outcome) == requests
        assert scene.value("cfrw_push_samples_total", outcome=outcome) == 3 * requests
    assert scene.value("cfrw_push_retries_total") == 1
    assert scene.value("cfrw_push_bytes_total") == sum(len(sent.body) for sent in scene.receiver.sent)
    assert scene.value("cfrw_push_sent_batch_duration_seconds_count") == 4
    assert scene.value("cfrw_push_last_success_timestamp_seconds") == scene.clock.now()
    report = next(each for each in await scene.ledger.read(destination_reports) if each.name == pusher.name)
    assert report.last_success_at == int(scene.clock.now())
    assert report.last_failure == "refused with status 400: out of bounds"


# ------------------------------------------------------------------------------------------ all of it, by chance

VERDICTS = st.lists(st.sampled_from([ACCEPTED, ACCEPTED, DOWN, OUT_OF_BOUNDS]), max_size=40)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.dictionaries(
        st.tuples(st.sampled_from(ZONES), st.integers(0, 130)), st.integers(1, 6), min_size=1, max_size=25
    ),
    most=st.integers(1, 12),
    verdicts=VERDICTS,
    window_seconds=st.sampled_from([0, 86_400]),
    stop_after=st.none() | st.integers(1, 20),
)
def test_a_bucket_is_acknowledged_exactly_when_all_its_samples_were_accepted_whatever_the_receiver_answers(
    sizes: dict[Window, int], most: int, verdicts: list[Verdict], window_seconds: int, stop_after: int | None
) -> None:
    async def play(scene: Scene) -> None:
        left = list(verdicts)
        given: defaultdict[Window, list[Verdict]] = defaultdict(list)

        def answer(sent: Sent) -> Verdict:
            if len(scene.receiver.sent) == stop_after:
                scene.stopping.set()
            verdict = left.pop(0) if left else ACCEPTED
            for window in sent.content:
                given[window].append(verdict)
            return verdict

        scene.receiver.answer = answer
        for (zone, hour), samples in sizes.items():
            await scene.captured([zone], [hour], samples=samples)
        await scene.pusher(max_samples_per_send=most, window_seconds=window_seconds).drain(scene.stopping)

        accepted = Counter((zone, hour) for zone, hour, _ in scene.receiver.accepted)
        assert all(sent.samples <= most for sent in scene.receiver.sent)
        states = await scene.states()
        assert set(states.values()) <= {"acknowledged", "refused", "pending"}
        assert "pending" not in states.values() or scene.stopping.is_set()
        assert all(accepted[window] == sizes[window] for window, state in states.items() if state == "acknowledged")
        assert all(OUT_OF_BOUNDS in given[window] for window, state in states.items() if state == "refused")
        # Nothing is accepted twice, and a zone's windows arrive in their order.
        assert set(scene.receiver.accepted.values()) <= {1}
        for zone in ZONES:
            hours = list(dict.fromkeys(hour for number, hour in scene.receiver.windows() if number == zone))
            assert hours == sorted(hours)

    async def within_a_scene() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with a_scene(Path(folder), JumpingClock(NOW), strict=not window_seconds) as scene:
                await play(scene)

    asyncio.run(within_a_scene())


def test_the_zones_of_these_tests_are_those_of_the_ledger_s() -> None:
    assert [int(tag(zone), 16) for zone in ZONES] == list(ZONES)
