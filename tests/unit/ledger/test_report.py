from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    blocks,
    bucket,
    buckets,
    pending_ids,
    refuse_whole,
    scope,
    tag,
    whole_queue,
    window,
)
from worker.ledger import (
    Backlog,
    DeliveryCount,
    Hole,
    HoleReason,
    Ledger,
    Refusal,
    RefusedSamples,
    ScopeReport,
    acknowledge,
    backlogs,
    capture,
    delivery_counts,
    drifted_buckets,
    expire,
    hole_counts,
    newest_captured,
    outstanding_windows,
    record_holes,
    record_scopes,
    refusals,
    refuse,
    refused_samples,
    register_destinations,
    scope_reports,
    undelivered,
)
from worker.ledger.session import Session


async def report(ledger: Ledger, zone: int = 1, *, hours: float = 24, since: float = T0) -> ScopeReport:
    reports = await ledger.read(scope_reports, since=since, final_until=T0 + hours * HOUR, with_deliveries=True)
    (found,) = (each for each in reports if each.tag == tag(zone))
    return found


def damage(session: Session, statement: str) -> None:
    """Do it, and forget what was read before, as a restart does."""
    session._connection.execute(statement)
    session.series.forget()


async def test_a_new_ledger_has_nothing_to_report(ledger: Ledger) -> None:
    assert await ledger.read(backlogs) == (Backlog("prom", 0, 0, None),)
    assert await ledger.read(delivery_counts) == ()
    assert await ledger.read(undelivered) == ()
    assert await ledger.read(refused_samples) == ()
    assert await ledger.read(refusals, "prom", newest=5) == ()
    assert await ledger.read(newest_captured) == {}
    assert await ledger.read(hole_counts, since=0) == {}
    assert await ledger.read(drifted_buckets) == {}
    assert await report(ledger) == ScopeReport(
        dataset=DATASET,
        tag=tag(1),
        name="zone-1.example",
        account_name="Example",
        width_seconds=HOUR,
        gone=False,
        expected=24,
        captured=0,
        acknowledged=0,
        newest_end=None,
        holes=0,
        reason=None,
        detail=None,
    )


async def test_the_backlog_of_each_destination_is_told_by_name(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], [3, 4, 5], samples=7), NOW)
    await acknowledge_all(ledger, "prom", (await pending_ids(ledger))[:1])

    assert await ledger.read(backlogs) == (
        Backlog("mimir", 3, 21, T0 + 4 * HOUR),
        Backlog("prom", 2, 14, T0 + 5 * HOUR),
    )


async def test_deliveries_are_counted_by_destination_and_state(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(6)), NOW)
    ids = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", ids[3:], NOW)
    await ledger.write(refuse_whole, "prom", ids[2:3])
    await ledger.write(expire, ended_before=T0 + 1.5 * HOUR, now=NOW)

    assert await ledger.read(delivery_counts) == (
        DeliveryCount("mimir", "expired", 1, gone=False),
        DeliveryCount("mimir", "pending", 5, gone=False),
        DeliveryCount("prom", "acknowledged", 3, gone=False),
        DeliveryCount("prom", "expired", 1, gone=False),
        DeliveryCount("prom", "pending", 1, gone=False),
        DeliveryCount("prom", "refused", 1, gone=False),
    )


async def test_of_several_refusals_the_newest_is_told(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(3)), NOW)
    ids = await pending_ids(ledger)
    for bucket_id, second, reason in zip(ids, (1, 3, 2), ("first", "newest", "second"), strict=True):
        await ledger.write(refuse_whole, "prom", [bucket_id], status=400 + second, reason=reason, now=NOW + second)

    (found,) = await ledger.read(undelivered)

    assert (found.buckets, found.newest_at, found.status, found.reason) == (3, int(NOW) + 3, 403, "newest")


async def test_each_refusal_names_its_series_its_timestamp_and_what_was_said_the_newest_first(ledger: Ledger) -> None:
    await ledger.write(capture, [*buckets([1], range(3)), bucket(2, 0)], NOW)
    waiting = [stored for page in await whole_queue(ledger, "prom") for stored in page.batch.buckets]
    for second, stored in enumerate(waiting):
        third_and_first = stored.series_ids[8:] + stored.series_ids[:4]
        told = Refusal(stored.bucket_id, third_and_first, 400 + second, f"reason {second}")
        await ledger.write(refuse, "prom", [told], partly={stored.bucket_id}, now=NOW + second)

    found = await ledger.read(refusals, "prom", newest=3)

    assert [each.refused_at - int(NOW) for each in found] == [3, 2, 1]
    assert [(each.status, each.reason) for each in found] == [(403, "reason 3"), (402, "reason 2"), (401, "reason 1")]
    assert [each.timestamp_ms for each in found] == [stored.timestamp_ms for stored in waiting[:0:-1]]
    zones = [(2 if b"0002" in each.series[0] else 1) for each in found]
    assert sorted(zones) == [1, 1, 2]
    assert [each.series for each in found] == [(blocks(zone, 3)[2], blocks(zone, 1)[0]) for zone in zones]
    assert await ledger.read(refusals, "nobody", newest=3) == ()


async def test_a_refusal_is_told_also_where_a_series_or_the_refusal_itself_is_damaged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(refuse_whole, "prom", await pending_ids(ledger))
    for statement in (
        "UPDATE series SET checksum = checksum + 1 WHERE id = 2",
        "UPDATE refusal SET series_ids = substr(series_ids, 1, 11)",
    ):
        await ledger.write(damage, statement)

        (found,) = await ledger.read(refusals, "prom", newest=3)

        assert found.series[:2] == (blocks(1, 1)[0], b"")


async def test_refused_samples_are_counted_by_destination(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False, "third": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(3)), NOW)
    first, second, _ = await pending_ids(ledger)
    await ledger.write(refuse_whole, "prom", [first, second])
    told = [Refusal(first, b"\1\0\0\0", 400, "no"), Refusal(first, b"\2\0\0\0", 413, "too long")]
    await ledger.write(refuse, "mimir", told, partly={first}, now=NOW)

    assert await ledger.read(refused_samples) == (RefusedSamples("mimir", 1, 2), RefusedSamples("prom", 2, 6))


async def test_expected_captured_acknowledged_and_missing_windows_are_counted(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1, 2, 5]), NOW)
    await acknowledge_all(ledger, ids=(await pending_ids(ledger))[:2])

    found = await report(ledger, hours=8)

    assert (found.expected, found.captured, found.acknowledged, found.missing) == (8, 4, 2, 4)
    assert found.newest_end == T0 + 6 * HOUR


async def test_a_window_counts_as_acknowledged_when_every_configured_destination_has_it(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    await acknowledge_all(ledger, "prom")
    assert (await report(ledger)).acknowledged == 0

    await ledger.write(acknowledge, "mimir", (await pending_ids(ledger, "mimir"))[:1], NOW)
    assert (await report(ledger)).acknowledged == 1

    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    assert (await report(ledger)).acknowledged == 2


async def test_deliveries_are_looked_at_only_on_request(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)

    (found, *_) = await ledger.read(scope_reports, since=T0, final_until=T0 + HOUR)

    assert (found.captured, found.acknowledged) == (1, None)


async def test_a_window_that_a_new_destination_was_never_to_get_is_not_acknowledged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await acknowledge_all(ledger)
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=NOW, now=NOW)

    assert (await report(ledger)).acknowledged == 0


async def test_what_was_decided_against_is_not_acknowledged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(refuse_whole, "prom", await pending_ids(ledger))

    assert (await report(ledger)).acknowledged == 0


async def test_what_was_refused_in_part_is_not_acknowledged(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(refuse, "prom", [Refusal(ids[0], b"\1\0\0\0", 400, "no")], partly=ids, now=NOW)

    assert (await report(ledger)).acknowledged == 0


async def test_windows_that_end_within_the_stretch_are_expected(ledger: Ledger) -> None:
    # From half past 0 to half past 3: the windows of hours 0, 1 and 2.
    await ledger.write(capture, buckets([1], [0, 1, 3]), NOW)

    found = await report(ledger, since=T0 + 0.5 * HOUR, hours=3.5)

    assert (found.expected, found.captured, found.missing) == (3, 2, 1)


async def test_nothing_is_expected_before_the_first_window_is_final(ledger: Ledger) -> None:
    found = await report(ledger, since=T0, hours=-5)

    assert (found.expected, found.missing) == (0, 0)


async def test_a_zone_that_is_gone_is_expected_until_it_disappeared(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], [0, 1]), NOW)
    await ledger.write(record_scopes, [scope(2), scope(3)], T0 + 3.5 * HOUR)

    found = await report(ledger)
    assert (found.gone, found.expected, found.captured, found.missing) == (True, 3, 2, 1)

    await ledger.write(record_scopes, [scope(1), scope(2), scope(3)], T0 + 9 * HOUR)
    found = await report(ledger)
    assert (found.gone, found.expected, found.missing) == (False, 24, 22)


async def test_a_window_that_was_not_final_when_its_zone_disappeared_is_not_expected(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(2), scope(3)], T0 + 3 * HOUR + 599)

    for delay_seconds, expected in ((0, 3), (599, 3), (600, 2)):
        (found, *_) = await ledger.read(
            scope_reports, since=T0, final_until=T0 + 24 * HOUR, delay_seconds=delay_seconds
        )
        assert found.expected == expected


async def test_a_window_captured_after_its_zone_disappeared_does_not_make_less_missing(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(2), scope(3)], T0 + 2 * HOUR)
    await ledger.write(capture, buckets([1], [1, 2, 3]), NOW)

    found = await report(ledger)

    assert (found.expected, found.captured, found.missing) == (2, 1, 1)


async def test_windows_of_each_dataset_and_width_are_counted_apart(ledger: Ledger) -> None:
    await ledger.write(
        outstanding_windows, dataset="other", width_seconds=60, tags=[tag(1)], starts=range(T0, T0 + HOUR, 60)
    )
    await ledger.write(capture, [*buckets([1], [0, 1]), bucket(1, 0, width_seconds=60, dataset="other")], NOW)

    reports = await ledger.read(scope_reports, since=T0, final_until=T0 + 2 * HOUR)

    assert [
        (each.dataset, each.width_seconds, each.expected, each.captured) for each in reports if each.tag == tag(1)
    ] == [
        (DATASET, HOUR, 2, 2),
        ("other", 60, 120, 1),
    ]
    assert await ledger.read(newest_captured) == {DATASET: T0 + 2 * HOUR, "other": T0 + 60}


async def test_zones_come_by_name(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(1, name="z.example"), scope(2), scope(3, name="a.example")], NOW)

    reports = await ledger.read(scope_reports, since=T0, final_until=T0)

    assert [each.name for each in reports] == ["a.example", "z.example", "zone-2.example"]


async def test_the_newest_hole_says_why_windows_are_missing(ledger: Ledger) -> None:
    holes = [
        Hole(DATASET, tag(1), window(hour), reason, f"hour {hour}")
        for hour, reason in ((2, HoleReason.EXPIRED), (7, HoleReason.DENIED), (5, HoleReason.FAILED))
    ]
    await ledger.write(record_holes, holes, NOW)

    found = await report(ledger)
    assert (found.holes, found.reason, found.detail) == (3, "denied", "hour 7")

    found = await report(ledger, since=T0 + 3 * HOUR, hours=7)
    assert (found.holes, found.missing) == (1, 4)


async def test_holes_are_counted_over_the_windows_that_are_expected(ledger: Ledger) -> None:
    holes = [Hole(DATASET, tag(1), window(hour), HoleReason.FAILED, "") for hour in range(4)]
    await ledger.write(record_holes, holes, NOW)

    for since, missing in ((T0, 4), (T0 + 1, 4), (T0 + HOUR, 3), (T0 + 1.5 * HOUR, 3)):
        assert await ledger.read(hole_counts, since=since) == {(DATASET, "failed"): missing}
        assert (await report(ledger, since=since, hours=4)).missing == missing
