"""A remote write receiver on a real socket that does to chosen requests what a test says, byte by byte.

Speaks remote write 1.0 and 2.0, read by protobuf's own parser; shares no code with the worker but the two generated
messages. Has a model of storage of both kinds that exist: one that rolls a request back over one bad sample, and one
that keeps the good part of it. Keeps every request as it came, which is what `tests.delivery_oracle` judges by.

A `Behaviour` is data: which requests it happens to, how often, and what is done to them instead of answering as the
storage says. `happened` counts, so that a test can prove that its fault really was there.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Protocol, TypeAlias

import snappy  # type: ignore[import-untyped]  # ships no types
from google.protobuf.message import DecodeError

from worker.remote_write.proto import remote_write_v1_pb2 as v1
from worker.remote_write.proto import remote_write_v2_pb2 as v2

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""A series as it was sent: pairs of name and value, in their order."""

Sample: TypeAlias = tuple[Labels, int]
"""Which sample: its series and its timestamp, unix milliseconds. Its value is compared by its 64 bits."""


class Version(Enum):
    """The messages of remote write: what a request's Content-Type names, and its version header."""

    V1 = ("application/x-protobuf", "0.1.0")
    V2 = ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0")


@dataclass(slots=True, eq=False)
class Request:
    """One request as it came, and what became of it.

    number:      from 1, in the order in which requests were read completely.
    at:          when it had been read, on the receiver's clock.
    answered_at: when the head of its answer, or what took its place, was sent; None before.
    attempt:     its `Retry-Attempt`, 0 without one.
    samples:     the bits of every sample in it.
    unread:      how many requests had been cut off before they were read, when it came.
    fault:       name of the behaviour that happened to it, None where it was answered as the storage says.
    status:      of the answer whose whole head was sent; None without one.
    accepted:    whether that answer says that everything is stored: a 2xx, to 2.0 with a Written header.
    size_refused: whether it was refused for its size.
    """

    number: int
    at: float
    line: str
    headers: tuple[tuple[str, str], ...]
    version: Version
    attempt: int
    body: bytes
    samples: dict[Sample, int]
    unread: int = 0
    fault: str | None = None
    status: int | None = None
    accepted: bool = False
    size_refused: bool = False
    answered_at: float | None = None
    series: frozenset[Labels] = frozenset()

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


# ------------------------------------------------------------------------------------------------------ storage


class Keeping(Enum):
    """What a receiver does with the rest of a request in which a sample is bad."""

    ALL_OR_NOTHING = auto()
    """Rolls it back, as Prometheus does with 1.0."""

    GOOD_PART = auto()
    """Stores it and answers an error all the same, as Mimir, Cortex, Thanos, and Prometheus with 2.0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with its text. samples_written: how many samples were stored."""

    status: int
    text: str = ""
    samples_written: int = 0

    def wire(self, version: Version) -> bytes:
        written = {"X-Prometheus-Remote-Write-Samples-Written": str(self.samples_written)}
        # Prometheus' own receiver sends all three or none.
        written |= dict.fromkeys(
            ("X-Prometheus-Remote-Write-Histograms-Written", "X-Prometheus-Remote-Write-Exemplars-Written"), "0"
        )
        return http(self.status, self.text.encode(), written if version is Version.V2 else {})


BadSample: TypeAlias = Callable[[Labels, int], Answer | None]
"""Tells what a receiver answers because of a sample; None where it takes it."""


def nothing_bad(_labels: Labels, _timestamp_ms: int) -> None:
    return None


def bad(samples: Iterable[Sample], status: int = 400, text: str = "too old sample") -> BadSample:
    """These samples are never taken."""
    answer = Answer(status, text)
    wanted = frozenset(samples)
    return lambda labels, timestamp_ms: answer if (labels, timestamp_ms) in wanted else None


@dataclass(slots=True)
class Storage:
    """What a receiver holds, and what it takes.

    refuses:      bad samples, for ever.
    out_of_order: whether a series takes a sample that is older than its newest one.
    max_samples:  more of them in a request are answered with `too_large`; so are more than `max_bytes` uncompressed.
    samples:      bits of the value by timestamp by series.
    """

    keeping: Keeping = Keeping.ALL_OR_NOTHING
    refuses: BadSample = nothing_bad
    out_of_order: bool = True
    max_samples: int | None = None
    max_bytes: int | None = None
    too_large: Answer = Answer(413, "write request too large")
    samples: dict[Labels, dict[int, int]] = field(default_factory=dict)

    def store(self, request: Request) -> Answer:
        if self._is_too_large(request):
            request.size_refused = True
            return self.too_large
        # As in a TSDB, a sample is checked against what was stored before the request.
        newest = {labels: max(self.samples.get(labels, {0: 0})) for labels in request.series}
        found = {sample: self._complaint(sample, bits, newest[sample[0]]) for sample, bits in request.samples.items()}
        good = [sample for sample, complaint in found.items() if complaint is None]
        complaint = next((complaint for complaint in found.values() if complaint is not None), None)
        if complaint is not None and self.keeping is Keeping.ALL_OR_NOTHING:
            good = []
        for labels, timestamp_ms in good:
            self.samples.setdefault(labels, {})[timestamp_ms] = request.samples[labels, timestamp_ms]
        if complaint is not None:
            return Answer(complaint.status, complaint.text, len(good))
        return Answer(204, samples_written=len(good))

    def _is_too_large(self, request: Request) -> bool:
        if self.max_samples is not None and len(request.samples) > self.max_samples:
            return True
        return self.max_bytes is not None and len(snappy.uncompress(request.body)) > self.max_bytes

    def _complaint(self, sample: Sample, bits: int, newest_ms: int) -> Answer | None:
        labels, timestamp_ms = sample
        if (answer := self.refuses(labels, timestamp_ms)) is not None:
            return answer
        stored = self.samples.get(labels, {}).get(timestamp_ms)
        if not self.out_of_order and timestamp_ms < newest_ms:
            return Answer(400, "out of order sample")
        if stored is not None and stored != bits:
            return Answer(400, "duplicate sample for timestamp")
        return None


# --------------------------------------------------------------------------------------------------- behaviours


class Reads(Enum):
    """How much of a request is read before something is done to it."""

    NOTHING = auto()
    HEAD = auto()
    ALL = auto()


class Then(Enum):
    """What becomes of the connection."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    HANG = auto()


Wire: TypeAlias = bytes | Callable[[Request], bytes]
"""What is sent back, or how it follows from the request."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is done to a request instead of answering as the storage says.

    wire:         what is sent back, byte for byte.
    then:         what becomes of the connection afterwards.
    stores:       the storage gets the request all the same; where it refuses, that is told and nothing else is done.
    reads:        how much is read before it happens.
    prompt:       what is sent before `wire`, without pauses.
    drip_seconds: pause after every byte of `wire`.
    unclear:      whether the answer may be taken for one, or for none, whatever its status.
    """

    wire: Wire = b""
    then: Then = Then.KEEP
    stores: bool = False
    reads: Reads = Reads.ALL
    prompt: Wire = b""
    drip_seconds: float = 0.0
    unclear: bool = False


def every(_request: Request) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A fault: an act, how often it happens, and to which requests: where only a head is read, by the body's length."""

    name: str
    act: Act
    times: int = 2
    to: Callable[[Request], bool] = every
    above_bytes: int = 0


def http(
    status: int,
    body: bytes = b"",
    headers: "dict[str, str] | None" = None,
    *,
    reason: str = "Said",
    version: str = "1.1",
) -> bytes:
    """A whole answer. The length of a body is told where one may be told."""
    lines = [f"HTTP/{version} {status} {reason}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    if status >= 200 and status not in {204, 304}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


# ----------------------------------------------------------------------------------------------------- receiver


class HasNow(Protocol):
    """What tells the receiver the time: any `worker.clock.Clock`."""

    def now(self) -> float: ...


class ScriptedReceiver:
    """Where requests go, and everything that is known of them.

    requests:     those that were read completely, in their order.
    happened:     how often each behaviour did, by name.
    connections:  how many were opened, without those on which TLS failed.
    unread:       how many requests were cut off before they could be read.
    broken_rules: rules of the specification that a request broke, and series that were in two requests at once.
    """

    def __init__(self, clock: HasNow, storage: Storage | None = None, behaviours: Sequence[Behaviour] = ()) -> None:
        self.storage = storage or Storage()
        self.behaviours = list(behaviours)
        self.requests: list[Request] = []
        self.happened: Counter[str] = Counter()
        self.connections = 0
        self.broken_rules: list[str] = []
        self.url = ""
        self._clock = clock
        self.unread = 0
        self._under_way: set[Labels] = set()
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None, *, narrow: bool = False) -> AsyncIterator[str]:
        """Take connections until the block ends; then cut those that are open. Gives the URL to push to.

        narrow: the system takes no more of a request than a few thousand bytes until they are read.
        """
        handlers: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            self.connections += 1
            try:
                # The client going away is what many faults are about.
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._serve(reader, writer)
            finally:
                handlers.discard(task)
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls, limit=4096 if narrow else 2**16)
        if narrow:
            server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/api/v1/write"
        try:
            yield self.url
        finally:
            server.close()
            for task in handlers:
                task.cancel()
            await asyncio.gather(*handlers)
            await server.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at whenever a request came or was answered."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    def holds(self) -> dict[Sample, int]:
        """The bits of every sample that is stored."""
        return {
            (labels, timestamp_ms): bits
            for labels, values in self.storage.samples.items()
            for timestamp_ms, bits in values.items()
        }

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if (behaviour := self._due(Reads.NOTHING)) is not None:
                await self._cut_off(behaviour, reader, writer)
                return
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = tuple(
                (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])
            )
            length = next((int(value) for name, value in headers if name == "content-length"), 0)
            if (behaviour := self._due(Reads.HEAD, length=length)) is not None:
                await self._cut_off(behaviour, reader, writer)
                return
            request = self._received(head[0], headers, await reader.readexactly(length))
            try:
                if not await self._answer(request, reader, writer):
                    return
            finally:
                self._done_with(request)

    async def _cut_off(self, behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.happened[behaviour.name] += 1
        self.unread += 1
        assert isinstance(behaviour.act.wire, bytes), "there is no request to make an answer of"
        writer.write(behaviour.act.wire)
        await _end(behaviour.act.then, reader, writer)
        self._news.set()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Do to the request what is its turn; tell whether the connection goes on."""
        behaviour = self._due(Reads.ALL, request)
        outcome = self.storage.store(request) if behaviour is None or behaviour.act.stores else None
        # What the storage refuses is refused: no fault makes a lie of that.
        if behaviour is None or (outcome is not None and outcome.status >= 300):
            assert outcome is not None
            wire = outcome.wire(request.version)
            self._done_with(request, wire)
            writer.write(wire)
            await writer.drain()
            return True
        self.happened[behaviour.name] += 1
        self._news.set()
        request.fault = behaviour.name
        act = behaviour.act
        prompt, wire = _made(act.prompt, request), _made(act.wire, request)
        if not act.drip_seconds:
            prompt, wire = prompt + wire, b""
        if prompt:
            self._done_with(request, b"" if act.unclear else prompt)
            writer.write(prompt)
        for index in range(len(wire)):
            writer.write(wire[index : index + 1])
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), act.drip_seconds)
                return False  # it has gone away
        await _end(act.then, reader, writer)
        return act.then is Then.KEEP

    def _due(self, reads: Reads, request: Request | None = None, length: int = 0) -> Behaviour | None:
        return next(
            (
                behaviour
                for behaviour in self.behaviours
                if behaviour.act.reads is reads
                and self.happened[behaviour.name] < behaviour.times
                and (request is None or behaviour.to(request))
                and (reads is not Reads.HEAD or length > behaviour.above_bytes)
            ),
            None,
        )

    def _received(self, line: str, headers: tuple[tuple[str, str], ...], body: bytes) -> Request:
        sent = dict(headers)
        version = Version.V2 if "write.v2" in sent.get("content-type", "") else Version.V1
        number = len(self.requests) + 1
        self.broken_rules += [f"request {number}: {rule}" for rule in _broken_header_rules(line, headers, version)]
        samples: dict[Sample, int] = {}
        known: set[Labels] = set()
        try:
            for labels, values in _read(version, body):
                for rule in _broken_series_rules(labels, values, known):
                    self.broken_rules.append(f"request {number}: {dict(labels)}: {rule}")
                known.add(labels)
                samples.update({(labels, timestamp_ms): value for timestamp_ms, value in values})
        except (ValueError, IndexError, DecodeError, snappy.UncompressError) as error:
            self.broken_rules.append(f"request {number}: it cannot be read: {error!r}")
        if not samples:
            self.broken_rules.append(f"request {number}: it holds no sample")
        request = Request(
            number=number,
            at=self._clock.now(),
            line=line,
            headers=headers,
            version=version,
            attempt=int(sent.get("retry-attempt", "0")),
            body=body,
            samples=samples,
            unread=self.unread,
            series=frozenset(known),
        )
        for labels in self._under_way & request.series:
            self.broken_rules.append(f"request {number}: another request with {dict(labels)} is under way")
        self._under_way |= request.series
        self.requests.append(request)
        self._news.set()
        return request

    def _done_with(self, request: Request, wire: bytes = b"") -> None:
        """The sender knows what became of the request, or has given it up: the next of its series may come."""
        if request.answered_at is not None:
            return
        request.answered_at = self._clock.now()
        request.status = _final_status(wire)
        has_written = b"-written:" in wire.partition(b"\r\n\r\n")[0].lower()
        request.accepted = request.status is not None and 200 <= request.status < 300
        request.accepted &= has_written or request.version is Version.V1
        self._under_way -= request.series
        self._news.set()


def _made(wire: Wire, request: Request) -> bytes:
    return wire if isinstance(wire, bytes) else wire(request)


async def _end(then: Then, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    match then:
        case Then.KEEP | Then.CLOSE:
            await writer.drain()
        case Then.RESET:
            sock: socket.socket = writer.get_extra_info("socket")
            # A linger of 0 s: closing sends RST instead of FIN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        case Then.HANG:
            await writer.drain()
            await reader.read()


def _final_status(wire: bytes) -> int | None:
    """The status of the first answer that is not an informational one, where its head is whole and can be read."""
    while b"\r\n\r\n" in wire and wire.startswith(b"HTTP/"):
        head, _, wire = wire.partition(b"\r\n\r\n")
        fields = head.split(b"\r\n")[0].split(b" ")
        if len(fields) < 2 or not fields[1].isdigit() or len(fields[1]) != 3:
            return None
        if (status := int(fields[1])) >= 200:
            return status
    return None


# ------------------------------------------------------------------------------------- what a request must look like


def _broken_header_rules(line: str, headers: tuple[tuple[str, str], ...], version: Version) -> Iterator[str]:
    sent = dict(headers)
    if len(sent) < len(headers):
        yield "a header is repeated"
    if not line.startswith("POST /") or not line.endswith(" HTTP/1.1"):
        yield f"it begins with {line!r}"
    content_type, number = version.value
    wanted = {"content-type": content_type, "x-prometheus-remote-write-version": number, "content-encoding": "snappy"}
    for name, value in wanted.items():
        if sent.get(name) != value:
            yield f"{name} is {sent.get(name)!r} and not {value!r}"
    if not sent.get("user-agent"):
        yield "it has no User-Agent"


def _broken_series_rules(labels: Labels, values: "list[tuple[int, int]]", known: set[Labels]) -> Iterator[str]:
    names = [name.encode() for name, _ in labels]
    if names != sorted(set(names)):
        yield "its labels are not sorted, or one is repeated"
    if not all(name and value for name, value in labels) or "__name__" not in dict(labels):
        yield "a label is empty, or there is no __name__"
    if labels in known:
        yield "it is there twice"
    if not values:
        yield "it has no sample"
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(values)):
        yield "its samples do not ascend"


def _read(version: Version, body: bytes) -> Iterator[tuple[Labels, list[tuple[int, int]]]]:
    """Every TimeSeries of a request: its labels; timestamp and bits of each sample."""
    unpacked: bytes = snappy.uncompress(body)
    match version:
        case Version.V1:
            for series in v1.WriteRequest.FromString(unpacked).timeseries:
                labels = tuple((label.name, label.value) for label in series.labels)
                yield labels, [(sample.timestamp, bits(sample.value)) for sample in series.samples]
        case Version.V2:
            request = v2.Request.FromString(unpacked)
            symbols = list(request.symbols)
            if symbols[:1] != [""] or len(set(symbols)) != len(symbols):
                message = "the first symbol is not empty, or one is repeated"
                raise ValueError(message)
            for packed in request.timeseries:
                texts = [symbols[reference] for reference in packed.labels_refs]
                labels = tuple(zip(texts[0::2], texts[1::2], strict=True))
                yield labels, [(sample.timestamp, bits(sample.value)) for sample in packed.samples]


def bits(value: float) -> int:
    """The 64 bits of a value: by them NaN equals itself, and -0.0 is not 0.0."""
    (number,) = struct.unpack("<Q", struct.pack("<d", value))
    assert isinstance(number, int)
    return number
