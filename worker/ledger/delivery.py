"""Verbs of delivery: what is pending at a destination, and what became of it.

A bucket leaves `pending` only here: by an acknowledgement, by a refusal with what the receiver said, by the
replay bound, or because its content is damaged. It comes back only by a repair (`worker.ledger.repairs`).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from worker.buckets import Batch, StoredBucket
from worker.ledger.capture import segment_start
from worker.ledger.packing import SERIES_ID_TYPE, checksum
from worker.ledger.session import Session

# The receiver's own words, for a person; a page of them is not more helpful.
_MAX_REASON_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Lane:
    """One of several parts of a destination's queue that may be delivered side by side.

    All buckets of a scope, and so all samples of a series, are in the same lane: within a lane their order is kept.
    """

    number: int
    of: int


ONE_LANE = Lane(0, 1)
"""The whole queue, one after the other."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a destination's queue: everything up to and with it was handed out."""

    segment: int
    scope_id: int
    start: int
    bucket_id: int


@dataclass(frozen=True, slots=True)
class Pending:
    """The next buckets of a destination's queue.

    batch:    what is to be sent.
    position: where the queue goes on behind it.
    damaged:  ids of buckets that cannot be sent, to be given to `set_aside`.
    """

    batch: Batch
    position: Position
    damaged: tuple[int, ...]


def register_destinations(
    session: Session, strict_by_name: dict[str, bool], *, replay_since: float, now: float
) -> None:
    """Make the ledger know exactly these destinations.

    A new one, or one that comes back, gets every captured bucket whose window ended at or after `replay_since`. One
    that is not named any more keeps its history and gets nothing new. `strict` destinations take no sample that is
    older than the newest of its series.
    """
    known = {name: (number, bool(strict), gone) for number, name, strict, gone in session.rows("all_destinations")}
    for name, (number, _, gone) in known.items():
        if name not in strict_by_name and gone is None:
            session.change("destination_gone", id=number, now=int(now))
    for name, strict in strict_by_name.items():
        number, was_strict, gone = known.get(name, (None, strict, 0))
        number = session.number("record_destination", name=name, strict=int(strict))
        if was_strict != strict:
            _reorder(session, number, strict=strict)
        if gone is not None:
            _enqueue_since(session, number, strict=strict, since=int(replay_since))


def next_pending(
    session: Session,
    destination: str,
    *,
    after: Position | None,
    max_samples: int,
    one_window_per_series: bool,
    lane: Lane = ONE_LANE,
) -> Pending | None:
    """The buckets that come next in a lane of the queue behind `after`; None at its end.

    At least one, and otherwise at most `max_samples` together. With `one_window_per_series` no two windows of one
    dataset and scope are in a batch, so that a request that is sent again after a lost answer repeats only the newest
    sample of each series, which a strict receiver accepts.
    """
    place = after or Position(segment=-(2**62), scope_id=0, start=0, bucket_id=0)
    buckets: list[StoredBucket] = []
    damaged: list[int] = []
    windowed: set[tuple[int, int]] = set()
    samples = 0
    for row in session.rows(
        "pending",
        destination=destination,
        lane=lane.number,
        lanes=lane.of,
        segment=place.segment,
        scope_id=place.scope_id,
        start=place.start,
        bucket_id=place.bucket_id,
    ):
        segment, bucket_id, dataset_id, scope_id, width_seconds, start, timestamp_ms, series_ids, values, seal = row
        if one_window_per_series and (scope_id, dataset_id) in windowed:
            break
        count = len(values) // 8
        if buckets and samples + count > max_samples:
            break
        place = Position(segment=segment, scope_id=scope_id, start=start, bucket_id=bucket_id)
        expected = checksum(
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        )
        if seal != expected or len(series_ids) * 2 != len(values):
            damaged.append(bucket_id)
            continue
        windowed.add((scope_id, dataset_id))
        samples += count
        buckets.append(StoredBucket(bucket_id, timestamp_ms, series_ids, values))
    if not buckets and not damaged:
        return None
    series: set[int] = set()
    for layout in {bucket.series_ids for bucket in buckets}:
        series.update(array(SERIES_ID_TYPE, layout))
    return Pending(Batch(tuple(buckets), session.series.blocks(series)), place, tuple(damaged))


def acknowledge(session: Session, destination: str, bucket_ids: Sequence[int], now: float) -> None:
    """The receiver answered 2xx to a request that held all samples of these buckets."""
    destination_id = session.number("destination_id", name=destination)
    session.many(
        "acknowledge",
        [{"destination_id": destination_id, "bucket_id": bucket_id, "now": int(now)} for bucket_id in bucket_ids],
    )


def refuse(
    session: Session, destination: str, bucket_ids: Sequence[int], *, status: int, reason: str, now: float
) -> None:
    """The receiver answered that it will never take these buckets as they are."""
    _decide(session, destination, bucket_ids, state="refused", status=status, reason=reason, now=now)


def set_aside(session: Session, destination: str, bucket_ids: Sequence[int], now: float) -> None:
    """The content of these buckets does not match their checksum: never sent, kept for whoever looks into it."""
    reason = "the content does not match its checksum"
    _decide(session, destination, bucket_ids, state="damaged", status=None, reason=reason, now=now)


def expire(session: Session, *, ended_before: float, now: float) -> int:
    """Give up what is pending since before the replay bound, unless a repair asked for it; return how many."""
    return session.change(
        "expire",
        ended_before=int(ended_before),
        reason="older than CF_REPLAY_HOURS before it could be delivered; `cfrw resend --since` sends it again",
        now=int(now),
    )


def _decide(
    session: Session,
    destination: str,
    bucket_ids: Sequence[int],
    *,
    state: str,
    status: int | None,
    reason: str,
    now: float,
) -> None:
    destination_id = session.number("destination_id", name=destination)
    session.many(
        "decide_against",
        [
            {
                "destination_id": destination_id,
                "bucket_id": bucket_id,
                "state": state,
                "status": status,
                "reason": reason[:_MAX_REASON_CHARACTERS],
                "now": int(now),
            }
            for bucket_id in bucket_ids
        ],
    )


def _reorder(session: Session, destination_id: int, *, strict: bool) -> None:
    """The queue's order depends on whether the destination is strict; give what is pending its new place."""
    session.many(
        "move_in_queue",
        [
            {
                "destination_id": destination_id,
                "bucket_id": bucket_id,
                "segment": segment_start(start, window_end - start, strict=strict),
            }
            for bucket_id, start, window_end in list(session.rows("queue_places", destination_id=destination_id))
        ],
    )


def _enqueue_since(session: Session, destination_id: int, *, strict: bool, since: int) -> None:
    rows = list(session.rows("buckets_ended_since", since=since))
    session.many(
        "enqueue",
        [
            {
                "bucket_id": bucket_id,
                "destination_id": destination_id,
                "segment": segment_start(start, width_seconds, strict=strict),
                "scope_id": scope_id,
                "start": start,
                "window_end": start + width_seconds,
                "sample_count": sample_count,
            }
            for bucket_id, scope_id, width_seconds, start, sample_count in rows
        ],
    )
