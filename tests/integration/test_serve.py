import asyncio
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from msgspec import structs
from starlette.types import Receive, Scope, Send

from tests.clocks import ManualClock
from tests.plain_http import NO_AUTHORITIES
from tests.reports import REPORT, SCOPE
from worker import serve
from worker.errors import UsageError
from worker.health import Health
from worker.observe import Metrics
from worker.serve import Server, create_app
from worker.status import StatusReport

LARGE_REPORT = replace(REPORT, scopes=tuple(structs.replace(SCOPE, name=f"{n}.example") for n in range(30_000)))


async def read_report() -> StatusReport:
    return REPORT


async def read_large_report() -> StatusReport:
    return LARGE_REPORT


@asynccontextmanager
async def serving(status: Callable[[], Awaitable[StatusReport]] = read_report) -> AsyncIterator[Server]:
    clock = ManualClock()
    health = Health(clock)
    metrics = Metrics(clock, health, version="0.1.0", sqlite_version="3.54.1")
    server = await Server.bind(create_app(metrics, health, status, clock), "127.0.0.1", 0)
    task = asyncio.create_task(server.serve())
    try:
        yield server
    finally:
        server.stop()
        await task


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}", limits=limits, trust_env=False, verify=NO_AUTHORITIES
    )


async def get(server: Server, path: str) -> httpx.Response:
    async with client_of(server) as client:
        return await client.get(path)


async def send(server: Server, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> None:
    """Returns when the server has closed the connection, however."""
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        return


async def test_it_answers_on_the_port_that_it_reports(server: Server) -> None:
    assert server.host == "127.0.0.1"
    assert server.port > 0
    assert (await get(server, "/-/healthy")).text == "healthy\n"


async def test_an_answer_tells_no_software_and_ends_the_connection(server: Server) -> None:
    answer = await get(server, "/metrics")

    assert "server" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert "date" in answer.headers


async def test_head_is_get_without_a_body(server: Server) -> None:
    reader, writer = await send(server, b"HEAD /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: 8" in head.lower()
    assert body == b""


async def test_a_port_that_is_taken_is_a_mistake_of_usage_that_names_the_setting(server: Server) -> None:
    with pytest.raises(UsageError) as caught:
        await Server.bind(_nothing, "127.0.0.1", server.port)

    assert str(caught.value) == (
        f"LISTEN_ADDRESS (given: 127.0.0.1:{server.port}): cannot listen: another program listens there, perhaps "
        "another worker. It needs an address of this machine and a free port, for example 0.0.0.0:9845."
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_of_this_machine_is_a_mistake_of_usage(host: str) -> None:
    with pytest.raises(UsageError, match=rf"LISTEN_ADDRESS \(given: {host}:0\): cannot listen: .+"):
        await Server.bind(_nothing, host, 0)


async def test_the_port_is_free_again_after_the_stop() -> None:
    async with serving() as server:
        await get(server, "/metrics")
        port = server.port

    again = await Server.bind(_nothing, "127.0.0.1", port)
    again.stop()


async def test_stopping_before_serving_closes_the_port_and_serves_nothing() -> None:
    server = await Server.bind(_nothing, "127.0.0.1", 0)
    server.stop()
    server.stop()
    await server.serve()

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_cancelling_stops_it_in_order() -> None:
    server = await Server.bind(_nothing, "127.0.0.1", 0)
    task = asyncio.create_task(server.serve())
    reader, writer = await send(server, b"GET /")
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await ended(reader)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_signals_stay_with_the_process() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    async with serving() as server:
        await get(server, "/metrics")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_two_hundred_scrapes_beside_fifty_slow_clients_all_get_their_answer(server: Server) -> None:
    slow = [await send(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(50)]

    async with client_of(server) as client:
        answers = await asyncio.gather(*(client.get("/metrics") for _ in range(200)))

    assert {answer.status_code for answer in answers} == {200}
    assert all("cfrw_build_info" in answer.text for answer in answers)
    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize("data", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_more_slow_clients_than_connections_keep_no_probe_from_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(serve, "CONNECTION_SECONDS", 3600)
    slow = [await send(server, data) for _ in range(40)]

    assert (await get(server, "/-/healthy")).status_code == 200

    # The oldest had to go: 40 and the probe do not fit into 8.
    await asyncio.gather(*(ended(reader) for reader, _ in slow[:33]))
    for _, writer in slow:
        writer.close()


async def test_connections_that_come_all_at_once_are_as_few(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(serve, "CONNECTION_SECONDS", 3600)
    slow = await asyncio.gather(*(send(server, b"") for _ in range(40)))

    for first_to_end in itertools.islice(asyncio.as_completed([ended(reader) for reader, _ in slow]), 32):
        await first_to_end

    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET /metrics HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    ],
)
async def test_a_connection_ends_in_time_whatever_its_client_does(
    server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(serve, "CONNECTION_SECONDS", 0.05)

    reader, writer = await send(server, data)

    await ended(reader)
    writer.close()


async def test_a_client_that_does_not_read_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = asyncio.Event()

    class Watched(serve._BoundedProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    monkeypatch.setattr(serve, "_BoundedProtocol", Watched)
    monkeypatch.setattr(serve, "CONNECTION_SECONDS", 0.5)
    async with serving(read_large_report) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
            await asyncio.get_running_loop().sock_sendall(client, b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            await lost.wait()

        assert (await get(server, "/-/healthy")).status_code == 200


async def test_stopping_does_not_wait_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "STOP_SECONDS", 0)
    async with serving(read_large_report) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=16)
        writer.write(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(16)
        writer.transport.pause_reading()  # type: ignore[attr-defined] # what a stream has is a reading transport

    assert not server._uvicorn.server_state.connections
    writer.transport.abort()


async def test_a_megabyte_of_headers_is_refused(server: Server) -> None:
    reader, writer = await send(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Big: ")
    answer = b""
    try:
        for _ in range(64):
            writer.write(b"x" * 16 * 1024)
            await writer.drain()
        writer.write(b"\r\n\r\n")
        answer = await reader.read()
    except ConnectionError:
        pass  # closed in the middle of it, which is a refusal too
    writer.close()

    assert b"cfrw_" not in answer
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert (await get(server, "/-/healthy")).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
async def test_what_is_no_request_costs_only_its_own_connection(server: Server, data: bytes) -> None:
    reader, writer = await send(server, data)
    await ended(reader)
    writer.close()

    assert (await get(server, "/-/healthy")).status_code == 200


async def test_an_accept_header_of_nonsense_still_gets_metrics(server: Server) -> None:
    async with client_of(server) as client:
        accept = b"application/openmetrics-text;version=x;q=\xff,;;=,"
        answer = await client.get("/metrics", headers={b"accept": accept})

    assert answer.status_code == 200


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError((scope, receive, send))
