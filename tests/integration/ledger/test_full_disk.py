import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from tests.integration.ledger.disk import Disk
from tests.integration.ledger.history import close, content, first_steps, integrity, write
from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    buckets,
    pending_ids,
    queue,
    scope,
    tag,
    untrue_samples,
    whole_queue,
    window,
)
from worker.errors import LedgerFullError
from worker.ledger import (
    Captured,
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
    record_holes,
    record_scopes,
    register_destinations,
    room,
)


@dataclass
class Volume:
    """The room that a ledger has."""

    ledger: Ledger

    async def leave(self, spare_pages: int) -> None:
        """Let the file grow by so many pages and no further."""
        await self.ledger.write(
            lambda session: session.pragma("max_page_count", session.pragma("page_count") + spare_pages)
        )

    async def extend(self) -> None:
        await self.ledger.write(lambda session: session.pragma("max_page_count", 2**30))


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[Volume]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(zone) for zone in (1, 2, 3)], NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    yield Volume(ledger)
    await ledger.close()


async def capture_until_full(ledger: Ledger) -> int:
    """Capture hour after hour; the hour that found no room."""
    hour = 0
    while True:
        try:
            await ledger.write(capture, buckets([1, 2, 3], [hour], samples=50), NOW)
        except LedgerFullError:
            return hour
        hour += 1


async def test_a_capture_that_finds_no_room_leaves_nothing_and_works_once_there_is_room(volume: Volume) -> None:
    ledger = volume.ledger
    await volume.leave(spare_pages=30)
    hour = await capture_until_full(ledger)
    before = await ledger.read(lambda _: content(ledger))
    held = await queue(ledger)

    for _ in range(3):
        with pytest.raises(LedgerFullError, match=f"{re.escape(str(ledger.path))}; make room"):
            await ledger.write(capture, buckets([1, 2, 3], range(hour, hour + 50), samples=50), NOW)
        assert await ledger.read(lambda _: content(ledger)) == before

    await volume.extend()
    told = await ledger.write(capture, buckets([1, 2, 3], [hour], samples=50), NOW)
    assert told == Captured(buckets=3, samples=150, unchanged=0, drifted=0)
    assert sorted(await queue(ledger)) == sorted([*held, *((zone, hour) for zone in (1, 2, 3))])
    pages = await whole_queue(ledger, "prom")
    assert [sample for page in pages for sample in untrue_samples(page.batch)] == []
    assert await ledger.read(lambda session: integrity(session._connection)) == "ok"


async def test_series_that_found_no_room_get_their_numbers_anew(volume: Volume) -> None:
    ledger = volume.ledger
    await volume.leave(spare_pages=0)
    with pytest.raises(LedgerFullError):
        await ledger.write(capture, buckets([1, 2], range(100), samples=200), NOW)

    await volume.extend()
    # In another order: whoever still remembered a number would write it down for a series that is not in the file.
    await ledger.write(capture, buckets([2, 1], [0], samples=200), NOW)

    reader = Ledger.open_read_only(ledger.path)
    pages = await whole_queue(reader, "prom")
    await reader.close()
    assert [sample for page in pages for sample in untrue_samples(page.batch)] == []
    assert [page.damaged for page in pages] == [()]


async def test_what_was_captured_can_be_sent_and_acknowledged_on_a_full_volume(volume: Volume) -> None:
    ledger = volume.ledger
    await volume.leave(spare_pages=30)
    hour = await capture_until_full(ledger)
    ids = await pending_ids(ledger)
    assert len(ids) == 3 * hour > 0

    await ledger.write(acknowledge, "prom", ids[:-1], NOW)
    assert await ledger.write(expire, ended_before=NOW, now=NOW) == 1

    assert await queue(ledger) == []


async def test_what_retention_frees_on_a_full_volume_is_used_again(volume: Volume) -> None:
    ledger = volume.ledger
    await volume.leave(spare_pages=30)
    hour = await capture_until_full(ledger)
    await acknowledge_all(ledger)
    used = (await ledger.read(room)).used_bytes

    assert await ledger.write(prune, ended_before=T0 + hour * HOUR) > 0

    assert (await ledger.read(room)).used_bytes < used
    await ledger.write(capture, buckets([1, 2, 3], [hour], samples=50), NOW)
    assert await queue(ledger) == [(zone, hour) for zone in (1, 2, 3)]


async def test_every_verb_that_writes_says_that_there_is_no_room(volume: Volume) -> None:
    ledger = volume.ledger
    await volume.leave(spare_pages=0)
    before = await ledger.read(lambda _: content(ledger))
    many = range(T0, T0 + 2000 * HOUR, HOUR)
    holes = [Hole(DATASET, tag(1), window(hour), HoleReason.FAILED, "x" * 500) for hour in range(500)]
    resend = Resend(T0, T0 + HOUR)
    for verb in (
        lambda session: capture(session, [bucket(1, hour, samples=100) for hour in range(100)], NOW),
        lambda session: record_holes(session, holes, NOW),
        lambda session: record_scopes(session, [scope(zone) for zone in range(1000)], NOW),
        lambda session: register_destinations(session, {"x" * 100_000: True}, replay_since=0, now=NOW),
        lambda session: outstanding_windows(
            session, dataset="x" * 100_000, width_seconds=HOUR, tags=[tag(1)], starts=many
        ),
        lambda session: ask_for_resend(session, resend, reason="x" * 100_000, asked_by="", now=NOW),
    ):
        with pytest.raises(LedgerFullError):
            await ledger.write(verb)

    assert await ledger.read(lambda _: content(ledger)) == before


def test_a_volume_that_is_full_to_the_last_byte_is_told_and_used_again_once_there_is_room(tmp_path: Path) -> None:
    disk = Disk()

    def full(what: str, _file: str) -> None:
        if what == "write":
            raise apsw.FullError

    with disk.recording():
        ledger = Ledger.open(tmp_path / "ledger.db")
        for step in first_steps():
            write(ledger, step)
        before = content(ledger)
        disk.fault = full
        for verb in (prove_writable, lambda session: capture(session, [bucket(1, 0)], NOW)):
            with pytest.raises(LedgerFullError):
                write(ledger, verb)
            assert content(ledger) == before

        disk.fault = lambda _what, _file: None
        assert write(ledger, lambda session: capture(session, [bucket(1, 0)], NOW)).buckets == 1
        assert integrity(ledger._connection) == "ok"
        close(ledger)
