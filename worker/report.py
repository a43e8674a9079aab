"""The status report: what the ledger, the loops and the quota say, put together at one moment.

Only reads. `worker.status` says what each field means; `/`, `/api/v1/status` and `cfrw status` show it.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from worker import __version__
from worker.cloudflare import Api, Dataset, FactSet, further_delays
from worker.cloudflare.quota import WINDOW_SECONDS
from worker.config import CloudflareSettings, Settings
from worker.health import Verdict
from worker.ledger import (
    AlikeDenials,
    BackfillResult,
    ExportResult,
    ImportResult,
    Job,
    JobState,
    Ledger,
    RefusedSample,
    ResendResult,
    ScopeReport,
    VerifyResult,
    backlogs,
    delivery_counts,
    denials_alike,
    destination_reports,
    jobs,
    logged_requests,
    refusals,
    refused_samples,
    room,
    scope_reports,
    scopes_of_tokens,
    token_refusals,
    undelivered,
)
from worker.series import notation, parse_label_block
from worker.status import (
    CloudflareStatus,
    DatasetStatus,
    DeniedScope,
    DeniedStatus,
    DestinationStatus,
    GivenUp,
    JournalEntry,
    LedgerStatus,
    RefusedStatus,
    ScopeStatus,
    StatusReport,
    TokenStatus,
)
from worker.times import instant

# The newest repairs; the whole journal is in the ledger.
_JOURNAL_ENTRIES = 10

# The newest refusals of each destination, and the series of each: what one cause does to one sample it does to others,
# so that a few show it. The ledger has all.
_REFUSALS = 5
_SERIES_OF_A_REFUSAL = 3


@dataclass(frozen=True, slots=True)
class RunningDestination:
    """What the running worker knows of a destination; `worker.status.DestinationStatus` says what it means."""

    message: str
    parked: str | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """What only the running worker knows; a command that reads the ledger beside it has none of it.

    destinations: by name.
    """

    readiness: Verdict
    cloudflare: CloudflareStatus
    destinations: Mapping[str, RunningDestination] = field(default_factory=dict)


async def report_status(
    ledger: Ledger,
    settings: Settings,
    now: float,
    running: Running,
    *,
    datasets: Sequence[Dataset],
    fact_sets: Sequence[FactSet] = (),
    due_at: float | None = None,
) -> StatusReport:
    """The report at `now`, unix seconds, over the reach of automatic replay.

    datasets, fact_sets: those that are collected; nothing is told of others that the ledger holds.
    due_at:              what has become final since then is not expected yet; `now` by default.
    """
    collected: list[Dataset | FactSet] = [*datasets, *fact_sets]
    kinds: dict[str, str] = {each.name: each.scope for each in collected}
    delay_seconds = settings.cloudflare.delay_seconds
    further = further_delays(datasets, delay_seconds)
    replay_since = now - settings.cloudflare.replay_hours * 3600
    known = await ledger.read(
        scope_reports,
        since=replay_since,
        final_until=(now if due_at is None else due_at) - delay_seconds,
        delay_seconds=delay_seconds,
        further_delays=further,
    )
    scopes = [report for report in known if report.dataset in further]
    denied = [alike for alike in await ledger.read(denials_alike) if alike.dataset in kinds]
    size = await ledger.read(room)
    paused = size.used_bytes >= settings.ledger.max_bytes
    # Of a large fleet that is most of a second, in which the loops go on.
    scope_statuses = await asyncio.to_thread(lambda: tuple(_scope(report, paused=paused) for report in scopes))
    dataset_statuses = await asyncio.to_thread(_datasets, datasets, delay_seconds, scopes, denied)
    return StatusReport(
        version=__version__,
        now=now,
        readiness=running.readiness,
        destinations=await _destinations(ledger, settings, running.destinations),
        cloudflare=running.cloudflare,
        tokens=await _tokens(ledger, settings.cloudflare, now),
        ledger=LedgerStatus(
            path=str(ledger.path),
            size_bytes=size.file_bytes + ledger.log_bytes(),
            max_bytes=settings.ledger.max_bytes,
            buckets=sum(report.captured for report in known),
        ),
        journal=tuple(_entry(job) for job in await ledger.read(jobs, newest=_JOURNAL_ENTRIES)),
        datasets=dataset_statuses,
        denied=await asyncio.to_thread(_denied, denied, kinds),
        scope_count=len(scopes),
        scopes=scope_statuses,
    )


async def _tokens(ledger: Ledger, settings: CloudflareSettings, now: float) -> tuple[TokenStatus, ...]:
    scopes = await ledger.read(scopes_of_tokens)
    refusals_of = await ledger.read(token_refusals)
    statuses = []
    for token in settings.by_token():
        logged = await ledger.read(logged_requests, token.name)
        sent = {api: sum(moment > now - WINDOW_SECONDS for moment in logged.get(api, ())) for api in Api}
        zones, accounts = scopes.get(token.name, (0, 0))
        refused = refusals_of.get(token.name)
        statuses.append(
            TokenStatus(
                name=token.name,
                zones=zones,
                accounts=accounts,
                graphql_requests=sent[Api.GRAPHQL],
                graphql_limit=token.graphql_requests_per_5_minutes,
                requests=sent[Api.REST],
                requests_limit=token.requests_per_5_minutes,
                refused_since=refused.refused_at if refused else None,
                refusal=refused.detail if refused else None,
            )
        )
    return tuple(statuses)


def _datasets(
    datasets: Sequence[Dataset], delay_seconds: int, scopes: Sequence[ScopeReport], denied: Sequence[AlikeDenials]
) -> tuple[DatasetStatus, ...]:
    reports: dict[str, list[ScopeReport]] = {dataset.name: [] for dataset in datasets}
    for report in scopes:
        reports[report.dataset].append(report)
    denials_of: Counter[str] = Counter()
    for alike in denied:
        denials_of[alike.dataset] += len(alike.scopes)
    return tuple(
        DatasetStatus(
            dataset=dataset.name,
            kind=dataset.scope,
            delay_seconds=dataset.final_after_seconds(delay_seconds),
            scope_count=len({report.tag for report in found}),
            scopes_missing=len({report.tag for report in found if report.missing}),
            scopes_denied=denials_of[dataset.name],
            newest_window_end=max((report.newest_end for report in found if report.newest_end), default=None),
            expected=sum(report.expected for report in found),
            captured=sum(report.captured for report in found),
            missing=sum(report.missing for report in found),
        )
        for dataset in datasets
        for found in [reports[dataset.name]]
    )


def _denied(denied: Sequence[AlikeDenials], kinds: Mapping[str, str]) -> tuple[DeniedStatus, ...]:
    return tuple(
        DeniedStatus(
            alike.dataset,
            kinds[alike.dataset],
            alike.detail,
            len(alike.scopes),
            tuple(DeniedScope(each.tag, each.name, each.denied_at) for each in alike.scopes),
        )
        for alike in denied
    )


async def _destinations(
    ledger: Ledger, settings: Settings, running: Mapping[str, RunningDestination]
) -> tuple[DestinationStatus, ...]:
    backlog_of = {backlog.destination: backlog for backlog in await ledger.read(backlogs)}
    decided = {(count.destination, count.state): count.buckets for count in await ledger.read(delivery_counts)}
    refused_of = {count.destination: count.samples for count in await ledger.read(refused_samples)}
    given_up = await ledger.read(undelivered)
    answers_of = {report.name: report for report in await ledger.read(destination_reports)}
    statuses = []
    for destination in settings.destinations:
        name = destination.name
        now = running.get(name)
        backlog = backlog_of.get(name)
        answers = answers_of.get(name)
        statuses.append(
            DestinationStatus(
                name=name,
                url=destination.shown_url,
                message=now.message if now else None,
                parked=now.parked if now else None,
                pending_buckets=backlog.buckets if backlog else 0,
                pending_samples=backlog.samples if backlog else 0,
                oldest_pending_end=backlog.oldest_end if backlog else None,
                last_success_at=answers.last_success_at if answers else None,
                last_failure_at=answers.last_failure_at if answers else None,
                last_failure=answers.last_failure if answers else None,
                acknowledged_buckets=decided.get((name, "acknowledged"), 0),
                partial_buckets=decided.get((name, "partial"), 0),
                refused_buckets=decided.get((name, "refused"), 0),
                expired_buckets=decided.get((name, "expired"), 0),
                damaged_buckets=decided.get((name, "damaged"), 0),
                refused_samples=refused_of.get(name, 0),
                given_up=tuple(
                    GivenUp(each.state, each.buckets, each.newest_at, each.status, each.reason)
                    for each in given_up
                    if each.destination == name
                ),
                refusals=tuple(map(_refusal, await ledger.read(refusals, name, newest=_REFUSALS))),
            )
        )
    return tuple(statuses)


def _refusal(refused: RefusedSample) -> RefusedStatus:
    return RefusedStatus(
        refused_at=refused.refused_at,
        timestamp=refused.timestamp_ms / 1000,
        samples=len(refused.series),
        series=tuple(map(_series, refused.series[:_SERIES_OF_A_REFUSAL])),
        status=refused.status,
        reason=refused.reason,
    )


def _series(block: bytes) -> str:
    return notation(parse_label_block(block))


def _scope(report: ScopeReport, *, paused: bool) -> ScopeStatus:
    reasons: list[str] = []
    missing = report.missing
    if (waiting := missing - report.holes) > 0:
        if report.denied:
            why = f"not asked for any more, as they are denied: {report.denied}"
        elif paused:
            why = "collection pauses, the ledger has reached LEDGER_MAX_BYTES"
        else:
            why = "waiting for their turn"
        reasons.append(f"{waiting} {why}")
    if missing and report.reason:
        reasons.append(f"{report.holes} {report.reason}: {report.detail}")
    return ScopeStatus(
        dataset=report.dataset,
        scope=report.tag,
        name=report.name,
        width_seconds=report.width_seconds,
        newest_window_end=report.newest_end,
        expected=report.expected,
        captured=report.captured,
        missing=missing,
        reason="; ".join(reasons) or None,
    )


def _entry(job: Job) -> JournalEntry:
    return JournalEntry(
        at=job.asked_at, asked=asked_for(job), by=job.asked_by, reason=job.reason, outcome=outcome_of(job)
    )


def asked_for(job: Job) -> str:
    """What a repair is, in a few words."""
    return f"{job.kind} {instant(job.arguments.since)} to {instant(job.arguments.until)}"


def outcome_of(job: Job) -> str:
    """How far a repair is, or what came of it, in a few words."""
    if job.is_open:
        if job.state is JobState.ASKED:
            return "asked"
        of_total = f" of {job.progress.total:,}" if job.progress.total else ""
        return f"{job.progress.done:,}{of_total} buckets so far{f'; {job.progress.note}' if job.progress.note else ''}"
    match job.result:
        case ResendResult(queued=queued):
            done = f"{sum(count.buckets for count in queued):,} buckets queued again"
        case BackfillResult(buckets=buckets):
            done = f"{buckets:,} buckets captured"
        case VerifyResult(totals=totals):
            done = f"{sum(count.equal for count in totals):,} samples equal"
            wrong = {
                "missing": sum(count.missing for count in totals),
                "different": sum(count.different for count in totals),
                "damaged buckets": job.result.damaged,
                "of the destinations not read": len(job.result.not_read),
            }
            done += "".join(f", {number:,} {what}" for what, number in wrong.items() if number)
        case ImportResult(buckets=buckets):
            done = f"{buckets:,} buckets imported"
        case ExportResult(files=files, samples=samples):
            done = (
                f"{samples:,} samples in {files:,} file{'' if files == 1 else 's'}" if files else f"{samples:,} samples"
            )
        case None:
            done = ""
        case other:
            assert_never(other)
    told = [done] if job.state is JobState.DONE else [job.state.value, job.progress.note, done]
    return "; ".join(filter(None, told))
