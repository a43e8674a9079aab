import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.integration.remote_write.forward_proxy import proxying
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    Answer,
    ScriptedServer,
    SeenRequest,
    client_of,
    destination,
    echo,
    replying,
    response,
    saying,
    serving,
)
from tests.integration.remote_write.test_tls import server_context
from worker.config import DestinationSettings, OAuth2Settings, ProxySettings, TlsSettings
from worker.remote_write import Accepted, Fate, Later, Refused

SECRET = "canary/secret"


def settings_for(server: ScriptedServer, tokens: ScriptedServer, **more: Any) -> DestinationSettings:
    given = {"client_id": "worker", "client_secret": SecretStr(SECRET), "token_url": tokens.url, **more}
    return destination(server.url, oauth2=OAuth2Settings.model_validate(given))


def giving_tokens(**more: Any) -> Callable[[ScriptedServer], Answer]:
    """Gives out token-1, token-2 and so on."""
    given = 0

    def give(_: SeenRequest) -> bytes:
        nonlocal given
        given += 1
        return response(200, json.dumps({"access_token": f"canary-token-{given}", "token_type": "bearer", **more}))

    return replying(give)


def shown_tokens(server: ScriptedServer) -> list[str]:
    return [(request.header("Authorization") or "").removeprefix("Bearer canary-token-") for request in server.requests]


async def test_a_token_is_asked_for_as_rfc_6749_says_and_shown_to_the_receiver() -> None:
    async with serving(giving_tokens()) as tokens, serving(saying(NO_CONTENT, then_close=False)) as server:
        settings = settings_for(server, tokens, scopes=("write", "read"), endpoint_params={"audience": "a b"})
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    (asked,) = tokens.requests
    assert asked.line == "POST /api/v1/write HTTP/1.1"
    # The secret as RFC 6749, 2.3.1 has it: form-encoded, then joined, then in base64.
    assert asked.header("Authorization") == "Basic d29ya2VyOmNhbmFyeSUyRnNlY3JldA=="
    assert asked.header("Content-Type") == "application/x-www-form-urlencoded"
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["client_credentials"],
        "scope": ["write read"],
        "audience": ["a b"],
    }
    assert server.requests[0].header("Authorization") == "Bearer canary-token-1"


async def test_a_token_that_comes_with_another_2xx_is_a_token_and_no_words_to_show() -> None:
    async with (
        serving(saying(response(201, '{"access_token": "canary-token-1"}'))) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)


async def test_a_server_that_wants_the_secret_in_the_body_gets_it_there_and_is_remembered() -> None:
    def give(request: SeenRequest) -> bytes:
        form = parse_qs(request.body.decode())
        if form.get("client_secret") != [SECRET] or form.get("client_id") != ["worker"]:
            return response(401, '{"error": "invalid_client"}')
        return response(200, '{"access_token": "canary-token-1", "expires_in": 60}')

    clock = ManualClock()
    async with (
        serving(replying(give)) as tokens,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings_for(server, tokens), clock) as client,
    ):
        for _ in range(2):
            assert await client.send(b"body", 0) == Accepted(204)
            await clock.advance(60)
    assert [bool(request.header("Authorization")) for request in tokens.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("expires_in", "asked_at"),
    [
        (3600, [0, 3540]),  # not in its last minute
        ("3600", [0, 3540]),
        (60, [0, 30, 60]),  # half of a short life
        (None, [0]),
        ("soon", [0]),
    ],
)
async def test_a_token_is_kept_until_shortly_before_its_end(expires_in: object, asked_at: list[int]) -> None:
    clock = ManualClock()
    started = clock.now()
    asked = []

    def give(_: SeenRequest) -> bytes:
        asked.append(clock.now() - started)
        return response(200, json.dumps({"access_token": "canary", "expires_in": expires_in}))

    async with (
        serving(replying(give)) as tokens,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings_for(server, tokens), clock) as client,
    ):
        for at in (0, 29, 30, 59, 60, 3539, 3540, 3541):
            if at > 60 and len(asked_at) == 3:
                break
            await clock.advance(started + at - clock.now())
            assert await client.send(b"body", 0) == Accepted(204)
    assert asked == asked_at


async def test_however_many_requests_wait_one_fetches_the_token() -> None:
    async with (
        serving(giving_tokens()) as tokens,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        verdicts = await asyncio.gather(*(client.send(b"body", 0) for _ in range(20)))
    assert verdicts == [Accepted(204)] * 20
    assert len(tokens.requests) == 1


async def test_a_failure_to_fetch_a_token_is_shared_by_all_who_waited_for_it() -> None:
    async with (
        serving(saying(response(503, "busy"), then_close=False)) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        verdicts = await asyncio.gather(*(client.send(b"body", 0) for _ in range(20)))
        assert len(set(verdicts)) == 1
        assert len(tokens.requests) == 1
        await client.send(b"body", 0)
        assert len(tokens.requests) == 2
    assert not server.requests


async def test_when_the_one_who_fetches_gives_up_the_next_one_fetches() -> None:
    asked, give_up = asyncio.Event(), asyncio.Event()

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            if len(server.requests) == 1:
                asked.set()
                await give_up.wait()
            writer.write(response(200, '{"access_token": "canary-token-1"}'))

        return answer

    async with (
        serving(script) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        first = asyncio.create_task(client.send(b"body", 0))
        await asked.wait()
        second = asyncio.create_task(client.send(b"body", 0))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == Accepted(204)
        give_up.set()


async def test_a_401_gets_one_new_token_and_then_stands() -> None:
    def judge(request: SeenRequest) -> bytes:
        is_good = request.header("Authorization") in {"Bearer canary-token-2", "Bearer canary-token-3"}
        return NO_CONTENT if is_good and len(server.requests) < 4 else response(401, "no")

    async with (
        serving(giving_tokens()) as tokens,
        serving(replying(judge)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)
        assert await client.send(b"body", 0) == Accepted(204)
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert (verdict.status, verdict.fate) == (401, Fate.PARK)
    assert shown_tokens(server) == ["1", "2", "2", "2", "3"]
    assert server.requests[0].body == server.requests[1].body == b"body"


async def test_requests_that_are_refused_with_the_same_token_share_one_new_one() -> None:
    both_here, one_accepted = asyncio.Barrier(2), asyncio.Event()

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            is_the_later = server.connections == 2
            while True:
                request = await server.read_request(reader)
                if request.header("Authorization") == "Bearer canary-token-1":
                    await both_here.wait()
                    if is_the_later:
                        await one_accepted.wait()
                    writer.write(response(401))
                else:
                    writer.write(NO_CONTENT)
                    one_accepted.set()

        return answer

    async with (
        serving(giving_tokens()) as tokens,
        serving(script) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        assert await asyncio.gather(*(client.send(b"body", 0) for _ in range(2))) == [Accepted(204)] * 2
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    ("answer", "reason", "fate"),
    [
        (
            response(400, '{"error": "invalid_scope", "error_description": "no such\\nscope"}'),
            "HTTP 400: invalid_scope no such scope",
            Fate.PARK,
        ),
        (response(403, "<p>go away</p>"), "HTTP 403: <p>go away</p>", Fate.PARK),
        (response(404), "HTTP 404: no reason was given", Fate.PARK),
        (response(408), "HTTP 408: no reason was given", Fate.RETRY),
        (response(500, "oops"), "HTTP 500: oops", Fate.RETRY),
        (response(429, "slow", "Retry-After: 7\r\n"), "HTTP 429: slow", Fate.RATE_LIMITED),
        (
            response(307, headers="Location: http://localhost/\r\n"),
            "HTTP 307: it redirects, and redirects are not followed",
            Fate.PARK,
        ),
        (response(200, "<html>please log in</html>"), "its answer holds no token", Fate.PARK),
        (response(200, '{"access_token": ""}'), "its answer holds no token", Fate.PARK),
        (response(200, '{"access_token": "a\\r\\nX-Other: b"}'), "its answer holds no token", Fate.PARK),
        (response(200, '{"a":' * 12_000), "its answer holds no token", Fate.PARK),
        (
            response(200, '{"access_token": "a", "token_type": "mac"}'),
            "it gives tokens of another type than Bearer",
            Fate.PARK,
        ),
        (b"nonsense\r\n\r\n", "the answer cannot be read: ", Fate.RETRY),
    ],
)
async def test_a_server_that_gives_no_token_is_told_in_its_own_words(answer: bytes, reason: str, fate: Fate) -> None:
    async with (
        serving(saying(answer)) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith(f"no token from http://127.0.0.1:{tokens.port} (oauth2): {reason}")
    assert verdict.fate is fate
    assert verdict.status is None
    assert verdict.retry_after_seconds == (7.0 if fate is Fate.RATE_LIMITED else None)
    assert not server.requests


async def test_a_server_of_tokens_that_hangs_is_given_up_before_the_time_of_the_request_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.remote_write.auth_oauth2._SECONDS", 0.05)

    async def for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    async with (
        serving(lambda _: for_ever) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.endswith("(oauth2): no answer came within 0.05 s")
    assert verdict.fate is Fate.RETRY


async def test_no_secret_is_in_a_verdict_whatever_either_server_repeats(caplog: pytest.LogCaptureFixture) -> None:
    for logger in ("", "httpx", "httpcore"):  # whatever another test has set
        caplog.set_level(logging.DEBUG, logger=logger or None)

    def refuse(request: SeenRequest) -> bytes:
        return response(403, echo(request))

    async with serving(replying(refuse)) as tokens, serving(replying(refuse)) as server:
        settings = settings_for(server, tokens, endpoint_params={"key": "canary-param"})
        async with client_of(settings) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert "authorization: Basic ****" in verdict.reason
    assert "canary" not in verdict.reason

    def repeat(status: int, request: SeenRequest) -> bytes:
        return response(status, echo(request))

    async with serving(giving_tokens()) as tokens:
        for status, kind in ((400, Refused), (503, Later)):
            async with (
                serving(replying(partial(repeat, status))) as server,
                client_of(settings_for(server, tokens)) as client,
            ):
                verdict = await client.send(b"body", 0)
                assert "canary" not in f"{client!r} {client._setup!r} {client._setup.credentials!r}"
            assert isinstance(verdict, kind)
            assert "authorization: Bearer ****" in str(verdict)
            assert "canary" not in str(verdict)
    assert "canary" not in caplog.text


async def test_a_token_server_that_repeats_the_secret_from_the_body_does_not_make_it_known() -> None:
    async with (
        serving(replying(lambda request: response(401, echo(request)))) as tokens,
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server, tokens)) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert "client_secret=****" in verdict.reason
    assert "canary" not in verdict.reason


async def test_the_token_server_has_tls_and_a_proxy_of_its_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with (
        serving(giving_tokens(), context) as tokens,
        serving(saying(NO_CONTENT)) as server,
        proxying() as proxy,
    ):
        trusting = {"tls": TlsSettings(ca_file=tmp_path / "ca.pem"), "proxy": ProxySettings(proxy_url=proxy.url)}
        async with client_of(settings_for(server, tokens, **trusting)) as client:
            assert await client.send(b"body", 0) == Accepted(204)
        assert [head.split(" ")[:2] for head in proxy.heads] == [["CONNECT", f"127.0.0.1:{tokens.port}"]]
        async with client_of(settings_for(server, tokens)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert "(oauth2): the token's server's certificate cannot be trusted: " in verdict.reason
