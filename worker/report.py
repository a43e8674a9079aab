"""The status report: what the ledger, the loops and the quota say, put together at one moment.

Only reads. `worker.status` says what each field means; `/`, `/api/v1/status` and `cfrw status` show it.
"""

from dataclasses import dataclass

from worker import __version__
from worker.config import Settings
from worker.health import TokenState, Verdict
from worker.ledger import (
    Job,
    Ledger,
    ScopeReport,
    backlogs,
    delivery_counts,
    jobs,
    room,
    scope_reports,
    undelivered,
)
from worker.push import Exchange
from worker.status import (
    ApiBudget,
    CloudflareStatus,
    DestinationStatus,
    JournalEntry,
    LedgerStatus,
    ScopeStatus,
    StatusReport,
)
from worker.times import instant

# The newest repairs; the whole journal is in the ledger.
_JOURNAL_ENTRIES = 10


@dataclass(frozen=True, slots=True)
class Running:
    """What only the running worker knows; a command that reads the ledger beside it has none of it."""

    readiness: Verdict
    token: TokenState
    budgets: tuple[ApiBudget, ...]
    exchanges: dict[str, Exchange]


async def report_status(ledger: Ledger, settings: Settings, now: float, running: Running) -> StatusReport:
    """The report at `now`, unix seconds, over the reach of automatic replay."""
    replay_since = now - settings.cloudflare.replay_hours * 3600
    scopes = await ledger.read(scope_reports, since=replay_since, final_until=now - settings.cloudflare.delay_seconds)
    return StatusReport(
        version=__version__,
        now=now,
        readiness=running.readiness,
        destinations=await _destinations(ledger, settings, running),
        cloudflare=CloudflareStatus(token=running.token, budgets=running.budgets),
        ledger=LedgerStatus(
            path=str(ledger.path),
            size_bytes=(await ledger.read(room)).file_bytes + ledger.log_bytes(),
            max_bytes=settings.ledger.max_bytes,
            buckets=sum(report.captured for report in scopes),
        ),
        journal=tuple(_entry(job) for job in await ledger.read(jobs, newest=_JOURNAL_ENTRIES)),
        scope_count=len(scopes),
        scopes=tuple(_scope(report) for report in scopes),
    )


async def _destinations(ledger: Ledger, settings: Settings, running: Running) -> tuple[DestinationStatus, ...]:
    backlog_of = {backlog.destination: backlog for backlog in await ledger.read(backlogs)}
    decided = {(count.destination, count.state): count.buckets for count in await ledger.read(delivery_counts)}
    refusals = {report.destination: f"{report.state}: {report.reason}" for report in await ledger.read(undelivered)}
    statuses = []
    for destination in settings.destinations:
        name = destination.name
        backlog = backlog_of.get(name)
        exchange = running.exchanges.get(name, Exchange())
        statuses.append(
            DestinationStatus(
                name=name,
                url=destination.shown_url,
                pending_buckets=backlog.buckets if backlog else 0,
                pending_samples=backlog.samples if backlog else 0,
                oldest_pending_end=backlog.oldest_end if backlog else None,
                last_success_at=exchange.last_success_at,
                last_failure_at=exchange.last_failure_at,
                last_failure=exchange.last_failure or refusals.get(name),
                acknowledged_buckets=decided.get((name, "acknowledged"), 0),
                refused_buckets=decided.get((name, "refused"), 0),
                expired_buckets=decided.get((name, "expired"), 0),
                damaged_buckets=decided.get((name, "damaged"), 0),
            )
        )
    return tuple(statuses)


def _scope(report: ScopeReport) -> ScopeStatus:
    reason = None
    if report.missing:
        reason = f"{report.reason}: {report.detail}" if report.reason else "waiting for its turn"
    return ScopeStatus(
        dataset=report.dataset,
        scope=report.tag,
        name=report.name,
        newest_window_end=report.newest_end,
        expected=report.expected,
        captured=report.captured,
        missing=report.missing,
        reason=reason,
    )


def _entry(job: Job) -> JournalEntry:
    span = f"{instant(job.arguments.since)} to {instant(job.arguments.until)}"
    return JournalEntry(
        at=job.asked_at, asked=f"{job.kind} {span}", by=job.asked_by, reason=job.reason, outcome=_outcome(job)
    )


def _outcome(job: Job) -> str:
    if job.queued is None:
        return "asked"
    return f"{sum(count.buckets for count in job.queued)} buckets queued again"
