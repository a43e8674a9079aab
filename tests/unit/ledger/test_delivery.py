import math
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    bucket_of,
    buckets,
    carry_out_next,
    minutes,
    pending_ids,
    queue,
    refuse_whole,
    scope,
    tag,
    untrue_samples,
    whole_queue,
    window,
    zones_and_hours,
    zones_and_minutes,
)
from worker.buckets import SampleTimestamp, Window
from worker.ledger import (
    WHOLE_QUEUE,
    DestinationReport,
    Hole,
    HoleReason,
    Lane,
    Ledger,
    Position,
    Refusal,
    RefusedSamples,
    Resend,
    Stretch,
    Undelivered,
    acknowledge,
    backlogs,
    capture,
    delivery_counts,
    destination_reports,
    expire,
    expire_too_old,
    next_pending,
    note_failure,
    prune,
    record_holes,
    record_scopes,
    refusals,
    refuse,
    refused_samples,
    register_destinations,
    set_aside,
    still_pending,
    undelivered,
)
from worker.ledger.session import Session


async def states(ledger: Ledger, destination: str = "prom") -> dict[str, int]:
    counts = await ledger.read(delivery_counts)
    return {count.state: count.buckets for count in counts if count.destination == destination}


def damage(session: Session, bucket_id: int) -> None:
    """What a bit that flipped on the disk does to a value."""
    session._connection.execute(
        "UPDATE bucket SET sample_values = CAST(x'FF' || substr(sample_values, 2) AS BLOB) WHERE id = ?", (bucket_id,)
    )


# The order of the queue


async def test_a_zone_is_sent_oldest_first_however_it_was_captured(ledger: Ledger) -> None:
    for hour in (5, 3, 0, 4):
        await ledger.write(capture, [bucket(1, hour)], NOW)

    assert await queue(ledger) == [(1, 0), (1, 3), (1, 4), (1, 5)]


async def test_windows_of_a_zone_follow_each_other_for_half_an_hour_at_a_receiver_that_takes_any_order(
    ledger: Ledger,
) -> None:
    # T0 is where a segment of 32 minutes begins.
    await ledger.write(capture, minutes([1, 2], range(70)), NOW)

    (page,) = await whole_queue(ledger, "prom")

    assert zones_and_minutes(page) == [
        (zone, minute) for begin in (0, 32, 64) for zone in (1, 2) for minute in range(begin, min(begin + 32, 70))
    ]


@pytest.mark.parametrize(("width_seconds", "in_a_row"), [(60, 32), (300, 7), (900, 3), (3600, 1), (86_400, 1)])
async def test_the_wider_the_windows_are_the_fewer_of_a_zone_follow_each_other(
    ledger: Ledger, width_seconds: int, in_a_row: int
) -> None:
    windows = [Window(T0 + number * width_seconds, width_seconds) for number in range(2 * in_a_row)]
    await ledger.write(capture, [bucket_of(zone, each) for zone in (1, 2) for each in windows], NOW)

    order = [zone for zone, _ in await queue(ledger)]

    assert order[: 2 * in_a_row] == [1] * in_a_row + [2] * in_a_row
    assert order[2 * in_a_row] == 1


async def test_a_strict_destination_gets_the_oldest_window_of_any_zone_first(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": True}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1, 2], [0, 1, 2]), NOW)

    assert await queue(ledger) == [(zone, hour) for hour in (0, 1, 2) for zone in (1, 2)]


async def test_a_request_to_a_strict_destination_holds_one_window_of_a_series(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": True}, replay_since=0, now=NOW)
    await ledger.write(capture, [*buckets([1, 2], [0, 1]), bucket(1, 0, dataset="other")], NOW)

    pages = await whole_queue(ledger, "prom", one_window_per_series=True)

    assert [zones_and_hours(page) for page in pages] == [[(1, 0), (1, 0), (2, 0)], [(1, 1), (2, 1)]]


async def test_a_request_to_another_destination_holds_many_windows_of_a_series(ledger: Ledger) -> None:
    await ledger.write(capture, minutes([1, 2], [0, 1]), NOW)

    (page,) = await whole_queue(ledger, "prom")

    assert zones_and_minutes(page) == [(1, 0), (1, 1), (2, 0), (2, 1)]


async def test_a_page_holds_at_most_the_samples_asked_for(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0, 1, 2], samples=4), NOW)

    pages = await whole_queue(ledger, "prom", max_samples=11)

    assert [page.batch.sample_count for page in pages] == [8, 8, 8]
    assert [entry for page in pages for entry in zones_and_hours(page)] == await queue(ledger)


async def test_a_bucket_that_is_larger_than_a_page_is_a_page_by_itself(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0, samples=2), bucket(1, 1, samples=50), bucket(1, 2, samples=2)], NOW)

    pages = await whole_queue(ledger, "prom", max_samples=10)

    assert [page.batch.sample_count for page in pages] == [2, 50, 2]


async def test_paging_goes_on_behind_what_was_decided_meanwhile(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(4), samples=1), NOW)
    first = await ledger.read(next_pending, "prom", after=None, max_samples=2, one_window_per_series=False)
    assert first is not None
    await acknowledge_all(ledger, ids=[stored.bucket_id for stored in first.batch.buckets])

    second = await ledger.read(next_pending, "prom", after=first.position, max_samples=2, one_window_per_series=False)

    assert second is not None
    assert zones_and_hours(second) == [(1, 2), (1, 3)]
    assert (
        await ledger.read(next_pending, "prom", after=second.position, max_samples=2, one_window_per_series=False)
        is None
    )


async def test_only_the_series_of_a_page_come_with_it(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0, samples=2), bucket(2, 0, samples=3)], NOW)

    pages = await whole_queue(ledger, "prom", max_samples=3)

    assert [len(page.batch.series) for page in pages] == [2, 3]
    assert all(untrue_samples(page.batch) == [] for page in pages)


async def test_lanes_share_a_queue_and_keep_each_zone_whole(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2, 3], range(5), samples=1), NOW)

    lanes: list[list[tuple[int, int]]] = []
    for number in range(2):
        lane = Lane(number, 2)
        handed_out: list[tuple[int, int]] = []
        position: Position | None = None
        while page := await ledger.read(
            next_pending, "prom", after=position, max_samples=2, one_window_per_series=False, lane=lane
        ):
            handed_out += zones_and_hours(page)
            position = page.position
        lanes.append(handed_out)

    assert lanes == [
        [(2, hour) for hour in range(5)],
        [(zone, hour) for hour in range(5) for zone in (1, 3)],
    ]


async def test_nothing_is_pending_at_a_destination_that_nobody_knows(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    assert await queue(ledger, "nobody") == []


# A part of the queue


CUT = T0 + 3 * 1920
"""Where the live windows begin in these tests: the start of a segment."""


@pytest.mark.parametrize("cut", [CUT - 1, CUT, CUT + 1, CUT + 59, CUT + 1919])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("max_samples", [1, 7, 10_000])
async def test_what_is_live_and_what_is_backlog_make_up_the_queue(
    ledger: Ledger, *, cut: int, strict: bool, max_samples: int
) -> None:
    await ledger.write(register_destinations, {"prom": strict}, replay_since=0, now=NOW)
    await ledger.write(capture, minutes([1, 2], range(140)), NOW)
    parts = [
        [
            entry
            for page in await whole_queue(ledger, "prom", max_samples=max_samples, stretch=stretch)
            for entry in zones_and_minutes(page)
        ]
        for stretch in (WHOLE_QUEUE, Stretch(before_segment=cut), Stretch(from_segment=cut))
    ]

    whole, backlog, live = parts
    assert backlog + live == whole
    assert backlog
    assert live
    length = 1 if strict else 32
    assert all(T0 + minute // length * length * 60 >= cut for _, minute in live)
    assert all(T0 + minute // length * length * 60 < cut for _, minute in backlog)


@pytest.mark.parametrize("way", ["captured", "put in order", "new destination", "sent again"])
async def test_the_segment_of_a_window_wider_than_half_an_hour_is_that_window(ledger: Ledger, way: str) -> None:
    await ledger.write(register_destinations, {"prom": way == "put in order"}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1, 2], range(3)), NOW)
    if way == "put in order":
        await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    if way == "new destination":
        await ledger.write(register_destinations, {"other": False}, replay_since=0, now=NOW)
    if way == "sent again":
        await acknowledge_all(ledger)
        await ledger.write(ask_for_resend, Resend(0, int(NOW)), reason="", asked_by="", now=NOW)
        await ledger.write(carry_out_next, NOW)

    name = "other" if way == "new destination" else "prom"
    parts = [
        [entry for page in await whole_queue(ledger, name, stretch=stretch) for entry in zones_and_hours(page)]
        for stretch in (Stretch(before_segment=T0 + HOUR), Stretch(from_segment=T0 + HOUR))
    ]

    assert parts == [[(1, 0), (2, 0)], [(1, 1), (2, 1), (1, 2), (2, 2)]]


async def test_a_stretch_is_entered_where_it_begins_from_whatever_place_lies_before_it(ledger: Ledger) -> None:
    await ledger.write(capture, minutes([1, 2], range(140)), NOW)
    front = await ledger.read(next_pending, "prom", after=None, max_samples=1, one_window_per_series=False)
    assert front is not None

    live = await ledger.read(
        next_pending,
        "prom",
        after=front.position,
        max_samples=1,
        one_window_per_series=False,
        stretch=Stretch(from_segment=CUT),
    )

    assert live is not None
    assert zones_and_minutes(live) == [(1, 96)]


async def test_a_stretch_ends_for_whoever_is_behind_it(ledger: Ledger) -> None:
    await ledger.write(capture, minutes([1], range(140)), NOW)
    (*_, last) = await whole_queue(ledger, "prom")

    assert (
        await ledger.read(
            next_pending,
            "prom",
            after=last.position,
            max_samples=1,
            one_window_per_series=False,
            stretch=Stretch(before_segment=CUT),
        )
        is None
    )


@pytest.mark.parametrize("max_samples", [1, 10_000])
async def test_buckets_that_somebody_is_at_work_on_are_passed_over(ledger: Ledger, max_samples: int) -> None:
    await ledger.write(capture, minutes([1, 2], range(3)), NOW)
    ids = await pending_ids(ledger)

    pages = await whole_queue(ledger, "prom", max_samples=max_samples, without={ids[0], ids[4], 4711})

    assert [entry for page in pages for entry in zones_and_minutes(page)] == [(1, 1), (1, 2), (2, 0), (2, 2)]
    assert await whole_queue(ledger, "prom", without=ids) == []


# Windows that a strict destination waits for


async def strict_with_a_hole(ledger: Ledger, reason: HoleReason, *, hour: int = 1, dataset: str = DATASET) -> None:
    """Zones 1 and 2 have hours 0, 2 and 3; `hour` of zone 1 was asked for in vain."""
    await ledger.write(register_destinations, {"prom": True}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1, 2], [0, 2, 3]), NOW)
    await ledger.write(record_holes, [Hole(dataset, tag(1), window(hour), reason, "")], NOW)


async def waiting(ledger: Ledger, since: float | None) -> list[tuple[int, int]]:
    pages = await whole_queue(ledger, "prom", one_window_per_series=True, waited_for_since=since)
    return [entry for page in pages for entry in zones_and_hours(page)]


WITHOUT_THOSE_BEHIND = [(1, 0), (2, 0), (2, 2), (2, 3)]
ALL = [(1, 0), (2, 0), (1, 2), (2, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("since", "handed_out"),
    [
        (0.0, WITHOUT_THOSE_BEHIND),
        (T0 + 2 * HOUR - 1.0, WITHOUT_THOSE_BEHIND),
        (T0 + 2 * HOUR, ALL),  # when its window ended
        (NOW, ALL),
        (None, ALL),
    ],
)
async def test_windows_behind_one_that_could_not_be_captured_wait_for_a_while(
    ledger: Ledger, since: float | None, handed_out: list[tuple[int, int]]
) -> None:
    await strict_with_a_hole(ledger, HoleReason.FAILED)

    assert await waiting(ledger, since) == handed_out


async def test_what_waited_is_handed_out_when_the_missing_window_has_come(ledger: Ledger) -> None:
    await strict_with_a_hole(ledger, HoleReason.FAILED)
    await ledger.write(capture, [bucket(1, 1)], NOW)

    assert await waiting(ledger, 0) == sorted([*ALL, (1, 1)], key=lambda entry: entry[::-1])


@pytest.mark.parametrize("reason", [HoleReason.DENIED, HoleReason.EXPIRED])
async def test_nothing_waits_for_a_window_that_will_not_come(ledger: Ledger, reason: HoleReason) -> None:
    await strict_with_a_hole(ledger, reason)

    assert await waiting(ledger, 0) == ALL


async def test_nothing_waits_for_a_window_that_failed_once_and_was_given_up(ledger: Ledger) -> None:
    await strict_with_a_hole(ledger, HoleReason.FAILED)
    await ledger.write(record_holes, [Hole(DATASET, tag(1), window(1), HoleReason.EXPIRED, "")], NOW)

    assert await waiting(ledger, 0) == ALL


async def test_no_window_waits_for_a_later_one(ledger: Ledger) -> None:
    await strict_with_a_hole(ledger, HoleReason.FAILED, hour=4)

    assert await waiting(ledger, 0) == ALL


async def test_a_window_waits_for_its_own_dataset_only(ledger: Ledger) -> None:
    await strict_with_a_hole(ledger, HoleReason.FAILED, dataset="other")

    assert await waiting(ledger, 0) == ALL


async def test_nothing_waits_for_a_window_of_a_width_that_is_not_asked_for_any_more(ledger: Ledger) -> None:
    await strict_with_a_hole(ledger, HoleReason.DENIED)
    narrow = Window(T0 + HOUR, 60)
    await ledger.write(record_holes, [Hole(DATASET, tag(1), narrow, HoleReason.FAILED, "")], NOW)

    assert await waiting(ledger, 0) == ALL


# What becomes of a bucket


async def test_an_acknowledged_bucket_leaves_the_queue_of_its_destination_only(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], [0, 1, 2]), NOW)
    ids = await pending_ids(ledger)

    await ledger.write(acknowledge, "prom", ids[:2], NOW)

    assert await queue(ledger, "prom") == [(1, 2)]
    assert await queue(ledger, "mimir") == [(1, 0), (1, 1), (1, 2)]
    assert await states(ledger, "prom") == {"acknowledged": 2, "pending": 1}


async def test_a_refused_bucket_is_kept_with_what_the_receiver_said(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    first, _ = await pending_ids(ledger)

    await ledger.write(refuse_whole, "prom", [first], reason="out of bounds" + "!" * 5000, now=NOW + 5)

    assert await queue(ledger) == [(1, 1)]
    (report,) = await ledger.read(undelivered)
    assert (report.destination, report.state, report.buckets, report.newest_at, report.status) == (
        "prom",
        "refused",
        1,
        int(NOW) + 5,
        400,
    )
    assert report.reason.startswith("out of bounds!")
    assert len(report.reason) == 1024


async def test_it_is_remembered_how_each_destination_last_answered(ledger: Ledger, path: Path) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    assert await ledger.read(destination_reports) == (
        DestinationReport("mimir", None, None, None),
        DestinationReport("prom", None, None, None),
    )

    await ledger.write(note_failure, "prom", "503 " + "x" * 5000, NOW)
    await ledger.write(note_failure, "prom", "no route to host" + "!" * 5000, NOW + 60)
    await ledger.write(acknowledge, "mimir", [], NOW + 30)
    await ledger.close()

    again = Ledger.open(path)
    mimir, prom = await again.read(destination_reports)
    assert mimir == DestinationReport("mimir", int(NOW) + 30, None, None)
    assert (prom.last_success_at, prom.last_failure_at) == (None, int(NOW) + 60)
    assert prom.last_failure == ("no route to host" + "!" * 5000)[:1024]
    await again.close()


async def test_a_blob_that_a_flipped_bit_has_turned_into_a_text_is_still_sent(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.close()
    loosen = "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name IN ('bucket', 'series')"
    tighten = "UPDATE sqlite_schema SET sql = sql || ' STRICT' WHERE name IN ('bucket', 'series')"
    for statement in (
        loosen,
        "UPDATE bucket SET sample_values = CAST(sample_values AS TEXT), series_ids = CAST(series_ids AS TEXT)",
        "UPDATE series SET labels = CAST(labels AS TEXT)",
        tighten,
    ):
        with apsw.Connection(str(path)) as connection:
            connection.pragma("writable_schema", True)
            connection.execute(statement)
        connection.close()

    again = Ledger.open(path)
    (page,) = await whole_queue(again, "prom")
    await again.close()

    assert page.damaged == ()
    assert zones_and_hours(page) == [(1, 0)]
    assert untrue_samples(page.batch) == []


async def test_a_damaged_bucket_is_never_handed_out_and_costs_no_other_one(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1, 2]), NOW)
    ids = await pending_ids(ledger)
    await ledger.write(damage, ids[1])

    (page,) = await whole_queue(ledger, "prom")
    assert page.damaged == (ids[1],)
    assert zones_and_hours(page) == [(1, 0), (1, 2)]
    assert untrue_samples(page.batch) == []

    await ledger.write(set_aside, "prom", page.damaged, NOW)
    (page,) = await whole_queue(ledger, "prom")
    assert page.damaged == ()
    (report,) = await ledger.read(undelivered)
    assert (report.state, report.buckets, report.reason) == (
        "damaged",
        1,
        "its content, or the row of one of its series, does not match its checksum",
    )


async def test_a_queue_of_damaged_buckets_only_is_told_as_damaged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    (bucket_id,) = await pending_ids(ledger)
    await ledger.write(damage, bucket_id)

    (page,) = await whole_queue(ledger, "prom")

    assert page.damaged == (bucket_id,)
    assert page.batch.buckets == ()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE bucket SET timestamp_ms = timestamp_ms + 1",
        "UPDATE bucket SET start = start + 3600",
        "UPDATE bucket SET width_seconds = 60",
        "UPDATE bucket SET scope_id = 2",
        "UPDATE bucket SET series_ids = CAST(x'02' || substr(series_ids, 2) AS BLOB)",
        "UPDATE bucket SET series_ids = substr(series_ids, 5), sample_values = substr(sample_values, 9)",
        "UPDATE bucket SET series_ids = x'', sample_values = x''",
        "UPDATE bucket SET checksum = checksum + 1",
        "UPDATE series SET labels = CAST(replace(labels, 'C0', 'C9') AS BLOB)",
        "UPDATE series SET id = id + 100",
        "UPDATE series SET id = id + 100; UPDATE series SET id = 104 - id",
        "DELETE FROM series",
    ],
)
async def test_no_part_of_a_bucket_can_change_without_being_noticed(ledger: Ledger, path: Path, statement: str) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(lambda session: session._connection.execute(statement))
    await ledger.close()

    # A worker that has not seen the series before, as it is after a restart.
    again = Ledger.open(path)
    (page,) = await whole_queue(again, "prom")
    await again.close()

    assert list(page.damaged) == ids
    assert page.batch.buckets == ()


async def test_what_cannot_be_delivered_within_the_replay_bound_is_given_up(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0, 1, 2]), NOW)

    expired = await ledger.write(expire, ended_before=T0 + 2 * HOUR, now=NOW)

    # The window of hour 1 ends at the bound and is still inside.
    assert expired == 2
    assert await queue(ledger) == [(1, 1), (2, 1), (1, 2), (2, 2)]
    (report,) = await ledger.read(undelivered)
    assert (report.state, report.buckets, report.newest_at) == ("expired", 2, int(NOW))
    assert "CF_REPLAY_HOURS" in report.reason
    assert await ledger.write(expire, ended_before=T0 + 2 * HOUR, now=NOW) == 0


async def test_what_waits_for_a_destination_that_is_gone_is_not_given_up(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=NOW, now=NOW)

    assert await ledger.write(expire, ended_before=NOW, now=NOW) == 0


async def test_buckets_are_still_pending_until_one_of_them_is_decided(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], [0, 1, 2]), NOW)
    ids = await pending_ids(ledger)
    assert await ledger.read(still_pending, "prom", ids)
    assert await ledger.read(still_pending, "prom", [*ids, *ids])

    await ledger.write(acknowledge, "prom", ids[:1], NOW)

    assert not await ledger.read(still_pending, "prom", ids)
    assert await ledger.read(still_pending, "prom", ids[1:])
    assert await ledger.read(still_pending, "mimir", ids)
    assert not await ledger.read(still_pending, "prom", [4711])


async def test_an_answer_that_comes_after_its_bucket_was_deleted_is_not_taken_for_another_one(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    late = await pending_ids(ledger)
    await ledger.write(expire, ended_before=NOW, now=NOW)
    await ledger.write(prune, ended_before=NOW)
    await ledger.write(capture, [bucket(1, 1)], NOW)

    await ledger.write(acknowledge, "prom", late, NOW)

    assert await queue(ledger) == [(1, 1)]


async def test_what_was_decided_is_not_given_up(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    first, second = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second])

    assert await ledger.write(expire, ended_before=NOW, now=NOW) == 0
    assert await states(ledger) == {"acknowledged": 1, "refused": 1}


async def test_an_answer_that_comes_after_the_bound_still_counts(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(expire, ended_before=NOW, now=NOW)

    await ledger.write(acknowledge, "prom", ids, NOW)

    assert await states(ledger) == {"acknowledged": 1}
    assert await ledger.read(undelivered) == ()


async def test_what_was_acknowledged_stays_acknowledged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", ids, NOW)

    await ledger.write(refuse_whole, "prom", ids)
    await ledger.write(refuse, "prom", [Refusal(ids[0], FIRST, 400, "no")], partly=ids, now=NOW)
    await ledger.write(set_aside, "prom", ids, NOW)

    assert await states(ledger) == {"acknowledged": 1}
    assert await ledger.read(refused_samples) == ()


FIRST, SECOND, THIRD = (number.to_bytes(4, "little") for number in (1, 2, 3))


async def test_a_bucket_is_partial_where_some_of_its_samples_were_refused_and_refused_where_all_were(
    ledger: Ledger,
) -> None:
    await ledger.write(capture, buckets([1], range(3)), NOW)
    some, every, _ = await pending_ids(ledger)

    told = [
        Refusal(some, FIRST + THIRD, 400, "out of bounds"),
        Refusal(every, FIRST, 400, "out of bounds"),
        Refusal(every, SECOND + THIRD, None, "five times 500 while others were taken"),
    ]
    await ledger.write(refuse, "prom", told, partly={some}, now=NOW + 5)

    assert await queue(ledger) == [(1, 2)]
    assert await states(ledger) == {"partial": 1, "refused": 1, "pending": 1}
    assert await ledger.read(undelivered) == (
        Undelivered("prom", "partial", 1, int(NOW) + 5, 400, "out of bounds"),
        Undelivered("prom", "refused", 1, int(NOW) + 5, None, "five times 500 while others were taken"),
    )
    assert await ledger.read(refused_samples) == (RefusedSamples("prom", 2, 5),)


async def test_a_refusal_counts_for_the_destination_that_refused(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, [bucket(1, 0)], NOW)

    await ledger.write(refuse_whole, "mimir", await pending_ids(ledger, "mimir"))

    assert await states(ledger, "prom") == {"pending": 1}
    assert await ledger.read(refused_samples) == (RefusedSamples("mimir", 1, 3),)


async def test_a_receiver_that_took_a_part_has_answered(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    first, second = await pending_ids(ledger)

    await ledger.write(refuse, "prom", [Refusal(first, FIRST, 400, "no")], partly=(), now=NOW)
    (report,) = await ledger.read(destination_reports)
    assert report.last_success_at is None

    await ledger.write(refuse, "prom", [Refusal(second, FIRST, 400, "no")], partly={second}, now=NOW)
    (report,) = await ledger.read(destination_reports)
    assert report.last_success_at == int(NOW)


async def test_an_acknowledgement_of_nothing_that_was_sent_is_no_answer(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    first, second = await pending_ids(ledger)

    await ledger.write(acknowledge, "prom", [first], NOW, any_taken=False)
    (report,) = await ledger.read(destination_reports)
    assert (report.last_success_at, await states(ledger)) == (None, {"acknowledged": 1, "pending": 1})

    await ledger.write(acknowledge, "prom", [second], NOW)
    (report,) = await ledger.read(destination_reports)
    assert report.last_success_at == int(NOW)


@pytest.mark.parametrize("partly", [True, False])
async def test_what_was_refused_stays_refused_with_what_was_said(ledger: Ledger, *, partly: bool) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(refuse, "prom", [Refusal(ids[0], FIRST, 400, "no")], partly=ids if partly else (), now=NOW)
    before = await states(ledger), await ledger.read(undelivered), await ledger.read(refused_samples)

    await ledger.write(acknowledge, "prom", ids, NOW + 1)
    await ledger.write(set_aside, "prom", ids, NOW + 1)
    await ledger.write(expire, ended_before=NOW, now=NOW + 1)
    await ledger.write(expire_too_old, "prom", stamped_before=NOW, window_seconds=60, now=NOW + 1)

    assert (await states(ledger), await ledger.read(undelivered), await ledger.read(refused_samples)) == before


async def test_a_refusal_that_comes_after_the_bound_still_counts(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    ids = await pending_ids(ledger)
    await ledger.write(expire, ended_before=NOW, now=NOW)

    await ledger.write(refuse, "prom", [Refusal(each, FIRST, 400, "no") for each in ids], partly=ids[:1], now=NOW)

    assert await states(ledger) == {"partial": 1, "refused": 1}
    assert await ledger.read(refused_samples) == (RefusedSamples("prom", 2, 2),)


@pytest.mark.parametrize("state", ["damaged", "deleted"])
async def test_a_refusal_of_what_was_not_waiting_is_not_kept(ledger: Ledger, state: str) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(set_aside, "prom", ids, NOW)
    if state == "deleted":
        await ledger.write(prune, ended_before=NOW)

    await ledger.write(refuse, "prom", [Refusal(ids[0], FIRST, 400, "no")], partly=ids, now=NOW)

    assert await states(ledger) == ({"damaged": 1} if state == "damaged" else {})
    assert await ledger.read(refused_samples) == ()


async def test_what_a_receiver_says_to_a_sample_is_kept_within_bounds(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(refuse_whole, "prom", await pending_ids(ledger), reason="x" * 5000)

    (refusal,) = await ledger.read(refusals, "prom", newest=5)

    assert refusal.reason == "x" * 1024


# What is older than the receiver takes


@pytest.mark.parametrize(
    ("stamp", "timestamp"), [(SampleTimestamp.START, T0 + HOUR), (SampleTimestamp.END, T0 + 2 * HOUR - 0.001)]
)
async def test_what_is_older_than_the_receiver_takes_is_given_up_by_the_timestamp_it_carries(
    ledger: Ledger, stamp: SampleTimestamp, timestamp: float
) -> None:
    await ledger.write(capture, [bucket_of(1, window(hour), stamp=stamp) for hour in (0, 1, 2)], NOW)
    bound = math.floor(timestamp)

    async def too_old(stamped_before: float) -> int:
        return await ledger.write(
            expire_too_old, "prom", stamped_before=stamped_before, window_seconds=1800, now=NOW + 5
        )

    assert await too_old(T0) == 0
    assert await too_old(bound) == 1, "the hour before"
    assert await too_old(bound) == 0
    assert len(await pending_ids(ledger)) == 2
    assert await too_old(bound + 1) == 1
    assert await states(ledger) == {"expired": 2, "pending": 1}
    (report,) = await ledger.read(undelivered)
    assert (report.state, report.newest_at, report.status) == ("expired", int(NOW) + 5, None)
    assert "older than 30m" in report.reason
    assert "out_of_order_time_window" in report.reason


async def test_what_is_too_old_for_one_destination_is_sent_to_another(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(3)), NOW)
    await acknowledge_all(ledger, ids=(await pending_ids(ledger))[:1])

    assert await ledger.write(expire_too_old, "prom", stamped_before=NOW, window_seconds=60, now=NOW) == 2

    assert await states(ledger, "prom") == {"acknowledged": 1, "expired": 2}
    assert await states(ledger, "mimir") == {"pending": 3}


@pytest.mark.parametrize("width_seconds", [60, 86_400])
async def test_what_is_too_old_is_found_whatever_its_segment(ledger: Ledger, width_seconds: int) -> None:
    windows = [Window(T0 + number * width_seconds, width_seconds) for number in range(40)]
    await ledger.write(capture, [bucket_of(1, each) for each in windows], NOW)
    bound = windows[35].start

    assert await ledger.write(expire_too_old, "prom", stamped_before=bound, window_seconds=60, now=NOW) == 35
    assert len(await pending_ids(ledger)) == 5


async def test_deciding_about_a_bucket_that_is_gone_changes_nothing(ledger: Ledger) -> None:
    await ledger.write(acknowledge, "prom", [4711], NOW)

    assert await ledger.read(delivery_counts) == ()


async def test_a_decision_of_an_unknown_destination_is_a_mistake_of_the_caller(ledger: Ledger) -> None:
    for verb in (
        lambda session: acknowledge(session, "nobody", [1], NOW),
        lambda session: refuse(session, "nobody", [], partly=(), now=NOW),
        lambda session: expire_too_old(session, "nobody", stamped_before=NOW, window_seconds=60, now=NOW),
        lambda session: set_aside(session, "nobody", [1], NOW),
    ):
        with pytest.raises(LookupError, match="nobody"):
            await ledger.write(verb)


# Destinations that come, go and change


async def test_a_destination_that_is_added_gets_what_lies_within_the_replay_bound(ledger: Ledger) -> None:
    await ledger.write(capture, [*buckets([1], range(4)), bucket(2, 3, samples=0)], NOW)
    await acknowledge_all(ledger)

    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=T0 + 3 * HOUR, now=NOW)

    # The window of hour 2 ends at the bound.
    assert await queue(ledger, "mimir") == [(1, 2), (1, 3)]
    assert await queue(ledger, "prom") == []


async def test_a_day_that_ended_within_the_replay_bound_is_queued_for_a_new_destination(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0, width_seconds=86_400)], NOW)

    await ledger.write(register_destinations, {"mimir": False}, replay_since=T0 + 86_400, now=NOW)

    assert await queue(ledger, "mimir") == [(1, 0)]


async def test_a_destination_that_disappears_gets_nothing_new_and_counts_in_no_backlog(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    await ledger.write(register_destinations, {"mimir": False}, replay_since=NOW, now=NOW)
    await ledger.write(capture, [bucket(1, 1)], NOW)

    assert [backlog.destination for backlog in await ledger.read(backlogs)] == ["mimir"]
    assert {(count.destination, count.gone) for count in await ledger.read(delivery_counts)} == {
        ("mimir", False),
        ("prom", True),
    }


async def test_a_destination_that_comes_back_goes_on_where_it_was_and_gets_what_it_missed(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    first, _ = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], [2, 3]), NOW)

    await ledger.write(register_destinations, {"prom": False}, replay_since=T0 + 4 * HOUR, now=NOW)

    await ledger.write(capture, [bucket(1, 4)], NOW)

    assert await queue(ledger, "prom") == [(1, 1), (1, 3), (1, 4)]
    assert await states(ledger, "prom") == {"acknowledged": 1, "pending": 3}


async def test_registering_the_same_destinations_again_changes_nothing(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    await acknowledge_all(ledger)

    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)

    assert await queue(ledger) == []
    assert await states(ledger) == {"acknowledged": 2}


@pytest.mark.parametrize("strict", [True, False])
async def test_the_queue_is_put_in_order_when_a_destination_becomes_strict_or_stops_to_be(
    ledger: Ledger, *, strict: bool
) -> None:
    await ledger.write(register_destinations, {"prom": not strict}, replay_since=0, now=NOW)
    await ledger.write(capture, minutes([1, 2], [30, 31, 32]), NOW)

    await ledger.write(register_destinations, {"prom": strict}, replay_since=0, now=NOW)
    await ledger.write(capture, minutes([1, 2], [33]), NOW)

    by_window = [(zone, minute) for minute in (30, 31, 32, 33) for zone in (1, 2)]
    by_zone = [(zone, minute) for segment in ((30, 31), (32, 33)) for zone in (1, 2) for minute in segment]
    (page,) = await whole_queue(ledger, "prom")
    assert zones_and_minutes(page) == (by_window if strict else by_zone)


async def test_a_destination_that_comes_back_strict_has_its_whole_queue_in_order(ledger: Ledger) -> None:
    await ledger.write(capture, minutes([1, 2], [0, 1]), NOW)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, minutes([1, 2], [2]), NOW)

    await ledger.write(register_destinations, {"prom": True}, replay_since=0, now=NOW)

    (page,) = await whole_queue(ledger, "prom")
    assert zones_and_minutes(page) == [(zone, minute) for minute in (0, 1, 2) for zone in (1, 2)]


async def test_a_zone_that_was_renamed_is_sent_under_the_labels_that_were_captured(ledger: Ledger) -> None:
    given = bucket(1, 0)
    await ledger.write(capture, [given], NOW)
    await ledger.write(record_scopes, [replace(scope(1), name="renamed.example")], NOW)

    (page,) = await whole_queue(ledger, "prom")

    assert tuple(page.batch.series.values()) == given.series
