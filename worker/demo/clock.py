"""Simulated time, shared by the simulated Cloudflare and the worker."""

import asyncio

from worker.clock import ScaledClock, SystemClock

# Loops that look every second or two would otherwise look a hundred times a second, and keep a core and a disk busy.
_SHORTEST_SLEEP_SECONDS = 0.1


class DemoClock:
    """A clock that stands still at `starts_at` until `run`, then runs `speed` times as fast as the machine's to
    `ends_at`, and there stands still again (unix seconds).

    While it stands at its start nobody who sleeps on it wakes. At its end it stands for the time of day only: durations
    go on, so that whoever has something to try again does.
    """

    def __init__(self, starts_at: float, ends_at: float, speed: float) -> None:
        self._starts_at = starts_at
        self._ends_at = ends_at
        self._speed = speed
        self._machine = SystemClock()
        self._scaled: ScaledClock | None = None
        self._runs = asyncio.Event()

    def run(self) -> None:
        """Let time run."""
        self._scaled = ScaledClock(self._starts_at, self._speed)
        self._runs.set()

    def now(self) -> float:
        return min(self._starts_at + self.monotonic(), self._ends_at)

    def monotonic(self) -> float:
        return 0.0 if self._scaled is None else self._scaled.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._runs.wait()
        await self._machine.sleep(max(seconds / self._speed, _SHORTEST_SLEEP_SECONDS))
