"""kill -9 at random moments: whatever it interrupts, the end is that of an undisturbed run."""

import asyncio
import itertools
import random
import signal
from pathlib import Path

import pytest

from tests.truth import SAME, Content, difference, expected_content
from tests.worker_process import spawn
from worker.clock import SystemClock
from worker.errors import LedgerUnusableError
from worker.ledger import Ledger, backlogs, scope_reports
from worker.remote_write.receiver import MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits
from worker.simulator.serving import serve

ROUNDS = 50
ZONES = 10
WIDTH_SECONDS = 60
REPLAY_HOURS = 72

# From a worker's first request on; with this much work it needs about ten seconds to be done.
LONGEST_LIFE_SECONDS = 0.6


@pytest.mark.timeout(240)
async def test_fifty_kills_during_collection_and_push_end_with_the_same_content_as_none(tmp_path: Path) -> None:
    clock = SystemClock()
    fleet = Fleet(seed=3, zones=ZONES, plans=(Plan.ENTERPRISE,))
    # Each new life lists the zones again and forgets how many queries the lives before it have sent.
    api = SimulatedApi(fleet, clock, quota=QuotaLimits(graphql_requests=10**6, all_requests=10**6))
    receiver = MemoryReceiver()
    dice = random.Random(20)
    config = tmp_path / "config.yaml"
    ledger_path = tmp_path / "ledger.db"
    log = tmp_path / "log"
    captured_after: list[int] = []
    waiting_after: list[int] = []
    async with serve(api) as api_url, receiver.listening() as write_url:
        config.write_text(
            f"""
            cf_api_token: {ACCEPTED_BEARER}
            cf_api_url: {api_url}
            cf_bucket_seconds: {WIDTH_SECONDS}
            cf_replay_hours: {REPLAY_HOURS}
            ledger_path: {ledger_path}
            listen_address: 127.0.0.1:0
            remote_write:
              - name: memory
                url: {write_url}
                out_of_order_time_window: 96h
                queue_config: {{max_samples_per_send: 2000}}
            """
        )
        for _ in range(ROUNDS):
            process = spawn(["-m", "worker", "run", "--config", str(config)], {}, log)
            requests_before = api.stats.requests.total()
            while api.stats.requests.total() == requests_before:
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.01)
            # How long a process lives is what this test is about: there is nothing to wait for.
            await asyncio.sleep(dice.uniform(0, LONGEST_LIFE_SECONDS))
            assert process.poll() is None, log.read_text()
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            captured, waiting = await look_into(ledger_path)
            captured_after.append(captured)
            waiting_after.append(waiting)

        last = spawn(["-m", "worker", "run", "--once", "--config", str(config)], {}, log)
        assert await asyncio.to_thread(last.wait) == 0, log.read_text()

    assert captured_after == sorted(captured_after), "a kill lost a committed bucket"
    assert sum(after > before for before, after in itertools.pairwise(captured_after)) >= 3, (
        f"too few kills met a collection: {captured_after}"
    )
    assert any(waiting_after), "no kill met a delivery"
    ledger = Ledger.open_read_only(ledger_path)
    reports = await ledger.read(scope_reports, since=0, final_until=clock.now())
    await ledger.close()
    wanted: Content = {}
    for zone, report in zip(fleet.zones, sorted(reports, key=lambda report: report.name), strict=True):
        assert zone.tag == report.tag
        assert report.newest_end is not None
        starts = range(report.newest_end - report.captured * WIDTH_SECONDS, report.newest_end, WIDTH_SECONDS)
        assert report.captured >= REPLAY_HOURS * 60 - 11
        wanted |= expected_content(fleet, [zone], starts)
    received = {frozenset(labels): samples for labels, samples in receiver.samples.items()}
    assert difference(wanted, received) == SAME
    assert set(receiver.answers) == {204}, "the receiver found fault with a request"


async def look_into(path: Path) -> tuple[int, int]:
    """How many buckets are captured, and how many of them wait to be delivered."""
    try:
        ledger = Ledger.open_read_only(path)
    except LedgerUnusableError:
        return 0, 0
    try:
        captured = sum(each.captured for each in await ledger.read(scope_reports, since=0, final_until=2**40))
        return captured, sum(backlog.buckets for backlog in await ledger.read(backlogs))
    finally:
        await ledger.close()
