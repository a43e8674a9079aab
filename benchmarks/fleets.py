"""Many zones and datasets in one pass of collection: requests, time of the pass, memory, CPU.

    python -m benchmarks.fleets                    1,000 zones x 8 datasets at 5 minutes, with 50 and 100 nodes a query
    python -m benchmarks.fleets hourly             10,000 zones x 8 datasets at an hour; more than 7 minutes
    python -m benchmarks.fleets month [DAYS]       30 zones on mixed plans, every dataset, for a month: is it the truth?
    python -m benchmarks.fleets writes             what a window of 1,000 zones with a day of history writes

The simulated Cloudflare is a process of its own, and so is each collector. A collector first catches up with what is
due and finds out what zones are entitled to and how much a query may ask for; what is measured is the window that
becomes final after that, as it does every five minutes in a worker that runs. Its memory is that of all of it.
"""

import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import apsw
from pydantic import SecretStr

from benchmarks.load import WIDTH_SECONDS, Load
from benchmarks.processes import Measured, Stopwatch, run, written_bytes
from benchmarks.sender import capture_load
from tests.collected_fleet import DAY, HOUR, collected, compared
from worker import __version__
from worker.clock import ScaledClock, SystemClock
from worker.cloudflare import WINDOWS_PER_QUERY, CloudflareApi, Quota, shipped
from worker.cloudflare.quota import GRAPHQL_REQUESTS, WINDOW_SECONDS
from worker.collect import LOOP, Collector
from worker.config import CloudflareSettings
from worker.health import Health
from worker.ledger import Ledger, backlogs, register_destinations
from worker.observe import Metrics, configure_logging
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.entitlements import QueryLimits
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits
from worker.simulator.serving import serve

DATASETS = (
    "http_requests",
    "http_cache_status",
    "http_methods",
    "http_protocols",
    "http_origin_statuses",
    "dns_queries",
    "firewall_events",
    "health_check_events",
)

# Both sides refuse nothing for its number: catching up is not what is measured, and need not wait.
_UNLIMITED = 1_000_000

_TASK_SECONDS = 1200.0

# Five minutes become final ten minutes after their end; half a window later nothing is about to.
_DELAY_SECONDS = 600


@dataclass(frozen=True)
class Window:
    """One window of a fleet.

    measured:     the pass that collected it; the peak RSS is that of the whole process.
    graphql:      requests that it took.
    max_nodes:    zones times datasets that the simulated Cloudflare takes in a query.
    """

    zones: int
    width_seconds: int
    max_nodes: int
    measured: Measured
    graphql: int

    @property
    def share(self) -> float:
        """The part of the quota of one token."""
        return self.graphql / (GRAPHQL_REQUESTS * self.width_seconds / WINDOW_SECONDS)

    def __str__(self) -> str:
        return (
            f"{self.zones:,} zones x {len(DATASETS)} datasets, windows of {self.width_seconds} s, at most "
            f"{self.max_nodes} nodes a query: {self.graphql} requests a window ({self.share:.1%} of a token's), "
            f"{self.measured.samples:,} samples in {self.measured.wall_seconds:.1f} s, "
            f"{self.measured.cpu_seconds:.1f} s of CPU, peak RSS {self.measured.peak_rss_bytes / 1e6:.0f} MB"
        )


async def collect_window(zones: int, width_seconds: int, max_nodes: int) -> Window:
    """Measure the window after the first pass, against a simulated Cloudflare in this process."""
    simulated = SimulatedApi(
        Fleet(zones=zones, plans=(Plan.ENTERPRISE,)),
        SystemClock(),
        limits=QueryLimits(max_nodes=max_nodes),
        quota=QuotaLimits(_UNLIMITED, _UNLIMITED),
    )
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        async with serve(simulated) as api_url:
            ledger = str(Path(folder, "ledger.db"))
            measured = await run(
                "benchmarks.fleets", "collect", api_url, ledger, str(width_seconds), task_seconds=_TASK_SECONDS
            )
    asked_at = simulated.stats.query_times
    # What was asked after the pause between both passes.
    pauses = [(later - before, later) for before, later in itertools.pairwise(asked_at)]
    last_pass = max(pauses)[1]
    return Window(zones, width_seconds, max_nodes, measured, sum(at >= last_pass for at in asked_at))


class _LeapingClock(ScaledClock):
    """The machine's pace, and a leap when it is told."""

    leapt_seconds = 0.0

    def now(self) -> float:
        return super().now() + self.leapt_seconds


async def collect(api_url: str, path: Path, width_seconds: int) -> Measured:
    """Collect what is due, wait a moment, and measure the pass after the next window has become final."""
    # Cloudflare's clock is this machine's: two windows ago, so that the leap does not overtake it.
    now = (time.time() // width_seconds - 2) * width_seconds - _DELAY_SECONDS + width_seconds / 2
    clock = _LeapingClock(now, 1.0)
    settings = CloudflareSettings(
        api_token=SecretStr(ACCEPTED_BEARER), api_url=api_url, bucket_seconds=width_seconds, replay_hours=1
    )
    ledger = Ledger.open(path)
    await ledger.write(register_destinations, {"receiver": False}, replay_since=0, now=now)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=_TASK_SECONDS, liveness_seconds=_TASK_SECONDS)
    api = CloudflareApi(
        api_url=api_url,
        token=ACCEPTED_BEARER,
        clock=clock,
        quota=Quota(clock, graphql=_UNLIMITED, total=_UNLIMITED),
    )
    collector = Collector(
        settings,
        datasets=[shipped()[name] for name in DATASETS],
        max_ledger_bytes=2**40,
        api=api,
        ledger=ledger,
        clock=clock,
        health=health,
        metrics=Metrics(clock, health, version=__version__, sqlite_version=apsw.sqlite_lib_version()),
    )
    stopwatch = Stopwatch()
    if not await collector.collect_due(asyncio.Event()):
        sys.exit("not everything that was due could be collected; the reason stands above")
    [before] = await ledger.read(backlogs)
    await asyncio.sleep(_PAUSE_SECONDS)
    clock.leapt_seconds = width_seconds
    with stopwatch:
        complete = await collector.collect_due(asyncio.Event())
    if not complete:
        sys.exit("not everything of the window could be collected; the reason stands above")
    [after] = await ledger.read(backlogs)
    await api.aclose()
    await ledger.close()
    return stopwatch.measured(after.samples - before.samples)


# Longer than any wait between two queries of a pass.
_PAUSE_SECONDS = 15.0


async def month(days: int) -> int:
    """Collect every dataset of a fleet for so long, and compare every window with the truth."""
    fleet = Fleet(zones=30, plans=tuple(Plan)[::-1])
    midnight = 1_750_032_000  # 2025-06-16T00:00:00Z
    datasets = tuple(shipped().values())
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        async with collected(
            Path(folder), lambda clock: SimulatedApi(fleet, clock), datasets, now=midnight + HOUR, replay_hours=8
        ) as scene:
            with stopwatch:
                until = midnight + days * DAY
                while scene.clock.now() < until + HOUR:
                    await scene.next_pass(6 * HOUR)
                await scene.next_pass(HOUR)
            requests = Counter(scene.simulated.stats.requests)
            verdict = await compared(scene, midnight, until)
    print(*verdict.wrong[:20], sep="\n")
    print(
        f"{days} days of {len(fleet.zones)} zones and {len(datasets)} datasets: {verdict.windows:,} windows with "
        f"{verdict.samples:,} samples, {len(verdict.filled)} datasets with samples, {verdict.denied} pairs of dataset "
        f"and scope denied with a reason, {len(verdict.wrong)} differences; {requests['graphql']:,} queries, "
        f"{stopwatch.cpu_seconds:.0f} s of CPU with the simulated Cloudflare"
    )
    return int(bool(verdict.wrong) or len(verdict.filled) < len(datasets))


async def writes() -> str:
    """Capture one-minute windows of 1,000 zones after a day of them, and tell what each writes: log and checkpoints."""
    day = Load(zones=1_000, series_per_zone=4, minutes=1_440, first_start=1_750_000_020)
    after = replace(day, minutes=10, first_start=day.first_start + day.minutes * WIDTH_SECONDS)
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        ledger = Path(folder, "ledger.db")
        await capture_load(day, ledger, WINDOWS_PER_QUERY)
        before = written_bytes()
        measured = await capture_load(after, ledger, 1)
        megabytes = (written_bytes() - before) / after.minutes / 1e6
    cpu_seconds = measured.cpu_seconds / after.minutes
    return f"a window of {day.zones:,} zones: {megabytes:.1f} MB written, {cpu_seconds:.3f} s of CPU"


def main(arguments: Sequence[str]) -> int:
    configure_logging("error", "console", ())
    match arguments:
        case []:
            for max_nodes in (50, 100):
                print(asyncio.run(collect_window(1000, 300, max_nodes)), flush=True)
        case ["hourly"]:
            print(asyncio.run(collect_window(10_000, HOUR, 100)))
        case ["month", *days]:
            return asyncio.run(month(int(days[0]) if days else 30))
        case ["writes"]:
            print(asyncio.run(writes()))
        case ["collect", api_url, ledger, width_seconds]:
            asyncio.run(collect(api_url, Path(ledger), int(width_seconds))).print()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
