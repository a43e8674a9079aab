"""Delivery: from the ledger's queue of one destination to its acknowledgement.

Each destination has a pusher of its own, so that one that is down or slow holds up nobody else. A pusher takes the next
buckets of its queue, sends them, and writes down what came of it; only then does it send what comes behind them.
While a request is under way the next one is read and encoded.

Promises: a bucket is acknowledged only after a 2xx to a request that held all its samples; one that is refused is
recorded with the receiver's words and does not stop the queue; everything else is tried again, with the same bytes,
until it succeeds. A request under way when the worker stops is finished and its outcome recorded.

Knows nothing of Cloudflare. What it does not write to the ledger is forgotten when the process ends, at no loss.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import groupby
from typing import Protocol, assert_never

from worker.clock import Clock, wait_for_any
from worker.config import DestinationSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import (
    Lane,
    Ledger,
    Position,
    acknowledge,
    next_pending,
    note_failure,
    refuse,
    set_aside,
    still_pending,
)
from worker.observe import Metrics, get_logger
from worker.remote_write import Accepted, Later, Refused, Verdict, compress, split_batch, write_request

# A pusher that has nothing to do is woken by the ledger; it looks by itself this often, to show that it turns.
IDLE_SECONDS = 30.0

# Requests to one destination at a time, each for scopes of its own: enough to keep both ends busy over a round trip. A
# receiver that takes nothing out of order gets one, because the newest sample of any series moves its bound for all.
_LANES = 4

# How long to wait before a decision that the full volume did not take is written again.
_FULL_LEDGER_RETRY_SECONDS = 5.0

# Waits differ by up to a tenth, so that many workers that met the same outage do not come back at the same instant.
_JITTER = 0.1

log = get_logger()


class Sender(Protocol):
    """What delivers one request: `worker.remote_write.RemoteWriteClient`."""

    async def send(self, body: bytes, attempt: int) -> Verdict:
        """Send one compressed request; `attempt` counts from 0."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One request: its compressed body and the buckets that it carries, or carries a part of."""

    body: bytes
    bucket_ids: tuple[int, ...]
    sample_count: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is read from the queue at a time: usually one request, several when the byte limit cuts it."""

    requests: tuple[_Request, ...]
    position: Position


class _Interrupted(Enum):
    """Why a request was not sent until the receiver had decided on it."""

    STOPPING = auto()
    """The worker stops, or the attempts allowed are used up."""

    OVERTAKEN = auto()
    """Some of its buckets do not wait any more, past the replay bound: the queue begins anew without them."""


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
        attempts_allowed: int | None = None,
    ) -> None:
        """Make it.

        attempts_allowed: how often one request is sent before `drain` gives up, None for ever.
        """
        self._destination = destination
        self.name = destination.name
        self.loop = f"push:{destination.name}"
        self._strict = destination.out_of_order_time_window_seconds == 0
        count = 1 if self._strict else _LANES
        self._lanes = [Lane(number, count) for number in range(count)]
        self._ledger = ledger
        self._sender = sender
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._attempts_allowed = attempts_allowed
        self._log = log.bind(destination=destination.name)

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
        while not stopping.is_set():
            new_work.clear()
            await self._drain_lane(lane, stopping)
            self._health.completed(self.loop)
            await wait_for_any(self._clock, IDLE_SECONDS, new_work, stopping)

    async def _drain_lane(self, lane: Lane, stopping: asyncio.Event) -> None:
        turn = await self._next_turn(lane, None)
        while turn is not None and not stopping.is_set():
            following = asyncio.create_task(self._next_turn(lane, turn.position))
            try:
                interrupted = await self._deliver(turn, stopping)
            finally:
                turn = await following
            match interrupted:
                case _Interrupted.STOPPING:
                    return
                case _Interrupted.OVERTAKEN:
                    turn = await self._next_turn(lane, None)
                case None:
                    # Behind the end of the queue, look at its front again: rows may have come in there meanwhile.
                    turn = turn or await self._next_turn(lane, None)
                case _:
                    assert_never(interrupted)

    async def _next_turn(self, lane: Lane, after: Position | None) -> _Turn | None:
        """Read and encode what comes next in a lane of the queue; None at its end."""
        queue = self._destination.queue
        while True:
            pending = await self._ledger.read(
                next_pending,
                self.name,
                after=after,
                max_samples=queue.max_samples_per_send,
                one_window_per_series=self._strict,
                lane=lane,
            )
            if pending is None:
                return None
            if pending.damaged:
                self._log.error(
                    "Buckets in the ledger are damaged and will not be sent",
                    buckets=len(pending.damaged),
                    first_bucket_id=pending.damaged[0],
                )
                await self._record(set_aside, pending.damaged)
            if pending.batch.buckets:
                parts = split_batch(pending.batch, queue.max_samples_per_send, queue.max_bytes_per_send)
                requests = tuple(
                    _Request(compress(write_request(part)), tuple(b.bucket_id for b in part.buckets), part.sample_count)
                    for part in parts
                )
                return _Turn(requests, pending.position)
            after = pending.position

    async def _deliver(self, turn: _Turn, stopping: asyncio.Event) -> "_Interrupted | None":
        """Send a turn's requests and record what came of each; with an interruption, the rest is still pending."""
        # Several requests in a row for one bucket carry its pieces: it is decided on when all of them are.
        for bucket_ids, requests in groupby(turn.requests, key=lambda request: request.bucket_ids):
            refused: Refused | None = None
            for request in requests:
                if stopping.is_set():
                    return _Interrupted.STOPPING
                verdict = await self._send_until_decided(request, stopping)
                match verdict:
                    case Accepted():
                        pass
                    case Refused():
                        refused = refused or verdict
                    case _Interrupted():
                        return verdict
                    case _:
                        assert_never(verdict)
            if refused is None:
                await self._record(acknowledge, bucket_ids)
            else:
                await self._record(partial(refuse, status=refused.status, reason=refused.text), bucket_ids)
        return None

    async def _send_until_decided(
        self, request: _Request, stopping: asyncio.Event
    ) -> "Accepted | Refused | _Interrupted":
        """Send until the receiver has accepted or refused, or until something else comes first."""
        attempt = 0
        while True:
            self._health.beat(self.loop)
            started = self._clock.monotonic()
            verdict = await self._sender.send(request.body, attempt)
            seconds = self._clock.monotonic() - started
            # Meeting an outage and noting it is all that a pass can do: it counts as one.
            self._health.completed(self.loop)
            self._measure(request, verdict, attempt, seconds)
            match verdict:
                case Accepted():
                    self._succeeded()
                    return verdict
                case Refused(status=status, text=text):
                    await self._failed(f"refused with status {status}: {text}")
                    self._log.error(
                        "The receiver refused buckets; they are recorded as refused",
                        status=status,
                        answer=text,
                        buckets=len(request.bucket_ids),
                        samples=request.sample_count,
                    )
                    return verdict
                case Later(reason=reason, status=status):
                    await self._failed(reason)
                    if self._attempts_allowed is not None and attempt + 1 >= self._attempts_allowed:
                        self._log.error("Giving up for this run; what is pending stays in the ledger", reason=reason)
                        return _Interrupted.STOPPING
                    wait_seconds = self._backoff_seconds(attempt, verdict)
                    self._log.warning(
                        "The receiver did not take a request; it will be sent again",
                        reason=reason,
                        status=status,
                        attempt=attempt + 1,
                        wait_seconds=round(wait_seconds, 1),
                        samples=request.sample_count,
                    )
                    if await wait_for_any(self._clock, wait_seconds, stopping):
                        return _Interrupted.STOPPING
                    if not await self._ledger.read(still_pending, self.name, request.bucket_ids):
                        return _Interrupted.OVERTAKEN
                    attempt += 1
                case _:
                    assert_never(verdict)

    def _succeeded(self) -> None:
        self._metrics.push_last_success_timestamp_seconds.labels(self.name).set(self._clock.now())

    async def _failed(self, reason: str) -> None:
        """Keep what went wrong for whoever asks; a full volume must not stop delivery over that."""
        with contextlib.suppress(LedgerFullError):
            await self._ledger.write(note_failure, self.name, reason, self._clock.now())

    def _measure(self, request: _Request, verdict: Verdict, attempt: int, seconds: float) -> None:
        outcome = _outcome(verdict)
        self._metrics.push_requests_total.labels(self.name, outcome).inc()
        self._metrics.push_samples_total.labels(self.name, outcome).inc(request.sample_count)
        self._metrics.push_bytes_total.labels(self.name).inc(len(request.body))
        self._metrics.push_sent_batch_duration_seconds.labels(self.name).observe(seconds)
        if attempt:
            self._metrics.push_retries_total.labels(self.name).inc()

    def _backoff_seconds(self, attempt: int, verdict: Later) -> float:
        queue = self._destination.queue
        # 2^32 doublings of any setting are past any cap; the bound keeps the power a small number.
        doubled = queue.min_backoff_seconds * 2.0 ** min(attempt, 32)
        capped = min(doubled, queue.max_backoff_seconds)
        asked = verdict.retry_after_seconds or 0.0
        return max(capped, asked) * (1.0 + random.uniform(0.0, _JITTER))  # noqa: S311 - spreads load, guards nothing

    async def _record(self, decision: Callable[..., None], bucket_ids: Sequence[int]) -> None:
        """Write a decision on these buckets down, a verb of the ledger, as soon as the volume has room for it."""
        while True:
            try:
                return await self._ledger.write(decision, self.name, bucket_ids, now=self._clock.now())
            except LedgerFullError as error:
                if self._attempts_allowed is not None:
                    raise
                self._log.error("What the receiver decided cannot be written down; trying again", error=str(error))
                self._health.beat(self.loop)
                await self._clock.sleep(_FULL_LEDGER_RETRY_SECONDS)


def _outcome(verdict: Verdict) -> str:
    match verdict:
        case Accepted():
            return "accepted"
        case Refused():
            return "refused"
        case Later():
            return "later"
        case _:
            assert_never(verdict)
