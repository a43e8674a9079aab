"""The verb of backfilling: what a query brought, and how far the repair is with it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from worker.buckets import Bucket
from worker.ledger.answer import record_answer
from worker.ledger.capture import Captured, Hole, HoleReason
from worker.ledger.jobs import BackfillResult, OutOfReach, Progress, job, keep_progress
from worker.ledger.session import Session


def capture_for(
    session: Session,
    job_id: int,
    token: str,
    requests: Mapping[str, Sequence[float]],
    *,
    buckets: Sequence[Bucket],
    holes: Sequence[Hole],
    now: float,
    total: int,
) -> Captured:
    """Write what a query of a backfill brought, as `record_answer` does, queued as its own, and its progress.

    holes: windows that are given up; they count as done.
    total: how many windows it is about.
    """
    captured = record_answer(session, token, requests, buckets=buckets, holes=holes, now=now, job_id=job_id)
    found = job(session, job_id)
    if found is None:
        message = f"there is no repair {job_id}"
        raise LookupError(message)
    before = found.result if isinstance(found.result, BackfillResult) else BackfillResult()
    result = replace(
        before,
        buckets=before.buckets + captured.buckets,
        samples=before.samples + captured.samples,
        out_of_reach=added(
            before.out_of_reach, (OutOfReach(hole.dataset, 1, hole.reason, hole.detail) for hole in holes)
        ),
    )
    done = found.progress.done + len(buckets) + len(holes)
    keep_progress(session, job_id, Progress(done, max(done, total)), result)
    return captured


def added(*several: Iterable[OutOfReach]) -> tuple[OutOfReach, ...]:
    """All of them together, one for each dataset and reason, the most windows first."""
    windows: Counter[tuple[str, HoleReason, str]] = Counter()
    for each in chain(*several):
        windows[each.dataset, each.reason, each.detail] += each.windows
    return tuple(OutOfReach(name, count, reason, detail) for (name, reason, detail), count in windows.most_common())
