"""The processes whose CPU time and memory are measured, one task each; every one ends by itself.

    python -m benchmarks.sender capture LOAD LEDGER WINDOWS    the load into a ledger, WINDOWS windows a transaction
    python -m benchmarks.sender drain LEDGER URL MESSAGE       a ledger's backlog to a receiver, by the worker's pusher
    python -m benchmarks.sender direct LOAD URL WINDOWS        requests made beforehand, to find the receiver's limit
    python -m benchmarks.sender collect API TOKEN LEDGER NOW   one window of every zone there, to a ledger

LOAD is `benchmarks.load.Load` as JSON, MESSAGE what Prometheus calls `protobuf_message`. What was measured is printed
as JSON.
"""

import asyncio
import http.client
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import apsw
from pydantic import SecretStr

from benchmarks.load import METADATA, Load
from benchmarks.processes import Measured, Stopwatch
from worker import __version__
from worker.clock import ScaledClock, SystemClock
from worker.cloudflare import ZONES_PER_QUERY, Api, CloudflareApi, shipped
from worker.collect import LOOP as COLLECT
from worker.collect import QUERIES_AT_ONCE, Collector
from worker.config import CloudflareSettings, DestinationSettings, Message
from worker.health import Health
from worker.ledger import Ledger, backlogs, record_answer, record_scopes, register_destinations
from worker.observe import Metrics, configure_logging
from worker.push import Pusher
from worker.remote_write import RemoteWriteClient, compress, write_request

DESTINATION = "receiver"

# A receiver that takes samples out of order over this long; more than any load reaches back.
OUT_OF_ORDER_SECONDS = 30 * 86_400

HOUR_SECONDS = 3600

# What is kept of the requests of late: those of five minutes, which are 300 at most.
_MINUTES_LOGGED = 5
_MOST_LOGGED = 300

# Connections of the direct sender: as many as vmagent opens on 2 cores.
_CONNECTIONS = 4


async def capture_load(load: Load, path: Path, windows: int, *, strict: bool = False) -> Measured:
    """Capture as the collector does: the answers to queries about ten zones and `windows` windows each.

    Up to four of them are under way together. Their answers come at the same instant here, so the ledger need not wait
    for them to write them together, as it does in a worker.
    `strict` queues it for a receiver that takes nothing out of order.
    Making the samples up is not counted: they come from an answer that was decoded, which is measured by itself.
    """
    clock = SystemClock()
    stopwatch = Stopwatch()
    samples = 0
    with stopwatch:
        ledger = Ledger.open(path)
        await ledger.write(record_scopes, load.scopes, clock.now())
        await ledger.write(register_destinations, {DESTINATION: strict}, replay_since=0, now=clock.now())
    queries = _cut(range(load.zones), ZONES_PER_QUERY)
    for minutes in _cut(range(load.minutes), windows):
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            answers = [
                [load.bucket(zone, minute) for zone in zones for minute in minutes]
                for zones in queries[first : first + QUERIES_AT_ONCE]
            ]
            with stopwatch:
                now = clock.now()
                requests = {str(Api.GRAPHQL): [now] * min(len(queries) * _MINUTES_LOGGED, _MOST_LOGGED)}
                written = await asyncio.gather(
                    *(
                        ledger.write_soon(record_answer, "cloudflare", requests, buckets=buckets, holes=[], now=now)
                        for buckets in answers
                    )
                )
            samples += sum(captured.samples for captured in written)
    with stopwatch:
        await ledger.close()
    return stopwatch.measured(samples)


async def drain_ledger(
    path: Path, url: str, message: Message, *, window_seconds: int = OUT_OF_ORDER_SECONDS
) -> Measured:
    """Deliver all that is pending to a receiver with that out-of-order window."""
    clock = SystemClock()
    stopwatch = Stopwatch()
    with stopwatch:
        ledger = Ledger.open(path)
        [before] = await ledger.read(backlogs)
        destination = DestinationSettings(
            name=DESTINATION, url=url, out_of_order_time_window_seconds=window_seconds, protobuf_message=message
        )
        health = Health(clock)
        metrics = Metrics(
            clock, health, version=__version__, sqlite_version=apsw.sqlite_lib_version(), destinations=[DESTINATION]
        )
        sender = RemoteWriteClient(destination, clock)
        pusher = Pusher(
            destination,
            ledger=ledger,
            sender=sender,
            clock=clock,
            health=health,
            metrics=metrics,
            metadata=METADATA,
            attempts_allowed=1,
        )
        health.expect(pusher.loop, allowance_seconds=60.0, liveness_seconds=60.0)
        await pusher.drain(asyncio.Event())
        await sender.aclose()
        [after] = await ledger.read(backlogs)
        await ledger.close()
    return stopwatch.measured(before.samples - after.samples)


def send_directly(load: Load, url: str, windows: int) -> Measured:
    """Send requests of 10,000 samples that were made beforehand, `windows` samples of a series in a row."""
    requests: list[list[bytes]] = [[] for _ in range(_CONNECTIONS)]
    for index, body in enumerate(_requests(load, windows)):
        requests[index % _CONNECTIONS].append(body)
    stopwatch = Stopwatch()
    with stopwatch, ThreadPoolExecutor(_CONNECTIONS) as threads:
        list(threads.map(_post_all, itertools.repeat(url), requests))
    return stopwatch.measured(load.samples)


async def collect_once(api_url: str, token: str, path: Path, now: float) -> Measured:
    """List the zones and capture the one hour that is due at `now`, with the worker's own collector."""
    settings = CloudflareSettings(
        api_token=SecretStr(token), api_url=api_url, bucket_seconds=HOUR_SECONDS, replay_hours=1
    )
    clock = ScaledClock(now, 1.0)
    stopwatch = Stopwatch()
    with stopwatch:
        ledger = Ledger.open(path)
        await ledger.write(register_destinations, {DESTINATION: False}, replay_since=0, now=now)
        health = Health(clock)
        health.expect(COLLECT, allowance_seconds=900.0, liveness_seconds=900.0)
        metrics = Metrics(clock, health, version=__version__, sqlite_version=apsw.sqlite_lib_version())
        api = CloudflareApi(api_url=api_url, token=token, clock=clock)
        collector = Collector(
            settings,
            datasets=[shipped()["http_requests"]],
            max_ledger_bytes=2**40,
            api=api,
            ledger=ledger,
            clock=clock,
            health=health,
            metrics=metrics,
        )
        if not await collector.collect_due(asyncio.Event()):
            sys.exit("not everything that is due could be collected; the reason stands above")
        [backlog] = await ledger.read(backlogs)
        await api.aclose()
        await ledger.close()
    return stopwatch.measured(backlog.samples)


def _requests(load: Load, windows: int) -> Iterator[bytes]:
    if windows == 1:
        # Five minutes of every series, one after the other: the messages of a request can be strung together.
        for minutes in _cut(range(load.minutes), 5):
            yield compress(b"".join(write_request(load.batch(range(load.zones), [minute])) for minute in minutes))
    else:
        for minutes in _cut(range(load.minutes), windows):
            for zone in range(load.zones):
                yield compress(write_request(load.batch([zone], minutes)))


def _post_all(url: str, bodies: Sequence[bytes]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    headers = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    for body in bodies:
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status // 100 != 2:
            sys.exit(f"the receiver answers {answer.status}: {text.decode(errors='replace')}")
    connection.close()


def _cut(whole: range, length: int) -> list[range]:
    return [whole[start : start + length] for start in range(0, len(whole), length)]


def main(arguments: Sequence[str]) -> None:
    configure_logging("warning", "console", ())
    match arguments:
        case ["capture", load, ledger, windows]:
            measured = asyncio.run(capture_load(Load(**json.loads(load)), Path(ledger), int(windows)))
        case ["drain", ledger, url, message]:
            measured = asyncio.run(drain_ledger(Path(ledger), url, Message(message)))
        case ["direct", load, url, windows]:
            measured = send_directly(Load(**json.loads(load)), url, int(windows))
        case ["collect", api_url, token, ledger, now]:
            measured = asyncio.run(collect_once(api_url, token, Path(ledger), float(now)))
        case _:
            sys.exit(__doc__)
    measured.print()


if __name__ == "__main__":
    main(sys.argv[1:])
