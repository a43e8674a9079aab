"""What it costs to make samples of Cloudflare's JSON; a process of its own.

    python -m benchmarks.decoding

What was measured is printed as JSON. The answer that is decoded is the simulated Cloudflare's.
"""

import asyncio
import sys
import time

import httpx

from benchmarks.load import DATASET, WIDTH_SECONDS
from benchmarks.processes import Measured, Stopwatch
from worker.clock import SystemClock
from worker.cloudflare import WINDOWS_PER_QUERY, ZONES_PER_QUERY, ApiFailure, Zone
from worker.cloudflare.decode import Decoder
from worker.cloudflare.query import Source, WindowsQuery
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet

# An answer is decoded in some 50 ms.
_REPETITIONS = 20


async def decode_answers() -> Measured:
    """Decode an hour of minutes of ten zones, as a query for them is answered, with every series seen before."""
    now = time.time()
    start = int(now // 3600 - 2) * 3600
    api = SimulatedApi(Fleet(zones=ZONES_PER_QUERY), SystemClock())
    zones = tuple(Zone(zone.tag, zone.name, zone.account.tag, zone.account.name, zone.plan) for zone in api.fleet.zones)
    starts = range(start, start + WINDOWS_PER_QUERY * WIDTH_SECONDS, WIDTH_SECONDS)
    query = WindowsQuery((Source(DATASET, DATASET.grain(WIDTH_SECONDS)),), zones, starts)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://simulated") as client:
        headers = {"Authorization": f"Bearer {ACCEPTED_BEARER}", "Content-Type": "application/json"}
        answer = await client.post(f"{BASE_PATH}/graphql", content=query.payload(), headers=headers)
    decoder = Decoder()
    decoder.decode(answer.content, query)
    stopwatch = Stopwatch()
    samples = 0
    for _ in range(_REPETITIONS):
        with stopwatch:
            decoded = decoder.decode(answer.content, query)
        if isinstance(decoded, ApiFailure):
            sys.exit(f"the simulated answer cannot be decoded: {decoded.message}")
        for windows in decoded.values():
            if isinstance(windows, ApiFailure):
                sys.exit(f"the simulated answer cannot be decoded: {windows.message}")
            samples += sum(len(window.values) for window in windows.values())
    return stopwatch.measured(samples)


if __name__ == "__main__":
    asyncio.run(decode_answers()).print()
