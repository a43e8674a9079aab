"""The client against real sockets: what servers and networks do that no stand-in for a transport shows."""

import asyncio
import gzip
import socket
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from tests.clocks import ManualClock
from worker.cloudflare import ErrorKind, Quota
from worker.cloudflare.client import MAX_BODY_BYTES, Answer, CloudflareClient, Refused

TOKEN = "canary-token-7Yx0"
OK = b'{"data": {}, "errors": null}'
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads requests, keeps them, and answers each as it is told to."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[bytes] = []
        self.address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while head := await _head(reader):
                length = next(
                    (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0"
                )
                self.requests.append(head + await reader.readexactly(int(length.split(b":")[1])))
                await self.behaviour(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}/client/v4"
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def sending(*pieces: bytes, close: bool = False) -> Behaviour:
    async def behaviour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()

    return behaviour


def response(body: bytes = OK, *headers: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    shown = len(body) if length is None else length
    return b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % shown, *headers, b"", body])


@asynccontextmanager
async def connected(
    behaviour: Behaviour, deadline_seconds: float = 30
) -> AsyncIterator[tuple[Server, CloudflareClient]]:
    server = Server(behaviour)
    clock = ManualClock()
    async with server.running():
        client = CloudflareClient(
            api_url=server.address, token=TOKEN, clock=clock, quota=Quota(clock), deadline_seconds=deadline_seconds
        )
        yield server, client
        await client.aclose()


async def refused(client: CloudflareClient) -> ErrorKind:
    outcome = await client.graphql(b'{"query": "q"}')
    assert isinstance(outcome, Refused), outcome
    assert TOKEN not in repr(outcome)
    return outcome.failures[0].kind


async def test_a_query_arrives_and_its_answer_is_read_on_one_kept_connection() -> None:
    async with connected(sending(response())) as (server, client):
        for _ in range(3):
            assert await client.graphql(b'{"query": "q"}') == Answer(OK)
        assert len(server.requests) == 3
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /client/v4/graphql HTTP/1.1\r\n")
        assert b"Authorization: Bearer " + TOKEN.encode() in head
        assert body == b'{"query": "q"}'


async def test_a_gzip_answer_is_unpacked() -> None:
    async with connected(sending(response(gzip.compress(OK), b"Content-Encoding: gzip"))) as (_, client):
        assert await client.graphql(b"{}") == Answer(OK)


async def test_a_bomb_costs_no_more_memory_than_the_bound() -> None:
    bomb = gzip.compress(bytes(1 << 28))  # 256 MiB in 260 kB
    async with connected(sending(response(bomb, b"Content-Encoding: gzip"))) as (_, client):
        tracemalloc.start()
        try:
            assert await refused(client) is ErrorKind.TOO_LARGE
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The body up to the bound, once more while the buffer grows, and one unpacked chunk of the wire.
        assert peak < 3.2 * MAX_BODY_BYTES


async def test_an_answer_that_drips_is_bounded_by_the_deadline() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"", length=1_000_000))
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with connected(drip, deadline_seconds=0.2) as (_, client):
        assert await refused(client) is ErrorKind.NETWORK


async def test_a_server_that_says_nothing_is_bounded_by_the_deadline() -> None:
    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with connected(hang, deadline_seconds=0.1) as (_, client):
        assert await refused(client) is ErrorKind.NETWORK


async def test_a_handshake_that_is_never_answered_leaves_no_connection_open() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = CloudflareClient(
        api_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        token=TOKEN,
        clock=ManualClock(),
        quota=Quota(ManualClock()),
        deadline_seconds=0.3,
    )
    async with server:
        outcome = await client.graphql(b"{}")
        assert isinstance(outcome, Refused)
        assert outcome.failures[0].kind is ErrorKind.NETWORK
        assert outcome.failures[0].message == "no connection within 0.1 s"
        async with asyncio.timeout(10):
            await left.wait()
        await client.aclose()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (response(OK, length=len(OK) + 10),),
        (b"HTTP/1.1 200 OK\r\nContent-Le",),
        (b"this is not HTTP\r\n\r\n",),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"dat',),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n",),
    ],
)
async def test_an_answer_that_breaks_off_or_is_none_is_a_failure(pieces: tuple[bytes, ...]) -> None:
    async with connected(sending(*pieces, close=True)) as (server, client):
        assert await refused(client) is ErrorKind.NETWORK
        server.behaviour = sending(response())
        assert await client.graphql(b"{}") == Answer(OK)


async def test_a_reset_connection_is_a_failure_that_says_so() -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # With a lingering time of 0 s, closing sends a reset instead of an end.
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async with connected(reset) as (_, client):
        outcome = await client.graphql(b"{}")
        assert isinstance(outcome, Refused)
        assert outcome.failures[0].message == "ReadError: the connection broke off"


async def test_a_body_without_a_length_that_breaks_off_is_not_taken_for_complete() -> None:
    async with connected(sending(b"HTTP/1.0 200 OK\r\n\r\n" + OK[:-3], close=True)) as (_, client):
        assert await refused(client) is ErrorKind.MALFORMED


async def test_nobody_there_is_a_failure() -> None:
    async with connected(sending(response())) as (server, _):
        address = server.address
    client = CloudflareClient(api_url=address, token=TOKEN, clock=ManualClock(), quota=Quota(ManualClock()))
    assert await refused(client) is ErrorKind.NETWORK
    await client.aclose()


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary Redirect", b"308 Permanent Redirect"])
async def test_a_redirect_is_not_followed(status: bytes) -> None:
    elsewhere = Server(sending(response()))
    async with elsewhere.running(), connected(sending()) as (server, client):
        server.behaviour = sending(response(b"", b"Location: " + elsewhere.address.encode(), status=status))
        assert await refused(client) is ErrorKind.ENDPOINT
        assert elsewhere.requests == []


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = Server(sending(response()))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    async with proxy.running(), connected(sending(response())) as (server, _):
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.address)
        monkeypatch.setenv("NETRC", str(netrc))
        client = CloudflareClient(api_url=server.address, token=TOKEN, clock=ManualClock(), quota=Quota(ManualClock()))
        assert await client.graphql(b"{}") == Answer(OK)
        await client.aclose()
        assert proxy.requests == []
        assert b"Basic" not in server.requests[0]


async def test_a_certificate_that_nobody_vouches_for_is_refused_before_the_token_is_sent() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    server = Server(sending(response()))
    async with server.running(tls):
        client = CloudflareClient(api_url=server.address, token=TOKEN, clock=ManualClock(), quota=Quota(ManualClock()))
        assert await refused(client) is ErrorKind.NETWORK
        await client.aclose()
        assert server.requests == []


async def test_a_certificate_of_an_authority_of_the_machine_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = Server(sending(response()))
    async with server.running(tls):
        client = CloudflareClient(api_url=server.address, token=TOKEN, clock=ManualClock(), quota=Quota(ManualClock()))
        assert await client.graphql(b"{}") == Answer(OK)
        await client.aclose()
