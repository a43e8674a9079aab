"""Drift: whether the captured windows were final. A sample of them is read again later and compared with the ledger.

Owns the choice of what is read again and when, and what a difference means. Promises that a captured bucket never
changes for it, that a restart goes on with the same sample, and that it draws from the quota as `Priority.DRIFT` only:
what is live never waits for it. It is a measurement and no duty: a reading that fails or comes too late is left out,
and nobody's health depends on it.

Knows nothing of how windows are captured. What it keeps in memory is only a view of the ledger.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import assert_never

from worker.budget import keep_requests
from worker.clock import Clock, wait_for_any
from worker.cloudflare import (
    ZONES_PER_QUERY,
    Account,
    Answered,
    CloudflareApi,
    Dataset,
    Failed,
    Priority,
    Samples,
    Scope,
    ScopeKind,
    Zone,
)
from worker.config import CloudflareSettings
from worker.errors import LedgerFullError
from worker.lateness import Advice, compare, recommended_delay
from worker.ledger import (
    CapturedWindow,
    Ledger,
    Reading,
    captured_samples,
    chosen_after,
    last_captured_before,
    newest_readings,
    present_scopes,
    record_readings,
)
from worker.ledger import Scope as KnownScope
from worker.observe import Metrics, get_logger
from worker.series import parse_label_block

LOOP = "drift"

# As long as the shortest delay of a reading that can be set.
INTERVAL_SECONDS = 60.0

# A reading may be late by half of its delay: one at +15 min may come at +22 min, and still is none of those at +1 h.
_LATE_SHARE = 0.5

# What was captured later than half an hour after it was final, as after an outage, had all that time to settle and says
# nothing of the delay. A round over 10,000 zones takes a quarter of an hour.
_PROMPT_SECONDS = 1800

# Buckets that are looked at in one transaction, 4 us each: 4 ms in which nothing else gets at the ledger.
_BUCKETS_AT_ONCE = 1_000

# Windows that wait for one of their readings, 250 bytes each: 12 MB. Of 1,000 zones with 8 datasets 1 % of the windows
# of 5 minutes are 8,640 in the 9 hours until the last of the usual readings is too late.
_MOST_WAITING = 50_000

# A thousand windows with three readings each: what is advised follows the newest of them.
NEWEST_READINGS = 3_000

log = get_logger()


class DriftMeter:
    """Reads a sample of the windows that were captured with one token again, pass by pass."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        datasets: Sequence[Dataset],
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`datasets`: what is collected; windows of others are left alone."""
        self._settings = settings
        self._datasets = {dataset.name: dataset for dataset in datasets}
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._metrics = metrics
        self._seen_id: int | None = None
        self._waiting: dict[int, deque[CapturedWindow]] = {after: deque() for after in settings.drift_after_seconds}

    async def run(self, stopping: asyncio.Event) -> None:
        """Read what is due every INTERVAL_SECONDS until `stopping` is set."""
        for dataset in self._datasets.values():
            self._metrics.start_drift(
                dataset.name, delay_seconds=self._delay_seconds(dataset), after_seconds=self._waiting
            )
            await self._advise(dataset)
        # Not at once: collection goes first, and recalls what the process before this one sent.
        while not await wait_for_any(self._clock, INTERVAL_SECONDS, stopping):
            await self.read_due(stopping)

    async def read_due(self, stopping: asyncio.Event) -> None:
        """One pass: read again whatever is due by now."""
        await self._look_for_captures()
        due = self._take_due()
        known = await self._ledger.read(present_scopes) if due else ()
        scopes = {scope.tag: scope for scope in known if scope.token == self._settings.name}
        due = [each for each in due if each[1].scope in scopes]
        drifted: dict[str, int] = {}
        for after_seconds, windows in _together(due):
            if stopping.is_set():
                break
            asked = [window for window in windows if not self._is_late(window, after_seconds)]
            readings = await self._read(after_seconds, asked, scopes) if asked else []
            dataset = windows[0].dataset
            drifted[dataset] = drifted.get(dataset, 0) + sum(reading.samples_differing > 0 for reading in readings)
        for name, windows_drifted in drifted.items():
            advice = await self._advise(self._datasets[name])
            if windows_drifted and not self._datasets[name].is_sampled:
                log.warning(
                    "Cloudflare has changed its numbers of windows that were captured; they stay as captured",
                    dataset=name,
                    windows=windows_drifted,
                    delay=advice.reason,
                )

    # --- which windows -------------------------------------------------------------------------------------------

    async def _look_for_captures(self) -> None:
        """Choose from what was captured since the last look; at the first one, from all that may still be due."""
        if self._seen_id is None:
            reach_seconds = max(self._waiting) * (1 + _LATE_SHARE)
            self._seen_id = await self._ledger.read(last_captured_before, self._clock.now() - reach_seconds)
        while True:
            last, chosen = await self._ledger.read(
                chosen_after, self._seen_id, percent=self._settings.drift_sample_percent, most=_BUCKETS_AT_ONCE
            )
            if last is None:
                return
            self._seen_id = last
            for window in chosen:
                if self._tells_of_the_delay(window):
                    for after_seconds, waiting in self._waiting.items():
                        if after_seconds not in window.read_after and len(waiting) < _MOST_WAITING:
                            waiting.append(window)

    def _tells_of_the_delay(self, captured: CapturedWindow) -> bool:
        dataset = self._datasets.get(captured.dataset)
        if dataset is None or captured.window.width_seconds not in dataset.widths_seconds:
            return False
        return captured.captured_at - captured.window.end <= self._delay_seconds(dataset) + _PROMPT_SECONDS

    def _take_due(self) -> list[tuple[int, CapturedWindow]]:
        """Every window that is to be read by now, with the delay after which."""
        now = self._clock.now()
        due = []
        for after_seconds, waiting in self._waiting.items():
            while waiting and waiting[0].captured_at + after_seconds <= now:
                due.append((after_seconds, waiting.popleft()))
        return due

    def _is_late(self, captured: CapturedWindow, after_seconds: int) -> bool:
        return self._clock.now() > captured.captured_at + after_seconds * (1 + _LATE_SHARE)

    # --- what Cloudflare says now ----------------------------------------------------------------------------------

    async def _read(
        self, after_seconds: int, windows: Sequence[CapturedWindow], scopes: Mapping[str, KnownScope]
    ) -> list[Reading]:
        """Ask again for windows of one dataset that start at the same time, and keep what is found."""
        dataset = self._datasets[windows[0].dataset]
        asked = {window.scope: window for window in windows}
        answers = await self._api.fetch(
            [dataset],
            windows[0].window.width_seconds,
            [_scope(dataset, scopes[tag]) for tag in asked],
            [windows[0].window.start],
            priority=Priority.DRIFT,
        )
        readings = []
        for answer in answers:
            match answer:
                case Answered(scope=scope, windows=answered):
                    captured = asked[scope.tag]
                    reading = await self._reading(after_seconds, captured, scope, answered[captured.window.start])
                    readings += [reading] if reading else []
                case Failed():
                    # Not asked again: it is one of a sample, and Cloudflare has other things to answer now.
                    pass
                case _:
                    assert_never(answer)
        try:
            await keep_requests(self._settings.name, self._api.quota, self._ledger, self._clock)
            await self._ledger.write(record_readings, readings, self._clock.now())
        except LedgerFullError as error:
            log.warning("Windows that were read again are forgotten: the ledger's volume is full", error=str(error))
            return []
        for reading in readings:
            self._metrics.drift_read(
                dataset.name,
                after_seconds,
                differs=reading.samples_differing > 0,
                relative_difference=reading.relative_difference,
            )
        return readings

    async def _reading(
        self, after_seconds: int, captured: CapturedWindow, scope: Scope, later: Samples
    ) -> Reading | None:
        """Compare with the ledger; None where there is nothing to compare with."""
        before = await self._ledger.read(captured_samples, captured.bucket_id)
        if before is None or not _is_called(scope, before):
            return None
        metrics = [metric.name for metric, _ in self._datasets[captured.dataset].metrics() if metric.additive]
        comparison = compare(before, dict(zip(later.series, later.values, strict=True)), metrics)
        return Reading(
            bucket_id=captured.bucket_id,
            age_seconds=captured.captured_at - captured.window.end,
            after_seconds=after_seconds,
            samples_differing=comparison.samples_differing,
            relative_difference=comparison.relative_differences[metrics[0]] if metrics else None,
        )

    # --- what that means -----------------------------------------------------------------------------------------

    async def _advise(self, dataset: Dataset) -> Advice:
        readings = await self._ledger.read(newest_readings, dataset.name, most=NEWEST_READINGS)
        advice = recommended_delay(readings, delay_seconds=self._delay_seconds(dataset), is_sampled=dataset.is_sampled)
        self._metrics.drift_recommended_delay_seconds.labels(dataset.name).set(advice.delay_seconds or 0)
        return advice

    def _delay_seconds(self, dataset: Dataset) -> int:
        return self._settings.delay_seconds if dataset.delay_seconds is None else dataset.delay_seconds


def _together(due: Iterable[tuple[int, CapturedWindow]]) -> Iterator[tuple[int, list[CapturedWindow]]]:
    """What one query can ask for: one dataset's windows that start at the same time; the shortest delays first."""

    def alike(each: tuple[int, CapturedWindow]) -> tuple[int, str, int, int]:
        after_seconds, captured = each
        return after_seconds, captured.dataset, captured.window.width_seconds, captured.window.start

    for (after_seconds, *_), group in groupby(sorted(due, key=alike), key=alike):
        windows = [captured for _, captured in group]
        for first in range(0, len(windows), ZONES_PER_QUERY):
            yield after_seconds, windows[first : first + ZONES_PER_QUERY]


def _scope(dataset: Dataset, known: KnownScope) -> Scope:
    match dataset.scope:
        case ScopeKind.ZONE:
            return Zone(known.tag, known.name, known.account_tag, known.account_name, known.plan)
        case ScopeKind.ACCOUNT:
            return Account(known.tag, known.account_name)
        case _:
            assert_never(dataset.scope)


def _is_called(scope: Scope, captured: Mapping[bytes, float]) -> bool:
    """Whether the captured series have the scope's name of today: after a renaming all of them would seem changed."""
    return all(parse_label_block(series).items() >= scope.labels().items() for series in islice(captured, 1))
