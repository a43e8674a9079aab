"""A pusher between a real ledger and a receiver that a test makes up; every value is checked against the truth."""

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.clocks import JumpingClock, ManualClock
from tests.unit.ledger.fleet import HOUR, NOW, T0, bucket, scope, true_value
from worker.config import DestinationSettings, Message, MetadataSettings, QueueSettings, RelabelRule
from worker.health import Health
from worker.ledger import Ledger, capture, record_scopes, register_destinations
from worker.observe import Metrics
from worker.push import Pusher
from worker.remote_write import Accepted, Fate, Later, Refused, Verdict
from worker.remote_write.decode import read_request
from worker.series import MetricMetadata, label_block, parse_label_block

ACCEPTED = Accepted(204)
DOWN = Later("HTTP 503: the receiver is made to fail", Fate.RETRY, 503)
BUSY = Later("HTTP 429: the receiver is made to be busy", Fate.RATE_LIMITED, 429)
OUT_OF_BOUNDS = Refused(400, "out of bounds")
TOO_LARGE = Refused(413, "too large")

ZONES = (1, 2, 3, 4, 5)
"""Of the four lanes of a destination, zones 1 and 5 share one; the others have one each."""

HOUR_NOW = int(NOW - T0) // HOUR
"""The hour that begins now; the one before it has ended."""

Window = tuple[int, int]
"""A zone's number and an hour's."""

Sample = tuple[int, int, str]
"""A zone's number, an hour's, and the country of the series."""

Decision = tuple[str, int | None, str | None]
"""The state of a delivery, with status and reason where it was decided against."""


@dataclass(frozen=True)
class Sent:
    """A request as it arrived. content: which zone and hour its samples are of, in their order, once each."""

    at: float
    attempt: int
    message: Message
    body: bytes
    content: tuple[Window, ...]
    samples: tuple[Sample, ...]


@dataclass
class FakeReceiver:
    """Reads every request as a strict receiver does, looks that each value is the truth, and answers as told.

    accepted: how often each sample was in a request that was accepted.
    """

    clock: ManualClock
    answer: Callable[[Sent], Verdict | Awaitable[Verdict]] = lambda _sent: ACCEPTED
    sent: list[Sent] = field(default_factory=list)
    accepted: Counter[Sample] = field(default_factory=Counter)
    zones_under_way: set[int] = field(default_factory=set)
    under_way: int = 0
    most_under_way: int = 0

    async def send(self, body: bytes, attempt: int, message: Message) -> Verdict:
        samples = tuple(read_samples(body, message))
        content = tuple(dict.fromkeys((zone, hour) for zone, hour, _ in samples))
        zones = {zone for zone, _ in content}
        sent = Sent(self.clock.now(), attempt, message, body, content, samples)
        self.sent.append(sent)
        assert not zones & self.zones_under_way, "two requests with samples of one series are under way"
        self.zones_under_way |= zones
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            answer = self.answer(sent)
            verdict = await answer if isinstance(answer, Awaitable) else answer
        finally:
            self.under_way -= 1
            self.zones_under_way -= zones
        if isinstance(verdict, Accepted):
            self.accepted.update(samples)
        return verdict

    def windows(self) -> list[Window]:
        """What arrived, in the order in which it did."""
        return [window for sent in self.sent for window in sent.content]


def read_samples(body: bytes, message: Message) -> Iterator[Sample]:
    """Every sample of a request that breaks no rule; each must have its true value."""
    reading = read_request(body, message)
    assert not reading.broken_rules
    for series in reading.series:
        labels = dict(series.labels)
        block = label_block(labels.pop("__name__"), labels)
        for timestamp_ms, value in series.samples:
            assert value == true_value(block, timestamp_ms)
            yield int(labels["zone_id"], 16), (timestamp_ms // 1000 - T0) // HOUR, labels["country"]


def samples_of(zones: Iterable[int], hours: Iterable[int], count: int = 3) -> set[Sample]:
    """What `Scene.captured` captures."""
    hours = list(hours)
    return {(zone, hour, f"C{number}") for zone in zones for hour in hours for number in range(count)}


@dataclass
class Scene:
    clock: ManualClock
    ledger: Ledger
    health: Health
    metrics: Metrics
    receiver: FakeReceiver
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def pusher(
        self,
        *,
        name: str = "prom",
        attempts: int | None = None,
        window_seconds: int = 300_000_000,
        message: Message | None = Message.V1,
        rules: tuple[RelabelRule, ...] = (),
        metadata: Mapping[str, MetricMetadata] = MappingProxyType({}),
        sends_metadata: bool | None = None,
        **queue: Any,
    ) -> Pusher:
        destination = DestinationSettings(
            name=name,
            url="http://127.0.0.1:9/api/v1/write",
            out_of_order_time_window_seconds=window_seconds,
            protobuf_message=message,
            write_relabel_configs=rules,
            metadata=MetadataSettings(send=sends_metadata),
            queue=QueueSettings(**queue),
        )
        self.health.expect(f"push:{name}", allowance_seconds=500, liveness_seconds=500)
        return Pusher(
            destination,
            ledger=self.ledger,
            sender=self.receiver,
            clock=self.clock,
            health=self.health,
            metrics=self.metrics,
            attempts_allowed=attempts,
            metadata=metadata,
        )

    async def captured(self, zones: Iterable[int], hours: Iterable[int], *, samples: int = 3) -> None:
        hours = list(hours)
        await self.ledger.write(capture, [bucket(zone, hour, samples=samples) for zone in zones for hour in hours], NOW)
        self.ledger.announce()

    async def states(self, name: str = "prom") -> dict[Window, str]:
        """The state of the delivery of every bucket."""
        return {window: state for window, (state, _, _) in (await self.decisions(name)).items()}

    async def decisions(self, name: str = "prom") -> dict[Window, Decision]:
        rows = await self.ledger.read(delivery_rows, name)
        return {
            (int(zone, 16), (start - T0) // HOUR): (state, status, reason)
            for zone, start, state, status, reason in rows
        }

    async def refused(self, name: str = "prom") -> dict[Sample, tuple[int | None, str]]:
        """Every sample that is recorded as refused, with status and reason; none is recorded twice."""
        return await self.ledger.read(refused_samples, name)

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics._registry.get_sample_value(name, {"destination": "prom", **labels})
        assert found is not None
        return found

    def refused_with(self, status: int) -> float:
        """How many samples are counted as refused with this status."""
        # Not out of the registry, which collects all there is for one number: tests wait for it turn by turn.
        return float(self.metrics.push_samples_failed_total.labels("prom", str(status))._value.get())


def delivery_rows(session: Any, destination: str) -> list[tuple[Any, ...]]:
    return list(
        session._connection.execute(
            """SELECT scope.tag, bucket.start, delivery.state, delivery.status, delivery.reason FROM delivery
            JOIN bucket ON bucket.id = delivery.bucket_id JOIN scope ON scope.id = bucket.scope_id
            JOIN destination ON destination.id = delivery.destination_id WHERE destination.name = ?""",
            (destination,),
        )
    )


def refused_samples(session: Any, destination: str) -> dict[Sample, tuple[int | None, str]]:
    execute = session._connection.execute
    countries = {
        number: parse_label_block(bytes(block))["country"] for number, block in execute("SELECT id, labels FROM series")
    }
    found: dict[Sample, tuple[int | None, str]] = {}
    for zone, start, series_ids, status, reason in execute(
        """SELECT scope.tag, bucket.start, refusal.series_ids, refusal.status, refusal.reason FROM refusal
        JOIN bucket ON bucket.id = refusal.bucket_id JOIN scope ON scope.id = bucket.scope_id
        JOIN destination ON destination.id = refusal.destination_id WHERE destination.name = ?""",
        (destination,),
    ):
        for number in array("I", series_ids):
            sample = (int(zone, 16), (start - T0) // HOUR, countries[number])
            assert sample not in found
            found[sample] = (status, reason)
    return found


@asynccontextmanager
async def a_scene(path: Path, clock: ManualClock, *, strict: bool = False) -> AsyncIterator[Scene]:
    ledger = Ledger.open(path / "ledger.db")
    await ledger.write(record_scopes, [scope(zone) for zone in ZONES], NOW)
    await ledger.write(register_destinations, {"prom": strict, "other": strict}, replay_since=0, now=NOW)
    health = Health(clock)
    metrics = Metrics(clock, health, version="1", sqlite_version="3", destinations=["prom", "other"])
    try:
        yield Scene(clock, ledger, health, metrics, FakeReceiver(clock))
    finally:
        await ledger.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene whose clock jumps over every wait."""
    async with a_scene(tmp_path, JumpingClock(NOW)) as made:
        yield made


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Scene]:
    """The same, for a receiver that takes nothing out of order."""
    async with a_scene(tmp_path, JumpingClock(NOW), strict=True) as made:
        yield made


@pytest.fixture
async def manual(tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene whose clock stands still until it is moved."""
    async with a_scene(tmp_path, ManualClock(NOW)) as made:
        yield made


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


def in_turn(*verdicts: Verdict) -> Callable[[Sent], Verdict]:
    """These answers one after the other, then acceptance."""
    left = list(verdicts)
    return lambda _sent: left.pop(0) if left else ACCEPTED


def about(windows: Collection[Window], verdict: Verdict) -> Callable[[Sent], Verdict]:
    """This answer to every request that holds one of these windows, acceptance for the rest."""
    return lambda sent: verdict if any(window in windows for window in sent.content) else ACCEPTED


def never_takes(bad: Collection[Sample], verdict: Verdict = OUT_OF_BOUNDS) -> Callable[[Sent], Verdict]:
    """This answer to every request that holds one of these samples, acceptance for the rest."""
    return lambda sent: verdict if any(sample in bad for sample in sent.samples) else ACCEPTED
