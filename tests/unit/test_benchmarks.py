from array import array
from pathlib import Path

import pytest

from benchmarks.__main__ import Results, recent_load, tables
from benchmarks.comparison import (
    VMAGENT_FLAGS,
    WORKER_MESSAGES,
    deliver_by_vmagent,
    deliver_by_worker,
    deliver_directly,
)
from benchmarks.load import Load
from benchmarks.processes import run
from benchmarks.refusals import PROMETHEUS_QUEUES, lost_by_prometheus, lost_by_vmagent, lost_by_worker
from benchmarks.sender import capture_load, drain_ledger
from tests.fetch_receivers import locate
from worker.config import Message
from worker.remote_write.receiver import MemoryReceiver
from worker.series import parse_label_block

TINY = Load(zones=3, series_per_zone=12, minutes=5, first_start=1_750_000_020)


def test_every_process_makes_the_same_samples_of_a_load() -> None:
    again = Load(**{name: getattr(TINY, name) for name in ("zones", "series_per_zone", "minutes", "first_start")})
    assert again.bucket(2, 4) == TINY.bucket(2, 4)
    assert again.bucket(2, 4) != TINY.bucket(2, 3)


def test_the_series_of_a_load_are_distinct() -> None:
    assert len({block for zone in TINY.series for block in zone}) == 3 * 12


async def test_what_was_captured_and_drained_is_the_load(tmp_path: Path) -> None:
    load = recent_load(zones=3, series_per_zone=12, minutes=5)
    ledger = tmp_path / "ledger.db"
    captured = await capture_load(load, ledger, 2)
    receiver = MemoryReceiver()
    async with receiver.listening() as url:
        drained = await drain_ledger(ledger, url, Message.V2)

    assert captured.samples == drained.samples == load.samples
    stored = {tuple(sorted(labels)): samples for labels, samples in receiver.samples.items()}
    assert len(stored) == 3 * 12
    for zone in range(load.zones):
        bucket = load.bucket(zone, 3)
        for block, value in zip(bucket.series, bucket.values, strict=True):
            assert stored[tuple(sorted(parse_label_block(block).items()))][bucket.timestamp_ms] == value


def test_a_load_counts_its_own_truth() -> None:
    values = array("d")
    for minute in range(TINY.minutes):
        values.extend(TINY.bucket(1, minute).values)
    assert TINY.truth(1) == (len(values), sum(values))


async def test_a_sender_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exit code"):
        await run("benchmarks.sender", "no such task")


async def test_every_sender_delivers_all_samples_to_a_real_receiver() -> None:
    prometheus, vmagent = locate("prometheus-3.5"), locate("vmagent")
    if prometheus is None or vmagent is None:
        pytest.skip("Prometheus 3.5 or vmagent is not there: run `make receivers`")
    load = recent_load(zones=3, series_per_zone=12, minutes=5)
    results = Results(load)
    for name, message in WORKER_MESSAGES.items():
        results.deliveries[name] = [await deliver_by_worker(load, prometheus, message)]
    for name, flags in VMAGENT_FLAGS.items():
        results.deliveries[name] = [await deliver_by_vmagent(load, prometheus, vmagent, flags)]
    for windows in (5, 1):
        results.limits[windows] = [await deliver_directly(load, prometheus, windows)]

    assert [delivery.missing_samples for [delivery] in results.deliveries.values()] == [0, 0, 0, 0]
    assert [arrival.samples for [arrival] in results.limits.values()] == [load.samples, load.samples]
    assert {name for name in results.deliveries if any(line.startswith(name) for line in tables(results))} == {
        *WORKER_MESSAGES,
        *VMAGENT_FLAGS,
    }


async def test_a_refused_sample_takes_along_nothing_of_the_worker_and_the_whole_request_of_its_peers() -> None:
    prometheus, vmagent = locate("prometheus-3.5"), locate("vmagent")
    if prometheus is None or vmagent is None:
        pytest.skip("Prometheus 3.5 or vmagent is not there: run `make receivers`")
    assert await lost_by_worker(prometheus, Message.V1) == 0
    assert await lost_by_vmagent(prometheus, vmagent, VMAGENT_FLAGS["vmagent, -remoteWrite.forcePromProto"]) == 9_999
    large_requests = PROMETHEUS_QUEUES["Prometheus, 10,000 samples a request"]
    assert await lost_by_prometheus(prometheus, large_requests) == 9_999
