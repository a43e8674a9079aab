"""Whatever the other side writes into its answers is a value, and no secret of ours comes back in a message."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import TOKEN, FakeCloudflare, error, refusal, zone
from tests.unit.cloudflare.test_client import OK, answering, client
from worker.clock import ahead_of
from worker.cloudflare import ErrorKind, Failed, shipped
from worker.cloudflare.client import Answer, Refused
from worker.cloudflare.errors import classify
from worker.config import BasicAuth, DestinationSettings, Message
from worker.remote_write.auth import SecretMask
from worker.remote_write.verdict import Later, judge

MANY_DIGITS = "9" * 5000

DATES = [
    "",
    "now",
    MANY_DIGITS,
    f"Mon, 01 Jan {MANY_DIGITS} 00:00:00 GMT",
    f"Mon, {MANY_DIGITS} Jan 2025 00:00:00 GMT",
    f"Mon, 01 Jan 2025 {MANY_DIGITS}:00:00 GMT",
    f"Mon, 01 Jan 2025 00:00:00 +{MANY_DIGITS}",
    "Mon, 01 Jan 2025 00:00:00 +99999999",
    "Mon, 01 Jan 0001 00:00:00 +2359",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 99999 00:00:00 GMT",
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan -5 00:00:00 GMT",
    "Mon, 01 Jan 0000 00:00:00",
]


@pytest.mark.parametrize("date", DATES)
async def test_no_date_of_cloudflare_s_is_more_than_a_value(date: str) -> None:
    answer = httpx.Response(200, content=OK, headers={"Date": date})
    assert isinstance(await client(answering(answer)).graphql(b"{}"), Answer)


@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize("retry_after", DATES)
def test_no_retry_after_of_cloudflare_s_is_more_than_a_value(date: str, retry_after: str) -> None:
    (failure,) = classify(503, httpx.Headers({"Date": date, "Retry-After": retry_after}), b"")
    assert 0 <= (failure.retry_after_seconds or 0) <= 3600


@given(st.text(alphabet="0123456789-+:, JanMonGMT.", max_size=60), st.text(max_size=40))
def test_no_header_of_cloudflare_s_is_more_than_a_value(date: str, retry_after: str) -> None:
    ahead_of(date, 1_750_000_000.0)
    headers = {"date": date, "retry-after": retry_after}
    assert classify(503, headers, b"")[0].kind is ErrorKind.SERVER


@pytest.mark.parametrize("date", DATES)
def test_no_retry_after_of_a_receiver_s_is_more_than_a_value(date: str) -> None:
    verdict = judge(503, {"retry-after": date}, Message.V1, b"", 1_750_000_000.0, max_retry_after_seconds=300)
    assert isinstance(verdict, Later)
    assert 0 <= (verdict.retry_after_seconds or 0) <= 300


@pytest.mark.parametrize(
    "index", [MANY_DIGITS, f'"{MANY_DIGITS}"', '"' + "٣" * 5000 + '"', "9" * 4000, "-1", "1e300", "[1]", "true", '"²"']
)
def test_an_error_whose_path_has_an_absurd_index_blames_no_zone(index: str) -> None:
    body = f'{{"errors": [{{"message": "m", "path": ["viewer", "zones", {index}, "rows"]}}]}}'
    (failure,) = classify(200, {}, body.encode())
    assert failure.zone_index is None


@pytest.mark.parametrize("code", [MANY_DIGITS, "9" * 4000, f'"{MANY_DIGITS}"', "-1", "1e300"])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_error_with_an_absurd_code_is_a_value(code: str, status: int) -> None:
    body = f'{{"success": false, "errors": [{{"code": {code}, "message": "m"}}]}}'
    (failure,) = classify(status, {}, body.encode())
    assert len(failure.message) <= 300


@pytest.mark.parametrize("bound", ["9" * 400 + "s", "9" * 5000 + "w", "99999999999w", "0s"])
@pytest.mark.parametrize("message", ["cannot request data older than {}", "time range is too large: wider than {}"])
async def test_a_bound_with_absurd_numbers_fails_the_zone_and_not_the_worker(message: str, bound: str) -> None:
    clock = ManualClock(1_750_000_000.0)
    text = message.format(bound)
    cloudflare = FakeCloudflare(refuse=lambda _asked: refusal(error(text, path=["viewer", "zones", "0"])))
    api = cloudflare.api(clock)
    first = 1_749_999_600 // 60 * 60
    answers = await api.fetch([shipped()["http_requests"]], 60, [zone(1)], range(first, first + 300, 60))
    assert answers
    assert all(isinstance(answer, Failed) for answer in answers)
    for answer in answers:
        assert isinstance(answer, Failed)
        seconds = answer.failure.bound_seconds
        assert seconds is None or clock.now() - seconds <= clock.now()
    await api.aclose()


def test_a_date_that_can_be_read_is_still_read() -> None:
    date = format_datetime(datetime.fromtimestamp(1_749_999_000, UTC), usegmt=True)
    assert ahead_of(date, 1_750_000_000.0) == 1000


# ------------------------------------------------------------------------------------------ secrets that come back


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


SPELLINGS: list[Callable[[str], str]] = [
    lambda token: token,
    escaped,
    lambda token: escaped(token).upper().replace("\\U", "\\u"),
    lambda token: escaped(token[:5]) + token[5:],
    lambda token: token[:5] + escaped(token[5:]),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("before", [0, 50, 282, 290, 1190])
@pytest.mark.parametrize("status", [200, 403])
async def test_a_token_that_cloudflare_echoes_is_in_no_message_however_json_spells_it(
    spelling: Callable[[str], str], before: int, status: int
) -> None:
    body = f'{{"errors": [{{"code": 1000, "message": "{"x" * before} {spelling(TOKEN)} is invalid"}}]}}'
    outcome = await client(answering(httpx.Response(status, content=body.encode()))).graphql(b"{}")
    assert isinstance(outcome, Refused)
    (failure,) = outcome.failures
    assert TOKEN[:4] not in failure.message, "nor does a part of it stand at the end"


PASSWORDS = [
    "canary-password",
    'canary "quoted"',
    "canary\\back/slash",
    "canary&<tag>+",
    "canary ü€",
    "canary-🔑",
    "ca%20ry",
]

ECHOES: dict[str, Callable[[str], str]] = {
    "plain": lambda secret: secret,
    "json": json.dumps,
    "json in utf-8": lambda secret: json.dumps(secret, ensure_ascii=False),
    "json of go": lambda secret: (
        json.dumps(secret, ensure_ascii=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    ),
    "json of php": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "json in upper case": lambda secret: "".join(
        f"\\u{unit:04X}" for unit in memoryview(secret.encode("utf-16-le")).cast("H")
    ),
    "path of a url": lambda secret: quote(secret, safe=""),
    "path of a url with slashes": quote,
    "query of a url": quote_plus,
    "query of a url in lower case": lambda secret: quote_plus(secret).lower(),
}


def masked(settings: DestinationSettings, said: str) -> str:
    return SecretMask(settings)(said.encode()).decode()


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_that_a_receiver_echoes_is_in_no_message_however_it_is_spelled(
    password: str, echo: Callable[[str], str]
) -> None:
    settings = DestinationSettings(
        name="main",
        url="https://receiver.example/api/v1/write",
        basic_auth=BasicAuth(username="42", password=SecretStr(password)),
    )
    said = masked(settings, f"wrong: {echo(password)} for 42")
    assert set(said.removeprefix("wrong: ").removesuffix(" for 42")) <= {"*", '"'}, said
    if password.isascii():
        header = DestinationSettings(
            name="main", url="https://receiver.example/api/v1/write", headers={"X-Key": SecretStr(password)}
        )
        assert set(masked(header, echo(password))) <= {"*", '"'}
