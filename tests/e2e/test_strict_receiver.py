"""A Prometheus as it is out of the box: nothing out of order, nothing older than about an hour."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tests.receivers import PrometheusServer
from tests.truth import SAME, difference, expected_content
from tests.worker_process import spawn
from worker.clock import SystemClock
from worker.ledger import Ledger, delivery_counts, scope_reports, undelivered
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

WIDTH_SECONDS = 300
EXIT_INCOMPLETE = 3


async def test_what_is_too_old_is_recorded_as_refused_and_everything_newer_arrives(
    tmp_path: Path, required_program: Callable[[str], Path]
) -> None:
    fleet = Fleet(seed=5, zones=3)
    api = SimulatedApi(fleet, SystemClock())
    ledger_path = tmp_path / "ledger.db"
    log = tmp_path / "log"
    async with PrometheusServer(required_program("prometheus-3.5")) as prometheus, serve(api) as url:
        # "Too old" is measured from the newest sample that the receiver has of anything.
        now = time.time()
        answer = await prometheus.push({frozenset({("__name__", "other")}): {int(now * 1000): 1.0}})
        assert answer.is_success
        environment = {
            "CF_API_TOKEN": ACCEPTED_BEARER,
            "CF_API_URL": url,
            "CF_BUCKET_SECONDS": str(WIDTH_SECONDS),
            "CF_SAMPLE_TIMESTAMP": "end",
            "CF_REPLAY_HOURS": "3",
            "REMOTE_WRITE_URL": prometheus.write_url,
            "LEDGER_PATH": str(ledger_path),
        }
        process = spawn(["-m", "worker", "run", "--once"], environment, log)
        assert await asyncio.to_thread(process.wait) == EXIT_INCOMPLETE, log.read_text()
        stored = await prometheus.read_all()

    ledger = Ledger.open_read_only(ledger_path)
    counts = {count.state: count.buckets for count in await ledger.read(delivery_counts)}
    (refusal,) = await ledger.read(undelivered)
    reports = await ledger.read(scope_reports, since=0, final_until=now)
    await ledger.close()
    assert set(counts) == {"acknowledged", "refused"}
    assert (refusal.status, refusal.buckets) == (400, counts["refused"])
    assert "out of bounds" in refusal.reason
    newest_end = max(report.newest_end or 0 for report in reports)
    windows = counts["acknowledged"] // len(fleet.zones)
    # 10 minutes of delay and the hour that Prometheus reaches back: some ten windows of five minutes.
    assert windows >= 8
    starts = range(newest_end - windows * WIDTH_SECONDS, newest_end, WIDTH_SECONDS)
    assert difference(expected_content(fleet, fleet.zones, starts, stamp_end=True), stored) == SAME
