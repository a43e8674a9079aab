"""What a fault on the way does to an answer's bytes.

A response is an ASGI application of Starlette's; breaking one needs to know how its connection is cut, which the
server tells through the request's scope (`CUT`).
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import assert_never

from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from worker.clock import Clock
from worker.simulator.faults import (
    ConnectionReset,
    GzipBomb,
    HttpStatus,
    MalformedJson,
    Slow,
    TruncatedBody,
    WireFault,
)

CUT = "worker.simulator.cut"
"""Key of the scope under which a server puts its `Cut`."""


class End(StrEnum):
    """How a connection ends before its time."""

    CLOSED = "closed"
    RESET = "reset"


Cut = Callable[[End], None]
"""Ends the connection of the request."""

_BLOCK_BYTES = 1 << 20

_HTML = (
    "<!DOCTYPE html>\n<html><head><title>api.cloudflare.com | {status}</title></head><body>Error {status}</body></html>"
)


def replaces_answer(fault: WireFault | None) -> bool:
    """Whether the request is not answered at all, so that the answer need not be made."""
    return isinstance(fault, HttpStatus | ConnectionReset | GzipBomb)


async def broken(fault: WireFault, response: Response, clock: Clock) -> Response:
    """The response as the fault lets it through."""
    match fault:
        case HttpStatus():
            return _other_status(fault)
        case Slow():
            return _SlowResponse(response, fault, clock)
        case TruncatedBody():
            return _CutResponse(response, End.CLOSED)
        case ConnectionReset():
            return _CutResponse(response, End.RESET)
        case MalformedJson():
            return Response(_half(response), response.status_code, media_type="application/json")
        case GzipBomb():
            bomb = await asyncio.to_thread(_bomb, fault.unpacked_bytes)
            return Response(bomb, media_type="application/json", headers={"Content-Encoding": "gzip"})
        case _:
            assert_never(fault)


def _other_status(fault: HttpStatus) -> Response:
    headers = {} if fault.retry_after_seconds is None else {"Retry-After": str(fault.retry_after_seconds)}
    if fault.is_html:
        return HTMLResponse(_HTML.format(status=fault.status), fault.status, headers)
    return Response(f"error {fault.status}\n", fault.status, headers, media_type="text/plain")


def _half(response: Response) -> bytes:
    return bytes(response.body)[: len(response.body) // 2]


def _bomb(unpacked_bytes: int) -> bytes:
    # 16 + 15: the largest window, in gzip's format.
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    block = bytes(_BLOCK_BYTES)
    blocks = (block[: unpacked_bytes - done] for done in range(0, unpacked_bytes, _BLOCK_BYTES))
    return b"".join([*(packer.compress(each) for each in blocks), packer.flush()])


def _pieces(body: bytes, count: int) -> Iterator[bytes]:
    # Rounded up, so that there are at most `count`.
    size = max(1, -(-len(body) // count))
    return (body[start : start + size] for start in range(0, len(body), size))


class _SlowResponse(Response):
    def __init__(self, response: Response, fault: Slow, clock: Clock) -> None:
        super().__init__(response.body, response.status_code, dict(response.headers))
        self._fault = fault
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await self._clock.sleep(self._fault.seconds)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for place, piece in enumerate(_pieces(bytes(self.body), self._fault.pieces)):
            if place:
                await self._clock.sleep(self._fault.seconds)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _CutResponse(Response):
    """Half of the body and then the end of the connection; of one that is reset, nothing at all."""

    def __init__(self, response: Response, end: End) -> None:
        super().__init__(response.body, response.status_code, dict(response.headers))
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._end is End.CLOSED:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": _half(self), "more_body": True})
        cut: Cut = scope[CUT]
        cut(self._end)
        # The server calls the request off once the connection is gone; ending before would look like a bug to it.
        while (await receive())["type"] != "http.disconnect":
            pass
