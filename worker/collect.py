"""Collection: every window that is final and not captured yet, from Cloudflare into the ledger.

Owns the decision what is asked for and when. A window is due once `delay_seconds` have passed since its end, and stays
due until it is captured, until Cloudflare has no data for it any more, or until it is older than the replay bound.
What is missing is fetched oldest first, before anything newer of the same zone.

Promises: no window is asked for before it is final; a bucket is written only from a complete answer; a zone that cannot
be read costs no other zone anything; a window that has no bucket has a reason in the ledger. An outage of Cloudflare
delays windows and loses none that it still has when it is back.

Knows nothing of receivers. What it keeps in memory is only a view of the ledger.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import assert_never

from worker.admission import admit, plan_of
from worker.buckets import Bucket, Window, final_window_starts
from worker.budget import keep_requests, recent_requests
from worker.clock import Clock, really_ahead, wait_for_any
from worker.cloudflare import (
    Answered,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    Priority,
    RateLimitType,
    Scope,
    ScopeAnswer,
    ScopeKind,
    counted_by,
)
from worker.config import CloudflareSettings
from worker.discovery import Discovery
from worker.errors import LedgerFullError
from worker.health import Health, loop_of
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    outstanding_windows,
    record_answer,
)
from worker.listing import Listing
from worker.observe import Metrics, get_logger
from worker.outstanding import Outstanding, Query, Runs, Worklist, next_round
from worker.owners import Owners
from worker.room import has_room
from worker.times import instant
from worker.tokens import note_refused

LOOP = "collect"

# Enough to hide the latency of a query behind that of others; the quota of one a second is the real limit.
QUERIES_AT_ONCE = 4

# After so many queries without an answer the rest of a round is left for later: it may be an outage. Fewer may be about
# the zones that were asked for, however Cloudflare words it.
_QUERIES_WITHOUT_ANSWER = 4

# A zone that Cloudflare has no answer for is asked less and less often, but twice an hour at least.
_NO_ANSWER_HOLD_SECONDS = 1800.0

# What a plan or a token denies seldom changes; asking once an hour notices when it does.
_DENIED_HOLD_SECONDS = 3600.0

# Failures that usually say something about Cloudflare, the token or the quota, and not about the zones asked for.
_NO_ANSWER = frozenset({ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT})

# Of these, those that the zones asked for have no part in.
_NOBODYS_FAULT = frozenset({ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT})

_DENIALS = frozenset({ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.AUTH_SCOPE})

log = get_logger()


class _Outcome(Enum):
    """What came of a query."""

    ANSWERED = auto()
    """It brought something, if only a failure that says what is wrong."""

    SILENT = auto()
    """It had no answer, which may be the fault of one of those that it asked for."""

    TURNED_AWAY = auto()
    """It had no answer, whoever it asked for."""


class Collector:
    """Fetches what is due with one token into the ledger, pass by pass."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        datasets: Sequence[Dataset],
        owners: Owners | None = None,
        max_ledger_bytes: int,
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        """Nothing is asked for yet.

        datasets: what is collected, of the zones and accounts that the settings select.
        owners:   shared by the collectors of several tokens; without it there are no others.
        """
        self.loop = loop_of(LOOP, settings.name)
        self._settings = settings
        self._max_ledger_bytes = max_ledger_bytes
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        kinds = {dataset.scope for dataset in datasets}
        owners = owners or Owners([settings], kinds=kinds, ledger=ledger, metrics=metrics)
        self._listing = Listing(settings, owners=owners, api=api, ledger=ledger, clock=clock, health=health)
        self._discovery = Discovery(datasets, settings.bucket_seconds, api=api, ledger=ledger, clock=clock)
        self._datasets = datasets
        self._is_admitted = False
        self._cloudflare_answers = True
        self._worklists = [
            Worklist(
                dataset,
                settings.bucket_seconds,
                dataset.final_after_seconds(settings.delay_seconds),
            )
            for dataset in datasets
        ]

    async def run(self, stopping: asyncio.Event) -> None:
        """Collect what is due every `collection_interval_seconds`, until `stopping` is set."""
        while not stopping.is_set():
            await self.collect_due(stopping)
            await wait_for_any(self._clock, self._settings.collection_interval_seconds, stopping)

    async def collect_due(self, stopping: asyncio.Event) -> bool:
        """One pass: fetch every window that is due, as far as Cloudflare and the ledger's volume let it.

        Returns whether nothing that is due is missing now.
        """
        self._health.beat(self.loop)
        started = self._clock.monotonic()
        complete = await self._pass(stopping)
        outstanding = [entry for worklist in self._worklists for entry in worklist.outstanding.items()]
        failing = {tag for tag, found in outstanding if found.is_failing}
        failing_zones = sum(scope.kind is ScopeKind.ZONE for scope in self._scopes(failing))
        self._metrics.zones_failing.labels(self._settings.name).set(failing_zones)
        self._health.completed(self.loop)
        self._metrics.collect_pass_duration_seconds.observe(self._clock.monotonic() - started)
        return complete and not any(found.windows for _, found in outstanding)

    def _scopes(self, tags: Iterable[str]) -> list[Scope]:
        return [self._listing.scopes[tag] for tag in tags if tag in self._listing.scopes]

    async def _pass(self, stopping: asyncio.Event) -> bool:
        """Go round after round; False where an outage, the ledger's volume or `stopping` ended it."""
        try:
            while not stopping.is_set():
                listed = await self._listing.refresh()
                discovered = await self._discovery.step(self._listing.scopes)
                if listed and discovered and not self._is_admitted:
                    scopes = self._listing.scopes.values()
                    plan = plan_of(self._settings, self._datasets, scopes, self._discovery.is_denied)
                    admit(plan, token=self._settings.name)
                    self._is_admitted = True
                for worklist in self._worklists:
                    await self._look_for_due_windows(worklist)
                queries = next_round(
                    self._worklists,
                    self._listing.scopes,
                    self._clock.monotonic(),
                    are_accounts_apart=self._api.quota.rate_limit_type is RateLimitType.ACCOUNT,
                )
                if queries:
                    if not await has_room(self._ledger, self._max_ledger_bytes, self.loop):
                        return False
                    self._cloudflare_answers = await self._ask_all(queries, stopping)
                if not self._cloudflare_answers:
                    return False
                if listed:
                    name = self._settings.name
                    self._metrics.collect_last_success_timestamp_seconds.labels(name).set(self._clock.now())
                # Hours of catching up are many passes to whoever watches.
                self._health.completed(self.loop)
                if not queries and discovered:
                    return listed
        except* LedgerFullError as errors:
            log.warning("Collection pauses: the ledger's volume is full", error=str(errors.exceptions[0]))
        return False

    async def _ask_all(self, queries: Sequence[Query], stopping: asyncio.Event) -> bool:
        """Ask some at a time, and leave the rest once several had no answer; tell whether any had one."""
        todo = list(queries)
        unanswered: list[Query] = []
        silent: list[Query] = []
        answered = 0

        async def ask_in_turn() -> None:
            nonlocal answered
            while len(unanswered) < _QUERIES_WITHOUT_ANSWER and not stopping.is_set() and todo:
                query = todo.pop(self._first_that_need_not_wait(todo))
                match await self._ask(query):
                    case _Outcome.ANSWERED:
                        answered += 1
                    case _Outcome.SILENT:
                        unanswered.append(query)
                        silent.append(query)
                    case _Outcome.TURNED_AWAY:
                        unanswered.append(query)
                    case outcome:
                        assert_never(outcome)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(QUERIES_AT_ONCE, len(queries))):
                group.create_task(ask_in_turn())
        for query in silent:
            self._note_no_answer(query, alone=bool(answered) and len(query.scopes) == 1)
        return answered > 0

    def _first_that_need_not_wait(self, queries: Sequence[Query]) -> int:
        """The position of the query to ask next: one account whose quota is used up does not hold up the others."""
        quota = self._api.quota
        if quota.rate_limit_type is RateLimitType.TOKEN:
            return 0
        ready = (
            position
            for position, query in enumerate(queries)
            if quota.has_place(counted_by(query.scopes[0]), self._priority(query))
        )
        return next(ready, 0)

    def _note_no_answer(self, query: Query, *, alone: bool) -> None:
        """Cloudflare had no answer to this query; `alone`: to one scope's, while it had some for others."""
        for found in query.outstanding():
            found.unanswered = max(1, found.unanswered + alone)
            hold_seconds = self._settings.collection_interval_seconds * 2 ** min(found.unanswered - 1, 10)
            found.held_until = max(
                found.held_until, self._clock.monotonic() + min(hold_seconds, _NO_ANSWER_HOLD_SECONDS)
            )

    async def _ask(self, query: Query) -> _Outcome:
        """Ask one query and write down what it brought."""
        self._health.beat(self.loop)
        worklists = {worklist.dataset.name: worklist for worklist in query.worklists}
        width_seconds = query.worklists[0].width_seconds
        datasets = [worklist.dataset for worklist in query.worklists]
        found = await self._api.fetch(
            datasets, width_seconds, query.scopes, query.starts, priority=self._priority(query)
        )
        answers = _oldest_first(found)
        if not self._is_final(query):
            # The clock was set while nobody asked, and only the answer's date shows it: the next look begins anew.
            await keep_requests(self._settings.name, self._api.quota, self._ledger, self._clock)
            return _Outcome.TURNED_AWAY
        now = self._clock.now()
        buckets = [bucket for answer in answers if isinstance(answer, Answered) for bucket in self._buckets(answer)]
        holes: list[Hole] = []
        for answer in answers:
            worklist = worklists[answer.dataset.name]
            match answer:
                case Answered(scope=scope):
                    entry = worklist.outstanding[scope.tag]
                    entry.is_failing = False
                    entry.unanswered = 0
                case Failed():
                    holes += self._note_failure(worklist, answer)
                case _:
                    assert_never(answer)
        if holes:
            _tell_failures([answer for answer in answers if isinstance(answer, Failed)], holes)
        # Before all else that is written: while that waits, a later answer may say otherwise.
        await self._note_token(answers)
        captured = await self._ledger.write_soon(
            record_answer,
            self._settings.name,
            recent_requests(self._api.quota, self._clock),
            buckets=buckets,
            holes=holes,
            now=now,
        )
        if buckets:
            self._ledger.announce()
            self._note_captured(buckets, captured)
        self._settle(worklists, answers, holes)
        if not all(_is_no_answer(answer) for answer in answers):
            return _Outcome.ANSWERED
        kinds = {answer.failure.kind for answer in answers if isinstance(answer, Failed)}
        return _Outcome.TURNED_AWAY if kinds <= _NOBODYS_FAULT else _Outcome.SILENT

    def _settle(self, worklists: Mapping[str, Worklist], answers: Iterable[ScopeAnswer], holes: Iterable[Hole]) -> None:
        """Ask no more for what the ledger has now: a bucket, or the reason why there never will be one."""
        for answer in answers:
            if isinstance(answer, Answered):
                worklists[answer.dataset.name].outstanding[answer.scope.tag].windows.discard(answer.windows)
                self._metrics.collect_folded_rows_total.labels(answer.dataset.name).inc(
                    sum(samples.folded for samples in answer.windows.values())
                )
        for hole in holes:
            if hole.reason is HoleReason.EXPIRED:
                worklists[hole.dataset].outstanding[hole.scope].windows.discard([hole.window.start])

    async def _note_token(self, answers: Sequence[ScopeAnswer]) -> None:
        """Tell whether Cloudflare takes the token, where the answers say so."""
        if any(isinstance(answer, Answered) for answer in answers):
            self._health.token_accepted(self._settings.name)
        for answer in answers:
            if isinstance(answer, Failed) and answer.failure.kind is ErrorKind.TOKEN:
                await note_refused(self._settings.name, answer.failure.message, self._health, self._ledger, self._clock)
                return

    def _priority(self, query: Query) -> Priority:
        """Windows that have just become final go before those that are caught up."""
        newest = max(worklist.looked_at.stop for worklist in query.worklists)
        return Priority.RETRY if query.is_retry or query.starts.stop < newest else Priority.LIVE

    def _is_final(self, query: Query) -> bool:
        """Whether the windows asked for were final, by the clock as it is known now that Cloudflare has answered."""
        now = self._cloudflare_now()
        return all(
            Window(query.starts[-1], worklist.width_seconds).is_final(now, worklist.delay_seconds)
            for worklist in query.worklists
        )

    def _buckets(self, answer: Answered) -> list[Bucket]:
        windows = [
            (Window(start, self._settings.bucket_seconds), samples) for start, samples in sorted(answer.windows.items())
        ]
        return [
            Bucket(
                dataset=answer.dataset.name,
                scope=answer.scope.tag,
                window=window,
                timestamp_ms=window.timestamp_ms(self._settings.sample_timestamp),
                series=samples.series,
                values=samples.values,
            )
            for window, samples in windows
        ]

    def _note_captured(self, buckets: Sequence[Bucket], captured: Captured) -> None:
        datasets = {bucket.dataset for bucket in buckets}
        newest = max(bucket.window.end for bucket in buckets)
        for name, count in captured.by_dataset.items():
            self._metrics.collect_captured_buckets_total.labels(name).inc(count.buckets)
            self._metrics.collect_captured_samples_total.labels(name).inc(count.samples)
            self._metrics.collect_drifted_buckets_total.labels(name).inc(count.drifted)
        log.info(
            "Captured final windows",
            datasets=len(datasets),
            first_dataset=min(datasets),
            scopes=len({bucket.scope for bucket in buckets}),
            buckets=captured.buckets,
            samples=captured.samples,
            newest_window_end=instant(newest),
        )
        if captured.drifted:
            log.warning(
                "Cloudflare answered differently for windows captured before; the first capture stays",
                first_dataset=min(name for name, count in captured.by_dataset.items() if count.drifted),
                buckets=captured.drifted,
            )

    def _note_failure(self, worklist: Worklist, failed: Failed) -> list[Hole]:
        """Hold the scope back as its failure asks for, and say why its windows have no bucket."""
        found = worklist.outstanding[failed.scope.tag]
        failure = failed.failure
        starts: Sequence[int] = failed.starts
        reason = HoleReason.FAILED
        hold_seconds = failure.retry_after_seconds or self._settings.collection_interval_seconds
        if failure.kind in _DENIALS:
            reason = HoleReason.DENIED
            self._discovery.note_denial(failed.scope.tag)
            hold_seconds = failure.retry_after_seconds or _DENIED_HOLD_SECONDS
        elif failure.kind is ErrorKind.REFUSED:
            # It may be about a field that is in the schema no more; then the settings do not list it either.
            self._discovery.note_denial(failed.scope.tag)
        elif failure.kind is ErrorKind.RETENTION and (expired := self._expired(failed)):
            reason = HoleReason.EXPIRED
            starts = expired
            hold_seconds = 0.0
        found.is_failing = reason is not HoleReason.EXPIRED
        found.held_until = self._clock.monotonic() + hold_seconds
        return [
            Hole(
                worklist.dataset.name, failed.scope.tag, Window(start, worklist.width_seconds), reason, failure.message
            )
            for start in starts
        ]

    def _expired(self, failed: Failed) -> list[int]:
        """The windows that Cloudflare has no data for any more."""
        if failed.failure.bound_seconds is None:
            return []
        oldest = self._cloudflare_now() - failed.failure.bound_seconds
        return [start for start in failed.starts if start < oldest]

    async def _look_for_due_windows(self, worklist: Worklist) -> None:
        """Add what has become final since the last look, and all that is missing of zones that were not known then."""
        starts = final_window_starts(
            self._cloudflare_now(),
            width_seconds=worklist.width_seconds,
            delay_seconds=worklist.delay_seconds,
            reach_seconds=self._settings.replay_hours * 3600,
        )
        before = worklist.looked_at
        if starts.stop < before.stop:
            # Somebody set the clock back: what was due by the old time may not be, and what was too old may be due.
            worklist.outstanding.clear()
        wanted = [tag for tag, scope in self._listing.scopes.items() if self._is_wanted(worklist.dataset, scope)]
        known = [tag for tag in wanted if tag in worklist.outstanding]
        unknown = [tag for tag in wanted if tag not in worklist.outstanding]
        new_starts = range(max(starts.start, before.stop), starts.stop, worklist.width_seconds)
        missing = await self._missing(worklist, known, new_starts) | await self._missing(worklist, unknown, starts)
        for tag in worklist.outstanding.keys() - wanted:
            del worklist.outstanding[tag]
        for found in worklist.outstanding.values():
            found.windows.discard_before(starts.start)
        for tag, runs in missing.items():
            found = worklist.outstanding.setdefault(tag, Outstanding(Runs()))
            for run in runs:
                found.windows.append(run)
        worklist.looked_at = starts

    def _is_wanted(self, dataset: Dataset, scope: Scope) -> bool:
        """Whether the scope may be asked for the dataset; not before it is known what it may be asked for."""
        return (
            scope.kind is dataset.scope
            and self._discovery.is_known(scope.tag)
            and not self._discovery.is_denied(dataset, scope.tag)
        )

    async def _missing(self, worklist: Worklist, tags: Sequence[str], starts: range) -> dict[str, list[range]]:
        if not tags or not starts:
            return {tag: [] for tag in tags}
        return await self._ledger.write(
            outstanding_windows,
            dataset=worklist.dataset.name,
            width_seconds=worklist.width_seconds,
            tags=tags,
            starts=starts,
        )

    def _cloudflare_now(self) -> float:
        """The time by which windows are final: this machine's, or Cloudflare's where this machine's runs ahead."""
        ahead_seconds = really_ahead(self._api.ahead_seconds)
        if ahead_seconds:
            log.warning(
                "This machine's clock is ahead of Cloudflare's, by which windows are final; set it right",
                ahead_seconds=round(ahead_seconds),
            )
        return self._clock.now() - ahead_seconds


def _is_no_answer(answer: ScopeAnswer) -> bool:
    return isinstance(answer, Failed) and answer.failure.kind in _NO_ANSWER


def _oldest_first(answers: Sequence[ScopeAnswer]) -> list[ScopeAnswer]:
    """The answers without windows that overtook an older one of their zone, which Cloudflare failed to answer.

    They are asked for again together with it: a receiver that takes nothing out of order would refuse the older one.
    """
    failed_from: dict[Scope, int] = {}
    for answer in answers:
        if isinstance(answer, Failed) and answer.failure.kind in _NO_ANSWER:
            failed_from[answer.scope] = min(answer.starts.start, failed_from.get(answer.scope, answer.starts.start))
    kept: list[ScopeAnswer] = []
    for answer in answers:
        if isinstance(answer, Answered) and (before := failed_from.get(answer.scope)) is not None:
            windows = {start: samples for start, samples in answer.windows.items() if start < before}
            if windows:
                kept.append(replace(answer, windows=windows))
        else:
            kept.append(answer)
    return kept


def _tell_failures(failures: Sequence[Failed], holes: Sequence[Hole]) -> None:
    """One line for all zones that failed for the same reason: in an outage that is all of them."""
    by_reason: dict[tuple[HoleReason, str], list[Hole]] = {}
    for hole in holes:
        by_reason.setdefault((hole.reason, hole.detail), []).append(hole)
    names = {failed.scope.tag: failed.scope.name for failed in failures}
    kinds = {failed.failure.message: failed.failure.kind for failed in failures}
    for (reason, detail), group in by_reason.items():
        zones = list(dict.fromkeys(names[hole.scope] for hole in group))
        log.warning(
            "Windows could not be captured",
            zones=len(zones),
            first_zone=zones[0],
            dataset=group[0].dataset,
            windows=len(group),
            first_window_start=instant(min(hole.window.start for hole in group)),
            outcome=reason,
            kind=kinds[detail],
            error=detail,
        )
