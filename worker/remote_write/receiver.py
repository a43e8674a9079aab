"""A remote write receiver in memory, for the demo and for tests; it speaks version 1.0 and 2.0.

Takes what the specifications allow and nothing else (`decode`), so that what it has stored was sent as it should be. Of
a request that is not all good it stores nothing in version 1.0 and the good part in version 2.0, and answers 400. An
ASGI application with one endpoint, `POST /api/v1/write`, on a port that can be closed and opened again to the same
memory. Delivery never comes here.
"""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, replace

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from worker.config import Message
from worker.remote_write.decode import InvalidRequestError, Labels, ReceivedSeries, bits, read_request, shown
from worker.series import MetricMetadata

# Remote write 2.0 specification, "Content-Type": these values, letter by letter.
_MESSAGES = {
    "application/x-protobuf": Message.V1,
    "application/x-protobuf;proto=prometheus.WriteRequest": Message.V1,
    "application/x-protobuf;proto=io.prometheus.write.v2.Request": Message.V2,
}

# Both specifications: "X-Prometheus-Remote-Write-Version".
_VERSIONS = {Message.V1: "0.1.0", Message.V2: "2.0.0"}

# A hundred reasons say no more than the first.
_MAX_REASONS = 10


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
    metadata:         help and unit by metric name, the newest.
    repeated_samples: how many came again with the value they had.
    requests:         how many were understood, by their message.
    answers:          how many requests were answered with each status.
    failure:          what every request is answered with, unread, while it is set.
    """

    def __init__(self, messages: Collection[Message] = tuple(Message)) -> None:
        """Make it.

        messages: those that it knows; any other is answered with 415.
        """
        self.samples: defaultdict[Labels, dict[int, float]] = defaultdict(dict)
        self.metadata: dict[str, MetricMetadata] = {}
        self.repeated_samples = 0
        self.requests: Counter[Message] = Counter()
        self.answers: Counter[int] = Counter()
        self.failure: Failure | None = None
        self.app = Starlette(routes=[Route("/api/v1/write", self._write, methods=["POST"])])
        self._messages = {name: message for name, message in _MESSAGES.items() if message in messages}

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
        message = self._messages.get(request.headers.get("content-type", ""))
        if message is None:
            return Response(f"content-type must be one of: {', '.join(self._messages)}", 415)
        if request.headers.get("content-encoding") != "snappy":
            return Response("content-encoding must be snappy", 415)
        if request.headers.get("x-prometheus-remote-write-version") != _VERSIONS[message]:
            return Response(
                f"x-prometheus-remote-write-version must be {_VERSIONS[message]} with this content-type", 400
            )
        if not request.headers.get("user-agent"):
            return Response("user-agent must tell who sends", 400)
        self.requests[message] += 1
        return self._answer_understood(message, await request.body())

    def _answer_understood(self, message: Message, body: bytes) -> Response:
        try:
            reading = read_request(body, message)
        except InvalidRequestError as error:
            return _written(0, str(error))
        good, conflicts = self._checked(reading.series)
        reasons = [*reading.broken_rules, *conflicts]
        if reasons and message is Message.V1:
            return _written(0, reasons[0])
        self._store(good)
        self.metadata.update(reading.metadata)
        count = sum(len(series.samples) for series in good)
        if not reasons:
            return _written(count)
        refused = f"{reading.sample_count - count} of {reading.sample_count} samples are refused"
        return _written(count, f"{refused}: {'; '.join(reasons[:_MAX_REASONS])}")

    def _checked(self, received: Iterable[ReceivedSeries]) -> tuple[list[ReceivedSeries], list[str]]:
        """What of it contradicts nothing that is stored, and what is wrong with the rest."""
        good: list[ReceivedSeries] = []
        conflicts: list[str] = []
        for series in received:
            stored = self.samples.get(series.labels, {})
            samples = []
            for timestamp_ms, value in series.samples:
                known = stored.get(timestamp_ms, value)
                if bits(known) == bits(value):
                    samples.append((timestamp_ms, value))
                else:
                    values = f"{known!r} is stored, {value!r} was sent"
                    conflicts.append(f"{shown(series.labels)} has two values at {timestamp_ms} ms: {values}")
            if samples:
                good.append(replace(series, samples=tuple(samples)))
        return good, conflicts

    def _store(self, received: list[ReceivedSeries]) -> None:
        for series in received:
            stored = self.samples[series.labels]
            self.repeated_samples += sum(timestamp_ms in stored for timestamp_ms, _ in series.samples)
            stored.update(series.samples)


def _written(samples: int, refused: str = "") -> Response:
    """The answer to a request that was understood, in either version: so many of its samples are stored."""
    # Remote write 2.0 specification, "Required Written Response Headers".
    headers = {
        "X-Prometheus-Remote-Write-Samples-Written": str(samples),
        "X-Prometheus-Remote-Write-Histograms-Written": "0",
        "X-Prometheus-Remote-Write-Exemplars-Written": "0",
    }
    return Response(refused, 400, headers) if refused else Response(status_code=204, headers=headers)
