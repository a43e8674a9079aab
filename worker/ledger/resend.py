"""Verbs of sending again: which captured buckets a repair concerns, and making them pending, some at a time.

A bucket that a destination has acknowledged, in part at least, may be sent in part; one that it never had is sent as a
whole, for what is acknowledged in the end has to be all of it. What was read back counts like an acknowledgement: a
receiver that shows a sample has it, whatever it answered when that was sent.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from worker.ledger.jobs import Job, Progress, Resend, ResendCount, ResendResult, Undelivered, keep_progress
from worker.ledger.packing import SERIES_ID_TYPE
from worker.ledger.session import Session, Value
from worker.series import metric_name

# Buckets that are looked at in one transaction. Their rows lie a page or two apart: 20 to 50 ms in which nothing else
# gets at the ledger. With a hundred samples each they are what four lanes deliver in a fifth of a second.
STEP_BUCKETS = 2_000

# One cause has one text; more than these nobody reads.
_MOST_REASONS = 10

_UNPROVEN = "read back: another value is there, or it cannot be sent under the labels that it gets"

_HAS_SOME = frozenset({"acknowledged", "partial"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A captured bucket at one destination.

    state: of its delivery; `never queued` where it was never to get there.
    """

    bucket_id: int
    destination_id: int
    destination: str
    state: str
    samples: int


@dataclass(frozen=True, slots=True)
class ReadBucket:
    """What was found of a bucket when it was read back.

    state:    of its delivery when it was.
    missing:  the series (packed) that are to be sent.
    there:    how many samples are there.
    is_there: whether all of it is.
    unproven: the series (packed) that are neither, and that the destination is not on record as having.
    """

    bucket_id: int
    state: str
    missing: bytes
    there: int
    is_there: bool
    unproven: bytes = b""


def plan_resend(session: Session, resend: Resend) -> tuple[ResendCount, ...]:
    """What a resend would touch, whatever the metrics; buckets that a destination never had are `never queued`."""
    return tuple(ResendCount(*row) for row in session.rows("resend_plan", **_bindings(resend)))


def newest_acknowledged(session: Session, destination: str, *, since: float) -> Resend | None:
    """A resend of one bucket: the newest that a destination has acknowledged, of windows from `since` on, unix seconds.

    None where there is no such bucket.
    """
    for dataset, tag, start in session.rows("newest_acknowledged", destination=destination, since=int(since)):
        return Resend(start, start + 1, zones=(tag,), datasets=(dataset,), destinations=(destination,))
    return None


def stamped_before(session: Session, resend: Resend, moment: float) -> int:
    """How many captured buckets of a resend carry a timestamp older than this, unix seconds."""
    bindings = _bindings(replace(resend, destinations=()))
    del bindings["destinations"]
    return session.number("resend_stamped_before", **bindings, stamped_before_ms=int(moment * 1000))


def resent(session: Session, job_id: int) -> tuple[ResendCount, ...]:
    """What has become of the buckets that a repair made pending; those that a later one took over are its own."""
    return tuple(ResendCount(*row) for row in session.rows("resent", job_id=job_id))


def pending_between(session: Session, resend: Resend) -> tuple[ResendCount, ...]:
    """What of a resend's range waits to be delivered, whoever asked for that."""
    return tuple(ResendCount(*row) for row in session.rows("pending_between", **_bindings(resend)))


def pending_of_job(session: Session, job_id: int) -> int:
    """How many deliveries that a repair asked for are not decided yet."""
    return session.number("pending_of_job", job_id=job_id)


def not_delivered(session: Session, job_id: int) -> tuple[Undelivered, ...]:
    """Why deliveries that a repair asked for were decided against; the most frequent reasons first."""
    return tuple(Undelivered(*row) for row in session.rows("not_delivered_of_job", job_id=job_id, most=_MOST_REASONS))


def queue_next(session: Session, job: Job, resend: Resend, *, most: int = STEP_BUCKETS) -> bool:
    """Make the next buckets of a resend pending and write down how far it is; whether that were the last ones.

    One transaction: whoever goes on after a kill begins where the record says.
    """
    chosen, after, is_last = _next_buckets(session, job, resend, most)
    parts = _of_metrics(session, chosen, resend.metrics) if resend.metrics else None
    wanted = [bucket_id for bucket_id in chosen if parts is None or bucket_id in parts]
    before = send_again(session, job.job_id, wanted, resend.destinations, parts=parts)
    done = job.progress.done + sum(count.buckets for count in before)
    progress = Progress(done, done if is_last else max(done, job.progress.total), after)
    result = job.result if isinstance(job.result, ResendResult) else ResendResult()
    keep_progress(session, job.job_id, progress, replace(result, queued=summed([*result.queued, *before])))
    return is_last


def queue_missing(
    session: Session,
    job: Job,
    destination: str,
    read: Sequence[ReadBucket],
    further: Iterable[ResendCount],
    *,
    after: tuple[int, ...],
    now: float,
) -> None:
    """Make pending what a destination lacks, and write down how far the repair is.

    What is all there is acknowledged from now on, if it was not before: status and plans then say what is so, and the
    next repair has nothing to do. A bucket whose state is not what it was when it was read is left alone. What is
    neither there nor sent is on record as refused, so that the bucket is `partial` in the end.

    further: what else was found, to be told with the result.
    after:   where the repair goes on.
    """
    candidates = [
        Candidate(*row)
        for row in session.rows(
            "candidates", bucket_ids=_json([each.bucket_id for each in read]), destinations=_json([destination])
        )
    ]
    states = {each.bucket_id: each.state for each in candidates}
    read = [each for each in read if states.get(each.bucket_id) == each.state]
    parts = {each.bucket_id: each.missing for each in read if each.missing}
    unproven = {each.bucket_id: each.unproven for each in read if each.missing and each.unproven}
    kept = _refusals_to_keep(session, [each for each in candidates if each.bucket_id in unproven], unproven, now)
    send_again(session, job.job_id, parts, [destination], parts=parts, was_read_back=True)
    session.many("keep_refusal", kept)
    proven = {each.bucket_id for each in read if each.is_there and each.state != "acknowledged"}
    pairs = _json([(each.bucket_id, each.destination_id) for each in candidates if each.bucket_id in proven])
    session.change("record_read_back", pairs=pairs, now=int(now), reason="read back: all of its samples are there")
    session.change("forget_refusals", pairs=pairs)
    session.change("forget_parts", pairs=pairs)
    queued = [ResendCount(destination, each.state, 1, len(each.missing) // 4) for each in read if each.missing]
    there = [ResendCount(destination, "already there", int(each.is_there), each.there) for each in read if each.there]
    done = job.progress.done + len(read)
    result = job.result if isinstance(job.result, ResendResult) else ResendResult()
    result = replace(
        result, queued=summed([*result.queued, *queued]), read_back=summed([*result.read_back, *there, *further])
    )
    keep_progress(session, job.job_id, Progress(done, max(done, job.progress.total), after), result)


def _refusals_to_keep(
    session: Session, candidates: Sequence[Candidate], unproven: Mapping[int, bytes], now: float
) -> list[dict[str, Value]]:
    """The rows of what stays refused, for what is sent beside it is not all of a bucket."""
    left = {number: set(array(SERIES_ID_TYPE, series_ids)) for number, series_ids in unproven.items()}
    pairs = _json([(each.bucket_id, each.destination_id) for each in candidates])
    rows = [
        *session.rows("refused_of", pairs=pairs),
        *(
            (each.bucket_id, each.destination_id, unproven[each.bucket_id], None, _UNPROVEN, int(now))
            for each in candidates
        ),
    ]
    kept: list[dict[str, Value]] = []
    for bucket_id, destination_id, series_ids, status, reason, refused_at in rows:
        numbers = array(SERIES_ID_TYPE, filter(left[bucket_id].__contains__, array(SERIES_ID_TYPE, series_ids)))
        left[bucket_id].difference_update(numbers)
        if numbers:
            kept.append(
                {
                    "bucket_id": bucket_id,
                    "destination_id": destination_id,
                    "series_ids": numbers.tobytes(),
                    "status": status,
                    "reason": reason,
                    "refused_at": refused_at,
                }
            )
    return kept


def _next_buckets(
    session: Session, job: Job, resend: Resend, most: int
) -> tuple[dict[int, bytes], tuple[int, int], bool]:
    """Of the next `most` buckets those that are meant, with their series (packed) where metrics are picked."""
    start, bucket_id = job.progress.after or (resend.since, 0)
    zones = {row[0] for row in session.rows("scopes_named", names=_json(resend.zones))}
    datasets = {row[0] for row in session.rows("datasets_named", names=_json(resend.datasets))}
    seen = 0
    chosen: dict[int, bytes] = {}
    for number, begin, scope_id, dataset_id, series_ids in session.rows(
        "captured_from",
        start=start,
        bucket_id=bucket_id,
        until=resend.until,
        most=most,
        with_series=int(bool(resend.metrics)),
    ):
        seen, start, bucket_id = seen + 1, begin, number
        if (not resend.zones or scope_id in zones) and (not resend.datasets or dataset_id in datasets):
            chosen[number] = series_ids or b""
    is_last = seen < most
    return chosen, (resend.until, 0) if is_last else (start, bucket_id), is_last


def _of_metrics(session: Session, series_of: Mapping[int, bytes], metrics: Collection[str]) -> dict[int, bytes]:
    """By bucket, its series (packed) of these metrics; buckets without any are left out."""
    is_meant: dict[int, bool] = {}
    parts = {}
    for bucket_id, packed in series_of.items():
        numbers = array(SERIES_ID_TYPE, packed[: len(packed) // 4 * 4])
        for number in set(numbers).difference(is_meant):
            block = (session.series.blocks([number]) or {}).get(number)
            # What cannot be read goes along, so that sending finds the damage and tells it.
            is_meant[number] = block is None or metric_name(block) in metrics
        if part := array(SERIES_ID_TYPE, filter(is_meant.__getitem__, numbers)):
            parts[bucket_id] = part.tobytes()
    return parts


def send_again(
    session: Session,
    job_id: int,
    bucket_ids: Iterable[int],
    destinations: Sequence[str],
    *,
    parts: Mapping[int, bytes] | None = None,
    was_read_back: bool = False,
) -> tuple[ResendCount, ...]:
    """Make buckets pending at these destinations, all where none is named; tell the states that they were in.

    parts:         by bucket, the series (packed) that are sent where the destination has the rest. What it refused goes
                   along.
    was_read_back: the destination has shown that it has the rest: what it refused goes along only as a part, and that
                   holds for what it never acknowledged, too.
    """
    candidates = [
        Candidate(*row)
        for row in session.rows("candidates", bucket_ids=_json(list(bucket_ids)), destinations=_json(destinations))
    ]
    pairs = _json([(each.bucket_id, each.destination_id) for each in candidates])
    narrowed: dict[tuple[int, int], bytes] = {}
    if parts is not None:
        narrowed = {
            (each.bucket_id, each.destination_id): parts[each.bucket_id]
            for each in candidates
            if was_read_back or each.state in _HAS_SOME
        }
        for bucket_id, destination_id, series_ids, *_ in session.rows("refused_of", pairs=pairs):
            if (bucket_id, destination_id) in narrowed and not was_read_back:
                narrowed[bucket_id, destination_id] += series_ids
    session.change("enqueue_again", pairs=pairs, job_id=job_id)
    session.change("forget_refusals", pairs=pairs)
    session.change("forget_parts", pairs=pairs)
    for each in candidates:
        bucket_id, destination_id = each.bucket_id, each.destination_id
        numbers = array(
            SERIES_ID_TYPE, dict.fromkeys(array(SERIES_ID_TYPE, narrowed.get((bucket_id, destination_id), b"")))
        )
        if not 0 < len(numbers) < each.samples:
            continue
        pair = {"bucket_id": bucket_id, "destination_id": destination_id}
        session.change("add_part", **pair, series_ids=numbers.tobytes())
        session.change("count_part", **pair, samples=len(numbers))
    return summed(ResendCount(each.destination, each.state, 1, each.samples) for each in candidates)


def summed(counts: Iterable[ResendCount]) -> tuple[ResendCount, ...]:
    """One count for each destination and state, by their names."""
    buckets: Counter[tuple[str, str]] = Counter()
    samples: Counter[tuple[str, str]] = Counter()
    for count in counts:
        buckets[count.destination, count.state] += count.buckets
        samples[count.destination, count.state] += count.samples
    return tuple(ResendCount(*key, buckets[key], samples[key]) for key in sorted(buckets))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _bindings(resend: Resend) -> dict[str, str | int]:
    return {
        "since": resend.since,
        "until": resend.until,
        "zones": _json(resend.zones),
        "datasets": _json(resend.datasets),
        "destinations": _json(resend.destinations),
    }
