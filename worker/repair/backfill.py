"""Backfill: windows that the ledger lacks, fetched from Cloudflare and delivered like any others.

Promises: requests have the priority of what a person asked for, and so their share of the quota and no more; every
window that is asked for ends as a bucket, or is given up with a reason; whoever goes on after a kill asks for what is
missing still. While Cloudflare does not answer, the repair waits.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from worker.backfill import BackfillPlan, plan_backfill
from worker.buckets import Bucket, Window
from worker.budget import keep_requests, recall_requests, recent_requests
from worker.clock import Clock, really_ahead
from worker.cloudflare import Answered, Catalogue, CloudflareApi, Dataset, ErrorKind, Failed, Priority, counted_by
from worker.config import CloudflareSettings
from worker.ledger import (
    STEP_BUCKETS,
    Backfill,
    BackfillResult,
    Hole,
    HoleReason,
    Job,
    JobState,
    Ledger,
    added,
    capture_for,
    finish,
    keep_progress,
    not_delivered,
    pending_of_job,
    prove_writable,
    resent,
    room,
)
from worker.outstanding import Outstanding, Query
from worker.repair.step import Step

# As many as hide the latency of one behind the others.
_QUERIES_AT_ONCE = 4

# The first wait after a query without an answer, doubled after each further one, to half an hour.
_HOLD_SECONDS = 30.0
_LONGEST_HOLD_SECONDS = 1800.0

# About Cloudflare, the token or the quota, and not about the windows: these are asked for until there is an answer.
_NO_ANSWER = frozenset({ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT})

_DENIALS = frozenset({ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.AUTH_SCOPE})


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a backfill is fetched with one token."""

    token: str
    api: CloudflareApi
    plan: BackfillPlan


@dataclass(slots=True)
class _Work:
    """One backfill under way.

    total:   how many windows it is about, those that were fetched before a kill included.
    failure: what Cloudflare said last instead of an answer.
    """

    parts: tuple[_Part, ...]
    total: int
    failure: str = ""

    @property
    def windows(self) -> int:
        """How many are still to be fetched."""
        return sum(part.plan.windows for part in self.parts)

    def next_queries(self, monotonic: float) -> list[tuple[_Part, Query]]:
        """What to ask now, some with each token; with those whose quota has no place now only where none has."""
        queries = [
            (part, query) for part in self.parts for query in part.plan.next_queries(monotonic)[:_QUERIES_AT_ONCE]
        ]
        ready = [
            (part, query)
            for part, query in queries
            if part.api.quota.has_place(counted_by(query.scopes[0]), Priority.BACKFILL)
        ]
        return ready or queries


class Backfiller:
    """Carries out every `Backfill`."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        catalogue: Catalogue,
        collected: Sequence[Dataset],
        max_ledger_bytes: int,
        apis: Mapping[str, CloudflareApi],
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        """Nothing is asked for yet.

        collected: what is fetched where a backfill names no dataset.
        apis:      by the name of the token.
        """
        self._settings = settings
        self._catalogue = catalogue
        self._collected = collected
        self._max_ledger_bytes = max_ledger_bytes
        self._apis = apis
        self._ledger = ledger
        self._clock = clock
        self._work: dict[int, _Work] = {}

    async def step(self, job: Job) -> Step:
        """Ask some queries, once most of what was fetched before is delivered; end when nothing is left."""
        backfill, result = job.arguments, job.result
        if not isinstance(backfill, Backfill) or not isinstance(result, BackfillResult | None):
            raise TypeError(job)
        work = self._work.get(job.job_id) or await self._begin(job, backfill)
        pending = await self._ledger.read(pending_of_job, job.job_id)
        if work.windows and not job.cancel_asked:
            # Live windows take turns with these: never more of them than takes a second or two.
            if pending > STEP_BUCKETS:
                return Step.WAITS
            if (await self._ledger.read(room)).used_bytes >= self._max_ledger_bytes:
                return await self._wait(job, "the ledger has reached LEDGER_MAX_BYTES")
            queries = work.next_queries(self._clock.monotonic())
            if not queries:
                return await self._wait(job, f"waits for Cloudflare: {work.failure}")
            # What a full volume has no room for would be asked for in vain, again and again.
            await self._ledger.write(prove_writable)
            asking = (self._ask(job, work, part, query) for part, query in queries)
            for failed in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed
            return Step.WENT_ON
        if pending:
            return Step.WAITS
        del self._work[job.job_id]
        outcome = await self._ledger.read(resent, job.job_id)
        reasons = await self._ledger.read(not_delivered, job.job_id)
        result = replace(result or BackfillResult(), outcome=outcome, reasons=reasons)
        state = JobState.CANCELLED if work.windows else JobState.DONE
        await self._ledger.write(finish, job.job_id, state, result, self._clock.now())
        return Step.ENDED

    async def _begin(self, job: Job, backfill: Backfill) -> _Work:
        datasets = self._collected
        if backfill.datasets:
            # The settings may have changed since it was asked for.
            named = [self._catalogue[name] for name in backfill.datasets if name in self._catalogue]
            datasets = [each for each in named if self._settings.bucket_seconds in each.widths_seconds]
        parts = []
        for token in self._settings.by_token():
            api = self._apis[token.name]
            await recall_requests(token.name, api.quota, self._ledger, self._clock)
            now = self._cloudflare_now(api)
            plan = await plan_backfill(backfill, datasets, settings=token, ledger=self._ledger, api=api, now=now)
            parts.append(_Part(token.name, api, plan))
        work = self._work[job.job_id] = _Work(tuple(parts), job.progress.done)
        work.total += work.windows
        before = job.result if isinstance(job.result, BackfillResult) else BackfillResult()
        result = replace(before, out_of_reach=added(*(part.plan.out_of_reach for part in parts)))
        progress = replace(job.progress, total=work.total, note="")
        await self._ledger.write(keep_progress, job.job_id, progress, result)
        return work

    async def _wait(self, job: Job, why: str) -> Step:
        if job.progress.note != why:
            await self._ledger.write(keep_progress, job.job_id, replace(job.progress, note=why), job.result)
        return Step.WAITS

    async def _ask(self, job: Job, work: _Work, part: _Part, query: Query) -> None:
        worklists = {worklist.dataset.name: worklist for worklist in query.worklists}
        answers = await part.api.fetch(
            [worklist.dataset for worklist in query.worklists],
            query.worklists[0].width_seconds,
            query.scopes,
            query.starts,
            priority=Priority.BACKFILL,
        )
        now = self._clock.now()
        buckets: list[Bucket] = []
        holes: list[Hole] = []
        settled: list[tuple[Outstanding, Sequence[int]]] = []
        for answer in answers:
            worklist = worklists[answer.dataset.name]
            entry = worklist.outstanding[answer.scope.tag]
            match answer:
                case Answered(windows=windows):
                    entry.unanswered = 0
                    settled.append((entry, list(windows)))
                    for start, samples in windows.items():
                        window = Window(start, worklist.width_seconds)
                        stamp = window.timestamp_ms(self._settings.sample_timestamp)
                        buckets.append(
                            Bucket(answer.dataset.name, answer.scope.tag, window, stamp, samples.series, samples.values)
                        )
                case Failed(failure=failure) if failure.kind in _NO_ANSWER:
                    entry.unanswered += 1
                    work.failure = failure.message
                    hold_seconds = min(_HOLD_SECONDS * 2 ** min(entry.unanswered - 1, 10), _LONGEST_HOLD_SECONDS)
                    hold_seconds = max(hold_seconds, failure.retry_after_seconds or 0.0)
                    entry.held_until = self._clock.monotonic() + hold_seconds
                case Failed():
                    starts, reason = self._given_up(part.api, answer)
                    settled.append((entry, starts))
                    holes += [
                        Hole(
                            answer.dataset.name,
                            answer.scope.tag,
                            Window(start, worklist.width_seconds),
                            reason,
                            answer.failure.message,
                        )
                        for start in starts
                    ]
                case _:
                    assert_never(answer)
        if buckets or holes:
            await self._ledger.write_soon(
                capture_for,
                job.job_id,
                part.token,
                recent_requests(part.api.quota, self._clock),
                buckets=buckets,
                holes=holes,
                now=now,
                total=work.total,
            )
            self._ledger.announce()
        else:
            await keep_requests(part.token, part.api.quota, self._ledger, self._clock)
        for entry, starts in settled:
            entry.windows.discard(starts)

    def _given_up(self, api: CloudflareApi, failed: Failed) -> tuple[Sequence[int], HoleReason]:
        """The windows that are not asked for again, and why."""
        failure = failed.failure
        if failure.kind is ErrorKind.RETENTION:
            if failure.bound_seconds is None:
                return failed.starts, HoleReason.EXPIRED
            oldest = self._cloudflare_now(api) - failure.bound_seconds
            # At least one, or it would be asked for in vain for ever.
            return [start for start in failed.starts if start < oldest] or failed.starts[:1], HoleReason.EXPIRED
        return failed.starts, HoleReason.DENIED if failure.kind in _DENIALS else HoleReason.FAILED

    def _cloudflare_now(self, api: CloudflareApi) -> float:
        """The time by which windows are final and retention is reckoned."""
        return self._clock.now() - really_ahead(api.ahead_seconds)
