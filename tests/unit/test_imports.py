"""Imports step by step, with a kill between any two of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    bucket,
    buckets,
    pending_ids,
    queue,
    scope,
    untrue_samples,
    whole_queue,
)
from worker.errors import UsageError
from worker.health import Health
from worker.ledger import (
    STAGING_SECONDS,
    Import,
    ImportResult,
    Job,
    Ledger,
    ResendCount,
    ask_to_cancel,
    begin_import,
    capture,
    delete_unstaged,
    expire,
    give_up_staging,
    job,
    open_jobs,
    outstanding_windows,
    record_scopes,
    register_destinations,
    release,
    stage,
)
from worker.repair import LOOP, Importer, Repairer, imports

MEANT = buckets([1, 2], range(3))
ARGUMENTS = Import(T0, T0 + 3 * HOUR, ("a.om",))


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db")
    await opened.write(record_scopes, [scope(1), scope(2)], NOW)
    await opened.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    yield opened
    await opened.close()


def repairer(ledger: Ledger, *, max_ledger_bytes: int = 2**40) -> Repairer:
    """Whoever holds the ledger next, after a kill."""
    clock = JumpingClock(NOW)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=120, liveness_seconds=120)
    importer = Importer(max_ledger_bytes=max_ledger_bytes, ledger=ledger, clock=clock)
    return Repairer(ledger=ledger, clock=clock, health=health, carriers={Import: importer})


async def staged(ledger: Ledger) -> int:
    """What a command does, up to the last step: two transactions."""
    total = len(MEANT)
    number = await ledger.write(
        begin_import, ARGUMENTS, MEANT[:2], reason="", asked_by="ops@bastion", now=NOW, total=total
    )
    await ledger.write(stage, number, MEANT[2:])
    return number


async def found(ledger: Ledger, number: int) -> Job:
    job_of_it = await ledger.read(job, number)
    assert job_of_it is not None
    return job_of_it


def rows(ledger: Ledger, table: str) -> int:
    count: int = ledger._connection.execute(f"SELECT count(*) FROM {table}").get  # noqa: S608 - a name written here
    return count


async def test_what_is_staged_is_captured_by_nobody_before_it_is_asked_for(ledger: Ledger) -> None:
    number = await staged(ledger)
    assert not await repairer(ledger).step_all()
    assert await ledger.read(open_jobs) == ()
    assert (rows(ledger, "bucket"), rows(ledger, "staged")) == (0, 6)

    assert await ledger.write(release, number, NOW) == number
    assert await repairer(ledger).step_all()
    assert (rows(ledger, "bucket"), rows(ledger, "staged")) == (6, 0)
    assert len(await queue(ledger)) == 6


async def test_an_import_whose_command_was_killed_is_given_up_and_leaves_nothing(ledger: Ledger) -> None:
    number = await staged(ledger)
    begun = NOW + STAGING_SECONDS
    assert await ledger.write(give_up_staging, begun_before=begun - STAGING_SECONDS, now=begun) == 0
    assert await ledger.write(delete_unstaged) == 0
    assert await ledger.write(give_up_staging, begun_before=begun + 1 - STAGING_SECONDS, now=begun) == 1
    assert await ledger.write(delete_unstaged) == 6
    assert (rows(ledger, "bucket"), rows(ledger, "staged")) == (0, 0)
    given_up = await found(ledger, number)
    assert (given_up.state, given_up.finished_at) == ("failed", begun)
    assert given_up.progress.note.startswith("the command ended")
    with pytest.raises(UsageError, match="run it once more"):
        await ledger.write(release, number, begun)
    with pytest.raises(UsageError, match="run it once more"):
        await ledger.write(stage, number, [bucket(1, 7)])
    assert rows(ledger, "staged") == 0


async def test_a_large_import_goes_on_where_it_was_and_is_done_when_all_of_it_is_decided_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "STEP_BUCKETS", 4)
    news = ledger.listen()
    number = await ledger.write(release, await staged(ledger), NOW)
    assert await repairer(ledger).step_all()
    assert news.is_set()
    assert (rows(ledger, "bucket"), rows(ledger, "staged")) == (4, 2)
    assert not await repairer(ledger).step_all(), "what is queued is delivered first"
    await acknowledge_all(ledger)
    assert await repairer(ledger).step_all()
    assert not await repairer(ledger).step_all()
    assert [untrue for page in await whole_queue(ledger, "prom") for untrue in untrue_samples(page.batch)] == []
    # Older than the replay bound from the beginning, and not given up for that.
    assert await ledger.write(expire, ended_before=NOW - HOUR, now=NOW) == 0
    await acknowledge_all(ledger)
    assert await repairer(ledger).step_all()
    done = await found(ledger, number)
    outcome = (ResendCount("prom", "acknowledged", 6, 18),)
    assert (done.state, done.result) == ("done", ImportResult(6, 18, outcome=outcome))


async def test_what_is_captured_while_an_import_is_staged_stays_and_is_counted(ledger: Ledger) -> None:
    number = await staged(ledger)
    await ledger.write(capture, [MEANT[0], bucket(2, 1, wrong_by=1.0)], NOW)
    await ledger.write(release, number, NOW)
    await repairer(ledger).step_all()
    result = (await found(ledger, number)).result
    assert result == ImportResult(buckets=4, samples=12, unchanged=1, differing=1)


async def test_a_staged_bucket_that_was_damaged_is_not_captured_and_counted(ledger: Ledger) -> None:
    number = await staged(ledger)
    ledger._connection.execute("UPDATE staged SET start = start + 3600 WHERE id = 1")
    await ledger.write(release, number, NOW)
    await repairer(ledger).step_all()
    assert (await found(ledger, number)).result == ImportResult(buckets=5, samples=15, damaged=1)


async def test_an_import_fills_holes_so_that_nobody_asks_for_them_again(ledger: Ledger) -> None:
    await ledger.write(release, await staged(ledger), NOW)
    await repairer(ledger).step_all()
    starts = range(T0, T0 + 4 * HOUR, HOUR)
    missing = await ledger.write(
        outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=[scope(1).tag], starts=starts
    )
    assert missing == {scope(1).tag: [range(T0 + 3 * HOUR, T0 + 4 * HOUR, HOUR)]}


async def test_an_import_that_is_cancelled_ends_when_what_it_queued_is_decided_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "STEP_BUCKETS", 4)
    number = await ledger.write(release, await staged(ledger), NOW)
    await repairer(ledger).step_all()
    await ledger.write(ask_to_cancel, number, NOW)
    assert not await repairer(ledger).step_all()
    await acknowledge_all(ledger)
    assert await repairer(ledger).step_all()
    assert (await found(ledger, number)).state == "cancelled"
    assert await ledger.write(delete_unstaged) == 2
    assert await pending_ids(ledger) == []


async def test_an_import_waits_while_the_ledger_is_full(ledger: Ledger) -> None:
    number = await ledger.write(release, await staged(ledger), NOW)
    assert not await repairer(ledger, max_ledger_bytes=0).step_all()
    assert (await found(ledger, number)).progress.note == "waits: the ledger has reached LEDGER_MAX_BYTES"
    assert await repairer(ledger).step_all()
    assert (await found(ledger, number)).progress.note == ""


async def test_an_import_of_which_rows_were_lost_ends_and_tells_it(ledger: Ledger) -> None:
    number = await staged(ledger)
    await ledger.write(release, number, NOW)
    await ledger.write(lambda session: session._connection.execute("DELETE FROM staged WHERE id = 2"))
    carried_out = repairer(ledger)
    await carried_out.step_all()
    await acknowledge_all(ledger)
    await carried_out.step_all()
    ended = await found(ledger, number)
    assert isinstance(ended.result, ImportResult)
    assert (ended.state, ended.result.buckets, ended.result.damaged) == ("done", 5, 1)
