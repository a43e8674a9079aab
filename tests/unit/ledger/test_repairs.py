from array import array
from dataclasses import replace

import pytest

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    buckets,
    carry_out_next,
    minutes,
    pending_ids,
    queue,
    queued_by,
    refuse_whole,
    scope,
    still_open,
    tag,
    whole_queue,
    zones_and_minutes,
)
from worker.buckets import Bucket
from worker.errors import LedgerDamagedError
from worker.ledger import (
    Ledger,
    Refusal,
    RefusedSamples,
    Resend,
    ResendCount,
    acknowledge,
    ask_to_cancel,
    backlogs,
    capture,
    delivery_counts,
    expire,
    job,
    jobs,
    newest_acknowledged,
    not_delivered,
    pending_between,
    pending_of_job,
    plan_resend,
    queue_next,
    record_scopes,
    refusals,
    refuse,
    refused_samples,
    register_destinations,
    resent,
    stamped_before,
)
from worker.series import label_block
from worker.tally import Tally

EVERYTHING = Resend(since=T0, until=T0 + 1000 * HOUR)


async def ask(ledger: Ledger, resend: Resend = EVERYTHING) -> int:
    return await ledger.write(ask_for_resend, resend, reason="the volume was lost", asked_by="ann@host", now=NOW)


async def resend(ledger: Ledger, wanted: Resend) -> None:
    await ask(ledger, wanted)
    await ledger.write(carry_out_next, NOW)


async def test_the_newest_bucket_that_a_destination_has_acknowledged_is_found_as_a_resend_of_it_alone(
    ledger: Ledger,
) -> None:
    await ledger.write(capture, buckets([1, 2], range(4)), NOW)
    assert await ledger.read(newest_acknowledged, "prom", since=T0) is None
    first_three = (await pending_ids(ledger))[:3]
    await acknowledge_all(ledger, ids=first_three)
    newest = await ledger.read(newest_acknowledged, "prom", since=T0)
    assert newest == Resend(T0 + HOUR, T0 + HOUR + 1, (tag(1),), (DATASET,), ("prom",))
    assert sum(count.buckets for count in await ledger.read(plan_resend, newest)) == 1
    assert await ledger.read(newest_acknowledged, "prom", since=T0 + 2 * HOUR) is None
    assert await ledger.read(newest_acknowledged, "another", since=T0) is None


async def test_a_repair_is_on_record_from_the_moment_it_is_asked_for(ledger: Ledger) -> None:
    number = await ask(ledger)

    asked = await ledger.read(job, number)

    assert asked is not None
    assert asked.arguments == EVERYTHING
    assert (asked.kind, asked.reason, asked.asked_by, asked.asked_at) == (
        "resend",
        "the volume was lost",
        "ann@host",
        int(NOW),
    )
    assert (asked.state, asked.finished_at, asked.result) == ("asked", None, None)


async def test_there_is_no_repair_of_a_number_that_was_never_given(ledger: Ledger) -> None:
    assert await ledger.read(job, 17) is None


async def test_repairs_are_carried_out_in_the_order_they_were_asked_for_and_once(ledger: Ledger) -> None:
    numbers = [await ask(ledger), await ask(ledger)]

    done = [await ledger.write(carry_out_next, NOW + 60) for _ in range(3)]

    assert [each and each.job_id for each in done] == [*numbers, None]
    assert [(each.job_id, each.state, each.finished_at) for each in await ledger.read(jobs, newest=10)] == [
        (number, "done", int(NOW) + 60) for number in reversed(numbers)
    ]
    assert len(await ledger.read(jobs, newest=1)) == 1


async def test_a_plan_counts_what_a_resend_would_send_and_changes_nothing(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(4)), NOW)
    first, second, third, _ = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second])
    await ledger.write(expire, ended_before=T0 + 3.5 * HOUR, now=NOW)
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=NOW, now=NOW)
    before = await ledger.read(delivery_counts)

    plan = await ledger.read(plan_resend, EVERYTHING)

    assert plan == (
        ResendCount("mimir", "never queued", 4, 12),
        ResendCount("prom", "acknowledged", 1, 3),
        ResendCount("prom", "expired", 1, 3),
        ResendCount("prom", "pending", 1, 3),
        ResendCount("prom", "refused", 1, 3),
    )
    assert await ledger.read(delivery_counts) == before
    assert third not in await pending_ids(ledger)


async def test_a_resend_makes_pending_exactly_what_its_plan_counted(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], range(3)), NOW)
    await acknowledge_all(ledger)
    wanted = Resend(since=T0 + HOUR, until=T0 + 2 * HOUR)
    plan = await ledger.read(plan_resend, wanted)
    number = await ask(ledger, wanted)
    assert await queue(ledger) == []

    done = await ledger.write(carry_out_next, NOW)

    assert queued_by(done) == plan == (ResendCount("prom", "acknowledged", 2, 6),)
    assert await queue(ledger) == [(1, 1), (2, 1)]
    assert await ledger.read(resent, number) == (ResendCount("prom", "pending", 2, 6),)


async def test_what_became_of_a_resend_is_told(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(3)), NOW)
    await acknowledge_all(ledger)
    number = await ask(ledger, Resend(since=T0, until=T0 + 2 * HOUR))
    await ledger.write(carry_out_next, NOW)
    first, second = await pending_ids(ledger)

    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second])

    assert await ledger.read(resent, number) == (
        ResendCount("prom", "acknowledged", 1, 3),
        ResendCount("prom", "refused", 1, 3),
    )


async def test_a_second_resend_takes_over_what_the_first_had_queued(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    first = await ask(ledger)
    second = await ask(ledger)
    await ledger.write(carry_out_next, NOW)
    await ledger.write(carry_out_next, NOW)

    assert await ledger.read(resent, first) == ()
    assert await ledger.read(resent, second) == (ResendCount("prom", "pending", 2, 6),)


async def test_what_was_refused_or_given_up_is_sent_again(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    first, _ = await pending_ids(ledger)
    await ledger.write(refuse_whole, "prom", [first])
    await ledger.write(expire, ended_before=NOW, now=NOW)

    await resend(ledger, EVERYTHING)

    assert await queue(ledger) == [(1, 0), (1, 1)]


async def test_what_was_refused_in_part_is_sent_again_as_a_whole_and_its_refusals_are_forgotten(
    ledger: Ledger,
) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(2)), NOW)
    for name in ("prom", "mimir"):
        told = [Refusal(number, b"\1\0\0\0", 400, "no") for number in await pending_ids(ledger, name)]
        await ledger.write(refuse, name, told, partly={told[0].bucket_id}, now=NOW)

    await ask(ledger, Resend(since=T0, until=T0 + HOUR, destinations=("prom",)))
    assert await ledger.read(refused_samples) == (RefusedSamples("mimir", 2, 2), RefusedSamples("prom", 2, 2))
    done = await ledger.write(carry_out_next, NOW)

    assert queued_by(done) == (ResendCount("prom", "partial", 1, 3),)
    assert await queue(ledger) == [(1, 0)]
    assert await ledger.read(refused_samples) == (RefusedSamples("mimir", 2, 2), RefusedSamples("prom", 1, 1))
    (kept,) = await ledger.read(refusals, "prom", newest=5)
    assert kept.timestamp_ms == (T0 + HOUR) * 1000


async def test_what_is_sent_again_may_be_refused_again_or_taken(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    first, second = await pending_ids(ledger)
    await ledger.write(refuse_whole, "prom", [first, second])
    await resend(ledger, EVERYTHING)

    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second], reason="still not")

    counts = await ledger.read(delivery_counts)
    assert [(count.state, count.buckets) for count in counts] == [("acknowledged", 1), ("refused", 1)]
    assert [(each.bucket_id, each.reason) for each in await ledger.read(refusals, "prom", newest=5)] == [
        (second, "still not")
    ]


async def test_the_replay_bound_does_not_give_up_what_a_repair_has_just_asked_for(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    await acknowledge_all(ledger)
    await resend(ledger, Resend(since=T0, until=T0 + HOUR))

    # Asked for at NOW, it has as long from then on as a window has from its end.
    assert await ledger.write(expire, ended_before=NOW, now=NOW) == 0
    assert await queue(ledger) == [(1, 0)]
    assert await ledger.write(expire, ended_before=NOW + 1, now=NOW) == 1


async def test_the_replay_bound_gives_up_nothing_of_a_repair_that_is_under_way(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    await acknowledge_all(ledger)
    number = await ask(ledger)
    await ledger.write(lambda session: queue_next(session, still_open(session, number), EVERYTHING))

    assert await ledger.write(expire, ended_before=NOW + 1000 * HOUR, now=NOW) == 0
    assert await queue(ledger) == [(1, 0), (1, 1)]

    await ledger.write(ask_to_cancel, number, NOW)
    assert await ledger.write(expire, ended_before=NOW, now=NOW) == 0
    assert await ledger.write(expire, ended_before=NOW + 1, now=NOW) == 2


async def test_what_waits_in_the_range_of_a_resend_is_counted_whoever_asked_for_it(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], range(3)), NOW)
    first, *_ = await pending_ids(ledger)
    await acknowledge_all(ledger, "prom", [first])

    assert await ledger.read(pending_between, EVERYTHING) == (ResendCount("prom", "pending", 5, 15),)
    one = replace(EVERYTHING, zones=(tag(2),), until=T0 + HOUR)
    assert await ledger.read(pending_between, one) == (ResendCount("prom", "pending", 1, 3),)
    assert await ledger.read(pending_between, replace(EVERYTHING, destinations=("other",))) == ()


async def test_a_zone_is_named_by_its_name_or_by_its_tag(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2, 3], [0]), NOW)
    await acknowledge_all(ledger)
    wanted = Resend(since=T0, until=T0 + HOUR, zones=("zone-1.example", tag(3)))

    assert await ledger.read(plan_resend, wanted) == (ResendCount("prom", "acknowledged", 2, 6),)
    await resend(ledger, wanted)

    assert await queue(ledger) == [(1, 0), (3, 0)]


async def test_a_zone_that_is_gone_or_was_renamed_can_be_sent_again(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], [0]), NOW)
    await acknowledge_all(ledger)
    await ledger.write(record_scopes, [scope(1, name="renamed.example")], NOW)

    await resend(ledger, Resend(since=T0, until=T0 + HOUR, zones=("renamed.example", "zone-2.example")))

    assert await queue(ledger) == [(1, 0), (2, 0)]


async def test_a_dataset_and_a_destination_can_be_picked(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, [bucket(1, 0), bucket(1, 1, dataset="other")], NOW)
    await acknowledge_all(ledger, "prom")
    await acknowledge_all(ledger, "mimir")

    await resend(ledger, Resend(T0, T0 + 10 * HOUR, datasets=(DATASET,), destinations=("mimir",)))

    assert await queue(ledger, "prom") == []
    assert await queue(ledger, "mimir") == [(1, 0)]


async def test_a_destination_that_never_had_the_buckets_gets_them_by_a_resend(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(3)), NOW)
    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=NOW, now=NOW)

    await resend(ledger, EVERYTHING)

    assert await queue(ledger, "mimir") == [(1, 0), (1, 1), (1, 2)]


async def test_a_resend_keeps_the_order_of_each_queue(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=0, now=NOW)
    await ledger.write(capture, minutes([1, 2], range(3)), NOW)
    await acknowledge_all(ledger, "prom")
    await acknowledge_all(ledger, "mimir")

    await resend(ledger, EVERYTHING)

    (prom,), (mimir,) = await whole_queue(ledger, "prom"), await whole_queue(ledger, "mimir")
    assert zones_and_minutes(prom) == [(zone, minute) for zone in (1, 2) for minute in range(3)]
    assert zones_and_minutes(mimir) == [(zone, minute) for minute in range(3) for zone in (1, 2)]


async def test_a_destination_that_is_gone_gets_nothing_by_a_resend(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await acknowledge_all(ledger)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=NOW, now=NOW)

    await resend(ledger, EVERYTHING)

    assert await queue(ledger, "prom") == []
    assert await queue(ledger, "mimir") == [(1, 0)]


async def test_a_resend_of_nothing_is_done(ledger: Ledger) -> None:
    await ask(ledger)

    done = await ledger.write(carry_out_next, NOW)

    assert done is not None
    assert (done.state, queued_by(done)) == ("done", ())


async def test_a_repair_whose_record_is_damaged_is_told(ledger: Ledger) -> None:
    await ask(ledger)
    await ledger.write(
        lambda session: session._connection.execute("UPDATE job SET arguments = replace(arguments, ':', ';')")
    )

    with pytest.raises(LedgerDamagedError, match="JSON"):
        await ledger.write(carry_out_next, NOW)


async def test_a_bucket_without_samples_is_not_sent_again(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0, samples=0)], NOW)

    assert await ledger.read(plan_resend, EVERYTHING) == ()
    await resend(ledger, EVERYTHING)
    assert await ledger.read(delivery_counts) == ()


METRIC = "cloudflare_zone_bytes"


def of_two_metrics(hour: int) -> Bucket:
    """A bucket of one zone with one sample of METRIC and two of another metric."""
    others = bucket(1, hour, samples=2)
    series = (label_block(METRIC, {"zone_id": tag(1)}), *others.series)
    return replace(others, series=series, values=array("d", [float(hour), *others.values]))


async def sent_of(ledger: Ledger) -> list[tuple[int, list[int], list[float]]]:
    """Every pending bucket, with the numbers of the series that are to be sent of it, and their values."""
    pages = await whole_queue(ledger, "prom")
    return [
        (each.bucket_id, array("I", each.series_ids).tolist(), array("d", each.values).tolist())
        for page in pages
        for each in page.batch.buckets
    ]


@pytest.fixture
async def two(ledger: Ledger) -> tuple[int, int]:
    """The numbers of two buckets; their series are 1 (of METRIC), 2 and 3."""
    await ledger.write(capture, [of_two_metrics(0), of_two_metrics(1)], NOW)
    first, second = await pending_ids(ledger)
    return first, second


ONE_METRIC = replace(EVERYTHING, metrics=(METRIC,))


async def test_of_a_metric_only_its_samples_are_sent_again_where_the_rest_is_acknowledged(
    ledger: Ledger, two: tuple[int, int]
) -> None:
    acknowledged, refused = two
    await acknowledge_all(ledger, "prom", [acknowledged])
    await ledger.write(refuse_whole, "prom", [refused])

    await resend(ledger, ONE_METRIC)

    (first, series, values), (second, all_series, _) = await sent_of(ledger)
    assert (first, series, values) == (acknowledged, [1], [0.0])
    assert (second, all_series) == (refused, [1, 2, 3]), "what was never acknowledged has to arrive as a whole"
    assert [backlog.samples for backlog in await ledger.read(backlogs)] == [4]


async def test_what_was_refused_of_a_bucket_goes_along_with_any_part_of_it(
    ledger: Ledger, two: tuple[int, int]
) -> None:
    await acknowledge_all(ledger, "prom", two[1:])
    await ledger.write(refuse, "prom", [Refusal(two[0], b"\3\0\0\0", 400, "no")], partly={two[0]}, now=NOW)

    await resend(ledger, replace(ONE_METRIC, until=T0 + HOUR))

    assert [(number, series) for number, series, _ in await sent_of(ledger)] == [(two[0], [1, 3])]
    assert await ledger.read(refused_samples) == ()


async def test_a_part_that_is_refused_leaves_the_rest_on_record_as_delivered(
    ledger: Ledger, two: tuple[int, int]
) -> None:
    await acknowledge_all(ledger, "prom", two)
    await resend(ledger, replace(ONE_METRIC, until=T0 + HOUR))

    await ledger.write(refuse, "prom", [Refusal(two[0], b"\1\0\0\0", 400, "no")], partly=(), now=NOW)

    assert {count.state for count in await ledger.read(delivery_counts)} == {"acknowledged", "partial"}


async def test_a_metric_that_a_bucket_does_not_have_leaves_it_alone(ledger: Ledger, two: tuple[int, int]) -> None:
    await acknowledge_all(ledger, "prom", two)

    await resend(ledger, replace(EVERYTHING, metrics=("no_such_metric",)))

    assert await pending_ids(ledger) == []


async def test_a_part_that_is_asked_for_again_as_a_whole_is_sent_as_a_whole(
    ledger: Ledger, two: tuple[int, int]
) -> None:
    await acknowledge_all(ledger, "prom", two)
    await resend(ledger, ONE_METRIC)
    assert [series for _, series, _ in await sent_of(ledger)] == [[1], [1]]
    await acknowledge_all(ledger, "prom", two)

    await resend(ledger, EVERYTHING)

    assert [series for _, series, _ in await sent_of(ledger)] == [[1, 2, 3], [1, 2, 3]]
    assert [backlog.samples for backlog in await ledger.read(backlogs)] == [6]


@pytest.mark.parametrize("damaged", [b"\11\0\0\0", b"\1\0\0\0\11\0\0\0"], ids=["all of it", "some of it"])
async def test_a_part_whose_row_is_damaged_is_sent_as_a_whole(
    ledger: Ledger, two: tuple[int, int], damaged: bytes
) -> None:
    await acknowledge_all(ledger, "prom", two)
    await resend(ledger, ONE_METRIC)

    await ledger.write(lambda session: session._connection.execute("UPDATE part SET series_ids = ?", (damaged,)))

    assert [series for _, series, _ in await sent_of(ledger)] == [[1, 2, 3], [1, 2, 3]]


async def test_buckets_older_than_a_moment_are_counted(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], range(4)), NOW)

    assert await ledger.read(stamped_before, EVERYTHING, T0 + 2 * HOUR) == 4
    assert await ledger.read(stamped_before, replace(EVERYTHING, zones=(tag(1),)), T0 + 2 * HOUR) == 2


async def test_the_reasons_of_what_was_not_delivered_are_told_the_most_frequent_first(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(4)), NOW)
    await acknowledge_all(ledger)
    number = await ask(ledger)
    await ledger.write(carry_out_next, NOW)
    first, *others = await pending_ids(ledger)
    await ledger.write(refuse_whole, "prom", others, status=400, reason="too old")
    await ledger.write(refuse_whole, "prom", [first], status=422, reason="too long")

    assert [(each.buckets, each.reason) for each in await ledger.read(not_delivered, number)] == [
        (3, "too old"),
        (1, "too long"),
    ]
    assert await ledger.read(pending_of_job, number) == 0


async def test_the_answer_to_a_part_does_not_decide_on_a_whole_that_was_asked_for_since(
    ledger: Ledger, two: tuple[int, int]
) -> None:
    await acknowledge_all(ledger, "prom", two)
    await resend(ledger, ONE_METRIC)
    (page, *_) = await whole_queue(ledger, "prom")
    sent = Tally(page.batch).parts
    assert sent == dict.fromkeys(two, 1)
    await resend(ledger, EVERYTHING)

    await ledger.write(acknowledge, "prom", two[:1], NOW, parts=sent)
    refusal = Refusal(two[1], b"\1\0\0\0", 400, "no")
    await ledger.write(refuse, "prom", [refusal], partly=(), parts=sent, now=NOW)

    assert await ledger.read(refused_samples) == ()
    assert set(await pending_ids(ledger)) == set(two), "two samples of each are not there yet"
    await ledger.write(acknowledge, "prom", two, NOW)
    assert await pending_ids(ledger) == []
