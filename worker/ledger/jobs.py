"""Verbs of the journal: every repair that was asked for, how far it is, and what came of it.

A repair is a row. Whoever holds the ledger carries it out, step by step: the running worker, or the command itself when
no worker runs. So there is one way to do it, a record of each time it was done, and a place to go on from when the one
who carried it out was killed.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec

from worker.ledger.capture import HoleReason
from worker.ledger.session import Session, Value


class JobState(StrEnum):
    """How far a repair is."""

    STAGING = "staging"
    """What it needs is still being written into the ledger by the command; nobody may begin."""

    ASKED = "asked"
    """On record; nobody has begun."""

    RUNNING = "running"
    """Begun, and gone on with by whoever holds the ledger next, should this one be killed."""

    DONE = "done"
    """Carried out. Its result says what is left."""

    FAILED = "failed"
    """It could not be carried out; the result, or the note of its progress, says why."""

    CANCELLED = "cancelled"
    """Somebody asked to end it. What it had done by then stays."""


OPEN_STATES = frozenset({JobState.ASKED, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Resend:
    """Push captured buckets again.

    since, until: windows that start in [since, until), unix seconds.
    zones:        names or tags of zones or accounts; empty means all.
    datasets:     names; empty means all.
    destinations: names; empty means all that are configured.
    metrics:      names; empty means all. What a destination never acknowledged is sent as a whole all the same.
    only_missing: read back first, and send only what the destination lacks.
    """

    since: int
    until: int
    zones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    only_missing: bool = False


@dataclass(frozen=True, slots=True)
class Backfill:
    """Fetch windows that the ledger lacks from Cloudflare, and push them.

    since, until: windows that start in [since, until), unix seconds.
    zones:        names or tags of zones or accounts; empty means all.
    datasets:     names; empty means all that are collected.
    coarser:      take a dataset's next wider windows where Cloudflare has no narrow ones any more.
    """

    since: int
    until: int
    zones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    coarser: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    """Read back what destinations have stored, and compare it with the ledger.

    since, until: windows that start in [since, until), unix seconds.
    zones:        names or tags of zones or accounts; empty means all.
    datasets:     names; empty means all.
    destinations: names; empty means all that are configured.
    metrics:      names; empty means all.
    """

    since: int
    until: int
    zones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """Write captured buckets into files.

    since, until: windows that start in [since, until), unix seconds.
    zones:        names or tags of zones or accounts; empty means all.
    datasets:     names; empty means all.
    metrics:      names; empty means all.
    destination:  whose labels the series get; empty for those of the ledger.
    undelivered:  only what that destination has not got.
    output:       the folder that was made, or `-`.
    """

    since: int
    until: int
    zones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    destination: str = ""
    undelivered: bool = False
    output: str = "-"


@dataclass(frozen=True, slots=True)
class Import:
    """Capture buckets that were read from files.

    since, until: all of their windows start in [since, until), unix seconds.
    files:        their names.
    """

    since: int
    until: int
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResendCount:
    """How much of what a resend concerns is in one state at one destination.

    state: that of the delivery, `never queued` for buckets that the destination was never to get, `already there` for
           samples that were read back, or `not configured` where whoever carries it out knows no such destination.
    """

    destination: str
    state: str
    buckets: int
    samples: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Buckets of one destination that were decided against, with one of the reasons given."""

    destination: str
    state: str
    buckets: int
    newest_at: int
    status: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ResendResult:
    """What came of a resend.

    queued:    what it made pending, by the state it was in before.
    outcome:   what has become of that; empty until it is done.
    reasons:   why the part of it that is not delivered is not.
    read_back: what reading back said of the rest: `already there`, and what sending again does not help.
    """

    queued: tuple[ResendCount, ...] = ()
    outcome: tuple[ResendCount, ...] = ()
    reasons: tuple[Undelivered, ...] = ()
    read_back: tuple[ResendCount, ...] = ()


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """Windows of a dataset that a backfill cannot get; `detail` is for people."""

    dataset: str
    windows: int
    reason: HoleReason
    detail: str


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What came of a backfill.

    buckets, samples: newly captured.
    out_of_reach:     what Cloudflare did not give.
    outcome, reasons: what has become of the new buckets at the destinations; empty until it is done.
    """

    buckets: int = 0
    samples: int = 0
    out_of_reach: tuple[OutOfReach, ...] = ()
    outcome: tuple[ResendCount, ...] = ()
    reasons: tuple[Undelivered, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyCount:
    """How many samples of a metric and zone were found to be what, at one destination.

    metric, zone: empty where it is of all of them.
    undelivered:  neither there nor on record as being there.
    duplicated:   stored more than once; each is equal or different, too.
    """

    destination: str
    metric: str = ""
    zone: str = ""
    equal: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    duplicated: int = 0
    undelivered: int = 0


@dataclass(frozen=True, slots=True)
class VerifyExample:
    """A sample that is not as it should be.

    series:       as PromQL writes it, with the labels that it has there.
    timestamp_ms: unix milliseconds.
    expected:     the ledger's value, as text; None where the ledger has none.
    found:        the values that are there.
    """

    destination: str
    finding: str
    series: str
    timestamp_ms: int
    expected: str | None
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotRead:
    """A destination from which nothing, or not all, could be read, and why."""

    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What came of reading back.

    totals:   one count for each destination.
    unequal:  by metric and zone, where anything is not equal: the first of them.
    unlisted: how many more of these there are.
    examples: the first samples that are not as they should be.
    not_read: destinations that were not read to the end.
    damaged:  buckets that are not what was captured, which therefore say nothing.
    """

    totals: tuple[VerifyCount, ...] = ()
    unequal: tuple[VerifyCount, ...] = ()
    unlisted: int = 0
    examples: tuple[VerifyExample, ...] = ()
    not_read: tuple[NotRead, ...] = ()
    damaged: int = 0

    @property
    def is_good(self) -> bool:
        """Whether all that was to be compared was, and nothing is missing or different."""
        wrong = any(count.missing or count.different for count in self.totals)
        return not (wrong or self.not_read or self.damaged)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Samples that are not in an export although they were meant, and why."""

    samples: int
    reason: str


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export has written; `damaged`: buckets that do not hold what was captured, and are not in it."""

    files: int = 0
    samples: int = 0
    size_bytes: int = 0
    damaged: int = 0
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What came of an import.

    buckets, samples:   newly captured.
    unchanged:          buckets of windows that were captured with the same content, before or meanwhile.
    differing, damaged: buckets of windows that were captured with another content meanwhile, or that were not read back
                        from the ledger as they had been staged: they are not imported.
    outcome, reasons:   what has become of the new buckets at the destinations; empty until it is done.
    """

    buckets: int = 0
    samples: int = 0
    unchanged: int = 0
    differing: int = 0
    damaged: int = 0
    outcome: tuple[ResendCount, ...] = ()
    reasons: tuple[Undelivered, ...] = ()


Arguments: TypeAlias = Resend | Backfill | Verify | Export | Import
Result: TypeAlias = ResendResult | BackfillResult | VerifyResult | ExportResult | ImportResult

_Kind = Literal["resend", "backfill", "verify", "export", "import"]
_KINDS: dict[_Kind, tuple[type[Arguments], type[Result]]] = {
    "resend": (Resend, ResendResult),
    "backfill": (Backfill, BackfillResult),
    "verify": (Verify, VerifyResult),
    "export": (Export, ExportResult),
    "import": (Import, ImportResult),
}
_Row = tuple[int, _Kind, str, str, str, int, JobState, str, int | None, int | None, str | None]
_KIND_OF = {arguments: kind for kind, (arguments, _) in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a repair is.

    done, total: buckets or windows; a total of 0 is not known yet.
    after:       where it goes on, as its kind understands it.
    note:        what it waits for, for people; empty while it goes on.
    """

    done: int = 0
    total: int = 0
    after: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A repair on record; times are unix seconds.

    cancel_asked: whether somebody asked to end it.
    result:       what came of it so far.
    """

    job_id: int
    kind: str
    arguments: Arguments
    reason: str
    asked_by: str
    asked_at: int
    state: JobState
    progress: Progress
    cancel_asked: bool
    finished_at: int | None
    result: Result | None

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done about it."""
        return self.state in OPEN_STATES


def ask(session: Session, arguments: Arguments, *, reason: str, asked_by: str, now: float, total: int = 0) -> int:
    """Put a repair on record; return its number.

    total: how many buckets or windows it is about, as its plan has counted.
    """
    return session.number(
        "add_job",
        kind=_KIND_OF[type(arguments)],
        arguments=_json(arguments),
        reason=reason,
        asked_by=asked_by,
        progress=_json(Progress(total=total)),
        now=int(now),
    )


def record(session: Session, arguments: Arguments, result: Result, *, reason: str, asked_by: str, now: float) -> int:
    """Put on record what a command has done itself; return its number."""
    number = ask(session, arguments, reason=reason, asked_by=asked_by, now=now)
    finish(session, number, JobState.DONE, result, now)
    return number


def jobs(session: Session, *, newest: int) -> tuple[Job, ...]:
    """The newest repairs on record, newest first."""
    return tuple(map(_job, session.rows("newest_jobs", most=newest)))


def job(session: Session, job_id: int) -> Job | None:
    """One repair on record."""
    return next(map(_job, session.rows("job", id=job_id)), None)


def open_jobs(session: Session) -> tuple[Job, ...]:
    """The repairs that are not finished, in the order in which they were asked for."""
    return tuple(map(_job, session.rows("open_jobs")))


def ask_to_cancel(session: Session, job_id: int, now: float) -> bool:
    """Ask whoever carries a repair out to end it; whether there was something to end."""
    return bool(session.change("ask_to_cancel", id=job_id, now=int(now)))


def keep_progress(session: Session, job_id: int, progress: Progress, result: Result | None) -> None:
    """Write down how far an open repair is, and that somebody has begun."""
    session.change("keep_progress", id=job_id, progress=_json(progress), result=_json_or_none(result))


def finish(
    session: Session, job_id: int, state: JobState, result: Result | None, now: float, *, note: str = ""
) -> None:
    """Write down what came of an open repair; `note` says why where it failed."""
    found = job(session, job_id)
    if found is not None and found.is_open:
        session.change(
            "finish_job",
            id=job_id,
            state=state,
            progress=_json(replace(found.progress, note=note)),
            result=_json_or_none(result),
            now=int(now),
        )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _json_or_none(value: object) -> str | None:
    return None if value is None else _json(value)


def _job(row: tuple[Value, ...]) -> Job:
    job_id, kind, arguments, reason, asked_by, asked_at, state, progress, cancel_asked_at, finished_at, result = (
        msgspec.convert(row, _Row)
    )
    of_arguments, of_result = _KINDS[kind]
    return Job(
        job_id=job_id,
        kind=kind,
        arguments=msgspec.json.decode(arguments, type=of_arguments),
        reason=reason,
        asked_by=asked_by,
        asked_at=asked_at,
        state=state,
        progress=msgspec.json.decode(progress, type=Progress),
        cancel_asked=cancel_asked_at is not None,
        finished_at=finished_at,
        result=None if result is None else msgspec.json.decode(result, type=of_result),
    )
