from collections.abc import Sequence
from typing import Any

import pytest

from tests.clocks import ManualClock
from worker.check.finding import Finding, State
from worker.check.probe import AGE_LABEL, Window
from worker.check.receiver import Ages, age_findings, ages_of, look_at_receiver
from worker.config import CloudflareSettings, DestinationSettings, Message
from worker.remote_write import Accepted, Fate, Later, Refused, Verdict
from worker.remote_write.decode import read_write_request

MINUTE, HOUR, DAY = 60, 3600, 86_400
AGES = Ages(first_seconds=71 * MINUTE, oldest_seconds=25 * HOUR, end_seconds=11 * MINUTE, replay_hours=24)
SILENT = Later("HTTP 204 without any header", Fate.OLDER_MESSAGE, 204)


class Receiver:
    """Answers the versions of remote write as it is told, and takes samples up to an age."""

    def __init__(
        self, takes_seconds: float = 30 * DAY, *, to_2: Verdict | None = None, to_1: Verdict | None = None
    ) -> None:
        self.ahead_seconds: float | None = 0.2
        self.ages: list[int] = []
        self.messages: list[Message] = []
        self._takes_seconds = takes_seconds
        self._told = {Message.V1: to_1, Message.V2: to_2}

    async def send(self, body: bytes, attempt: int, message: Message = Message.V1) -> Verdict:
        assert attempt == 0
        self.messages.append(message)
        if (told := self._told[message]) is not None:
            return told
        series = read_write_request(body, message)
        if not series:
            return Accepted(204, 0 if message is Message.V2 else None)
        age = int(dict(series[0].labels)[AGE_LABEL])
        self.ages.append(age)
        if age > self._takes_seconds:
            return Refused(400, "out of bounds", speaks_2=message is Message.V2)
        return Accepted(204, 1 if message is Message.V2 else None)


def destination(**changes: Any) -> DestinationSettings:
    return DestinationSettings.model_validate({"name": "prom", "url": "http://prom.test/write?key=canary"} | changes)


async def looked(receiver: Receiver, *, probe: bool = True, **changes: Any) -> list[Finding]:
    given = destination(**changes)
    return [each async for each in look_at_receiver(given, receiver, ManualClock(), AGES, probe=probe)]


def states(findings: Sequence[Finding]) -> list[tuple[State, str]]:
    return [(finding.state, finding.section) for finding in findings]


async def test_a_receiver_that_takes_all_is_sound_in_every_respect() -> None:
    receiver = Receiver()
    findings = await looked(receiver, out_of_order_time_window="48h")
    assert states(findings) == [(State.OK, "destination"), (State.OK, "clock"), (State.OK, "age window")]
    assert findings[0].what == "prom: http://prom.test/write?*** takes requests of this worker, in remote write 2.0"
    assert receiver.ages == [71 * MINUTE, 25 * HOUR, 47 * HOUR + 55 * MINUTE]
    assert set(receiver.messages) == {Message.V2}


@pytest.mark.parametrize("to_2", [SILENT, Refused(400, "bad"), Later("HTTP 500: what?", status=500)])
async def test_a_receiver_that_does_not_know_2_is_spoken_to_in_1(to_2: Verdict) -> None:
    receiver = Receiver(to_2=to_2)
    first, *_, age = await looked(receiver)
    assert first.state is State.OK
    assert "in remote write 1.0 (" in first.what
    assert age.state is State.OK
    assert receiver.messages == [Message.V2] + [Message.V1] * 3


@pytest.mark.parametrize(
    ("to_2", "to_1", "state", "words"),
    [
        (Later("HTTP 401: no", Fate.PARK, 401), None, State.FAILURE, "HTTP 401: no"),
        (Later("no answer came within 30 s"), None, State.FAILURE, "no answer came"),
        (Later("HTTP 503: busy", status=503), Later("HTTP 503: busy", status=503), State.FAILURE, "busy"),
        (Later("HTTP 429: slow", Fate.RATE_LIMITED, 429), None, State.WARNING, "wants fewer requests"),
        (SILENT, Later("HTTP 403: not you", Fate.PARK, 403), State.FAILURE, "not you"),
    ],
)
async def test_what_does_not_answer_as_it_should_is_told_and_sent_no_sample(
    to_2: Verdict, to_1: Verdict | None, state: State, words: str
) -> None:
    receiver = Receiver(to_2=to_2, to_1=to_1)
    first, _, age = await looked(receiver)
    assert first.state is state
    assert words in first.what
    assert first.to_do
    assert (age.state, receiver.ages) == (State.SKIPPED, [])


async def test_a_version_that_is_configured_and_not_known_is_a_failure() -> None:
    first, *_ = await looked(Receiver(to_2=SILENT), protobuf_message="io.prometheus.write.v2.Request")
    assert first.state is State.FAILURE
    assert "protobuf_message: io.prometheus.write.v2.Request" in first.to_do


async def test_1_is_spoken_at_once_where_it_is_configured() -> None:
    receiver = Receiver()
    await looked(receiver, protobuf_message="prometheus.WriteRequest")
    assert set(receiver.messages) == {Message.V1}


async def test_an_empty_request_that_is_refused_leaves_the_answer_to_a_sample() -> None:
    class Picky(Receiver):
        async def send(self, body: bytes, attempt: int, message: Message = Message.V1) -> Verdict:
            found = await super().send(body, attempt, message)
            return found if self.ages else Refused(400, "empty body", speaks_2=True)

    first, _, age = await looked(Picky())
    assert (first.state, age.state) == (State.WARNING, State.OK)


async def test_without_probing_no_sample_is_sent_and_only_the_configuration_is_judged() -> None:
    receiver = Receiver()
    assert (await looked(receiver, probe=False))[-1].state is State.SKIPPED
    short = (await looked(receiver, probe=False, out_of_order_time_window="12h"))[-1]
    assert short.state is State.WARNING
    assert "what is older than the window is given up" in short.what
    assert receiver.ages == []


@pytest.mark.parametrize(("ahead_seconds", "told"), [(95.0, "1m 35s ahead of prom's"), (-3600.0, "1h behind prom's")])
async def test_a_clock_that_differs_is_a_warning(ahead_seconds: float, told: str) -> None:
    receiver = Receiver()
    receiver.ahead_seconds = ahead_seconds
    clock = (await looked(receiver))[1]
    assert (clock.state, clock.section) == (State.WARNING, "clock")
    assert told in clock.what


async def test_a_receiver_that_does_not_tell_its_time_is_not_judged_by_it() -> None:
    receiver = Receiver()
    receiver.ahead_seconds = None
    assert "clock" not in {finding.section for finding in await looked(receiver)}


async def test_a_window_that_is_configured_too_short_for_anything_sent_is_no_reason_to_send_what_is_younger() -> None:
    receiver = Receiver()
    (short,) = [each for each in await looked(receiver, out_of_order_time_window="10m") if each.section == "age window"]
    assert short.state is State.WARNING
    assert min(receiver.ages) == AGES.first_seconds


@pytest.mark.parametrize(
    ("configured", "window", "state", "what", "to_do"),
    [
        # All that is sent is taken.
        ("48h", Window(172_500), State.OK, "takes samples of 1d 23h", ""),
        ("0", Window(90_000), State.OK, "takes samples of 1d 1h", "many windows travel in one request"),
        # The newest window is refused.
        ("0", Window(3000, 4200, "no"), State.FAILURE, "between 50m and 1h 10m (no)", "26h or more"),
        (
            "0",
            Window(3000, 4200, "no"),
            State.FAILURE,
            "1h 11m",
            "CF_SAMPLE_TIMESTAMP=end, with which they are 11m old",
        ),
        ("0", Window(600, 660, "no"), State.FAILURE, "between 10m and 11m", "26h or more"),
        ("0", Window(None, 120, "bad label"), State.FAILURE, "nor of 2m: bad label", "whether that is about age"),
        # Only the newest are taken.
        ("0", Window(30_000, 32_400, "no"), State.WARNING, "between 8h 20m and 9h", "CF_REPLAY_HOURS=7,"),
        ("0", Window(4260, 4300, "no"), State.WARNING, "With CF_REPLAY_HOURS=24", "26h or more"),
        # The configuration says more than there is, or less.
        ("48h", Window(90_000, 108_000, "no"), State.WARNING, "is 2d here, but its window ends between", "or the dest"),
        ("12h", Window(90_000), State.WARNING, "what is older than the window is given up", "26h or more"),
        # It did not say.
        ("0", Window(4260, silent="busy"), State.WARNING, "in between: busy", "check again"),
    ],
)
def test_what_the_ages_that_are_taken_mean(
    configured: str, window: Window, state: State, what: str, to_do: str
) -> None:
    (finding,) = age_findings(destination(out_of_order_time_window=configured), AGES, window)
    assert finding.state is state
    assert what in finding.what
    assert to_do in finding.to_do
    assert bool(finding.to_do) is bool(to_do)


def test_a_window_that_is_shorter_than_both_what_is_sent_and_what_is_configured_is_told_of_both() -> None:
    findings = age_findings(destination(out_of_order_time_window="48h"), AGES, Window(32_000, 43_200, "no"))
    assert [finding.state for finding in findings] == [State.WARNING, State.WARNING]


@pytest.mark.parametrize(
    ("changes", "delay_seconds", "ages"),
    [
        ({}, 600, Ages(660 + HOUR, 25 * HOUR, 660, 24)),
        ({"sample_timestamp": "end"}, 600, Ages(660, 24 * HOUR, 660, 24)),
        ({"bucket_seconds": 86_400, "replay_hours": 1}, 900, Ages(960 + DAY, DAY + HOUR, 960, 1)),
        ({"bucket_seconds": 300, "collection_interval_seconds": 300}, 300, Ages(900, DAY + 300, 600, 24)),
    ],
)
def test_how_old_samples_are_when_they_are_sent(changes: dict[str, Any], delay_seconds: int, ages: Ages) -> None:
    settings = CloudflareSettings.model_validate({"api_token": "t"} | changes)
    assert ages_of(settings, delay_seconds) == ages
