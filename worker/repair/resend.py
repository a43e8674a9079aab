"""Sending again: captured buckets made pending, some at a time, until all of them were and all are decided on."""

from dataclasses import replace
from typing import assert_never

from worker.clock import Clock
from worker.comparison import Finding
from worker.ledger import (
    STEP_BUCKETS,
    Job,
    JobState,
    Ledger,
    Resend,
    ResendCount,
    ResendResult,
    Undelivered,
    destination_numbers,
    finish,
    keep_progress,
    not_delivered,
    pending_between,
    pending_of_job,
    queue_missing,
    queue_next,
    resent,
)
from worker.remote_write import Later
from worker.repair.step import NOT_CONFIGURED, Step
from worker.verification import END, Look, Looked, Verification


class Resender:
    """Carries out every `Resend`."""

    def __init__(self, *, ledger: Ledger, clock: Clock, verification: Verification) -> None:
        """`verification` reads back what a resend of missing samples leaves out."""
        self._verification = verification
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
            if resend.only_missing:
                await self._queue_missing(job, resend)
            else:
                await self._ledger.write(queue_next, job, resend)
            self._ledger.announce()
            return Step.WENT_ON
        if pending:
            return Step.WAITS
        result = result or ResendResult()
        outcome = await self._ledger.read(resent, job.job_id)
        if resend.only_missing:
            # What waited before was left alone, and is not there yet.
            outcome += await self._ledger.read(pending_between, resend)
        reasons = await self._ledger.read(not_delivered, job.job_id)
        now = self._clock.now()
        unknown = sorted({*resend.destinations} - (await self._ledger.read(destination_numbers)).keys())
        result = replace(
            result,
            outcome=(*outcome, *result.read_back, *(ResendCount(name, "not configured", 0, 0) for name in unknown)),
            reasons=(
                *reasons,
                *result.reasons,
                *(Undelivered(name, "not configured", 0, int(now), None, NOT_CONFIGURED) for name in unknown),
            ),
        )
        state = JobState.DONE if is_through else JobState.CANCELLED
        await self._ledger.write(finish, job.job_id, state, result, now)
        return Step.ENDED

    async def _queue_missing(self, job: Job, resend: Resend) -> None:
        """Read the next piece back, and queue what the destination lacks of it."""
        look = await self._verification.look(resend, job.progress.after)
        if look is None:
            await self._ledger.write(keep_progress, job.job_id, replace(job.progress, after=END), job.result)
            return
        match look.seen:
            case Looked() as seen:
                further = [
                    ResendCount(look.destination, state, buckets, samples)
                    for state, buckets, samples in (
                        ("different", 0, sum(each.finding is Finding.DIFFERENT for each in seen.outcomes)),
                        ("damaged", seen.damaged, 0),
                    )
                    if buckets or samples
                ]
                await self._ledger.write(
                    queue_missing,
                    job,
                    look.destination,
                    seen.buckets,
                    further,
                    after=look.after,
                    now=self._clock.now(),
                )
            case Later() as later:
                await self._ledger.write(
                    keep_progress,
                    job.job_id,
                    replace(job.progress, after=look.after),
                    _unread(job, look, later, self._clock.now()),
                )
            case never:
                assert_never(never)


def _unread(job: Job, look: Look, later: Later, now: float) -> ResendResult:
    """The result with a destination of which is not known what it lacks: nothing more is sent there."""
    result = job.result if isinstance(job.result, ResendResult) else ResendResult()
    reason = Undelivered(look.destination, "not read back", 0, int(now), later.status, later.reason)
    return replace(
        result,
        read_back=(*result.read_back, ResendCount(look.destination, "not read back", 0, 0)),
        reasons=(*result.reasons, reason),
    )
