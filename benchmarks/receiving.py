"""The receiver's side of a measurement: how fast samples come in, and whether all of them are there in the end."""

import asyncio
import re
import time
from dataclasses import dataclass

import httpx

from benchmarks.load import METRIC_NAMES, WIDTH_SECONDS, Load
from benchmarks.processes import cpu_seconds
from tests.receivers import Receiver

_APPENDED = re.compile(r"^prometheus_tsdb_head_samples_appended_total\{[^}]*\} (\S+)$", re.MULTILINE)
_OUT_OF_ORDER = re.compile(r"^prometheus_tsdb_head_out_of_order_samples_appended_total\{[^}]*\} (\S+)$", re.MULTILINE)

# A look at the counters costs the receiver 3 ms. Until the first sample is there nobody else wants its time; then it is
# looked at again after half of the time that the rest should take, within these bounds.
_SHORTEST_WAIT_SECONDS = 0.01
_LONGEST_WAIT_SECONDS = 0.2

# Of 200 series, one metric of 20 zones with 10 label values each, these are 200,000 samples.
_MINUTES_PER_QUERY = 1_000


@dataclass(frozen=True)
class Arrival:
    """What a receiver saw of one drain.

    seconds:              from the last look that found no sample to the first that found all of them.
    samples:              appended, by its own count.
    out_of_order_samples: those of them that it filed as such.
    cpu_seconds:          of the receiver, all its threads.
    """

    seconds: float
    samples: int
    out_of_order_samples: int
    cpu_seconds: float


async def arrival(receiver: Receiver, expected_samples: int, *, give_up_seconds: float) -> Arrival:
    """Watch a receiver that was empty until that many samples are in it, or `give_up_seconds` have passed."""
    async with httpx.AsyncClient(base_url=receiver.query_url, trust_env=False, timeout=60.0) as client:
        began = started = time.monotonic()
        cpu_before = cpu_seconds(receiver.pid)
        while True:
            looked = time.monotonic()
            counters = (await client.get("/metrics")).text
            appended = _total(_APPENDED, counters)
            now = time.monotonic()
            if appended >= expected_samples or now - began > give_up_seconds:
                used = cpu_seconds(receiver.pid) - cpu_before
                return Arrival(now - started, appended, _total(_OUT_OF_ORDER, counters), used)
            if appended:
                remaining = (now - started) * (expected_samples - appended) / appended
                wait = min(max(remaining / 2, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
            else:
                started, cpu_before = looked, cpu_seconds(receiver.pid)
                wait = _SHORTEST_WAIT_SECONDS
            await asyncio.sleep(wait)


async def check_stored(receiver: Receiver, load: Load) -> int:
    """How many samples of the load are missing; RuntimeError where what is stored is not the truth.

    To be called when the sender has its last answer: Prometheus counts a request's samples before it shows them.
    """
    found = {scope.tag: [0.0, 0.0] for scope in load.scopes}
    async with httpx.AsyncClient(base_url=receiver.query_url, trust_env=False, timeout=60.0) as client:
        for first in range(0, load.minutes, _MINUTES_PER_QUERY):
            minutes = min(_MINUTES_PER_QUERY, load.minutes - first)
            # A range leaves out its left edge and includes its right one.
            last_start = load.first_start + (first + minutes - 1) * WIDTH_SECONDS
            for name in METRIC_NAMES:
                for index, function in enumerate(("count_over_time", "sum_over_time")):
                    query = f"sum by (zone_id) ({function}({name}[{minutes * WIDTH_SECONDS}s]))"
                    answer = await client.post("/api/v1/query", data={"query": query, "time": str(last_start)})
                    for zone in answer.raise_for_status().json()["data"]["result"]:
                        found[zone["metric"]["zone_id"]][index] += float(zone["value"][1])
    missing = 0
    for zone, (count, total) in enumerate(found.values()):
        true_count, true_total = load.truth(zone)
        if count > true_count or (count == true_count and total != true_total):
            message = f"zone {zone} has {count} samples with the sum {total}, not {true_count} with {true_total}"
            raise RuntimeError(message)
        missing += true_count - int(count)
    return missing


def _total(pattern: re.Pattern[str], counters: str) -> int:
    return int(sum(float(match) for match in pattern.findall(counters)))
