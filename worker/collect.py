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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from worker.buckets import Bucket, Window, final_window_starts
from worker.clock import Clock, wait_for_any
from worker.cloudflare import (
    DATASETS,
    WINDOWS_PER_QUERY,
    ZONES_PER_QUERY,
    Answered,
    ApiFailure,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    TokenAccepted,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    Zone,
    ZoneAnswer,
    ZoneList,
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

# What a plan or a token denies seldom changes; asking once an hour notices when it does.
_DENIED_HOLD_SECONDS = 3600.0

# These failures say something about Cloudflare, the token or the quota, not about the zones that were asked for: going
# on with other zones in the same pass would only meet them again.
_OUTAGES = frozenset({ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT})

_DENIALS = frozenset({ErrorKind.PLAN_DATASET, ErrorKind.AUTH_SCOPE})

log = get_logger()


@dataclass(slots=True)
class _Worklist:
    """What is outstanding of one dataset: the windows of each zone, oldest first, and the zones to leave alone for now.

    looked_until: windows that start before this have been compared with the ledger.
    held_until:   monotonic time until which a zone is not asked.
    """

    dataset: Dataset
    width_seconds: int
    looked_until: int = 0
    outstanding: dict[str, list[int]] = field(default_factory=dict)
    held_until: dict[str, float] = field(default_factory=dict)

    def next_round(self, zones: Iterable[Zone], monotonic: float) -> "list[_Query]":
        """Queries that ask each zone once, for its oldest outstanding windows; the oldest windows of all come first."""
        ready: list[tuple[int, int, Zone]] = []
        for zone in zones:
            starts = self.outstanding.get(zone.tag)
            if starts and self.held_until.get(zone.tag, 0.0) <= monotonic:
                ready.append((starts[0], self._run_length(starts), zone))
        # Zones with runs of the same length side by side: a query asks for the shortest of its zones' runs.
        ready.sort(key=lambda entry: entry[:2])
        queries: list[_Query] = []
        while ready:
            first = ready[0][0]
            together = [entry for entry in ready[:ZONES_PER_QUERY] if entry[0] == first]
            ready = ready[len(together) :]
            shortest = together[0][1]
            run = range(first, first + shortest * self.width_seconds, self.width_seconds)
            queries.append(_Query(self, tuple(zone for _, _, zone in together), run))
        return queries

    def settle(self, tag: str, starts: Iterable[int]) -> None:
        """These windows of a zone are not outstanding any more."""
        done = set(starts)
        self.outstanding[tag] = [start for start in self.outstanding.get(tag, ()) if start not in done]

    def _run_length(self, starts: Sequence[int]) -> int:
        length = 1
        while (
            length < min(len(starts), WINDOWS_PER_QUERY) and starts[length] == starts[length - 1] + self.width_seconds
        ):
            length += 1
        return length


@dataclass(frozen=True, slots=True)
class _Query:
    """Zones that are asked together for the same run of windows."""

    worklist: _Worklist
    zones: tuple[Zone, ...]
    starts: range


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
        await self._refresh_zones()
        listed = self._zones_listed_at is not None
        complete = await self._has_room() and await self._work_off(stopping) and listed
        if complete:
            self._metrics.collect_last_success_timestamp_seconds.set(self._clock.now())
        self._health.completed(LOOP)
        self._metrics.collect_pass_duration_seconds.observe(self._clock.monotonic() - started)
        return complete

    async def _work_off(self, stopping: asyncio.Event) -> bool:
        """Query until nothing is outstanding; tell whether that was reached."""
        try:
            return await self._query_until_captured(stopping)
        except* LedgerFullError as errors:
            log.warning("Collection pauses: the ledger's volume is full", error=str(errors.exceptions[0]))
        return False

    async def _query_until_captured(self, stopping: asyncio.Event) -> bool:
        for worklist in self._worklists:
            await self._look_for_new_windows(worklist)
        while not stopping.is_set():
            monotonic = self._clock.monotonic()
            queries = [
                query for worklist in self._worklists for query in worklist.next_round(self._zones.values(), monotonic)
            ]
            if not queries:
                return not any(any(worklist.outstanding.values()) for worklist in self._worklists)
            queries.sort(key=lambda query: query.starts[0])
            if not await self._ask_all(queries, stopping):
                return False
        return False

    async def _ask_all(self, queries: Sequence[_Query], stopping: asyncio.Event) -> bool:
        """Ask some at a time; stop at the first sign of an outage and tell that it was one by returning False."""
        todo = iter(queries)
        outage = False

        async def ask_in_turn() -> None:
            nonlocal outage
            for query in todo:
                if outage or stopping.is_set():
                    return
                outage |= not await self._ask(query)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_QUERIES_AT_ONCE, len(queries))):
                group.create_task(ask_in_turn())
        return not outage

    async def _ask(self, query: _Query) -> bool:
        """Ask one query and write down what it brought; False when Cloudflare could not be asked at all."""
        self._health.beat(LOOP)
        worklist = query.worklist
        answers = await self._api.fetch(worklist.dataset, worklist.width_seconds, query.zones, query.starts)
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
                case Answered(zone=zone, windows=windows):
                    worklist.settle(zone.tag, windows)
                case Failed():
                    holes += self._note_failure(worklist, answer)
                case _:
                    assert_never(answer)
        if holes:
            await self._ledger.write(record_holes, holes, now)
        return not all(_is_outage(answer) for answer in answers)

    def _buckets(self, worklist: _Worklist, answer: Answered) -> list[Bucket]:
        windows = [
            (Window(start, worklist.width_seconds), samples) for start, samples in sorted(answer.windows.items())
        ]
        return [
            Bucket(
                dataset=worklist.dataset.name,
                scope=answer.zone.tag,
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
        self._metrics.newest_captured_window_end_timestamp_seconds.labels(name).set(newest)
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
        tag = failed.zone.tag
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
            worklist.settle(tag, starts)
        worklist.held_until[tag] = self._clock.monotonic() + hold_seconds
        log.warning(
            "A zone's windows could not be captured",
            zone=failed.zone.name,
            dataset=worklist.dataset.name,
            windows=len(starts),
            first_window_start=instant(starts[0]),
            outcome=reason,
            kind=failure.kind,
            error=failure.message,
        )
        return [
            Hole(worklist.dataset.name, tag, Window(start, worklist.width_seconds), reason, failure.message)
            for start in starts
        ]

    def _expired(self, failed: Failed) -> list[int]:
        """The windows that Cloudflare has no data for any more."""
        if failed.failure.bound_seconds is None:
            return []
        oldest = self._clock.now() - failed.failure.bound_seconds
        return [start for start in failed.starts if start < oldest]

    async def _look_for_new_windows(self, worklist: _Worklist) -> None:
        """Add what became final since the last pass, and all that is missing of zones that were not known before."""
        starts = final_window_starts(
            self._clock.now(),
            width_seconds=worklist.width_seconds,
            delay_seconds=self._settings.delay_seconds,
            reach_seconds=self._settings.replay_hours * 3600,
        )
        known = worklist.outstanding
        worklist.outstanding = {tag: missing for tag, missing in known.items() if tag in self._zones}
        for missing in worklist.outstanding.values():
            missing[:] = [start for start in missing if start >= starts.start]
            missing += [start for start in starts if start >= worklist.looked_until]
        new = [tag for tag in self._zones if tag not in worklist.outstanding]
        if new:
            worklist.outstanding |= await self._ledger.write(
                outstanding_windows,
                dataset=worklist.dataset.name,
                width_seconds=worklist.width_seconds,
                tags=new,
                starts=starts,
            )
        worklist.looked_until = max(worklist.looked_until, starts.stop)

    async def _refresh_zones(self) -> None:
        """List the zones when the last list is old. An outage leaves the last list in force, over a restart too."""
        monotonic = self._clock.monotonic()
        if self._zones_listed_at is not None and monotonic - self._zones_listed_at < ZONES_REFRESH_SECONDS:
            return
        if not self._zones:
            known = await self._ledger.read(present_scopes)
            self._zones = {scope.tag: _zone(scope) for scope in known}
        await self._verify_token()
        settings = self._settings
        listing = await self._api.list_zones(
            accounts=settings.accounts, zones=settings.zones, exclude_zones=settings.exclude_zones
        )
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
            case _:
                assert_never(listing)

    async def _take_list(self, zones: Sequence[Zone]) -> None:
        self._zones = {zone.tag: zone for zone in zones}
        gone = await self._ledger.write(record_scopes, [_scope(zone) for zone in zones], self._clock.now())
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


def _is_outage(answer: ZoneAnswer) -> bool:
    return isinstance(answer, Failed) and answer.failure.kind in _OUTAGES


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
