"""What became of the samples of one destination, written into its ledger: the only part of delivery that writes there.

Promises: a bucket is decided on as a whole, in one transaction with the reason; a decision that a full volume does not
take is written as soon as there is room; what the receiver would refuse for its age is given up rather than sent.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from worker.clock import Clock
from worker.config import DestinationSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.isolate import Decision, Taken
from worker.ledger import (
    Ledger,
    Refusal,
    acknowledge,
    expire_too_old,
    note_failure,
    refuse,
    still_pending,
)
from worker.observe import Metrics, get_logger
from worker.tally import Tally

# How long to wait before a decision that the full volume did not take is written again.
_FULL_LEDGER_RETRY_SECONDS = 5.0

# How often what has become too old for the receiver is looked for while there is something to read: it costs a look at
# the front of the queue, and what comes in meanwhile may be too old already.
_EXPIRE_SECONDS = 1.0

log = get_logger()


class Record:
    """What the ledger is told about one destination, and asked."""

    def __init__(
        self,
        destination: DestinationSettings,
        *,
        loop: str,
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        waits_for_room: bool,
    ) -> None:
        """Make it.

        loop:           what `health` knows delivery to this destination by.
        waits_for_room: whether a decision waits until a full volume has room for it; LedgerFullError if not.
        """
        limits = (destination.out_of_order_time_window_seconds, destination.queue.sample_age_limit_seconds)
        self._window_seconds = min((seconds for seconds in limits if seconds), default=None)
        self._name = destination.name
        self._loop = loop
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._waits_for_room = waits_for_room
        self._log = log.bind(destination=destination.name)
        self.expired_at = float("-inf")
        """When what has become too old was last given up, on the monotonic clock."""

    async def settle(self, tally: Tally, decision: Decision, *, sent: bool = True) -> list[Refusal]:
        """Write down what is decided on as a whole; return what of it is refused."""
        if isinstance(decision, Taken) and not sent:
            self._metrics.push_samples_dropped_total.labels(self._name).inc(decision.batch.sample_count)
        acknowledged, refusals, partly = tally.count(decision, sent=sent)
        if acknowledged:
            await self.write(partial(acknowledge, bucket_ids=acknowledged, any_taken=sent, parts=tally.parts))
        if refusals:
            await self.write(partial(refuse, refusals=refusals, partly=partly, parts=tally.parts))
            for refusal in refusals:
                self._metrics.refused(self._name, refusal.status, refusal.sample_count)
        return refusals

    def tell(self, refusals: Sequence[Refusal]) -> None:
        """One line for all of them: where one is refused, many are."""
        if refusals:
            self._log.error(
                "Samples are refused for good; the ledger keeps them with the reason",
                samples=sum(refusal.sample_count for refusal in refusals),
                buckets=len({refusal.bucket_id for refusal in refusals}),
                status=refusals[-1].status,
                answer=refusals[-1].reason,
            )

    async def expire_too_old(self) -> None:
        """Give up what the receiver would refuse for its age, rather than send it in vain."""
        window_seconds = self._window_seconds
        if window_seconds is None or self._clock.monotonic() < self.expired_at + _EXPIRE_SECONDS:
            return
        self.expired_at = self._clock.monotonic()
        now = self._clock.now()
        with contextlib.suppress(LedgerFullError):
            expired = await self._ledger.write(
                expire_too_old, self._name, stamped_before=now - window_seconds, window_seconds=window_seconds, now=now
            )
            if expired:
                self._log.error(
                    "Buckets are older than the receiver takes; they are recorded as expired and not sent",
                    buckets=expired,
                    out_of_order_time_window_seconds=window_seconds,
                )

    async def are_pending(self, bucket_ids: Sequence[int]) -> bool:
        await self.expire_too_old()
        return await self._ledger.read(still_pending, self._name, bucket_ids)

    async def note_failure(self, reason: str) -> None:
        """Keep what went wrong for whoever asks; a full volume must not stop delivery over that."""
        with contextlib.suppress(LedgerFullError):
            await self._ledger.write(note_failure, self._name, reason, self._clock.now())

    async def write(self, decision: Callable[..., None]) -> None:
        """Write a decision down, a verb of the ledger, as soon as the volume has room for it."""
        while True:
            try:
                return await self._ledger.write(decision, destination=self._name, now=self._clock.now())
            except LedgerFullError as error:
                if not self._waits_for_room:
                    raise
                self._log.error("What the receiver decided cannot be written down; trying again", error=str(error))
                self._health.beat(self._loop)
                await self._clock.sleep(_FULL_LEDGER_RETRY_SECONDS)
