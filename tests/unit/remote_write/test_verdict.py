import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, assert_never

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.config import Message
from worker.remote_write.verdict import (
    MAX_TEXT_CHARACTERS,
    Accepted,
    Fate,
    Later,
    Refused,
    Verdict,
    judge,
    retry_after_seconds,
)

NOW = 1_760_000_000.0
MAX_SECONDS = 300.0

PARKING_4XX = {401, 403, 404, 405, 407}

WRITTEN = "x-prometheus-remote-write-samples-written"
WRITTEN_HEADERS = [WRITTEN, *(f"x-prometheus-remote-write-{kind}-written" for kind in ("histograms", "exemplars"))]


def judged(
    status: int,
    headers: Mapping[str, str] = {},
    body: bytes = b"",
    *,
    message: Message = Message.V1,
    **more: Any,
) -> Verdict:
    return judge(status, headers, message, body, NOW, max_retry_after_seconds=MAX_SECONDS, **more)


# ------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("message", list(Message))
def test_every_status_has_its_verdict(message: Message) -> None:
    for status in range(100, 1000):
        verdict = judged(status, {}, b"some words", message=message)
        if 200 <= status <= 299 and message is Message.V1:
            assert verdict == Accepted(status)
        elif status in {400, 409, 413, 422}:
            assert verdict == Refused(status, "some words")
            assert isinstance(verdict, Refused)
            assert verdict.is_about_content
        else:
            assert isinstance(verdict, Later)
            assert verdict.reason.startswith(f"HTTP {status}")
            assert (verdict.status, verdict.retry_after_seconds) == (status, None)
            assert verdict.fate is fate_of(status, message)


def fate_of(status: int, message: Message) -> Fate:
    """What is told of every status, in words of another order than the code's."""
    if message is Message.V2 and (status == 415 or 200 <= status <= 299):
        return Fate.OLDER_MESSAGE
    if status in {429, 529}:
        return Fate.RATE_LIMITED
    return Fate.RETRY if status in {408, 425} or 500 <= status <= 599 else Fate.PARK


@pytest.mark.parametrize("header", WRITTEN_HEADERS)
@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_2xx_to_a_request_in_2_0_counts_where_it_says_what_was_written(status: int, header: str) -> None:
    verdict = judged(status, {header: "7"}, message=Message.V2)
    assert verdict == Accepted(status, 7 if header == WRITTEN else 0)


def test_a_2xx_to_a_request_in_2_0_that_says_nothing_of_what_was_written_is_no_acceptance() -> None:
    verdict = judged(204, {"content-length": "0", "x-prometheus-remote-write-version": "2.0.0"}, message=Message.V2)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.OLDER_MESSAGE
    assert "has dropped what was sent" in verdict.reason


def test_a_2xx_to_a_request_in_1_0_needs_no_such_header_and_is_not_read_for_it() -> None:
    assert judged(204) == Accepted(204, None)
    assert judged(204, {WRITTEN: "0"}) == Accepted(204, None)


@pytest.mark.parametrize(
    ("value", "samples"), [("12", 12), (" 12 ", 12), ("0", 0), ("", 0), ("-1", 0), ("many", 0), ("9" * 40, 0), ("²", 0)]
)
def test_what_a_receiver_says_that_it_has_written_is_a_number_or_nothing(value: str, samples: int) -> None:
    assert judged(200, {WRITTEN: value}, message=Message.V2) == Accepted(200, samples)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_what_says_something_about_the_samples_is_a_refusal(status: int) -> None:
    assert judged(status, {}, b"out of bounds\n") == Refused(status, "out of bounds")


@pytest.mark.parametrize("header", WRITTEN_HEADERS)
def test_a_refusal_shows_whether_it_was_read_as_2_0(header: str) -> None:
    assert judged(400, {header: "0"}, b"no", message=Message.V2) == Refused(400, "no", speaks_2=True)
    assert judged(400, {header: "0"}, b"no") == Refused(400, "no", speaks_2=False)
    assert judged(400, {}, b"no", message=Message.V2) == Refused(400, "no", speaks_2=False)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "check them in the destination's configuration"),
        (403, "check their rights and the tenant"),
        (404, "check its path"),
        (405, "check its path"),
        (407, "a proxy on the way wants credentials"),
        (415, "does not take remote write"),
    ],
)
def test_a_destination_that_is_set_up_wrongly_costs_no_rows_and_says_what_to_check(status: int, hint: str) -> None:
    verdict = judged(status, {}, b"no org id")
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert hint in verdict.reason
    assert verdict.reason.endswith("The receiver said: no org id")


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_a_busy_receiver_says_how_long_it_wants_to_be_left_alone(status: int) -> None:
    verdict = judged(status, httpx.Headers({"Retry-After": "17"}), b"slow down")
    fate = Fate.RATE_LIMITED if status in {429, 529} else Fate.RETRY
    assert verdict == Later(f"HTTP {status}: slow down", fate, status, 17.0)


def test_a_429_is_a_refusal_of_the_whole_request_where_it_is_not_to_be_tried_again() -> None:
    verdict = judged(429, {"retry-after": "17"}, b"slow down", retry_on_429=False)
    assert verdict == Refused(429, "slow down")
    assert isinstance(verdict, Refused)
    assert not verdict.is_about_content, "smaller parts of it fare no better"
    assert isinstance(judged(529, retry_on_429=False), Later)


# ------------------------------------------------------------------------------------------ texts


def test_a_redirect_is_explained_with_the_host_it_leads_to_and_nothing_else_of_it() -> None:
    verdict = judged(302, {"location": "https://user:secret@other.example:8443/secret?key=secret"}, b"")
    assert isinstance(verdict, Later)
    assert "to https://other.example, and redirects are not followed" in verdict.reason
    assert "secret" not in verdict.reason


@pytest.mark.parametrize("location", ["", "/elsewhere", "https://[broken", "//", "\x00"])
def test_a_redirect_to_nowhere_is_explained_too(location: str) -> None:
    verdict = judged(308, {"location": location}, b"")
    assert verdict == judged(308, {}, b"")
    assert isinstance(verdict, Later)
    assert "the URL redirects, and" in verdict.reason


def test_no_words_are_said_to_be_none() -> None:
    assert judged(400, {}, b"") == Refused(400, "no reason was given")
    assert judged(503, {}, b" \r\n") == Later("HTTP 503: no reason was given", Fate.RETRY, 503)


def test_a_long_text_is_cut() -> None:
    assert judged(400, {}, b"x" * 5000) == Refused(400, "x" * 1024)


@settings(deadline=None)  # time says nothing on a busy machine
@given(st.integers(100, 599), st.binary(max_size=3000), st.text(max_size=300))
def test_whatever_a_receiver_says_becomes_one_bounded_printable_line(status: int, body: bytes, location: str) -> None:
    verdict = judged(status, {"location": location}, body)
    match verdict:
        case Accepted():
            pass
        case Refused(text=line) | Later(reason=line):
            assert line.isprintable()
            assert 0 < len(line) <= MAX_TEXT_CHARACTERS
        case _:
            assert_never(verdict)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        (" 120 ", 120.0),
        ("300", 300.0),
        ("301", MAX_SECONDS),
        ("1000000000", MAX_SECONDS),
        ("9" * 10_000, MAX_SECONDS),
        ("000000000000002", 2.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90_000, UTC), usegmt=True), MAX_SECONDS),
        ("Thursday, 09-Oct-25 08:54:40 GMT", 80.0),
        ("Thu Oct  9 08:54:40 2025", 80.0),
    ],
)
def test_both_forms_of_retry_after_are_read_and_capped(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, NOW, MAX_SECONDS) == seconds


def test_a_date_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "America/New_York")
        time.tzset()
        assert retry_after_seconds("Thu Oct  9 08:54:40 2025", NOW, MAX_SECONDS) == 80.0
        assert retry_after_seconds("Thu, 09 Oct 2025 08:54:40 GMT", NOW, MAX_SECONDS) == 80.0
    time.tzset()


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1.5", "1e9", "0x10", "+5", "5, 7", "²", "Thu, 99 Oct 2025 08:54:40 GMT", "Thu, 09 Oct"]
)
def test_garbage_in_retry_after_is_ignored(value: str) -> None:
    assert retry_after_seconds(value, NOW, MAX_SECONDS) is None


def test_no_retry_after_is_no_wait() -> None:
    assert retry_after_seconds(None, NOW, MAX_SECONDS) is None


@settings(deadline=None)  # time says nothing on a busy machine
@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,12} [0-9:]{1,9} [+-][0-9]{1,30}")
)
@example("Thu, 09 Oct 2025 08:54:40 +99999999999999999999")
@example("Thu, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_retry_after_breaks_anything_or_makes_us_wait_for_long(value: str) -> None:
    seconds = retry_after_seconds(value, NOW, MAX_SECONDS)
    assert seconds is None or 0 <= seconds <= MAX_SECONDS


# ----------------------------------------------------------------------------------------------- the documented table


def documented_verdicts() -> dict[int, str]:
    """The verdict that docs/delivery.md gives to each status of a 1.0 request."""
    table = (Path(__file__).parents[3] / "docs" / "delivery.md").read_text(encoding="utf-8")
    verdicts: dict[int, str] = {}
    classes: dict[int, str] = {}
    for line in table.splitlines():
        if not line.startswith("| `"):
            continue
        answers, verdict, _ = (cell.strip() for cell in line.strip("|").split(" | ", 2))
        if "2.0" in answers and "1.0" not in answers:
            continue
        for answer in re.findall(r"`([1-5](?:xx|[0-9]{2}))`", answers.partition(" but ")[0]):
            if answer.endswith("xx"):
                classes.setdefault(int(answer[0]), verdict)
            else:
                verdicts.setdefault(int(answer), verdict)
    return {status: verdicts.get(status, classes[status // 100]) for status in range(100, 600)}


def test_the_table_in_the_documentation_is_what_is_done() -> None:
    for status, documented in documented_verdicts().items():
        verdict = judged(status)
        match verdict:
            case Accepted():
                done = "accepted"
            case Refused():
                done = "refused"
            case Later(fate=Fate.PARK):
                done = "later, parked"
            case Later():
                done = "later"
            case _:
                assert_never(verdict)
        assert done == documented, status
