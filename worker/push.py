"""Delivery: from the ledger's queue of one destination to its acknowledgement.

Each destination has a pusher of its own, so that one that is down or slow holds up nobody else. A pusher takes the next
buckets of its queue, sends them, and writes down what came of it. Its lanes do so side by side, each for scopes of its
own: all samples of a series go through one lane, one request after the other. While a request is under way the next
one is read and encoded.

Promises: a bucket is acknowledged only after 2xx to requests that held all its samples; what is refused is recorded
sample by sample with the receiver's words (`worker.isolate`) and stops nothing else; everything else is tried again
until it succeeds (`worker.deliver`), and what fails alone keeps nothing from going past it. The order is that of
`worker.turns`. A request under way when the worker stops is finished and its outcome recorded.

Knows nothing of Cloudflare. What it does not write to the ledger is forgotten when the process ends, at no loss.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import assert_never

from worker.buckets import Batch
from worker.clock import Clock, wait_for_any
from worker.config import DestinationSettings
from worker.deliver import Deliverer, Interrupted, Request, Sender
from worker.health import Health
from worker.isolate import TRIED_OF_A_WINDOW, TRIED_OF_THE_NEXT_WINDOW, Declined, Taken
from worker.ledger import Lane, Ledger, Refusal
from worker.observe import Metrics, get_logger
from worker.rate import Allowance
from worker.record import Record
from worker.remote_write import Accepted, Fate, Later, Refused, newest
from worker.search import Search
from worker.series import MetricMetadata
from worker.size import RequestSize
from worker.tally import Tally
from worker.turns import Look, Turn, Turns

# A pusher that has nothing to do is woken by the ledger; it looks by itself this often, to show that it turns.
IDLE_SECONDS = 30.0

# Requests to one destination at a time, each for scopes of its own: enough to keep both ends busy over a round trip. A
# receiver that takes nothing out of order gets one, because the newest sample of any series moves its bound for all.
_LANES = 4

# Requests of a lane that are searched or held at a time; with so many, its backlog waits. Each keeps its batch, without
# the bytes that were sent: 40,000 samples are 0.5 MB, and with a series for each of them 3.4 MB, so that 32 of them
# are 16 MB a lane for a few hundred zones, and 110 MB at most, four times that for a destination. A search keeps what
# it has not decided on.
_MOST_SET_ASIDE = 32

# How often a limit must have held a request back before it is asked, though nothing else is taken, whether it is one on
# what is in it: the waits between them are a minute in the end, so half an hour.
_ATTEMPTS_WITHOUT_A_SIGN = 30

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Held:
    """A request that failed while nothing showed that the receiver works: the same bytes go out again, later.

    due: when that may be, on the monotonic clock.
    """

    request: Request
    tally: Tally
    due: float


@dataclass(slots=True)
class _LaneState:
    """One lane at work.

    sending:       held by whoever sends: one request of a lane at a time.
    in_hand:       buckets of the turns that were read and are not done with: not to be read again.
    searches:      the searches that are under way beside the lane's other work, by their buckets.
    held:          requests that wait for a sign that the receiver works, the oldest first.
    taken_last:    the newest sample of the request that the receiver took last.
    failed_in_row: failures of requests since the receiver last took one of the lane.
    accepted_then: how many requests the receiver had accepted when the last one failed that was searched or held; -1
                   before that.
    was_left_out:  whether something was set aside when the last look at the queue began, which passed it over.
    gave_up:       whether a search has used up the attempts of a run that ends.
    """

    lane: Lane
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    in_hand: set[int] = field(default_factory=set)
    searches: dict[frozenset[int], Search] = field(default_factory=dict)
    held: list[_Held] = field(default_factory=list)
    taken_last: Batch | None = None
    failed_in_row: int = 0
    accepted_then: int = -1
    was_left_out: bool = False
    gave_up: bool = False

    def holds_up_the_backlog(self) -> bool:
        """Whether what comes next had better wait: enough is set aside, or it may be refused for its size as well."""
        return len(self.searches) + len(self.held) >= _MOST_SET_ASIDE or any(
            search.may_be_about_size for search in self.searches.values()
        )

    def has_limit(self) -> bool:
        """Whether a limit is known to hold some requests back, and it is asked why."""
        return any(search.is_about_limit for search in self.searches.values())

    def set_aside(self) -> set[int]:
        """Buckets that must not be read."""
        held = (bucket_id for each in self.held for bucket_id in each.request.bucket_ids)
        return self.in_hand.union(held, *self.searches)


class Pusher:
    """Delivers the queue of one destination."""

    def __init__(
        self,
        destination: DestinationSettings,
        *,
        ledger: Ledger,
        sender: Sender,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        metadata: Mapping[str, MetricMetadata] = MappingProxyType({}),
        attempts_allowed: int | None = None,
    ) -> None:
        """Make it.

        metadata:         help and unit of every metric, by name.
        attempts_allowed: how often one request is sent before `drain` gives up, None for ever.
        """
        self._destination = destination
        self._queue = destination.queue
        self.name = destination.name
        self._strict = destination.is_strict
        count = 1 if self._strict else max(self._queue.min_shards, min(_LANES, self._queue.max_shards))
        self._lanes = [Lane(number, count) for number in range(count)]
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._attempts_allowed = attempts_allowed
        self._record = Record(
            destination,
            loop=f"push:{self.name}",
            ledger=ledger,
            clock=clock,
            health=health,
            metrics=metrics,
            waits_for_room=attempts_allowed is None,
        )
        self.deliverer = Deliverer(
            destination,
            sender=sender,
            clock=clock,
            health=health,
            metrics=metrics,
            note_failure=self._record.note_failure,
            attempts_allowed=attempts_allowed,
        )
        self.loop = self.deliverer.loop
        self._searches = Allowance(self._queue.max_split_requests_per_minute, per_seconds=60.0, clock=clock)
        self._size = RequestSize(self._queue.max_bytes_per_send)
        self._turns = Turns(
            destination,
            ledger=ledger,
            clock=clock,
            record=self._record,
            size=self._size,
            message=lambda: self.deliverer.protocol.message,
            metadata=metadata,
        )
        self._last_was_too_old = False
        self._log = log.bind(destination=destination.name)
        metrics.push_shards.labels(self.name).set(count)
        metrics.push_max_bytes_per_send.labels(self.name).set(self._size.max_bytes)

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver what is pending and whatever becomes pending, until `stopping` is set."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run_lane(lane, stopping))

    async def drain(self, stopping: asyncio.Event) -> None:
        """Deliver until nothing is pending any more, `stopping` is set, or the attempts allowed are used up."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._drain_lane(lane, stopping))

    async def _run_lane(self, lane: Lane, stopping: asyncio.Event) -> None:
        new_work = self._ledger.listen()
        async with asyncio.TaskGroup() as group:
            state = _LaneState(lane)
            while not stopping.is_set():
                new_work.clear()
                await self._empty(state, group, stopping)
                self._health.completed(self.loop)
                await wait_for_any(self._clock, min(IDLE_SECONDS, self._held_seconds(state)), new_work, stopping)

    async def _drain_lane(self, lane: Lane, stopping: asyncio.Event) -> None:
        state = _LaneState(lane)
        while not stopping.is_set():
            async with asyncio.TaskGroup() as group:
                finished = await self._empty(state, group, stopping)
            # What a search left undecided, or what waited for it, waits again; it may have ended during the last look.
            if not finished or not state.was_left_out or state.gave_up:
                return
            if state.held and not state.searches:
                await wait_for_any(self._clock, self._held_seconds(state), stopping)

    async def _empty(self, state: _LaneState, group: asyncio.TaskGroup, stopping: asyncio.Event) -> bool:
        """Deliver what waits in a lane, until a look at all of its queue finds nothing; whether it came that far."""
        found = True
        while found and not stopping.is_set():
            found = False
            state.was_left_out = bool(state.searches or state.held)
            look = Look(self._turns, state.lane, without=state.set_aside, backlog_waits=state.holds_up_the_backlog)
            turn = await self._next(look, state)
            while not stopping.is_set():
                resumed, interrupted = await self._resume(state, group, stopping, knocks=turn is None)
                found = found or resumed or turn is not None
                if interrupted is None:
                    if turn is None:
                        break
                    following = asyncio.create_task(self._next(look, state))
                    try:
                        interrupted = await self._deliver(state, turn, group, stopping)
                    finally:
                        turn = await following
                match interrupted:
                    case Interrupted.STOPPING:
                        self._put_back(state, turn)
                        return False
                    case Interrupted.OVERTAKEN:
                        break
                    case None:
                        pass
                    case _:
                        assert_never(interrupted)
            self._put_back(state, turn)
        return not stopping.is_set()

    async def _next(self, look: Look, state: _LaneState) -> Turn | None:
        turn = await look.next_turn()
        if turn is not None:
            state.in_hand |= turn.bucket_ids
        return turn

    def _put_back(self, state: _LaneState, turn: Turn | None) -> None:
        """Nobody has begun with it: it may be read again."""
        if turn is not None:
            state.in_hand -= turn.bucket_ids

    async def _deliver(
        self, state: _LaneState, turn: Turn, group: asyncio.TaskGroup, stopping: asyncio.Event
    ) -> Interrupted | None:
        """Send a turn's requests and record what came of each; with an interruption, the rest is still pending."""
        interrupted: Interrupted | None = None
        await self._record.expire_too_old()
        if turn.read_at < self._record.expired_at and not await self._record.are_pending(tuple(turn.bucket_ids)):
            # It was read while an outage lasted that made it too old.
            state.in_hand -= turn.bucket_ids
            return Interrupted.OVERTAKEN
        for request in turn.requests:
            interrupted = await self._carry_out(state, request, turn.tally, group=group, stopping=stopping)
            if interrupted is not None:
                break
        # What is not decided on, and neither held nor searched, waits again.
        state.in_hand -= turn.bucket_ids
        return interrupted

    async def _resume(
        self, state: _LaneState, group: asyncio.TaskGroup, stopping: asyncio.Event, *, knocks: bool
    ) -> tuple[bool, Interrupted | None]:
        """Send the oldest request again that is held and due, once the receiver works; if it does not, if it `knocks`.

        Tells whether anything was sent. Not all of them at once: recent windows have their turn in between.
        """
        now = self._clock.monotonic()
        due = next((held for held in state.held if held.due <= now), None)
        if due is None or not (knocks or self._works(state)):
            return False, None
        state.held.remove(due)
        if not await self._record.are_pending(due.request.bucket_ids):
            return True, Interrupted.OVERTAKEN
        return True, await self._carry_out(state, due.request, due.tally, group=group, stopping=stopping)

    def _held_seconds(self, state: _LaneState) -> float:
        """How long until something that is held may be sent again."""
        return max(0.0, min((held.due for held in state.held), default=math.inf) - self._clock.monotonic())

    def _works(self, state: _LaneState) -> bool:
        """Whether the receiver works as far as the lane can tell: it took something since a request failed for long."""
        return self.deliverer.accepted_requests > state.accepted_then

    def _may_be_alone(self, state: _LaneState, request: Request, *, works: bool) -> bool:
        """Whether a limit may be one on what is in a request: others are taken, or one is to find out whether any is.

        works: whether others were taken since it met the limit before.
        """
        return works or (not state.searches and request.attempts >= _ATTEMPTS_WITHOUT_A_SIGN)

    async def _carry_out(
        self,
        state: _LaneState,
        request: Request,
        tally: Tally,
        *,
        group: asyncio.TaskGroup,
        stopping: asyncio.Event,
    ) -> Interrupted | None:
        """Send a request, and do with it what its answer asks for."""
        works, failed_before = self._strict or self._works(state), request.attempts > 0
        enough = self._queue.split_after_failures
        answer = await self._send(
            state,
            request,
            stopping=stopping,
            wanted=partial(self._record.are_pending, request.bucket_ids),
            # Where nothing shows that the receiver works, it is a knock at the door, and once is enough. What was held
            # has failed before, and nothing waits through its long pauses again; nor through those of one request after
            # the other where a limit holds some back.
            failures_allowed=max(1, enough - request.attempts) if works and not state.has_limit() else 1,
            first_attempt=request.attempts,
        )
        match answer:
            case Accepted():
                state.failed_in_row = 0
                self._last_was_too_old = False
                state.taken_last = newest(request.batch)
                self._size.taken(request.size_bytes)
                self._show_size()
                await self._record.settle(tally, Taken(request.batch))
            case Refused(status=status, text=text) if not answer.is_about_content:
                self._record.tell(await self._record.settle(tally, Declined(request.batch, status, text)))
            case Later(fate=Fate.RATE_LIMITED) if not self._may_be_alone(state, request, works=works and failed_before):
                return await self._hold(state, request, tally, stopping, works=works)
            case Later(fate=Fate.RETRY) if not works or request.attempts < enough:
                return await self._hold(state, request, tally, stopping, works=works)
            case Refused() | Later():
                return await self._isolate(state, tally, request, answer, group=group, stopping=stopping)
            case Interrupted():
                return answer
            case _:
                assert_never(answer)
        return None

    async def _hold(
        self, state: _LaneState, request: Request, tally: Tally, stopping: asyncio.Event, *, works: bool
    ) -> Interrupted | None:
        """Keep a request that failed like one before it: it may be as bad as that, or an outage, or passing.

        With too many of them it waits in the queue again. So an outage meets one request after a full wait, whichever;
        a run that ends does not wait, and ends when one has used up its attempts or there are too many.
        """
        state.failed_in_row += 1
        state.accepted_then = self.deliverer.accepted_requests
        has_room = len(state.held) < _MOST_SET_ASIDE
        if has_room:
            request.forget_bodies()
            due = self._clock.monotonic() + self.deliverer.pause_seconds(request.attempts - 1)
            state.held.append(_Held(request, tally, due))
        if self._attempts_allowed is None:
            before = 0 if works else self._queue.split_after_failures
            pause_seconds = self.deliverer.pause_seconds(before - 1 + state.failed_in_row)
            self.deliverer.accepting.clear()
            await wait_for_any(self._clock, pause_seconds, stopping, self.deliverer.accepting)
        elif not has_room or request.attempts >= self._attempts_allowed:
            state.gave_up = True
            return Interrupted.STOPPING
        return None

    async def _send(
        self,
        state: _LaneState,
        request: Request,
        *,
        stopping: asyncio.Event,
        wanted: Callable[[], Awaitable[bool]],
        failures_allowed: int,
        first_attempt: int = 0,
    ) -> Accepted | Refused | Later | Interrupted:
        """Send one request of the lane while no other one is under way."""
        async with state.sending:
            if stopping.is_set():
                return Interrupted.STOPPING
            return await self.deliverer.send_until_decided(
                request,
                stopping,
                wanted=wanted,
                failures_allowed=failures_allowed,
                first_attempt=first_attempt,
            )

    async def _isolate(
        self,
        state: _LaneState,
        tally: Tally,
        request: Request,
        verdict: Refused | Later,
        *,
        group: asyncio.TaskGroup,
        stopping: asyncio.Event,
    ) -> Interrupted | None:
        """Find out what in a request is to blame.

        A lane of a strict receiver waits for that, as what comes behind would make the rest undeliverable. Any other
        goes on beside it, which it may have to: a search for what fails can last until other windows go through.
        """
        buckets = frozenset(request.bucket_ids)
        if buckets in state.searches:
            # Another piece of the bucket that is searched, which is decided on when all of its pieces are.
            state.searches[buckets].add(request)
            return None
        if isinstance(verdict, Refused):
            what = "The receiver refused a request; its samples are tried in smaller parts"
            self._log.warning(what, status=verdict.status, answer=verdict.text, samples=request.sample_count)
        else:
            what = "A request failed again and again; its samples are tried in smaller parts"
            if verdict.fate is Fate.RATE_LIMITED:
                what = "A limit holds a request back; it is tried again now and then, in parts once others go through"
            self._log.warning(what, reason=verdict.reason, samples=request.sample_count)
            state.accepted_then = self.deliverer.accepted_requests
        self._metrics.push_splits_total.labels(self.name).inc()
        searching = self._search(state, tally, request, verdict, stopping)
        if self._strict:
            return await searching
        group.create_task(searching)
        return None

    def _search(
        self, state: _LaneState, tally: Tally, request: Request, verdict: Refused | Later, stopping: asyncio.Event
    ) -> Coroutine[None, None, Interrupted | None]:
        """A search in a request, which belongs to the lane from now on."""
        bucket_ids = request.bucket_ids
        request.forget_bodies()
        search = Search(
            request,
            verdict,
            send=partial(self._send, state, stopping=stopping),
            wanted=lambda: self._record.are_pending(tally.undecided(bucket_ids)),
            make_request=self._turns.request,
            taken_before=lambda: state.taken_last,
            count=self._metrics.push_split_requests_total.labels(self.name).inc,
            deliverer=self.deliverer,
            allowance=self._searches,
            strict=self._strict,
            tried_of_a_window=TRIED_OF_THE_NEXT_WINDOW if self._last_was_too_old else TRIED_OF_A_WINDOW,
            attempts_allowed=self._attempts_allowed,
            queue=self._queue,
            clock=self._clock,
        )
        state.searches[search.bucket_ids] = search
        return self._carry_through(state, tally, search, stopping)

    async def _carry_through(
        self, state: _LaneState, tally: Tally, search: Search, stopping: asyncio.Event
    ) -> Interrupted | None:
        """Write down what a search decides, until it ends; what it has not decided on waits again."""
        refusals: list[Refusal] = []
        try:
            async for decision in search.decisions(stopping):
                refusals += await self._record.settle(tally, decision)
                self._health.beat(self.loop)
        finally:
            self._record.tell(refusals)
            del state.searches[search.bucket_ids]
            self._ledger.announce()
        self._last_was_too_old = search.found_too_old
        state.gave_up = state.gave_up or search.interrupted is Interrupted.STOPPING
        if search.interrupted is None:
            self._learn_size(search.verdict, search)
        return search.interrupted

    def _learn_size(self, verdict: Refused | Later, search: Search) -> None:
        """What was refused together and taken apart was too large, and so was what is said to be.

        So was what broke its connection again and again, and was taken apart.
        """
        if isinstance(verdict, Later) and not verdict.was_cut_off:
            return
        if search.declined_samples and verdict.status != 413:
            return
        if self._size.refused(
            search.size_bytes, search.largest_taken_bytes or search.size_bytes // 2, said_so=verdict.status == 413
        ):
            self._show_size()
            self._log.warning(
                "The receiver takes smaller requests only; they are cut to that size", max_bytes=self._size.max_bytes
            )

    def _show_size(self) -> None:
        self._metrics.push_max_bytes_per_send.labels(self.name).set(self._size.max_bytes)
