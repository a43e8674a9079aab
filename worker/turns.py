"""The queue of one destination, read as requests that are ready to be sent.

Owns the order: a backlog goes first, the oldest of it before the rest, and recent windows every few seconds beside it;
a strict receiver gets the oldest window of any zone first, whatever it is. What relabelling drops, and what is damaged,
is decided on here and not sent. Knows nothing of answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from worker.buckets import Batch
from worker.clock import Clock
from worker.config import DestinationSettings, Message
from worker.deliver import Request
from worker.isolate import Declined, Taken
from worker.ledger import WHOLE_QUEUE, Lane, Ledger, Position, Stretch, next_pending, set_aside
from worker.observe import get_logger
from worker.record import Record
from worker.remote_write import Outbox, Outgoing, split_batch
from worker.series import MetricMetadata
from worker.size import RequestSize
from worker.tally import Tally

LIVE_INTERVAL_SECONDS = 10.0
"""How long recent windows wait for a backlog: next to the ten minutes after which they are final it is nothing, and
most backlogs are over by then. What is older than a receiver's newest sample costs it up to four times the CPU, so a
backlog that goes out before them drains faster."""

log = get_logger()


@dataclass(slots=True)
class Turn:
    """What is read from the queue at a time: usually one request, several when a limit cuts it.

    tally:   which of its samples are not decided on.
    read_at: when, on the monotonic clock.
    """

    requests: tuple[Request, ...]
    bucket_ids: frozenset[int]
    tally: Tally
    read_at: float


class Turns:
    """Reads the queue of one destination."""

    def __init__(
        self,
        destination: DestinationSettings,
        *,
        ledger: Ledger,
        clock: Clock,
        record: Record,
        size: RequestSize,
        message: Callable[[], Message],
        metadata: Mapping[str, MetricMetadata],
    ) -> None:
        """Make it.

        message:  which version of remote write is spoken at this moment.
        metadata: help and unit of every metric, by name.
        """
        self._name = destination.name
        self._queue = destination.queue
        self._strict = destination.is_strict
        self._ledger = ledger
        self._clock = clock
        self._record = record
        self._size = size
        self._message = message
        send = destination.metadata.send
        self._metadata: dict[Message, Mapping[str, MetricMetadata]] = {
            # Outside the specification of 1.0, and so only there if asked for.
            Message.V1: metadata if send is True else {},
            Message.V2: metadata if send is not False else {},
        }
        self._outbox = Outbox(destination)
        self._lets_pass: bool | None = None  # whether rules have let anything pass; None before there was anything
        self._log = log.bind(destination=destination.name)

    def request(self, batch: Batch) -> Request:
        """A request with these samples."""
        return Request(batch, self._metadata)

    def monotonic(self) -> float:
        """The time by which recent windows wait."""
        return self._clock.monotonic()

    def live_since(self) -> int | None:
        """Where recent windows begin, which do not wait behind the backlog; None where the order must be kept."""
        return None if self._strict else int(self._clock.now() - self._queue.live_window_seconds)

    async def read(
        self, lane: Lane, stretch: Stretch, after: Position | None, *, without: Callable[[], set[int]]
    ) -> tuple[Turn | None, Position | None]:
        """Read and encode what comes next in a stretch of a lane, and where that ends; nothing at its end.

        without: buckets that are not to be read.
        """
        while True:
            read_at = self._clock.monotonic()
            await self._record.expire_too_old()
            waited_for_since = self._clock.now() - self._queue.max_wait_for_missing_window_seconds
            pending = await self._ledger.read(
                next_pending,
                self._name,
                after=after,
                max_samples=self._queue.max_samples_per_send,
                one_window_per_series=self._strict,
                lane=lane,
                stretch=stretch,
                without=without(),
                waited_for_since=waited_for_since if self._strict else None,
            )
            if pending is None:
                return None, after
            after = pending.position
            if pending.damaged:
                self._log.error(
                    "Buckets in the ledger are damaged and will not be sent",
                    buckets=len(pending.damaged),
                    first_bucket_id=pending.damaged[0],
                )
                await self._record.write(partial(set_aside, bucket_ids=pending.damaged))
            if pending.batch.buckets:
                outgoing = self._outbox.outgoing(pending.batch)
                tally = Tally(pending.batch, outgoing.captured_as)
                await self._settle_what_is_not_sent(tally, outgoing)
                if outgoing.batch.buckets:
                    self._lets_pass = True
                    return self._turn(outgoing.batch, tally, read_at), after

    async def _settle_what_is_not_sent(self, tally: Tally, outgoing: Outgoing) -> None:
        """What a relabelling rule drops has been delivered as the user wants it: not at all."""
        if outgoing.dropped:
            if self._lets_pass is None and not outgoing.batch.buckets:
                self._lets_pass = False
                self._log.warning("write_relabel_configs drop samples, and have let none pass so far")
            await self._record.settle(tally, Taken(Batch(outgoing.dropped, {})), sent=False)
        for bucket, reason in outgoing.unsendable:
            declined = Declined(Batch((bucket,), {}), None, reason)
            self._record.tell(await self._record.settle(tally, declined, sent=False))

    def _turn(self, batch: Batch, tally: Tally, read_at: float) -> Turn:
        message = self._message()
        # What is cut for 2.0 fits in 1.0, too.
        parts = split_batch(
            batch, self._queue.max_samples_per_send, self._size.max_bytes, message, self._metadata[message]
        )
        requests = tuple(map(self.request, parts))
        for request in requests:
            request.body(message)
        return Turn(requests, frozenset(bucket.bucket_id for bucket in batch.buckets), tally, read_at)


class Look:
    """One look at a lane's queue from its front: the backlog, and recent windows now and then, or when that is over.

    The border between the two stays where it is for as long as the look takes, so that no bucket is in both.
    """

    def __init__(
        self, turns: Turns, lane: Lane, *, without: Callable[[], set[int]], backlog_waits: Callable[[], bool]
    ) -> None:
        """Make it.

        without:       buckets that are not to be read.
        backlog_waits: whether only recent windows are to be read for now.
        """
        self._turns = turns
        self._lane = lane
        self._without = without
        self._backlog_waits = backlog_waits
        border = turns.live_since()
        self._live = None if border is None else Stretch(from_segment=border)
        self._backlog: Stretch | None = WHOLE_QUEUE if border is None else Stretch(before_segment=border)
        self._after: Position | None = None
        self._live_at = turns.monotonic()
        self._was_live = False  # both have their turn also where every request takes long

    async def next_turn(self) -> Turn | None:
        """What comes next; None at the end of both."""
        now = self._turns.monotonic()
        if self._was_live or now < self._live_at + LIVE_INTERVAL_SECONDS:
            self._was_live = False
            return await self._next_of_backlog() or await self._next_live()
        self._was_live, self._live_at = True, now
        return await self._next_live() or await self._next_of_backlog()

    async def _next_live(self) -> Turn | None:
        if self._live is None:
            return None
        # Always from the front: windows of every scope keep coming in.
        turn, _ = await self._turns.read(self._lane, self._live, None, without=self._without)
        return turn

    async def _next_of_backlog(self) -> Turn | None:
        if self._backlog is None or self._backlog_waits():
            return None
        # Where the order counts, always from the front: older windows may have come in there meanwhile.
        after = None if self._live is None else self._after
        turn, self._after = await self._turns.read(self._lane, self._backlog, after, without=self._without)
        if turn is None:
            self._backlog = None
        return turn
