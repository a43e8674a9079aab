"""How often something may be done: so many times per stretch of time, all at once if need be."""

import asyncio

from worker.clock import Clock, wait_for_any


class Allowance:
    """A number of permissions that grows back evenly, shared by whoever takes from it."""

    def __init__(self, most: int, *, per_seconds: float, clock: Clock) -> None:
        """`most` permissions to begin with, and as many again in `per_seconds`."""
        self._most = float(most)
        self._per_seconds = per_seconds
        self._clock = clock
        self._left = self._most
        self._at = clock.monotonic()

    async def take(self, stopping: asyncio.Event) -> bool:
        """Wait for a permission and take it; False where `stopping` was set first."""
        now = self._clock.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._most / self._per_seconds) - 1.0
        self._at = now
        if self._left < 0.0:
            # Below zero stand those that wait already, each for its own.
            await wait_for_any(self._clock, -self._left * self._per_seconds / self._most, stopping)
        return not stopping.is_set()
