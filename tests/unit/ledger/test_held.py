import random
from array import array
from collections import Counter

import pytest

from tests.unit.ledger.fleet import (
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    bucket,
    buckets,
    pending_ids,
    refuse_whole,
    scope,
    tag,
)
from worker.ledger import (
    JobState,
    Ledger,
    Place,
    ReadBucket,
    Refusal,
    Resend,
    ResendCount,
    ResendResult,
    acknowledge,
    ask,
    capture,
    delivery_counts,
    finish,
    job,
    next_pending,
    next_piece,
    queue_missing,
    record_scopes,
    refusals,
    refuse,
    register_destinations,
)
from worker.ledger.held import Piece

ALL = {"since": T0, "until": T0 + 100 * HOUR}


async def walk(ledger: Ledger, most_samples: int, **more: object) -> list[Piece]:
    pieces: list[Piece] = []
    place: Place | None = None
    while not pieces or place is not None:
        bounds = {**ALL, **more}
        piece = await ledger.read(next_piece, "prom", **bounds, place=place, most_samples=most_samples)  # type: ignore[arg-type]
        assert piece.place != place or place is None
        pieces.append(piece)
        place = piece.place
    return pieces


@pytest.mark.parametrize("most_samples", [1, 5, 7, 8, 9, 12, 13, 15, 18, 20, 10_000])
async def test_a_walk_comes_by_every_bucket_once_in_rectangles(ledger: Ledger, most_samples: int) -> None:
    numbers = random.Random(most_samples)
    captured = [
        bucket(zone, hour, samples=numbers.randint(1, 4), dataset=dataset)
        for dataset in ("one", "two")
        for zone in (1, 2, 3)
        for hour in range(numbers.randint(0, 9))
    ]
    captured += [bucket(1, hour, samples=2, width_seconds=300, dataset="one") for hour in range(3)]
    numbers.shuffle(captured)
    await ledger.write(capture, captured, NOW)
    place_of = {number: (each.dataset, each.scope, each.window.start) for number, each in enumerate(captured, start=1)}

    pieces = await walk(ledger, most_samples)

    seen = Counter(held.bucket.bucket_id for piece in pieces for held in piece.held)
    assert len(seen) == len(captured)
    assert set(seen.values()) == {1}
    whole = {(each.dataset, each.scope, each.window.start) for each in captured}
    for piece in pieces:
        places = {place_of[held.bucket.bucket_id] for held in piece.held}
        starts = [start for _, _, start in places]
        between = range(T0, T0 + 9 * HOUR) if len({scope for _, scope, _ in places}) > 1 else range(0)
        # Whatever is captured of the same dataset and scopes in the same time is in the piece.
        assert places == {
            (dataset, scope, start)
            for dataset, scope, start in whole
            if (dataset, scope) in {(one, other) for one, other, _ in places}
            and (start in between or min(starts) <= start <= max(starts))
        }
        before_the_last = [held for held in piece.held if place_of[held.bucket.bucket_id][2] < max(starts)]
        assert sum(held.bucket.sample_count for held in before_the_last) <= most_samples
    if most_samples == 10_000:
        assert len(pieces) == 2


async def test_a_walk_keeps_to_what_is_asked_for(ledger: Ledger) -> None:
    await ledger.write(capture, [*buckets([1, 2], range(6)), bucket(1, 3, dataset="other")], NOW)

    (piece, *_) = await walk(
        ledger,
        1000,
        since=T0 + HOUR,
        until=T0 + 3 * HOUR,
        zones=("zone-1.example", tag(3)),
        datasets=("http_requests",),
    )

    assert {(held.scope, held.bucket.timestamp_ms // 1000 - T0) for held in piece.held} == {
        ("zone-1.example", HOUR),
        ("zone-1.example", 2 * HOUR),
    }


async def test_what_is_on_record_of_each_bucket_is_told(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(4)), NOW)
    first, second, third, _ = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second])
    part = Refusal(third, array("I", [2]).tobytes(), 400, "no")
    await ledger.write(refuse, "prom", [part], partly={third}, now=NOW + 1)

    (piece,) = await walk(ledger, 1000)

    assert [(held.state, held.decided_at, len(held.refused), held.has_some) for held in piece.held] == [
        ("acknowledged", NOW, 0, True),
        ("refused", NOW, 3, False),
        ("partial", NOW + 1, 1, True),
        ("pending", None, 0, False),
    ]
    await ledger.write(register_destinations, {"new": False}, replay_since=NOW, now=NOW)
    never = await ledger.read(next_piece, "new", since=T0, until=T0 + HOUR, most_samples=10)
    assert [held.state for held in never.held] == ["never queued"]


async def test_a_damaged_bucket_is_counted_and_says_nothing(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    damage = "UPDATE bucket SET sample_values = zeroblob(24) WHERE id = 1"
    await ledger.write(lambda session: session._connection.execute(damage).fetchall())

    (piece,) = await walk(ledger, 1000)

    assert piece.damaged == 1
    assert len(piece.held) == 1


async def ask_for_missing(ledger: Ledger) -> int:
    return await ledger.write(ask, Resend(T0, T0 + 9 * HOUR, only_missing=True), reason="", asked_by="", now=NOW)


async def test_what_was_read_back_needs_no_sending_whatever_the_ledger_said(ledger: Ledger) -> None:
    await ledger.write(record_scopes, [scope(1)], NOW)
    await ledger.write(capture, buckets([1], range(5)), NOW)
    first, second, third, fourth, fifth = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", [first], NOW)
    await ledger.write(refuse_whole, "prom", [second, third])
    await ledger.write(refuse_whole, "prom", [fourth])
    number = await ask_for_missing(ledger)
    found = await ledger.read(job, number)
    assert found is not None
    two = array("I", [1, 3]).tobytes()
    read = [
        ReadBucket(first, "acknowledged", b"", 3, is_there=True),
        ReadBucket(second, "refused", b"", 3, is_there=True),
        ReadBucket(third, "refused", two, 1, is_there=False),
        # Somebody else has decided on it since.
        ReadBucket(fourth, "expired", two, 1, is_there=False),
        ReadBucket(fifth, "pending", b"", 0, is_there=False),
    ]
    await ledger.write(
        queue_missing, found, "prom", read, [ResendCount("prom", "different", 0, 1)], after=(1, 2, 3, 4), now=NOW + 9
    )

    pending = await ledger.read(next_pending, "prom", after=None, max_samples=100, one_window_per_series=False)
    assert pending is not None
    assert {stored.bucket_id: stored.sample_count for stored in pending.batch.buckets} == {third: 2, fifth: 3}
    states = {count.state: count.buckets for count in await ledger.read(delivery_counts)}
    assert states == {"acknowledged": 2, "pending": 2, "refused": 1}
    assert {each.timestamp_ms for each in await ledger.read(refusals, "prom", newest=9)} == {(T0 + 3 * HOUR) * 1000}
    after = await ledger.read(job, number)
    assert after is not None
    assert after.progress.after == (1, 2, 3, 4)
    assert after.result == ResendResult(
        queued=(ResendCount("prom", "refused", 1, 2),),
        read_back=(ResendCount("prom", "already there", 2, 7), ResendCount("prom", "different", 0, 1)),
    )

    # The part that was sent, and what was read back, are all of it.
    await acknowledge_all(ledger)
    await ledger.write(finish, number, JobState.DONE, after.result, NOW)
    states = {count.state: count.buckets for count in await ledger.read(delivery_counts)}
    assert states == {"acknowledged": 4, "refused": 1}
