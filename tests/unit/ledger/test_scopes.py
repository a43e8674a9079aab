import itertools
from array import array

from tests.unit.ledger.fleet import DATASET, HOUR, NOW, T0, bucket, buckets, queue, scope, tag, whole_queue
from worker.buckets import Bucket, SampleTimestamp, Window
from worker.ledger import Ledger, capture, outstanding_windows, present_scopes, record_scopes, scope_reports
from worker.series import label_block

MINUTE = 60
DAY = 86_400


async def outstanding(ledger: Ledger, zone: int, starts: range) -> list[int]:
    windows = await ledger.write(
        outstanding_windows, dataset=DATASET, width_seconds=starts.step, tags=[tag(zone)], starts=starts
    )
    runs = windows[tag(zone)]
    assert all(before.stop < after.start for before, after in itertools.pairwise(runs))
    return [start for run in runs for start in run]


def capture_run(zone: int, starts: range) -> list[Bucket]:
    """Buckets of windows of the width `starts.step`, one sample each."""
    block = label_block("cloudflare_zone_requests", {"zone_id": tag(zone)})
    windows = [Window(start, starts.step) for start in starts]
    return [
        Bucket(DATASET, tag(zone), each, each.timestamp_ms(SampleTimestamp.START), (block,), array("d", [1.0]))
        for each in windows
    ]


async def test_zones_are_listed_by_name(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(3, name="a.example"), scope(1), scope(2)], NOW)

    assert await ledger.read(present_scopes) == (scope(3, name="a.example"), scope(1), scope(2))


async def test_a_zone_that_disappears_is_told_once_and_keeps_its_history(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0]), NOW)

    assert await ledger.write(record_scopes, [scope(1), scope(3)], NOW) == (scope(2),)
    assert await ledger.write(record_scopes, [scope(1), scope(3)], NOW) == ()
    assert await ledger.read(present_scopes) == (scope(1), scope(3))
    assert await queue(ledger) == [(1, 0), (2, 0)]


async def test_a_zone_that_comes_back_is_expected_again(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(1), scope(3)], NOW)

    assert await ledger.write(record_scopes, [scope(1), scope(2), scope(3)], NOW) == ()

    assert await ledger.read(present_scopes) == (scope(1), scope(2), scope(3))
    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + HOUR)
    assert [report.gone for report in reports] == [False, False, False]


async def test_a_zone_keeps_its_buckets_under_a_new_name(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    gone = await ledger.write(record_scopes, [scope(1, name="renamed.example"), scope(2), scope(3)], NOW)

    assert gone == ()
    (report, *_) = await ledger.read(scope_reports, since=T0, final_until=T0 + HOUR)
    assert (report.tag, report.name, report.captured) == (tag(1), "renamed.example", 1)


async def test_a_listing_without_zones_means_that_all_have_disappeared(ledger: Ledger) -> None:
    assert len(await ledger.write(record_scopes, [], NOW)) == 3
    assert await ledger.read(present_scopes) == ()


async def test_a_new_zone_is_expected_to_have_every_window_asked_about(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(zone) for zone in (1, 2, 3, 4)], NOW)
    starts = range(T0 + 5 * HOUR, T0 + 10 * HOUR, HOUR)

    assert await outstanding(ledger, 4, starts) == list(starts)
    # What was not expected when the zone was new does not become missing later.
    assert await outstanding(ledger, 4, range(T0, T0 + 10 * HOUR, HOUR)) == list(starts)


async def test_captured_windows_are_not_outstanding_and_gaps_are_oldest_first(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 2, 3]), NOW)

    assert await outstanding(ledger, 1, range(T0, T0 + 6 * HOUR, HOUR)) == [T0 + hour * HOUR for hour in (1, 4, 5)]
    assert await outstanding(ledger, 2, range(T0, T0 + 2 * HOUR, HOUR)) == [T0, T0 + HOUR]


async def test_no_window_is_outstanding_when_none_is_asked_about(ledger: Ledger) -> None:
    assert await outstanding(ledger, 1, range(T0, T0, HOUR)) == []


async def test_another_dataset_has_expectations_of_its_own(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)

    windows = await ledger.write(
        outstanding_windows, dataset="other", width_seconds=MINUTE, tags=[tag(1)], starts=range(T0, T0 + 120, MINUTE)
    )

    assert windows == {tag(1): [range(T0, T0 + 120, MINUTE)]}


async def test_narrower_windows_begin_where_the_wider_ones_ended(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)

    found = await outstanding(ledger, 1, range(T0 + HOUR, T0 + 3 * HOUR, MINUTE))

    assert found == list(range(T0 + 2 * HOUR, T0 + 3 * HOUR, MINUTE))


async def test_wider_windows_begin_behind_the_last_narrow_one(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(zone) for zone in (1, 2, 3, 4)], NOW)
    minutes = range(T0, T0 + 90 * MINUTE, MINUTE)
    await outstanding(ledger, 4, minutes)
    await ledger.write(capture, capture_run(4, minutes), NOW)

    found = await outstanding(ledger, 4, range(T0, T0 + 4 * HOUR, HOUR))

    assert found == [T0 + 2 * HOUR, T0 + 3 * HOUR]


async def test_windows_of_two_widths_never_overlap_whichever_way_the_width_is_changed(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(zone) for zone in (1, 2, 3, 4)], NOW)
    now = T0
    for step, width in enumerate((MINUTE, HOUR, MINUTE, HOUR, 300, MINUTE, DAY, HOUR)):
        # The worker runs for some hours and is then started again with another width, first after a pause.
        now += (7 + step) * HOUR + 23 * MINUTE
        reach = range((now - DAY) // width * width, now // width * width, width)
        found = await outstanding(ledger, 4, reach)
        await ledger.write(
            capture, [each for start in found for each in capture_run(4, range(start, start + width, width))], NOW
        )

    pages = await whole_queue(ledger, "prom")
    timestamps = [stored.timestamp_ms for page in pages for stored in page.batch.buckets]
    assert len(timestamps) == len(set(timestamps))
    spans = sorted(
        (start, start + width)
        for start, width in await ledger.read(
            lambda session: list(session._connection.execute("SELECT start, width_seconds FROM bucket"))
        )
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


async def test_a_width_that_is_given_up_is_expected_no_further(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)

    await outstanding(ledger, 1, range(T0 + HOUR, T0 + 3 * HOUR, MINUTE))

    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 10 * HOUR)
    of_zone = [(report.width_seconds, report.expected, report.missing) for report in reports if report.tag == tag(1)]
    assert of_zone == [(MINUTE, 8 * 60, 8 * 60), (HOUR, 2, 0)]


async def test_a_width_that_was_given_up_long_ago_is_expected_no_further_when_another_one_follows(
    ledger: Ledger,
) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    for width, count in ((MINUTE, 65), (300, 5)):
        found = await outstanding(ledger, 1, range(T0 + 2 * HOUR, T0 + 4 * HOUR, width))
        await ledger.write(capture, capture_run(1, range(found[0], found[count], width)), NOW)

    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 4 * HOUR)
    of_zone = [(report.width_seconds, report.expected, report.missing) for report in reports if report.tag == tag(1)]
    assert of_zone == [(MINUTE, 65, 0), (300, 11, 6), (HOUR, 2, 0)]


async def test_a_width_that_comes_back_is_expected_from_then_on(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    minutes = range(T0 + 2 * HOUR, T0 + 3 * HOUR, MINUTE)
    await outstanding(ledger, 1, minutes)
    await ledger.write(capture, capture_run(1, minutes), NOW)

    found = await outstanding(ledger, 1, range(T0, T0 + 5 * HOUR, HOUR))

    assert found == [T0 + 3 * HOUR, T0 + 4 * HOUR]
    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 5 * HOUR)
    of_zone = [(report.width_seconds, report.expected, report.missing) for report in reports if report.tag == tag(1)]
    assert of_zone == [(MINUTE, 60, 0), (HOUR, 2, 2)]


async def test_a_width_that_never_brought_a_bucket_is_forgotten_for_another(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(zone) for zone in (1, 2, 3, 4)], NOW)
    await outstanding(ledger, 4, range(T0 + 30 * MINUTE, T0 + 5 * HOUR, MINUTE))

    assert await outstanding(ledger, 4, range(T0, T0 + 5 * HOUR, HOUR)) == list(range(T0, T0 + 5 * HOUR, HOUR))

    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 5 * HOUR)
    of_zone = [(report.width_seconds, report.expected) for report in reports if report.tag == tag(4)]
    assert of_zone == [(MINUTE, 0), (HOUR, 5)]
