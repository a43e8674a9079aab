"""Connections of which an answer can be read that came while the request was still being sent.

A receiver that will not take a request, for its size say, may answer before it has read it, and then close the
connection; the system resets it, as there is something unread. asyncio closes its socket when writing fails, and what
had arrived is gone with it, the status among it. A second descriptor of the same socket keeps that here, and it is read
from there, through TLS and a proxy's tunnel as well.

Promises: whoever asks is told that writing failed (`was_cut_off`), as no success can be true then, and an error says so
where nothing can be read (`CutOffError`). Knows nothing of what is sent or answered. Where the system itself drops what
has arrived when a connection is reset, as others than Linux may, there is no answer.
"""

import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream, SocketAttribute
from httpcore._backends.anyio import AnyIOStream

_WAS_CUT_OFF = "was_cut_off"


class CutOffError(anyio.BrokenResourceError):
    """The connection broke before all of the request was sent."""


class EarlyAnswers(httpcore.AnyIOBackend):
    """Makes such connections, for httpcore."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As httpcore's own."""
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        try:
            kept = _Kept(_inside(stream))
        except OSError:  # no descriptor is left for a second one
            await stream.aclose()
            raise
        return _Stream(kept, kept)


def was_cut_off(response: httpx.Response) -> bool:
    """Whether the answer was found behind a failure to send all of its request."""
    return bool(response.extensions["network_stream"].get_extra_info(_WAS_CUT_OFF))


def _inside(stream: httpcore.AsyncNetworkStream) -> ByteStream:
    """The connection in httpcore's stream, which shows it nowhere."""
    return cast("AnyIOStream", stream)._stream  # noqa: SLF001 - see above


class _Stream(AnyIOStream):
    """As httpcore's own, of a connection that is kept, or of TLS over one; it can tell more."""

    def __init__(self, stream: ByteStream, kept: "_Kept") -> None:
        super().__init__(stream)
        self._kept = kept

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore's
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await super().start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            # httpcore closes it after an error, but leaves it open where the handshake is given up meanwhile.
            await self.aclose()
            raise
        return _Stream(_inside(stream), self._kept)

    def get_extra_info(self, info: str) -> Any:
        return self._kept.was_cut_off if info == _WAS_CUT_OFF else super().get_extra_info(info)


class _Kept(ByteStream):
    """A connection of asyncio's, and a descriptor of its socket that outlives it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - no query of Django's
        self._kept = self._socket.dup()
        self.was_cut_off = False

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send(item)
        except anyio.BrokenResourceError:
            # Nor is TLS told, which would read no more. Whoever reads next finds an answer, or an error.
            self.was_cut_off = True
        else:
            # What fails at once is not raised; but then asyncio has closed its own descriptor.
            self.was_cut_off |= self._socket.fileno() < 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.BrokenResourceError as error:
            if not self.was_cut_off:
                raise
            # It does not wait: after a reset nothing more arrives.
            arrived = self._arrived(max_bytes)
            if not arrived:
                raise CutOffError from error
            return arrived

    def _arrived(self, max_bytes: int) -> bytes:
        try:
            return self._kept.recv(max_bytes)
        except OSError:  # another error is raised for it
            return b""

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._kept.close()
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """No more than httpcore asks for: the stream's own ask the system who is there, whichever is looked at."""
        return {SocketAttribute.raw_socket: lambda: self._socket}
