"""One bad sample costs one sample: real receivers refuse a few of 10,000 and get exactly the others.

What is too old is relative to the newest sample that a receiver has, so every receiver gets one of now first. The
worker is told a wider window than the receiver's real one: told the real one it would not send what is too old at all.
"""

import asyncio
import math
import random
import time
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from tests.plain_http import NO_AUTHORITIES
from tests.receivers import RECEIVERS, Labels, PrometheusServer, Receiver, VictoriaMetricsServer, new_receiver
from tests.truth import SAME, Content, difference
from worker.buckets import Bucket, Window
from worker.clock import SystemClock
from worker.config import DestinationSettings, Message, MetadataSettings, QueueSettings
from worker.health import Health
from worker.ledger import (
    Ledger,
    Scope,
    capture,
    delivery_counts,
    record_scopes,
    refusals,
    register_destinations,
    undelivered,
)
from worker.observe import Metrics
from worker.push import Pusher
from worker.remote_write import RemoteWriteClient, Verdict
from worker.remote_write.proto.remote_write_v1_pb2 import Label, TimeSeries
from worker.series import MetricMetadata

SAMPLES = 10_000
"""In one request, as `max_samples_per_send` has it."""

WIDTH_SECONDS = 60
HOUR = 3600
DAY = 24 * HOUR

RECEIVER_WINDOW_SECONDS = 2 * DAY
BELIEVED_WINDOW_SECONDS = 30 * DAY
TOO_OLD_SECONDS = 10 * DAY

NAME = "real"

RequiredProgram = Callable[[str], Path]


@dataclass(frozen=True)
class Kind:
    """A receiver, the message it is sent, and what it answers to a sample that is too old."""

    program: str
    message: Message
    status: int
    text: str


CONTESTED = "duplicate sample for timestamp"
"""What every Prometheus answers, with a 400, to another value for the newest instant of a series."""

REFUSING = (
    Kind("prometheus-2.42", Message.V1, 500, "too old sample"),
    Kind("prometheus-3.5", Message.V1, 400, "too old sample"),
    Kind("prometheus-3.5", Message.V2, 400, "too old sample for series"),
)

STRICT = (
    Kind("prometheus-2.42", Message.V1, 400, "out of bounds"),
    Kind("prometheus-3.5", Message.V1, 400, "out of bounds"),
    Kind("prometheus-3.5", Message.V2, 400, "out of bounds for series"),
)


def named(kind: Kind) -> str:
    return f"{kind.program}-{kind.message.name}"


@dataclass(frozen=True)
class Piece:
    """A bucket to be: `values` of some series at one instant, which need not be the one of its window."""

    zone: int
    start: int
    timestamp_ms: int
    values: Mapping[Labels, float]
    dataset: str = "http_requests"

    def bucket(self) -> Bucket:
        values = array("d", self.values.values())
        window = Window(self.start, WIDTH_SECONDS)
        return Bucket(self.dataset, tag(self.zone), window, self.timestamp_ms, tuple(map(block, self.values)), values)


def block(labels: Labels) -> bytes:
    """A label block as it should be, but that a name may be there twice."""
    return TimeSeries(labels=[Label(name=name, value=value) for name, value in sorted(labels)]).SerializeToString()


def tag(zone: int) -> str:
    return f"{zone:032x}"


def a_scope(zone: int) -> Scope:
    return Scope(tag(zone), f"zone-{zone}.example", "a" * 32, "Example", "pro")


def series(zone: int, number: int) -> Labels:
    name = ("cloudflare_zone_requests", "cloudflare_zone_response_bytes")[number % 2]
    return frozenset({"__name__": name, "zone_id": tag(zone), "country": f"C{number}"}.items())


def true_value(zone: int, number: int, start: int) -> float:
    return float(zone * 1_000_000_007 + number * 100_003 + start // WIDTH_SECONDS % 100_000)


def piece(zone: int, start: int, numbers: Iterable[int]) -> Piece:
    """One window of these series of a zone, stamped with its start."""
    return Piece(zone, start, start * 1000, {series(zone, each): true_value(zone, each, start) for each in numbers})


def windows(count: int, *, now: float, newest_age_seconds: int = 2 * HOUR) -> range:
    """The starts of that many windows, oldest first.

    The newest is so old that all of it is backlog, which goes out in requests that are as large as allowed.
    """
    newest = int(now - newest_age_seconds) // WIDTH_SECONDS * WIDTH_SECONDS
    return range(newest - (count - 1) * WIDTH_SECONDS, newest + 1, WIDTH_SECONDS)


def content(pieces: Iterable[Piece]) -> Content:
    """What a receiver holds that has taken all of it."""
    by_series: defaultdict[Labels, dict[int, float]] = defaultdict(dict)
    for each in pieces:
        for labels, value in each.values.items():
            by_series[labels][each.timestamp_ms] = value
    return dict(by_series)


def count(pieces: Iterable[Piece]) -> int:
    return sum(len(each.values) for each in pieces)


def scattered(bad: int, *, now: float, chance: random.Random) -> tuple[list[Piece], list[Piece]]:
    """10,000 samples of 100 series, all good but `bad` of them, which lie among the others: (good, bad).

    A bucket has one instant, so that each bad sample is a bucket of its own, of another dataset and the same window.
    """
    starts = windows(100, now=now)
    chosen = {divmod(place, 100) for place in chance.sample(range(SAMPLES), bad)}
    good = [
        piece(1, start, [number for number in range(100) if (row, number) not in chosen])
        for row, start in enumerate(starts)
    ]
    too_old = [
        Piece(
            zone=1,
            start=starts[row],
            timestamp_ms=int(now - TOO_OLD_SECONDS) * 1000 + index,
            values={series(1, number): float(index)},
            dataset=f"late_{index}",
        )
        for index, (row, number) in enumerate(sorted(chosen))
    ]
    return good, too_old


@dataclass
class Tap:
    """The real client, and what went through it."""

    client: RemoteWriteClient
    messages: list[Message] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    async def send(self, body: bytes, attempt: int, message: Message = Message.V1) -> Verdict:
        self.messages.append(message)
        verdict = await self.client.send(body, attempt, message)
        self.verdicts.append(verdict)
        return verdict

    @property
    def requests(self) -> int:
        return len(self.messages)


def raw(samples: Content) -> dict[Labels, list[tuple[int, float]]]:
    """As a receiver shows it that has stored every sample once."""
    return {labels: sorted(by_time.items()) for labels, by_time in samples.items()}


def settings(receiver: Receiver, *, window_seconds: int, message: Message | None, **queue: Any) -> DestinationSettings:
    # How long it waits is a matter of other tests; here that would only take time.
    pace = {
        "min_backoff_seconds": 0.001,
        "max_backoff_seconds": 0.001,
        "max_split_requests_per_minute": 60_000,
        "blame_after_seconds": 0.0,
    }
    return DestinationSettings(
        name=NAME,
        url=receiver.write_url,
        out_of_order_time_window_seconds=window_seconds,
        protobuf_message=message,
        queue=QueueSettings.model_validate(pace | queue),
    )


async def deliver(
    ledger: Ledger,
    destination: DestinationSettings,
    *,
    metadata: Mapping[str, MetricMetadata] | None = None,
    attempts: int | None = None,
) -> Tap:
    """Deliver all that waits, by the worker's own pusher and client."""
    clock = SystemClock()
    health = Health(clock)
    metrics = Metrics(
        clock, health, version="0", sqlite_version=apsw.sqlite_lib_version(), destinations=[destination.name]
    )
    tap = Tap(RemoteWriteClient(destination, clock))
    pusher = Pusher(
        destination,
        ledger=ledger,
        sender=tap,
        clock=clock,
        health=health,
        metrics=metrics,
        metadata=metadata or {},
        attempts_allowed=attempts,
    )
    health.expect(pusher.loop, allowance_seconds=600.0, liveness_seconds=600.0)
    try:
        await pusher.drain(asyncio.Event())
    finally:
        await tap.client.aclose()
    return tap


@asynccontextmanager
async def a_ledger(folder: Path, pieces: Sequence[Piece], *, strict: bool = False) -> AsyncIterator[Ledger]:
    """A ledger that holds these, all of it waiting."""
    ledger = Ledger.open(folder / "ledger.db")
    now = time.time()
    zones = sorted({each.zone for each in pieces})
    scopes = [a_scope(zone) for zone in zones]
    try:
        await ledger.write(record_scopes, scopes, now)
        await ledger.write(register_destinations, {NAME: strict}, replay_since=0.0, now=now)
        captured = await ledger.write(capture, [each.bucket() for each in pieces], now)
        assert (captured.buckets, captured.samples) == (len(pieces), count(pieces))
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def a_prometheus(program: Path, *, now: float, window_seconds: int | None) -> AsyncIterator[PrometheusServer]:
    """A Prometheus whose newest sample is of now."""
    async with PrometheusServer(program, out_of_order_seconds=window_seconds) as prometheus:
        assert (await prometheus.push({frozenset({("__name__", "head")}): {int(now * 1000): 1.0}})).is_success
        yield prometheus


async def states(ledger: Ledger) -> dict[str, int]:
    """How many buckets are in which state."""
    return {each.state: each.buckets for each in await ledger.read(delivery_counts)}


def most_requests(kind: Kind, bad: int, *, of: int = SAMPLES) -> int:
    """How many requests the search for `bad` samples may take: 2 k log2(n/k) + 1, rounded up as halves are.

    Where the refusal is a 5xx, also: the tries before the search begins, 17 more, and four more tries of each sample
    that is blamed in the end, between rows that are taken.
    """
    search = 2 * bad * math.ceil(math.log2(of / bad)) + 1
    return search if kind.status < 500 else search + QueueSettings().split_after_failures + 17 + 4 * (bad + 1)


async def refused(ledger: Ledger, *, status: int, text: str) -> Content:
    """Every sample that is on record as refused, with the value 0; each must be so for the receiver's reason."""
    found: defaultdict[Labels, dict[int, float]] = defaultdict(dict)
    for each in await ledger.read(refusals, NAME, newest=SAMPLES):
        assert (each.status, text in each.reason) == (status, True), each
        for labels in each.series:
            at = found[frozenset((label.name, label.value) for label in TimeSeries.FromString(labels).labels)]
            assert each.timestamp_ms not in at, "a sample is on record twice"
            at[each.timestamp_ms] = 0.0
    return dict(found)


def without_values(samples: Content) -> Content:
    return {labels: dict.fromkeys(by_time, 0.0) for labels, by_time in samples.items()}


@pytest.mark.parametrize("bad", [1, 3, 200])
@pytest.mark.parametrize("kind", REFUSING, ids=named)
async def test_samples_that_are_too_old_cost_nothing_but_themselves(
    tmp_path: Path, required_program: RequiredProgram, kind: Kind, bad: int
) -> None:
    now = time.time()
    good, too_old = scattered(bad, now=now, chance=random.Random(bad))
    assert count(good) + count(too_old) == SAMPLES
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=RECEIVER_WINDOW_SECONDS) as prometheus,
        a_ledger(tmp_path, [*good, *too_old]) as ledger,
    ):
        destination = settings(prometheus, window_seconds=BELIEVED_WINDOW_SECONDS, message=kind.message, max_shards=1)
        tap = await deliver(ledger, destination)
        stored = await prometheus.read_all()

        assert difference(content(good), stored) == SAME
        on_record = await refused(ledger, status=kind.status, text=kind.text)
        assert difference(without_values(content(too_old)), on_record) == SAME
        assert await states(ledger) == {"acknowledged": len(good), "refused": bad}
        assert set(tap.messages) == {kind.message}
        assert tap.requests <= most_requests(kind, bad)


@pytest.mark.parametrize("kind", REFUSING, ids=named)
async def test_whole_windows_that_are_too_old_are_refused_and_all_others_arrive_through_every_lane(
    tmp_path: Path, required_program: RequiredProgram, kind: Kind
) -> None:
    now = time.time()
    starts = windows(49, now=now)
    zones = (1, 2, 3, 4)
    good = [piece(zone, start, range(50)) for zone in zones for start in starts]
    too_old = [piece(zone, starts.start - TOO_OLD_SECONDS, range(50)) for zone in zones]
    assert count(good) + count(too_old) == SAMPLES
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=RECEIVER_WINDOW_SECONDS) as prometheus,
        a_ledger(tmp_path, [*good, *too_old]) as ledger,
    ):
        destination = settings(prometheus, window_seconds=BELIEVED_WINDOW_SECONDS, message=kind.message)
        tap = await deliver(ledger, destination)
        stored = await prometheus.read_all()

        assert difference(content(good), stored) == SAME
        on_record = await refused(ledger, status=kind.status, text=kind.text)
        assert difference(without_values(content(too_old)), on_record) == SAME
        assert await states(ledger) == {"acknowledged": len(good), "refused": len(too_old)}
        # Every lane makes a request of its own and searches it.
        assert tap.requests <= len(zones) * most_requests(kind, 50, of=SAMPLES // len(zones))


@pytest.mark.parametrize("bad", [3, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", REFUSING[1:], ids=named)
async def test_single_series_all_over_a_window_are_refused_and_the_rest_of_it_arrives(
    tmp_path: Path, required_program: RequiredProgram, kind: Kind, bad: int
) -> None:
    now = time.time()
    # Within the hour that Prometheus keeps in order: only there does it tell another value from the one that it has.
    [start] = windows(1, now=now, newest_age_seconds=600)
    window = piece(1, start, range(SAMPLES))
    contested = random.Random(bad).sample(sorted(window.values, key=sorted), bad)
    others: Content = {labels: {window.timestamp_ms: -1.0} for labels in contested}
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=RECEIVER_WINDOW_SECONDS) as prometheus,
        a_ledger(tmp_path, [window]) as ledger,
    ):
        assert (await prometheus.push(others)).is_success
        destination = settings(prometheus, window_seconds=BELIEVED_WINDOW_SECONDS, message=kind.message)
        tap = await deliver(ledger, destination)
        stored = await prometheus.read_all()

        assert difference(content([window]) | others, stored) == SAME
        on_record = await refused(ledger, status=400, text=CONTESTED)
        assert difference(without_values(others), on_record) == SAME
        assert await states(ledger) == {"partial": 1}
        assert tap.requests <= most_requests(kind, bad)


@pytest.mark.parametrize("bad", [1, 3, pytest.param(200, marks=pytest.mark.soak)])
async def test_series_that_break_the_receiver_all_over_a_window_do_not_hold_up_the_others(
    tmp_path: Path, required_program: RequiredProgram, bad: int
) -> None:
    kind = Kind("prometheus-2.42", Message.V1, 500, 'label name "country" is not unique')
    now = time.time()
    [start] = windows(1, now=now)
    chosen = set(random.Random(bad).sample(range(SAMPLES), bad))
    good = piece(1, start, (number for number in range(SAMPLES) if number not in chosen))
    poison = {series(1, number) | {("country", "twice")}: 0.0 for number in chosen}
    mixed = replace(good, values=dict(sorted({**good.values, **poison}.items(), key=lambda each: sorted(each[0]))))
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=RECEIVER_WINDOW_SECONDS) as prometheus,
        a_ledger(tmp_path, [mixed]) as ledger,
    ):
        tap = await deliver(ledger, settings(prometheus, window_seconds=BELIEVED_WINDOW_SECONDS, message=kind.message))
        stored = await prometheus.read_all()

        assert difference(content([good]), stored) == SAME
        on_record = await refused(ledger, status=kind.status, text=kind.text)
        assert difference({labels: {good.timestamp_ms: 0.0} for labels in poison}, on_record) == SAME
        assert await states(ledger) == {"partial": 1}
        assert tap.requests <= most_requests(kind, bad)


@pytest.mark.parametrize("bad", [3, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", STRICT, ids=named)
async def test_a_receiver_that_takes_nothing_out_of_order_gets_all_but_what_is_too_old(
    tmp_path: Path, required_program: RequiredProgram, kind: Kind, bad: int
) -> None:
    now = time.time()
    first, second = windows(2, now=now, newest_age_seconds=600)
    per_zone = (SAMPLES - bad) // 4
    good = [piece(zone, start, range(per_zone)) for start in (first, second) for zone in (1, 2, 3, 4)]
    too_old = [
        Piece(
            zone=zone,
            start=first,
            timestamp_ms=int(now - 2 * HOUR) * 1000,
            values={series(zone, SAMPLES + index): 0.0},
            dataset=f"late_{index}",
        )
        for index in range(bad)
        for zone in [1 + index % 4]
    ]
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=None) as prometheus,
        a_ledger(tmp_path, [*good, *too_old], strict=True) as ledger,
    ):
        tap = await deliver(ledger, settings(prometheus, window_seconds=0, message=kind.message))
        stored = await prometheus.read_all()

        assert difference(content(good), stored) == SAME
        on_record = await refused(ledger, status=kind.status, text=kind.text)
        assert difference(without_values(content(too_old)), on_record) == SAME
        assert await states(ledger) == {"acknowledged": len(good), "refused": bad}
        # One window of each series in a request: the second window takes one more.
        assert tap.requests <= most_requests(kind, bad) + 1


@pytest.mark.parametrize("kind", STRICT, ids=named)
async def test_a_series_that_is_ahead_of_the_ledger_loses_only_what_is_behind_it(
    tmp_path: Path, required_program: RequiredProgram, kind: Kind
) -> None:
    now = time.time()
    pieces = [piece(1, start, range(2000)) for start in windows(5, now=now, newest_age_seconds=600)]
    third = pieces[2]
    ahead = random.Random(3).sample(sorted(third.values, key=sorted), 3)
    in_between = {labels: {third.timestamp_ms + 1000: -1.0} for labels in ahead}
    async with (
        a_prometheus(required_program(kind.program), now=now, window_seconds=None) as prometheus,
        a_ledger(tmp_path, pieces, strict=True) as ledger,
    ):
        assert (await prometheus.push(in_between)).is_success
        tap = await deliver(ledger, settings(prometheus, window_seconds=0, message=kind.message))
        stored = await prometheus.read_all()

        wanted = content(pieces)
        behind = {labels: {each.timestamp_ms: 0.0 for each in pieces[:3]} for labels in ahead}
        for labels in ahead:
            for each in pieces[:3]:
                del wanted[labels][each.timestamp_ms]
            wanted[labels] |= in_between[labels]
        assert difference(wanted, stored) == SAME
        assert difference(behind, await refused(ledger, status=400, text="out of order sample")) == SAME
        assert await states(ledger) == {"acknowledged": 2, "partial": 3}
        assert tap.requests <= 3 * most_requests(kind, 3, of=2000) + 2


@pytest.mark.parametrize("program", ["victoria-metrics", "victoria-metrics-1.79"])
async def test_victoria_metrics_acknowledges_what_is_beyond_its_retention_and_keeps_all_the_rest(
    tmp_path: Path, required_program: RequiredProgram, program: str
) -> None:
    now = time.time()
    good, too_old = scattered(200, now=now, chance=random.Random(200))
    retention = f"{RECEIVER_WINDOW_SECONDS // DAY}d"
    async with (
        VictoriaMetricsServer(required_program(program), retention=retention) as victoria_metrics,
        a_ledger(tmp_path, [*good, *too_old]) as ledger,
    ):
        destination = settings(
            victoria_metrics, window_seconds=BELIEVED_WINDOW_SECONDS, message=Message.V1, max_shards=1
        )
        tap = await deliver(ledger, destination)
        stored = await victoria_metrics.read_raw()

        assert stored == raw(content(good))
        assert tap.requests == 1
        # No answer tells: a 204, and a counter of its own. What helps is to tell the worker the receiver's window.
        assert await states(ledger) == {"acknowledged": len(good) + len(too_old)}
        assert await victoria_metrics.dropped_as_too_old() == 200


@pytest.mark.parametrize("program", RECEIVERS)
async def test_what_is_older_than_the_receiver_is_said_to_take_is_put_on_record_and_never_sent(
    tmp_path: Path, required_program: RequiredProgram, program: str
) -> None:
    now = time.time()
    starts = windows(98, now=now)
    good = [piece(1, start, range(100)) for start in starts]
    too_old = [piece(1, start - TOO_OLD_SECONDS, range(100)) for start in starts[:2]]
    async with (
        new_receiver(program, required_program(program), out_of_order_seconds=RECEIVER_WINDOW_SECONDS) as receiver,
        a_ledger(tmp_path, [*good, *too_old]) as ledger,
    ):
        assert (await receiver.push({frozenset({("__name__", "head")}): {int(now * 1000): 1.0}})).is_success
        destination = settings(receiver, window_seconds=RECEIVER_WINDOW_SECONDS, message=Message.V1, max_shards=1)
        tap = await deliver(ledger, destination)

        assert await receiver.read_raw() == raw(content(good))
        assert tap.requests == 1
        assert await states(ledger) == {"acknowledged": len(good), "expired": len(too_old)}
        [expired] = await ledger.read(undelivered)
        assert "out_of_order_time_window" in expired.reason


V1_ONLY = "--web.remote-write-receiver.accepted-protobuf-messages=prometheus.WriteRequest"
V2_ONLY = "--web.remote-write-receiver.accepted-protobuf-messages=io.prometheus.write.v2.Request"


@dataclass(frozen=True)
class Speaker:
    """A receiver and what it understands; a Prometheus that refuses a message may have stored its rows all the same."""

    program: str
    best: Message
    flags: tuple[str, ...] = ()

    def start(self, program: Path) -> Receiver:
        if self.program.startswith("prometheus"):
            return PrometheusServer(program, out_of_order_seconds=RECEIVER_WINDOW_SECONDS, extra_flags=self.flags)
        return VictoriaMetricsServer(program)


SPEAKERS = (
    Speaker("prometheus-3.5", Message.V2),
    Speaker("prometheus-3.5", Message.V1, (V1_ONLY,)),
    Speaker("prometheus-2.42", Message.V1),
    Speaker("victoria-metrics", Message.V1),
    Speaker("victoria-metrics-1.79", Message.V1),
)


def speaks(speaker: Speaker) -> str:
    return "-".join([speaker.program, speaker.best.name, *(["answers-415"] if speaker.flags else [])])


@pytest.mark.parametrize("speaker", SPEAKERS, ids=speaks)
async def test_the_newest_message_that_a_receiver_understands_is_found_and_nothing_is_lost_over_it(
    tmp_path: Path, required_program: RequiredProgram, speaker: Speaker
) -> None:
    now = time.time()
    pieces = [piece(zone, start, range(50)) for zone in (1, 2) for start in windows(20, now=now)]
    later = [piece(3, start, range(50)) for start in windows(20, now=now)]
    found = [] if speaker.best is Message.V2 else [Message.V2]
    async with (
        speaker.start(required_program(speaker.program)) as receiver,
        a_ledger(tmp_path, pieces) as ledger,
    ):
        destination = settings(
            receiver, window_seconds=BELIEVED_WINDOW_SECONDS, message=None, max_shards=1, max_samples_per_send=500
        )
        tap = await deliver(ledger, destination)
        assert tap.messages == [*found, *[speaker.best] * 4]
        assert await states(ledger) == {"acknowledged": len(pieces)}
        assert await receiver.read_raw() == raw(content(pieces))

        # The next process begins with the newest message again: the receiver may have been replaced by a newer one.
        await ledger.write(record_scopes, [a_scope(zone) for zone in (1, 2, 3)], now)
        await ledger.write(capture, [each.bucket() for each in later], now)
        tap = await deliver(ledger, destination)
        assert tap.messages == [*found, *[speaker.best] * 2]
        assert await receiver.read_raw() == raw(content([*pieces, *later]))


@pytest.mark.parametrize(
    ("speaker", "chosen"),
    [
        (Speaker("prometheus-2.42", Message.V1), Message.V2),
        (Speaker("victoria-metrics", Message.V1), Message.V2),
        (Speaker("prometheus-3.5", Message.V1, (V1_ONLY,)), Message.V2),
        (Speaker("prometheus-3.5", Message.V2, (V2_ONLY,)), Message.V1),
    ],
    ids=lambda value: speaks(value) if isinstance(value, Speaker) else value.name,
)
async def test_a_message_chosen_by_hand_that_the_receiver_does_not_understand_counts_nothing_as_delivered(
    tmp_path: Path, required_program: RequiredProgram, speaker: Speaker, chosen: Message
) -> None:
    pieces = [piece(1, start, range(50)) for start in windows(20, now=time.time())]
    async with (
        speaker.start(required_program(speaker.program)) as receiver,
        a_ledger(tmp_path, pieces) as ledger,
    ):
        destination = settings(receiver, window_seconds=BELIEVED_WINDOW_SECONDS, message=chosen, max_shards=1)
        tap = await deliver(ledger, destination, attempts=1)
        assert set(tap.messages) == {chosen}
        assert await states(ledger) == {"pending": len(pieces)}

        # With the choice taken back, all of it arrives.
        await deliver(ledger, destination.model_copy(update={"protobuf_message": None}))
        assert await states(ledger) == {"acknowledged": len(pieces)}
        assert await receiver.read_raw() == raw(content(pieces))


HELP = "Requests that the zone received."
METADATA = {"cloudflare_zone_requests": MetricMetadata(help=HELP, unit="requests")}


async def test_prometheus_keeps_the_metadata_of_2_0_with_the_series_and_shows_it_nowhere(
    tmp_path: Path, required_program: RequiredProgram
) -> None:
    pieces = [piece(1, start, range(4)) for start in windows(2, now=time.time())]
    legible = ["--no-storage.tsdb.wal-compression"]
    async with (
        PrometheusServer(
            required_program("prometheus-3.5"), out_of_order_seconds=RECEIVER_WINDOW_SECONDS, extra_flags=legible
        ) as prometheus,
        a_ledger(tmp_path, pieces) as ledger,
    ):
        destination = settings(prometheus, window_seconds=BELIEVED_WINDOW_SECONDS, message=Message.V2)
        await deliver(ledger, destination, metadata=METADATA)

        # The endpoint is about the targets that it scrapes; the log is what it reads when it writes on to another one.
        assert await metadata_shown(prometheus) == {}
        log = b"".join(path.read_bytes() for path in (prometheus.folder / "data" / "wal").iterdir() if path.is_file())
        assert HELP.encode() in log


async def test_victoria_metrics_shows_the_metadata_of_1_0(tmp_path: Path, required_program: RequiredProgram) -> None:
    pieces = [piece(1, start, range(4)) for start in windows(2, now=time.time())]
    async with (
        VictoriaMetricsServer(required_program("victoria-metrics")) as victoria_metrics,
        a_ledger(tmp_path, pieces) as ledger,
    ):
        destination = settings(victoria_metrics, window_seconds=BELIEVED_WINDOW_SECONDS, message=Message.V1)
        sending = destination.model_copy(update={"metadata": MetadataSettings(send=True)})
        await deliver(ledger, sending, metadata=METADATA)

        assert await victoria_metrics.read_raw() == raw(content(pieces))
        assert await metadata_shown(victoria_metrics) == {
            "cloudflare_zone_requests": [{"type": "gauge", "unit": "requests", "help": HELP}]
        }


async def metadata_shown(receiver: Receiver) -> Any:
    async with httpx.AsyncClient(base_url=receiver.query_url, trust_env=False, verify=NO_AUTHORITIES) as client:
        return (await client.get("/api/v1/metadata")).raise_for_status().json()["data"]
