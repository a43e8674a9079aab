"""kill -9 at random moments: whatever it interrupts, the end is that of an undisturbed run."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.truth import SAME, Content, difference, expected_content
from tests.worker_process import spawn
from worker.clock import SystemClock
from worker.errors import LedgerUnusableError
from worker.ledger import Ledger, backlogs, jobs, scope_reports
from worker.ledger.session import Session
from worker.remote_write.receiver import MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits
from worker.simulator.serving import serve

# A round takes about three seconds of CPU. `make soak` does fifty.
ROUNDS = int(os.environ.get("KILL_ROUNDS", "12"))
ZONES = 10
WIDTH_SECONDS = 60
REPLAY_HOURS = 16
HISTORY_HOURS = 24

# From a worker's first request on; with this much work it needs about six seconds to be done.
LONGEST_LIFE_SECONDS = 0.4

# From the moment on at which a repair is on record.
LONGEST_REPAIR_SECONDS = 0.4

# Not to the present: between two of them, a minute may become final.
BACKFILL = ["backfill", "--from", f"{HISTORY_HOURS}h", "--to", "1h"]
FURTHER_HOURS = 2
"""Each backfill that is killed reaches back further than the one before, so that it has something to do."""

RESEND = ["resend", "--since", "12h"]


@pytest.mark.timeout(120 + 6 * ROUNDS)
async def test_kills_of_worker_and_command_end_with_the_same_content_as_none(tmp_path: Path) -> None:
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
    killed_repairs = 0
    async with serve(api) as api_url, receiver.listening() as write_url:
        config.write_text(
            f"""
            cf_api_token: {ACCEPTED_BEARER}
            cf_api_url: {api_url}
            cf_bucket_seconds: {WIDTH_SECONDS}
            cf_replay_hours: {REPLAY_HOURS}
            cf_graphql_requests_per_5_minutes: 100000
            cf_requests_per_5_minutes: 100000
            ledger_path: {ledger_path}
            listen_address: 127.0.0.1:0
            remote_write:
              - name: memory
                url: {write_url}
                out_of_order_time_window: 96h
                queue_config: {{max_samples_per_send: 2000}}
            """
        )

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            return spawn(["-m", "worker", *arguments, "--config", str(config)], {}, log)

        async def ended(process: subprocess.Popen[bytes]) -> int:
            return await asyncio.to_thread(process.wait)

        for number in range(ROUNDS):
            # A worker alone, a command beside it, a command alone: that carries the repair out itself.
            is_alone, has_command = number % 3 == 2, number % 3 > 0
            processes = [] if is_alone else [start("run")]
            if processes:
                requests_before = api.stats.requests.total()
                while api.stats.requests.total() == requests_before:
                    assert processes[0].poll() is None, log.read_text()
                    await asyncio.sleep(0.01)
            if has_command:
                on_record = len(await repairs(ledger_path))
                reach_hours = min(REPLAY_HOURS + FURTHER_HOURS * (number // 3 + 1), HISTORY_HOURS)
                command = start(*(RESEND if number % 2 else ["backfill", "--from", f"{reach_hours}h"]))
                processes.append(command)
                while len(await repairs(ledger_path)) == on_record and command.poll() is None:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
                # How long a process lives is what this test is about: there is nothing to wait for.
                await asyncio.sleep(dice.uniform(0, LONGEST_REPAIR_SECONDS))
                killed_repairs += command.poll() is None
                dice.shuffle(processes)
            for process in processes:
                await asyncio.sleep(dice.uniform(0, LONGEST_LIFE_SECONDS / len(processes)))
                process.send_signal(signal.SIGKILL)
                await ended(process)
            captured, waiting = await look_into(ledger_path)
            captured_after.append(captured)
            waiting_after.append(waiting)

        assert await ended(start("run", "--once")) == 0, log.read_text()
        assert await ended(start(*BACKFILL)) == 0, log.read_text()
        sent = receiver.answers.total()
        repaired = await repairs(ledger_path)
        assert await ended(start(*BACKFILL)) == 0, log.read_text()
        assert (receiver.answers.total(), await repairs(ledger_path)) == (sent, repaired), (
            "a second one changes nothing"
        )

    assert captured_after == sorted(captured_after), "a kill lost a committed bucket"
    assert sum(after > before for before, after in itertools.pairwise(captured_after)) >= 3, (
        f"too few kills met a collection: {captured_after}"
    )
    assert any(waiting_after), "no kill met a delivery"
    assert killed_repairs >= ROUNDS / 5, "too few kills met a command"
    assert {kind for kind, _ in repaired} == {"resend", "backfill"}
    assert {state for _, state in repaired} == {"done"}
    ledger = Ledger.open_read_only(ledger_path)
    reports = await ledger.read(scope_reports, since=0, final_until=clock.now())
    starts_of = await ledger.read(captured_starts)
    await ledger.close()
    wanted: Content = {}
    for zone, report in zip(fleet.zones, sorted(reports, key=lambda report: report.name), strict=True):
        assert zone.tag == report.tag
        assert report.captured >= REPLAY_HOURS * 60 - 11
        captured_of_zone = starts_of[zone.tag]
        starts = range(min(captured_of_zone), max(captured_of_zone) + WIDTH_SECONDS, WIDTH_SECONDS)
        assert captured_of_zone == set(starts), "a window is missing"
        assert len(starts) >= HISTORY_HOURS * 60 - 13
        wanted |= expected_content(fleet, [zone], starts)
    received = {frozenset(labels): samples for labels, samples in receiver.samples.items()}
    assert difference(wanted, received) == SAME
    assert set(receiver.answers) == {204}, "the receiver found fault with a request"


async def repairs(path: Path) -> list[tuple[str, str]]:
    """Kind and state of every repair on record."""
    ledger = Ledger.open_read_only(path)
    try:
        return [(each.kind, each.state) for each in await ledger.read(jobs, newest=10 * ROUNDS)]
    finally:
        await ledger.close()


def captured_starts(session: Session) -> dict[str, set[int]]:
    """The starts of the captured windows of every zone."""
    found: dict[str, set[int]] = {}
    rows = session._connection.execute("SELECT tag, start FROM bucket JOIN scope ON scope.id = bucket.scope_id")
    for tag, start in rows:
        found.setdefault(tag, set()).add(start)
    return found


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
