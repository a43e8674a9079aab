"""What the worker encodes, and what a receiver of the field makes of it."""

import random
import time
from array import array

import pytest

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import destination
from tests.receivers import Labels, Receiver
from worker.buckets import Batch, StoredBucket
from worker.remote_write import Accepted, Later, Refused, RemoteWriteClient, compress, split_batch, write_request
from worker.series import label_block, parse_label_block


def recent_windows() -> Batch:
    """Six hours of minutes for three scopes, up to the last full hour; series come and go.

    The values are what counts are: VictoriaMetrics rounds those of very different sizes in one series.
    """
    random_numbers = random.Random(7)
    first = (int(time.time()) // 3600 - 6) * 3600
    series = {
        number: label_block(
            "cloudflare_zone_country_requests",
            {"zone": f"zone-{number // 40}.example", "country": f"Ländle {number % 40}"},
        )
        for number in range(120)
    }
    buckets: list[StoredBucket] = []
    for start in range(first, first + 6 * 3600, 60):
        for scope in range(3):
            series_ids = [number for number in range(40 * scope, 40 * scope + 40) if random_numbers.random() < 0.9]
            values = [random_numbers.choice([0.0, 1.0, 17.0, 123_456_789.0, 2.0**53]) for _ in series_ids]
            packed = array("I", series_ids).tobytes(), array("d", values).tobytes()
            buckets.append(StoredBucket(len(buckets), start * 1000, *packed))
    return Batch(tuple(buckets), series)


def samples_of(batch: Batch) -> dict[Labels, dict[int, float]]:
    samples: dict[Labels, dict[int, float]] = {}
    for bucket in batch.buckets:
        for series_id, value in zip(array("I", bucket.series_ids), array("d", bucket.values), strict=True):
            labels = frozenset(parse_label_block(batch.series[series_id]).items())
            samples.setdefault(labels, {})[bucket.timestamp_ms] = value
    return samples


async def test_a_receiver_stores_exactly_what_was_sent(receiver: Receiver) -> None:
    batch = recent_windows()
    client = RemoteWriteClient(destination(receiver.write_url), ManualClock())
    for part in split_batch(batch, max_samples=7_000, max_bytes=200_000):
        assert isinstance(await client.send(compress(write_request(part)), 0), Accepted)
    await client.aclose()
    assert await receiver.read_all() == samples_of(batch)


async def test_a_receiver_takes_the_same_request_twice(receiver: Receiver) -> None:
    batch = recent_windows()
    client = RemoteWriteClient(destination(receiver.write_url), ManualClock())
    body = compress(write_request(batch))
    assert isinstance(await client.send(body, 0), Accepted)
    assert isinstance(await client.send(body, 1), Accepted)
    await client.aclose()
    assert await receiver.read_all() == samples_of(batch)


@pytest.mark.parametrize("receiver", ["prometheus-2.42", "prometheus-3.5"], indirect=True)
async def test_prometheus_says_why_it_refuses(receiver: Receiver) -> None:
    series = {1: label_block("cloudflare_zone_requests", {"zone": "example.com"})}
    now_ms = int(time.time()) * 1000
    client = RemoteWriteClient(destination(receiver.write_url), ManualClock())
    verdicts = []
    for value in (1.0, 2.0):
        bucket = StoredBucket(1, now_ms, array("I", [1]).tobytes(), array("d", [value]).tobytes())
        verdicts.append(await client.send(compress(write_request(Batch((bucket,), series))), 0))
    await client.aclose()
    first, second = verdicts
    assert isinstance(first, Accepted)
    assert isinstance(second, Refused)
    assert second.text.startswith("duplicate sample for timestamp")


async def test_a_path_that_is_no_endpoint_costs_no_rows(receiver: Receiver) -> None:
    client = RemoteWriteClient(destination(receiver.query_url + "/nowhere/write"), ManualClock())
    verdict = await client.send(compress(b""), 0)
    await client.aclose()
    match verdict:
        case Later(status=status):
            assert status in {404, 405}
        case Refused(status=status):
            # VictoriaMetrics answers 400 to a path that it does not know.
            assert "victoria" in receiver.program.name
            assert status == 400
        case Accepted():
            pytest.fail("there is nothing that could accept")
