"""What is to blame when a request is not taken: everything else in it is delivered, the culprits are told one by one.

A refused batch is halved, by timestamp, then by bucket, then by series (`worker.remote_write.halve`), and each half is
sent; a half that is refused is halved again, down to single samples. So k bad samples of n cost about 2 k log2(n/k)
requests, and the good ones arrive. It works for receivers that keep the good part of what they refuse, to which it is
a repetition, and for those that keep nothing of it.

A batch that fails again and again with 5xx is treated in the same way, with one difference: a failure is also what an
outage looks like, and that of a part of the receiver fails some series and takes the others. So a sample is blamed only
for a status that can mean the sample, when the receiver has taken other rows before and after it failed, again and
again over a time that such an outage does not last (`blame_after_seconds`).

A 429 is what a rate limit says to any request, and a limit of another kind, on the number of series say, to those with
a series too many. More requests make the first worse. So what gets one is not halved but left in doubt, whatever its
size, and tried again now and then, each time followed by a sample that the receiver took before: only where that is
taken directly after this was not, and so often that chance would not do it, is it halved, and a sample blamed.

One short cut, for a strict receiver, whose queue waits for the search: where all of a window is refused that is older
than an hour, and sixteen samples of it, chosen by chance, are refused each alone, the rest is taken to be too old like
them. It takes nothing that is an hour older than its newest sample, whatever the series; asked about each sample of a
long outage, it would have grown too old for the rest before the search were done.

Pure but for what it is given to send with. Knows nothing of the ledger; what it has not decided stays pending there.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import assert_never

from worker.buckets import Batch
from worker.clock import Clock
from worker.deliver import Interrupted, Request
from worker.remote_write import Accepted, Fate, Later, Refused, alone, halves, spread

# Prometheus, Mimir, Cortex and Thanos take a new series' sample that is up to an hour older than the newest one they
# have (half of the two hours of a block); windows within it are never taken to be refused for their age.
_AGE_OF_SUSPICION_SECONDS = 3600.0

TRIED_OF_A_WINDOW = 16
"""Tried one by one before a window is taken to be too old: where one in six samples were good, the chance to meet none
of them would be (5/6)^16, one in twenty."""

TRIED_OF_THE_NEXT_WINDOW = 2
"""The same for a window behind one that was too old: where one in a hundred samples is bad for another reason, the
chance to meet only such is one in ten thousand. A day without the receiver are 1,440 windows of a minute, which take
7 minutes with 3 requests each at 600 a minute; with 17 it were 41, and as many windows more would grow too old."""

# Halvings from a batch down to a sample: enough for the largest batch, 2^20 samples.
_MOST_HALVINGS = 20

# How often a sample must fail while the receiver takes other rows, before it is blamed for a 5xx: twice in each of two
# rounds. More where the receiver fails others, too: until chance would have done it once in a million times.
_LEAST_FAILURES = 4
_CHANCE = 1e-6

# Between two rounds over the samples that fail alone: at first as long as a receiver needs to restart, twice as long
# each time, and so that there are a dozen rounds in the time after which they are blamed.
_FIRST_REST_SECONDS = 15.0
_ROUNDS = 12

# "Bad gateway", "service unavailable" and "gateway timeout" speak of the receiver and never of a sample (RFC 9110,
# 15.6), and neither do 529, which is said to a tenant or to all, and a silence.
_NEVER_THE_SAMPLE = frozenset({502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Taken:
    """The receiver has all samples of these buckets, or parts of buckets; which series they are of may be left out."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Declined:
    """The receiver will not take these samples.

    status: the HTTP status; None where it never answered to them.
    text:   what it said, or why they are not sent.
    """

    batch: Batch
    status: int | None
    text: str


Decision = Taken | Declined


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A single sample that failed, and may or may not be to blame; where a limit is to blame, any number of samples.

    since:             when it failed first, on the monotonic clock.
    accepted_requests: how many the receiver had accepted when it failed last.
    failures:          how often it failed alike while the receiver was seen to work.
    """

    request: Request
    failure: Later
    since: float
    accepted_requests: int
    failures: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether it is too many requests or samples that the receiver complains of."""
        return self.failure.fate is Fate.RATE_LIMITED


class Isolation:
    """The search in one batch. Made for it, used once."""

    def __init__(
        self,
        *,
        send: Callable[[Request, int], Awaitable[Accepted | Refused | Later | Interrupted]],
        request: Callable[[Batch], Request],
        accepted_requests: Callable[[], int],
        taken_before: Callable[[], Batch | None],
        pause: Callable[[int], Awaitable[bool]],
        rest: Callable[[float], Awaitable[bool]],
        blame_after_seconds: float,
        strict: bool,
        tried_of_a_window: int = TRIED_OF_A_WINDOW,
        clock: Clock,
    ) -> None:
        """Make it.

        send:                sends a request, with so many failures allowed.
        accepted_requests:   how many requests the receiver has accepted so far, of any lane.
        taken_before:        a sample that the receiver took before the search or beside it; None before there is one.
        pause:               waits after so many failures in a row; tells whether to stop.
        rest:                waits for so many seconds; tells whether to stop.
        blame_after_seconds: how long a sample must fail alone before it is blamed.
        strict:              whether the receiver takes nothing out of order.
        tried_of_a_window:   how many samples of an old window are tried, where that is so.
        """
        self._send = send
        self._request = request
        self._accepted_requests = accepted_requests
        self._taken_before = taken_before
        self._pause = pause
        self._rest = rest
        self._rounds = 0  # over the doubtful
        self._blame_after_seconds = blame_after_seconds
        self._strict = strict
        self._tried_of_a_window = tried_of_a_window
        self._clock = clock
        self._suspects: list[Batch] = []  # what comes next is last
        self._doubtful: list[_Doubt] = []
        self._refused_halves: tuple[Batch, Batch] | None = None  # of what was cut last
        self._looked_at: set[int] = set()  # timestamps of which a few samples were tried
        self._tried_in_vain = 0  # suspects since one was cut
        self._failures_in_a_row = 0
        self._accepted_before = accepted_requests()
        self._works = False  # whether the receiver has accepted anything since the search began
        self._control: Request | None = None  # the smallest part that was accepted
        # Of requests with nothing in them to blame, as they were accepted before or afterwards:
        self._passed = 0  # so many were accepted
        self._shed = 0  # so many failed
        self._limits_all = False  # whether the control met a limit in this round
        self._limit_is_proven = False  # a limit holds back what is in a part, and not whatever comes
        self.interrupted: Interrupted | None = None
        """Why the search ended before everything was decided."""
        self.largest_taken_bytes = 0
        """Bytes of the largest part that was accepted."""
        self.declined_samples = 0
        self.found_too_old = False
        """Whether a window was found to be too old as a whole."""

    @property
    def is_cutting(self) -> bool:
        """Whether there are parts that were not tried yet."""
        return not self._rounds

    async def decisions(self, request: Request, verdict: Refused | Later) -> AsyncIterator[Decision]:
        """What becomes of each sample of a request on which the receiver gave this verdict as a whole."""
        async for decision in self._suspect(request, verdict):
            yield decision
        del request  # a search may last for hours, with one sample of it left in doubt
        while (self._suspects or self._doubtful) and self.interrupted is None:
            async for decision in self._try_suspects():
                yield decision
            if not self._rounds:
                await self._wait_after_failures()
            async for decision in self._blame():
                yield decision

    def add(self, batch: Batch) -> None:
        """Search in this batch as well, in the end."""
        self._suspects.insert(0, batch)

    async def _try_suspects(self) -> AsyncIterator[Decision]:
        while self._suspects and self.interrupted is None:
            part = self._request(self._suspects.pop())
            answer = await self._try(part)
            match answer:
                case Interrupted():
                    self.interrupted = answer
                case Accepted():
                    yield self._taken(part)
                    self._infer(part.batch)
                case Refused() | Later():
                    async for decision in self._suspect(part, answer):
                        yield decision
                case _:
                    assert_never(answer)

    async def _suspect(self, request: Request, verdict: Refused | Later) -> AsyncIterator[Decision]:
        """Decide on what was not taken, or note what is to be tried next."""
        batch = request.batch
        match verdict:
            case Refused() if request.sample_count == 1 or not verdict.is_about_content:
                yield self._declined(batch, verdict)
            case Later() if request.sample_count == 1 or verdict.fate is Fate.RATE_LIMITED:
                doubted = self._request(alone(batch) if request.sample_count == 1 else batch)
                self._doubtful.append(_Doubt(doubted, verdict, self._clock.monotonic(), self._accepted_requests()))
            case Refused() if self._may_be_too_old(batch):
                async for decision in self._try_some(batch, verdict):
                    yield decision
            case Later() if self._failures_in_a_row > _MOST_HALVINGS and not self._is_largest_of_a_round(batch):
                # Nothing goes through: one after the other is tried until something does.
                self._tried_in_vain += 1
                self._suspects.insert(0, batch)
            case Refused() | Later():
                self._tried_in_vain = 0
                self._halve(batch, refused=isinstance(verdict, Refused) and verdict.status != 413)
            case _:
                assert_never(verdict)

    def _halve(self, batch: Batch, *, refused: bool) -> None:
        """Try the halves next, the older one first."""
        both = halves(batch)
        if both is not None:
            self._suspects += reversed(both)
        self._refused_halves = both if refused else None

    def _infer(self, taken: Batch) -> None:
        """What was refused with a half that is taken must be in the other half: that need not be sent to know it.

        Not before a sample was found to be refused: until then it may have been their number.
        """
        match self._refused_halves:
            case (older, newer) if older is taken and self.declined_samples and newer.sample_count > 1:
                self._suspects.pop()
                self._halve(newer, refused=True)
            case _:
                pass

    def _is_largest_of_a_round(self, batch: Batch) -> bool:
        """Whether all other suspects have failed since one was cut, and none of them has more samples.

        So an outage cuts a batch ever more slowly, and in a search something that can be taken is found all the same.
        """
        return self._tried_in_vain >= len(self._suspects) and all(
            batch.sample_count >= suspect.sample_count for suspect in self._suspects
        )

    async def _try(self, request: Request) -> Accepted | Refused | Later | Interrupted:
        """Send a part once; after a failure with nothing to show that the receiver works, later."""
        while self._failures_in_a_row > _MOST_HALVINGS and self._has_control() and self.interrupted is None:
            # Is it still the samples, or has the receiver gone? What it has taken before will tell.
            await self._takes_control()
            if self._failures_in_a_row and await self._pause(self._failures_in_a_row):
                return Interrupted.STOPPING
        await self._wait_after_failures()
        if self.interrupted is not None:
            return self.interrupted
        answer = await self._send(request, 1)
        match answer:
            case Accepted():
                self._works = True
                self._failures_in_a_row = 0
                self.largest_taken_bytes = max(self.largest_taken_bytes, request.size_bytes)
            case Later():
                self._failures_in_a_row += 1
            case Refused() | Interrupted():
                pass
            case _:
                assert_never(answer)
        return answer

    async def _wait_after_failures(self) -> None:
        """Wait where the last part failed and nothing shows that the receiver works."""
        if self._failures_in_a_row and self.interrupted is None and not self._is_working():
            self.interrupted = Interrupted.STOPPING if await self._pause(self._failures_in_a_row) else None

    def _is_working(self) -> bool:
        """Whether the receiver takes other rows, as far as can be told."""
        if self._accepted_requests() > self._accepted_before:
            self._accepted_before = self._accepted_requests()
            self._works = True
            self._failures_in_a_row = min(self._failures_in_a_row, 1)
        return self._works and self._failures_in_a_row <= _MOST_HALVINGS

    async def _try_some(self, batch: Batch, verdict: Refused) -> AsyncIterator[Decision]:
        """Try a few samples of an old window: if each is refused, all will be; else all are looked at."""
        self._looked_at.update(bucket.timestamp_ms for bucket in batch.buckets)
        singles, rest = spread(batch, self._tried_of_a_window)
        for index, single in enumerate(singles):
            part = self._request(single)
            answer = await self._try(part)
            match answer:
                case Interrupted():
                    self.interrupted = answer
                    return
                case Refused():
                    yield self._declined(single, answer)
                    continue
                case Accepted():
                    yield self._taken(part)
                case Later():
                    self._suspects.append(single)
                case _:
                    assert_never(answer)
            untried = [bucket for part in (rest, *singles[index + 1 :]) for bucket in part.buckets]
            self._suspects.append(Batch(tuple(untried), batch.series))
            return
        self.found_too_old = True
        yield self._declined(rest, verdict, f" ({self._tried_of_a_window} samples of this time were tried alone)")

    async def _blame(self) -> AsyncIterator[Decision]:
        """One round over what fails alone: try each between rows that the receiver takes, then rest."""
        self._rounds += 1
        limited = [doubt for doubt in self._doubtful if doubt.is_limited]
        self._doubtful = [doubt for doubt in self._doubtful if not doubt.is_limited]
        is_working = bool(limited)  # as far as it concerns the rest, in which a limit recovers
        for index in range(len(self._doubtful)):
            if self.interrupted is not None:
                return
            doubt = self._doubtful.pop(0)
            works = self._accepted_requests() > doubt.accepted_requests
            # What else was accepted does not tell what was not: once a round the control tells how much fails anyway.
            asks = self._has_control() and (index == 0 or not works)
            proven = await self._takes_control() if asks else works
            if self.interrupted is not None:
                return
            if proven and self._is_to_blame(doubt):
                yield self._declined(doubt.request.batch, doubt.failure)
                continue
            async for decision in self._try_again(doubt, proven=proven):
                yield decision
            is_working = is_working or works or proven
            if not (works or proven) and self._failures_in_a_row and await self._pause(self._failures_in_a_row):
                self.interrupted = Interrupted.STOPPING
        async for decision in self._try_limited(limited):
            yield decision
        if self._doubtful and is_working and self.interrupted is None:
            seconds = min(_FIRST_REST_SECONDS * 2.0 ** min(self._rounds, 32) / 2, self._blame_after_seconds / _ROUNDS)
            if await self._rest(seconds):
                self.interrupted = Interrupted.STOPPING

    async def _try_limited(self, limited: list[_Doubt]) -> AsyncIterator[Decision]:
        """Try each part that a limit holds back; where the receiver takes nothing else either, no further."""
        self._limits_all = False
        for doubt in limited:
            if self.interrupted is not None:
                return
            if self._limits_all:
                self._doubtful.append(doubt)
                continue
            works = self._accepted_requests() > doubt.accepted_requests
            if works or self._has_control() or doubt.request.sample_count == 1:
                decisions = self._try_again_limited(doubt, doubt.request, None, works=works)
            else:
                # One sample of it finds out whether anything is taken, and is little to a limit on samples.
                decisions = self._try_again_limited(doubt, *self._one_of(doubt.request), works=works)
            async for decision in decisions:
                yield decision

    async def _try_again_limited(
        self, doubt: _Doubt, part: Request, rest: Request | None, *, works: bool
    ) -> AsyncIterator[Decision]:
        """Try a part of what a limit holds back, and then what the receiver takes; `rest` is what is left of it.

        Then and not before: a control that is taken would use up what a limit on requests leaves to the part.
        """
        answer = await self._send(part, 1)
        if isinstance(answer, Later) and doubt.failures % 2:
            # Twice every other time, or a receiver that limits every other request would always take the control.
            answer = await self._send(part, 1)
        part.forget_bodies()
        match answer:
            case Interrupted():
                self.interrupted = answer
            case Accepted():
                self._failures_in_a_row = 0
                self._shed += 0 if rest is not None else 1 + doubt.failures
                self._passed += 1
                yield self._taken(part)
            case Refused():
                self._failures_in_a_row = 0
                async for decision in self._suspect(part, answer):
                    yield decision
            case Later():
                rest = None
                proven = await self._takes_control() if self._has_control() else works
                self._limits_all = not proven
                async for decision in self._judge_limited(doubt, answer, proven=proven):
                    yield decision
            case _:
                assert_never(answer)
        if rest is not None:
            self._doubtful.append(replace(doubt, request=rest))

    def _one_of(self, request: Request) -> tuple[Request, Request]:
        """One sample of a request, in each round another one, and the rest of it."""
        (single,), rest = spread(request.batch, 1, self._rounds)
        return self._request(single), self._request(rest)

    async def _judge_limited(self, doubt: _Doubt, failure: Later, *, proven: bool) -> AsyncIterator[Decision]:
        """Halve what a limit holds back, or blame it, where that is proven; else it is tried again."""
        batch = doubt.request.batch
        is_single = batch.sample_count == 1
        failures = doubt.failures + proven if failure.status == doubt.failure.status or not is_single else 0
        failure = failure if is_single else doubt.failure
        again = _Doubt(doubt.request, failure, doubt.since, self._accepted_requests(), failures)
        if is_single and self._is_to_blame(again):
            yield self._declined(batch, failure)
        elif is_single or failures < self._failures_to_halve():
            self._doubtful.append(again)
        else:
            self._halve(batch, refused=False)
            self._limit_is_proven = True
            self._rounds = 0

    def _failures_to_halve(self) -> int:
        """As to blame a sample; fewer, once a part was halved and nothing looked like chance before or since."""
        return _LEAST_FAILURES // 2 if self._limit_is_proven and not self._shed else self._failures_to_blame()

    def _is_to_blame(self, doubt: _Doubt) -> bool:
        """Whether a sample has failed so long, so often and with such a status that it must be the sample."""
        status = doubt.failure.status
        return (
            status is not None
            and (status >= 500 or doubt.is_limited)
            and status not in _NEVER_THE_SAMPLE
            and doubt.failures >= self._failures_to_blame()
            and self._clock.monotonic() - doubt.since >= self._blame_after_seconds
        )

    def _failures_to_blame(self) -> int:
        """How often a sample must have failed: so often that chance alone would have done it once in a million times.

        A receiver that sheds load fails requests by chance: as many of them as of the controls.
        """
        if not self._shed:
            return _LEAST_FAILURES
        # As if one more had been accepted: where all have failed, nobody knows how few do not.
        share = self._shed / (self._shed + self._passed + (not self._passed))
        return max(_LEAST_FAILURES, math.ceil(math.log(_CHANCE) / math.log(share)))

    async def _try_again(self, doubt: _Doubt, *, proven: bool) -> AsyncIterator[Decision]:
        """Send what is in doubt again; where it fails, it goes to the end."""
        failures = doubt.failures
        answer = await self._send(doubt.request, 1)
        if proven and isinstance(answer, Later):
            # At once again: a receiver that fails every other time would else fail it and take what is between.
            failures += 1
            answer = await self._send(doubt.request, 1)
        match answer:
            case Interrupted():
                self.interrupted = answer
            case Accepted():
                self._failures_in_a_row = 0
                self._shed += 1 + failures
                self._passed += 1
                yield self._taken(doubt.request)
            case Refused():
                self._failures_in_a_row = 0
                yield self._declined(doubt.request.batch, answer)
            case Later(status=status):
                self._failures_in_a_row += 1
                # What fails for its own sake fails in the same way each time.
                failures = failures + proven if status == doubt.failure.status else 0
                self._doubtful.append(_Doubt(doubt.request, answer, doubt.since, self._accepted_requests(), failures))
            case _:
                assert_never(answer)

    async def _takes_control(self) -> bool:
        """Whether the receiver takes what it has taken before: the same samples with the same values."""
        if self._control is None:
            return False
        answer = await self._send(self._control, 1)
        match answer:
            case Interrupted():
                self.interrupted = answer
            case Later():
                self._failures_in_a_row += 1
                self._shed += 1
            case Accepted() | Refused():
                self._failures_in_a_row = 0
                self._passed += 1
                return True
            case _:
                assert_never(answer)
        return False

    def _has_control(self) -> bool:
        """Whether there is something that the receiver has taken before."""
        if self._control is None and (batch := self._taken_before()) is not None:
            self._control = self._request(batch)
        return self._control is not None

    def _taken(self, request: Request) -> Taken:
        if self._control is None or request.sample_count < self._control.sample_count:
            self._control = self._request(alone(request.batch))
        return Taken(Batch(request.batch.buckets, {}))

    def _declined(self, batch: Batch, verdict: Refused | Later, note: str = "") -> Declined:
        self.declined_samples += batch.sample_count
        text = verdict.text if isinstance(verdict, Refused) else verdict.reason
        return Declined(Batch(batch.buckets, {}), verdict.status, text + note)

    def _may_be_too_old(self, batch: Batch) -> bool:
        timestamps_ms = {bucket.timestamp_ms for bucket in batch.buckets}
        return (
            self._strict
            and len(timestamps_ms) == 1
            and timestamps_ms.isdisjoint(self._looked_at)
            and batch.sample_count > 2 * TRIED_OF_A_WINDOW
            and min(timestamps_ms) / 1000 < self._clock.now() - _AGE_OF_SUSPICION_SECONDS
        )
