"""A server on a real socket that does what a test tells it, byte by byte."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from tests.clocks import ManualClock
from worker.clock import Clock
from worker.config import DestinationSettings
from worker.remote_write import RemoteWriteClient

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class SeenRequest:
    """A request as it came: names of headers in lower case, in their order, repeated ones repeated."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) <= 1, f"{name} was sent {len(values)} times"
        return values[0] if values else None


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedServer:
    """What came in, and where it listens."""

    answer: Answer
    scheme: str
    port: int = 0
    connections: int = 0
    requests: list[SeenRequest] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/api/v1/write"

    async def read_request(self, reader: asyncio.StreamReader) -> SeenRequest:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
        length = next((int(value) for name, value in headers if name == "content-length"), 0)
        request = SeenRequest(head[0], headers, await reader.readexactly(length))
        self.requests.append(request)
        return request


def saying(*chunks: bytes, then_close: bool = True) -> Callable[[ScriptedServer], Answer]:
    """Read a request, answer with these bytes, then close the connection or serve the next request on it."""

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await server.read_request(reader)
                for chunk in chunks:
                    writer.write(chunk)
                    await writer.drain()
                if then_close:
                    return

        return answer

    return script


def replying(reply: Callable[[SeenRequest], bytes]) -> Callable[[ScriptedServer], Answer]:
    """Answer every request with what `reply` makes of it, on a connection that stays open."""

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(reply(await server.read_request(reader)))
                await writer.drain()

        return answer

    return script


def response(status: int, body: bytes | str = b"", headers: str = "") -> bytes:
    """An answer with a body and further header lines."""
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


def echo(request: SeenRequest) -> str:
    """Everything that was received, as some servers repeat it in what they complain."""
    lines = [request.line, *(f"{name}: {value}" for name, value in request.headers), request.body.decode("latin-1")]
    return " ".join(lines)


@contextlib.asynccontextmanager
async def serving(
    script: Callable[[ScriptedServer], Answer], tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    """Serve until the block ends; connections that are still open then are cut."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        scripted.connections += 1
        try:
            # The client going away is what many of these tests are about.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await scripted.answer(reader, writer)
        finally:
            handlers.discard(task)
            writer.close()

    async def not_yet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    scripted = ScriptedServer(not_yet, "http" if tls is None else "https")
    scripted.answer = script(scripted)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)
        await server.wait_closed()


def destination(
    url: str, *, timeout_seconds: float = 30.0, headers: dict[str, str] | None = None, **more: Any
) -> DestinationSettings:
    return DestinationSettings(
        name="main",
        url=url,
        timeout_seconds=timeout_seconds,
        headers={name: SecretStr(value) for name, value in (headers or {}).items()},
        **more,
    )


@contextlib.asynccontextmanager
async def client_of(settings: DestinationSettings, clock: Clock | None = None) -> AsyncIterator[RemoteWriteClient]:
    client = RemoteWriteClient(settings, clock or ManualClock())
    try:
        yield client
    finally:
        await client.aclose()
