"""Facts into the ledger: what only the present can tell, read once in every window, with the time of the read.

Owns the decision when to read. A window is that of the datasets, or longer where the facts ask for it. What was not
read in its window cannot be read afterwards: it is counted as missed, and nothing waits for it.

Promises: a scope's facts have one read a window at most, over restarts too, and ascending times; only a whole answer is
captured; a scope that cannot be read costs no other one anything, and a missing permission is told once, by its name.
Reads give way to what is recent: where there are more than the quota has places for, what was read longest ago is next.

Knows nothing of receivers, and of the collector only what it writes into the ledger: which zones and accounts there
are.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from worker.buckets import Bucket, Window
from worker.budget import keep_requests, recent_requests
from worker.clock import Clock, really_ahead, wait_for_any
from worker.cloudflare import ApiFailure, CloudflareApi, ErrorKind, FactSet, Samples, Scope
from worker.config import BUCKET_SECONDS, CloudflareSettings
from worker.errors import LedgerFullError
from worker.health import Health, TokenState, loop_of
from worker.ledger import (
    Ledger,
    denials,
    newest_timestamps,
    present_scopes,
    record_answer,
    record_denials,
)
from worker.observe import Metrics, get_logger
from worker.owners import recalled
from worker.room import has_room

LOOP = "facts"

# After so many reads it is looked anew for what is due, so that the facts of many zones do not keep those of accounts
# waiting: half a minute at two a second.
_READS_AT_ONCE = 50

# After so many reads in a row without an answer the others are left for later: it may be an outage.
_READS_WITHOUT_ANSWER = 4

# What fails is read less and less often, but twice an hour at least; what a token or a plan denies seldom changes.
_FAILED_HOLD_SECONDS = 1800.0
_DENIED_HOLD_SECONDS = 3600.0

# Failures that say something about Cloudflare, the quota or the token, and not about what is read.
_NO_ANSWER = frozenset({ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN})

_DENIALS = frozenset({ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.AUTH_SCOPE})

log = get_logger()


@dataclass(slots=True)
class _Subject:
    """The facts of one kind of one scope.

    newest_ms:  the time of the newest read that was captured, unix milliseconds; None without one.
    is_denied:  whether the ledger says that they are denied.
    held_until: monotonic time until which they are not read.
    failures:   how many reads have failed in a row.
    told:       what kind of failure was told of them; None while they can be read.
    """

    fact_set: FactSet
    scope: Scope
    newest_ms: int | None
    is_denied: bool
    held_until: float = -math.inf
    failures: int = 0
    told: ErrorKind | None = None


class FactReader:
    """Reads what is due with one token into the ledger, pass by pass."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        fact_sets: Sequence[FactSet],
        max_ledger_bytes: int,
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        """`fact_sets`: what is read, of the zones and accounts that the ledger knows and the settings select."""
        self.loop = loop_of(LOOP, settings.name)
        self._settings = settings
        self._fact_sets = fact_sets
        self._max_ledger_bytes = max_ledger_bytes
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._subjects: dict[tuple[str, str], _Subject] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Read what is due every `collection_interval_seconds`, until `stopping` is set.

        The first time after one interval: until then the zones are listed, and the requests of the process before this
        one counted.
        """
        self._health.completed(self.loop)
        while not await wait_for_any(self._clock, self._settings.collection_interval_seconds, stopping):
            await self.read_due(stopping)

    async def read_due(self, stopping: asyncio.Event) -> bool:
        """One pass: read all that has no read in the present window, as far as Cloudflare and the ledger let it.

        Returns whether it got through, and nothing failed but what is denied.
        """
        self._health.beat(self.loop)
        got_through = False
        try:
            await self._look_for_subjects()
            read: set[tuple[str, str]] = set()
            # Short windows may be over before the pass is: they are read again in between, but do not prolong it.
            while not read.issuperset(due := self._due()):
                read.update(due[:_READS_AT_ONCE])
                if not await has_room(self._ledger, self._max_ledger_bytes, self.loop):
                    break
                if not await self._read(due[:_READS_AT_ONCE], stopping):
                    break
            else:
                got_through = True
        except LedgerFullError as error:
            log.warning("Reading facts pauses: the ledger's volume is full", error=str(error))
        self._health.completed(self.loop)
        return got_through and all(each.is_denied or not each.failures for each in self._subjects.values())

    async def _look_for_subjects(self) -> None:
        """Take the scopes of the last listing; what was read of those that are new here the ledger tells."""
        scopes = recalled(await self._ledger.read(present_scopes), self._settings)
        denied = {(each.dataset, each.tag) for each in await self._ledger.read(denials)}
        subjects: dict[tuple[str, str], _Subject] = {}
        for fact_set in self._fact_sets:
            of_kind = [scope for scope in scopes if scope.kind is fact_set.scope]
            unknown = [scope.tag for scope in of_kind if (fact_set.name, scope.tag) not in self._subjects]
            newest = await self._ledger.read(
                newest_timestamps, dataset=fact_set.name, widths_seconds=BUCKET_SECONDS, tags=unknown
            )
            for scope in of_kind:
                key = (fact_set.name, scope.tag)
                subject = self._subjects.get(key) or _Subject(fact_set, scope, newest[scope.tag], key in denied)
                subject.scope = scope
                subjects[key] = subject
        self._subjects = subjects

    def _due(self) -> list[tuple[str, str]]:
        """What has no read in the present window: first what was read the most windows ago, what has failed last."""
        now = self._now()
        monotonic = self._clock.monotonic()
        order: dict[tuple[str, str], tuple[bool, float, int]] = {}
        for key, subject in self._subjects.items():
            window = self._window(subject, now)
            if subject.held_until <= monotonic and not _is_read(subject, window):
                # What has never been read is no more urgent than what was read in the window before.
                newest = now - window.width_seconds if subject.newest_ms is None else subject.newest_ms / 1000
                age_windows = (now - newest) / window.width_seconds
                order[key] = (subject.failures > 0, -age_windows, window.width_seconds)
        return sorted(order, key=order.__getitem__)

    async def _read(self, due: Sequence[tuple[str, str]], stopping: asyncio.Event) -> bool:
        """Read these one after the other; False where several in a row had no answer, or `stopping` was set."""
        samples = buckets = unanswered = 0
        failed: list[tuple[_Subject, ApiFailure]] = []
        for subject in map(self._subjects.__getitem__, due):
            if stopping.is_set() or unanswered == _READS_WITHOUT_ANSWER:
                break
            found = await self._api.read_facts(subject.fact_set, subject.scope)
            # An hour of reading, which is what a large fleet takes, is many passes to whoever watches.
            self._health.completed(self.loop)
            match found:
                case Samples():
                    unanswered = 0
                    if await self._capture(subject, found):
                        buckets += 1
                        samples += len(found.values)
                case ApiFailure():
                    await keep_requests(self._settings.name, self._api.quota, self._ledger, self._clock)
                    unanswered = unanswered + 1 if found.kind in _NO_ANSWER else 0
                    await self._note_failure(subject, found)
                    failed.append((subject, found))
                case _:
                    assert_never(found)
        if buckets:
            log.info("Read facts", buckets=buckets, samples=samples)
        self._tell_failures(failed)
        return unanswered < _READS_WITHOUT_ANSWER and not stopping.is_set()

    async def _capture(self, subject: _Subject, samples: Samples) -> bool:
        """Write down what was read just now; False where somebody has set the clock back behind the last read."""
        now = self._now()
        window = self._window(subject, now)
        if _is_read(subject, window):
            await keep_requests(self._settings.name, self._api.quota, self._ledger, self._clock)
            return False
        name = subject.fact_set.name
        bucket = Bucket(
            dataset=name,
            scope=subject.scope.tag,
            window=window,
            timestamp_ms=int(now * 1000),
            series=samples.series,
            values=samples.values,
        )
        requests = recent_requests(self._api.quota, self._clock)
        await self._ledger.write(record_answer, self._settings.name, requests, buckets=[bucket], holes=[], now=now)
        self._ledger.announce()
        if subject.is_denied:
            await self._ledger.write(record_denials, {(name, subject.scope.tag): None}, now)
        if subject.newest_ms is not None:
            before = self._window(subject, subject.newest_ms / 1000)
            missed = (window.start - before.end) // window.width_seconds
            self._metrics.facts_missed_windows_total.labels(name).inc(max(0, missed))
        self._metrics.facts_reads_total.labels(name, "captured").inc()
        self._metrics.collect_captured_buckets_total.labels(name).inc()
        self._metrics.collect_captured_samples_total.labels(name).inc(len(samples.values))
        subject.newest_ms = bucket.timestamp_ms
        subject.is_denied = False
        subject.failures = 0
        subject.told = None
        return True

    async def _note_failure(self, subject: _Subject, failure: ApiFailure) -> None:
        """Hold the subject back; write down where it is denied."""
        name = subject.fact_set.name
        # Cloudflare speaks of a permission that lacks as of a wrong token, too; whether it is wrong the collector asks.
        is_refused = self._health.tokens[self._settings.name] is TokenState.REFUSED
        about_token = failure.kind is ErrorKind.TOKEN and not is_refused
        if failure.kind in _DENIALS or about_token:
            hold_seconds = _DENIED_HOLD_SECONDS
            outcome = "denied"
            if not subject.is_denied:
                subject.is_denied = True
                detail = f"needs {subject.fact_set.permission}: {failure.message}"
                await self._ledger.write(record_denials, {(name, subject.scope.tag): detail}, self._clock.now())
        else:
            hold_seconds = self._settings.collection_interval_seconds * 2.0 ** min(subject.failures, 10)
            hold_seconds = min(hold_seconds, _FAILED_HOLD_SECONDS)
            outcome = "failed"
        subject.failures += 1
        subject.held_until = self._clock.monotonic() + (failure.retry_after_seconds or hold_seconds)
        self._metrics.facts_reads_total.labels(name, outcome).inc()

    def _tell_failures(self, failed: Sequence[tuple[_Subject, ApiFailure]]) -> None:
        """One line for all scopes with the same failure, and none for those of which it was told before."""
        news: dict[tuple[str, ErrorKind], list[tuple[_Subject, ApiFailure]]] = {}
        for subject, failure in failed:
            if subject.told is not failure.kind:
                subject.told = failure.kind
                news.setdefault((subject.fact_set.name, failure.kind), []).append((subject, failure))
        for (name, kind), group in news.items():
            subject, failure = group[0]
            log.warning(
                "Facts could not be read",
                dataset=name,
                scopes=len(group),
                first_scope=subject.scope.name or subject.scope.tag,
                kind=kind,
                error=failure.message,
                **({"permission": subject.fact_set.permission} if subject.is_denied else {}),
            )

    def _now(self) -> float:
        """The time that is stamped: this machine's, or Cloudflare's where this machine's runs ahead."""
        return self._clock.now() - really_ahead(self._api.ahead_seconds)

    def _window(self, subject: _Subject, moment: float | None = None) -> Window:
        """The window that holds a moment (unix seconds), the present one by default."""
        width_seconds = subject.fact_set.window_seconds(self._settings.bucket_seconds)
        moment = self._now() if moment is None else moment
        return Window(int(moment // width_seconds) * width_seconds, width_seconds)


def _is_read(subject: _Subject, window: Window) -> bool:
    """Whether there was a read in this window, or in a later one, whatever width windows had then."""
    return subject.newest_ms is not None and subject.newest_ms >= window.start * 1000
