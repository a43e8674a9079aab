import asyncio
import gzip
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    Answer,
    ScriptedServer,
    client_of,
    destination,
    saying,
    serving,
)
from worker import __version__
from worker.config import Authorization, BasicAuth, Message, QueueSettings
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient
from worker.remote_write import exchange as exchange_module

# Long enough for loopback on a busy machine; a test that waits for it waits this long.
SHORT_SECONDS = 0.3

# In which the head of an answer has to arrive, also on a busy machine, while its text never does.
HEAD_SECONDS = 1.5


async def verdict_on(*chunks: bytes, timeout_seconds: float = 30.0) -> Accepted | Refused | Later:
    """The verdict on an answer of these bytes, after which the connection is closed."""
    async with (
        serving(saying(*chunks)) as server,
        client_of(destination(server.url, timeout_seconds=timeout_seconds)) as client,
    ):
        return await client.send(b"body", 0)


# ------------------------------------------------------------------------------------------------ what is sent


async def test_a_request_has_the_headers_of_the_specification_and_its_body_as_it_is() -> None:
    async with serving(saying(NO_CONTENT)) as server, client_of(destination(server.url)) as client:
        assert await client.send(b"\x00\xffbody", 0) == Accepted(204)
    (request,) = server.requests
    assert request.line == "POST /api/v1/write HTTP/1.1"
    assert dict(request.headers) == {
        "host": f"127.0.0.1:{server.port}",
        "content-encoding": "snappy",
        "content-type": "application/x-protobuf",
        "user-agent": f"cloudflare-remote-write/{__version__}",
        "x-prometheus-remote-write-version": "0.1.0",
        "accept-encoding": "identity",
        "content-length": "6",
    }
    assert len(request.headers) == len(dict(request.headers))
    assert request.body == b"\x00\xffbody"


async def test_remote_write_2_0_is_announced_to_the_byte() -> None:
    async with serving(saying(NO_CONTENT, then_close=False)) as server, client_of(destination(server.url)) as client:
        for message in (Message.V2, Message.V1):
            await client.send(b"body", 0, message)
    assert [
        (request.header("Content-Type"), request.header("X-Prometheus-Remote-Write-Version"))
        for request in server.requests
    ] == [
        ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0"),
        ("application/x-protobuf", "0.1.0"),
    ]


async def test_a_silent_2xx_is_judged_by_the_message_that_was_sent() -> None:
    async with serving(saying(NO_CONTENT, then_close=False)) as server, client_of(destination(server.url)) as client:
        assert await client.send(b"body", 0, Message.V1) == Accepted(204)
        verdict = await client.send(b"body", 0, Message.V2)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.OLDER_MESSAGE


async def test_the_limits_of_the_queue_settings_reach_the_verdict() -> None:
    answer = b"HTTP/1.1 429 Slow\r\nRetry-After: 100\r\nContent-Length: 4\r\n\r\nslow"
    async with serving(saying(answer, then_close=False)) as server:
        for queue, verdict in (
            (QueueSettings(max_retry_after_seconds=10), Later("HTTP 429: slow", Fate.RATE_LIMITED, 429, 10.0)),
            (QueueSettings(retry_on_http_429=False), Refused(429, "slow")),
        ):
            async with client_of(destination(server.url, queue=queue)) as client:
                assert await client.send(b"body", 0) == verdict


async def test_as_many_requests_as_there_are_shards_are_under_way_at_once() -> None:
    shards = 12
    all_here = asyncio.Barrier(shards)

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            await all_here.wait()
            writer.write(NO_CONTENT)

        return answer

    queue = QueueSettings(max_shards=shards)
    async with serving(script) as server, client_of(destination(server.url, queue=queue)) as client:
        verdicts = await asyncio.gather(*(client.send(b"body", 0) for _ in range(shards)))
    assert verdicts == [Accepted(204)] * shards


async def test_only_a_retry_tells_how_often_it_was_sent() -> None:
    async with serving(saying(NO_CONTENT, then_close=False)) as server, client_of(destination(server.url)) as client:
        for attempt in (0, 1, 17):
            await client.send(b"body", attempt)
    assert [request.header("Retry-Attempt") for request in server.requests] == [None, "1", "17"]


async def test_requests_share_a_connection() -> None:
    async with serving(saying(NO_CONTENT, then_close=False)) as server, client_of(destination(server.url)) as client:
        for _ in range(5):
            assert await client.send(b"body", 0) == Accepted(204)
    assert server.connections == 1


async def test_custom_headers_are_sent_and_cannot_replace_those_of_the_protocol() -> None:
    async with serving(saying(NO_CONTENT)) as server:
        settings = destination(server.url, headers={"X-Scope-OrgID": "7", "X-Key": "k"})
        # The configuration refuses these; the client does not rely on it.
        reserved = {"content-TYPE": "text/plain", "user-agent": "me", "X-Prometheus-Remote-Write-Version": "2.0.0"}
        headers = {**settings.headers, **{name: SecretStr(value) for name, value in reserved.items()}}
        async with client_of(settings.model_copy(update={"headers": headers})) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    (request,) = server.requests
    assert (request.header("X-Scope-OrgID"), request.header("X-Key")) == ("7", "k")
    assert request.header("Content-Type") == "application/x-protobuf"
    assert request.header("User-Agent") == f"cloudflare-remote-write/{__version__}"
    assert request.header("X-Prometheus-Remote-Write-Version") == "0.1.0"


async def test_credentials_are_sent_as_configured() -> None:
    basic = BasicAuth(username="user", password=SecretStr("pass"))
    async with serving(saying(NO_CONTENT, then_close=False)) as server:
        for settings in (
            destination(server.url),
            destination(server.url, basic_auth=basic),
            destination(server.url, basic_auth=BasicAuth(username="user")),
            destination(server.url, basic_auth=BasicAuth(password=SecretStr("pass"))),
            destination(server.url, basic_auth=BasicAuth()),
            destination(server.url, authorization=Authorization(credentials=SecretStr("token"))),
            destination(server.url, authorization=Authorization(type="Token", credentials=SecretStr("abc"))),
            destination(server.url, headers={"Authorization": "Custom scheme"}),
        ):
            async with client_of(settings) as client:
                assert await client.send(b"body", 0) == Accepted(204)
    assert [request.header("Authorization") for request in server.requests] == [
        None,
        "Basic dXNlcjpwYXNz",
        "Basic dXNlcjo=",
        "Basic OnBhc3M=",
        "Basic Og==",
        "Bearer token",
        "Token abc",
        "Custom scheme",
    ]


async def test_nothing_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with serving(saying(NO_CONTENT)) as server, client_of(destination(server.url)) as client:
        assert await client.send(b"body", 0) == Accepted(204)
    assert server.requests[0].header("Authorization") is None
    assert not (tmp_path / "keys").exists()


async def test_no_cookie_is_kept() -> None:
    answer = b"HTTP/1.1 204 No Content\r\nSet-Cookie: session=1; Path=/\r\n\r\n"
    async with serving(saying(answer, then_close=False)) as server, client_of(destination(server.url)) as client:
        for _ in range(2):
            await client.send(b"body", 0)
    assert [request.header("Cookie") for request in server.requests] == [None, None]


# ------------------------------------------------------------------------------------------ what comes back


async def test_an_answer_is_judged_by_its_status_and_shown_in_its_own_words() -> None:
    assert await verdict_on(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") == Accepted(200)
    assert await verdict_on(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 14\r\n\r\nout of bounds\n") == Refused(
        400, "out of bounds"
    )
    assert await verdict_on(
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nslow"
    ) == Later("HTTP 429: slow", Fate.RATE_LIMITED, 429, 7.0)


async def test_a_retry_after_that_is_a_date_counts_from_the_clock() -> None:
    # ManualClock stands at 2025-06-15 15:06:40 UTC.
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: Sun, 15 Jun 2025 15:07:00 GMT\r\nContent-Length: 0\r\n\r\n"
    verdict = await verdict_on(answer)
    assert isinstance(verdict, Later)
    assert verdict.retry_after_seconds == 20.0


async def test_http_1_0_is_understood() -> None:
    assert await verdict_on(b"HTTP/1.0 200 OK\r\n\r\n") == Accepted(200)


async def test_an_answer_before_the_whole_request_was_read_counts() -> None:
    def script(_: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large")
            await writer.drain()
            await reader.read()

        return answer

    async with serving(script) as server, client_of(destination(server.url)) as client:
        assert await client.send(bytes(100_000), 0) == Refused(413, "too large")


async def test_a_redirect_is_not_followed_and_the_other_host_hears_nothing() -> None:
    async with serving(saying(NO_CONTENT)) as other:
        target = other.url.replace("127.0.0.1", "localhost").encode()
        verdict = await verdict_on(b"HTTP/1.1 307 Moved\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(verdict, Later)
    assert verdict.status == 307
    assert "to http://localhost, and redirects are not followed" in verdict.reason
    assert other.connections == 0


async def test_an_endless_answer_is_read_only_at_its_beginning() -> None:
    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
            while True:
                writer.write(b"no " * 10_000)
                await writer.drain()

        return answer

    async with (
        serving(script) as server,
        client_of(destination(server.url, timeout_seconds=3600)) as client,
        asyncio.timeout(20),
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Refused)
    assert verdict.text == ("no " * 342)[:1024].strip()


@pytest.mark.parametrize("body", [gzip.compress(bytes(10_000_000)), b"not gzip at all"], ids=["bomb", "garbage"])
async def test_a_compressed_answer_is_not_unpacked(body: bytes) -> None:
    head = f"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert await verdict_on(head, body) == Refused(400, "(the answer is encoded as gzip, which was not asked for)")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", Accepted(200)),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\nhalf a rea", Refused(400, "half a rea")),
        (
            b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\nzzz",
            Later("HTTP 503: busy", Fate.RETRY, 503),
        ),
    ],
)
async def test_a_text_that_breaks_off_does_not_change_the_verdict(
    answer: bytes, verdict: Accepted | Refused | Later
) -> None:
    assert await verdict_on(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nX-Cut-O",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x0a",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-More: y\r\n" * 100_000 + b"\r\n",
    ],
    ids=["nothing", "cut status", "cut header", "ssh", "tls alert", "bad length", "headers of 1 MB"],
)
async def test_what_is_no_answer_decides_nothing(answer: bytes) -> None:
    verdict = await verdict_on(answer)
    assert isinstance(verdict, Later)
    assert verdict.status is None
    assert verdict.reason.startswith("the answer cannot be read: ")
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 1100


async def test_many_headers_do_not_matter() -> None:
    assert await verdict_on(b"HTTP/1.1 204 No Content\r\nX-Long: " + b"x" * 90_000 + b"\r\n\r\n") == Accepted(204)


async def test_a_connection_that_is_reset_decides_nothing() -> None:
    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            raw = writer.get_extra_info("socket")
            # Lingering for no time makes close() send a reset.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            writer.transport.abort()

        return answer

    async with serving(script) as server, client_of(destination(server.url)) as client:
        assert await client.send(b"body", 0) == Later("the connection failed: Connection reset by peer")


async def test_nobody_listening_decides_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with client_of(destination(f"http://127.0.0.1:{port}/api/v1/write")) as client:
        assert await client.send(b"body", 0) == Later("the connection failed: Connection refused")


async def test_a_host_name_that_does_not_exist_parks_the_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with client_of(destination("http://receiver.invalid/api/v1/write")) as client:
        assert await client.send(b"body", 0) == Later(
            "the receiver's host name cannot be resolved: Name or service not known", Fate.PARK
        )


async def test_a_host_with_several_addresses_is_told_by_the_first_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address, address])
    async with client_of(destination("http://receiver.example:1/api/v1/write")) as client:
        assert await client.send(b"body", 0) == Later("the connection failed: Connection refused")


@pytest.mark.parametrize("host", ["xn--.example", ""])
def test_a_host_name_that_cannot_exist_is_a_mistake_of_the_configuration(host: str) -> None:
    # The configuration refuses no host at all, but knows nothing of Punycode.
    settings = destination("https://receiver.example").model_copy(update={"url": f"https://{host}/write?key=canary"})
    with pytest.raises(ConfigError) as mistake:
        RemoteWriteClient(settings, ManualClock())
    assert f"remote_write main: url (given: https://{host}/write?***): must be" in str(mistake.value)


@pytest.mark.parametrize(
    ("host", "instead"),
    [("my_mimir.mu\u0308ller.example", "my_mimir.xn--mller-kva.example"), ("\u2603.example", None)],
)
def test_a_host_name_that_only_go_reads_is_told_as_it_can_be_written(host: str, instead: str | None) -> None:
    with pytest.raises(ConfigError) as mistake:
        RemoteWriteClient(destination(f"https://{host}/write"), ManualClock())
    said = f"must be a URL with a host name that can exist{f'; in ASCII this one is {instead}' if instead else ''}"
    assert str(mistake.value).endswith(said)


async def test_a_host_name_in_another_script_is_asked_for_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []
    resolve = socket.getaddrinfo

    def local(host: bytes | str, *arguments: Any, **options: Any) -> Any:
        asked_for.append(host if isinstance(host, str) else host.decode())
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    async with serving(saying(NO_CONTENT)) as server:
        settings = destination(server.url.replace("127.0.0.1", "Straße.example"))
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    assert asked_for == ["xn--strae-oqa.example"]
    assert server.requests[0].header("Host") == f"xn--strae-oqa.example:{server.port}"


async def test_a_header_that_http_does_not_allow_is_not_repeated() -> None:
    async with serving(saying(NO_CONTENT)) as server:
        settings = destination(server.url)
        # The configuration refuses this.
        broken = settings.model_copy(update={"headers": {"X-Key": SecretStr("canary\r\nX-Other: canary")}})
        async with client_of(broken) as client:
            assert await client.send(b"body", 0) == Later("the connection failed (LocalProtocolError)")
    assert not server.requests


# ----------------------------------------------------------------------------------------- what takes too long


def dripping(head: bytes) -> Callable[[ScriptedServer], Answer]:
    """Answer with these bytes at once and then with one more every now and then, for ever."""

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.write(head)
            while True:
                await writer.drain()
                await asyncio.sleep(SHORT_SECONDS / 10)
                writer.write(b"x")

        return answer

    return script


def hanging(head: bytes) -> Callable[[ScriptedServer], Answer]:
    """Answer with these bytes and then never again."""

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.write(head)
            await asyncio.Event().wait()

        return answer

    return script


@pytest.mark.parametrize(
    "script",
    [hanging(b""), hanging(b"HTTP/1.1 200 OK\r\n"), dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ")],
    ids=["hang", "hang in the headers", "drip in the headers"],
)
async def test_the_time_limit_holds_for_the_whole_exchange(script: Callable[[ScriptedServer], Answer]) -> None:
    async with (
        serving(script) as server,
        client_of(destination(server.url, timeout_seconds=SHORT_SECONDS)) as client,
    ):
        assert await client.send(b"body", 0) == Later("no answer came within 0.3 s (remote_timeout)")


async def test_a_connection_that_never_comes_about_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "_TIMEOUTS", {"connect": SHORT_SECONDS})

    def script(_: ScriptedServer) -> Answer:
        async def answer(*_: object) -> None:
            await asyncio.Event().wait()

        return answer

    # A TLS handshake that is never answered.
    async with serving(script) as server, client_of(destination(server.url.replace("http:", "https:"))) as client:
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no connection came about: ")


@pytest.mark.parametrize("script", [hanging, dripping])
async def test_a_decision_counts_although_its_text_takes_too_long(
    script: Callable[[bytes], Callable[[ScriptedServer], Answer]],
) -> None:
    for head, kind in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfine", Accepted),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 1000\r\n\r\nbad", Refused),
    ):
        async with (
            serving(script(head)) as server,
            client_of(destination(server.url, timeout_seconds=HEAD_SECONDS)) as client,
        ):
            assert isinstance(await client.send(b"body", 0), kind)


async def test_after_a_timeout_the_next_request_gets_a_connection_of_its_own() -> None:
    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            if server.connections == 1:
                await asyncio.Event().wait()
            writer.write(NO_CONTENT)

        return answer

    async with (
        serving(script) as server,
        client_of(destination(server.url, timeout_seconds=SHORT_SECONDS)) as client,
    ):
        assert isinstance(await client.send(b"body", 0), Later)
        assert await client.send(b"body", 1) == Accepted(204)


async def test_a_send_that_is_cancelled_ends_as_cancelled() -> None:
    received = asyncio.Event()

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            received.set()
            await asyncio.Event().wait()

        return answer

    async with serving(script) as server, client_of(destination(server.url)) as client:
        sending = asyncio.create_task(client.send(b"body", 0))
        await received.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


# ----------------------------------------------------------------------------------------------------- secrets


async def test_no_secret_is_in_a_verdict_whatever_the_receiver_repeats() -> None:
    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await server.read_request(reader)
            echo = "\n".join([request.line, *(f"{name}: {value}" for name, value in request.headers)]).encode()
            status = (
                b"400 Bad",
                b"503 Busy",
                b"nonsense " + echo.replace(b"\n", b" "),
                b"307 Away\r\nLocation: //Canary-Header/",
            )[len(server.requests) - 1]
            writer.write(b"HTTP/1.1 " + status + f"\r\nContent-Length: {2 * len(echo)}\r\n\r\n".encode() + 2 * echo)

        return answer

    for credentials in ("basic", "bearer"):
        async with serving(script) as server:
            settings = destination(
                server.url + "?key=canary-key",
                headers={"X-Key": "Canary-Header"},
                basic_auth=BasicAuth(username="user", password=SecretStr("canary-pass"))
                if credentials == "basic"
                else None,
                authorization=Authorization(credentials=SecretStr("canary-token")) if credentials == "bearer" else None,
            )
            async with client_of(settings) as client:
                verdicts = [await client.send(b"body", attempt) for attempt in range(4)]
        assert [type(verdict) for verdict in verdicts] == [Refused, Later, Later, Later]
        # What was echoed is there, so that this test has something to look at.
        assert "x-key: *************" in str(verdicts[0])
        assert "the URL redirects to //*************, and" in str(verdicts[3])
        for verdict in verdicts:
            assert "canary" not in str(verdict).lower()
            assert "dXNlcjpjYW5hcnktcGFzcw" not in str(verdict)
        assert "canary" not in f"{client!r} {client._setup!r} {client._setup.connections!r}"
