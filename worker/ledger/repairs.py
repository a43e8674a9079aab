"""Verbs of the journal: repairs that were asked for, and what came of them.

A repair is a row. Whoever holds the ledger carries it out: the running worker, or the command itself when no worker
runs. So there is one way to do it, and a record of each time it was done.
"""

from dataclasses import dataclass

import msgspec

from worker.ledger.session import Session, Value


@dataclass(frozen=True, slots=True)
class Resend:
    """Push captured buckets again.

    since, until: windows that start in [since, until), unix seconds.
    zones:        names or tags; empty means all.
    datasets:     names; empty means all.
    destinations: names; empty means all that are configured.
    """

    since: int
    until: int
    zones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResendCount:
    """How much of what a resend concerns is in one state at one destination.

    state: that of the delivery, or `never queued` for buckets that the destination was never to get.
    """

    destination: str
    state: str
    buckets: int
    samples: int


@dataclass(frozen=True, slots=True)
class Job:
    """A repair on record; times are unix seconds.

    queued: what it made pending, by the state it was in before; None until it was carried out.
    """

    job_id: int
    kind: str
    arguments: Resend
    reason: str
    asked_by: str
    asked_at: int
    state: str
    finished_at: int | None
    queued: tuple[ResendCount, ...] | None


def ask_for_resend(session: Session, resend: Resend, *, reason: str, asked_by: str, now: float) -> int:
    """Put a resend on record; return its number."""
    return session.number(
        "add_job", kind="resend", arguments=_json(resend), reason=reason, asked_by=asked_by, now=int(now)
    )


def jobs(session: Session, *, newest: int) -> tuple[Job, ...]:
    """The newest repairs on record, newest first."""
    return tuple(_job(row) for row in session.rows("newest_jobs", most=newest))


def job(session: Session, job_id: int) -> Job | None:
    """One repair on record."""
    return next((_job(row) for row in session.rows("job", id=job_id)), None)


def plan_resend(session: Session, resend: Resend) -> tuple[ResendCount, ...]:
    """What a resend would touch; buckets that a destination never had count as `never queued`."""
    return tuple(ResendCount(*row) for row in session.rows("resend_plan", **_bindings(resend)))


def resent(session: Session, job_id: int) -> tuple[ResendCount, ...]:
    """What has become of the buckets that a resend made pending; those that a later one took over are its own."""
    return tuple(ResendCount(*row) for row in session.rows("resent", job_id=job_id))


def carry_out_next(session: Session, now: float) -> Job | None:
    """Carry out the oldest repair that was asked for; return it as it then stands, None when there is none.

    A resend makes the buckets pending again, in the same transaction as its result is recorded: it happens once
    and as a whole, whatever is killed in between.
    """
    asked = next((_job(row) for row in session.rows("oldest_asked_job")), None)
    if asked is None:
        return None
    counts = plan_resend(session, asked.arguments)
    session.change("enqueue_again", **_bindings(asked.arguments), job_id=asked.job_id)
    session.change("forget_refusals", job_id=asked.job_id)
    session.change("finish_job", id=asked.job_id, state="done", result=_json(counts), now=int(now))
    return job(session, asked.job_id)


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


def _job(row: tuple[Value, ...]) -> Job:
    job_id, kind, arguments, reason, asked_by, asked_at, state, finished_at, result = row
    fields = {
        "job_id": job_id,
        "kind": kind,
        "arguments": msgspec.json.decode(str(arguments)),
        "reason": reason,
        "asked_by": asked_by,
        "asked_at": asked_at,
        "state": state,
        "finished_at": finished_at,
        "queued": None if result is None else msgspec.json.decode(str(result)),
    }
    return msgspec.convert(fields, Job)
