"""Verifying: what destinations have stored, read back piece by piece and compared with the ledger."""

from dataclasses import replace
from typing import assert_never

from worker.clock import Clock
from worker.findings import with_looked
from worker.ledger import (
    Job,
    JobState,
    Ledger,
    NotRead,
    Progress,
    Verify,
    VerifyResult,
    destination_numbers,
    finish,
    keep_progress,
)
from worker.remote_write import Later
from worker.repair.step import NOT_CONFIGURED, Step
from worker.verification import Looked, Verification


class Verifier:
    """Carries out every `Verify`."""

    def __init__(self, verification: Verification, *, ledger: Ledger, clock: Clock) -> None:
        self._verification = verification
        self._ledger = ledger
        self._clock = clock

    async def step(self, job: Job) -> Step:
        """Read one piece back; end when there is none left, or somebody asked to."""
        verify, result = job.arguments, job.result or VerifyResult()
        if not isinstance(verify, Verify) or not isinstance(result, VerifyResult):
            raise TypeError(job)
        look = None if job.cancel_asked else await self._verification.look(verify, job.progress.after)
        if look is None:
            state = JobState.CANCELLED if job.cancel_asked else JobState.DONE
            unknown = sorted({*verify.destinations} - (await self._ledger.read(destination_numbers)).keys())
            result = replace(result, not_read=(*result.not_read, *(NotRead(name, NOT_CONFIGURED) for name in unknown)))
            await self._ledger.write(finish, job.job_id, state, result, self._clock.now())
            return Step.ENDED
        done = job.progress.done
        match look.seen:
            case Later(reason=reason):
                result = replace(result, not_read=(*result.not_read, NotRead(look.destination, reason)))
            case Looked() as seen:
                result = with_looked(result, look.destination, seen)
                done += len(seen.buckets)
            case never:
                assert_never(never)
        progress = Progress(done, max(done, job.progress.total), look.after)
        await self._ledger.write(keep_progress, job.job_id, progress, result)
        return Step.WENT_ON
