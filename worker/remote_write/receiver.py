"""A remote write receiver in memory, for the demo and for tests.

Takes what the specification allows and nothing else (`decode`), so that what it has stored was sent as it should be. An
ASGI application with one endpoint, `POST /api/v1/write`, on a port that can be closed and opened again to the same
memory. Delivery never comes here.
"""

import asyncio
import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from worker.remote_write.decode import InvalidRequestError, Labels, ReceivedSeries, bits, read_write_request, shown

# Remote write 1.0 specification, "Protocol": what a request must have, and the status where it has not.
_HEADERS = (
    ("content-encoding", re.compile("snappy"), 415),
    ("content-type", re.compile(r"application/x-protobuf(;proto=prometheus\.WriteRequest)?"), 415),
    ("x-prometheus-remote-write-version", re.compile(r"0\.1\.0"), 400),
    ("user-agent", re.compile(".+"), 400),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a receiver that is made to fail answers.

    retry_after: the `Retry-After` header, left out where it is None.
    """

    status: int
    text: str = "made to fail"
    retry_after: str | None = None


class MemoryReceiver:
    """What was received, and how it was answered.

    samples:          value by timestamp (unix milliseconds) by series.
    repeated_samples: how many came again with the value they had.
    answers:          how many requests were answered with each status.
    failure:          what every request is answered with, unread, while it is set.
    """

    def __init__(self) -> None:
        self.samples: defaultdict[Labels, dict[int, float]] = defaultdict(dict)
        self.repeated_samples = 0
        self.answers: Counter[int] = Counter()
        self.failure: Failure | None = None
        self.app = Starlette(routes=[Route("/api/v1/write", self._write, methods=["POST"])])

    @contextlib.asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Take requests until the block ends, then cut every connection; gives the URL to push to.

        Port 0 takes a free one. OSError where the port is taken. Runs in the event loop that it is called from, without
        uvicorn's own server: that would take over the process's signals.
        """
        config = uvicorn.Config(self.app, lifespan="off", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: H11Protocol(config=config, server_state=state, app_state={}), host, port
        )
        bound_port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://{host}:{bound_port}/api/v1/write"
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.gather(*state.tasks)
            await server.wait_closed()

    async def _write(self, request: Request) -> Response:
        response = await self._answer(request)
        self.answers[response.status_code] += 1
        return response

    async def _answer(self, request: Request) -> Response:
        if self.failure is not None:
            headers = {} if self.failure.retry_after is None else {"Retry-After": self.failure.retry_after}
            return Response(self.failure.text, self.failure.status, headers)
        for name, allowed, status in _HEADERS:
            if not allowed.fullmatch(request.headers.get(name, "")):
                return Response(f"{name} must match {allowed.pattern}", status)
        try:
            self._store(read_write_request(await request.body()))
        except InvalidRequestError as error:
            return Response(str(error), 400)
        return Response(status_code=204)

    def _store(self, received: list[ReceivedSeries]) -> None:
        """Store all samples or, where one contradicts what is stored, none."""
        repeated = 0
        for series in received:
            stored = self.samples.get(series.labels, {})
            for timestamp_ms, value in series.samples:
                if timestamp_ms not in stored:
                    continue
                if bits(stored[timestamp_ms]) != bits(value):
                    values = f"{stored[timestamp_ms]!r} is stored, {value!r} was sent"
                    message = f"{shown(series.labels)} has two values at {timestamp_ms} ms: {values}"
                    raise InvalidRequestError(message)
                repeated += 1
        for series in received:
            self.samples[series.labels].update(series.samples)
        self.repeated_samples += repeated
