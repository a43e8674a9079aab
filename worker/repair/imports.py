"""Importing: what a command staged, captured some at a time and delivered like any other buckets."""

from dataclasses import replace

from worker.clock import Clock
from worker.ledger import (
    STEP_BUCKETS,
    Import,
    ImportResult,
    Job,
    JobState,
    Ledger,
    capture_staged,
    finish,
    keep_progress,
    not_delivered,
    pending_of_job,
    resent,
    room,
)
from worker.repair.step import Step


class Importer:
    """Carries out every `Import`."""

    def __init__(self, *, max_ledger_bytes: int, ledger: Ledger, clock: Clock) -> None:
        self._max_ledger_bytes = max_ledger_bytes
        self._ledger = ledger
        self._clock = clock

    async def step(self, job: Job) -> Step:
        """Capture what comes next once most of what was captured before is delivered; end when nothing is left."""
        result = job.result
        if not isinstance(job.arguments, Import) or not isinstance(result, ImportResult | None):
            raise TypeError(job)
        pending = await self._ledger.read(pending_of_job, job.job_id)
        is_through = job.progress.done >= job.progress.total
        if not (is_through or job.cancel_asked):
            # Live windows take turns with these: never more of them than takes a second or two.
            if pending > STEP_BUCKETS / 2:
                return Step.WAITS
            if (await self._ledger.read(room)).used_bytes >= self._max_ledger_bytes:
                progress = replace(job.progress, note="waits: the ledger has reached LEDGER_MAX_BYTES")
                await self._ledger.write(keep_progress, job.job_id, progress, result)
                return Step.WAITS
            await self._ledger.write(capture_staged, job, self._clock.now(), most=STEP_BUCKETS)
            self._ledger.announce()
            return Step.WENT_ON
        if pending:
            return Step.WAITS
        outcome = await self._ledger.read(resent, job.job_id)
        reasons = await self._ledger.read(not_delivered, job.job_id)
        result = replace(result or ImportResult(), outcome=outcome, reasons=reasons)
        state = JobState.DONE if is_through else JobState.CANCELLED
        await self._ledger.write(finish, job.job_id, state, result, self._clock.now())
        return Step.ENDED
