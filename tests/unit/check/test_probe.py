import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.check.probe import (
    AGE_LABEL,
    MAX_REQUESTS,
    PROBE_METRIC,
    Answer,
    Silent,
    TooOld,
    Window,
    answer_of,
    empty_body,
    find_window,
    probe_body,
)
from worker.config import Message
from worker.remote_write import Accepted, Fate, Later, Refused
from worker.remote_write.decode import read_write_request

MINUTE, HOUR, DAY = 60, 3600, 86_400
FIRST = 71 * MINUTE
YEAR = 365 * DAY


class Receiver:
    """Takes samples up to an age, counted from its newest one; a strict one takes no more than an hour."""

    def __init__(self, takes_seconds: float, *, newest_age_seconds: float = 0.0) -> None:
        self.asked: list[int] = []
        self.newest_age_seconds = newest_age_seconds
        self._takes_seconds = takes_seconds

    async def __call__(self, age_seconds: int) -> Answer:
        self.asked.append(age_seconds)
        if age_seconds > self.newest_age_seconds + self._takes_seconds:
            return TooOld("HTTP 400: out of bounds")
        self.newest_age_seconds = min(self.newest_age_seconds, age_seconds)
        return Accepted(204)


async def test_a_receiver_that_takes_all_is_asked_for_nothing_but_what_is_to_be_known() -> None:
    receiver = Receiver(2 * DAY)
    window = await find_window(receiver, first_seconds=FIRST, older_seconds=[47 * HOUR, 25 * HOUR])
    assert window == Window(taken_seconds=47 * HOUR)
    assert receiver.asked == [FIRST, 25 * HOUR, 47 * HOUR]


async def test_a_strict_receiver_is_found_to_take_an_hour() -> None:
    window = await find_window(Receiver(HOUR), first_seconds=FIRST, older_seconds=[25 * HOUR], younger_seconds=[660])
    assert window == Window(50 * MINUTE, 70 * MINUTE, "HTTP 400: out of bounds")


async def test_a_receiver_that_takes_nothing_is_asked_for_younger_samples_and_then_left_alone() -> None:
    receiver = Receiver(-1)
    window = await find_window(receiver, first_seconds=FIRST, older_seconds=[25 * HOUR], younger_seconds=[660])
    assert window == Window(None, 120, "HTTP 400: out of bounds")
    assert receiver.asked == [FIRST, 660, 120]


async def test_nothing_newer_than_what_the_worker_sends_goes_to_a_receiver_that_takes_that() -> None:
    # A strict receiver that nobody else writes to: a sample of now would shut it to every window of an hour.
    receiver = Receiver(HOUR, newest_age_seconds=2 * HOUR)
    await find_window(receiver, first_seconds=FIRST, older_seconds=[25 * HOUR], younger_seconds=[660])
    assert receiver.newest_age_seconds == FIRST


async def test_asking_ends_where_the_receiver_does_not_say() -> None:
    async def ask(age_seconds: int) -> Answer:
        return Accepted(204) if age_seconds < HOUR else Silent("no answer came within 30 s")

    window = await find_window(ask, first_seconds=660, older_seconds=[25 * HOUR], younger_seconds=[60])
    assert window == Window(taken_seconds=660, silent="no answer came within 30 s")


@settings(max_examples=60)
@given(st.integers(0, 2 * YEAR), st.integers(1, 3 * DAY), st.lists(st.integers(1, YEAR), max_size=2))
async def test_the_end_of_the_window_lies_between_what_is_told_in_few_requests(
    takes_seconds: int, first_seconds: int, older_seconds: list[int]
) -> None:
    receiver = Receiver(takes_seconds)
    older = [first_seconds + age for age in older_seconds]
    window = await find_window(
        receiver, first_seconds=first_seconds, older_seconds=older, younger_seconds=[min(660, first_seconds)]
    )
    assert len(receiver.asked) == len(set(receiver.asked)) <= MAX_REQUESTS
    if window.taken_seconds is not None:
        assert window.taken_seconds <= takes_seconds
        assert all(window.takes(age) for age in [first_seconds, *older] if age <= window.taken_seconds)
    if window.refused_seconds is not None:
        assert window.refused_seconds > takes_seconds
    for age in (first_seconds, *older):
        assert window.takes(age) is (age <= takes_seconds) or window.taken_seconds is None
    if window.taken_seconds and window.refused_seconds and 120 <= window.taken_seconds < YEAR:
        # No step of the ladder is more than two and a half times the one before.
        assert window.refused_seconds <= 2.5 * window.taken_seconds


@pytest.mark.parametrize("message", list(Message))
def test_a_probe_is_one_sample_of_a_name_of_its_own_with_the_labels_of_this_worker(message: Message) -> None:
    body = probe_body(4260, 1_750_000_000.25, {"cluster": "a", AGE_LABEL: "theirs"}, message)
    (series,) = read_write_request(body, message)
    assert dict(series.labels) == {"__name__": PROBE_METRIC, AGE_LABEL: "4260", "cluster": "a"}
    assert series.samples == ((1_749_995_740_250, 1.0),)


@pytest.mark.parametrize("message", list(Message))
def test_an_empty_request_has_no_sample(message: Message) -> None:
    assert read_write_request(empty_body(message), message) == []


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        (Accepted(204), Accepted(204)),
        (Accepted(204, 1), Accepted(204, 1)),
        (Accepted(200, 0), TooOld("HTTP 200, and that it has written nothing")),
        (Refused(400, "out of bounds"), TooOld("HTTP 400: out of bounds")),
        (Later("HTTP 500: too old sample", status=500), TooOld("HTTP 500: too old sample")),
        (Later("HTTP 503: busy", status=503), Silent("HTTP 503: busy")),
        (Later("HTTP 403: no", Fate.PARK, 403), Silent("HTTP 403: no")),
        (Later("no answer came within 30 s"), Silent("no answer came within 30 s")),
    ],
)
def test_what_an_answer_says_of_the_age(verdict: Accepted | Refused | Later, answer: Answer) -> None:
    assert answer_of(verdict) == answer
