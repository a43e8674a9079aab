"""Time, as the rest of the worker may know it.

Owns every reading of the wall clock, every reading of the monotonic clock and every wait. Nothing else imports `time`
or calls `asyncio.sleep`, so a test or the demo can run a day in a second by handing over another clock.
"""

import asyncio
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Protocol

# Cloudflare's time is known to the second, and late by the time that an answer takes.
_TOLERANCE_SECONDS = 30.0


class Clock(Protocol):
    """Where the worker gets its time from."""

    def now(self) -> float:
        """Wall-clock time in unix seconds, UTC. May jump when somebody sets the machine's clock."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go backwards; for durations and deadlines only."""

    async def sleep(self, seconds: float) -> None:
        """Return after this many seconds of this clock."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ScaledClock:
    """A clock that starts at `origin` (unix seconds) and runs `speed` times as fast as the machine's."""

    def __init__(self, origin: float, speed: float) -> None:
        self._origin = origin
        self._speed = speed
        self._started = time.monotonic()

    def now(self) -> float:
        return self._origin + self.monotonic()

    def monotonic(self) -> float:
        return (time.monotonic() - self._started) * self._speed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self._speed)


def ahead_of(date: str | None, now: float) -> float | None:
    """How far `now`, unix seconds, is ahead of the `Date` of an answer over HTTP (RFC 9110, 6.6.1), in seconds.

    None where that is not there, or no date.
    """
    try:
        moment = parsedate_to_datetime(date or "")
        return now - moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def really_ahead(seconds: float | None) -> float:
    """How far this machine's clock is ahead of another one that it was compared with, in seconds.

    0 where it is not, where that is not known (None), and where it may be the way that the comparison is made.
    """
    return seconds if seconds is not None and seconds > _TOLERANCE_SECONDS else 0.0


async def wait_for_any(clock: Clock, timeout_seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set or `timeout_seconds` have passed on `clock`; tell whether one was set."""
    if any(event.is_set() for event in events):
        return True
    timer = asyncio.ensure_future(_sleep(clock, timeout_seconds))
    waiters = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait((timer, *waiters), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (timer, *waiters):
            task.cancel()
    return any(event.is_set() for event in events)


async def _sleep(clock: Clock, seconds: float) -> bool:
    await clock.sleep(seconds)
    return False
