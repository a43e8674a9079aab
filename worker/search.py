"""A search for what is to blame in a request, beside the other work of its lane.

Owns the pace of `worker.isolate`: how many requests a minute it may send, how long it waits after failures, and when it
is given up because what it looks for does not wait any more, or the run ends. Knows nothing of the ledger.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from worker.buckets import Batch
from worker.clock import Clock, wait_for_any
from worker.config import QueueSettings
from worker.deliver import Deliverer, Interrupted, Request
from worker.isolate import Decision, Isolation
from worker.rate import Allowance
from worker.remote_write import Accepted, Fate, Later, Refused

# A strict receiver's queue waits for the search, and takes nothing that is an hour old: ten minutes leave the windows
# behind it fifty.
_STRICT_BLAME_SECONDS = 600.0


class SendInLane(Protocol):
    """Sends one request of the lane while no other one is under way."""

    async def __call__(
        self, request: Request, *, wanted: Callable[[], Awaitable[bool]], failures_allowed: int
    ) -> Accepted | Refused | Later | Interrupted:
        """As `Deliverer.send_until_decided`."""


class Search:
    """The search in one request, on which the receiver gave this verdict as a whole."""

    def __init__(
        self,
        request: Request,
        verdict: Refused | Later,
        *,
        send: SendInLane,
        wanted: Callable[[], Awaitable[bool]],
        make_request: Callable[[Batch], Request],
        taken_before: Callable[[], Batch | None],
        count: Callable[[], None],
        deliverer: Deliverer,
        allowance: Allowance,
        strict: bool,
        tried_of_a_window: int,
        attempts_allowed: int | None,
        queue: QueueSettings,
        clock: Clock,
    ) -> None:
        """Make it.

        wanted:            whether what the request holds still waits.
        taken_before:      as in `Isolation`.
        count:             told of each request.
        allowance:         requests that searches of this destination may send.
        tried_of_a_window: as in `Isolation`.
        """
        self.bucket_ids = frozenset(request.bucket_ids)
        self.size_bytes = request.size_bytes
        self._request: Request | None = request  # until the search begins
        self.verdict = verdict
        self._send_in_lane = send
        self._wanted = wanted
        self._count = count
        self._deliverer = deliverer
        self._allowance = allowance
        self._attempts_allowed = attempts_allowed
        self._failures_allowed = queue.split_after_failures
        self._fails = isinstance(verdict, Later)
        # Waits go on where those of the whole request ended; a run that ends has no time for that.
        self._failures_before = self._failures_allowed if self._fails and attempts_allowed is None else 0
        self._waited_seconds = 0.0
        self._stopping = asyncio.Event()
        self._clock = clock
        self._isolation = Isolation(
            send=self._send,
            request=make_request,
            accepted_requests=lambda: deliverer.accepted_requests,
            taken_before=taken_before,
            pause=self._pause,
            rest=self._rest,
            blame_after_seconds=min(queue.blame_after_seconds, _STRICT_BLAME_SECONDS if strict else math.inf),
            strict=strict,
            tried_of_a_window=tried_of_a_window,
            clock=clock,
        )

    @property
    def interrupted(self) -> Interrupted | None:
        """Why the search ended before everything was decided."""
        return self._isolation.interrupted

    @property
    def declined_samples(self) -> int:
        """How many samples the receiver will not take."""
        return self._isolation.declined_samples

    @property
    def may_be_about_size(self) -> bool:
        """Whether the request may not have been taken for its size alone: no sample is known to be refused yet."""
        is_about_size = isinstance(self.verdict, Refused) or (self.verdict.was_cut_off and self._isolation.is_cutting)
        return is_about_size and not self.declined_samples

    @property
    def is_about_limit(self) -> bool:
        """Whether a limit held the request back."""
        return isinstance(self.verdict, Later) and self.verdict.fate is Fate.RATE_LIMITED

    @property
    def found_too_old(self) -> bool:
        """Whether a window was found to be too old as a whole."""
        return self._isolation.found_too_old

    @property
    def largest_taken_bytes(self) -> int:
        """Bytes of the largest part that was accepted."""
        return self._isolation.largest_taken_bytes

    async def decisions(self, stopping: asyncio.Event) -> AsyncIterator[Decision]:
        """What becomes of each sample, until all is decided or `stopping` is set."""
        self._stopping = stopping
        if self._fails and await self._pause(0):
            self._isolation.interrupted = Interrupted.STOPPING
            return
        if (request := self._request) is not None:
            self._request = None
            decisions = self._isolation.decisions(request, self.verdict)
            del request
            async for decision in decisions:
                yield decision

    def add(self, request: Request) -> None:
        """Search in this request as well, which holds another piece of the same bucket."""
        self._isolation.add(request.batch)

    async def _send(self, part: Request, failures_allowed: int) -> Accepted | Refused | Later | Interrupted:
        if not await self._allowance.take(self._stopping):
            return Interrupted.STOPPING
        if not await self._wanted():
            return Interrupted.OVERTAKEN
        self._count()
        # Beside a refusal, a failure is one like any other at first: the same bytes are sent again.
        allowed = failures_allowed if self._fails else self._failures_allowed
        answer = await self._send_in_lane(part, wanted=self._wanted, failures_allowed=allowed)
        self._fails = self._fails or isinstance(answer, Later)
        return answer

    async def _pause(self, failures: int) -> bool:
        """Wait after so many failures in a row, never less than before; tells whether to give the search up."""
        if self._attempts_allowed is not None and failures >= self._attempts_allowed:
            return True
        if failures <= 1:
            self._waited_seconds = 0.0
        self._waited_seconds = self._deliverer.pause_seconds(self._failures_before + failures - 1, self._waited_seconds)
        return await wait_for_any(self._clock, self._waited_seconds, self._stopping)

    async def _rest(self, seconds: float) -> bool:
        """Wait before what fails alone is tried again; a run that ends has no time for that."""
        return self._attempts_allowed is not None or await wait_for_any(self._clock, seconds, self._stopping)
