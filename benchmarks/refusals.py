"""What one sample that the receiver refuses costs the 9,999 that travel with it, sender by sender.

The receiver is Prometheus as it is out of the box: it takes nothing out of order, and it has a newer sample of one of
the 10,000 series. That, and not a sample that is too old, because Prometheus as a sender passes on nothing that is
older than its own start.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import WIDTH_SECONDS, Load
from benchmarks.sender import capture_load, drain_ledger
from benchmarks.vmagent import Vmagent
from tests.receivers import PrometheusServer, Receiver
from worker.buckets import Batch
from worker.config import Message
from worker.remote_write import compress, write_request
from worker.series import parse_label_block

SAMPLES = 10_000
"""As many as the worker and vmagent put into one request."""

PROMETHEUS_QUEUES: Mapping[str, Mapping[str, Any]] = {
    "Prometheus, as it is (2,000 samples a request)": {},
    "Prometheus, 10,000 samples a request": {
        "queue_config": {"max_samples_per_send": SAMPLES, "capacity": 2 * SAMPLES}
    },
    "Prometheus, as it is over 2.0": {"protobuf_message": Message.V2.value},
}
"""How a Prometheus is set that writes on what it gets."""

# All of them are through after a second.
_GIVE_UP_SECONDS = 30.0
_POLL_SECONDS = 0.05

_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}


async def lost_by_worker(prometheus: Path, message: Message) -> int:
    """How many of the 9,999 are missing when the worker has nothing left to deliver."""
    load = _load()
    at_ms = load.first_start * 1000
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        ledger = Path(folder, "ledger.db")
        await capture_load(load, ledger, 1, strict=True)
        async with PrometheusServer(prometheus) as receiver:
            await _be_ahead(receiver, load, at_ms)
            await drain_ledger(ledger, receiver.write_url, message, window_seconds=0)
            return await _missing(receiver, at_ms)


async def lost_by_vmagent(prometheus: Path, program: Path, flags: Sequence[str]) -> int:
    """The same when vmagent has sent or dropped what it was given."""
    load, at_ms = _load(), int(time.time() * 1000)
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        async with PrometheusServer(prometheus) as receiver:
            await _be_ahead(receiver, load, at_ms)
            async with Vmagent(program, url=receiver.write_url, queue=Path(folder), flags=flags) as agent:
                await agent.wait_until_ready()
                await _hand_over(agent.write_url, load, at_ms)
                await _until(agent.write_url.replace("/api/v1/write", "/metrics"), _vmagent_is_done)
                return await _missing(receiver, at_ms)


async def lost_by_prometheus(prometheus: Path, queue: Mapping[str, Any]) -> int:
    """The same when a Prometheus that writes on has sent or dropped what it was given."""
    load = _load()
    async with PrometheusServer(prometheus) as receiver:
        onward = {"url": receiver.write_url, **queue}
        async with PrometheusServer(prometheus, remote_write=[onward]) as sender:
            # Its own start, and what is stamped within that second, is behind it.
            at_ms = int(time.time() * 1000) + 1000
            await _be_ahead(receiver, load, at_ms)
            await _hand_over(sender.write_url, load, at_ms)
            await _until(f"{sender.query_url}/metrics", _prometheus_is_done)
            return await _missing(receiver, at_ms)


def _load() -> Load:
    """One window of 10,000 series, which began within the last minute."""
    now = int(time.time()) // WIDTH_SECONDS * WIDTH_SECONDS
    return Load(zones=100, series_per_zone=SAMPLES // 100, minutes=1, first_start=now)


async def _be_ahead(receiver: Receiver, load: Load, at_ms: int) -> None:
    """Give the receiver a sample, a second later than `at_ms`, of a series in the middle."""
    labels = frozenset(parse_label_block(load.series[load.zones // 2][0]).items())
    (await receiver.push({labels: {at_ms + 1000: 0.0}})).raise_for_status()


async def _hand_over(url: str, load: Load, at_ms: int) -> None:
    """All 10,000 samples in one request, stamped `at_ms`."""
    batch = load.batch(range(load.zones), [0])
    stamped = Batch(tuple(replace(bucket, timestamp_ms=at_ms) for bucket in batch.buckets), batch.series)
    async with httpx.AsyncClient(headers=_HEADERS, timeout=60.0, trust_env=False) as client:
        (await client.post(url, content=compress(write_request(stamped)))).raise_for_status()


async def _missing(receiver: Receiver, at_ms: int) -> int:
    stored = await receiver.read_all()
    return SAMPLES - 1 - sum(at_ms in by_time for by_time in stored.values())


def _vmagent_is_done(counters: str) -> bool:
    sent = _total('vmagent_remotewrite_requests_total{.*"2XX"', counters)
    dropped = _total("vmagent_remotewrite_packets_dropped_total{", counters)
    return sent + dropped > 0 and _total("vmagent_remotewrite_pending_data_bytes{", counters) == 0


def _prometheus_is_done(counters: str) -> bool:
    tried = _total("prometheus_remote_storage_samples_total{", counters)
    return tried >= SAMPLES and _total("prometheus_remote_storage_samples_pending{", counters) == 0


async def _until(metrics_url: str, holds: Callable[[str], bool]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(_GIVE_UP_SECONDS):
        while True:
            if holds((await client.get(metrics_url)).text):
                return
            await asyncio.sleep(_POLL_SECONDS)


def _total(start_of_line: str, counters: str) -> float:
    """The sum of all counters of which the line starts like this regular expression."""
    return sum(map(float, re.findall(rf"^{start_of_line}.* (\S+)$", counters, re.MULTILINE)))
