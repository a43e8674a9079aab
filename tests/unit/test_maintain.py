import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    T0,
    ask_for_resend,
    bucket,
    carry_out_next,
    refuse_whole,
    scope,
    tag,
    window,
)
from worker.buckets import Window
from worker.cloudflare import shipped
from worker.config import CloudflareSettings, LedgerSettings
from worker.errors import LedgerDamagedError, LedgerFullError
from worker.health import Health
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Resend,
    acknowledge,
    capture,
    expire,
    outstanding_windows,
    prove_writable,
    prune,
    record_denials,
    record_holes,
    record_scopes,
    register_destinations,
)
from worker.maintain import INTERVAL_SECONDS, LOOP, Maintainer
from worker.observe import Metrics

REPLAY_HOURS = 24
RETENTION_HOURS = 48
NOW = T0 + 100.0 * HOUR


@dataclass
class Scene:
    """Upkeep of a real ledger that knows two zones and two destinations."""

    clock: JumpingClock
    ledger: Ledger
    health: Health
    metrics: Metrics
    maintainer: Maintainer
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def captured(self, zone: int, *hours: int) -> None:
        await self.ledger.write(capture, [bucket(zone, hour) for hour in hours], NOW)

    async def decided(
        self, decision: Callable[..., None], *hours: int, destination: str = "prom", **words: Any
    ) -> None:
        """Record what became of the windows of these hours at a destination."""
        ids = await self.ledger.read(bucket_ids, [T0 + hour * HOUR for hour in hours])
        await self.ledger.write(decision, destination, ids, now=NOW, **words)

    async def hours(self) -> list[int]:
        """The hours of the buckets that are there."""
        return sorted({hour for hour, _, _ in await self.ledger.read(deliveries)})

    async def states(self, destination: str = "prom") -> dict[int, str]:
        rows = await self.ledger.read(deliveries)
        return {hour: state for hour, name, state in rows if name == destination}

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics._registry.get_sample_value(name, labels)


def bucket_ids(session: Any, starts: list[int]) -> list[int]:
    rows = session._connection.execute("SELECT id, start FROM bucket")
    return [number for number, start in rows if start in starts]


def deliveries(session: Any) -> list[tuple[int, str, str]]:
    rows = session._connection.execute(
        """SELECT bucket.start, destination.name, delivery.state FROM bucket
        JOIN delivery ON delivery.bucket_id = bucket.id JOIN destination ON destination.id = delivery.destination_id"""
    )
    return [((start - T0) // HOUR, name, state) for start, name, state in rows]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = JumpingClock(NOW)
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(1), scope(2)], NOW)
    await ledger.write(register_destinations, {"prom": False, "other": False}, replay_since=0, now=NOW)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=150, liveness_seconds=150)
    metrics = Metrics(
        clock, health, version="1", sqlite_version="3", destinations=["prom", "other"], datasets=[DATASET]
    )
    maintainer = Maintainer(
        CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=REPLAY_HOURS),
        LedgerSettings(retention_hours=RETENTION_HOURS),
        datasets=[shipped()[name] for name in (DATASET, "ai_gateway_requests")],
        ledger=ledger,
        clock=clock,
        health=health,
        metrics=metrics,
    )
    yield Scene(clock, ledger, health, metrics, maintainer)
    await ledger.close()


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


def failing(scene: Scene, verb: object, error: Exception) -> Callable[..., Awaitable[Any]]:
    """The ledger's `write`, except that one verb raises."""
    write = scene.ledger.write

    async def write_or_fail(given: Any, *args: Any, **kwargs: Any) -> Any:
        if given is verb:
            raise error
        return await write(given, *args, **kwargs)

    return write_or_fail


async def test_a_pass_proves_that_the_ledger_is_writable(scene: Scene) -> None:
    assert {problem.what for problem in scene.health.readiness().problems} == {"ledger", "token", LOOP}
    await scene.maintainer.tidy()
    assert {problem.what for problem in scene.health.readiness().problems} == {"token"}


@pytest.mark.parametrize("verb", [prove_writable, expire, prune])
async def test_a_full_volume_is_told_and_not_the_end(
    verb: object, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.captured(1, 90)
    await scene.maintainer.tidy()
    full = LedgerFullError("no room is left for the ledger; make room on its volume")
    monkeypatch.setattr(scene.ledger, "write", failing(scene, verb, full))
    await scene.captured(1, 91)
    await scene.maintainer.tidy()
    problems = {problem.what: problem.text for problem in scene.health.readiness().problems}
    assert "make room on its volume" in problems["ledger"]
    assert LOOP not in problems
    assert scene.value("cfrw_push_buckets_pending", destination="prom") == 2, "what can be read is still told"
    monkeypatch.undo()
    await scene.maintainer.tidy()
    assert "ledger" not in {problem.what for problem in scene.health.readiness().problems}


async def test_a_damaged_ledger_is_the_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.ledger, "write", failing(scene, prune, LedgerDamagedError("damaged")))
    with pytest.raises(LedgerDamagedError):
        await scene.maintainer.tidy()


async def test_what_could_not_be_delivered_within_the_replay_bound_is_given_up(scene: Scene) -> None:
    # The window of hour 75 ends 24 hours before NOW.
    await scene.captured(1, 73, 74, 75, 76, 99)
    await scene.decided(acknowledge, 73)
    await scene.maintainer.tidy()
    assert await scene.states() == {73: "acknowledged", 74: "expired", 75: "pending", 76: "pending", 99: "pending"}
    assert (await scene.states("other"))[73] == "expired"


async def test_what_a_repair_asked_for_is_not_given_up_for_its_age(scene: Scene) -> None:
    await scene.captured(1, 60)
    await scene.maintainer.tidy()
    assert set((await scene.states()).values()) == {"expired"}
    await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
    await scene.ledger.write(carry_out_next, NOW)
    await scene.maintainer.tidy()
    assert set((await scene.states()).values()) == {"pending"}


async def test_retention_deletes_what_every_destination_has_decided_on_and_nothing_younger(scene: Scene) -> None:
    await scene.captured(1, 40, 49, 50, 51, 99)
    await scene.ledger.write(ask_for_resend, Resend(T0 + 49 * HOUR, T0 + 50 * HOUR), reason="", asked_by="", now=NOW)
    await scene.ledger.write(carry_out_next, NOW)
    await scene.decided(acknowledge, 40, 50, 51)
    await scene.decided(refuse_whole, 40, 50, 51, destination="other", status=400, reason="out of bounds")
    await scene.maintainer.tidy()
    # 49 still waits because a repair asked for it; 51 ended just 48 hours before NOW.
    assert await scene.hours() == [49, 51, 99]
    assert scene.value("cfrw_ledger_last_prune_timestamp_seconds") == NOW


async def test_retention_works_in_steps_and_beats_at_each(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ledger.retention.PRUNE_BATCH", 2)
    await scene.captured(1, *range(10))
    beats: list[str] = []
    monkeypatch.setattr(scene.health, "beat", beats.append)
    await scene.maintainer.tidy()
    assert await scene.hours() == []
    assert len(beats) >= 5


async def test_a_ledger_at_its_budget_gives_up_early_what_was_delivered_and_only_that(scene: Scene) -> None:
    await scene.captured(1, 60, 61, 90)
    await scene.ledger.write(ask_for_resend, Resend(T0 + 61 * HOUR, T0 + 62 * HOUR), reason="", asked_by="", now=NOW)
    await scene.ledger.write(carry_out_next, NOW)
    for destination in ("prom", "other"):
        await scene.decided(acknowledge, 60, 90, destination=destination)
    await scene.maintainer.tidy()
    assert await scene.hours() == [60, 61, 90]
    scene.maintainer._settings = scene.maintainer._settings.model_copy(update={"max_bytes": 1})
    await scene.maintainer.tidy()
    assert await scene.hours() == [61, 90]


async def test_the_backlog_of_every_destination_is_told_with_its_age(scene: Scene) -> None:
    await scene.captured(1, 97, 98)
    await scene.decided(acknowledge, 97)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_push_buckets_pending", destination="prom") == 1
    assert scene.value("cfrw_push_samples_pending", destination="prom") == 3
    assert scene.value("cfrw_push_oldest_pending_age_seconds", destination="prom") == HOUR
    assert scene.value("cfrw_push_buckets_pending", destination="other") == 2
    assert scene.value("cfrw_push_oldest_pending_age_seconds", destination="other") == 2 * HOUR
    assert scene.value("cfrw_ledger_buckets", destination="prom", state="acknowledged") == 1
    assert scene.value("cfrw_ledger_buckets", destination="prom", state="pending") == 1
    await scene.decided(acknowledge, 98)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_push_buckets_pending", destination="prom") == 0
    assert scene.value("cfrw_push_oldest_pending_age_seconds", destination="prom") == 0
    assert scene.value("cfrw_ledger_buckets", destination="prom", state="pending") == 0


async def test_a_destination_that_is_gone_is_told_of_no_more(scene: Scene) -> None:
    await scene.captured(1, 99)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_ledger_buckets", destination="other", state="pending") == 1
    await scene.ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_ledger_buckets", destination="other", state="pending") == 0


async def test_missing_windows_are_told_by_their_reason(scene: Scene) -> None:
    starts = range(T0 + 90 * HOUR, T0 + 99 * HOUR, HOUR)
    tags = [tag(1), tag(2)]
    await scene.ledger.write(outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=starts)
    await scene.captured(1, 90, 91, 92)
    holes = [
        Hole(DATASET, tag(1), Window(T0 + 93 * HOUR, HOUR), HoleReason.FAILED, "x"),
        Hole(DATASET, tag(1), Window(T0 + 94 * HOUR, HOUR), HoleReason.EXPIRED, "x"),
        *[Hole(DATASET, tag(2), Window(start, HOUR), HoleReason.DENIED, "x") for start in starts],
    ]
    await scene.ledger.write(record_holes, holes, NOW)
    await scene.maintainer.tidy()
    missing = {
        reason: scene.value("cfrw_missing_windows", dataset=DATASET, reason=reason)
        for reason in ("waiting", "failed", "expired", "denied")
    }
    # Of the nine windows of zone 1 three are captured and two have a reason; all nine of zone 2 have one.
    assert missing == {"waiting": 4, "failed": 1, "expired": 1, "denied": 9}
    await scene.captured(1, 93)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_missing_windows", dataset=DATASET, reason="failed") == 0


async def test_what_is_missing_goes_by_the_delay_of_each_dataset_that_is_collected(scene: Scene) -> None:
    starts = range(T0 + 90 * HOUR, T0 + 99 * HOUR, HOUR)
    for dataset in (DATASET, "ai_gateway_requests", "http_methods"):
        await scene.ledger.write(outstanding_windows, dataset=dataset, width_seconds=HOUR, tags=[tag(1)], starts=starts)
    await scene.ledger.write(record_holes, [Hole("http_methods", tag(1), window(95), HoleReason.FAILED, "x")], NOW)
    await scene.maintainer.tidy()
    # At 100:00 the window that ended at 99:00 is final to the second, where windows take an hour to be.
    assert scene.value("cfrw_missing_windows", dataset=DATASET, reason="waiting") == 9
    assert scene.value("cfrw_missing_windows", dataset="ai_gateway_requests", reason="waiting") == 9
    scene.clock.set(NOW - 1)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_missing_windows", dataset=DATASET, reason="waiting") == 9
    assert scene.value("cfrw_missing_windows", dataset="ai_gateway_requests", reason="waiting") == 8
    assert scene.value("cfrw_missing_windows", dataset="http_methods", reason="failed") is None


async def test_denials_are_counted_and_what_was_due_before_them_is_missing_for_that_reason(scene: Scene) -> None:
    starts = range(T0 + 90 * HOUR, T0 + 99 * HOUR, HOUR)
    tags = [tag(1), tag(2)]
    await scene.ledger.write(outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=starts)
    denials = {(DATASET, tag(2)): "the plan", ("http_methods", tag(1)): "not collected any more"}
    await scene.ledger.write(record_denials, denials, T0 + 95.0 * HOUR)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_denied_scopes", dataset=DATASET) == 1
    assert scene.value("cfrw_denied_scopes", dataset="http_methods") is None
    # The windows from 90:00 to 93:00 were final at 95:00, the one that ended then was not.
    assert scene.value("cfrw_missing_windows", dataset=DATASET, reason="denied") == 4
    assert scene.value("cfrw_missing_windows", dataset=DATASET, reason="waiting") == 9
    await scene.ledger.write(record_denials, {(DATASET, tag(2)): None}, NOW)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_denied_scopes", dataset=DATASET) == 0


async def test_the_size_of_the_ledger_and_its_newest_window_are_told(scene: Scene) -> None:
    starts = range(T0 + 90 * HOUR, T0 + 99 * HOUR, HOUR)
    await scene.ledger.write(outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=[tag(1)], starts=starts)
    await scene.captured(1, 98, 97)
    await scene.maintainer.tidy()
    size = scene.value("cfrw_ledger_size_bytes")
    assert size is not None
    # A page may be in the log and, until that is moved, not in the file yet: it counts for both.
    assert scene.ledger.path.stat().st_size + scene.ledger.log_bytes() <= size < 2**21
    assert scene.value("cfrw_ledger_max_bytes") == 10 * 2**30
    newest = scene.value("cfrw_newest_captured_window_end_timestamp_seconds", dataset=DATASET)
    assert newest == T0 + 99 * HOUR


async def test_passes_follow_each_other_at_the_interval_until_the_worker_stops(scene: Scene) -> None:
    running = asyncio.create_task(scene.maintainer.run(scene.stopping))
    await sees(lambda: len(scene.clock.slept) > 3, running)
    scene.stopping.set()
    await running
    assert set(scene.clock.slept) == {INTERVAL_SECONDS}


async def test_repairs_that_have_not_ended_are_counted(scene: Scene) -> None:
    await scene.maintainer.tidy()
    assert scene.value("cfrw_repairs_open") == 0
    await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_repairs_open") == 1
    await scene.ledger.write(carry_out_next, NOW)
    await scene.maintainer.tidy()
    assert scene.value("cfrw_repairs_open") == 0
