"""A clock that tests move by hand."""

import asyncio
import heapq
import itertools
import math


class ManualClock:
    """Stands still until `advance` or `run_until_idle` moves it; whoever sleeps wakes when its time has come."""

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self._now = now
        self._origin = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now - self._origin

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._after(seconds), next(self._order), wake))
        await wake

    def _after(self, seconds: float) -> float:
        """Later than now, if by less than a float of its size can tell: or else who waits for that waits for ever."""
        return max(self._now + seconds, math.nextafter(self._now, math.inf)) if seconds > 0 else self._now

    def set(self, now: float) -> None:
        """Jump without waking anybody, before anything sleeps."""
        self._now = now

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking every sleeper at its own moment, and let what woke run."""
        target = self._now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            moment, _, wake = heapq.heappop(self._sleepers)
            if wake.done():
                continue
            self._now = max(self._now, moment)
            wake.set_result(None)
            await self._settle()
        self._now = target

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class JumpingClock(ManualClock):
    """A clock on which every sleep returns at once and moves the time by its length."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._now = self._after(seconds)
        await asyncio.sleep(0)
