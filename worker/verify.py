"""Continuous verification: the last hours are read back from every destination on a schedule, and told on `/metrics`.

Owns the schedule. It is no duty: it has no part in readiness, changes nothing, and is no repair, so that the journal
keeps to what somebody has asked for. What it finds is told once a pass, in the log and by metrics.

Promises: live work goes first; a destination that cannot be read keeps its numbers of the last pass that could, and
`cfrw_verify_last_success_timestamp_seconds` says how old they are.
"""

import asyncio
from dataclasses import asdict
from typing import assert_never

from worker.clock import Clock, wait_for_any
from worker.findings import with_looked
from worker.ledger import Verify, VerifyCount, VerifyResult
from worker.observe import Metrics, get_logger
from worker.remote_write import Later
from worker.times import span
from worker.verification import Looked, Verification

LOOP = "verify"

# The windows that most set-ups collect are an hour wide: each is looked at soon after it was delivered.
INTERVAL_SECONDS = 3600.0

# The first pass is not at the start, when a backlog may have to be caught up with first.
FIRST_SECONDS = 300.0

# Between two pieces, which take a tenth of a second of CPU each: a sixth of what there is, at most.
PAUSE_SECONDS = 0.5

log = get_logger()


class ContinuousVerification:
    """Verifies the last hours, pass by pass."""

    def __init__(
        self,
        verification: Verification,
        destinations: tuple[str, ...],
        *,
        hours: int,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`hours`: how far back a pass reaches."""
        self._verification = verification
        self._destinations = destinations
        self._hours = hours
        self._clock = clock
        self._metrics = metrics

    async def run(self, stopping: asyncio.Event) -> None:
        """One pass every INTERVAL_SECONDS until `stopping` is set."""
        for destination in self._destinations:
            self._metrics.start_verify(destination)
        wait_seconds = FIRST_SECONDS
        while not await wait_for_any(self._clock, wait_seconds, stopping):
            for destination in self._destinations:
                await self._pass(destination, stopping)
            wait_seconds = INTERVAL_SECONDS

    async def _pass(self, destination: str, stopping: asyncio.Event) -> None:
        now = int(self._clock.now())
        wanted = Verify(now - self._hours * 3600, now, destinations=(destination,))
        result = VerifyResult(totals=(VerifyCount(destination),))
        after: tuple[int, ...] = ()
        while (look := await self._verification.look(wanted, after)) is not None:
            match look.seen:
                case Later(reason=reason):
                    log.warning("A destination cannot be read back", destination=destination, reason=reason)
                    return
                case Looked() as seen:
                    result = with_looked(result, destination, seen)
                case never:
                    assert_never(never)
            after = look.after
            if await wait_for_any(self._clock, PAUSE_SECONDS, stopping):
                return
        (total,) = result.totals
        self._metrics.verified(destination, asdict(total))
        if not result.is_good:
            log.error(
                "A destination does not have what the ledger says it has; `cfrw verify` tells which samples",
                destination=destination,
                since=f"{span(self._hours * 3600)} ago",
                missing=total.missing,
                different=total.different,
                damaged_buckets=result.damaged,
                first=result.examples[0].series if result.examples else None,
            )
