"""Delivery against a receiver that misbehaves on a real socket, judged by an oracle after every run.

From the ledger's file over the pusher and its HTTP client to the receiver's storage nothing is replaced but time: the
clock runs a thousand times as fast, so that the default waits, of a second to five minutes, are kept and take
milliseconds. Nothing is asserted about how long anything took; that nothing comes too early is.
"""

import asyncio
import contextlib
import functools
import gzip
import logging
import random
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme
from prometheus_client import generate_latest
from pydantic import SecretStr

from tests.delivery_oracle import Expectation, content_of, fates, violations
from tests.scripted_receiver import (
    Act,
    Answer,
    Behaviour,
    Keeping,
    Reads,
    Request,
    Sample,
    ScriptedReceiver,
    Storage,
    Then,
    Version,
    Wire,
    bad,
    http,
)
from tests.unit.ledger.fleet import HOUR, T0, bucket, scope
from worker.buckets import Bucket
from worker.clock import ScaledClock
from worker.config import BasicAuth, DestinationSettings, Message, QueueSettings, TlsSettings
from worker.health import Health
from worker.ledger import Ledger, capture, expire, record_scopes, register_destinations
from worker.observe import Metrics, configure_logging
from worker.push import Pusher
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient, Verdict
from worker.remote_write.early import EarlyAnswers

SPEED = 1000.0

# No run lasts longer, however busy the machine is.
MOST_SECONDS = 60.0

# How long a request may take, by the machine's own clock: never reached but where the receiver hangs.
TIMEOUT_SECONDS = 30.0

# Where it does hang, this long is waited for; a stall of the machine that is as long must not look like a hang.
SHORT_SECONDS = 1.5

CANARIES = ("canary-password", "user:canary-password", "canary-header", "canary-query")

WEEK_SECONDS = 7 * 86_400

UNHURRIED = {"max_split_requests_per_minute": 60_000}
"""For a search that is not the slower for its cap."""


# ------------------------------------------------------------------------------------------------------- the runs


@dataclass
class Run:
    """One worker's delivery to one receiver, over one ledger, until it is judged."""

    ledger: Ledger
    clock: ScaledClock
    receiver: ScriptedReceiver
    destination: DestinationSettings
    buckets: list[Bucket]
    logged: Callable[[], str]
    verdicts: list[Verdict] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    outputs: dict[str, bytes] = field(default_factory=dict)

    @property
    def truth(self) -> dict[Sample, int]:
        return content_of(self.buckets)

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[Pusher]:
        """A worker as after a start: what it knows is in the ledger alone."""
        client = RemoteWriteClient(self.destination, self.clock)
        health = Health(self.clock)
        metrics = Metrics(self.clock, health, version="1", sqlite_version="3", destinations=[self.destination.name])
        health.expect(f"push:{self.destination.name}", allowance_seconds=1e9, liveness_seconds=1e9)
        try:
            yield Pusher(
                self.destination,
                ledger=self.ledger,
                sender=Witness(client, self.verdicts),
                clock=self.clock,
                health=health,
                metrics=metrics,
            )
        finally:
            self.outputs["the metrics"] = self.outputs.get("the metrics", b"") + generate_latest(metrics._registry)
            self.outputs["the health"] = repr((health.readiness(), health.liveness())).encode()
            await client.aclose()

    async def drain(self) -> None:
        """Deliver until nothing is pending."""
        async with self.worker() as pusher, asyncio.timeout(MOST_SECONDS):
            await pusher.drain(self.stopping)

    async def deliver_until(self, condition: Callable[[], bool]) -> None:
        """Deliver until something is so at the receiver, then end as a kill would: nothing is finished or tidied up."""
        async with self.worker() as pusher, asyncio.timeout(MOST_SECONDS):
            running = asyncio.create_task(pusher.run(self.stopping))
            waiting = asyncio.create_task(self.receiver.until(condition))
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            for task in (running, waiting):
                task.cancel()
            await asyncio.wait((running, waiting))
        await self.ledger.close()
        self.ledger = Ledger.open(self.ledger.path)

    async def judge(self, expected: Expectation | None = None) -> None:
        """Fail where the oracle finds anything wrong."""
        recorded = await self.ledger.read(fates, self.destination.name)
        await self.ledger.close()
        self.outputs |= {
            "the log": self.logged().encode(),
            "the verdicts": repr(self.verdicts).encode(),
            "the ledger": await asyncio.to_thread(self.ledger.path.read_bytes),
        }
        assert self.receiver.requests
        found = violations(
            self.truth,
            recorded,
            self.receiver,
            replace(expected or Expectation(), strict=self.destination.out_of_order_time_window_seconds == 0),
            secrets=CANARIES,
            outputs=self.outputs,
        )
        assert not found, "\n".join(found)


@dataclass
class Witness:
    """Hands requests on and keeps the verdicts."""

    client: RemoteWriteClient
    verdicts: list[Verdict]

    async def send(self, body: bytes, attempt: int, message: Message) -> Verdict:
        verdict = await self.client.send(body, attempt, message)
        self.verdicts.append(verdict)
        return verdict


@dataclass(frozen=True)
class Authority:
    """Who signs certificates; the only one that is trusted here, as reading the usual ones takes longer than a run."""

    ca: trustme.CA
    file: Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(trustme.CA(), tmp_path_factory.mktemp("tls") / "ca.pem")
    made.ca.cert_pem.write_to_path(made.file)
    return made


Start = Callable[..., contextlib.AbstractAsyncContextManager[Run]]


@pytest.fixture
def start(
    tmp_path: Path, authority: "Authority", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    """Makes runs. What they log is kept as it is: no secret is known to the set-up of logging, so it takes none out."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    quiet = {name: logging.getLogger(name).level for name in ("asyncio", "httpx", "httpcore")}
    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    configure_logging("debug", "json", [])
    yield functools.partial(a_run, tmp_path, authority.file, lambda: capsys.readouterr().err)
    root.handlers, root.level = handlers, level
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@contextlib.asynccontextmanager
async def a_run(
    folder: Path,
    ca_file: Path,
    logged: Callable[[], str],
    *behaviours: Behaviour,
    name: str = "ledger",
    storage: Storage | None = None,
    zones: Sequence[int] = (1, 2, 3, 4, 5),
    hours: int = 6,
    samples: int = 4,
    message: Message | None = Message.V1,
    window_seconds: int = WEEK_SECONDS,
    timeout_seconds: float = TIMEOUT_SECONDS,
    tls: ssl.SSLContext | None = None,
    narrow: bool = False,
    **queue: Any,
) -> AsyncIterator[Run]:
    """A run over these windows, all captured; the newest has been final for ten minutes."""
    clock = ScaledClock(T0 + hours * HOUR + 600, SPEED)
    receiver = ScriptedReceiver(clock, storage, behaviours)
    captured = [bucket(zone, hour, samples=samples) for hour in range(hours) for zone in zones]
    async with receiver.listening(tls, narrow=narrow) as url:
        destination = DestinationSettings(
            name="prom",
            url=f"{url}?key={CANARIES[3]}",
            timeout_seconds=timeout_seconds,
            headers={"X-Key": SecretStr(CANARIES[2])},
            basic_auth=BasicAuth(username="user", password=SecretStr(CANARIES[0])),
            tls=TlsSettings(ca_file=ca_file),
            out_of_order_time_window_seconds=window_seconds,
            protobuf_message=message,
            queue=QueueSettings(**queue),
        )
        ledger = Ledger.open(folder / f"{name}.db")
        await ledger.write(record_scopes, [scope(zone) for zone in zones], clock.now())
        await ledger.write(register_destinations, {"prom": window_seconds == 0}, replay_since=0, now=clock.now())
        await ledger.write(capture, captured, clock.now())
        run = Run(ledger, clock, receiver, destination, captured, logged)
        try:
            yield run
        finally:
            await run.ledger.close()


# ----------------------------------------------------------------------------------------------------- behaviours


def said(status: int, body: bytes = b"", **headers: str) -> Callable[[Request], bytes]:
    """An answer; a 2xx to remote write 2.0 says how much was written, as it has to."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(request: Request) -> bytes:
        is_counted = request.version is Version.V2 and 200 <= status < 300
        written = {"X-Prometheus-Remote-Write-Samples-Written": str(len(request.samples))} if is_counted else {}
        return http(status, body, {**written, **named})

    return answer


def stored(wire: Wire, then: Then = Then.KEEP, **act: Any) -> Act:
    """An act on a request that the storage has got."""
    return Act(wire, then, stores=True, **act)


def echo(request: Request) -> bytes:
    """Everything that came, as some receivers repeat what they complain about."""
    return "\n".join([request.line, *(f"{name}: {value}" for name, value in request.headers)]).encode()


def one_line(request: Request) -> str:
    return echo(request).decode().replace("\n", " ")


def broken_success(request: Request) -> bytes:
    """The end of its body is missing, but the verdict is there."""
    return said(200, b"fine, and then")(request)[:-4]


def long_success(request: Request) -> bytes:
    """A success whose body takes longer than anybody waits for."""
    return said(200, b"x" * 4000)(request)[:-4000]


def unclear(wire: bytes) -> Act:
    """An answer that a reader may take for the success that it has stored, or for nothing at all."""
    return Act(wire, Then.CLOSE, stores=True, unclear=True)


BOMB = gzip.compress(bytes(16 * 2**20))
"""16 MiB in 16 kB; a reader that unpacks it takes a hundred times what it may."""


def raw(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def refusing(*statuses: int) -> Iterator[Behaviour]:
    return (Behaviour(f"answers {status}", Act(said(status, b"no"))) for status in statuses)


STATUSES = (
    *(Behaviour(f"answers {status}", stored(said(status, b"fine"))) for status in (200, 201, 202, 207)),
    *refusing(400, 409, 413, 422),
    *refusing(401, 402, 403, 404, 405, 407, 410, 415, 418),
    *refusing(408, 425, 429, 500, 501, 502, 503, 504, 529, 599),
    *refusing(300, 600, 999),
    Behaviour("answers 304", Act(http(304))),
    Behaviour("answers 204", stored(said(204))),
)

RETRY_AFTER: dict[str, tuple[str, float]] = {
    # What is said, and what is to be heeded of it, in seconds.
    "seconds": ("90", 90.0),
    "seconds with spaces": (" 90 ", 90.0),
    "zero": ("0", 0.0),
    "a negative number": ("-5", 0.0),
    "a fraction": ("1.5", 0.0),
    "nothing": ("", 0.0),
    "garbage": ("soon, \x7f\xff; I promise", 0.0),
    "more digits than a number has": ("9" * 5000, 300.0),
    "half a year": ("15552000", 300.0),
    "a date long ago": ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    "a date past all clocks": ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
    "a date that does not exist": ("Wed, 31 Feb 2026 99:99:99 GMT", 0.0),
}

WIRE = (
    Behaviour("resets before reading", Act(then=Then.RESET, reads=Reads.NOTHING)),
    Behaviour("closes before reading", Act(then=Then.CLOSE, reads=Reads.NOTHING)),
    Behaviour("talks before reading", Act(raw("SSH-2.0-OpenSSH_9.2\n"), Then.CLOSE, reads=Reads.NOTHING)),
    Behaviour("fails before reading", Act(http(503, b"too busy to read"), Then.CLOSE, reads=Reads.NOTHING)),
    Behaviour("resets in the middle of reading", Act(then=Then.RESET, reads=Reads.HEAD)),
    Behaviour("fails in the middle of reading", Act(http(503), Then.CLOSE, reads=Reads.HEAD)),
    Behaviour("resets after reading", Act(then=Then.RESET)),
    Behaviour("resets after storing", stored(b"", Then.RESET)),
    Behaviour("closes after storing", stored(b"", Then.CLOSE)),
    Behaviour("breaks off in the status line", stored(b"HTTP/1.1 20", Then.CLOSE)),
    Behaviour("breaks off in the head", stored(raw("HTTP/1.1 204 No Content\nX-A: "), Then.CLOSE)),
    Behaviour("breaks off in the head by a reset", stored(raw("HTTP/1.1 204 No Content\nX-A: "), Then.RESET)),
    Behaviour("breaks off in the body of a failure", Act(raw("HTTP/1.1 503 Busy\nContent-Length: 9\n\nb"), Then.CLOSE)),
    Behaviour("breaks off in the body of a success", stored(broken_success, Then.CLOSE)),
    Behaviour(
        "sends chunks that are none", Act(raw("HTTP/1.1 500 Bad\nTransfer-Encoding: chunked\n\nzz\n"), Then.CLOSE)
    ),
    Behaviour("sends two lengths", unclear(raw("HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 2\n\nab"))),
    Behaviour("sends a length below zero", unclear(raw("HTTP/1.1 200 OK\nContent-Length: -1\n\n"))),
    Behaviour("sends 100 KB of headers", unclear(b"HTTP/1.1 204 No Content\r\n" + b"X-A: b\r\n" * 12_500 + b"\r\n")),
    Behaviour("sends a header of 100 KB", unclear(b"HTTP/1.1 204 No Content\r\nX-A: " + b"b" * 100_000 + b"\r\n\r\n")),
    Behaviour("sends a status line of 100 KB", unclear(b"HTTP/1.1 204 " + b"b" * 100_000 + b"\r\n\r\n")),
    Behaviour("sends headers that are none", unclear(raw("HTTP/1.1 204 No Content\nno colon\n : \n\0: b\n\n"))),
    Behaviour("speaks TLS", unclear(b"\x16\x03\x01\x00\x02\x02\x28")),
    Behaviour("speaks ICY", unclear(raw("ICY 200 OK\n\n"))),
    Behaviour("speaks HTTP/2", unclear(raw("HTTP/2 204\n\n"))),
    Behaviour("speaks HTTP/1.0", stored(lambda request: said(204)(request).replace(b"/1.1", b"/1.0", 1), Then.CLOSE)),
    Behaviour("fails in HTTP/1.0", Act(http(503, b"busy", version="1.0"), Then.CLOSE)),
    Behaviour("fails without a length", Act(raw("HTTP/1.1 500 Bad\n\nsomething went wrong"), Then.CLOSE)),
    Behaviour("fails with a gzip bomb", Act(said(503, BOMB, Content_Encoding="gzip"))),
    Behaviour("succeeds with a gzip bomb", stored(said(200, BOMB, Content_Encoding="gzip"))),
    Behaviour("fails with 10 MB", Act(said(500, b"sorry" * 2_000_000)), 1),
    Behaviour("says wait, then takes it", stored(lambda request: http(100) + said(204)(request))),
    Behaviour(
        "gives hints, then takes it", stored(lambda request: http(103, headers={"Link": "</>"}) + said(204)(request))
    ),
    Behaviour("says wait and closes", stored(http(100), Then.CLOSE)),
    Behaviour(
        "changes the protocol", stored(http(101, headers={"Upgrade": "h2c", "Connection": "upgrade"}), Then.CLOSE)
    ),
    Behaviour("closes after each answer and says so", stored(said(200, Connection="close"), Then.CLOSE), 10**6),
    Behaviour("closes after each answer", stored(said(200), Then.CLOSE), 10**6),
    Behaviour("fails every other time", Act(said(503)), 10**6, lambda request: request.number % 2 == 1),
    Behaviour("fails three of four times", Act(said(503)), 30, lambda request: request.number % 4 != 0),
    Behaviour("repeats the request in a refusal", Act(lambda request: http(400, echo(request)))),
    Behaviour("repeats the request in a failure", Act(lambda request: http(500, echo(request)))),
    Behaviour("repeats the request when it parks", Act(lambda request: http(403, echo(request)))),
    Behaviour("repeats the request in the reason", Act(lambda request: http(503, reason=one_line(request)))),
    Behaviour(
        "repeats the request in Location",
        Act(lambda request: http(302, headers={"Location": f"//{one_line(request)}"})),
    ),
    Behaviour("repeats the request as garbage", Act(lambda request: one_line(request).encode(), Then.CLOSE)),
)

BEHAVIOURS = (*STATUSES, *WIRE)

MESSAGES = (Message.V1, Message.V2, None)


def has_seen(receiver: ScriptedReceiver, count: int) -> bool:
    return len(receiver.requests) >= count


def named(value: object) -> str | None:
    return value.name if isinstance(value, Behaviour) else None


def test_there_are_more_behaviours_than_were_asked_for() -> None:
    assert len({behaviour.name for behaviour in BEHAVIOURS}) == len(BEHAVIOURS) >= 35


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=named)
async def test_whatever_the_receiver_does_for_a_while_everything_arrives(start: Start, behaviour: Behaviour) -> None:
    # What lasts makes a worker look whether the receiver works at all.
    expected = Expectation(controls=10 if behaviour.times > 2 else 0)

    async def one(message: Message | None) -> None:
        async with start(behaviour, message=message, name=str(message)) as run:
            await run.drain()
            await run.judge(expected)

    await asyncio.gather(one(Message.V1), one(None))


@pytest.mark.parametrize("what", RETRY_AFTER)
async def test_the_pause_that_a_receiver_asks_for_is_kept_within_the_cap(start: Start, what: str) -> None:
    text, asked_seconds = RETRY_AFTER[what]
    wire = b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: " + text.encode("latin-1") + b"\r\n\r\n"
    async with start(Behaviour(what, Act(wire), 1), zones=[1]) as run:
        await run.drain()
        await run.judge(Expectation(asked_seconds={what: asked_seconds}))


async def test_the_pause_that_a_receiver_asks_for_as_a_date_is_kept(start: Start) -> None:
    async with start(zones=[1]) as run:

        def busy(_request: Request) -> bytes:
            date = datetime.fromtimestamp(int(run.clock.now()) + 61, UTC)
            return http(503, headers={"Retry-After": format_datetime(date, usegmt=True)})

        run.receiver.behaviours.append(Behaviour("busy", Act(busy), 1))
        await run.drain()
        await run.judge(Expectation(asked_seconds={"busy": 55.0}))  # the date's resolution, and the way of the request


# --------------------------------------------------------------------------------------------- where it takes time


HANGING = (
    Behaviour("hangs", Act(then=Then.HANG), 1),
    Behaviour("hangs after storing", stored(b"", Then.HANG), 1),
    Behaviour("hangs in the head", stored(raw("HTTP/1.1 204 No Content\nX-A: "), Then.HANG), 1),
    Behaviour("hangs behind the head of a success", stored(broken_success, Then.HANG), 1),
    Behaviour(
        "hangs behind the head of a failure", Act(raw("HTTP/1.1 503 Busy\nContent-Length: 9\n\nb"), Then.HANG), 1
    ),
    Behaviour("drips the head", stored(said(204), drip_seconds=0.1), 1),
    Behaviour("drips the body", stored(b"x" * 4000, drip_seconds=0.1, prompt=long_success), 1),
    Behaviour("drips informational answers", stored(http(100) * 200, drip_seconds=0.1), 1),
)


@pytest.mark.parametrize("message", [Message.V1, None], ids=str)
async def test_a_receiver_that_never_comes_to_an_end_is_given_up_and_asked_again(
    start: Start, message: Message | None
) -> None:
    async def one(behaviour: Behaviour) -> None:
        async with start(behaviour, message=message, name=behaviour.name, timeout_seconds=SHORT_SECONDS) as run:
            await run.drain()
            await run.judge()

    await asyncio.gather(*map(one, HANGING))


# ------------------------------------------------------------------------------------------------- another place


@pytest.mark.parametrize("status", [301, 302, 303, 305, 307, 308])
async def test_no_redirect_is_followed_and_nobody_else_sees_a_byte(start: Start, status: int) -> None:
    async with start(name="elsewhere") as elsewhere, start() as run:
        for place in (elsewhere.receiver.url, elsewhere.receiver.url.removeprefix("http:")):
            run.receiver.behaviours.append(Behaviour(place, Act(said(status, Location=place)), 1))
        await run.drain()
        await run.judge()
        assert elsewhere.receiver.connections == 0


@pytest.mark.parametrize("flaw", ["another name", "another authority", "expired"])
async def test_a_receiver_whose_certificate_is_wrong_for_a_while_sees_nothing_until_it_is_right(
    start: Start, authority: Authority, flaw: str
) -> None:
    right, wrong = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    authority.ca.issue_cert("127.0.0.1").configure_cert(right)
    match flaw:
        case "another name":
            authority.ca.issue_cert("receiver.example").configure_cert(wrong)
        case "another authority":
            trustme.CA().issue_cert("127.0.0.1").configure_cert(wrong)
        case _:
            authority.ca.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC)).configure_cert(wrong)
    handshakes: list[int] = []

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str, _context: ssl.SSLContext) -> None:
        handshakes.append(len(handshakes))
        if len(handshakes) <= 2:
            connection.context = wrong
            run.receiver.unread += 1

    right.sni_callback = choose
    async with start(tls=right) as run:
        await run.drain()
        await run.judge()
        assert len(handshakes) > 2
        assert all(isinstance(verdict, Later) and verdict.fate is Fate.PARK for verdict in run.verdicts[:2])


# --------------------------------------------------------------------------------------------- 1.0 and nothing else


def is_2(request: Request) -> bool:
    return request.version is Version.V2


OLDER_RECEIVERS = (
    Behaviour("knows no 2.0 and says 415", Act(said(415, b"unsupported")), 10**6, is_2),
    Behaviour("knows no 2.0 and says 400", Act(said(400, b"cannot be read")), 10**6, is_2),
    Behaviour("knows no 2.0 and says nothing", Act(http(204)), 10**6, is_2),
    Behaviour("knows no 2.0 and says 200", Act(http(200, b"ok")), 10**6, is_2),
)


@pytest.mark.parametrize("behaviour", OLDER_RECEIVERS, ids=named)
async def test_a_receiver_that_knows_only_1_0_is_sent_it_by_itself(start: Start, behaviour: Behaviour) -> None:
    async with start(behaviour, message=None) as run:
        await run.drain()
        await run.judge()
        in_2 = [request for request in run.receiver.requests if is_2(request)]
        assert run.receiver.requests[0] in in_2, "2.0 is tried first"
        assert len(in_2) <= 4, "each lane may have one under way; then the receiver is known"


async def test_a_receiver_of_2_0_that_refuses_a_sample_is_not_taken_for_one_of_1_0(start: Start) -> None:
    async with start(message=None) as run:
        first = min(run.truth, key=lambda sample: sample[1])
        run.receiver.storage = Storage(Keeping.GOOD_PART, bad([first]))
        await run.drain()
        await run.judge(Expectation(bad=frozenset({first})))
        assert all(is_2(request) for request in run.receiver.requests)


async def test_a_request_that_was_asked_for_in_1_0_or_2_0_is_never_in_the_other(start: Start) -> None:
    for message, version in ((Message.V1, Version.V1), (Message.V2, Version.V2)):
        async with start(*OLDER_RECEIVERS[:1], message=message, name=version.name) as run:
            run.receiver.behaviours[:] = [Behaviour("parks", Act(said(415)), 3)]
            await run.drain()
            await run.judge()
            assert {request.version for request in run.receiver.requests} == {version}


# ------------------------------------------------------------------------------------------------- bad samples


BOTH = pytest.mark.parametrize("keeping", Keeping, ids=lambda keeping: keeping.name)


def some_of(samples: Iterable[Sample], count: int) -> frozenset[Sample]:
    """Samples from all over, the same at every run."""
    return frozenset(random.Random(count).sample(sorted(samples), count))


@BOTH
@pytest.mark.parametrize(("count", "status"), [(1, 400), (3, 409), (12, 422)])
async def test_bad_samples_cost_themselves_and_about_the_requests_that_it_takes_to_find_them(
    start: Start, keeping: Keeping, count: int, status: int
) -> None:
    message = Message.V1 if keeping is Keeping.ALL_OR_NOTHING else Message.V2  # as Prometheus does
    async with start(zones=[1], hours=32, samples=128, message=message, **UNHURRIED) as run:
        culprits = some_of(run.truth, count)
        run.receiver.storage = Storage(keeping, bad(culprits, status))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


async def test_two_hundred_bad_samples_among_thousands_cost_themselves(start: Start) -> None:
    async with start(zones=[1], hours=20, samples=100, **UNHURRIED) as run:
        culprits = some_of(run.truth, 200)
        run.receiver.storage = Storage(refuses=bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


@BOTH
@pytest.mark.parametrize("status", [400, 500])
async def test_windows_that_are_too_old_cost_themselves(start: Start, keeping: Keeping, status: int) -> None:
    async with start(zones=[1, 2], hours=8, samples=16, **UNHURRIED) as run:
        culprits = frozenset(sample for sample in run.truth if sample[1] < (T0 + 2 * HOUR) * 1000)
        run.receiver.storage = Storage(keeping, bad(culprits, status, "too old sample"))
        await run.drain()
        await run.judge(Expectation(bad=culprits, controls=50))


@BOTH
async def test_a_series_that_is_poison_with_a_500_holds_up_nobody(start: Start, keeping: Keeping) -> None:
    async with start(zones=[1, 2, 3], hours=8, samples=16, **UNHURRIED) as run:
        poison = min(run.truth)[0]
        culprits = frozenset(sample for sample in run.truth if sample[0] == poison)
        run.receiver.storage = Storage(keeping, bad(culprits, 500, 'label name "a" is not unique'))
        await run.drain()
        await run.judge(Expectation(bad=culprits, controls=50))


@BOTH
async def test_a_limit_on_a_series_holds_up_nobody_and_costs_that_series_alone(start: Start, keeping: Keeping) -> None:
    async with start(zones=[1, 2, 3], hours=8, samples=16, blame_after_seconds=300, **UNHURRIED) as run:
        over = min(run.truth)[0]
        culprits = frozenset(sample for sample in run.truth if sample[0] == over)
        run.receiver.storage = Storage(keeping, bad(culprits, 429, "per-user series limit of 47 exceeded"))
        await run.drain()
        await run.judge(Expectation(bad=culprits, controls=200))


async def test_a_limit_on_the_number_of_requests_costs_nothing_and_is_not_met_with_more_of_them(start: Start) -> None:
    chance = random.Random(1)
    limited = Behaviour("is over its limit", Act(said(429, Retry_After="20")), 300, lambda _: chance.random() < 0.8)
    async with start(limited, zones=[1, 2], hours=60, max_samples_per_send=16) as run:
        await run.drain()
        await run.judge(Expectation(controls=100))
        # 30 requests, of which one in five is taken; and what finds out whether it is the limit.
        assert len(run.receiver.requests) < 2 * 30 * 5 + 100


@BOTH
async def test_a_window_with_a_few_good_samples_among_bad_ones_loses_only_the_bad_ones(
    start: Start, keeping: Keeping
) -> None:
    async with start(zones=[1], hours=4, samples=128, **UNHURRIED) as run:
        window = [sample for sample in run.truth if sample[1] == T0 * 1000]
        culprits = frozenset(window) - some_of(window, 5)
        run.receiver.storage = Storage(keeping, bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


@BOTH
async def test_a_zone_that_is_refused_as_a_whole_costs_another_zone_nothing(start: Start, keeping: Keeping) -> None:
    async with start(zones=[1, 5], hours=4, samples=40, max_shards=1, max_samples_per_send=120, **UNHURRIED) as run:
        first = sorted({labels for labels, _ in run.truth})[:40]
        refused = {sample for sample in run.truth if sample[0] in first}
        culprits = frozenset({*refused, *some_of(run.truth.keys() - refused, 2)})
        run.receiver.storage = Storage(keeping, bad(culprits, text="per-user series limit exceeded"))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


@BOTH
async def test_everything_is_bad_and_is_recorded(start: Start, keeping: Keeping) -> None:
    async with start(zones=[1, 2], hours=3, samples=4, **UNHURRIED) as run:
        culprits = frozenset(run.truth)
        run.receiver.storage = Storage(keeping, bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


@BOTH
async def test_bad_samples_are_found_while_the_receiver_fails_every_other_time(start: Start, keeping: Keeping) -> None:
    flapping = Behaviour("flaps", Act(said(503)), 10**6, lambda request: request.number % 2 == 1)
    # With one lane every other of its own requests fails, never several in a row.
    async with start(flapping, zones=[1, 2], hours=8, samples=16, max_shards=1, **UNHURRIED) as run:
        culprits = some_of(run.truth, 3)
        run.receiver.storage = Storage(keeping, bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits))


async def test_the_search_for_bad_samples_keeps_to_its_number_of_requests_per_minute(start: Start) -> None:
    cap = 60
    async with start(zones=[1], hours=4, samples=64, max_split_requests_per_minute=cap) as run:
        culprits = some_of(run.truth, 30)
        run.receiver.storage = Storage(refuses=bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits))
        moments = [request.at for request in run.receiver.requests]
        # A window that slides may hold the end of one minute's allowance and the beginning of the next one's.
        most = max(sum(0 <= later - moment < 60 for later in moments) for moment in moments)
        assert most <= 2 * cap + 4
        assert len(moments) > 3 * cap


async def test_an_outage_refuses_nothing_however_long_it_is(start: Start) -> None:
    async with start(Behaviour("down", Act(said(503, b"down")), 80)) as run:
        await run.drain()
        await run.judge(Expectation(controls=40))


async def test_an_outage_that_begins_while_poison_is_looked_for_refuses_nothing_but_the_poison(start: Start) -> None:
    outage = Behaviour("down", Act(said(500, b"down")), 40, lambda request: request.number >= 10)
    async with start(outage, zones=[1, 2], hours=8, samples=16, **UNHURRIED) as run:
        culprits = some_of(run.truth, 2)
        run.receiver.storage = Storage(refuses=bad(culprits, 500))
        await run.drain()
        await run.judge(Expectation(bad=culprits, controls=200))


# -------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("status", [413, 400])
@pytest.mark.parametrize("limit", ["samples", "bytes"])
async def test_the_size_that_a_receiver_takes_is_learnt(start: Start, status: int, limit: str) -> None:
    too_large = Answer(status, "too large: a request of so many exceeds the limit")
    storage = Storage(max_samples=500, too_large=too_large)
    if limit == "bytes":
        storage = Storage(max_bytes=60_000, too_large=too_large)
    async with start(storage=storage, zones=[1], hours=48, samples=100, max_samples_per_send=2_000) as run:
        await run.drain()
        await run.judge()
        too_big = [request for request in run.receiver.requests if request.size_refused]
        assert len(too_big) <= 12, "once it is known, nothing larger is sent"


@pytest.fixture
def narrow_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes no more of a request at a time than a few thousand bytes: to send a larger one takes long."""
    connect = EarlyAnswers.connect_tcp
    narrow = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]

    async def connect_narrowly(self: EarlyAnswers, *args: Any, **kwargs: Any) -> Any:
        return await connect(self, *args, **{**kwargs, "socket_options": narrow})

    monkeypatch.setattr(EarlyAnswers, "connect_tcp", connect_narrowly)


@pytest.mark.usefixtures("narrow_sender")
@pytest.mark.parametrize("says", [http(413, b"too large", {"Connection": "close"}), b""], ids=["it says so", "silent"])
async def test_the_size_is_learnt_of_a_receiver_that_cuts_off_what_is_larger_before_it_has_read_it(
    start: Start, says: bytes
) -> None:
    cut = Behaviour("cuts off what is large", Act(says, Then.CLOSE, reads=Reads.HEAD), 10**6, above_bytes=20_000)
    many = {"samples": 400, "max_samples_per_send": 5_000, "max_shards": 1}
    async with start(cut, zones=[1], hours=150, narrow=True, **many) as run:
        await run.drain()
        await run.judge()
        assert run.receiver.unread <= (12 if says else 40), "once it is known, nothing larger is sent"
        early = Refused(413, "too large") if says else None
        assert {verdict for verdict in run.verdicts if not isinstance(verdict, Accepted)} == {early} or not says
        assert all(verdict.was_cut_off for verdict in run.verdicts if isinstance(verdict, Later))


@pytest.mark.parametrize("status", [400, 413])
async def test_a_refusal_that_was_a_mistake_does_not_make_requests_small_for_good(start: Start, status: int) -> None:
    mistake = Behaviour("refuses", Act(said(status, b"for no reason")), 1)
    async with start(mistake, zones=[1], hours=120, samples=20, max_samples_per_send=200) as run:
        await run.drain()
        await run.judge()
        assert max(len(request.samples) for request in run.receiver.requests[-3:]) == 200


async def test_a_request_that_is_too_large_though_it_holds_a_single_sample_is_recorded(start: Start) -> None:
    async with start(zones=[1], hours=2, samples=2) as run:
        run.receiver.storage = Storage(max_samples=0)
        await run.drain()
        await run.judge(Expectation(bad=frozenset(run.truth)))


# ------------------------------------------------------------------------------------------- nothing out of order


STRICT_FAULTS = (
    Behaviour("stores and resets", stored(b"", Then.RESET), 4),
    Behaviour("resets", Act(then=Then.RESET), 4),
    Behaviour("fails every other time", Act(said(503)), 10**6, lambda request: request.number % 2 == 1),
    Behaviour("is busy", Act(said(429, Retry_After="3")), 3),
    Behaviour("parks", Act(said(401)), 3),
)


@pytest.mark.parametrize("behaviour", STRICT_FAULTS, ids=named)
@BOTH
async def test_a_strict_receiver_gets_every_window_in_its_turn_whatever_it_does(
    start: Start, behaviour: Behaviour, keeping: Keeping
) -> None:
    async with start(behaviour, storage=Storage(keeping, out_of_order=False), window_seconds=0) as run:
        await run.drain()
        await run.judge()


@BOTH
async def test_a_strict_receiver_that_refuses_samples_gets_the_others_in_their_order(
    start: Start, keeping: Keeping
) -> None:
    async with start(window_seconds=0, hours=10, **UNHURRIED) as run:
        culprits = some_of(run.truth, 5)
        run.receiver.storage = Storage(keeping, bad(culprits), out_of_order=False)
        await run.drain()
        await run.judge(Expectation(bad=culprits))


# --------------------------------------------------------------------------------------------- parking, ends, starts


async def test_a_receiver_that_is_set_up_wrongly_is_probed_slowly_and_keeps_its_rows(start: Start) -> None:
    async with start(Behaviour("parks", Act(said(401, b"who are you?")), 10**6)) as run:
        await run.deliver_until(lambda: len(run.receiver.requests) == 12)
        await run.judge(Expectation(may_be=frozenset({"pending"})))
        # The first of each lane may be under way together; all others are probes, one at a time.
        probes = [request.at for request in run.receiver.requests[4:]]
        assert all(later - earlier >= 60 - 0.01 for earlier, later in pairwise(probes))


async def test_a_worker_that_is_killed_at_any_request_goes_on_where_it_was(start: Start) -> None:
    lost = Behaviour("stores and resets", stored(b"", Then.RESET), 10**6, lambda request: request.number % 3 == 0)
    async with start(lost, max_samples_per_send=8) as run:
        for number in (1, 2, 3, 5, 8, 13):
            await run.deliver_until(functools.partial(has_seen, run.receiver, number))
        await run.drain()
        await run.judge(Expectation(restarts=True))


async def test_what_passes_the_replay_bound_during_an_outage_is_recorded_and_the_rest_arrives(start: Start) -> None:
    async with start(Behaviour("down", Act(said(503)), 8), zones=[1]) as run:
        await run.deliver_until(lambda: len(run.receiver.requests) == 6)
        await run.ledger.write(expire, ended_before=T0 + 3 * HOUR, now=run.clock.now())
        await run.drain()
        await run.judge(Expectation(may_be=frozenset({"expired"}), restarts=True))
        assert {timestamp_ms for _, timestamp_ms in run.receiver.holds()} >= {
            (T0 + hour * HOUR) * 1000 for hour in (4, 5)
        }


async def test_what_is_older_than_the_receiver_takes_is_not_sent_in_vain(start: Start) -> None:
    async with start(hours=12, window_seconds=6 * HOUR) as run:
        await run.drain()
        await run.judge(Expectation(may_be=frozenset({"expired"})))
        sent = {timestamp_ms for request in run.receiver.requests for _, timestamp_ms in request.samples}
        assert {(T0 + hour * HOUR) * 1000 for hour in (9, 10, 11)} <= sent
        assert min(sent) >= (T0 + 7 * HOUR) * 1000, "at 12:10 what is stamped before 06:10 is six hours old"


@pytest.mark.parametrize(
    "more", [http(204), http(503), b"a body", b"\r\n"], ids=["a success", "a failure", "a body", "a line"]
)
@pytest.mark.parametrize("status", [204, 304])
async def test_what_follows_an_answer_is_not_the_answer_to_the_next_request(
    start: Start, status: int, more: bytes
) -> None:
    behaviours = (
        Behaviour("says more", Act(lambda request: said(status)(request) + more, stores=status == 204), 1),
        Behaviour("drops the next one", Act(then=Then.CLOSE), 1),
    )
    async with start(*behaviours, zones=[1], max_samples_per_send=8) as run:
        await run.drain()
        await run.judge()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_the_receiver_does_in_whatever_order_everything_arrives(start: Start, seed: int) -> None:
    """Every behaviour that ends by itself, one after the other, in the middle of a search for bad samples."""
    # What refuses at random would refuse a good sample that is alone in its request, too.
    ends = [each for each in BEHAVIOURS if each.times == 2 and not each.name.startswith(("400", "409", "413", "422"))]
    chosen = random.Random(seed).sample(ends, 30)
    mixed = [replace(behaviour, times=1) for behaviour in chosen]
    async with start(*mixed, message=(Message.V1, Message.V2, None)[seed], max_samples_per_send=16, **UNHURRIED) as run:
        culprits = some_of(run.truth, seed)
        run.receiver.storage = Storage(Keeping.GOOD_PART if seed else Keeping.ALL_OR_NOTHING, bad(culprits))
        await run.drain()
        await run.judge(Expectation(bad=culprits, controls=20))
