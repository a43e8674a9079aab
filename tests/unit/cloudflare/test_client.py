import asyncio
import gzip
import logging
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import API_URL, TOKEN, Network, error, refusal, tag
from worker.cloudflare import ApiFailure, ErrorKind
from worker.cloudflare.client import DEADLINE_SECONDS, Answer, CloudflareClient, Refused, TokenAuth
from worker.cloudflare.quota import Api, Lease, Paused, Priority, Quota, RateLimitType
from worker.errors import UsageError

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]
OK = b'{"data": {}, "errors": null}'


def client(
    handler: Handler, *, clock: ManualClock | None = None, quota: Quota | None = None, **options: Any
) -> CloudflareClient:
    clock = clock or ManualClock()
    return CloudflareClient(
        api_url=options.pop("api_url", API_URL),
        token=options.pop("token", TOKEN),
        clock=clock,
        quota=quota or Quota(clock),
        transport=Network(handler),
        **options,
    )


def encoded(content: bytes, encoding: str = "gzip") -> httpx.Response:
    """An answer with a content encoding that httpx has not looked into yet."""
    return httpx.Response(200, stream=httpx.ByteStream(content), headers={"Content-Encoding": encoding})


def answering(response: httpx.Response | Exception) -> Handler:
    async def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    return handle


async def refused(handler: Handler, **options: Any) -> ApiFailure:
    outcome = await client(handler, **options).graphql(b"{}")
    assert isinstance(outcome, Refused), outcome
    return outcome.failures[0]


async def test_a_query_is_posted_as_json_with_the_token_in_its_header() -> None:
    seen: list[httpx.Request] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=OK)

    outcome = await client(handle, api_url=API_URL + "/").graphql(b'{"query": "q"}')
    assert outcome == Answer(OK)
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", f"{API_URL}/graphql")
    assert request.content == b'{"query": "q"}'
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Accept-Encoding"] == "gzip"
    assert request.headers["User-Agent"].startswith("cloudflare-remote-write/")


async def test_a_page_is_read_with_its_parameters() -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", "/client/v4/zones")
        assert dict(request.url.params) == {"page": "2", "account.id": "x"}
        return httpx.Response(200, content=OK)

    assert await client(handle).get("/zones", {"page": 2, "account.id": "x"}) == Answer(OK)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (refusal(error("unable to execute query")), ErrorKind.SERVER),
        (httpx.Response(502, content=b"<html>"), ErrorKind.SERVER),
        (httpx.Response(200, content=b"<html>"), ErrorKind.SERVER),
        (httpx.Response(302, headers={"Location": "https://elsewhere.test/"}), ErrorKind.ENDPOINT),
        (httpx.Response(200, content=b'{"data": '), ErrorKind.MALFORMED),
        (encoded(b"x", "br"), ErrorKind.MALFORMED),
        (encoded(b"not gzip"), ErrorKind.MALFORMED),
        (
            encoded(gzip.compress(OK)[:-4]),
            ErrorKind.MALFORMED,
        ),
        (encoded(b""), ErrorKind.MALFORMED),
        (httpx.ConnectError("[Errno 111] Connection refused"), ErrorKind.NETWORK),
        (httpx.ConnectTimeout("slow"), ErrorKind.NETWORK),
        (httpx.RemoteProtocolError("peer closed connection"), ErrorKind.NETWORK),
        (httpx.LocalProtocolError("Illegal header value"), ErrorKind.NETWORK),
        (httpx.UnsupportedProtocol("no scheme"), ErrorKind.NETWORK),
        (OSError(24, "Too many open files"), ErrorKind.NETWORK),
        (TimeoutError(), ErrorKind.NETWORK),
    ],
)
async def test_whatever_goes_wrong_is_a_value(response: httpx.Response | Exception, kind: ErrorKind) -> None:
    assert (await refused(answering(response))).kind is kind


async def test_an_address_that_is_none_is_a_value() -> None:
    for address in ("https://exa mple", "https://[::1", "no-scheme", "https://x:99999999"):
        transportless = CloudflareClient(api_url=address, token=TOKEN, clock=ManualClock(), quota=Quota(ManualClock()))
        outcome = await transportless.graphql(b"{}")
        assert isinstance(outcome, Refused)
        assert outcome.failures[0].kind is ErrorKind.NETWORK
        await transportless.aclose()


async def test_a_gzip_body_is_unpacked() -> None:
    response = encoded(gzip.compress(OK), "GZIP")
    assert await client(answering(response)).graphql(b"{}") == Answer(OK)


async def test_a_body_of_exactly_the_allowed_size_is_read_and_one_byte_more_is_not() -> None:
    for response in (encoded(OK, "identity"), encoded(gzip.compress(OK))):
        assert await client(answering(response), max_body_bytes=len(OK)).graphql(b"{}") == Answer(OK)
    for response in (encoded(OK, "identity"), encoded(gzip.compress(OK))):
        assert (await refused(answering(response), max_body_bytes=len(OK) - 1)).kind is ErrorKind.TOO_LARGE


async def test_a_gzip_bomb_is_given_up_at_the_bound() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    fed = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal fed
        for start in range(0, len(bomb), 1000):
            fed += 1
            yield bomb[start : start + 1000]

    response = httpx.Response(200, content=chunks(), headers={"Content-Encoding": "gzip"})
    failure = await refused(answering(response), max_body_bytes=2_000_000)
    assert failure.kind is ErrorKind.TOO_LARGE
    assert fed <= 4  # 1,000 bytes of it are a megabyte


async def test_a_bomb_in_one_piece_is_not_unpacked_beyond_the_bound() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        assert (await refused(answering(encoded(bomb)), max_body_bytes=1_000_000)).kind is ErrorKind.TOO_LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


async def test_the_deadline_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def recorded(seconds: float) -> asyncio.Timeout:
        asked.append(seconds)
        return real(seconds)

    real = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", recorded)
    handler = answering(httpx.Response(200, content=OK))
    await client(handler).graphql(b"{}")
    await client(handler, deadline_seconds=7.0).graphql(b"{}")
    assert asked == [DEADLINE_SECONDS, 7.0]


async def test_the_deadline_bounds_an_answer_that_never_ends() -> None:
    dripped = 0

    async def drip() -> AsyncIterator[bytes]:
        nonlocal dripped
        while True:
            dripped += 1
            yield b" "
            await asyncio.sleep(0)

    failure = await refused(answering(httpx.Response(200, content=drip())), deadline_seconds=0.05)
    assert failure.kind is ErrorKind.NETWORK
    assert failure.message == "no complete answer within 0.05 s"
    assert dripped > 1


async def test_the_deadline_bounds_an_answer_that_never_begins() -> None:
    async def handle(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    assert (await refused(handle, deadline_seconds=0.01)).kind is ErrorKind.NETWORK


async def test_cancelling_is_not_mistaken_for_the_deadline() -> None:
    quota = Quota(ManualClock())
    started = asyncio.Event()

    async def handle(_: httpx.Request) -> httpx.Response:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(client(handle, quota=quota).graphql(b"{}"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert quota.remaining(Api.GRAPHQL) == 299


async def test_every_exchange_is_observed_with_its_outcome_and_length() -> None:
    clock = ManualClock()
    seen: list[tuple[Api, Priority, str, float]] = []
    answers = iter(
        [httpx.Response(200, content=OK), httpx.Response(503), refusal(error("rate limiter budget depleted"))]
    )

    async def handle(_: httpx.Request) -> httpx.Response:
        clock.set(clock.now() + 2)
        return next(answers)

    talker = client(handle, clock=clock, on_request=lambda *what: seen.append(what))
    for _ in range(3):
        await talker.graphql(b"{}")
    await talker.graphql(b"{}")  # paused: not a request
    graphql = (Api.GRAPHQL, Priority.LIVE)
    assert seen == [(*graphql, "ok", 2.0), (*graphql, "server", 2.0), (*graphql, "rate", 2.0)]


async def test_every_request_draws_from_the_quota() -> None:
    quota = Quota(ManualClock())
    talker = client(answering(httpx.Response(200, content=OK)), quota=quota)
    await talker.graphql(b"{}")
    await talker.get("/zones", {})
    assert (quota.remaining(Api.GRAPHQL), quota.remaining(Api.REST)) == (299, 1198)


@pytest.mark.parametrize(("headers", "pause"), [({}, 300), ({"Retry-After": "7"}, 7)])
async def test_a_used_up_quota_pauses_until_cloudflare_says_or_for_five_minutes(
    headers: dict[str, str], pause: int
) -> None:
    clock = ManualClock()
    quota = Quota(clock)
    asked = 0

    async def handle(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return refusal(error("rate limiter budget depleted", code="budget"), status=429, headers=headers)

    talker = client(handle, clock=clock, quota=quota)
    await talker.graphql(b"{}")
    outcome = await talker.graphql(b"{}")
    assert isinstance(outcome, Refused)
    assert outcome.failures[0].kind is ErrorKind.RATE
    assert outcome.failures[0].retry_after_seconds == pause
    assert asked == 1
    assert quota.paused_seconds(Api.REST) == 0
    await clock.advance(pause)
    await talker.graphql(b"{}")
    assert asked == 2


@pytest.mark.parametrize("kind", ["Zone", "Account"])
async def test_the_quota_of_one_scope_pauses_what_concerns_it_and_nothing_else(kind: str) -> None:
    quota = Quota(ManualClock())
    scope_only = refusal(error(f"{kind} {tag(1)} has exceeded its rate limit", code="budget"))
    talker = client(answering(scope_only), quota=quota)
    await talker.graphql(b"{}")
    assert (quota.paused_seconds(Api.GRAPHQL), quota.paused_seconds(Api.GRAPHQL, tag(1))) == (0, 300)
    outcome = await talker.graphql(b"{}", scopes=[tag(2), tag(1)])
    assert isinstance(outcome, Refused)
    (failure,) = outcome.failures
    assert (failure.kind, failure.zone_tags, failure.retry_after_seconds) == (ErrorKind.RATE, (tag(1),), 300)
    assert failure.message == (
        f"not asked: Cloudflare's quota for graphql requests about {tag(1)} is used up, next request in 300 s"
    )
    assert quota.remaining(Api.GRAPHQL) == 299


async def test_a_request_has_the_priority_and_the_account_that_its_caller_names() -> None:
    class Recording(Quota):
        async def acquire(self, *of: Any, **account: Any) -> Lease | Paused:
            asked.append((*of, account))
            return await super().acquire(*of, **account)

    asked: list[tuple[Any, ...]] = []
    talker = client(answering(httpx.Response(200, content=OK)), quota=Recording(ManualClock()))
    await talker.graphql(b"{}", priority=Priority.BACKFILL, scopes=["z"], account="a")
    await talker.get("/zones", {}, priority=Priority.DISCOVERY)
    await talker.graphql(b"{}")
    assert asked == [
        (Api.GRAPHQL, Priority.BACKFILL, ["z"], {"account": "a"}),
        (Api.REST, Priority.DISCOVERY, {}),
        (Api.GRAPHQL, Priority.LIVE, (), {"account": ""}),
    ]


@pytest.mark.parametrize(("kind", "header"), [(RateLimitType.TOKEN, None), (RateLimitType.ACCOUNT, "account-based")])
async def test_cloudflare_is_asked_to_count_as_the_quota_does(kind: RateLimitType, header: str | None) -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        assert request.headers.get("X-Rate-Limit-Type") == header
        return httpx.Response(200, content=OK)

    quota = Quota(ManualClock(), rate_limit_type=kind)
    assert await client(handle, quota=quota).graphql(b"{}") == Answer(OK)


@pytest.mark.parametrize("token", ["", " ", TOKEN + "\n", "ünïcode-" + TOKEN, f'"{TOKEN}"', "Bearer " + TOKEN])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(UsageError, match="CF_API_TOKEN") as caught:
        TokenAuth(token)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", [TOKEN, TOKEN + "=="])
async def test_the_token_is_in_no_text(token: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    responses: list[httpx.Response | Exception] = [
        refusal(error(f"invalid header: Bearer {token}", path=["viewer"])),
        httpx.Response(400, json={"success": False, "errors": [{"code": 6003, "message": "x" * 290 + token}]}),
        httpx.Response(200, content=f'{{"data": "{token}'.encode()),
        httpx.ConnectError(f"cannot connect with {token}"),
        httpx.LocalProtocolError(f"Illegal header value {f'Bearer {token}'.encode()!r}"),
    ]
    for response in responses:
        talker = client(answering(response), token=token)
        outcome = await talker.graphql(b"{}")
        assert TOKEN[:8] not in repr(outcome)
        assert TOKEN[:8] not in repr((talker, vars(talker)))
    assert TOKEN[:8] not in caplog.text


def test_the_auth_object_masks_itself() -> None:
    assert repr(TokenAuth(TOKEN)) == "TokenAuth(***)"


async def test_a_traceback_does_not_hold_the_token() -> None:
    async def handle(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await client(handle).graphql(b"{}")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert TOKEN not in "".join(shown.format())


async def test_httpx_logs_no_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await client(answering(httpx.Response(200, content=OK))).graphql(b"{}")
    assert [record for record in caplog.records if record.name.startswith("http")] == []


@pytest.mark.parametrize(
    ("date", "ahead_seconds"),
    [
        ("Sun, 15 Jun 2025 15:06:40 GMT", 0),
        ("Sun, 15 Jun 2025 14:06:40 GMT", 3600),
        ("Sun, 15 Jun 2025 15:07:40 GMT", -60),
        ("Sun Jun 15 15:06:40 2025", 0),
        ("yesterday", None),
        ("", None),
    ],
)
async def test_the_clocks_are_compared_by_the_date_of_an_answer(date: str, ahead_seconds: float | None) -> None:
    asking = client(answering(httpx.Response(503, headers={"Date": date})), clock=ManualClock(1_750_000_000))
    assert asking.ahead_seconds is None
    await asking.graphql(b"{}")
    assert asking.ahead_seconds == ahead_seconds
