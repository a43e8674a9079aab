import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import (
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    pending_ids,
    queue,
    refuse_whole,
    scope,
)
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import (
    Ledger,
    Resend,
    ResendCount,
    ResendResult,
    Undelivered,
    acknowledge,
    ask_to_cancel,
    capture,
    job,
    record_scopes,
    register_destinations,
)
from worker.ledger import resend as ledger_resend
from worker.repair import INTERVAL_SECONDS, LOOP, STEP_SECONDS, Repairer, Resender, resend
from worker.verification import Verification


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
    return repairer_of(ledger, clock, health)


def repairer_of(ledger: Ledger, clock: JumpingClock, health: Health) -> Repairer:
    return Repairer(
        ledger=ledger,
        clock=clock,
        health=health,
        carriers={
            Resend: Resender(ledger=ledger, clock=clock, verification=Verification((), ledger=ledger, clock=clock))
        },
    )


async def ask(ledger: Ledger, first_hour: int, hours: int) -> int:
    wanted = Resend(T0 + first_hour * HOUR, T0 + (first_hour + hours) * HOUR)
    return await ledger.write(ask_for_resend, wanted, reason="disk swap", asked_by="ops@bastion", now=NOW)


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


async def test_a_repair_is_done_when_all_that_it_queued_is_decided_on(
    ledger: Ledger, repairer: Repairer, health: Health
) -> None:
    news = ledger.listen()
    number = await ask(ledger, 1, 2)

    assert await repairer.step_all()
    assert len(await pending_ids(ledger)) == 2
    assert news.is_set()
    assert health.loops()[LOOP].completed_at == NOW
    assert not await repairer.step_all(), "it waits for the deliveries"

    first, second = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second], status=400, reason="too old")
    assert await repairer.step_all()
    done = await ledger.read(job, number)
    assert done is not None
    assert (done.state, done.finished_at, done.progress.done, done.progress.total) == ("done", NOW, 2, 2)
    assert done.result == ResendResult(
        queued=(ResendCount("prom", "acknowledged", 2, 6),),
        outcome=(ResendCount("prom", "acknowledged", 1, 3), ResendCount("prom", "refused", 1, 3)),
        reasons=(Undelivered("prom", "refused", 1, int(NOW), 400, "too old"),),
    )

    news.clear()
    assert not await repairer.step_all()
    assert await pending_ids(ledger) == []
    assert not news.is_set()


async def test_a_large_repair_is_queued_a_part_at_a_time_and_goes_on_where_it_was(
    ledger: Ledger, clock: JumpingClock, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_resend.queue_next, "__kwdefaults__", {"most": 3})
    monkeypatch.setattr(resend, "STEP_BUCKETS", 3)
    number = await ask(ledger, 0, 4)

    await repairer_of(ledger, clock, health).step_all()
    assert len(await pending_ids(ledger)) == 3
    # Whoever comes next goes on from the record, and only once there is room in the queue.
    other = repairer_of(ledger, clock, health)
    assert not await other.step_all()
    await ledger.write(acknowledge, "prom", (await pending_ids(ledger))[:2], NOW)
    assert await other.step_all()
    assert [start for _, start in await queue(ledger)] == [2, 3]
    await acknowledge_all(ledger)
    assert await other.step_all()
    found = await ledger.read(job, number)
    assert found is not None
    assert isinstance(found.result, ResendResult)
    assert (found.state, found.result.outcome) == ("done", (ResendCount("prom", "acknowledged", 4, 12),))


async def test_a_repair_that_is_cancelled_queues_nothing_more_and_ends_when_what_it_queued_is_decided_on(
    ledger: Ledger, repairer: Repairer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_resend.queue_next, "__kwdefaults__", {"most": 1})
    number = await ask(ledger, 0, 4)
    await repairer.step_all()
    assert await ledger.write(ask_to_cancel, number, NOW)

    assert not await repairer.step_all()
    await acknowledge_all(ledger)
    assert await repairer.step_all()

    found = await ledger.read(job, number)
    assert found is not None
    assert isinstance(found.result, ResendResult)
    assert (found.state, found.result.outcome) == ("cancelled", (ResendCount("prom", "acknowledged", 1, 3),))
    assert not await ledger.write(ask_to_cancel, number, NOW), "it has ended"


async def test_two_repairs_of_one_destination_follow_each_other(ledger: Ledger, repairer: Repairer) -> None:
    await ask(ledger, 0, 1)
    await ask(ledger, 0, 2)

    await repairer.step_all()
    assert [start for _, start in await queue(ledger)] == [0]
    await acknowledge_all(ledger)
    await repairer.step_all()  # the first one ends
    await repairer.step_all()
    assert [start for _, start in await queue(ledger)] == [0, 1]


async def test_a_repair_that_a_full_volume_did_not_take_waits(
    ledger: Ledger, repairer: Repairer, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(ledger, 0, 4)

    async def full(*_args: Any) -> None:
        message = "no room is left"
        raise LedgerFullError(message)

    monkeypatch.setattr(ledger, "write", full)
    assert not await repairer.step_all()
    assert health.loops()[LOOP].completed_at == NOW
    monkeypatch.undo()
    assert await repairer.step_all()
    assert len(await pending_ids(ledger)) == 4


async def test_a_repair_is_taken_up_within_seconds_and_gone_on_with(
    repairer: Repairer, ledger: Ledger, clock: JumpingClock
) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(repairer.run(stopping))
    await sees(lambda: len(clock.slept) > 1, running)
    number = await ask(ledger, 0, 4)
    while len(await pending_ids(ledger)) < 4:
        assert not running.done(), running
    await acknowledge_all(ledger)
    while not await ended(ledger, number):
        assert not running.done(), running
    stopping.set()
    await running
    assert set(clock.slept) == {INTERVAL_SECONDS, INTERVAL_SECONDS / 4, STEP_SECONDS}


async def ended(ledger: Ledger, number: int) -> bool:
    found = await ledger.read(job, number)
    assert found is not None
    return not found.is_open
