"""The API quota as a budget: how many requests Cloudflare accepts in five minutes, and who may send the next one.

Every request of a token draws from one `Quota`, GraphQL and REST alike. It promises, in this order:

    never more than the limit     in any five minutes, whoever asks
    higher priorities first       while several wait for a place
    a floor for each of them      of every 25 places that a priority waits for and could use, one is its own
    no burst but a live one       what is not live is paced, and so leaves room for the live requests to come

A limit is a sliding window over what was really sent, not a bucket of tokens: a bucket lets twice its size through
around its edge. Cloudflare counts a request at some moment between its start and its end, so a place is taken at the
start and comes free five minutes after the end. Knows nothing of queries or of HTTP.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from worker.clock import Clock, wait_for_any

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

# Of so many places that are handed out while a priority waits and could take them, at least one is its: a floor of 4 %,
# which of the usual 300 is twelve requests in five minutes. The four priorities below the live one can claim 16 %
# together, so the live one keeps 84 % of whatever comes free.
PLACES_PER_TURN = 25
LIVE_SHARE = 1 - 4 / PLACES_PER_TURN
# A backlog would take all places at once, and live requests would find none for five minutes. So what is not live gets
# no more in any minute than all floors together could claim of a whole budget that comes free at once: 16 % of the
# limit, which is 5 x 16 % = 80 % of the budget.
PACE_SECONDS = 60.0
PACE_SHARE = 4 / PLACES_PER_TURN

# Of what one request costs, each answer moves the estimate by an eighth: ten answers after a change it is 3/4 there.
_COST_WEIGHT = 1 / 8
# What Cloudflare's own `budget` counts is not documented. It may slow requests down to a tenth of the limit, and not
# stop them: where it really is used up, Cloudflare says so with an error, and that is a pause.
_SLOWEST_SHARE = 0.1


class Api(StrEnum):
    """The two APIs of Cloudflare."""

    GRAPHQL = "graphql"
    REST = "rest"


class Priority(StrEnum):
    """What a request is for, the most urgent first."""

    LIVE = "live"
    """A window that has just become final."""
    RETRY = "retry"
    """A window that was asked for before, in vain."""
    DRIFT = "drift"
    """A captured window, to see whether its numbers still are the same."""
    BACKFILL = "backfill"
    """A window of the past that a person asked for."""
    DISCOVERY = "discovery"
    """What there is to be asked for: accounts, zones, entitlements."""


class RateLimitType(StrEnum):
    """What Cloudflare counts GraphQL queries by."""

    TOKEN = "token"  # noqa: S105 - a word of the API, not one of its tokens
    """All queries of a token together."""
    ACCOUNT = "account"
    """The queries of each account by themselves; has to be asked for with a header."""


@dataclass(frozen=True, slots=True)
class Paused:
    """No request may be sent for so many seconds, because Cloudflare said so.

    scopes: the tags that the pause is about, of those that the request concerns; empty where it is about the whole API.
    """

    seconds: float
    scopes: tuple[str, ...] = ()


class _Places:
    """The requests of the last seconds against one limit."""

    def __init__(self, limit: int, window_seconds: float, ended: Iterable[float] = ()) -> None:
        self.limit = limit
        self.under_way = 0
        self.ended: deque[float] = deque(ended)
        self._window_seconds = window_seconds

    def free(self, now: float) -> int:
        while self.ended and self.ended[0] < now - self._window_seconds:
            self.ended.popleft()
        return self.limit - self.under_way - len(self.ended)

    def wait_seconds(self, now: float) -> float:
        if self.free(now) > 0:
            return 0.0
        if not self.ended:
            return _LOOK_AGAIN_SECONDS
        return max(self.ended[0] + self._window_seconds - now, 0.0) + _PAST_THE_EDGE_SECONDS


class _Budget:
    """One limit of Cloudflare's: the places that everything shares, and the pace of what is not live."""

    def __init__(self, limit: int, remembered: Iterable[float] = ()) -> None:
        self.all = _Places(limit, WINDOW_SECONDS, remembered)
        self._paced = _Places(max(1, int(limit * PACE_SHARE)), PACE_SECONDS)

    def places(self, priority: Priority) -> tuple[_Places, ...]:
        return (self.all,) if priority is Priority.LIVE else (self.all, self._paced)


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

    def give_back(self) -> None:
        """Instead of sending a request."""
        for each in self._places:
            each.under_way -= 1


_Line = tuple[Priority, Api, str]
"""Those who wait for the same places: priority, API, account. Whoever came first is served first."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody who wants to send a request; woken when there is an outcome, and on becoming the first of the line."""

    number: int
    api: Api
    scopes: tuple[str, ...]
    places: tuple[_Places, ...]
    outcome: Lease | Paused | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wait_seconds(self, now: float) -> float:
        return max(each.wait_seconds(now) for each in self.places)


class Quota:
    """Hands out the right to send requests with one token.

    graphql:         GraphQL queries in five minutes; of each account, where those are counted one by one.
    total:           requests of all kinds in five minutes.
    rate_limit_type: what Cloudflare counts the GraphQL queries by.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        graphql: int = GRAPHQL_REQUESTS,
        total: int = ALL_REQUESTS,
        rate_limit_type: RateLimitType = RateLimitType.TOKEN,
    ) -> None:
        self.rate_limit_type = rate_limit_type
        self.cost_per_request: float | None = None
        """What one query costs by Cloudflare's own reckoning, averaged over the last answers that said so."""
        self.has_remembered = False
        """Whether it was told what another process sent with this token."""
        self.budget_left: int | None = None
        """What Cloudflare's last answer that said so left of its own budget, in the unit of the cost."""
        self._clock = clock
        self._graphql_limit = graphql
        self._graphql: dict[str, _Budget] = {}
        if rate_limit_type is RateLimitType.TOKEN:
            self._graphql[""] = _Budget(graphql)
        self._remembered: list[float] = []
        self._total = _Budget(total)
        self._asked = itertools.count()
        self._lines: dict[_Line, list[_Waiter]] = {}
        self._passed_over = dict.fromkeys(Priority, 0)
        self._paused_until: dict[tuple[Api, str | None], float] = {}

    async def acquire(
        self, api: Api, priority: Priority = Priority.LIVE, scopes: Iterable[str] = (), *, account: str = ""
    ) -> Lease | Paused:
        """Wait until one more request fits into the quota; `Paused`, at once, as soon as a pause concerns it.

        scopes:  tags of the zones and accounts that it concerns.
        account: tag of the account that its GraphQL query is counted against, where accounts are counted one by one.
        """
        budgets = (self._of(account), self._total) if api is Api.GRAPHQL else (self._total,)
        places = tuple(each for budget in budgets for each in budget.places(priority))
        waiter = _Waiter(next(self._asked), api, tuple(scopes), places)
        line = (priority, api, account)
        self._lines.setdefault(line, []).append(waiter)
        try:
            while True:
                self._serve()
                if waiter.outcome is not None:
                    return waiter.outcome
                waiter.woken.clear()
                # Only the first of a line watches the time, for all of it.
                if self._lines[line][0] is waiter:
                    await wait_for_any(self._clock, waiter.wait_seconds(self._clock.monotonic()), waiter.woken)
                else:
                    await waiter.woken.wait()
        except asyncio.CancelledError:
            if waiter.outcome is None:
                self._leave(line, waiter)
            elif isinstance(waiter.outcome, Lease):
                waiter.outcome.give_back()
                self._serve()
            raise

    def pause(self, api: Api, seconds: float, scope: str | None = None) -> None:
        """Send nothing to this API for so long, or nothing about this zone or account; a longer pause stays in force.

        Whoever waits is told at once.
        """
        until = self._clock.monotonic() + seconds
        self._paused_until[api, scope] = max(self._paused_until.get((api, scope), until), until)
        self._serve()

    def paused_seconds(self, api: Api, scope: str | None = None) -> float:
        """How long a pause of the API, or of this scope alone, is still in force; 0 if none is."""
        return max(0.0, self._paused_until.get((api, scope), -math.inf) - self._clock.monotonic())

    def learn(self, cost: int | None, budget: int | None, *, account: str = "") -> None:
        """Take note of what an answer says about `cost` and `viewer { budget }`; None where it does not.

        Where Cloudflare has fewer requests left than this quota, somebody else sends with the same token: what is
        missing is counted as sent just now.
        """
        if cost is not None and cost > 0:
            known = self.cost_per_request
            self.cost_per_request = float(cost) if known is None else known + (cost - known) * _COST_WEIGHT
        if budget is None or budget < 0:
            return
        self.budget_left = budget
        now = self._clock.monotonic()
        places = self._of(account).all
        free = places.free(now)
        left = max(int(budget / (self.cost_per_request or 1.0)), math.ceil(places.limit * _SLOWEST_SHARE))
        places.ended.extend([now] * (free - left))

    def recent_seconds_ago(self, api: Api) -> list[float]:
        """How long ago each request ended that counts against this API's limit; 0 for one that is under way."""
        now = self._clock.monotonic()
        ago: list[float] = []
        for budget in self._graphql.values() if api is Api.GRAPHQL else (self._total,):
            budget.all.free(now)
            ago += [now - ended for ended in budget.all.ended] + [0.0] * budget.all.under_way
        return sorted(ago, reverse=True)

    def remember(self, api: Api, seconds_ago: Iterable[float]) -> None:
        """Count requests that another process sent with this token, before any of this one.

        Which account a query was counted against is not known: it counts against each of them.
        """
        self.has_remembered = True
        now = self._clock.monotonic()
        ended = sorted(now - max(0.0, seconds) for seconds in seconds_ago)
        if api is Api.REST:
            self._total.all.ended.extend(ended)
            return
        self._remembered += ended
        for budget in self._graphql.values():
            budget.all.ended.extend(ended)

    def limit(self, api: Api) -> int:
        """How many requests it allows in five minutes; of GraphQL, to each account where those are counted."""
        total = self._total.all.limit
        return min(self._graphql_limit, total) if api is Api.GRAPHQL else total

    def remaining(self, api: Api) -> int:
        """How many live requests could be sent at this moment without waiting, to the account with the fewest left."""
        now = self._clock.monotonic()
        budgets = [self._total, *(self._graphql.values() if api is Api.GRAPHQL else ())]
        free = min(self.limit(api), *(budget.all.free(now) for budget in budgets))
        return 0 if self.paused_seconds(api) else max(0, free)

    def has_place(self, account: str, priority: Priority = Priority.LIVE) -> bool:
        """Whether a GraphQL query of this priority about this account could be sent now, without waiting."""
        now = self._clock.monotonic()
        places = (each for budget in (self._of(account), self._total) for each in budget.places(priority))
        return not any(each.wait_seconds(now) for each in places)

    def _of(self, account: str) -> _Budget:
        """The budget of GraphQL queries that an account's are counted against."""
        key = account if self.rate_limit_type is RateLimitType.ACCOUNT else ""
        if key not in self._graphql:
            self._graphql[key] = _Budget(self._graphql_limit, self._remembered)
        return self._graphql[key]

    def _serve(self) -> None:
        """Settle everybody who can be settled at this moment."""
        now = self._clock.monotonic()
        self._paused_until = {key: until for key, until in self._paused_until.items() if until > now}
        if self._paused_until:
            for line, waiter in [(line, waiter) for line, waiters in self._lines.items() for waiter in waiters]:
                if paused := self._pause_of(waiter):
                    self._leave(line, waiter, paused)
        while ready := self._ready(now):
            overdue = [priority for priority in ready if self._passed_over[priority] >= PLACES_PER_TURN - 1]
            served = max(overdue, key=self._passed_over.__getitem__) if overdue else next(iter(ready))
            line, waiter = ready[served]
            self._leave(line, waiter, Lease(self._clock, waiter.places))
            waiting = {priority for priority, _, _ in self._lines}
            for priority in Priority:
                if priority is served or priority not in waiting:
                    self._passed_over[priority] = 0
                elif priority in ready:
                    self._passed_over[priority] += 1

    def _ready(self, now: float) -> dict[Priority, tuple[_Line, _Waiter]]:
        """Of each priority whoever asked first among those that there are places for; the most urgent first."""
        heads = [(line, waiters[0]) for line, waiters in self._lines.items() if not waiters[0].wait_seconds(now)]
        heads.sort(key=lambda head: head[1].number, reverse=True)
        by_priority = {line[0]: (line, waiter) for line, waiter in heads}
        return {priority: by_priority[priority] for priority in Priority if priority in by_priority}

    def _leave(self, line: _Line, waiter: _Waiter, outcome: Lease | Paused | None = None) -> None:
        """Let somebody go, with what he waited for or without; the next of the line watches the time now."""
        waiter.outcome = outcome
        waiter.woken.set()
        self._lines[line].remove(waiter)
        if self._lines[line]:
            self._lines[line][0].woken.set()
        else:
            del self._lines[line]

    def _pause_of(self, waiter: _Waiter) -> Paused | None:
        if seconds := self.paused_seconds(waiter.api):
            return Paused(seconds)
        paused = {scope: self.paused_seconds(waiter.api, scope) for scope in waiter.scopes}
        scopes = tuple(scope for scope, seconds in paused.items() if seconds)
        return Paused(max(paused.values()), scopes) if scopes else None
