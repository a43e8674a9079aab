"""The API quota: how many requests Cloudflare accepts in five minutes, and the promise never to send more.

A sliding window over what was really sent, not a bucket of tokens: a bucket lets twice its size through around its
edge. Cloudflare counts a request at some moment between its start and its end, so a place is taken at the start and
comes free five minutes after the end. Knows nothing of queries or of HTTP.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from worker.clock import Clock

# https://developers.cloudflare.com/analytics/graphql-api/limits/: 300 GraphQL queries per 5 minutes.
GRAPHQL_REQUESTS = 300
# https://developers.cloudflare.com/fundamentals/api/reference/limits/: 1,200 requests of all kinds per 5 minutes, and
# GraphQL queries are among them.
ALL_REQUESTS = 1200
WINDOW_SECONDS = 300.0
# Five minutes after the end of a request, to the tick, one window of five minutes still holds it; a moment later none.
_PAST_THE_EDGE_SECONDS = 0.001
# How often a place is looked for while every one of them is held by a request under way, which only a limit smaller
# than the number of concurrent requests can bring about.
_LOOK_AGAIN_SECONDS = 1.0


class Api(StrEnum):
    """The two APIs of Cloudflare."""

    GRAPHQL = "graphql"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Paused:
    """No request may be sent for so many seconds, because Cloudflare said so."""

    seconds: float


class _Places:
    """The requests of the last five minutes against one limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.under_way = 0
        self.ended: deque[float] = deque()

    def free(self, now: float) -> int:
        while self.ended and self.ended[0] < now - WINDOW_SECONDS:
            self.ended.popleft()
        return self.limit - self.under_way - len(self.ended)

    def wait_seconds(self, now: float) -> float:
        if self.free(now) > 0:
            return 0.0
        if not self.ended:
            return _LOOK_AGAIN_SECONDS
        return max(self.ended[0] + WINDOW_SECONDS - now, 0.0) + _PAST_THE_EDGE_SECONDS


class Lease:
    """The right to send one request, taken with `with` around the whole exchange."""

    def __init__(self, clock: Clock, places: tuple[_Places, ...]) -> None:
        self._clock = clock
        self._places = places
        for each in places:
            each.under_way += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = self._clock.monotonic()
        for each in self._places:
            each.under_way -= 1
            each.ended.append(now)


class Quota:
    """Hands out the right to send requests, in the order in which it was asked for."""

    def __init__(self, clock: Clock, *, graphql: int = GRAPHQL_REQUESTS, total: int = ALL_REQUESTS) -> None:
        self._clock = clock
        everything = _Places(total)
        self._places = {Api.GRAPHQL: (_Places(graphql), everything), Api.REST: (everything,)}
        self._turns = {api: asyncio.Lock() for api in Api}
        self._paused_until = dict.fromkeys(Api, -math.inf)

    async def acquire(self, api: Api) -> Lease | Paused:
        """Wait until one more request fits into the quota; `Paused`, at once, while a pause is in force."""
        async with self._turns[api]:
            while not (paused := self.paused_seconds(api)):
                now = self._clock.monotonic()
                wait = max(each.wait_seconds(now) for each in self._places[api])
                if not wait:
                    return Lease(self._clock, self._places[api])
                await self._clock.sleep(wait)
            return Paused(paused)

    def pause(self, api: Api, seconds: float) -> None:
        """Send nothing to this API for so long; a longer pause that is in force stays."""
        self._paused_until[api] = max(self._paused_until[api], self._clock.monotonic() + seconds)

    def paused_seconds(self, api: Api) -> float:
        """How long a pause is still in force; 0 if none is."""
        return max(0.0, self._paused_until[api] - self._clock.monotonic())

    def recent_seconds_ago(self, api: Api) -> list[float]:
        """How long ago each request ended that counts against this API's limit; 0 for one that is under way."""
        now = self._clock.monotonic()
        places = self._places[api][0]
        places.free(now)
        return [now - ended for ended in places.ended] + [0.0] * places.under_way

    def remember(self, api: Api, seconds_ago: Iterable[float]) -> None:
        """Count requests that another process sent with this token, before any of this one."""
        now = self._clock.monotonic()
        self._places[api][0].ended.extend(sorted(now - max(0.0, seconds) for seconds in seconds_ago))

    def limit(self, api: Api) -> int:
        """How many requests it allows in five minutes."""
        return min(each.limit for each in self._places[api])

    def remaining(self, api: Api) -> int:
        """How many requests could be sent at this moment without waiting."""
        now = self._clock.monotonic()
        return 0 if self.paused_seconds(api) else max(0, min(each.free(now) for each in self._places[api]))
