"""Buckets are found by chapters of 64 windows: whatever looks for those of a zone finds them all, on either side of the
borders, as if there were none."""

import random

import pytest

from tests.unit.ledger.fleet import DATASET, HOUR, NOW, T0, acknowledge_all, buckets, scope, tag
from worker.ledger import (
    Ledger,
    capture,
    captured_buckets,
    captured_scopes,
    missing_windows,
    newest_captured,
    newest_timestamps,
    next_piece,
    outstanding_windows,
    prune,
    record_scopes,
    scope_reports,
)
from worker.ledger.session import Session

CHAPTER = 64  # windows

# The first window of a chapter, counted in hours from T0.
BORDER = -(T0 // HOUR) % CHAPTER

HOURS = 3 * CHAPTER

# Those that the ledger expects windows of.
ZONES = (1, 2, 3)

EVERY_TIME = range(2**62)


def hours_of(chance: random.Random) -> dict[int, set[int]]:
    """Which hours a zone has: one most of them, one a few, one those at the borders, and another zone none."""
    return {
        1: {hour for hour in range(HOURS) if chance.random() < 0.9},
        2: set(chance.sample(range(HOURS), 5)),
        3: {BORDER - 1, BORDER, BORDER + CHAPTER - 1, BORDER + CHAPTER},
        4: set(),
    }


def stretches(chance: random.Random) -> list[range]:
    """Hours to be looked at, with ends at the borders, beside them and anywhere."""
    edges = [0, HOURS, *(border + by for border in (BORDER, BORDER + CHAPTER) for by in (-1, 0, 1))]
    edges += chance.sample(range(HOURS), 4)
    return [range(first, last) for first in edges for last in edges if first < last]


@pytest.fixture
async def hours(ledger: Ledger) -> dict[int, set[int]]:
    """What the ledger has; window after window of all zones."""
    found = hours_of(random.Random(4))
    await ledger.write(record_scopes, [scope(zone) for zone in found], NOW)
    for hour in range(HOURS):
        await ledger.write(capture, buckets([zone for zone in found if hour in found[zone]], [hour], samples=1), NOW)
    return found


def start(hour: int) -> int:
    return T0 + hour * HOUR


async def test_what_is_missing_is_what_was_not_captured(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    for stretch in stretches(random.Random(1)):
        missing = await ledger.read(
            missing_windows,
            dataset=DATASET,
            widths_seconds=(60, HOUR, 86_400),
            tags=[tag(zone) for zone in hours],
            starts=range(start(stretch.start), start(stretch.stop), HOUR),
        )
        for zone, captured in hours.items():
            found = [each for run in missing.get(tag(zone), ()) for each in run]
            assert found == [start(hour) for hour in stretch if hour not in captured]


async def test_what_is_outstanding_is_what_was_not_captured(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    for stretch in stretches(random.Random(0)):
        outstanding = await ledger.write(
            outstanding_windows,
            dataset=DATASET,
            width_seconds=HOUR,
            tags=[tag(zone) for zone in hours],
            starts=range(start(stretch.start), start(stretch.stop), HOUR),
        )
        for zone, captured in hours.items():
            found = [each for run in outstanding[tag(zone)] for each in run]
            assert found == [start(hour) for hour in stretch if hour not in captured]


async def test_the_newest_bucket_is_in_whichever_chapter_has_one(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    newest = await ledger.read(
        newest_timestamps, dataset=DATASET, widths_seconds=(60, HOUR), tags=[tag(zone) for zone in hours]
    )

    assert newest == {tag(zone): start(max(captured)) * 1000 if captured else None for zone, captured in hours.items()}


async def test_the_newest_window_of_all_is_found_whoever_has_it(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    assert await ledger.read(newest_captured) == {DATASET: start(max(set().union(*hours.values()))) + HOUR}

    await ledger.write(capture, buckets([2], [HOURS + 3 * CHAPTER], samples=1), NOW)

    assert await ledger.read(newest_captured) == {DATASET: start(HOURS + 3 * CHAPTER) + HOUR}


async def test_every_bucket_of_a_stretch_is_counted_and_handed_out(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    for stretch in stretches(random.Random(1)):
        since, until = start(stretch.start), start(stretch.stop)
        wanted = {zone: [start(hour) for hour in stretch if hour in captured] for zone, captured in hours.items()}

        reports = await ledger.read(scope_reports, since=since, final_until=until)
        assert {report.tag: report.captured for report in reports} == {tag(zone): len(wanted[zone]) for zone in ZONES}
        scopes = await ledger.read(captured_scopes, since=since, until=until, widths_seconds=(60, HOUR))
        assert [found.tag for found in scopes] == [tag(zone) for zone in wanted if wanted[zone]]
        for found in scopes:
            page = await ledger.read(captured_buckets, found, since=since, until=until, stamped=EVERY_TIME)
            stamps = [bucket.timestamp_ms // 1000 for bucket in page.batch.buckets]
            assert stamps == wanted[int(found.tag, 16)]


async def test_a_walk_comes_by_every_bucket_once(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    for stretch in stretches(random.Random(2))[::5]:
        since, until = start(stretch.start), start(stretch.stop)
        seen: list[tuple[str, int]] = []
        place = None
        while True:
            piece = await ledger.read(next_piece, "prom", since=since, until=until, place=place, most_samples=50)
            seen += [(held.scope, held.bucket.timestamp_ms // 1000) for held in piece.held]
            place = piece.place
            if place is None:
                break

        assert seen == [
            (f"zone-{zone}.example", start(hour))
            for zone, captured in hours.items()
            for hour in stretch
            if hour in captured
        ]


async def test_a_chapter_without_buckets_is_forgotten(ledger: Ledger, hours: dict[int, set[int]]) -> None:
    def chapters() -> set[int]:
        return {row[0] for row in ledger._connection.execute("SELECT number FROM chapter")}

    first, second, *rest = sorted({start(hour) // HOUR // CHAPTER for captured in hours.values() for hour in captured})
    assert chapters() == {first, second, *rest}

    await acknowledge_all(ledger)
    await ledger.write(prune, ended_before=start(BORDER + CHAPTER - 1) + HOUR)
    assert chapters() == {second, *rest}, "the last window of the second one is not older than that"
    await ledger.write(prune, ended_before=start(BORDER + CHAPTER - 1) + HOUR + 1)
    assert chapters() == set(rest)

    newest = await ledger.read(newest_timestamps, dataset=DATASET, widths_seconds=(HOUR,), tags=[tag(1)])
    assert newest == {tag(1): start(max(hours[1])) * 1000}

    await ledger.write(capture, buckets([1], [BORDER - 1], samples=1), NOW)
    assert chapters() == {first, *rest}, "it was fetched again"


async def test_a_chapter_is_begun_by_the_first_capture_that_is_not_undone(ledger: Ledger) -> None:
    def fails(session: Session) -> None:
        capture(session, buckets([1], [0], samples=1), NOW)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ledger.write(fails)
    await ledger.write(capture, buckets([1], [0], samples=1), NOW)

    newest = await ledger.read(newest_timestamps, dataset=DATASET, widths_seconds=(HOUR,), tags=[tag(1)])
    assert newest == {tag(1): start(0) * 1000}


async def test_a_chapter_that_a_damaged_file_has_lost_is_there_again_once_its_windows_are_captured_again(
    ledger: Ledger, hours: dict[int, set[int]]
) -> None:
    scopes = await ledger.read(captured_scopes, since=0, until=int(NOW), widths_seconds=(HOUR,))
    ledger._connection.execute("DELETE FROM chapter")
    assert await ledger.read(captured_scopes, since=0, until=int(NOW), widths_seconds=(HOUR,)) == ()

    again = buckets([1], sorted(hours[1]), samples=1)
    captured = await ledger.write(capture, again, NOW)

    assert (captured.buckets, captured.unchanged) == (0, len(again))
    assert await ledger.read(captured_scopes, since=0, until=int(NOW), widths_seconds=(HOUR,)) == scopes
