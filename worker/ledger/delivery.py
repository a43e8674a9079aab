"""Verbs of delivery: what is pending at a destination, and what became of it.

A bucket leaves `pending` only here: by an acknowledgement, by a refusal with what the receiver said, by the
replay bound, or because its content is damaged. It comes back only by a repair (`worker.ledger.resend`).
"""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from worker.buckets import Batch, StoredBucket
from worker.ledger.packing import SERIES_ID_TYPE, is_intact, samples_of
from worker.ledger.session import Session
from worker.times import span

# How long the stretch is in which all windows of one scope follow each other in the queue of a destination that takes
# them in any order. With tens of samples of a series in a row a receiver is several times as fast as with one. 32
# one-minute windows stay within the hour below its newest sample that Prometheus files in order, at a quarter of the
# cost of what it files out of order. A wider window is a segment of its own: there are few of them.
_SEGMENT_SECONDS = 32 * 60

# Past every segment, and later than every window: an end that bounds nothing.
_NEVER = 2**62

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
class Stretch:
    """A part of a destination's queue by age: segments that start in [from_segment, before_segment), unix seconds."""

    from_segment: int = -_NEVER
    before_segment: int = _NEVER


WHOLE_QUEUE = Stretch()
"""From the oldest bucket to the newest."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a destination's queue: everything up to and with it was handed out."""

    segment: int
    scope_id: int
    start: int
    bucket_id: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Samples of one bucket that a receiver will not take.

    series_ids: of the samples, 4 bytes each, unsigned, little-endian.
    status:     the HTTP status; None where no answer came.
    reason:     what the receiver said to them.
    """

    bucket_id: int
    series_ids: bytes
    status: int | None
    reason: str

    @property
    def sample_count(self) -> int:
        """How many samples it names."""
        return len(self.series_ids) // 4


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
    known = {
        name: (number, segment_seconds, gone_at)
        for number, name, segment_seconds, gone_at in session.rows("all_destinations")
    }
    for name, (number, _, gone_at) in known.items():
        if name not in strict_by_name and gone_at is None:
            session.change("destination_gone", id=number, now=int(now))
    for name, strict in strict_by_name.items():
        segment_seconds = 1 if strict else _SEGMENT_SECONDS
        number = session.number("record_destination", name=name, segment_seconds=segment_seconds)
        _, segment_seconds_before, gone_at = known.get(name, (number, segment_seconds, 0))
        if segment_seconds_before != segment_seconds:
            session.change("reorder_queue", destination_id=number, segment_seconds=segment_seconds)
        if gone_at is not None:
            session.change("enqueue_ended_since", destination_id=number, since=int(replay_since))


def next_pending(
    session: Session,
    destination: str,
    *,
    after: Position | None,
    max_samples: int,
    one_window_per_series: bool,
    lane: Lane = ONE_LANE,
    stretch: Stretch = WHOLE_QUEUE,
    without: Collection[int] = (),
    waited_for_since: float | None = None,
) -> Pending | None:
    """The buckets that come next in a stretch of a lane of the queue behind `after`; None at its end.

    At least one, and otherwise at most `max_samples` together. With `one_window_per_series` no two windows of one
    dataset and scope are in a batch, so that a request that is sent again after a lost answer repeats only the newest
    sample of each series, which a strict receiver accepts.

    without:          ids of buckets that are passed over.
    waited_for_since: unix seconds. A window that ended after it, whose last attempt to be captured failed, holds back
                      all later windows of its dataset and scope. None: nothing is held back.
    """
    place = after or Position(segment=-_NEVER, scope_id=0, start=0, bucket_id=0)
    if place.segment < stretch.from_segment:
        place = Position(stretch.from_segment, scope_id=0, start=-_NEVER, bucket_id=0)
    buckets: list[StoredBucket] = []
    damaged: list[int] = []
    series: dict[int, bytes] = {}
    layouts: set[bytes] = set()  # those whose series are all in it
    windowed: set[tuple[int, int]] = set()
    samples = 0
    last_found_at: Sequence[int] = ()
    for (
        *found_at,
        dataset_id,
        scope_id,
        width_seconds,
        start,
        timestamp_ms,
        series_ids,
        values,
        seal,
        part,
    ) in session.rows(
        "pending",
        destination=destination,
        lane=lane.number,
        lanes=lane.of,
        segment=place.segment,
        scope_id=place.scope_id,
        start=place.start,
        bucket_id=place.bucket_id,
        before_segment=stretch.before_segment,
        without=_json(without) if without else None,
        waited_for_since=None if waited_for_since is None else int(waited_for_since),
    ):
        intact = is_intact(
            seal,
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        )
        if intact and buckets:
            if samples + len(values) // 8 > max_samples:
                break
            if one_window_per_series and (scope_id, dataset_id) in windowed:
                break
        last_found_at = found_at
        if intact and series_ids not in layouts:
            blocks = session.series.blocks(set(array(SERIES_ID_TYPE, series_ids)).difference(series))
            if blocks is None:
                intact = False
            else:
                series |= blocks
                layouts.add(series_ids)
        if not intact:
            damaged.append(found_at[-1])
            continue
        windowed.add((scope_id, dataset_id))
        samples += len(values) // 8
        sent = (series_ids, values) if part is None else _narrowed(series_ids, values, part)
        buckets.append(StoredBucket(found_at[-1], timestamp_ms, sent[0], sent[1], is_part=part is not None))
    if not buckets and not damaged:
        return None
    return Pending(Batch(tuple(buckets), series), Position(*last_found_at), tuple(damaged))


def _narrowed(series_ids: bytes, values: bytes, part: bytes) -> tuple[bytes, bytes]:
    """Of a bucket's samples those of the series in `part`, all packed."""
    narrowed = samples_of(series_ids, values, set(array(SERIES_ID_TYPE, part)))
    # Where the row of the part is damaged: all of it is never wrong, and less would be asked for again for ever.
    return narrowed if len(narrowed[0]) == len(part) else (series_ids, values)


def still_pending(session: Session, destination: str, bucket_ids: Sequence[int]) -> bool:
    """Whether all of these buckets wait to be delivered: none was given up, or decided on, meanwhile."""
    waiting = session.number(
        "count_pending", destination_id=_destination_number(session, destination), bucket_ids=_json(bucket_ids)
    )
    return waiting == len(set(bucket_ids))


def acknowledge(
    session: Session,
    destination: str,
    bucket_ids: Sequence[int],
    now: float,
    *,
    any_taken: bool = True,
    parts: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """The receiver has answered 2xx to all samples of these buckets, or to all that were to be sent.

    What it had refused stays refused until a repair asks for it again; what was given up meanwhile is acknowledged.

    parts: of the buckets that were sent in part, how many samples that were. One of which more is pending by now stays
           so.
    """
    number = _destination_number(session, destination)
    session.change(
        "acknowledge",
        destination_id=number,
        bucket_ids=_json(bucket_ids),
        parts=_sample_counts(parts, bucket_ids),
        now=int(now),
    )
    if any_taken:
        session.change("destination_succeeded", destination_id=number, now=int(now))


def note_failure(session: Session, destination: str, reason: str, now: float) -> None:
    """Keep what a destination, or the way to it, answered instead of taking a request; the newest replaces the rest."""
    session.change("destination_failed", name=destination, reason=reason[:_MAX_REASON_CHARACTERS], now=int(now))


def refuse(
    session: Session,
    destination: str,
    refusals: Sequence[Refusal],
    *,
    partly: Collection[int],
    now: float,
    parts: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """The receiver will never take these samples; all others of their buckets are decided on, too.

    What was acknowledged before stays acknowledged, and keeps no refusal.

    partly: ids of the buckets of which it has acknowledged at least one sample.
    parts:  as of `acknowledge`; of what stays pending, nothing is recorded as refused.
    """
    number = _destination_number(session, destination)
    newest = {refusal.bucket_id: refusal for refusal in refusals}
    # Of what is sent in part it has the rest.
    has_some = {
        *partly,
        *(row[0] for row in session.rows("parts_among", destination_id=number, bucket_ids=_json(newest))),
    }
    for refusal in newest.values():
        state = "partial" if refusal.bucket_id in has_some else "refused"
        _decide(
            session,
            destination,
            [refusal.bucket_id],
            state=state,
            status=refusal.status,
            reason=refusal.reason,
            now=now,
            parts=parts,
        )
    for refusal in refusals:
        session.change(
            "record_refusal",
            destination_id=number,
            bucket_id=refusal.bucket_id,
            series_ids=refusal.series_ids,
            status=refusal.status,
            reason=refusal.reason[:_MAX_REASON_CHARACTERS],
            now=int(now),
        )
    if partly:
        session.change("destination_succeeded", destination_id=number, now=int(now))


def set_aside(session: Session, destination: str, bucket_ids: Sequence[int], now: float) -> None:
    """What these buckets hold is not what was captured: never sent, kept for whoever looks into it."""
    reason = "its content, or the row of one of its series, does not match its checksum"
    _decide(session, destination, bucket_ids, state="damaged", status=None, reason=reason, now=now)


def expire_too_old(
    session: Session, destination: str, *, stamped_before: float, window_seconds: float, now: float
) -> int:
    """Give up what is older than the receiver takes, instead of sending it in vain; return how many buckets.

    stamped_before: unix seconds; what counts is the timestamp of the samples, not the window's end.
    window_seconds: how old they may be, for the reason that is kept.
    """
    return session.change(
        "expire_too_old",
        destination_id=_destination_number(session, destination),
        stamped_before=int(stamped_before),
        reason=f"older than {span(window_seconds)}, which is all that the receiver takes (out_of_order_time_window, or "
        "sample_age_limit), so it was not sent: raise that on the receiver and here, then `cfrw resend --since`",
        now=int(now),
    )


def expire(session: Session, *, ended_before: float, now: float) -> int:
    """Give up what is pending since before the replay bound; return how many.

    What a repair asked for waits as long as that is under way. Where it was cancelled, or ended without a decision on
    all that it had queued, it has as long from then on, when it was asked for, as a window has from its end.
    """
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
    parts: Mapping[int, int] = MappingProxyType({}),
) -> None:
    session.change(
        "decide_against",
        destination_id=_destination_number(session, destination),
        bucket_ids=_json(bucket_ids),
        state=state,
        status=status,
        reason=reason[:_MAX_REASON_CHARACTERS],
        parts=_sample_counts(parts, bucket_ids),
        now=int(now),
    )


def _sample_counts(parts: Mapping[int, int], bucket_ids: Iterable[int]) -> str:
    return msgspec.json.encode({str(number): parts[number] for number in bucket_ids if number in parts}).decode()


def _json(bucket_ids: Iterable[int]) -> str:
    return msgspec.json.encode(list(bucket_ids)).decode()


def _destination_number(session: Session, name: str) -> int:
    number = session.number_of("destination_id", name)
    if not number:
        message = f"there is no destination {name!r}: it has to be registered first"
        raise LookupError(message)
    return number
