from pathlib import Path
from typing import Any

import pytest

from tests.unit.ledger.fleet import DATASET, HOUR, NOW, bucket, buckets, tag, true_value, window
from worker.ledger import (
    CapturedWindow,
    Ledger,
    Reading,
    capture,
    captured_samples,
    chosen_after,
    is_chosen,
    last_captured_before,
    newest_readings,
    prune,
    record_readings,
)


def reading(bucket_id: int, after_seconds: int = 900, differing: int = 0, difference: float | None = 0.0) -> Reading:
    """A reading of one of the buckets of this file, which are captured at NOW."""
    return Reading(bucket_id, 0, after_seconds, differing, difference)


def content(session: Any) -> list[tuple[object, ...]]:
    return session._connection.execute("SELECT * FROM bucket ORDER BY id").fetchall()  # type: ignore[no-any-return]


async def test_every_bucket_behind_a_number_is_looked_at_once_page_by_page(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], range(3)), NOW)
    seen: list[int] = []
    last: int | None = 2
    while last is not None:
        last, chosen = await ledger.read(chosen_after, last, percent=100, most=3)
        seen += [each.bucket_id for each in chosen]
    assert seen == [3, 4, 5, 6]


async def test_a_chosen_window_says_what_it_is_and_which_of_its_readings_are_there(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 5)], NOW)
    await ledger.write(record_readings, [reading(1, 900), reading(1, 3600)], NOW)
    _, chosen = await ledger.read(chosen_after, 0, percent=100, most=10)
    assert chosen == (CapturedWindow(1, DATASET, tag(1), window(5), int(NOW), frozenset({900, 3600})),)


async def test_a_restart_chooses_the_same_windows(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, buckets([1, 2, 3], range(100)), NOW)
    _, before = await ledger.read(chosen_after, 0, percent=10, most=1000)
    await ledger.close()
    again = Ledger.open(path)
    assert await again.read(chosen_after, 0, percent=10, most=1000) == (300, before)
    await again.close()
    assert 10 < len(before) < 60
    assert len({each.scope for each in before}) == 3


@pytest.mark.parametrize("percent", [0, 0.5, 25, 100])
def test_so_many_percent_of_the_windows_are_chosen_and_more_percent_keep_those_of_fewer(percent: float) -> None:
    keys = [(f"d{number % 7}", tag(number % 90), HOUR * number) for number in range(4000)]
    chosen = {key for key in keys if is_chosen(*key, percent)}
    assert abs(len(chosen) - 40 * percent) <= 80
    assert chosen <= {key for key in keys if is_chosen(*key, min(100, 2 * percent))}


async def test_the_buckets_captured_since_a_moment_are_found_by_their_numbers(ledger: Ledger) -> None:
    assert await ledger.read(last_captured_before, NOW) == 0
    for hour in range(10):
        await ledger.write(capture, buckets([1, 2], [hour]), NOW + 60 * hour)
    assert await ledger.read(last_captured_before, NOW) == 0
    assert await ledger.read(last_captured_before, NOW + 61) == 4
    assert await ledger.read(last_captured_before, NOW + 180) == 6
    assert await ledger.read(last_captured_before, NOW + HOUR) == 20
    ledger._connection.execute("DELETE FROM bucket WHERE id <= 5")
    assert [await ledger.read(last_captured_before, NOW + seconds) for seconds in (0, 181)] == [0, 8]


async def test_the_samples_of_a_bucket_are_what_was_captured(ledger: Ledger) -> None:
    made = bucket(2, 3)
    await ledger.write(capture, [made], NOW)
    assert await ledger.read(captured_samples, 1) == {
        block: true_value(block, made.timestamp_ms) for block in made.series
    }


async def test_a_bucket_that_is_damaged_or_gone_has_none(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(2, 3), bucket(2, 4)], NOW)
    ledger._connection.execute("UPDATE bucket SET sample_values = zeroblob(24) WHERE id = 1")
    for number in (1, 99):
        assert await ledger.read(captured_samples, number) is None


async def test_readings_are_kept_beside_their_bucket_which_stays_as_it_is(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    before = await ledger.read(content)
    await ledger.write(record_readings, [reading(1, differing=3, difference=0.25)], NOW + 900)
    assert await ledger.read(content) == before
    (kept,) = await ledger.read(newest_readings, DATASET, most=10)
    assert (kept.bucket_id, kept.after_seconds, kept.samples_differing, kept.relative_difference) == (1, 900, 3, 0.25)
    assert kept.age_seconds == NOW - window(0).end


async def test_a_reading_is_made_once_and_not_of_a_bucket_that_is_gone(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(record_readings, [reading(1, difference=None)], NOW)
    await ledger.write(record_readings, [reading(1, differing=9, difference=9.0), reading(77)], NOW)
    kept = await ledger.read(newest_readings, DATASET, most=10)
    assert [(each.bucket_id, each.samples_differing, each.relative_difference) for each in kept] == [(1, 0, None)]


async def test_the_newest_readings_are_those_of_the_windows_captured_last_of_one_dataset(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0), bucket(1, 1), bucket(1, 1, dataset="other"), bucket(1, 2)], NOW)
    await ledger.write(record_readings, [reading(number) for number in (4, 1, 3, 2)], NOW)
    assert [each.bucket_id for each in await ledger.read(newest_readings, DATASET, most=2)] == [4, 2]
    assert [each.bucket_id for each in await ledger.read(newest_readings, "other", most=2)] == [3]
    assert await ledger.read(newest_readings, "unheard of", most=2) == ()


async def test_readings_go_with_their_windows(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(record_readings, [reading(1)], NOW)
    ledger._connection.execute("DELETE FROM delivery")
    await ledger.write(prune, ended_before=NOW)
    assert await ledger.read(newest_readings, DATASET, most=10) == ()
