import ast
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloudflare.fake import tag
from worker.cloudflare import ApiFailure, ErrorKind
from worker.cloudflare.errors import MAX_MESSAGE, classify, duration_seconds, one_line

RESPONSES = Path(__file__).parents[3].parent / "shared" / "cloudflare" / "responses"
A, B = tag(0xA), tag(0xB)


def body(*errors: Any, data: Any = None, **more: Any) -> bytes:
    return msgspec.json.encode({"data": data, "errors": list(errors), **more})


def only(status: int, content: bytes, **headers: str) -> ApiFailure:
    (failure,) = classify(status, httpx.Headers(headers), content)
    return failure


def test_an_answer_without_errors_is_no_failure() -> None:
    for errors in (b"null", b"[]"):
        assert classify(200, {}, b'{"data": {"viewer": {}}, "errors": ' + errors + b"}") == ()
    assert classify(200, {}, b'{"success": true, "errors": [], "result": []}') == ()


@pytest.mark.parametrize("status", [200, 400, 403, 429])
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("rate limiter budget depleted, please try again later", ErrorKind.RATE),
        (f"Zone {A} has exceeded its rate limit", ErrorKind.RATE),
        ("in combination, your request queries too many nodes, zones and accounts", ErrorKind.COMPLEXITY),
        ("query consumed excessive resources", ErrorKind.COST),
        ("cannot request data older than 2678400s", ErrorKind.RETENTION),
        ("cannot request a time range wider than 4w2d, but your query time range spans 5w", ErrorKind.WINDOW),
        (f"query time range is too large for zone {A}. Time range can't be wider than 54000s", ErrorKind.WINDOW),
        ("limit must be positive number and not greater than 10000", ErrorKind.PAGE),
        ("number of fields can't be more than 70", ErrorKind.FIELDS),
        ("too many zones requested", ErrorKind.ZONES),
        (f"zone '{A}' does not have access to the path", ErrorKind.PLAN_DATASET),
        (f"zone '{A}' does not have access to the field 'clientasn'", ErrorKind.PLAN_FIELD),
        ("not authorized for that account", ErrorKind.AUTH_SCOPE),
        (f"zones [{A} {B}] are not authorized", ErrorKind.AUTH_SCOPE),
        ("requested zone is not authorized", ErrorKind.AUTH_SCOPE),
        ("unable to execute query", ErrorKind.SERVER),
        ("too many queries in progress", ErrorKind.SERVER),
        ("Internal server error", ErrorKind.SERVER),
    ],
)
def test_a_documented_message_has_its_kind_whatever_the_status_and_the_spelling(
    message: str, kind: ErrorKind, status: int
) -> None:
    assert only(status, body({"message": message})).kind is kind
    assert only(status, body({"message": message.upper()})).kind is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [("budget", ErrorKind.RATE), ("authz", ErrorKind.AUTH_SCOPE), ("quota", ErrorKind.REFUSED), (7, ErrorKind.REFUSED)],
)
def test_an_unknown_message_is_known_by_its_code(code: Any, kind: ErrorKind) -> None:
    assert only(200, body({"message": "something new", "extensions": {"code": code}})).kind is kind


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (403, {"code": 10000, "message": "Authentication error"}, ErrorKind.TOKEN),
        (400, {"code": 9106, "message": "Missing X-Auth-Key, X-Auth-Email or Authorization headers"}, ErrorKind.TOKEN),
        (400, {"code": 6003, "message": "Invalid request headers"}, ErrorKind.TOKEN),
        (400, {"code": 6103, "message": "Invalid format for X-Auth-Key header"}, ErrorKind.TOKEN),
        (401, {"code": 1000, "message": "Invalid API Token"}, ErrorKind.TOKEN),
        (403, {"code": 9109, "message": "Invalid access token"}, ErrorKind.TOKEN),
        (403, {"code": 9109, "message": "Unauthorized to access requested resource"}, ErrorKind.AUTH_SCOPE),
        (429, {"code": 10429, "message": "whatever"}, ErrorKind.RATE),
        (404, {"code": 7003, "message": "Could not route to /zones"}, ErrorKind.ENDPOINT),
        (500, {"code": 1, "message": "oops"}, ErrorKind.SERVER),
    ],
)
def test_an_error_of_the_rest_envelope_has_its_kind(status: int, error: Any, kind: ErrorKind) -> None:
    assert only(status, body(error, success=False)).kind is kind


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (200, b"<html><title>Maintenance</title></html>", ErrorKind.SERVER),
        (403, b"<!doctype html>Sorry, you have been blocked", ErrorKind.SERVER),
        (502, b"  \n<html>", ErrorKind.SERVER),
        (502, b"error code: 502", ErrorKind.SERVER),
        (503, b"", ErrorKind.SERVER),
        (429, b"slow down", ErrorKind.RATE),
        (401, b"no", ErrorKind.TOKEN),
        (302, b"", ErrorKind.ENDPOINT),
        (404, b"<html>", ErrorKind.ENDPOINT),
        (200, b"", ErrorKind.MALFORMED),
        (200, b'{"data": {"viewer": {"zones": [', ErrorKind.MALFORMED),
        (200, b"[]", ErrorKind.MALFORMED),
        (200, b"\xff\xfe", ErrorKind.MALFORMED),
        (200, b'{"errors": "many"}', ErrorKind.MALFORMED),
        (200, b'{"errors": ["text"]}', ErrorKind.MALFORMED),
        (200, b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ErrorKind.MALFORMED),
        (200, b'{"success": false, "errors": []}', ErrorKind.ENDPOINT),
        (500, b"{}", ErrorKind.SERVER),
        (200, b'{"errors": [{}]}', ErrorKind.REFUSED),
        (200, b'{"errors": [{"message": 7, "path": "zones", "extensions": []}]}', ErrorKind.REFUSED),
        (500, b'{"errors": [{"message": "boom"}]}', ErrorKind.SERVER),
    ],
)
def test_a_body_that_is_no_list_of_known_errors_has_a_kind_too(status: int, content: bytes, kind: ErrorKind) -> None:
    assert only(status, content).kind is kind


def test_errors_beside_data_are_errors() -> None:
    assert (
        only(200, body({"message": "unable to execute query"}, data={"viewer": {"zones": []}})).kind is ErrorKind.SERVER
    )


def test_every_error_of_a_list_is_reported_up_to_a_bound() -> None:
    failures = classify(
        200, {}, body(*({"message": f"zone '{tag(n)}' does not have access to the path"} for n in range(3)))
    )
    assert [failure.zone_tags for failure in failures] == [(tag(0),), (tag(1),), (tag(2),)]
    assert len(classify(200, {}, body(*[{"message": "x"}] * 5000))) == 100


@pytest.mark.parametrize(
    ("path", "index"),
    [
        (["viewer", "zones", "3", "httpRequests1mGroups"], 3),
        (["httpRequests1mGroups", "viewer", "zones", "0", "httpRequests1mGroups"], 0),
        (["viewer", "zones", 2, "rows"], 2),
        (["httpRequests1hGroups", "viewer", "zones"], None),
        (["viewer", "accounts", "0"], None),
        (["viewer", "zones", "-1"], None),
        (["viewer", "zones", {}], None),
        (None, None),
        ("viewer.zones.0", None),
    ],
)
def test_the_path_tells_the_position_of_the_zone(path: Any, index: int | None) -> None:
    assert only(200, body({"message": "boom", "path": path})).zone_index == index


@pytest.mark.parametrize(
    ("path", "node"),
    [
        (["viewer", "zones", "0", "r2"], "r2"),
        (["viewer", "zones", 0, "firewallEventsAdaptiveGroups"], "firewallEventsAdaptiveGroups"),
        (["viewer", "accounts", "0", "r0"], "r0"),
        (["viewer", "zones", "0", "r1", "0"], "0"),
        (["viewer", "zones", "0"], None),
        (["viewer", "zones"], None),
        (["viewer", "accounts", "0", "zones", "3", "r1"], "r1"),
        (["viewer", "accounts", 0, "zones", 3, "r1"], "r1"),
        (["viewer", "accounts", "0", "zones", "3"], None),
        (["viewer", "accounts", "0", "zones"], None),
        (["viewer", "zones", "0", 7], None),
        (["viewer", "zones", "0", "x" * 1000], "x" * 100),
        ("r0", None),
        (None, None),
    ],
)
def test_the_end_of_the_path_tells_the_dataset(path: Any, node: str | None) -> None:
    assert only(200, body({"message": "boom", "path": path})).node == node


def test_accounts_that_a_message_names_are_found() -> None:
    failure = only(200, body({"message": f"Account {A} has exceeded its rate limit"}))
    assert (failure.kind, failure.account_tags, failure.zone_tags) == (ErrorKind.RATE, (A,), ())


@pytest.mark.parametrize(
    ("message", "rows"),
    [
        ("limit must be positive number and not greater than 500", 500),
        ("limit must be positive number and not greater than ten", None),
        ("limit must be positive number and not greater than " + "9" * 5000, None),
    ],
)
def test_the_largest_page_is_read_from_the_message(message: str, rows: int | None) -> None:
    assert only(400, body({"message": message})).bound_rows == rows


@pytest.mark.parametrize(
    ("message", "tags"),
    [
        (f"zone '{A}' does not have access to the path", (A,)),
        (f"Zone {A.upper()} has exceeded its rate limit", (A,)),
        (f"Account {A} has exceeded its rate limit", ()),
        (f"zones [{A} {B} {A}] are not authorized", (A, B)),
        (f"zones ['{A}', '{B}'] are not authorized", (A, B)),
        ("requested zone is not authorized", ()),
    ],
)
def test_the_message_tells_the_zones(message: str, tags: tuple[str, ...]) -> None:
    failure = only(200, body({"message": message}))
    assert failure.zone_tags == tags
    assert failure.account_tags == ((A,) if message.startswith("Account") else ())


def test_the_denied_field_is_named() -> None:
    message = f"zone '{A}' does not have access to the field 'clientasn'"
    assert only(200, body({"message": message})).field == "clientasn"


@pytest.mark.parametrize(
    ("message", "bound"),
    [
        ("cannot request data older than 2678400s", 2_678_400),
        ("cannot request data older than 4w3d, but your query requests data from 8w1d6h12m3s ago", 31 * 86_400),
        ("Time range can't be wider than 54000s, but it's 86400s", 54_000),
        ("cannot request a time range wider than 4w2d, but your query time range spans 8w", 30 * 86_400),
        ("cannot request a time range wider than 52w1d1h", 365 * 86_400 + 3600),
        ("cannot request data older than some time", None),
    ],
)
def test_the_bound_is_read_in_both_spellings(message: str, bound: int | None) -> None:
    if message.startswith("Time"):
        message = f"query time range is too large for zone {A}. {message}"
    assert only(200, body({"message": message})).bound_seconds == bound


def test_a_duration_may_have_every_unit() -> None:
    assert duration_seconds("1w2d3h4m5s") == 604_800 + 2 * 86_400 + 3 * 3600 + 4 * 60 + 5


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "17"}, 17),
        ({"retry-after": " 0 "}, 0),
        ({"retry-after": "999999999999"}, 3600),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 22 Feb 2026 20:01:30 GMT", "date": "Sun, 22 Feb 2026 20:00:00 GMT"}, 90),
        ({"retry-after": "Sun, 22 Feb 2026 19:00:00 GMT", "date": "Sun, 22 Feb 2026 20:00:00 GMT"}, 0),
        ({"retry-after": "Sun, 22 Feb 2026 20:01:30 GMT"}, None),
        ({"retry-after": "Sun, 22 Feb 2026 20:01:30 -0000", "date": "Sun, 22 Feb 2026 20:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], expected: float | None) -> None:
    for content in (b"", body({"message": "rate limiter budget depleted"})):
        failure = only(429, content, **headers)
        assert (failure.kind, failure.retry_after_seconds) == (ErrorKind.RATE, expected)


def test_a_message_is_one_short_line() -> None:
    failure = only(200, body({"message": "a\nb\x1b[31m\u2028" + "x" * 10_000}))
    assert failure.message.startswith("a b [31m xxx")
    assert len(failure.message) == MAX_MESSAGE


@given(st.text())
def test_one_line_is_always_printable_and_bounded(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MAX_MESSAGE


@given(st.integers(100, 599), st.binary())
def test_any_bytes_with_any_status_become_failures(status: int, content: bytes) -> None:
    assert all(isinstance(failure, ApiFailure) for failure in classify(status, {}, content))


@given(
    st.integers(100, 599),
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["message", "path", "extensions", "code", "zones"]), x),
    ),
)
def test_any_shape_of_errors_becomes_failures(status: int, errors: Any) -> None:
    content = json.dumps({"errors": errors}).encode()
    assert all(isinstance(failure, ApiFailure) for failure in classify(status, {}, content))


def recorded(name: str) -> Any:
    path = RESPONSES / name
    if not path.exists():
        pytest.skip("the recorded answers are not here")
    return json.loads(path.read_text())


def test_the_recorded_refusals_are_recognized() -> None:
    def failure(name: str) -> ApiFailure:
        return only(200, json.dumps(recorded(name)).encode())

    assert failure("notAuthorized.json").kind is ErrorKind.AUTH_SCOPE
    assert failure("rateLimiting.json").kind is ErrorKind.RATE
    unauthorized = failure("zoneNotAuthorized.json")
    assert (unauthorized.kind, unauthorized.zone_index) == (ErrorKind.AUTH_SCOPE, None)
    too_wide = failure("timeRangeTooLarge.json")
    assert (too_wide.kind, too_wide.bound_seconds, too_wide.zone_index) == (ErrorKind.WINDOW, 54_000, 0)
    assert too_wide.zone_tags == ("adc2ae237a1e542b43cb726eb3c43d42",)


@pytest.mark.parametrize("name", ["authError.json", "missingAuthHeaders.json"])
def test_the_recorded_log_lines_hold_a_refused_token(name: str) -> None:
    # These two are lines of somebody's log; Cloudflare's own list of errors stands in their message.
    errors = ast.literal_eval(recorded(name)["message"])
    for status in (400, 401, 403):
        assert only(status, body(*errors, success=False)).kind is ErrorKind.TOKEN
