"""What is answered to a request that is not read to its end, on a connection that is reset then."""

import asyncio
import errno
import select
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpcore
import pytest
import trustme

from tests.integration.remote_write.forward_proxy import proxying
from tests.integration.remote_write.scripted_server import (
    Answer,
    ScriptedServer,
    client_of,
    destination,
    response,
    serving,
)
from worker.config import ProxySettings, TlsSettings
from worker.remote_write import Later, Refused, Verdict
from worker.remote_write.early import CutOffError, EarlyAnswers

# More than the buffers of both ends take (4 MB and 6 MB at most, where nobody changed Linux' settings).
LARGE_BYTES = 12_000_000

TOO_LARGE = response(413, "too large", "Connection: close\r\n")


def stops_reading_and_says(answer: bytes) -> Callable[[ScriptedServer], Answer]:
    """Answer to the head, then close with most of the body unread: the system resets the connection."""

    def script(_: ScriptedServer) -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(answer)
            await writer.drain()
            writer.transport.abort()

        return serve

    return script


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ssl.SSLContext | None, TlsSettings]:
    """Of the server, and of the client."""
    if request.param == "http":
        return None, TlsSettings()
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context, TlsSettings(ca_file=tmp_path / "ca.pem")


async def verdicts_on(answer: bytes, tls: tuple[ssl.SSLContext | None, TlsSettings], size_bytes: int) -> list[Verdict]:
    async with (
        serving(stops_reading_and_says(answer), tls[0]) as server,
        client_of(destination(server.url, tls=tls[1])) as client,
    ):
        verdicts = [await client.send(bytes(size_bytes), 0) for _ in range(3)]
        assert server.connections == 3
        return verdicts


@pytest.mark.parametrize("size_bytes", [1000, 300_000, LARGE_BYTES])
async def test_an_answer_is_read_although_the_connection_was_reset_in_the_middle_of_the_request(
    tls: tuple[ssl.SSLContext | None, TlsSettings], size_bytes: int
) -> None:
    assert await verdicts_on(TOO_LARGE, tls, size_bytes) == [Refused(413, "too large")] * 3


async def test_a_success_before_all_was_sent_is_none(tls: tuple[ssl.SSLContext | None, TlsSettings]) -> None:
    for verdict in await verdicts_on(response(200, "fine"), tls, LARGE_BYTES):
        assert isinstance(verdict, Later)
        assert verdict.reason == "HTTP 200 before the whole request was sent, and the connection was cut"
        assert verdict.was_cut_off


async def test_without_an_answer_it_is_told_that_the_request_was_not_sent_to_its_end(
    tls: tuple[ssl.SSLContext | None, TlsSettings],
) -> None:
    for verdict in await verdicts_on(b"", tls, LARGE_BYTES):
        assert isinstance(verdict, Later)
        assert verdict.reason.startswith("the connection failed while the request was being sent: ")
        assert verdict.was_cut_off


async def test_a_connection_that_breaks_behind_the_request_is_not_taken_for_one_that_did_in_it() -> None:
    def script(server: ScriptedServer) -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.transport.abort()

        return serve

    async with serving(script) as server, client_of(destination(server.url)) as client:
        verdict = await client.send(bytes(1000), 0)
        assert isinstance(verdict, Later)
        assert not verdict.was_cut_off


async def test_what_is_sent_on_a_connection_that_was_reset_before_is_cut_off_and_what_had_arrived_is_read() -> None:
    def script(_: ScriptedServer) -> Answer:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"answer")
            await writer.drain()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        return serve

    async with serving(script) as server:
        stream = await EarlyAnswers().connect_tcp("127.0.0.1", server.port)
        was_reset = select.poll()
        was_reset.register(stream.get_extra_info("socket").fileno(), 0)
        while not was_reset.poll(0):  # noqa: ASYNC110 - nothing else tells of a reset
            await asyncio.sleep(0)
        await stream.write(b"request")
        assert stream.get_extra_info("was_cut_off")
        assert await stream.read(100) == b"answer"
        with pytest.raises(httpcore.ReadError) as caught:
            await stream.read(100)
        assert isinstance(caught.value.__cause__, CutOffError)
        await stream.aclose()


@dataclass
class Gone:
    """What a server sees of a client that it never answers."""

    came: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def script(self, _: ScriptedServer) -> Answer:
        async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(65_536):
                    self.came.set()
            finally:
                self.left.set()

        return serve


@pytest.mark.parametrize("way", ["directly", "through a tunnel", "to a proxy that speaks TLS"])
async def test_a_handshake_that_is_given_up_leaves_no_connection_open(way: str) -> None:
    gone = Gone()
    async with serving(gone.script) as server, proxying() as proxy:
        url = server.url.replace("http:", "https:")
        proxies = {
            "directly": None,
            "through a tunnel": proxy.url,
            "to a proxy that speaks TLS": url.removesuffix("/api/v1/write"),
        }
        async with client_of(destination(url, proxy=ProxySettings(proxy_url=proxies[way]))) as client:
            sending = asyncio.create_task(client.send(b"body", 0))
            await gone.came.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            async with asyncio.timeout(10):
                await gone.left.wait()


async def test_a_connection_without_a_second_descriptor_is_closed_and_its_request_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_is_left(_: socket.socket) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "dup", none_is_left)
    gone = Gone()
    async with serving(gone.script) as server, client_of(destination(server.url)) as client:
        assert await client.send(b"body", 0) == Later("the connection failed: Too many open files")
        async with asyncio.timeout(10):
            await gone.left.wait()


async def test_a_handshake_that_breaks_says_nothing_about_the_size_of_the_request() -> None:
    def script(_: ScriptedServer) -> Answer:
        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        return serve

    async with (
        serving(script) as server,
        client_of(destination(server.url.replace("http:", "https:"))) as client,
    ):
        for attempt in range(20):  # in about half of them the reset is there before the first bytes are sent
            verdict = await client.send(b"body", attempt)
            assert isinstance(verdict, Later)
            assert not verdict.was_cut_off
            assert "request" not in verdict.reason
