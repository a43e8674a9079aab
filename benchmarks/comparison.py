"""The worker's ledger beside vmagent's queue: the same samples, the same receiver, one after the other.

Both are measured in two processes. The first takes the samples in while the receiver is down and ends, with everything
on disk. Then an empty receiver comes up, and the second delivers the backlog. Two processes, because vmagent
that runs on may wait for up to a minute until it tries a receiver again that is back; both sides start with a first
attempt instead.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.load import Load
from benchmarks.processes import TASK_SECONDS, result_of, run, started
from benchmarks.receiving import Arrival, arrival, check_stored
from benchmarks.sender import OUT_OF_ORDER_SECONDS
from benchmarks.vmagent import Vmagent
from tests.receivers import PrometheusServer, Receiver
from worker.config import Message
from worker.remote_write import compress, write_request

WORKER_MESSAGES = {
    "cloudflare-remote-write, 1.0": Message.V1,
    "cloudflare-remote-write, 2.0": Message.V2,
}
"""What the worker speaks. To this receiver it is 2.0, unless it is told otherwise; the peer speaks 1.0."""

VMAGENT_FLAGS = {
    "vmagent, as it is": (),
    # It then need not find out that this receiver does not speak its own protocol, nor pack what is queued anew.
    "vmagent, -remoteWrite.forcePromProto": ("-remoteWrite.forcePromProto",),
}
"""How the peer is set: its defaults (2 connections per CPU, blocks of at most 10,000 samples), and what suits it."""


@dataclass(frozen=True)
class Delivery:
    """One backlog, taken in and delivered.

    take_in_cpu_seconds, drain_cpu_seconds: of the sender, in its first and in its second process.
    disk_bytes:                             of the backlog.
    peak_rss_bytes:                         of the sender, the larger of both processes.
    arrival:                                what the receiver saw.
    missing_samples:                        those that are not stored in the end.
    """

    take_in_cpu_seconds: float
    drain_cpu_seconds: float
    disk_bytes: int
    peak_rss_bytes: int
    arrival: Arrival
    missing_samples: int


async def deliver_by_worker(load: Load, prometheus: Path, message: Message) -> Delivery:
    """Capture into a ledger as the windows become final, then drain it."""
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        ledger = Path(folder, "ledger.db")
        captured = await run("benchmarks.sender", "capture", as_argument(load), str(ledger), "1")
        disk_bytes = _bytes_in(Path(folder))
        async with (
            _receiver(prometheus) as receiver,
            started("benchmarks.sender", "drain", str(ledger), receiver.write_url, message) as drain,
        ):
            seen = await arrival(receiver, load.samples, give_up_seconds=TASK_SECONDS)
            drained = await result_of(drain)
            missing = await check_stored(receiver, load)
    return Delivery(
        take_in_cpu_seconds=captured.cpu_seconds,
        drain_cpu_seconds=drained.cpu_seconds,
        disk_bytes=disk_bytes,
        peak_rss_bytes=max(captured.peak_rss_bytes, drained.peak_rss_bytes),
        arrival=seen,
        missing_samples=missing,
    )


async def deliver_by_vmagent(load: Load, prometheus: Path, program: Path, flags: Sequence[str]) -> Delivery:
    """Hand vmagent one minute of all series per request, as scrapes come; then let it drain its queue."""
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        async with _receiver(prometheus) as receiver:
            await receiver.stop()
            agent = Vmagent(program, url=receiver.write_url, queue=Path(folder), flags=flags)
            async with agent:
                await agent.wait_until_ready()
                await _feed(agent.write_url, load)
                taken_in = await agent.stop()
            disk_bytes = _bytes_in(Path(folder))
            await receiver.start()
            async with agent:
                seen = await arrival(receiver, load.samples, give_up_seconds=TASK_SECONDS)
                drained = await agent.stop()
            missing = await check_stored(receiver, load)
    return Delivery(
        take_in_cpu_seconds=taken_in.cpu_seconds,
        drain_cpu_seconds=drained.cpu_seconds,
        disk_bytes=disk_bytes,
        peak_rss_bytes=max(taken_in.peak_rss_bytes, drained.peak_rss_bytes),
        arrival=seen,
        missing_samples=missing,
    )


async def deliver_directly(load: Load, prometheus: Path, windows: int) -> Arrival:
    """What the receiver takes from a sender that has nothing to do but send; `windows` samples of a series in a row."""
    async with (
        _receiver(prometheus) as receiver,
        started("benchmarks.sender", "direct", as_argument(load), receiver.write_url, str(windows)) as direct,
    ):
        seen = await arrival(receiver, load.samples, give_up_seconds=TASK_SECONDS)
        await result_of(direct)
    return seen


def as_argument(load: Load) -> str:
    return json.dumps(asdict(load))


def _receiver(prometheus: Path) -> Receiver:
    return PrometheusServer(prometheus, out_of_order_seconds=OUT_OF_ORDER_SECONDS)


async def _feed(url: str, load: Load) -> None:
    headers = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    async with httpx.AsyncClient(headers=headers, timeout=60.0, trust_env=False) as client:
        for minute in range(load.minutes):
            body = compress(write_request(load.batch(range(load.zones), [minute])))
            (await client.post(url, content=body)).raise_for_status()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
