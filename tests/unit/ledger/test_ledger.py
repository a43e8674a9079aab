import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import apsw
import pytest

from tests.unit.ledger.fleet import (
    NOW,
    acknowledge_all,
    bucket,
    buckets,
    queue,
    scope,
    untrue_samples,
    whole_queue,
)
from worker.errors import LedgerError, LedgerFullError, LedgerUnusableError
from worker.ledger import Ledger, capture, file, present_scopes, prove_writable, record_scopes, register_destinations
from worker.ledger.ledger import _Asked
from worker.ledger.scopes import dataset_number
from worker.ledger.session import Session


async def names(ledger: Ledger) -> set[str]:
    return {known.name for known in await ledger.read(present_scopes)}


def add_zone_9(session: Session) -> None:
    record_scopes(session, [scope(zone) for zone in (1, 2, 3, 9)], NOW)


def move(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)


class Gate:
    """Holds a verb up in the ledger's thread until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._open.wait(10)


async def test_what_a_verb_wrote_is_committed_when_write_returns(ledger: Ledger, path: Path) -> None:
    await ledger.write(add_zone_9)

    reader = Ledger.open_read_only(path)
    assert "zone-9.example" in await names(reader)
    await reader.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
async def test_a_verb_that_raises_has_done_nothing(ledger: Ledger, error: type[BaseException]) -> None:
    def verb(session: Session) -> None:
        add_zone_9(session)
        raise error

    with pytest.raises(error):
        await ledger.write(verb)

    assert "zone-9.example" not in await names(ledger)


async def test_series_that_were_rolled_back_are_not_remembered(ledger: Ledger, path: Path) -> None:
    def verb(session: Session) -> None:
        capture(session, [bucket(1, 0), bucket(2, 0)], NOW)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await ledger.write(verb)

    # In another order: whoever still remembered a number would write it down for a series that is not in the file.
    await ledger.write(capture, [bucket(2, 0), bucket(1, 0)], NOW)
    reader = Ledger.open_read_only(path)
    pages = await whole_queue(reader, "prom")
    await reader.close()
    assert [untrue_samples(page.batch) for page in pages] == [[]]
    assert [page.damaged for page in pages] == [()]


async def test_numbers_that_were_rolled_back_are_not_remembered(ledger: Ledger) -> None:
    def verb(session: Session) -> None:
        # Once to be given it, once to be remembered.
        assert dataset_number(session, "one") == dataset_number(session, "one")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await ledger.write(verb)

    assert await ledger.write(dataset_number, "another") != await ledger.write(dataset_number, "one")


async def test_a_commit_that_fails_is_rolled_back_and_told(ledger: Ledger) -> None:
    ledger._connection.set_commit_hook(lambda: True)
    with pytest.raises(LedgerError):
        await ledger.write(capture, [bucket(1, 0)], NOW)
    ledger._connection.set_commit_hook(None)

    assert await queue(ledger) == []
    await ledger.write(capture, [bucket(1, 0)], NOW)
    assert await queue(ledger) == [(1, 0)]


async def test_nobody_else_writes_between_what_a_verb_reads_and_what_it_writes(ledger: Ledger, path: Path) -> None:
    intruder = apsw.Connection(str(path))

    def verb(session: Session) -> None:
        present_scopes(session)
        with pytest.raises(apsw.BusyError):
            intruder.execute("BEGIN IMMEDIATE")
        add_zone_9(session)

    await ledger.write(verb)

    intruder.close()


async def test_the_file_is_in_place_until_another_one_takes_its_name(ledger: Ledger, path: Path) -> None:
    assert ledger.is_in_place()

    moved = path.with_name("moved.db")
    move(path, moved)
    assert not ledger.is_in_place()
    move(moved, path)
    assert ledger.is_in_place()

    await ledger.close()
    move(path, moved)
    await Ledger.open(path).close()
    assert not ledger.is_in_place()


async def test_a_read_sees_one_state_of_the_file(ledger: Ledger, path: Path) -> None:
    reader = Ledger.open_read_only(path)
    gate = Gate()

    def look_twice(session: Session) -> tuple[int, int]:
        before = len(present_scopes(session))
        gate.hold()
        return before, len(present_scopes(session))

    looking = asyncio.create_task(reader.read(look_twice))
    await gate.reached.wait()
    await ledger.write(add_zone_9)
    gate.open()

    assert await looking == (3, 3)
    assert len(await reader.read(present_scopes)) == 4
    await reader.close()


async def test_verbs_run_one_after_the_other_in_the_order_they_were_asked_for(ledger: Ledger) -> None:
    ran: list[int] = []

    def verb(_: Session, number: int) -> None:
        ran.append(number)

    await asyncio.gather(*(ledger.write(verb, number) for number in range(50)))

    assert ran == list(range(50))


async def test_the_event_loop_turns_while_a_verb_runs(ledger: Ledger) -> None:
    gate = Gate()
    running = asyncio.create_task(ledger.write(lambda _: gate.hold()))

    await gate.reached.wait()  # would never return if the verb ran in the loop's own thread

    gate.open()
    await running


def commits(ledger: Ledger) -> list[None]:
    """Gets longer with every transaction that is committed from now on."""
    seen: list[None] = []

    def note() -> bool:
        seen.append(None)
        return False

    ledger._connection.set_commit_hook(note)
    return seen


async def asked_while_the_ledger_is_busy(ledger: Ledger, *asked: Coroutine[object, object, object]) -> list[object]:
    """What came of these, which were asked for while another verb ran."""
    gate = Gate()
    holding = asyncio.create_task(ledger.write(lambda _: gate.hold()))
    await gate.reached.wait()
    waiting = [asyncio.create_task(each) for each in asked]
    await asyncio.sleep(0)
    gate.open()
    await holding
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_writes_that_wait_at_the_same_time_share_a_transaction(ledger: Ledger) -> None:
    committed = commits(ledger)

    await asked_while_the_ledger_is_busy(
        ledger, *(ledger.write(capture, [bucket(zone, 0)], NOW) for zone in (1, 2, 3)), ledger.write(add_zone_9)
    )

    assert len(committed) == 2, "one of the verb that kept the ledger busy, one of all the others"
    assert await queue(ledger) == [(1, 0), (2, 0), (3, 0)]
    assert "zone-9.example" in await names(ledger)


async def test_no_write_returns_before_what_it_shares_a_transaction_with_is_committed(
    ledger: Ledger, path: Path
) -> None:
    gate = Gate()
    reader = Ledger.open_read_only(path)

    async def then_look() -> set[str]:
        await ledger.write(add_zone_9)
        return await names(reader)

    looking = asked_while_the_ledger_is_busy(ledger, then_look(), ledger.write(lambda _: gate.hold()))
    found = asyncio.create_task(looking)
    await gate.reached.wait()
    assert not found.done()
    gate.open()

    assert "zone-9.example" in cast("set[str]", (await found)[0])
    await reader.close()


@pytest.mark.parametrize("error", [ValueError("a mistake"), apsw.FullError("full"), MemoryError(), StopIteration()])
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_write_that_fails_takes_none_along_that_waited_with_it(
    ledger: Ledger, error: BaseException, position: int
) -> None:
    def fail(session: Session) -> None:
        dataset_number(session, "of the one that fails")
        raise error

    asked = [ledger.write(capture, [bucket(zone, 0)], NOW) for zone in (1, 2)]
    outcomes = await asked_while_the_ledger_is_busy(ledger, *asked[:position], ledger.write(fail), *asked[position:])

    told: dict[type[BaseException], type[BaseException]] = {
        apsw.FullError: LedgerFullError,
        StopIteration: RuntimeError,
    }
    assert isinstance(outcomes.pop(position), told.get(type(error), type(error)))
    assert [getattr(outcome, "buckets", outcome) for outcome in outcomes] == [1, 1]
    assert await queue(ledger) == [(1, 0), (2, 0)]
    pages = await whole_queue(ledger, "prom")
    assert [untrue_samples(page.batch) for page in pages] == [[]]


async def test_nothing_is_tried_again_on_a_volume_that_fails(ledger: Ledger) -> None:
    tried: list[None] = []

    def fail(_: Session) -> None:
        tried.append(None)
        raise apsw.IOError

    outcomes = await asked_while_the_ledger_is_busy(ledger, ledger.write(add_zone_9), ledger.write(fail))

    assert [type(outcome) for outcome in outcomes] == [LedgerUnusableError, LedgerUnusableError]
    assert len(tried) == 1
    assert "zone-9.example" not in await names(ledger)


async def test_a_read_sees_what_was_asked_to_be_written_before_it(ledger: Ledger) -> None:
    _, found = await asked_while_the_ledger_is_busy(ledger, ledger.write(add_zone_9), names(ledger))

    assert "zone-9.example" in cast("set[str]", found)


async def test_a_read_has_its_turn_between_the_writes_of_those_who_write_all_the_time(ledger: Ledger) -> None:
    gate = Gate()
    running = asyncio.create_task(ledger.write(lambda _: gate.hold()))
    await gate.reached.wait()
    looking = asyncio.create_task(ledger.read(present_scopes))
    await asyncio.sleep(0)

    def add(session: Session) -> None:
        prove_writable(session)
        if not looking.done():
            # As if somebody had asked for the next one at once.
            ledger._writes.append(_Asked(add, loop.create_future()))

    loop = asyncio.get_running_loop()
    writing = asyncio.create_task(ledger.write(add))
    await asyncio.sleep(0)
    gate.open()
    await running
    await writing

    assert len(await looking) == 3


async def test_a_write_does_not_wait_for_the_read_behind_it(ledger: Ledger) -> None:
    busy, long = Gate(), Gate()
    writing = asyncio.create_task(ledger.write(lambda _: busy.hold()))
    await busy.reached.wait()
    looking = asyncio.create_task(ledger.read(lambda _: long.hold()))
    await asyncio.sleep(0)
    busy.open()
    await writing

    assert not looking.done()
    long.open()
    await looking


async def test_what_can_wait_is_written_with_what_comes_next(path: Path) -> None:
    patient = Ledger.open(path, gather_seconds=3600.0)
    await patient.write(record_scopes, [scope(1), scope(2)], NOW)
    committed = commits(patient)

    waiting = [asyncio.create_task(patient.write_soon(capture, [bucket(zone, 0)], NOW)) for zone in (1, 2)]
    await asyncio.sleep(0)
    assert [names.name for names in await patient.read(present_scopes)] == ["zone-1.example", "zone-2.example"]
    await asyncio.gather(*waiting)
    assert len(committed) == 1

    waiting = [asyncio.create_task(patient.write_soon(capture, [bucket(zone, 1)], NOW)) for zone in (1, 2)]
    await asyncio.sleep(0)
    await patient.close()

    assert [captured.buckets for captured in await asyncio.gather(*waiting)] == [1, 1]


async def test_what_can_wait_does_not_wait_for_ever(path: Path) -> None:
    patient = Ledger.open(path, gather_seconds=0.001)
    await patient.write(record_scopes, [scope(1)], NOW)

    for hour in range(3):
        assert (await patient.write_soon(capture, [bucket(1, hour)], NOW)).buckets == 1

    await patient.close()


async def test_cancelling_the_caller_does_not_undo_a_verb_that_has_begun(ledger: Ledger) -> None:
    gate = Gate()

    def verb(session: Session) -> None:
        gate.hold()
        add_zone_9(session)

    writing = asyncio.create_task(ledger.write(verb))
    await gate.reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    gate.open()

    assert "zone-9.example" in await names(ledger)


async def test_closing_waits_for_the_verbs_that_were_asked_for(ledger: Ledger, path: Path) -> None:
    gate = Gate()

    def verb(session: Session) -> None:
        gate.hold()
        add_zone_9(session)

    writing = asyncio.create_task(ledger.write(verb))
    await gate.reached.wait()
    closing = asyncio.create_task(ledger.close())
    gate.open()
    await writing
    await closing

    reader = Ledger.open_read_only(path)
    assert "zone-9.example" in await names(reader)
    await reader.close()


async def test_a_close_that_is_cancelled_still_closes(ledger: Ledger, path: Path) -> None:
    gate = Gate()
    holding = asyncio.create_task(ledger.write(lambda _: gate.hold()))
    await gate.reached.wait()
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.open()
    await holding
    with pytest.raises(RuntimeError, match="closed"):
        await ledger.read(present_scopes)
    ledger._thread.shutdown(wait=True)

    await Ledger.open(path).close()


async def test_closing_twice_is_allowed(ledger: Ledger) -> None:
    await ledger.close()
    await ledger.close()


async def test_closing_moves_the_write_ahead_log_into_the_file(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, buckets([1, 2], range(10)), NOW)
    assert ledger.log_bytes() > 0

    await ledger.close()

    assert sorted(each.name for each in path.parent.iterdir()) == ["ledger.db", "ledger.db.lock"]


async def test_somebody_who_reads_for_long_does_not_hinder_the_worker_from_stopping(ledger: Ledger, path: Path) -> None:
    reader = Ledger.open_read_only(path)
    await ledger.write(capture, [bucket(1, 0)], NOW)
    gate = Gate()

    def look_for_long(session: Session) -> int:
        found = len(present_scopes(session))
        gate.hold()
        return found

    looking = asyncio.create_task(reader.read(look_for_long))
    await gate.reached.wait()
    await ledger.write(capture, [bucket(1, 1)], NOW)

    await asyncio.wait_for(ledger.close(), 4)  # less than SQLite would wait for the reader

    gate.open()
    await looking
    again = Ledger.open(path)
    assert await queue(again) == [(1, 0), (1, 1)]
    await again.close()
    await reader.close()


async def test_a_ledger_is_free_even_when_closing_it_fails(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = ledger._connection
    broken = Mock(close=Mock(side_effect=apsw.IOError("disk I/O error")))
    monkeypatch.setattr(ledger, "_connection", broken)
    with pytest.raises(LedgerUnusableError, match="disk I/O error"):
        await ledger.close()
    connection.close()

    await Ledger.open(path).close()


async def test_another_program_that_keeps_the_file_locked_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_PRAGMAS", {**file._PRAGMAS, "busy_timeout": 1})
    ledger = Ledger.open(path)
    intruder = apsw.Connection(str(path))
    intruder.execute("BEGIN IMMEDIATE")

    with pytest.raises(LedgerUnusableError, match="another program"):
        await ledger.write(prove_writable)
    intruder.execute("ROLLBACK")
    intruder.close()

    await ledger.write(prove_writable)
    await ledger.close()


async def test_whoever_listens_is_woken_by_an_announcement(ledger: Ledger) -> None:
    first, second = ledger.listen(), ledger.listen()

    ledger.announce()

    assert first.is_set()
    assert second.is_set()
    first.clear()
    assert second.is_set()


async def test_a_ledger_remembers_everything_over_a_restart(ledger: Ledger, path: Path) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=NOW, now=NOW)
    await ledger.write(capture, buckets([1, 2], [0, 1]), NOW)
    await acknowledge_all(ledger, "prom")
    await ledger.close()

    again = Ledger.open(path)

    assert await queue(again, "prom") == []
    assert await queue(again, "mimir") == [(1, 0), (2, 0), (1, 1), (2, 1)]
    pages = await whole_queue(again, "mimir")
    assert [untrue_samples(page.batch) for page in pages] == [[]]
    await again.close()
