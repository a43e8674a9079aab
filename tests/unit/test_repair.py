import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import HOUR, NOW, T0, acknowledge_all, bucket, pending_ids, scope
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import Ledger, Resend, ask_for_resend, capture, jobs, record_scopes, register_destinations
from worker.repair import INTERVAL_SECONDS, LOOP, Repairer


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock(NOW)


@pytest.fixture
def health(clock: JumpingClock) -> Health:
    made = Health(clock)
    made.expect(LOOP, allowance_seconds=120, liveness_seconds=120)
    return made


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """Four windows of one zone, all of them acknowledged."""
    opened = Ledger.open(tmp_path / "ledger.db")
    await opened.write(record_scopes, [scope(1)], NOW)
    await opened.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    await opened.write(capture, [bucket(1, hour) for hour in range(4)], NOW)
    await acknowledge_all(opened)
    yield opened
    await opened.close()


@pytest.fixture
def repairer(ledger: Ledger, clock: JumpingClock, health: Health) -> Repairer:
    return Repairer(ledger=ledger, clock=clock, health=health)


async def ask(ledger: Ledger, first_hour: int, hours: int) -> int:
    wanted = Resend(T0 + first_hour * HOUR, T0 + (first_hour + hours) * HOUR)
    return await ledger.write(ask_for_resend, wanted, reason="disk swap", asked_by="ops@bastion", now=NOW)


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


async def test_everything_that_was_asked_for_is_done_once_and_told_to_deliveries(
    ledger: Ledger, repairer: Repairer, health: Health
) -> None:
    news = ledger.listen()
    await ask(ledger, 0, 1)
    await ask(ledger, 2, 2)
    await repairer.carry_out_all()
    assert len(await pending_ids(ledger)) == 3
    assert [job.state for job in await ledger.read(jobs, newest=9)] == ["done", "done"]
    assert news.is_set()
    assert health.loops()[LOOP].completed_at == NOW

    await acknowledge_all(ledger)
    news.clear()
    await repairer.carry_out_all()
    assert await pending_ids(ledger) == []
    assert not news.is_set()


async def test_a_repair_that_a_full_volume_did_not_take_waits(
    ledger: Ledger, repairer: Repairer, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(ledger, 0, 4)

    async def full(*_args: Any) -> None:
        message = "no room is left"
        raise LedgerFullError(message)

    monkeypatch.setattr(ledger, "write", full)
    await repairer.carry_out_all()
    assert health.loops()[LOOP].completed_at == NOW
    monkeypatch.undo()
    await repairer.carry_out_all()
    assert len(await pending_ids(ledger)) == 4


async def test_a_repair_is_taken_up_within_seconds(repairer: Repairer, ledger: Ledger, clock: JumpingClock) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(repairer.run(stopping))
    await sees(lambda: len(clock.slept) > 1, running)
    await ask(ledger, 0, 4)
    seen = len(clock.slept)
    await sees(lambda: len(clock.slept) > seen + 1, running)
    assert len(await pending_ids(ledger)) == 4
    stopping.set()
    await running
    assert set(clock.slept) == {INTERVAL_SECONDS}
