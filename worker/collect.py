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
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from worker.buckets import Bucket, Window, final_window_starts
from worker.clock import Clock, wait_for_any
from worker.cloudflare import (
    DATASETS,
    WINDOWS_PER_QUERY,
    ZONES_PER_QUERY,
    Account,
    Answered,
    Api,
    ApiFailure,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    ScopeAnswer,
    TokenAccepted,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    Zone,
    ZoneList,
    selects,
)
from worker.config import CloudflareSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    Scope,
    capture,
    log_requests,
    logged_requests,
    outstanding_windows,
    present_scopes,
    record_holes,
    record_scopes,
    room,
)
from worker.observe import Metrics, get_logger
from worker.times import instant

LOOP = "collect"

# A zone that was added is seen within half an hour; a listing of 10,000 zones is 200 requests of 1,200 in 5 minutes.
ZONES_REFRESH_SECONDS = 1800.0

# Enough to hide the latency of a query behind that of others; the quota of one a second is the real limit.
_QUERIES_AT_ONCE = 4

# After so many queries without an answer the rest of a round is left for later: it may be an outage. Fewer may be about
# the zones that were asked for, however Cloudflare words it.
_QUERIES_WITHOUT_ANSWER = 4

# Cloudflare's time is known to the second, and late by the time that an answer takes.
_CLOCK_TOLERANCE_SECONDS = 30.0

# Of the zones that had no answer so many are asked alone in a round: a tenth of the quota of five minutes. The others
# travel together, so that an outage of hours, which is no zone's fault, does not make a query of each.
_ASKED_ALONE = 30

# A zone that Cloudflare has no answer for is asked less and less often, but twice an hour at least.
_NO_ANSWER_HOLD_SECONDS = 1800.0

# What a plan or a token denies seldom changes; asking once an hour notices when it does.
_DENIED_HOLD_SECONDS = 3600.0

# Failures that usually say something about Cloudflare, the token or the quota, and not about the zones asked for.
_NO_ANSWER = frozenset({ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT})

_DENIALS = frozenset({ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.AUTH_SCOPE})

log = get_logger()


@dataclass(slots=True)
class _Outstanding:
    """What is outstanding of one zone.

    starts:     its windows, oldest first.
    held_until: monotonic time until which the zone is not asked.
    is_failing: whether the last query brought an error for it.
    unanswered: above 0 when the last query with it had no answer; how often in a row that was so although the zone was
                asked alone and Cloudflare answered other queries.
    """

    starts: list[int]
    held_until: float = -math.inf
    is_failing: bool = False
    unanswered: int = 0

    def settle(self, starts: Iterable[int]) -> None:
        """These windows are not outstanding any more."""
        done = set(starts)
        self.starts = [start for start in self.starts if start not in done]

    def run_length(self, width_seconds: int) -> int:
        """How many windows without a gap come first, as far as one query can ask for them."""
        length = 1
        while (
            length < min(len(self.starts), WINDOWS_PER_QUERY)
            and self.starts[length] == self.starts[length - 1] + width_seconds
        ):
            length += 1
        return length


@dataclass(slots=True)
class _Worklist:
    """What is outstanding of one dataset.

    looked_at: the windows that were final and within the replay bound when the clock was last looked at.
    """

    dataset: Dataset
    width_seconds: int
    looked_at: range = range(0)
    outstanding: dict[str, _Outstanding] = field(default_factory=dict)

    def next_round(self, zones: Iterable[Zone], monotonic: float) -> "list[_Query]":
        """Queries that ask each zone once, for its oldest outstanding windows; the oldest windows of all come first.

        Zones whose last query had no answer come last, and some of them alone: what was wrong may be one of them, and
        it shall not cost its neighbours their windows.
        """
        ready: list[tuple[bool, int, int, Zone]] = []
        for zone in zones:
            of_zone = self.outstanding.get(zone.tag)
            if of_zone and of_zone.starts and of_zone.held_until <= monotonic:
                run_length = of_zone.run_length(self.width_seconds)
                ready.append((of_zone.unanswered > 0, of_zone.starts[0], run_length, zone))
        # Zones with runs of the same length side by side: a query asks for the shortest of its zones' runs.
        ready.sort(key=lambda entry: entry[:3])
        queries: list[_Query] = []
        alone = 0
        while ready:
            is_retry, first, shortest, _ = ready[0]
            alone += is_retry
            most = 1 if is_retry and alone <= _ASKED_ALONE else ZONES_PER_QUERY
            together = [entry for entry in ready[:most] if entry[:2] == (is_retry, first)]
            ready = ready[len(together) :]
            run = range(first, first + shortest * self.width_seconds, self.width_seconds)
            queries.append(_Query(self, tuple(entry[3] for entry in together), run, is_retry))
        return queries


@dataclass(frozen=True, slots=True)
class _Query:
    """Zones that are asked together for the same run of windows; `is_retry` when they had no answer the last time."""

    worklist: _Worklist
    zones: tuple[Zone, ...]
    starts: range
    is_retry: bool


class Collector:
    """Fetches what is due into the ledger, pass by pass."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        max_ledger_bytes: int,
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._max_ledger_bytes = max_ledger_bytes
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._zones: dict[str, Zone] = {}
        self._zones_listed_at: float | None = None
        self._listing_tried_at: float | None = None
        self._selection = {
            "accounts": settings.accounts,
            "zones": settings.zones,
            "exclude_zones": settings.exclude_zones,
        }
        self._cloudflare_answers = True
        self._worklists = [_Worklist(DATASETS[name], settings.bucket_seconds) for name in settings.datasets]

    async def run(self, stopping: asyncio.Event) -> None:
        """Collect what is due every `collection_interval_seconds`, until `stopping` is set."""
        while not stopping.is_set():
            await self.collect_due(stopping)
            await wait_for_any(self._clock, self._settings.collection_interval_seconds, stopping)

    async def collect_due(self, stopping: asyncio.Event) -> bool:
        """One pass: fetch every window that is due, as far as Cloudflare and the ledger's volume let it.

        Returns whether nothing that is due is missing now.
        """
        self._health.beat(LOOP)
        started = self._clock.monotonic()
        complete = await self._pass(stopping)
        outstanding = [entry for worklist in self._worklists for entry in worklist.outstanding.items()]
        self._metrics.zones_failing.set(len({tag for tag, of_zone in outstanding if of_zone.is_failing}))
        self._health.completed(LOOP)
        self._metrics.collect_pass_duration_seconds.observe(self._clock.monotonic() - started)
        return complete and not any(of_zone.starts for _, of_zone in outstanding)

    async def _pass(self, stopping: asyncio.Event) -> bool:
        """Go round after round; False where an outage, the ledger's volume or `stopping` ended it."""
        try:
            while not stopping.is_set():
                listed = await self._refresh_zones()
                for worklist in self._worklists:
                    await self._look_for_due_windows(worklist)
                queries = self._next_round()
                if queries:
                    if not await self._has_room():
                        return False
                    self._cloudflare_answers = await self._ask_all(queries, stopping)
                if not self._cloudflare_answers:
                    return False
                if listed:
                    self._metrics.collect_last_success_timestamp_seconds.set(self._clock.now())
                # Hours of catching up are many passes to whoever watches.
                self._health.completed(LOOP)
                if not queries:
                    return listed
        except* LedgerFullError as errors:
            log.warning("Collection pauses: the ledger's volume is full", error=str(errors.exceptions[0]))
        return False

    def _next_round(self) -> list[_Query]:
        """What may be asked for at this moment, the oldest windows first."""
        zones = self._zones.values()
        monotonic = self._clock.monotonic()
        queries = [query for worklist in self._worklists for query in worklist.next_round(zones, monotonic)]
        return sorted(queries, key=lambda query: (query.is_retry, query.starts[0]))

    async def _ask_all(self, queries: Sequence[_Query], stopping: asyncio.Event) -> bool:
        """Ask some at a time, and leave the rest once several had no answer; tell whether any had one."""
        todo = iter(queries)
        unanswered: list[_Query] = []
        answered = 0

        async def ask_in_turn() -> None:
            nonlocal answered
            while len(unanswered) < _QUERIES_WITHOUT_ANSWER and not stopping.is_set() and (query := next(todo, None)):
                if await self._ask(query):
                    answered += 1
                else:
                    unanswered.append(query)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_QUERIES_AT_ONCE, len(queries))):
                group.create_task(ask_in_turn())
        for query in unanswered:
            self._note_no_answer(query, alone=bool(answered) and len(query.zones) == 1)
        return answered > 0

    def _note_no_answer(self, query: _Query, *, alone: bool) -> None:
        """Cloudflare had no answer to this query; `alone`: to one zone's, while it had some for others."""
        for zone in query.zones:
            of_zone = query.worklist.outstanding[zone.tag]
            of_zone.unanswered = max(1, of_zone.unanswered + alone)
            hold_seconds = self._settings.collection_interval_seconds * 2 ** min(of_zone.unanswered - 1, 10)
            of_zone.held_until = max(
                of_zone.held_until, self._clock.monotonic() + min(hold_seconds, _NO_ANSWER_HOLD_SECONDS)
            )

    async def _ask(self, query: _Query) -> bool:
        """Ask one query and write down what it brought; False when that was no answer at all."""
        self._health.beat(LOOP)
        worklist = query.worklist
        answers = _oldest_first(
            await self._api.fetch([worklist.dataset], worklist.width_seconds, query.zones, query.starts)
        )
        await self._log_requests()
        if not self._is_final(query):
            # The clock was set while nobody asked, and only the answer's date shows it: the next look begins anew.
            return False
        now = self._clock.now()
        buckets = [
            bucket for answer in answers if isinstance(answer, Answered) for bucket in self._buckets(worklist, answer)
        ]
        if buckets:
            captured = await self._ledger.write(capture, buckets, now)
            self._ledger.announce()
            self._note_captured(worklist, buckets, captured)
        holes: list[Hole] = []
        for answer in answers:
            match answer:
                case Answered(scope=scope, windows=windows):
                    of_zone = worklist.outstanding[scope.tag]
                    of_zone.settle(windows)
                    of_zone.is_failing = False
                    of_zone.unanswered = 0
                case Failed():
                    holes += self._note_failure(worklist, answer)
                case _:
                    assert_never(answer)
        if holes:
            _tell_failures([answer for answer in answers if isinstance(answer, Failed)], holes)
            await self._ledger.write(record_holes, holes, now)
        return not all(_is_no_answer(answer) for answer in answers)

    async def _log_requests(self) -> None:
        """Keep what was sent, for the process that comes after this one, however this one ends."""
        now = self._clock.now()
        quota = self._api.quota
        ended_at = {str(api): [now - seconds for seconds in quota.recent_seconds_ago(api)] for api in Api}
        await self._ledger.write(log_requests, ended_at)

    async def _recall_requests(self) -> None:
        """Count what the process before this one sent, and what it may have had under way when it ended."""
        now = self._clock.now()
        for api, ended_at in (await self._ledger.read(logged_requests)).items():
            self._api.quota.remember(Api(api), [now - moment for moment in ended_at])
            self._api.quota.remember(Api(api), [0.0] * _QUERIES_AT_ONCE)

    def _is_final(self, query: _Query) -> bool:
        """Whether the windows asked for were final, by the clock as it is known now that Cloudflare has answered."""
        newest = Window(query.starts[-1], query.worklist.width_seconds)
        return newest.is_final(self._cloudflare_now(), self._settings.delay_seconds)

    def _buckets(self, worklist: _Worklist, answer: Answered) -> list[Bucket]:
        windows = [
            (Window(start, worklist.width_seconds), samples) for start, samples in sorted(answer.windows.items())
        ]
        return [
            Bucket(
                dataset=worklist.dataset.name,
                scope=answer.scope.tag,
                window=window,
                timestamp_ms=window.timestamp_ms(self._settings.sample_timestamp),
                series=samples.series,
                values=samples.values,
            )
            for window, samples in windows
        ]

    def _note_captured(self, worklist: _Worklist, buckets: Sequence[Bucket], captured: Captured) -> None:
        self._health.token_accepted()
        name = worklist.dataset.name
        newest = max(bucket.window.end for bucket in buckets)
        self._metrics.collect_captured_buckets_total.labels(name).inc(captured.buckets)
        self._metrics.collect_captured_samples_total.labels(name).inc(captured.samples)
        self._metrics.collect_drifted_buckets_total.labels(name).inc(captured.drifted)
        log.info(
            "Captured final windows",
            dataset=worklist.dataset.name,
            zones=len({bucket.scope for bucket in buckets}),
            buckets=captured.buckets,
            samples=captured.samples,
            newest_window_end=instant(newest),
        )
        if captured.drifted:
            log.warning(
                "Cloudflare answered differently for windows captured before; the first capture stays",
                dataset=worklist.dataset.name,
                buckets=captured.drifted,
            )

    def _note_failure(self, worklist: _Worklist, failed: Failed) -> list[Hole]:
        """Hold the zone back as its failure asks for, and say why its windows have no bucket."""
        of_zone = worklist.outstanding[failed.scope.tag]
        failure = failed.failure
        starts: Sequence[int] = failed.starts
        reason = HoleReason.FAILED
        hold_seconds = failure.retry_after_seconds or self._settings.collection_interval_seconds
        if failure.kind is ErrorKind.TOKEN:
            self._health.token_refused(failure.message)
        elif failure.kind in _DENIALS:
            reason = HoleReason.DENIED
            hold_seconds = failure.retry_after_seconds or _DENIED_HOLD_SECONDS
        elif failure.kind is ErrorKind.RETENTION and (expired := self._expired(failed)):
            reason = HoleReason.EXPIRED
            starts = expired
            hold_seconds = 0.0
            of_zone.settle(starts)
        of_zone.is_failing = reason is not HoleReason.EXPIRED
        of_zone.held_until = self._clock.monotonic() + hold_seconds
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

    async def _look_for_due_windows(self, worklist: _Worklist) -> None:
        """Add what has become final since the last look, and all that is missing of zones that were not known then."""
        starts = final_window_starts(
            self._cloudflare_now(),
            width_seconds=worklist.width_seconds,
            delay_seconds=self._settings.delay_seconds,
            reach_seconds=self._settings.replay_hours * 3600,
        )
        before = worklist.looked_at
        if starts.stop < before.stop:
            # Somebody set the clock back: what was due by the old time may not be, and what was too old may be due.
            worklist.outstanding.clear()
        known = [tag for tag in self._zones if tag in worklist.outstanding]
        unknown = [tag for tag in self._zones if tag not in worklist.outstanding]
        new_starts = range(max(starts.start, before.stop), starts.stop, worklist.width_seconds)
        missing = await self._missing(worklist, known, new_starts) | await self._missing(worklist, unknown, starts)
        for tag, of_zone in list(worklist.outstanding.items()):
            if tag in self._zones:
                of_zone.starts = [start for start in of_zone.starts if start >= starts.start]
            else:
                del worklist.outstanding[tag]
        for tag, missing_starts in missing.items():
            worklist.outstanding.setdefault(tag, _Outstanding([])).starts += missing_starts
        worklist.looked_at = starts

    async def _missing(self, worklist: _Worklist, tags: Sequence[str], starts: range) -> dict[str, list[int]]:
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
        ahead_seconds = self._api.ahead_seconds or 0.0
        if ahead_seconds <= _CLOCK_TOLERANCE_SECONDS:
            return self._clock.now()
        log.warning(
            "This machine's clock is ahead of Cloudflare's, by which windows are final; set it right",
            ahead_seconds=round(ahead_seconds),
        )
        return self._clock.now() - ahead_seconds

    async def _refresh_zones(self) -> bool:
        """List the zones when the last list is old; False while that fails.

        An outage leaves the last list in force, over a restart too.
        """
        monotonic = self._clock.monotonic()
        if self._zones_listed_at is not None and monotonic - self._zones_listed_at < ZONES_REFRESH_SECONDS:
            return True
        if self._listing_tried_at is not None:
            # A listing of many zones is many requests: one that fails is not tried again at every round.
            if monotonic - self._listing_tried_at < self._settings.collection_interval_seconds:
                return False
        else:
            await self._recall_requests()
            await self._recall_zones()
        self._listing_tried_at = monotonic
        await self._verify_token()
        listing = await self._api.list_zones(**self._selection)
        match listing:
            case ApiFailure(kind=kind, message=message):
                log.warning("The zones could not be listed; the last list stays in force", kind=kind, error=message)
            case ZoneList(zones=(), unmatched=unmatched):
                # A token that lost its permissions sees no zones, without an error.
                _warn_unmatched(unmatched)
                log.warning("The token can read no zone that the settings ask for; the last list stays in force")
            case ZoneList(zones=zones, unmatched=unmatched):
                _warn_unmatched(unmatched)
                await self._take_list(zones)
                self._zones_listed_at = monotonic
                return True
            case _:
                assert_never(listing)
        return False

    async def _recall_zones(self) -> None:
        """Begin with the zones that the ledger knows, as far as today's settings leave them."""
        known = [_zone(scope) for scope in await self._ledger.read(present_scopes)]
        self._zones = {zone.tag: zone for zone in known if selects(zone, **self._selection)}
        self._metrics.zones.set(len(self._zones))

    async def _take_list(self, zones: Sequence[Zone]) -> None:
        gone = await self._ledger.write(record_scopes, [_scope(zone) for zone in zones], self._clock.now())
        self._zones = {zone.tag: zone for zone in zones}
        for scope in gone:
            log.warning("A zone has disappeared; what was captured of it is kept", zone=scope.name, zone_id=scope.tag)
        self._metrics.zones.set(len(zones))
        log.info("Listed the zones", zones=len(zones))

    async def _verify_token(self) -> None:
        check = await self._api.verify_token()
        match check:
            case TokenAccepted():
                self._health.token_accepted()
            case TokenRefused(message=message):
                self._health.token_refused(message)
                log.error("Cloudflare refuses the API token; check CF_API_TOKEN", error=message)
            case TokenUnknown(failure=failure):
                log.warning("The API token could not be verified", kind=failure.kind, error=failure.message)
            case _:
                assert_never(check)

    async def _has_room(self) -> bool:
        """Whether the ledger is within its budget. Collection pauses when it is not: pending rows are never dropped."""
        used = (await self._ledger.read(room)).used_bytes
        if used < self._max_ledger_bytes:
            return True
        log.error(
            "Collection pauses: the ledger has reached LEDGER_MAX_BYTES, and what waits for delivery is never dropped",
            used_bytes=used,
            max_bytes=self._max_ledger_bytes,
        )
        return False


def _is_no_answer(answer: ScopeAnswer) -> bool:
    return isinstance(answer, Failed) and answer.failure.kind in _NO_ANSWER


def _oldest_first(answers: Sequence[ScopeAnswer]) -> list[ScopeAnswer]:
    """The answers without windows that overtook an older one of their zone, which Cloudflare failed to answer.

    They are asked for again together with it: a receiver that takes nothing out of order would refuse the older one.
    """
    failed_from: dict[Zone | Account, int] = {}
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


def _warn_unmatched(unmatched: Sequence[Unmatched]) -> None:
    for each in unmatched:
        log.warning(
            "A setting names something that the token cannot see",
            setting=each.setting,
            given=each.given,
            nearest=each.nearest,
        )


def _zone(scope: Scope) -> Zone:
    return Zone(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan)


def _scope(zone: Zone) -> Scope:
    return Scope(zone.tag, zone.name, zone.account_tag, zone.account_name, zone.plan)
