import itertools
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from tests.unit.ledger.fleet import (
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
    zones_and_hours,
)
from worker.ledger import (
    DestinationReport,
    Lane,
    Ledger,
    Position,
    acknowledge,
    backlogs,
    capture,
    delivery,
    delivery_counts,
    destination_reports,
    expire,
    next_pending,
    note_failure,
    prune,
    record_scopes,
    refuse,
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


async def test_windows_of_a_zone_follow_each_other_in_runs_for_a_receiver_that_takes_any_order(ledger: Ledger) -> None:
    run = delivery._SEGMENT_WINDOWS
    hours = range(2 * run + 2)
    await ledger.write(capture, buckets([1, 2], hours, samples=1), NOW)

    found = await queue(ledger)

    runs = [found[0]]
    for before, after in itertools.pairwise(found):
        if after != (before[0], before[1] + 1):
            runs.append(after)
    # Runs end where the start is a multiple of their length; T0 lies somewhere inside the first.
    edges = [0, *(hour for hour in hours if hour and (T0 // HOUR + hour) % run == 0)]
    assert len(edges) >= 3
    assert runs == [(zone, edge) for edge in edges for zone in (1, 2)]


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
    await ledger.write(capture, buckets([1, 2], [0, 1]), NOW)

    (page,) = await whole_queue(ledger, "prom")

    assert zones_and_hours(page) == [(1, 0), (1, 1), (2, 0), (2, 1)]


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
        [(zone, hour) for zone in (1, 3) for hour in range(5)],
    ]


async def test_nothing_is_pending_at_a_destination_that_nobody_knows(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    assert await queue(ledger, "nobody") == []


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

    await ledger.write(refuse, "prom", [first], status=400, reason="out of bounds" + "!" * 5000, now=NOW + 5)

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
    assert await queue(ledger) == [(1, 1), (1, 2), (2, 1), (2, 2)]
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
    await ledger.write(refuse, "prom", [second], status=400, reason="no", now=NOW)

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

    await ledger.write(refuse, "prom", ids, status=400, reason="no", now=NOW)
    await ledger.write(set_aside, "prom", ids, NOW)

    assert await states(ledger) == {"acknowledged": 1}


async def test_deciding_about_a_bucket_that_is_gone_changes_nothing(ledger: Ledger) -> None:
    await ledger.write(acknowledge, "prom", [4711], NOW)

    assert await ledger.read(delivery_counts) == ()


async def test_a_decision_of_an_unknown_destination_is_a_mistake_of_the_caller(ledger: Ledger) -> None:
    for verb in (
        lambda session: acknowledge(session, "nobody", [1], NOW),
        lambda session: refuse(session, "nobody", [1], status=400, reason="no", now=NOW),
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
    await ledger.write(capture, buckets([1, 2], [0, 1]), NOW)

    await ledger.write(register_destinations, {"prom": strict}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1, 2], [2]), NOW)

    by_window = [(zone, hour) for hour in (0, 1, 2) for zone in (1, 2)]
    by_zone = [(zone, hour) for zone in (1, 2) for hour in (0, 1, 2)]
    assert await queue(ledger) == (by_window if strict else by_zone)


async def test_a_destination_that_comes_back_strict_has_its_whole_queue_in_order(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0, 1]), NOW)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1, 2], [2]), NOW)

    await ledger.write(register_destinations, {"prom": True}, replay_since=0, now=NOW)

    assert await queue(ledger, "prom") == [(zone, hour) for hour in (0, 1, 2) for zone in (1, 2)]


async def test_a_zone_that_was_renamed_is_sent_under_the_labels_that_were_captured(ledger: Ledger) -> None:
    given = bucket(1, 0)
    await ledger.write(capture, [given], NOW)
    await ledger.write(record_scopes, [replace(scope(1), name="renamed.example")], NOW)

    (page,) = await whole_queue(ledger, "prom")

    assert tuple(page.batch.series.values()) == given.series
