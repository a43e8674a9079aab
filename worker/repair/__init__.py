"""Repairs: carries out what is asked for in the journal.

A command writes what it wants into the ledger's journal; here it is done, by whoever holds the ledger. So a repair is
recorded before it begins, done by the process that also delivers, and gone on with after a kill. Each is carried out in
steps, of which every one is a transaction or can be done again; between them its progress is on record.

Promises: live work goes first. No repair has more in the queue than is delivered in seconds, or takes more of
Cloudflare's quota than its share (`worker.cloudflare.quota`). One that waits keeps no other from going on.
"""

import asyncio
from collections.abc import Mapping
from typing import assert_never

from worker.clock import Clock, wait_for_any
from worker.errors import LedgerFullError, WorkerError
from worker.health import Health
from worker.ledger import Arguments, Job, JobState, Ledger, Resend, finish, open_jobs
from worker.observe import get_logger
from worker.repair.backfill import Backfiller
from worker.repair.imports import Importer
from worker.repair.resend import Resender
from worker.repair.step import Carrier, Step
from worker.repair.verify import Verifier

LOOP = "repair"

# A person waits for the command; looking takes one read of an index that is empty nearly always.
INTERVAL_SECONDS = 2.0

# Between two steps of a repair that waits for what it queued to be delivered: the queue it may fill lasts longer.
STEP_SECONDS = 0.1

log = get_logger()

__all__ = [
    "INTERVAL_SECONDS",
    "LOOP",
    "STEP_SECONDS",
    "Backfiller",
    "Carrier",
    "Importer",
    "Repairer",
    "Resender",
    "Step",
    "Verifier",
]


class Repairer:
    """Carries out the repairs of one ledger."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, health: Health, carriers: Mapping[type[Arguments], Carrier]
    ) -> None:
        """`carriers` know how each kind of repair is carried out, by the type of its arguments."""
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._carriers = carriers
        self._begun: set[int] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Look for repairs every INTERVAL_SECONDS until `stopping` is set, and carry all of them out side by side."""
        at_work: dict[int, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while not stopping.is_set():
                at_work = {number: task for number, task in at_work.items() if not task.done()}
                for job in await self._ledger.read(open_jobs):
                    if job.job_id not in at_work:
                        at_work[job.job_id] = group.create_task(self._carry_out(job.job_id, stopping))
                self._health.completed(LOOP)
                await wait_for_any(self._clock, INTERVAL_SECONDS, stopping)
            for task in at_work.values():
                task.cancel()

    async def _carry_out(self, job_id: int, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            match await self._step(job_id):
                case Step.WENT_ON:
                    await wait_for_any(self._clock, STEP_SECONDS, stopping)
                case Step.WAITS:
                    await wait_for_any(self._clock, INTERVAL_SECONDS / 4, stopping)
                case Step.ENDED:
                    return
                case step:
                    assert_never(step)

    async def step_all(self) -> bool:
        """One step of every repair that is open; whether any of them went on."""
        steps = [await self._step(job.job_id) for job in await self._ledger.read(open_jobs)]
        self._health.completed(LOOP)
        return any(step is not Step.WAITS for step in steps)

    async def _step(self, job_id: int) -> Step:
        still_open = await self._ledger.read(open_jobs)
        job = next((each for each in still_open if each.job_id == job_id), None)
        if job is None:
            return Step.ENDED
        if any(_keeps_waiting(earlier, job) for earlier in still_open if earlier.job_id < job_id):
            return Step.WAITS
        if job_id not in self._begun:
            self._begun.add(job_id)
            log.info("A repair begins", job=job_id, kind=job.kind, asked_by=job.asked_by, reason=job.reason)
        try:
            step = await self._carriers[type(job.arguments)].step(job)
        except LedgerFullError as error:
            log.warning("A repair waits: the ledger's volume is full", job=job_id, error=str(error))
            return Step.WAITS
        except WorkerError:
            raise
        except Exception as error:
            # A repair that this program cannot carry out must not take live work along, now and at every start.
            log.exception("A repair cannot be carried out; it is given up", job=job_id, kind=job.kind)
            note = f"{type(error).__name__}, which is a defect of this program: its log has all of it"
            await self._ledger.write(finish, job_id, JobState.FAILED, job.result, self._clock.now(), note=note)
            return Step.ENDED
        if step is Step.ENDED:
            log.info("A repair has ended", job=job_id, kind=job.kind)
        return step


def _keeps_waiting(earlier: Job, later: Job) -> bool:
    """Whether two repairs send to the same destination again: the second one waits for what the first one queued."""
    if not isinstance(earlier.arguments, Resend) or not isinstance(later.arguments, Resend):
        return False
    one, other = earlier.arguments.destinations, later.arguments.destinations
    return not one or not other or bool(set(one) & set(other))
