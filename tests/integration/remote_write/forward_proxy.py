"""A proxy on a real socket: tunnels for CONNECT, and forwards plain requests."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class ForwardProxy:
    """What came in, and where it listens.

    answer: what CONNECT is answered with; a tunnel opens where it begins with 200.
    """

    answer: bytes = b"200 OK"
    scheme: str = "http"
    port: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        method, target, _ = head.decode().split(" ", 2)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 " + self.answer + b"\r\n\r\n")
            if not self.answer.startswith(b"200"):
                return
            host, port = target.rsplit(":", 1)
            first = b""
        else:
            parts = urlsplit(target)
            host, port = parts.hostname or "", str(parts.port)
            first = head.replace(target.encode(), parts.path.encode(), 1)
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        there_writer.write(first)
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            there_writer.close()
            with contextlib.suppress(ConnectionError):
                await there_writer.wait_closed()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while chunk := await source.read(65_536):
            sink.write(chunk)
            await sink.drain()
    sink.close()


@contextlib.asynccontextmanager
async def proxying(answer: bytes = b"200 OK", tls: ssl.SSLContext | None = None) -> AsyncIterator[ForwardProxy]:
    """Serve until the block ends; tunnels that are still open then are cut."""
    proxy = ForwardProxy(answer, "http" if tls is None else "https")
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await proxy.serve(reader, writer)
        finally:
            handlers.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)
        await server.wait_closed()
