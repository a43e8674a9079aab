"""The main job against real receivers: what is in them afterwards is the truth, whatever failed on the way."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.receivers import Receiver
from tests.truth import SAME, difference, expected_content
from tests.worker_process import scaled_clock, start
from worker.errors import LedgerUnusableError
from worker.ledger import Ledger, ScopeReport, backlogs, scope_reports
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import HttpStatus, Surface
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

# Five-minute windows, four of them in a real second.
WIDTH_SECONDS = 300
SPEED = 1200.0
# 36 real seconds: an outage that ends with the test's own steps is over long before, on a busy machine too.
REPLAY_SECONDS = 12 * 3600

Condition = Callable[[Ledger], Awaitable[bool]]


class Scene:
    """A simulated Cloudflare, a receiver, and a worker process between them, all on one accelerated clock."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.receiver = receiver
        self.fleet = Fleet(seed=7, zones=5)
        # A day back, 72 real seconds: what a test lives through lies in the receiver's past to its end.
        self.anchor = time.time()
        self.origin = float(int(self.anchor) - 24 * 3600)
        self.clock = scaled_clock(self.anchor, self.origin, SPEED)
        self.api = SimulatedApi(self.fleet, self.clock)
        self.ledger_path = folder / "ledger.db"
        self.log = folder / "log"
        self.config = folder / "config.yaml"
        self._process: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        self._process = start(self.config, self.log, self.anchor, self.origin, SPEED)

    async def work_once(self) -> None:
        last = start(self.config, self.log, self.anchor, self.origin, SPEED, once=True)
        assert await asyncio.to_thread(last.wait) == 0, self.log.read_text()

    async def end_worker(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(how)
        return await asyncio.to_thread(process.wait)

    async def until(self, what: str, holds: Condition) -> None:
        """Wait until something holds in the ledger of the running worker; the test's own timeout is the bound."""
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                pytest.fail(f"the worker ended while the test waited until {what}:\n{self.log.read_text()}")
            if await self.look(holds):
                return
            await asyncio.sleep(0.05)

    async def look(self, at: Condition) -> bool:
        """Whether it holds in the ledger; no, while there is none."""
        try:
            ledger = Ledger.open_read_only(self.ledger_path)
        except LedgerUnusableError:
            return False
        try:
            return await at(ledger)
        finally:
            await ledger.close()

    async def captured(self) -> dict[str, ScopeReport]:
        """What the ledger has of each zone by now, over the whole life of the scene."""
        reports: dict[str, ScopeReport] = {}

        async def read(ledger: Ledger) -> bool:
            for report in await ledger.read(scope_reports, since=0, final_until=self.clock.now(), with_deliveries=True):
                reports[report.tag] = report
            return True

        await self.look(read)
        return reports


@asynccontextmanager
async def a_scene(folder: Path, receiver: Receiver) -> AsyncIterator[Scene]:
    scene = Scene(folder, receiver)
    async with serve(scene.api) as url:
        scene.config.write_text(
            f"""
            cf_api_token: {ACCEPTED_BEARER}
            cf_api_url: {url}
            cf_bucket_seconds: {WIDTH_SECONDS}
            cf_replay_hours: {REPLAY_SECONDS // 3600}
            cf_collection_interval_seconds: 60
            ledger_path: {scene.ledger_path}
            listen_address: 127.0.0.1:0
            remote_write:
              - name: real
                url: {receiver.write_url}
                out_of_order_time_window: 48h
            """
        )
        try:
            yield scene
        finally:
            if scene._process is not None:
                await scene.end_worker(signal.SIGKILL)


def captured_windows(count: int) -> Condition:
    """Every zone has at least so many windows."""

    async def holds(ledger: Ledger) -> bool:
        reports = await ledger.read(scope_reports, since=0, final_until=2**40)
        return len(reports) == 5 and all(report.captured >= count for report in reports)

    return holds


def waiting_windows(count: int) -> Condition:
    """At least so many buckets wait to be delivered."""

    async def holds(ledger: Ledger) -> bool:
        return any(backlog.buckets >= count for backlog in await ledger.read(backlogs))

    return holds


async def nothing_waits(ledger: Ledger) -> bool:
    return all(backlog.buckets == 0 for backlog in await ledger.read(backlogs))


async def test_the_receiver_holds_exactly_the_truth_after_outages_on_both_sides_and_a_kill(
    tmp_path: Path, receiver: Receiver
) -> None:
    replayed = REPLAY_SECONDS // WIDTH_SECONDS
    async with a_scene(tmp_path, receiver) as scene:
        scene.start_worker()
        await scene.until("the first windows arrived", captured_windows(replayed + 2))

        await receiver.stop()
        await scene.until("a backlog grew", waiting_windows(5 * 3))
        await scene.end_worker(signal.SIGKILL)
        scene.start_worker()
        await scene.until("the backlog grew on after the kill", waiting_windows(5 * 5))
        await receiver.start()
        await scene.until("the backlog drained", nothing_waits)

        asked_before = scene.api.stats.statuses[503]
        over = scene.clock.now() + 3 * WIDTH_SECONDS
        scene.api.faults.add(HttpStatus(on=Surface.ALL))
        before = (await scene.captured()).values()

        async def is_met(_: Ledger) -> bool:
            return scene.api.stats.statuses[503] > asked_before and scene.clock.now() >= over

        await scene.until("Cloudflare's outage was met and over", is_met)
        scene.api.faults.clear()
        await scene.until(
            "windows arrive after Cloudflare's outage", captured_windows(max(each.captured for each in before) + 5)
        )
        assert await scene.end_worker(signal.SIGTERM) == 0
        # What was captured in the worker's last moments is delivered by a last pass.
        await scene.work_once()

        reports = await scene.captured()
        assert scene.api.stats.busiest(300) <= 300
        stored = await receiver.read_all()
        for zone in scene.fleet.zones:
            report = reports[zone.tag]
            assert report.newest_end is not None
            # Everything from the replay bound of the first pass up to the newest window, without a hole.
            assert report.acknowledged is not None
            starts = range(report.newest_end - report.acknowledged * WIDTH_SECONDS, report.newest_end, WIDTH_SECONDS)
            # The oldest lie at the replay bound when they are fetched, and time runs: a few pass it on the way.
            assert report.captured - 5 <= report.acknowledged <= report.captured
            assert report.captured >= replayed
            assert starts.start >= scene.origin - REPLAY_SECONDS - WIDTH_SECONDS
            wanted = expected_content(scene.fleet, [zone], starts)
            of_zone = {labels: samples for labels, samples in stored.items() if ("zone_id", zone.tag) in labels}
            assert difference(wanted, of_zone) == SAME
