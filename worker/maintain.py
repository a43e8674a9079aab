"""Upkeep: the ledger stays within its bounds, and what it holds is told to whoever watches.

Owns retention, the replay bound of deliveries, the proof that the ledger can be written, and the metrics that are read
from the ledger. Deletes nothing that waits to be delivered.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from worker.clock import Clock, wait_for_any
from worker.cloudflare import Dataset, FactSet, further_delays
from worker.config import CloudflareSettings, LedgerSettings
from worker.errors import LedgerFullError, LedgerUnusableError
from worker.health import Health
from worker.ledger import (
    STAGING_SECONDS,
    Ledger,
    backlogs,
    delete_unstaged,
    delivery_counts,
    denied_counts,
    expire,
    give_up_staging,
    hole_counts,
    newest_captured,
    open_jobs,
    prove_writable,
    prune,
    room,
    scope_reports,
)
from worker.observe import Metrics, get_logger, replace_values

LOOP = "maintain"

# Metrics of the ledger are as old as this when they are read; scrapes come every 15 to 60 s.
INTERVAL_SECONDS = 15.0

log = get_logger()


class Maintainer:
    """Keeps one ledger within its bounds, pass by pass."""

    def __init__(
        self,
        cloudflare: CloudflareSettings,
        ledger_settings: LedgerSettings,
        *,
        datasets: Sequence[Dataset],
        fact_sets: Sequence[FactSet] = (),
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        """`datasets`, `fact_sets`: those that are collected; of others nothing is told any more."""
        collected: list[Dataset | FactSet] = [*datasets, *fact_sets]
        self._collected = {each.name for each in collected}
        self._further_delays = further_delays(datasets, cloudflare.delay_seconds)
        self._cloudflare = cloudflare
        self._settings = ledger_settings
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        metrics.ledger_max_bytes.set(ledger_settings.max_bytes)

    async def run(self, stopping: asyncio.Event) -> None:
        """Do a pass every INTERVAL_SECONDS until `stopping` is set."""
        while not stopping.is_set():
            await self.tidy()
            await wait_for_any(self._clock, INTERVAL_SECONDS, stopping)

    async def tidy(self) -> None:
        """One pass."""
        self._health.beat(LOOP)
        if not self._ledger.is_in_place():
            message = f"the ledger {self._ledger.path} was moved or deleted under the running worker; put it back"
            raise LedgerUnusableError(message)
        problem = await self._change()
        if problem is None:
            self._health.ledger_writable()
        else:
            self._health.ledger_unwritable(problem)
            log.error("The ledger cannot be written", error=problem)
        await self._measure()
        self._health.completed(LOOP)

    async def _change(self) -> str | None:
        """Everything that writes; what is wrong when there is no room to write."""
        try:
            await self._ledger.write(prove_writable)
            await self._expire()
            await self._prune()
            await self._give_up_staging()
        except LedgerFullError as error:
            return str(error)
        return None

    async def _expire(self) -> None:
        now = self._clock.now()
        bound = now - self._cloudflare.replay_hours * 3600
        if expired := await self._ledger.write(expire, ended_before=bound, now=now):
            log.error(
                "Buckets could not be delivered within CF_REPLAY_HOURS and are given up; "
                "`cfrw resend --since` sends them again",
                buckets=expired,
                replay_hours=self._cloudflare.replay_hours,
            )

    async def _prune(self) -> None:
        now = self._clock.now()
        hours = self._settings.retention_hours
        if (await self._ledger.read(room)).used_bytes >= self._settings.max_bytes:
            # What was delivered makes room for what would otherwise be lost.
            hours = self._cloudflare.replay_hours
        while deleted := await self._ledger.write(prune, ended_before=now - hours * 3600):
            self._health.beat(LOOP)
            log.info("Deleted buckets that every destination has decided on", buckets=deleted, older_than_hours=hours)
        self._metrics.ledger_last_prune_timestamp_seconds.set(now)

    async def _give_up_staging(self) -> None:
        """End imports whose command was killed before all was staged, and delete what they and others left behind."""
        now = self._clock.now()
        if given_up := await self._ledger.write(give_up_staging, begun_before=now - STAGING_SECONDS, now=now):
            log.warning("Imports that were never complete are given up; nothing of them was captured", imports=given_up)
        while await self._ledger.write(delete_unstaged):
            self._health.beat(LOOP)

    async def _measure(self) -> None:
        metrics = self._metrics
        now = self._clock.now()
        for backlog in await self._ledger.read(backlogs):
            metrics.push_samples_pending.labels(backlog.destination).set(backlog.samples)
            metrics.push_buckets_pending.labels(backlog.destination).set(backlog.buckets)
            metrics.set_oldest_pending(backlog.destination, backlog.oldest_end)
        states: dict[tuple[str, ...], float] = {
            (count.destination, count.state): float(count.buckets)
            for count in await self._ledger.read(delivery_counts)
            if not count.gone
        }
        replace_values(metrics.ledger_buckets, states)
        for dataset, end in self._of_collected(await self._ledger.read(newest_captured)).items():
            metrics.newest_captured_window_end_timestamp_seconds.labels(dataset).set(end)
        denied = self._of_collected(await self._ledger.read(denied_counts))
        replace_values(metrics.denied_scopes, {(dataset,): float(count) for dataset, count in denied.items()})
        replace_values(metrics.missing_windows, await self._missing(now))
        metrics.repairs_open.set(len(await self._ledger.read(open_jobs)))
        metrics.ledger_size_bytes.set((await self._ledger.read(room)).file_bytes + self._ledger.log_bytes())

    async def _missing(self, now: float) -> dict[tuple[str, ...], float]:
        """How many windows within the replay bound are due and not captured, by dataset and reason."""
        since = now - self._cloudflare.replay_hours * 3600
        reports = await self._ledger.read(
            scope_reports,
            since=since,
            final_until=now - self._cloudflare.delay_seconds,
            delay_seconds=self._cloudflare.delay_seconds,
            further_delays=self._further_delays,
        )
        missing: Counter[tuple[str, ...]] = Counter()
        for report in reports:
            if report.dataset in self._further_delays:
                # What was due before its dataset was denied is not asked for any more.
                missing[report.dataset, "denied" if report.denied else "waiting"] += report.missing - report.holes
        for (dataset, reason), count in (await self._ledger.read(hole_counts, since=since)).items():
            if dataset in self._further_delays:
                missing[dataset, reason] += count
        return {labels: float(max(0, count)) for labels, count in missing.items()}

    def _of_collected(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Without the datasets that the ledger knows from other settings."""
        return {dataset: count for dataset, count in counts.items() if dataset in self._collected}
