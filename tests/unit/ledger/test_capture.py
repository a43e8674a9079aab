import math
import struct
from array import array
from dataclasses import replace

import pytest

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    bucket,
    buckets,
    queue,
    samples_of,
    tag,
    untrue_samples,
    whole_queue,
    window,
)
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    backlogs,
    capture,
    delivery_counts,
    drifted_buckets,
    hole_counts,
    outstanding_windows,
    record_holes,
    register_destinations,
    scope_reports,
)


def hole(zone: int, hour: int, reason: HoleReason = HoleReason.FAILED, detail: str = "503 from Cloudflare") -> Hole:
    return Hole(DATASET, tag(zone), window(hour), reason, detail)


async def holes(ledger: Ledger) -> dict[tuple[str, str], int]:
    return await ledger.read(hole_counts, since=T0)


async def test_what_was_captured_comes_out_bit_for_bit(ledger: Ledger) -> None:
    odd = [math.nan, -0.0, 0.0, 5e-324, math.inf, struct.unpack("<d", b"\x01\0\0\0\0\0\xf4\x7f")[0]]
    given = replace(bucket(1, 0, samples=len(odd)), values=array("d", odd))

    captured = await ledger.write(capture, [given], NOW)

    assert captured == Captured(buckets=1, samples=len(odd), unchanged=0, drifted=0)
    (page,) = await whole_queue(ledger, "prom")
    (stored,) = page.batch.buckets
    assert stored.timestamp_ms == given.timestamp_ms
    assert stored.values == given.values.tobytes()
    assert tuple(page.batch.series[number] for number in array("I", stored.series_ids)) == given.series


async def test_the_first_capture_wins_and_another_answer_is_kept_as_drift(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)

    again = await ledger.write(capture, [bucket(1, 0, wrong_by=1.0), bucket(1, 1)], NOW + 60)

    assert again == Captured(buckets=0, samples=0, unchanged=1, drifted=1)
    assert await ledger.read(drifted_buckets) == {DATASET: 1}
    (page,) = await whole_queue(ledger, "prom")
    assert untrue_samples(page.batch) == []
    assert len(samples_of(page.batch)) == 6


async def test_drift_that_is_seen_twice_is_one_drifted_bucket(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    for wrong_by in (1.0, 2.0):
        await ledger.write(capture, [bucket(1, 0, wrong_by=wrong_by)], NOW)

    assert await ledger.read(drifted_buckets) == {DATASET: 1}


async def test_the_order_of_samples_is_not_drift(ledger: Ledger) -> None:
    given = bucket(1, 0)
    turned = replace(given, series=given.series[::-1], values=given.values[::-1])
    await ledger.write(capture, [given], NOW)

    assert (await ledger.write(capture, [turned], NOW)).unchanged == 1


@pytest.mark.parametrize(("before", "after"), [(3, 4), (4, 3), (0, 1), (1, 0)])
async def test_a_sample_more_or_less_is_drift(ledger: Ledger, before: int, after: int) -> None:
    await ledger.write(capture, [bucket(1, 0, samples=before)], NOW)

    assert (await ledger.write(capture, [bucket(1, 0, samples=after)], NOW)).drifted == 1


@pytest.mark.parametrize(("before", "after", "drifted"), [(math.nan, math.nan, 0), (0.0, -0.0, 1), (math.nan, 0.0, 1)])
async def test_values_are_compared_by_their_bits(ledger: Ledger, before: float, after: float, drifted: int) -> None:
    await ledger.write(capture, [replace(bucket(1, 0, samples=1), values=array("d", [before]))], NOW)

    again = await ledger.write(capture, [replace(bucket(1, 0, samples=1), values=array("d", [after]))], NOW)

    assert again.drifted == drifted


async def test_the_same_window_twice_in_one_call_is_captured_once(ledger: Ledger) -> None:
    captured = await ledger.write(capture, [bucket(1, 0), bucket(1, 0), bucket(1, 0, wrong_by=1.0)], NOW)

    assert captured == Captured(buckets=1, samples=3, unchanged=1, drifted=1)
    assert await queue(ledger) == [(1, 0)]


async def test_new_windows_are_captured_beside_those_that_were_captured_before(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 2]), NOW)

    given = [bucket(1, 0), bucket(1, 1, samples=2), bucket(1, 2, wrong_by=1.0), bucket(1, 1, samples=2), bucket(2, 0)]
    captured = await ledger.write(capture, given, NOW)

    assert captured == Captured(buckets=2, samples=5, unchanged=2, drifted=1)
    assert sorted(await queue(ledger)) == [(1, 0), (1, 1), (1, 2), (2, 0)]


async def test_zones_datasets_and_widths_have_buckets_of_their_own(ledger: Ledger) -> None:
    await ledger.write(
        capture, [bucket(1, 0), bucket(2, 0), bucket(1, 0, dataset="other"), bucket(1, 0, width_seconds=60)], NOW
    )

    assert len(await queue(ledger)) == 4


async def test_a_bucket_is_queued_for_every_destination_that_is_configured(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=NOW, now=NOW)
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(register_destinations, {"mimir": True}, replay_since=NOW, now=NOW)
    await ledger.write(capture, [bucket(1, 1)], NOW)

    assert await queue(ledger, "prom") == [(1, 0)]
    assert await queue(ledger, "mimir") == [(1, 0), (1, 1)]


async def test_a_bucket_without_samples_is_captured_and_never_queued(ledger: Ledger) -> None:
    captured = await ledger.write(capture, [bucket(1, 0, samples=0)], NOW)

    assert captured == Captured(buckets=1, samples=0, unchanged=0, drifted=0)
    assert await ledger.read(delivery_counts) == ()
    (report, *_) = await ledger.read(scope_reports, since=T0, final_until=T0 + HOUR, with_deliveries=True)
    assert (report.captured, report.acknowledged, report.missing) == (1, 1, 0)


async def test_the_backlog_counts_what_was_captured(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0, 1], samples=5), NOW)

    (backlog,) = await ledger.read(backlogs)
    assert (backlog.buckets, backlog.samples, backlog.oldest_end) == (4, 20, T0 + HOUR)


async def test_a_capture_that_fails_in_its_middle_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(LookupError, match="f" * 32):
        await ledger.write(capture, [bucket(1, 0), replace(bucket(1, 1), scope="f" * 32)], NOW)

    assert await queue(ledger) == []
    assert await ledger.write(capture, buckets([1], [0, 1]), NOW) == Captured(
        buckets=2, samples=6, unchanged=0, drifted=0
    )
    (page,) = await whole_queue(ledger, "prom")
    assert untrue_samples(page.batch) == []


async def test_a_window_that_could_not_be_read_says_why(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, 0), hole(1, 1), hole(2, 0, HoleReason.DENIED, "no access")], NOW)

    assert await holes(ledger) == {(DATASET, "failed"): 2, (DATASET, "denied"): 1}
    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 2 * HOUR)
    assert [(report.reason, report.detail) for report in reports] == [
        ("failed", "503 from Cloudflare"),
        ("denied", "no access"),
        (None, None),
    ]


async def test_the_newest_attempt_replaces_the_one_before(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, 0)], NOW)
    await ledger.write(record_holes, [hole(1, 0, HoleReason.DENIED, "no access")], NOW + 60)

    assert await holes(ledger) == {(DATASET, "denied"): 1}


async def test_a_capture_closes_the_hole(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, 0), hole(1, 1), hole(2, 0)], NOW)

    await ledger.write(capture, [bucket(1, 0)], NOW)

    assert await holes(ledger) == {(DATASET, "failed"): 2}


async def test_a_capture_of_several_windows_closes_the_holes_of_the_first_and_of_the_last(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, hour) for hour in range(5)], NOW)

    await ledger.write(capture, [bucket(1, hour) for hour in (2, 1, 3)], NOW)
    assert await holes(ledger) == {(DATASET, "failed"): 2}

    await ledger.write(capture, [bucket(1, hour) for hour in (4, 0)], NOW)
    assert await holes(ledger) == {}


async def test_a_captured_window_does_not_become_a_hole(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    await ledger.write(record_holes, [hole(1, 0), hole(1, 1)], NOW)

    assert await holes(ledger) == {(DATASET, "failed"): 1}


async def test_the_text_of_a_hole_is_bounded(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, 0, detail="x" * 100_000)], NOW)

    (report, *_) = await ledger.read(scope_reports, since=T0, final_until=T0 + HOUR, with_deliveries=True)
    assert report.detail == "x" * 500


async def test_a_hole_of_an_unknown_zone_is_a_mistake_of_the_caller(ledger: Ledger) -> None:
    with pytest.raises(LookupError, match="f" * 32):
        await ledger.write(record_holes, [replace(hole(1, 0), scope="f" * 32)], NOW)


async def test_a_window_with_no_data_left_is_not_asked_for_again(ledger: Ledger) -> None:
    await ledger.write(record_holes, [hole(1, 0, HoleReason.EXPIRED), hole(1, 1), hole(1, 2, HoleReason.DENIED)], NOW)

    outstanding = await ledger.write(
        outstanding_windows,
        dataset=DATASET,
        width_seconds=HOUR,
        tags=[tag(1)],
        starts=range(T0, T0 + 3 * HOUR, HOUR),
    )

    assert outstanding == {tag(1): [range(T0 + HOUR, T0 + 3 * HOUR, HOUR)]}
