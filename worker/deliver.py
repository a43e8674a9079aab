"""One request of one destination: sent until its receiver has decided on it.

Owns the time between a request's first attempt and its verdict: when it is sent again, in which version of remote
write, and that nothing but a probe goes to a destination that is set up wrongly. One `Deliverer` serves all lanes of
its destination, so what one of them learns holds for all.

Promises: the same rows in the same version are the same bytes at every attempt; waits grow and never shrink while a
request fails; a receiver that asks for a pause gets it, up to the cap. Knows nothing of the ledger and keeps nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Protocol as Interface
from typing import assert_never

from worker.buckets import Batch
from worker.clock import Clock, wait_for_any
from worker.config import DestinationSettings, Message
from worker.health import Health
from worker.observe import Metrics, get_logger
from worker.remote_write import Accepted, Fate, Later, Protocol, Refused, Verdict, compress, write_request
from worker.series import MetricMetadata
from worker.times import instant

# Waits differ by up to a tenth, so that many workers that met the same outage do not come back at the same instant.
_JITTER = 0.1

log = get_logger()


class Sender(Interface):
    """What delivers one request: `worker.remote_write.RemoteWriteClient`."""

    async def send(self, body: bytes, attempt: int, message: Message) -> Verdict:
        """Send one compressed request; `attempt` counts from 0."""


class Request:
    """The samples of a batch on their way; encoded once for each version that it is sent in."""

    def __init__(self, batch: Batch, metadata: Mapping[Message, Mapping[str, MetricMetadata]]) -> None:
        self.batch = batch
        self.bucket_ids = tuple(bucket.bucket_id for bucket in batch.buckets)
        self.sample_count = batch.sample_count
        self.size_bytes = 0
        """Bytes before compression, in the version that was encoded last."""
        self.attempts = 0
        """How often it was sent, when it was last sent until something was decided."""
        self._metadata = metadata
        self._bodies: dict[Message, bytes] = {}

    def body(self, message: Message) -> bytes:
        """The compressed body."""
        if message not in self._bodies:
            body = write_request(self.batch, message, self._metadata.get(message, {}))
            self.size_bytes = len(body)
            self._bodies[message] = compress(body)
        return self._bodies[message]

    def forget_bodies(self) -> None:
        """Make room while it waits; encoding it anew gives the same bytes."""
        self._bodies.clear()


class Interrupted(Enum):
    """Why a request was not sent until the receiver had decided on it."""

    STOPPING = auto()
    """The worker stops, or the attempts allowed are used up."""

    OVERTAKEN = auto()
    """Some of its buckets do not wait any more, past a bound: the queue begins anew without them."""


class Deliverer:
    """Sends the requests of one destination."""

    def __init__(
        self,
        destination: DestinationSettings,
        *,
        sender: Sender,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        note_failure: Callable[[str], Awaitable[None]],
        attempts_allowed: int | None = None,
    ) -> None:
        """Make it.

        note_failure:     keeps what went wrong for whoever asks.
        attempts_allowed: how often one request is sent in a run that ends, None for ever.
        """
        self.name = destination.name
        self.loop = f"push:{destination.name}"
        self.protocol = Protocol(
            destination.protobuf_message, retry_seconds=destination.queue.protocol_retry_interval_seconds, clock=clock
        )
        self.parked: str | None = None
        """Why nothing but a probe goes to the destination; None while it is not parked."""
        self.parked_at: float | None = None
        """Since when that is so, unix seconds."""
        self.accepted_requests = 0
        """How many requests the receiver has accepted: evidence that it works."""
        self.accepting = asyncio.Event()
        """Set whenever it accepts one; cleared by whoever waits for the next."""
        self._queue = destination.queue
        # What a limit holds back from a strict receiver, it would not take once later samples have gone past.
        self._may_be_the_request = {Fate.RETRY} if destination.is_strict else {Fate.RETRY, Fate.RATE_LIMITED}
        self._sender = sender
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._note_failure = note_failure
        self._attempts_allowed = attempts_allowed
        self._unparked = asyncio.Event()
        self._probing = asyncio.Lock()
        self._probe_at = 0.0
        self._not_before = 0.0  # what the receiver asked for; on the monotonic clock
        self._first_failures = 0  # answers to 2.0 before the receiver has shown that it knows it
        self._log = log.bind(destination=destination.name)
        self._show_protocol()

    @property
    def protocol_text(self) -> str:
        """Which version of remote write is spoken, and why not the newest, for people."""
        if self.protocol.message is Message.V2:
            return "2.0"
        return f"1.0 ({self.protocol.why_older})" if self.protocol.why_older else "1.0"

    @property
    def parked_text(self) -> str | None:
        """Why the destination is parked, and since when, for people; None while it is not."""
        return None if self.parked is None else f"{self.parked} (since {instant(self.parked_at or 0.0)})"

    async def send_until_decided(
        self,
        request: Request,
        stopping: asyncio.Event,
        *,
        wanted: Callable[[], Awaitable[bool]],
        failures_allowed: int,
        first_attempt: int = 0,
    ) -> Accepted | Refused | Later | Interrupted:
        """Send until the receiver has accepted or refused, or until something else comes first.

        wanted:           whether what the request holds still waits; asked before every further attempt.
        failures_allowed: answers and silences that may come from what is in the request (`Fate.RETRY`, and
                          `Fate.RATE_LIMITED` where other requests may go past it); after so many it is `Later`, for
                          the caller to look for the cause. A run that ends looks for it only where the receiver takes
                          other requests meanwhile.
        first_attempt:    above 0 for the same bytes again that were sent so often before.
        """
        attempt, failures = first_attempt, 0
        waited_seconds = 0.0
        while True:
            request.attempts = attempt + 1
            verdict = await self._offer(request, attempt, stopping)
            if not isinstance(verdict, Later):
                return await self._tell(request, verdict)
            await self._note_failure(verdict.reason)
            failures += verdict.fate in self._may_be_the_request
            if verdict.fate is Fate.RETRY and self._falls_back_after(verdict):
                failures = 0
                continue
            if failures >= failures_allowed:
                return verdict
            if self._gives_up(verdict, attempt):
                self._log.error("Giving up for this run; what is pending stays in the ledger", reason=verdict.reason)
                return Interrupted.STOPPING
            if not self._waits_at_the_gate(verdict):
                waited_seconds = self.pause_seconds(attempt, waited_seconds, verdict.retry_after_seconds)
                await self._pause(request, verdict, attempt, waited_seconds, stopping)
            if stopping.is_set() or not await wanted():
                return Interrupted.STOPPING if stopping.is_set() else Interrupted.OVERTAKEN
            attempt += 1

    def _falls_back_after(self, verdict: Later) -> bool:
        """Whether 1.0 is to be tried, as the receiver has answered nothing but failures to its first requests in 2.0.

        One that does not answer at all is down, and would not answer to 1.0 either.
        """
        if not self._is_first_contact or verdict.status is None:
            return False
        self._first_failures += 1
        if self._first_failures < self._queue.split_after_failures:
            return False
        self._first_failures = 0
        self._fall_back(f"the first requests in 2.0 failed: {verdict.reason}", proven=False)
        return True

    def _gives_up(self, verdict: Later, attempt: int) -> bool:
        """Whether a run that ends does so here; it does not wait for as long as a receiver may ask for either."""
        if self._attempts_allowed is None:
            return False
        asked_seconds = verdict.retry_after_seconds or 0.0
        return attempt + 1 >= self._attempts_allowed or asked_seconds > self._queue.max_backoff_seconds

    def pause_seconds(self, failures: int, previous_seconds: float = 0.0, asked_seconds: float | None = None) -> float:
        """How long to wait after so many failures before the one just seen; never less than the wait before it."""
        # 2^32 doublings of any setting are past any cap; the bound keeps the power a small number.
        doubled = self._queue.min_backoff_seconds * 2.0 ** min(failures, 32)
        capped = max(min(doubled, self._queue.max_backoff_seconds), asked_seconds or 0.0)
        jitter = random.uniform(0.0, _JITTER)  # noqa: S311 - spreads load, guards nothing
        return max(previous_seconds, capped * (1.0 + jitter))

    async def _pause(
        self, request: Request, verdict: Later, attempt: int, seconds: float, stopping: asyncio.Event
    ) -> None:
        """Wait before the next attempt, or until the worker stops."""
        self._log.warning(
            "The receiver did not take a request; it will be sent again",
            reason=verdict.reason,
            status=verdict.status,
            attempt=attempt + 1,
            wait_seconds=round(seconds, 1),
            samples=request.sample_count,
        )
        await wait_for_any(self._clock, seconds, stopping)

    async def _offer(self, request: Request, attempt: int, stopping: asyncio.Event) -> Verdict | Interrupted:
        """Send once; to a receiver that turns out not to know remote write 2.0, at once again in 1.0."""
        message = self.protocol.message
        verdict = await self._exchange(request, message, attempt, stopping)
        match verdict:
            case Later(fate=Fate.OLDER_MESSAGE, reason=reason):
                self._fall_back(reason)
            case Refused(status=400, speaks_2=False) if message is Message.V2 and not self.protocol.knows_2:
                # Remote write 2.0 specification: 1.x receivers answer 400 where 415 is meant.
                self._fall_back(_BAD_REQUEST.format("the first"))
            case Refused(status=400, speaks_2=False) if message is Message.V2 and self.protocol.is_automatic:
                # As above, of a receiver that has taken the place of one that knew 2.0; or the samples are bad.
                in_1 = await self._exchange(request, Message.V1, attempt, stopping)
                if isinstance(in_1, Accepted):
                    self._fall_back(_BAD_REQUEST.format("a"))
                return verdict if isinstance(in_1, Refused) or _is_unsupported(in_1) else in_1
            case Accepted() | Refused(speaks_2=True):
                self.protocol.understood(message)
                self._show_protocol()
                return verdict
            case _:
                return verdict
        return await self._exchange(request, Message.V1, attempt, stopping)

    async def _exchange(
        self, request: Request, message: Message, attempt: int, stopping: asyncio.Event
    ) -> Verdict | Interrupted:
        """Send once, when the receiver lets itself be asked; a parked one by one lane alone, when a probe is due."""
        if await self._wait_until(lambda: self._not_before, stopping):
            return Interrupted.STOPPING
        if self.parked is None:
            return self._heed(await self._send(request, message, attempt), message)
        async with self._probing:
            if await self._wait_until(lambda: self._probe_at if self.parked else 0.0, stopping):
                return Interrupted.STOPPING
            return self._heed(await self._send(request, message, attempt), message)

    async def _wait_until(self, moment: Callable[[], float], stopping: asyncio.Event) -> bool:
        """Wait for a moment of the monotonic clock, which may come to be another one meanwhile; whether to stop."""
        while (wait_seconds := moment() - self._clock.monotonic()) > 0:
            self._health.completed(self.loop)
            events = (stopping,) if self.parked is None else (stopping, self._unparked)
            await wait_for_any(self._clock, wait_seconds, *events)
            if stopping.is_set():
                return True
        return False

    async def _send(self, request: Request, message: Message, attempt: int) -> Verdict:
        self._health.beat(self.loop)
        body = request.body(message)
        started = self._clock.monotonic()
        verdict = await self._sender.send(body, attempt, message)
        # Meeting an outage and noting it is all that a pass can do: it counts as one.
        self._health.completed(self.loop)
        self._metrics.sent(
            self.name,
            _outcome(verdict),
            samples=request.sample_count,
            sent_bytes=len(body),
            seconds=self._clock.monotonic() - started,
            again=attempt > 0,
        )
        return verdict

    def _heed(self, verdict: Verdict, message: Message) -> Verdict:
        """Park the destination, or end that, as the verdict tells."""
        if isinstance(verdict, Later) and verdict.fate is Fate.OLDER_MESSAGE and not self.protocol.is_automatic:
            reason = f"{verdict.reason}; the configuration asks for this version: take protobuf_message={message} out"
            verdict = replace(verdict, reason=reason, fate=Fate.PARK)
        match verdict:
            case Later() if _is_unsupported(verdict) and self.protocol.message is not message:
                pass  # 1.0 was an attempt; what does not know it is not set up wrongly
            case Later(fate=Fate.PARK):
                self._park(verdict)
            case Later(status=None) if self.parked is not None:
                # A silence does not tell that anything was corrected.
                self._probe_at = self._clock.monotonic() + self._probe_interval_seconds(verdict)
            case _ if self.parked is not None:
                self._log.info("The destination answers again; delivery goes on", was=self.parked)
                self.parked = self.parked_at = None
                self._unparked.set()
                self._health.destination_parked(self.name, None)
                self._metrics.push_parked.labels(self.name).set(0)
            case _:
                pass
        if isinstance(verdict, Later) and verdict.retry_after_seconds is not None and verdict.fate is not Fate.PARK:
            self._not_before = max(self._not_before, self._clock.monotonic() + verdict.retry_after_seconds)
        return verdict

    def _probe_interval_seconds(self, verdict: Later) -> float:
        # A run that ends does not wait for a probe: its attempts have pauses of their own.
        waits = self._attempts_allowed is None
        interval_seconds = self._queue.parked_probe_interval_seconds if waits else 0.0
        return max(interval_seconds, verdict.retry_after_seconds or 0.0)

    def _park(self, verdict: Later) -> None:
        interval_seconds = self._probe_interval_seconds(verdict)
        if self.parked is None:
            self._unparked.clear()
            self.parked_at = self._clock.now()
            self._log.error(
                "The destination is parked: somebody has to correct its set-up; what is pending stays in the ledger",
                reason=verdict.reason,
                status=verdict.status,
                probe_interval_seconds=interval_seconds,
            )
        self.parked = verdict.reason
        self._probe_at = self._clock.monotonic() + interval_seconds
        self._health.destination_parked(self.name, verdict.reason)
        self._metrics.push_parked.labels(self.name).set(1)

    def _waits_at_the_gate(self, verdict: Later) -> bool:
        """Whether the next attempt is held by `_exchange`: a run that ends does not wait that long."""
        return verdict.fate is Fate.PARK and self._attempts_allowed is None

    @property
    def _is_first_contact(self) -> bool:
        """Whether 2.0 is sent and the receiver has not shown yet that it knows it."""
        return self.protocol.message is Message.V2 and not self.protocol.knows_2

    async def _tell(
        self, request: Request, verdict: Accepted | Refused | Interrupted
    ) -> Accepted | Refused | Interrupted:
        match verdict:
            case Accepted():
                self._took(request, verdict)
            case Refused(status=status, text=text):
                await self._note_failure(f"refused with status {status}: {text}")
            case Interrupted():
                pass
            case _:
                assert_never(verdict)
        return verdict

    def _took(self, request: Request, verdict: Accepted) -> None:
        self.accepted_requests += 1
        self.accepting.set()
        newest_ms = max((bucket.timestamp_ms for bucket in request.batch.buckets), default=0)
        self._metrics.took(self.name, now=self._clock.now(), newest_seconds=newest_ms / 1000)
        if verdict.written_samples is not None and verdict.written_samples < request.sample_count:
            unwritten = request.sample_count - verdict.written_samples
            self._metrics.push_unwritten_samples_total.labels(self.name).inc(unwritten)
            self._log.warning(
                "The receiver accepted a request and says that it has not written all of its samples",
                samples=request.sample_count,
                written=verdict.written_samples,
            )

    def _fall_back(self, why: str, *, proven: bool = True) -> None:
        # Of several lanes that learn it at once, the first one says so.
        if self.protocol.message is Message.V2:
            self.protocol.fall_back(why, proven=proven)
            self._log.info("The receiver is sent remote write 1.0 from now on", why=why)
            self._show_protocol()

    def _show_protocol(self) -> None:
        is_2 = self.protocol.message is Message.V2
        self._metrics.push_message_version.labels(self.name).set(2 if is_2 else 1)
        self._metrics.push_fallen_back.labels(self.name).set(1 if self.protocol.why_older else 0)


_BAD_REQUEST = "HTTP 400 to {} request in 2.0, without any X-Prometheus-Remote-Write header"


def _is_unsupported(verdict: Verdict | Interrupted) -> bool:
    """Whether the receiver does not know the version that was sent."""
    return isinstance(verdict, Later) and verdict.status == 415


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
