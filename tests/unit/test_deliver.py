"""One destination's requests until its receiver has decided: attempts, waits, versions, and a parked destination."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.clocks import JumpingClock, ManualClock
from tests.unit.remote_write.batches import START_MS, batch, bucket
from worker.config import DestinationSettings, Message, QueueSettings
from worker.deliver import Deliverer, Interrupted, Request
from worker.health import Health
from worker.observe import Metrics
from worker.remote_write import Accepted, Fate, Later, Refused, Verdict
from worker.remote_write.decode import read_request
from worker.series import MetricMetadata

V1, V2 = Message.V1, Message.V2

ACCEPTED = Accepted(204)
WRITTEN = Accepted(204, written_samples=3)
DOWN = Later("HTTP 503: down", Fate.RETRY, 503)
NO_ANSWER = Later("no answer came")
BUSY = Later("HTTP 429: busy", Fate.RATE_LIMITED, 429)
BUSY_FOR_MINUTES = Later("HTTP 429: busy", Fate.RATE_LIMITED, 429, 200.0)
UNAUTHORIZED = Later("HTTP 401: wrong password", Fate.PARK, 401)
NO_NAME = Later("the host name cannot be found", Fate.PARK)
SILENT = Later("HTTP 204 without any Written header", Fate.OLDER_MESSAGE, 204)
UNSUPPORTED = Later("HTTP 415: what is this?", Fate.OLDER_MESSAGE, 415)
BAD_IN_1 = Refused(400, "cannot be parsed")
BAD_IN_2 = Refused(400, "out of bounds", speaks_2=True)

METADATA = {"requests": MetricMetadata("How many there were.", "")}

DAY_SECONDS = 86_400.0
FAILURES_ALLOWED = 5


@dataclass(frozen=True)
class Sent:
    at: float
    attempt: int
    message: Message
    body: bytes


@dataclass
class Receiver:
    """Answers as told: by what is in the list, one after the other, then by a function."""

    clock: ManualClock
    first: list[Verdict] = field(default_factory=list)
    then: Callable[[Sent], Verdict | Awaitable[Verdict]] = lambda _sent: ACCEPTED
    sent: list[Sent] = field(default_factory=list)

    async def send(self, body: bytes, attempt: int, message: Message) -> Verdict:
        sent = Sent(self.clock.monotonic(), attempt, message, body)
        self.sent.append(sent)
        await asyncio.sleep(0)
        if self.first:
            return self.first.pop(0)
        answer = self.then(sent)
        return await answer if isinstance(answer, Awaitable) else answer

    def waits(self) -> list[float]:
        return [later.at - earlier.at for earlier, later in pairwise(self.sent)]

    def versions(self) -> list[Message]:
        return [sent.message for sent in self.sent]


def request(series: int = 3, *, bucket_id: int = 1, described: bool = False) -> Request:
    made = batch(bucket(bucket_id, START_MS, range(series), [1.0] * series))
    return Request(made, {V2: METADATA} if described else {})


class Scene:
    """A deliverer between nothing and a receiver that a test makes up."""

    def __init__(self, *verdicts: Verdict, clock: ManualClock | None = None) -> None:
        self.clock = clock or JumpingClock()
        self.receiver = Receiver(self.clock, list(verdicts))
        self.health = Health(self.clock)
        self.health.token_accepted()
        self.health.ledger_writable()
        self.metrics = Metrics(self.clock, self.health, version="1", sqlite_version="3", destinations=["prom", "other"])
        self.stopping = asyncio.Event()
        self.failures: list[str] = []
        self.deliverer = self.another("prom")

    def another(
        self,
        name: str = "prom",
        *,
        message: Message | None = V1,
        attempts: int | None = None,
        sender: Receiver | None = None,
        window_seconds: int = 0,
        **queue: Any,
    ) -> Deliverer:
        self.health.expect(f"push:{name}", allowance_seconds=500, liveness_seconds=500)
        self.health.completed(f"push:{name}")
        self.deliverer = Deliverer(
            DestinationSettings(
                name=name,
                url="http://127.0.0.1:9/",
                out_of_order_time_window_seconds=window_seconds,
                protobuf_message=message,
                queue=QueueSettings(**queue),
            ),
            sender=sender or self.receiver,
            clock=self.clock,
            health=self.health,
            metrics=self.metrics,
            note_failure=self._note,
            attempts_allowed=attempts,
        )
        return self.deliverer

    async def _note(self, reason: str) -> None:
        self.failures.append(reason)

    async def send(
        self,
        sent: Request | None = None,
        *,
        wanted: Callable[[], bool] = lambda: True,
        failures_allowed: int = FAILURES_ALLOWED,
    ) -> Accepted | Refused | Later | Interrupted:
        async def still_wanted() -> bool:
            return wanted()

        return await self.deliverer.send_until_decided(
            sent or request(), self.stopping, wanted=still_wanted, failures_allowed=failures_allowed
        )

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics._registry.get_sample_value(name, {"destination": "prom", **labels})
        assert found is not None
        return found

    def problems(self) -> dict[str, str]:
        return {problem.what: problem.text for problem in self.health.readiness().problems}


async def settle() -> None:
    """Let everybody come as far as they can while time stands still."""
    for _ in range(60):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------ attempts and waits


async def test_a_request_is_sent_until_it_is_accepted_with_the_same_bytes_and_attempts_counted_from_zero() -> None:
    scene = Scene(DOWN, NO_ANSWER, BUSY, DOWN)
    assert await scene.send() == ACCEPTED
    assert [sent.attempt for sent in scene.receiver.sent] == [0, 1, 2, 3, 4]
    assert len({sent.body for sent in scene.receiver.sent}) == 1
    assert scene.failures == [DOWN.reason, NO_ANSWER.reason, BUSY.reason, DOWN.reason]


async def test_a_refusal_is_handed_on_at_once() -> None:
    scene = Scene(Refused(422, "no"))
    assert await scene.send() == Refused(422, "no")
    assert scene.failures == ["refused with status 422: no"]
    assert scene.deliverer.accepted_requests == 0


@pytest.mark.parametrize("allowed", [1, 2, 5])
async def test_what_fails_often_enough_by_something_that_may_be_in_it_is_handed_back(allowed: int) -> None:
    scene = Scene(*[DOWN] * 20)
    assert await scene.send(failures_allowed=allowed) == DOWN
    assert len(scene.receiver.sent) == allowed


async def test_a_limit_counts_as_a_failure_except_where_nothing_may_go_past_it() -> None:
    scene = Scene(*[DOWN] * 4, *[BUSY] * 30, DOWN)
    assert await scene.send() == DOWN
    assert len(scene.receiver.sent) == 35
    scene = Scene(*[DOWN] * 4, BUSY)
    scene.another(window_seconds=3600)
    assert await scene.send() == BUSY
    assert len(scene.receiver.sent) == 5


@given(
    least=st.floats(0.01, 30),
    most=st.floats(0.01, 300),
    asked=st.lists(st.none() | st.floats(0, 300), min_size=1, max_size=40),
)
async def test_waits_grow_to_the_cap_never_shrink_and_differ_by_a_tenth_at_most(
    least: float, most: float, asked: Sequence[float | None]
) -> None:
    most = max(least, most)
    scene = Scene(*(Later("busy", Fate.RATE_LIMITED, 429, seconds) for seconds in asked))
    scene.another(min_backoff_seconds=least, max_backoff_seconds=most)
    await scene.send()
    waits = scene.receiver.waits()
    longest = 0.0
    for attempt, (wait, seconds) in enumerate(zip(waits, asked, strict=True)):
        wanted = max(min(least * 2.0**attempt, most), seconds or 0.0)
        longest = max(longest, wanted)
        assert wanted - 1e-6 <= wait <= longest * 1.1 + 1e-6
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(waits))


async def test_workers_that_met_the_same_outage_do_not_come_back_at_the_same_instant() -> None:
    waits = set()
    for _ in range(20):
        scene = Scene(DOWN)
        await scene.send()
        waits.add(round(scene.receiver.waits()[0], 6))
    assert len(waits) > 10


def test_after_any_number_of_failures_there_is_a_wait_within_the_cap() -> None:
    for failures in (0, 1, 31, 32, 1_000_000):
        assert 1.0 <= Scene().deliverer.pause_seconds(failures) <= 66.0
        assert 0.1 <= Scene().another(max_backoff_seconds=0.1).pause_seconds(failures) <= 0.11


async def test_what_is_given_up_meanwhile_is_not_sent_again() -> None:
    scene = Scene(*[DOWN] * 9)
    assert await scene.send(wanted=lambda: len(scene.receiver.sent) < 3) is Interrupted.OVERTAKEN
    assert len(scene.receiver.sent) == 3


async def test_a_stop_ends_a_wait_at_once() -> None:
    scene = Scene(*[DOWN] * 9, clock=ManualClock())
    sending = asyncio.create_task(scene.send())
    await settle()
    scene.stopping.set()
    assert await sending is Interrupted.STOPPING
    assert len(scene.receiver.sent) == 1
    assert scene.clock.monotonic() == 0


async def test_an_answer_that_comes_while_it_stops_counts() -> None:
    scene = Scene()

    def stop(_sent: Sent) -> Verdict:
        scene.stopping.set()
        return ACCEPTED

    scene.receiver.then = stop
    assert await scene.send() == ACCEPTED


async def test_what_a_receiver_asks_for_is_heeded_by_all_lanes() -> None:
    scene = Scene(BUSY_FOR_MINUTES, clock=ManualClock())
    first = asyncio.create_task(scene.send(request(bucket_id=1)))
    await settle()
    others = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in (2, 3)]
    await scene.clock.advance(199)
    assert len(scene.receiver.sent) == 1
    assert scene.health.liveness().ok
    await scene.clock.advance(30)
    assert [await lane for lane in (first, *others)] == [ACCEPTED] * 3


async def test_a_shorter_wait_that_another_lane_is_asked_for_does_not_end_a_longer_one() -> None:
    scene = Scene(BUSY_FOR_MINUTES, replace(BUSY_FOR_MINUTES, retry_after_seconds=10.0), clock=ManualClock())
    lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in (1, 2)]
    await settle()
    await scene.clock.advance(199)
    assert len(scene.receiver.sent) == 2
    await scene.clock.advance(30)
    assert [await lane for lane in lanes] == [ACCEPTED] * 2


async def test_a_stop_ends_the_wait_that_a_receiver_asked_for() -> None:
    scene = Scene(BUSY_FOR_MINUTES, clock=ManualClock())
    lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in (1, 2)]
    await settle()
    scene.stopping.set()
    assert await lanes[0] is Interrupted.STOPPING
    await lanes[1]
    assert scene.clock.monotonic() == 0


# ------------------------------------------------------------------------------------------ a run that ends


async def test_a_run_that_ends_gives_up_after_its_attempts() -> None:
    scene = Scene(*[DOWN] * 9)
    scene.another(attempts=3)
    assert await scene.send() is Interrupted.STOPPING
    assert len(scene.receiver.sent) == 3


async def test_a_run_that_ends_looks_for_the_cause_where_its_attempts_are_enough_for_that() -> None:
    scene = Scene(*[DOWN] * 9)
    scene.another(attempts=FAILURES_ALLOWED)
    assert await scene.send() == DOWN
    assert len(scene.receiver.sent) == FAILURES_ALLOWED


async def test_a_run_that_ends_does_not_wait_for_as_long_as_a_receiver_may_ask() -> None:
    scene = Scene(Later("HTTP 429: busy", Fate.RATE_LIMITED, 429, 60.0), BUSY_FOR_MINUTES)
    scene.another(attempts=9)
    assert await scene.send() is Interrupted.STOPPING
    assert len(scene.receiver.sent) == 2
    assert scene.clock.monotonic() < 70


async def test_a_run_that_ends_does_not_wait_for_probes() -> None:
    scene = Scene(*[UNAUTHORIZED] * 99)
    scene.another(attempts=5, parked_probe_interval_seconds=3600)
    assert await scene.send() is Interrupted.STOPPING
    assert len(scene.receiver.sent) == 5
    assert scene.clock.monotonic() < 1.1 * (1 + 2 + 4 + 8) + 1


# ------------------------------------------------------------------------------------------ parked


@pytest.mark.parametrize("parking", [UNAUTHORIZED, NO_NAME], ids=["HTTP", "no answer"])
async def test_to_a_parked_destination_goes_one_probe_per_interval_over_all_lanes(parking: Later) -> None:
    scene = Scene(clock=ManualClock())

    async def slowly(_sent: Sent) -> Verdict:
        await settle()  # the time of every other lane to probe has come, too, when the answer is there
        return parking

    scene.receiver.then = slowly
    lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in range(4)]
    await settle()
    under_way = len(scene.receiver.sent)
    assert under_way <= 4, "what was under way when the first answer came"
    await settle()
    for probes in range(1, 11):
        await scene.clock.advance(60)
        await settle()
        await settle()
        assert len(scene.receiver.sent) == under_way + probes
    assert scene.deliverer.parked == parking.reason
    scene.stopping.set()
    assert [await lane for lane in lanes] == [Interrupted.STOPPING] * 4


async def test_what_has_failed_waits_its_time_also_where_the_destination_is_parked_and_corrected_meanwhile() -> None:
    scene = Scene(clock=ManualClock())
    scene.another(parked_probe_interval_seconds=1)
    failing, other = request(), request(4)
    others: list[asyncio.Task[Any]] = []

    async def answer(sent: Sent) -> Verdict:
        if sent.body != failing.body(V1):
            return ACCEPTED if sent.attempt else UNAUTHORIZED
        if sent.attempt == 3:
            others.append(asyncio.create_task(scene.send(other)))
            await settle()
            assert scene.deliverer.parked
        return NO_ANSWER if sent.attempt <= 3 else ACCEPTED

    scene.receiver.then = answer
    sending = asyncio.create_task(scene.send(failing))
    for _ in range(60):
        await scene.clock.advance(1.0)
        await settle()
    assert [await sending, await others[0]] == [ACCEPTED] * 2
    sent_at = [sent.at for sent in scene.receiver.sent if sent.body == failing.body(V1)]
    assert all(later - earlier >= wait for (earlier, later), wait in zip(pairwise(sent_at), [1, 2, 4, 8], strict=True))


async def test_what_a_probe_gets_through_resumes_all_lanes_at_once() -> None:
    scene = Scene(clock=ManualClock())
    scene.receiver.then = lambda _sent: UNAUTHORIZED
    lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in range(4)]
    await settle()
    await scene.clock.advance(300)
    assert not any(lane.done() for lane in lanes)
    scene.receiver.then = lambda _sent: ACCEPTED
    await scene.clock.advance(60)
    await settle()
    assert [await lane for lane in lanes] == [ACCEPTED] * 4
    assert scene.deliverer.parked is None
    assert scene.clock.monotonic() == 360


@pytest.mark.parametrize("answer", [ACCEPTED, Refused(400, "no"), DOWN, BUSY], ids=lambda answer: type(answer).__name__)
async def test_any_other_answer_ends_the_parking(answer: Verdict) -> None:
    scene = Scene(UNAUTHORIZED, answer, clock=ManualClock())
    sending = asyncio.create_task(scene.send())
    await scene.clock.advance(60)
    assert scene.deliverer.parked is None
    assert scene.value("cfrw_push_parked") == 0
    scene.stopping.set()
    await sending


async def test_a_silence_does_not_end_the_parking() -> None:
    scene = Scene(UNAUTHORIZED, NO_ANSWER, NO_ANSWER, clock=ManualClock())
    sending = asyncio.create_task(scene.send())
    for probes in (1, 2):
        await scene.clock.advance(60)
        assert len(scene.receiver.sent) == 1 + probes
        assert scene.deliverer.parked == UNAUTHORIZED.reason
        assert scene.problems().keys() == {"destination prom"}
    await scene.clock.advance(60)
    assert await sending == ACCEPTED
    assert scene.deliverer.parked is None


async def test_a_parked_destination_is_told_loudly_and_once_and_that_is_taken_back() -> None:
    scene = Scene(UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED)
    with capture_logs() as lines:
        assert await scene.send() == ACCEPTED
    assert [line["log_level"] for line in lines if "parked" in line["event"]] == ["error"]
    assert any("delivery goes on" in line["event"] for line in lines)
    assert "destination prom" not in scene.problems()

    scene = Scene(UNAUTHORIZED, clock=ManualClock())
    sending = asyncio.create_task(scene.send())
    await settle()
    assert scene.problems()["destination prom"] == "HTTP 401: wrong password"
    assert scene.value("cfrw_push_parked") == 1
    assert scene.deliverer.parked_at == scene.clock.now()
    await scene.clock.advance(60)
    assert await sending == ACCEPTED
    assert scene.problems() == {}
    assert scene.value("cfrw_push_parked") == 0
    assert scene.deliverer.parked_at is None


async def test_a_parked_destination_turns_as_far_as_anybody_can_tell() -> None:
    scene = Scene(clock=ManualClock())
    scene.receiver.then = lambda _sent: UNAUTHORIZED
    lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in range(3)]
    for _ in range(60):
        await scene.clock.advance(60)
        assert scene.health.liveness().ok
        assert scene.problems().keys() == {"destination prom"}
    scene.stopping.set()
    await asyncio.gather(*lanes)


async def test_other_destinations_are_not_affected() -> None:
    scene = Scene(clock=ManualClock())
    parked = scene.deliverer
    scene.receiver.then = lambda _sent: UNAUTHORIZED
    waiting = asyncio.create_task(scene.send())
    await settle()
    scene.another("other", sender=Receiver(scene.clock))
    assert await scene.send() == ACCEPTED
    assert parked.parked is not None
    assert scene.clock.monotonic() == 0
    scene.stopping.set()
    await waiting


async def test_a_probe_waits_as_long_as_the_receiver_asks() -> None:
    scene = Scene(Later("HTTP 403: later", Fate.PARK, 403, 200.0), clock=ManualClock())
    sending = asyncio.create_task(scene.send())
    await scene.clock.advance(199)
    assert len(scene.receiver.sent) == 1
    await scene.clock.advance(1)
    assert await sending == ACCEPTED


async def test_probing_is_no_failure_of_what_is_in_the_request() -> None:
    scene = Scene(*[UNAUTHORIZED] * 50)
    assert await scene.send(failures_allowed=1) == ACCEPTED
    assert scene.receiver.waits() == pytest.approx([60.0] * 50)
    assert [sent.attempt for sent in scene.receiver.sent] == list(range(51))


# ------------------------------------------------------------------------------------------ versions


def automatic(*verdicts: Verdict, clock: ManualClock | None = None, **options: Any) -> Scene:
    scene = Scene(*verdicts, clock=clock)
    scene.another(message=None, **options)
    return scene


async def test_version_2_is_tried_first_and_kept_where_it_is_understood() -> None:
    scene = automatic(WRITTEN, WRITTEN)
    for _ in range(2):
        assert await scene.send() == WRITTEN
    assert scene.receiver.versions() == [V2, V2]
    assert scene.value("cfrw_push_message_version") == 2
    assert scene.value("cfrw_push_fallen_back") == 0


@pytest.mark.parametrize("answer", [UNSUPPORTED, SILENT, BAD_IN_1], ids=["415", "a silent 2xx", "400 at first contact"])
async def test_a_receiver_that_does_not_know_version_2_gets_the_same_rows_at_once_in_1(answer: Verdict) -> None:
    scene = automatic(answer)
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V1]
    first, second = (read_request(sent.body, sent.message) for sent in scene.receiver.sent)
    assert first.series == second.series
    assert scene.receiver.waits() == [0.0]
    assert [sent.attempt for sent in scene.receiver.sent] == [0, 0], "in 1.0 it is the first"
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V1, V1]
    assert scene.value("cfrw_push_message_version") == 1
    assert scene.value("cfrw_push_fallen_back") == 1
    assert scene.deliverer.parked is None


@pytest.mark.parametrize("answer", [UNSUPPORTED, SILENT, BAD_IN_1], ids=["415", "a silent 2xx", "400 at first contact"])
async def test_all_lanes_that_are_under_way_in_version_2_fall_back_and_nothing_is_parked_or_refused(
    answer: Verdict,
) -> None:
    scene = automatic(clock=ManualClock())
    scene.receiver.then = lambda sent: answer if sent.message is V2 else ACCEPTED
    with capture_logs() as lines:
        lanes = [asyncio.create_task(scene.send(request(bucket_id=number))) for number in range(4)]
        await settle()
        assert scene.clock.monotonic() == 0
        assert [lane.done() and lane.result() for lane in lanes] == [ACCEPTED] * 4
    assert sorted(scene.receiver.versions()) == sorted([V2, V1] * 4)
    assert scene.deliverer.parked is None
    assert not [line for line in lines if line["log_level"] == "error"]
    assert len(lines) == 1, "that it has fallen back is told once"


async def test_a_400_that_shows_that_version_2_was_read_is_a_refusal_like_any_other() -> None:
    scene = automatic(BAD_IN_2, BAD_IN_1)
    assert await scene.send() == BAD_IN_2
    assert scene.receiver.versions() == [V2]


async def test_a_receiver_that_has_shown_by_a_refusal_that_it_knows_version_2_is_sent_it_also_when_it_fails() -> None:
    scene = automatic(Refused(400, "out of bounds", speaks_2=True), *[DOWN] * FAILURES_ALLOWED)
    await scene.send()
    await scene.send()
    assert set(scene.receiver.versions()) == {V2}


async def test_a_400_without_any_header_after_an_acceptance_is_a_refusal_where_version_1_is_refused_as_well() -> None:
    scene = automatic(WRITTEN, BAD_IN_1, BAD_IN_1)
    await scene.send()
    assert await scene.send() == BAD_IN_1
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V2, V1, V2]


async def test_a_receiver_in_whose_place_one_comes_that_knows_version_1_only_gets_that_and_nothing_is_refused() -> None:
    scene = automatic(WRITTEN)
    await scene.send()
    scene.receiver.then = lambda sent: ACCEPTED if sent.message is V1 else BAD_IN_1
    assert await scene.send() == ACCEPTED
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V2, V1, V1]
    assert scene.deliverer.protocol.why_older is not None


async def test_a_400_of_a_receiver_that_does_not_know_version_1_is_a_refusal_and_parks_nothing() -> None:
    scene = automatic(WRITTEN, BAD_IN_1, Later("HTTP 415: what is this?", Fate.PARK, 415))
    await scene.send()
    assert await scene.send() == BAD_IN_1
    assert scene.deliverer.parked is None
    assert scene.receiver.versions() == [V2, V2, V1]


async def test_a_failure_in_version_1_beside_a_400_in_version_2_decides_nothing() -> None:
    scene = automatic(WRITTEN, BAD_IN_1, DOWN)
    await scene.send()
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V2, V1, V2]


@pytest.mark.parametrize("answer", [UNSUPPORTED, SILENT])
async def test_a_receiver_that_forgets_version_2_falls_back_also_later(answer: Verdict) -> None:
    scene = automatic(WRITTEN, answer)
    await scene.send()
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [V2, V2, V1]


async def test_first_requests_that_fail_again_and_again_are_tried_in_version_1_before_anything_else_is_blamed() -> None:
    scene = automatic()
    scene.receiver.then = lambda sent: DOWN if sent.message is V2 else ACCEPTED
    assert await scene.send() == ACCEPTED
    assert scene.receiver.versions() == [*[V2] * FAILURES_ALLOWED, V1]
    assert "failed" in (scene.deliverer.protocol.why_older or "")


async def test_a_receiver_that_was_only_starting_gets_version_2_again_after_ten_minutes() -> None:
    scene = automatic(*[DOWN] * FAILURES_ALLOWED)
    await scene.send()
    scene.receiver.then = lambda _sent: WRITTEN
    await scene.clock.advance(590)
    await scene.send()
    assert scene.receiver.versions()[-1] == V1
    await scene.clock.advance(10)
    scene.receiver.first = [DOWN] * (FAILURES_ALLOWED - 1)  # as many failures are needed as at first
    for seconds in (0.0, DAY_SECONDS):
        await scene.clock.advance(seconds)
        await scene.send()
    assert scene.receiver.versions()[-FAILURES_ALLOWED - 1 :] == [V2] * (FAILURES_ALLOWED + 1)


async def test_a_receiver_that_does_not_answer_at_all_is_not_taken_for_one_that_does_not_know_version_2() -> None:
    scene = automatic(*[NO_ANSWER] * 99)
    assert await scene.send() == NO_ANSWER
    assert set(scene.receiver.versions()) == {V2}


async def test_what_fails_in_version_2_once_that_was_understood_is_handed_back() -> None:
    scene = automatic(WRITTEN)
    await scene.send()
    scene.receiver.then = lambda _sent: DOWN
    assert await scene.send() == DOWN
    assert set(scene.receiver.versions()) == {V2}


async def test_what_fails_in_both_versions_is_handed_back() -> None:
    scene = automatic(*[DOWN] * 99)
    assert await scene.send() == DOWN
    assert scene.receiver.versions() == [*[V2] * FAILURES_ALLOWED, *[V1] * FAILURES_ALLOWED]


async def test_version_2_is_tried_again_after_a_day() -> None:
    scene = automatic(clock=ManualClock())
    scene.receiver.then = lambda sent: UNSUPPORTED if sent.message is V2 else ACCEPTED
    await scene.send()
    await scene.clock.advance(DAY_SECONDS - 1)
    await scene.send()
    assert scene.receiver.versions() == [V2, V1, V1]
    await scene.clock.advance(1)
    await scene.send()
    assert scene.receiver.versions() == [V2, V1, V1, V2, V1]
    await scene.clock.advance(DAY_SECONDS)
    scene.receiver.then = lambda _sent: WRITTEN
    await scene.send()
    await scene.clock.advance(10 * DAY_SECONDS)
    await scene.send()
    assert scene.receiver.versions()[5:] == [V2, V2]
    assert scene.value("cfrw_push_message_version") == 2
    assert scene.value("cfrw_push_fallen_back") == 0


@pytest.mark.parametrize("answer", [UNSUPPORTED, SILENT], ids=["415", "a silent 2xx"])
async def test_a_configured_version_never_falls_back_but_parks_and_says_so(answer: Later) -> None:
    scene = Scene(*[answer] * 3, clock=ManualClock())
    scene.another(message=V2)
    sending = asyncio.create_task(scene.send())
    await settle()
    text = scene.problems()["destination prom"]
    assert answer.reason in text
    assert "protobuf_message=io.prometheus.write.v2.Request" in text, "it is what somebody has to change"
    assert scene.failures == [scene.deliverer.parked]
    await scene.clock.advance(180)
    assert await sending == ACCEPTED
    assert set(scene.receiver.versions()) == {V2}


async def test_a_configured_version_takes_a_400_for_a_refusal_and_hands_failures_back() -> None:
    for answer in (BAD_IN_1, DOWN):
        scene = Scene(*[answer] * 99)
        scene.another(message=V2)
        assert await scene.send() == answer
        assert set(scene.receiver.versions()) == {V2}


# ------------------------------------------------------------------------------------------ what is told


async def test_what_the_receiver_says_that_it_has_not_written_is_counted_and_logged() -> None:
    scene = automatic(Accepted(200, 1), Accepted(200, 3), Accepted(200, 0), Accepted(200, 99), ACCEPTED)
    with capture_logs() as lines:
        for _ in range(5):
            assert isinstance(await scene.send(), Accepted)
    assert scene.value("cfrw_push_unwritten_samples_total") == 2 + 3
    assert [(line["log_level"], line["samples"], line["written"]) for line in lines] == [
        ("warning", 3, 1),
        ("warning", 3, 0),
    ]


async def test_acceptances_are_evidence_that_the_receiver_works() -> None:
    scene = Scene(DOWN, BUSY)
    await scene.send()
    await scene.send()
    assert scene.deliverer.accepted_requests == 2
    assert scene.value("cfrw_push_last_success_timestamp_seconds") == scene.clock.now()
    assert scene.value("cfrw_push_queue_highest_sent_timestamp_seconds") == START_MS / 1000
    assert scene.value("cfrw_push_samples_retried_total") == 2 * 3


async def test_a_request_is_encoded_once_for_each_version_with_what_is_known_of_its_metrics() -> None:
    made = request(described=True)
    assert made.body(V2) is made.body(V2)
    assert made.body(V1) is made.body(V1)
    assert read_request(made.body(V2), V2).metadata == METADATA
    assert read_request(made.body(V1), V1).metadata == {}
    assert (made.bucket_ids, made.sample_count) == ((1,), 3)
    assert made.size_bytes > 0


async def test_a_passing_failure_of_the_receiver_leaves_the_worker_ready_and_alive() -> None:
    scene = Scene(clock=ManualClock())
    scene.another(max_backoff_seconds=300)
    scene.receiver.then = lambda _sent: BUSY
    sending = asyncio.create_task(scene.send())
    for _ in range(120):
        await scene.clock.advance(60)
        assert scene.health.liveness().ok
        assert scene.problems() == {}
    scene.stopping.set()
    await sending
