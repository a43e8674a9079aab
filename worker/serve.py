"""The worker's HTTP side: health for probes, metrics for scrapes, the status for people and scripts.

Owns which paths exist, what they answer and how much of the process a client may hold. It only reads, and only what it
is handed; there is nothing to configure and nothing to post. Promises that slow, broken or curious clients, however
many, neither keep a probe or a scrape from its answer nor take more than bounded time, memory and ledger reading.

One connection carries one request and lives for a bounded time. Clients come every few seconds at most, so that keeping
connections open would save nothing, and one bound covers every way of being slow.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Self, cast

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker import page
from worker.clock import Clock
from worker.errors import UsageError, WorkerError
from worker.health import Health, Verdict, quote
from worker.observe import Metrics, get_logger
from worker.status import StatusReport, part_of_scopes, worst_first

# The longest that a connection lives, from its first byte to its last: a scrape gives up after 10 s by default.
CONNECTION_SECONDS = 10.0

# The status has to come early enough for its answer, good or bad, to be sent before the connection ends.
STATUS_SECONDS = 5.0

# At most one reading of the ledger in this time, however many look at the status.
STATUS_AGE_SECONDS = 2.0

# A connection takes one of the process's file descriptors, of which there are 1,024 by default; the rest is for work.
MAX_CONNECTIONS = 256

# The request line and all headers together. A browser with cookies of neighbours on the same host sends a few KiB.
MAX_HEAD_BYTES = 16 * 1024

# After stop(), how long answers under way may take: they are made in milliseconds.
STOP_SECONDS = 1

_SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": page.CONTENT_SECURITY_POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

log = get_logger()


def create_app(
    metrics: Metrics, health: Health, status: Callable[[], Awaitable[StatusReport]], clock: Clock
) -> Starlette:
    """The application.

    status: makes the report, from the ledger; what it raises is logged and answered with 503.
    """
    reports = _Reports(status, clock)

    async def answer_metrics(request: Request) -> Response:
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def answer_healthy(request: Request) -> Response:
        return _verdict(request, health.liveness(), "healthy")

    async def answer_ready(request: Request) -> Response:
        return _verdict(request, health.readiness(), "ready")

    async def answer_page(_request: Request) -> Response:
        report = await reports.newest()
        return Response(await asyncio.to_thread(page.render, report), media_type="text/html")

    async def answer_json(request: Request) -> Response:
        offset = _number(request, "offset") or 0
        limit = _number(request, "limit")
        report = part_of_scopes(await reports.newest(), offset, limit)
        return Response(await asyncio.to_thread(msgspec.json.encode, report), media_type="application/json")

    app = Starlette(
        routes=[
            Route("/", answer_page),
            Route("/metrics", answer_metrics),
            Route("/-/healthy", answer_healthy),
            Route("/-/ready", answer_ready),
            Route("/api/v1/status", answer_json),
        ],
        middleware=[Middleware(_SecurityHeaders)],
    )
    # Its redirects name the host that the client claims to have asked.
    app.router.redirect_slashes = False
    return app


def _verdict(request: Request, verdict: Verdict, adjective: str) -> Response:
    status_code = 200 if verdict.ok else 503
    if "application/json" in request.headers.get("accept", ""):
        return Response(msgspec.json.encode(verdict), status_code, media_type="application/json")
    lines = [adjective if verdict.ok else f"not {adjective}", *map(str, verdict.problems)]
    return PlainTextResponse("\n".join(lines) + "\n", status_code)


def _number(request: Request, name: str) -> int | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    # Nine digits are more zones than there are domains.
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise HTTPException(400, f"{name} must be a number from 0 to 999999999\n")
    return int(given)


class _Reports:
    """The newest report: read once for all who ask at the same time or shortly after."""

    def __init__(self, read: Callable[[], Awaitable[StatusReport]], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._turn = asyncio.Lock()
        self._report: StatusReport | None = None
        self._read_at = 0.0

    async def newest(self) -> StatusReport:
        """The report with the worst scopes first; HTTPException 503 where it cannot be had."""
        try:
            async with asyncio.timeout(STATUS_SECONDS), self._turn:
                if self._report is None or self._clock.monotonic() - self._read_at >= STATUS_AGE_SECONDS:
                    self._report = await asyncio.to_thread(worst_first, await self._read())
                    self._read_at = self._clock.monotonic()
                return self._report
        except TimeoutError as error:
            log.warning("the status was not there in time", allowed_seconds=STATUS_SECONDS)
            raise HTTPException(503, f"the status was not there after {STATUS_SECONDS:.0f} s; try again\n") from error
        except WorkerError as error:
            log.exception("the status cannot be read")
            raise HTTPException(503, f"the status cannot be read: {quote(str(error))}\n") from error
        except Exception as error:
            # An error that nobody expected may quote anything: its text is for the log, which is redacted.
            log.exception("the status cannot be read")
            raise HTTPException(503, f"the status cannot be read: {type(error).__name__}, see the log\n") from error


class _SecurityHeaders:
    """Puts the security headers on every answer, also on those that no route makes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, send_secured)


class Server:
    """Serves an application from inside the running event loop, without touching signals.

    Made by `bind`, run by `serve` as a task of its owner, ended by `stop`.

    host, port: where it listens; the port is a real one also where any (0) was asked for.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        self.host: str = listener.getsockname()[0]
        self.port: int = listener.getsockname()[1]
        self._serving = False
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=_BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("connection", "close")],
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    @classmethod
    async def bind(cls, app: ASGIApp, host: str, port: int) -> Self:
        """Listen on host and port, port 0 being any free one. UsageError where that cannot be had."""
        try:
            addresses = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = addresses[0]
            listener = socket.create_server(
                address[:2],
                family=family,
                dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            raise UsageError(_cannot_listen(host, port, error)) from error
        listener.setblocking(False)
        return cls(app, listener)

    async def serve(self) -> None:
        """Answer requests until `stop`. Cancelling it stops it, too, as orderly."""
        if self._uvicorn.should_exit:
            return
        self._serving = True
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]), name="http")
        try:
            await asyncio.shield(serving)
        finally:
            self.stop()
            await serving
            # Who does not read its answer is not waited for.
            for connection in list(self._uvicorn.server_state.connections):
                connection.transport.abort()

    def stop(self) -> None:
        """Take no more connections; `serve` returns when the answers under way are sent. May be called twice."""
        self._uvicorn.should_exit = True
        if not self._serving:
            self._listener.close()


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        reason = "another program listens there, perhaps another worker"
    elif isinstance(error, socket.gaierror) or error.errno is None:
        reason = str(error)
    else:
        reason = os.strerror(error.errno)
    return (
        f"LISTEN_ADDRESS (given: {host}:{port}): cannot listen: {reason}. "
        "It needs an address of this machine and a free port, for example 0.0.0.0:9845."
    )


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process that it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _BoundedProtocol(H11Protocol):
    """A connection that ends in time, whatever its client does or does not do.

    uvicorn bounds neither how long the head of a request may take nor how long an answer may be read, and its limit of
    concurrency would turn probes away together with those that hold the connections.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        if len(self.connections) >= MAX_CONNECTIONS:
            # An honest request is over in milliseconds: of so many, the oldest is the least likely to be one.
            oldest = min(cast(set[Self], self.connections), key=lambda connection: connection.opened)
            self.connections.discard(oldest)
            oldest.transport.abort()
        self.opened = self.loop.time()
        self.deadline = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline.cancel()
        super().connection_lost(exc)
