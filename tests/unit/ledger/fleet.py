"""Zones and buckets for tests of the ledger. Every value follows from its series and its timestamp, so whatever comes
out of a ledger can be compared with the truth without remembering what went in."""

import zlib
from array import array
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from worker.buckets import Batch, Bucket, SampleTimestamp, StoredBucket, Window
from worker.ledger import (
    WHOLE_QUEUE,
    Job,
    JobState,
    Ledger,
    Pending,
    Position,
    Refusal,
    Resend,
    ResendCount,
    ResendResult,
    Scope,
    Stretch,
    acknowledge,
    ask,
    finish,
    job,
    next_pending,
    open_jobs,
    queue_next,
    refuse,
)
from worker.ledger.session import Session
from worker.series import label_block

DATASET = "http_requests"

HOUR = 3600

T0 = 1_750_000_000 // 86_400 * 86_400  # a midnight, so that windows of every width start there

NOW = T0 + 30 * 86_400.0


def content(path: Path) -> bytes:
    """What a file holds, 1 MB at most in these tests: reading it does not hold up the event loop for long."""
    return path.read_bytes()


def tag(zone: int) -> str:
    return f"{zone:032x}"


def scope(zone: int, *, name: str | None = None) -> Scope:
    return Scope(tag(zone), name or f"zone-{zone}.example", "a" * 32, "Example", "pro")


def blocks(zone: int, samples: int) -> tuple[bytes, ...]:
    return tuple(
        label_block("cloudflare_zone_requests", {"zone_id": tag(zone), "country": f"C{number}"})
        for number in range(samples)
    )


def true_value(block: bytes, timestamp_ms: int) -> float:
    """What Cloudflare counted, in every test of the ledger."""
    return float(zlib.crc32(block + timestamp_ms.to_bytes(8, "little")))


def window(hour: int, width_seconds: int = HOUR) -> Window:
    return Window(T0 + hour * HOUR, width_seconds)


def bucket(
    zone: int,
    hour: int,
    *,
    samples: int = 3,
    width_seconds: int = HOUR,
    dataset: str = DATASET,
    wrong_by: float = 0.0,
) -> Bucket:
    """The bucket of the window that starts `hour` hours after T0; with `wrong_by` its first sample is not the truth."""
    return bucket_of(zone, window(hour, width_seconds), samples=samples, dataset=dataset, wrong_by=wrong_by)


def bucket_of(
    zone: int,
    slice_of_time: Window,
    *,
    samples: int = 3,
    dataset: str = DATASET,
    wrong_by: float = 0.0,
    stamp: SampleTimestamp = SampleTimestamp.START,
) -> Bucket:
    """The bucket of any window."""
    timestamp_ms = slice_of_time.timestamp_ms(stamp)
    series = blocks(zone, samples)
    values = array("d", [true_value(block, timestamp_ms) for block in series])
    if wrong_by:
        values[0] += wrong_by
    return Bucket(dataset, tag(zone), slice_of_time, timestamp_ms, series, values)


def buckets(zones: Iterable[int], hours: Iterable[int], *, samples: int = 3) -> list[Bucket]:
    """Zone by zone, oldest first."""
    hours = list(hours)
    return [bucket(zone, hour, samples=samples) for zone in zones for hour in hours]


def minutes(zones: Iterable[int], numbers: Iterable[int], *, samples: int = 1) -> list[Bucket]:
    """Buckets of one-minute windows, counted from T0, zone by zone."""
    numbers = list(numbers)
    return [bucket_of(zone, Window(T0 + number * 60, 60), samples=samples) for zone in zones for number in numbers]


def samples_of(batch: Batch) -> list[tuple[bytes, int, float]]:
    """Every sample of a batch, in its order: label block, timestamp, value."""
    return [
        (batch.series[series_id], stored.timestamp_ms, value)
        for stored in batch.buckets
        for series_id, value in zip(array("I", stored.series_ids), array("d", stored.values), strict=True)
    ]


def untrue_samples(batch: Batch) -> list[tuple[bytes, int, float]]:
    return [sample for sample in samples_of(batch) if true_value(sample[0], sample[1]) != sample[2]]


def zone_and_hour(batch: Batch, stored: StoredBucket) -> tuple[int, int]:
    """Which zone and hour a bucket is of, told from its samples."""
    first = batch.series[array("I", stored.series_ids)[0]]
    zone = next(number for number in range(1000) if tag(number).encode() in first)
    return zone, (stored.timestamp_ms // 1000 - T0) // HOUR


def zones_and_hours(pending: Pending) -> list[tuple[int, int]]:
    return [zone_and_hour(pending.batch, stored) for stored in pending.batch.buckets]


def zones_and_minutes(pending: Pending) -> list[tuple[int, int]]:
    """Zone of every bucket, and the minute after T0 in which its window starts."""
    return [
        (zone_and_hour(pending.batch, stored)[0], (stored.timestamp_ms // 1000 - T0) // 60)
        for stored in pending.batch.buckets
    ]


def refuse_whole(
    session: Session, destination: str, ids: Sequence[int], *, now: float = NOW, status: int = 400, reason: str = "no"
) -> None:
    """A verb for tests: the receiver refused every sample of these buckets."""
    rows = session._connection.execute(
        "SELECT id, series_ids FROM bucket WHERE id IN (SELECT value FROM json_each(?))", (str(list(ids)),)
    )
    refusals = [Refusal(number, series_ids, status, reason) for number, series_ids in rows]
    refuse(session, destination, refusals, partly=(), now=now)


async def whole_queue(
    ledger: Ledger,
    destination: str,
    *,
    max_samples: int = 10_000,
    one_window_per_series: bool = False,
    stretch: Stretch = WHOLE_QUEUE,
    without: Collection[int] = (),
    waited_for_since: float | None = None,
) -> list[Pending]:
    """A destination's queue from its front to its end, page by page, without deciding on anything."""
    pages: list[Pending] = []
    position: Position | None = None
    while (
        page := await ledger.read(
            next_pending,
            destination,
            after=position,
            max_samples=max_samples,
            one_window_per_series=one_window_per_series,
            stretch=stretch,
            without=without,
            waited_for_since=waited_for_since,
        )
    ) is not None:
        pages.append(page)
        assert page.position != position
        position = page.position
    return pages


async def queue(ledger: Ledger, destination: str = "prom") -> list[tuple[int, int]]:
    """Zone and hour of everything that is pending at a destination, in the order of its queue."""
    return [entry for page in await whole_queue(ledger, destination) for entry in zones_and_hours(page)]


async def pending_ids(ledger: Ledger, destination: str = "prom") -> list[int]:
    return [stored.bucket_id for page in await whole_queue(ledger, destination) for stored in page.batch.buckets]


async def acknowledge_all(ledger: Ledger, destination: str = "prom", ids: Sequence[int] | None = None) -> None:
    await ledger.write(acknowledge, destination, await pending_ids(ledger, destination) if ids is None else ids, NOW)


def ask_for_resend(session: Session, resend: Resend, *, reason: str = "", asked_by: str = "", now: float = NOW) -> int:
    return ask(session, resend, reason=reason, asked_by=asked_by, now=now)


def carry_out_next(session: Session, now: float) -> Job | None:
    """Queue all of the oldest resend that is open, in one go, and call it done; what it made pending stays so."""
    found = next(iter(open_jobs(session)), None)
    if found is None:
        return None
    while not queue_next(session, still_open(session, found.job_id), resend_of(found)):
        pass
    finish(session, found.job_id, JobState.DONE, still_open(session, found.job_id).result, now)
    return job(session, found.job_id)


def still_open(session: Session, number: int) -> Job:
    found = job(session, number)
    assert found is not None
    assert found.is_open
    return found


def resend_of(found: Job) -> Resend:
    assert isinstance(found.arguments, Resend)
    return found.arguments


def queued_by(found: Job | None) -> tuple[ResendCount, ...]:
    assert found is not None
    assert isinstance(found.result, ResendResult)
    return found.result.queued
