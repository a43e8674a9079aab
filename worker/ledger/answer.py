"""The verb of collection for what a query to Cloudflare brought: all of it in one transaction, or nothing."""

from collections.abc import Mapping, Sequence

from worker.buckets import Bucket
from worker.ledger.capture import Captured, Hole, capture, record_holes
from worker.ledger.requests import forget_token_refusal, log_requests
from worker.ledger.session import Session


def record_answer(
    session: Session,
    token: str,
    requests: Mapping[str, Sequence[float]],
    *,
    buckets: Sequence[Bucket],
    holes: Sequence[Hole],
    now: float,
    job_id: int | None = None,
) -> Captured:
    """Write the buckets, why other windows have none, and the requests that were sent for them.

    With any bucket Cloudflare takes the token, whatever it said before.

    token:    its name in the configuration.
    requests: by API, when those of late ended, as `log_requests` has them.
    job_id:   the repair that asked for them.
    """
    log_requests(session, token, requests)
    if buckets:
        forget_token_refusal(session, token)
    captured = capture(session, buckets, now, job_id=job_id)
    record_holes(session, holes, now)
    return captured
