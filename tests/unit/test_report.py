from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.ledger.fleet import DATASET, HOUR, T0, acknowledge_all, bucket, pending_ids, scope, tag
from worker import __version__
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, Settings
from worker.health import Problem, TokenState, Verdict
from worker.ledger import (
    Ledger,
    Resend,
    ask_for_resend,
    capture,
    carry_out_next,
    outstanding_windows,
    record_scopes,
    refuse,
    register_destinations,
    set_aside,
)
from worker.report import Running, report_status
from worker.status import ApiBudget, StatusReport

NOW = T0 + 10.0 * HOUR
READINESS = Verdict(ok=False, problems=(Problem("token", NOW, "Cloudflare refuses the API token"),))
BUDGETS = (ApiBudget("graphql", 280, 300), ApiBudget("rest", 1100, 1200))


@dataclass
class Scene:
    """A ledger of two zones, of which one has all and one has some of the windows of six hours."""

    ledger: Ledger
    settings: Settings

    async def report(self, now: float = NOW) -> StatusReport:
        running = Running(readiness=READINESS, token=TokenState.REFUSED, budgets=BUDGETS)
        return await report_status(self.ledger, self.settings, now, running)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(1), scope(2)], NOW)
    await ledger.write(register_destinations, {"prod": False, "lab": False}, replay_since=0, now=NOW)
    await ledger.write(
        outstanding_windows,
        dataset=DATASET,
        width_seconds=HOUR,
        tags=[tag(1), tag(2)],
        starts=range(T0 + 3 * HOUR, T0 + 9 * HOUR, HOUR),
    )
    await ledger.write(capture, [bucket(1, hour) for hour in range(3, 9)] + [bucket(2, 3), bucket(2, 4)], NOW)
    settings = Settings(
        cloudflare=CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=24),
        destinations=(
            DestinationSettings(name="prod", url="https://mimir.example.com/api/v1/push?key=canary"),
            DestinationSettings(name="lab", url="https://user-info.example.com/api/v1/write"),
            DestinationSettings(name="new", url="https://new.example.com/api/v1/write"),
        ),
        ledger=LedgerSettings(path=tmp_path / "ledger.db", max_bytes=2**30),
    )
    yield Scene(ledger, settings)
    await ledger.close()


async def test_what_became_of_the_buckets_is_told_per_destination(scene: Scene) -> None:
    waiting = await pending_ids(scene.ledger, "prod")
    await acknowledge_all(scene.ledger, "prod", waiting[:3])
    await scene.ledger.write(refuse, "prod", waiting[3:5], status=400, reason="out of bounds", now=NOW)
    await scene.ledger.write(set_aside, "prod", waiting[5:6], now=NOW)
    prod, lab, new = (await scene.report()).destinations
    assert (prod.name, prod.url) == ("prod", "https://mimir.example.com/api/v1/push?***")
    assert (prod.acknowledged_buckets, prod.refused_buckets, prod.damaged_buckets, prod.expired_buckets) == (3, 2, 1, 0)
    assert (prod.pending_buckets, prod.pending_samples) == (2, 6)
    assert (lab.pending_buckets, lab.acknowledged_buckets, lab.oldest_pending_end) == (8, 0, T0 + 4 * HOUR)
    assert (new.pending_buckets, new.oldest_pending_end, new.last_failure) == (0, None, None)


async def test_expected_captured_and_missing_windows_are_told_per_zone(scene: Scene) -> None:
    report = await scene.report()
    first, second = report.scopes
    assert report.scope_count == 2
    assert (first.name, first.scope, first.dataset) == ("zone-1.example", tag(1), DATASET)
    assert (first.expected, first.captured, first.missing, first.reason) == (6, 6, 0, None)
    assert first.newest_window_end == T0 + 9 * HOUR
    assert (second.expected, second.captured, second.missing) == (6, 2, 4)
    assert second.newest_window_end == T0 + 5 * HOUR


async def test_a_window_is_expected_when_it_is_final_and_until_it_is_past_the_replay_bound(scene: Scene) -> None:
    assert (await scene.report(T0 + 10 * HOUR + 599)).scopes[0].expected == 6
    assert (await scene.report(T0 + 10 * HOUR + 600)).scopes[0].expected == 7
    assert (await scene.report(T0 + 30 * HOUR)).scopes[0].expected == 23


async def test_the_ledger_is_told_with_its_size(scene: Scene) -> None:
    report = await scene.report()
    assert report.ledger.path == str(scene.ledger.path)
    assert report.ledger.max_bytes == 2**30
    assert report.ledger.buckets == 8
    assert 0 < scene.ledger.path.stat().st_size <= report.ledger.size_bytes < 2**21


async def test_what_only_the_running_worker_knows_is_passed_on(scene: Scene) -> None:
    report = await scene.report()
    assert report.readiness == READINESS
    assert report.cloudflare.token is TokenState.REFUSED
    assert report.cloudflare.budgets == BUDGETS
    assert (report.version, report.now) == (__version__, NOW)


async def test_the_newest_repairs_are_told_with_what_came_of_them(scene: Scene) -> None:
    wanted = Resend(T0 + 3 * HOUR, T0 + 5 * HOUR)
    for number in range(12):
        await scene.ledger.write(ask_for_resend, wanted, reason=f"disk {number}", asked_by="ops@bastion", now=NOW)
    for _ in range(11):
        await scene.ledger.write(carry_out_next, NOW)
    journal = (await scene.report()).journal
    assert [entry.reason for entry in journal] == [f"disk {number}" for number in range(11, 1, -1)]
    # Two windows of two zones at two destinations.
    assert [entry.outcome for entry in journal[:2]] == ["asked", "8 buckets queued again"]
    assert {(entry.at, entry.by) for entry in journal} == {(NOW, "ops@bastion")}
    assert journal[0].asked == "resend 2025-06-15T03:00:00Z to 2025-06-15T05:00:00Z"
