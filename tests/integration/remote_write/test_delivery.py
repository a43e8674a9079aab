"""From a batch to the built-in receiver and its memory, over a socket."""

import contextlib
import random
from array import array
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import destination
from worker.buckets import Batch, StoredBucket
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient, compress, split_batch, write_request
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.series import label_block, parse_label_block

START_MS = 1_760_000_000_000


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[RemoteWriteClient]:
    client = RemoteWriteClient(destination(url), ManualClock())
    try:
        yield client
    finally:
        await client.aclose()


def windows(count: int) -> Batch:
    """Windows of three scopes in the order of time; the series of a scope differ a little from window to window."""
    random_numbers = random.Random(1)
    series = {
        number: label_block("requests", {"zone": f"zone-{number // 20}", "country": f"C{number % 20}"})
        for number in range(60)
    }
    buckets: list[StoredBucket] = []
    for window in range(count):
        for scope in range(3):
            series_ids = [20 * scope + index for index in range(20) if random_numbers.random() < 0.8]
            values = [random_numbers.uniform(0, 1e6) for _ in series_ids]
            timestamp_ms = START_MS + 60_000 * window
            packed = array("I", series_ids).tobytes(), array("d", values).tobytes()
            buckets.append(StoredBucket(len(buckets), timestamp_ms, *packed))
    return Batch(tuple(buckets), series)


def stored_by(batch: Batch) -> dict[tuple[tuple[str, str], ...], dict[int, float]]:
    samples: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
    for bucket in batch.buckets:
        for series_id, value in zip(array("I", bucket.series_ids), array("d", bucket.values), strict=True):
            labels = tuple(parse_label_block(batch.series[series_id]).items())
            samples.setdefault(labels, {})[bucket.timestamp_ms] = value
    return samples


async def test_every_sample_of_a_batch_arrives_exactly_once_and_as_it_was() -> None:
    batch = windows(40)
    receiver = MemoryReceiver()
    async with receiver.listening() as url, client_of(url) as client:
        parts = split_batch(batch, max_samples=500, max_bytes=20_000)
        assert len(parts) > 3
        for part in parts:
            assert await client.send(compress(write_request(part)), 0) == Accepted(204)
    assert receiver.samples == stored_by(batch)
    assert receiver.repeated_samples == 0
    assert receiver.answers == {204: len(parts)}


async def test_a_receiver_that_fails_gets_the_same_bytes_again_and_stores_them_once() -> None:
    batch = windows(3)
    body = compress(write_request(batch))
    receiver = MemoryReceiver()
    async with receiver.listening() as url, client_of(url) as client:
        receiver.failure = Failure(429, "slow down", retry_after="30")
        assert await client.send(body, 0) == Later("HTTP 429: slow down", Fate.RATE_LIMITED, 429, 30.0)
        receiver.failure = None
        assert await client.send(body, 1) == Accepted(204)
        # As after an answer that was lost.
        assert await client.send(body, 2) == Accepted(204)
    assert receiver.samples == stored_by(batch)
    assert receiver.repeated_samples == batch.sample_count


async def test_a_receiver_that_goes_away_and_comes_back_keeps_what_it_had() -> None:
    first, second = windows(2).buckets[:3], windows(2).buckets[3:]
    series = windows(2).series
    receiver = MemoryReceiver()
    async with receiver.listening() as url, client_of(url) as client:
        assert await client.send(compress(write_request(Batch(first, series))), 0) == Accepted(204)
    body = compress(write_request(Batch(second, series)))
    async with client_of(url) as client:
        assert await client.send(body, 0) == Later("the connection failed: Connection refused")
        async with receiver.listening(port=urlsplit(url).port or 0):
            assert await client.send(body, 1) == Accepted(204)
    assert receiver.samples == stored_by(windows(2))


async def test_another_value_for_what_is_stored_is_refused_with_both_values() -> None:
    bucket = StoredBucket(1, START_MS, array("I", [0]).tobytes(), array("d", [1.0]).tobytes())
    changed = StoredBucket(1, START_MS, bucket.series_ids, array("d", [2.0]).tobytes())
    series = windows(1).series
    receiver = MemoryReceiver()
    async with receiver.listening() as url, client_of(url) as client:
        assert await client.send(compress(write_request(Batch((bucket,), series))), 0) == Accepted(204)
        verdict = await client.send(compress(write_request(Batch((changed,), series))), 0)
    assert isinstance(verdict, Refused)
    assert verdict.status == 400
    assert verdict.text.endswith(f"two values at {START_MS} ms: 1.0 is stored, 2.0 was sent")
