"""Sending again: captured buckets made pending, some at a time, until all of them were and all are decided on."""

from dataclasses import replace

from worker.clock import Clock
from worker.ledger import (
    STEP_BUCKETS,
    Job,
    JobState,
    Ledger,
    Resend,
    ResendResult,
    finish,
    not_delivered,
    pending_of_job,
    queue_next,
    resent,
)
from worker.repair.step import Step


class Resender:
    """Carries out every `Resend`."""

    def __init__(self, *, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def step(self, job: Job) -> Step:
        """Queue what comes next once most of what was queued before is delivered; end when nothing is left."""
        resend, result = job.arguments, job.result
        if not isinstance(resend, Resend) or not isinstance(result, ResendResult | None):
            raise TypeError(job)
        pending = await self._ledger.read(pending_of_job, job.job_id)
        is_through = bool(job.progress.after) and job.progress.after[0] >= resend.until
        if not (is_through or job.cancel_asked):
            # Live windows take turns with what is sent again: never more of that than takes a second or two.
            if pending > STEP_BUCKETS / 2:
                return Step.WAITS
            await self._ledger.write(queue_next, job, resend)
            self._ledger.announce()
            return Step.WENT_ON
        if pending:
            return Step.WAITS
        outcome = await self._ledger.read(resent, job.job_id)
        reasons = await self._ledger.read(not_delivered, job.job_id)
        result = replace(result or ResendResult(), outcome=outcome, reasons=reasons)
        state = JobState.DONE if is_through else JobState.CANCELLED
        await self._ledger.write(finish, job.job_id, state, result, self._clock.now())
        return Step.ENDED
