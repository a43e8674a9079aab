"""Repairs: carries out what is asked for in the journal.

A command writes what it wants into the ledger's journal; here it is done, by whoever holds the ledger. So a repair
is recorded before it begins, done once, and done by the process that also delivers.
"""

import asyncio

from worker.clock import Clock, wait_for_any
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import Ledger, carry_out_next
from worker.observe import get_logger

LOOP = "repair"

# A person waits for the command; looking takes one read of an index that is empty nearly always.
INTERVAL_SECONDS = 2.0

log = get_logger()


class Repairer:
    """Carries out the repairs of one ledger."""

    def __init__(self, *, ledger: Ledger, clock: Clock, health: Health) -> None:
        self._ledger = ledger
        self._clock = clock
        self._health = health

    async def run(self, stopping: asyncio.Event) -> None:
        """Look for repairs every INTERVAL_SECONDS until `stopping` is set."""
        while not stopping.is_set():
            await self.carry_out_all()
            await wait_for_any(self._clock, INTERVAL_SECONDS, stopping)

    async def carry_out_all(self) -> None:
        """Carry out every repair that was asked for and not done yet, in the order in which they were asked for."""
        try:
            while done := await self._ledger.write(carry_out_next, self._clock.now()):
                self._ledger.announce()
                log.info(
                    "Carried out a repair", job=done.job_id, kind=done.kind, asked_by=done.asked_by, reason=done.reason
                )
        except LedgerFullError as error:
            log.warning("A repair waits: the ledger's volume is full", error=str(error))
        self._health.completed(LOOP)
