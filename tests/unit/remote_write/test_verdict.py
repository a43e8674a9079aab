import time
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import assert_never

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.remote_write.verdict import (
    MAX_RETRY_AFTER_SECONDS,
    MAX_TEXT_CHARACTERS,
    Accepted,
    Later,
    Refused,
    judge,
    retry_after_seconds,
)

NOW = 1_760_000_000.0

LATER_4XX = {401, 403, 404, 405, 407, 408, 415, 429}


def test_every_status_has_its_verdict() -> None:
    for status in range(100, 1000):
        verdict = judge(status, {}, b"some words", NOW)
        if 200 <= status <= 299:
            assert verdict == Accepted(status)
        elif 400 <= status <= 499 and status not in LATER_4XX:
            assert verdict == Refused(status, "some words")
        else:
            assert isinstance(verdict, Later)
            assert verdict.reason.startswith(f"HTTP {status}: ")
            assert (verdict.status, verdict.retry_after_seconds) == (status, None)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_what_says_something_about_the_samples_is_a_refusal(status: int) -> None:
    assert judge(status, {}, b"out of bounds\n", NOW) == Refused(status, "out of bounds")


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "check basic_auth, bearer_token and headers"),
        (403, "check their rights and the tenant"),
        (404, "check its path"),
        (405, "check its path"),
        (415, "does not take remote write 1.0"),
    ],
)
def test_a_destination_that_is_set_up_wrongly_costs_no_rows_and_says_what_to_check(status: int, hint: str) -> None:
    verdict = judge(status, {}, b"no org id", NOW)
    assert isinstance(verdict, Later)
    assert hint in verdict.reason
    assert verdict.reason.endswith("The receiver said: no org id")


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_a_busy_receiver_says_how_long_it_wants_to_be_left_alone(status: int) -> None:
    verdict = judge(status, httpx.Headers({"Retry-After": "17"}), b"slow down", NOW)
    assert verdict == Later(f"HTTP {status}: slow down", status, 17.0)


def test_a_redirect_is_explained_with_the_host_it_leads_to_and_nothing_else_of_it() -> None:
    verdict = judge(302, {"location": "https://user:secret@other.example:8443/secret?key=secret"}, b"", NOW)
    assert isinstance(verdict, Later)
    assert "to https://other.example, and redirects are not followed" in verdict.reason
    assert "secret" not in verdict.reason


@pytest.mark.parametrize("location", ["", "/elsewhere", "https://[broken", "//", "\x00"])
def test_a_redirect_to_nowhere_is_explained_too(location: str) -> None:
    verdict = judge(308, {"location": location}, b"", NOW)
    assert verdict == judge(308, {}, b"", NOW)
    assert isinstance(verdict, Later)
    assert "the URL redirects, and" in verdict.reason


def test_no_words_are_said_to_be_none() -> None:
    assert judge(400, {}, b"", NOW) == Refused(400, "no reason was given")
    assert judge(503, {}, b" \r\n", NOW) == Later("HTTP 503: no reason was given", 503)


def test_a_long_text_is_cut() -> None:
    assert judge(400, {}, b"x" * 5000, NOW) == Refused(400, "x" * 1024)


@settings(deadline=None)  # time says nothing on a busy machine
@given(st.integers(100, 599), st.binary(max_size=3000), st.text(max_size=300))
def test_whatever_a_receiver_says_becomes_one_bounded_printable_line(status: int, body: bytes, location: str) -> None:
    verdict = judge(status, {"location": location}, body, NOW)
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
        ("301", MAX_RETRY_AFTER_SECONDS),
        ("1000000000", MAX_RETRY_AFTER_SECONDS),
        ("9" * 10_000, MAX_RETRY_AFTER_SECONDS),
        ("000000000000002", 2.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90_000, UTC), usegmt=True), MAX_RETRY_AFTER_SECONDS),
        ("Thursday, 09-Oct-25 08:54:40 GMT", 80.0),
        ("Thu Oct  9 08:54:40 2025", 80.0),
    ],
)
def test_both_forms_of_retry_after_are_read_and_capped(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, NOW) == seconds


def test_a_date_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "America/New_York")
        time.tzset()
        assert retry_after_seconds("Thu Oct  9 08:54:40 2025", NOW) == 80.0
        assert retry_after_seconds("Thu, 09 Oct 2025 08:54:40 GMT", NOW) == 80.0
    time.tzset()


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1.5", "1e9", "0x10", "+5", "5, 7", "²", "Thu, 99 Oct 2025 08:54:40 GMT", "Thu, 09 Oct"]
)
def test_garbage_in_retry_after_is_ignored(value: str) -> None:
    assert retry_after_seconds(value, NOW) is None


def test_no_retry_after_is_no_wait() -> None:
    assert retry_after_seconds(None, NOW) is None


@settings(deadline=None)  # time says nothing on a busy machine
@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,12} [0-9:]{1,9} [+-][0-9]{1,30}")
)
@example("Thu, 09 Oct 2025 08:54:40 +99999999999999999999")
@example("Thu, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_retry_after_breaks_anything_or_makes_us_wait_for_long(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS
