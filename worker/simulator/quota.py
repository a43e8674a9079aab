"""How many requests a token may make, as the API counts them, and how many queries an account or a zone may have.

Owns the counts. Promises to refuse the request after the last that is allowed in any window of five minutes, and then
everything of that kind for five minutes. Time is handed in.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Exceeded(StrEnum):
    """Which of a token's two quotas is used up."""

    GRAPHQL = "graphql"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What one token may do.

    graphql_requests: queries per window; where accounts and zones are counted, of each of them, whoever asks.
    all_requests:     requests of every kind per window, queries among them; past it, nothing is answered any more.
    window_seconds:   how long a request counts.
    block_seconds:    for how long a quota that was exceeded stays closed.
    """

    graphql_requests: int = 300
    all_requests: int = 1_200
    window_seconds: int = 300
    block_seconds: int = 300


@dataclass(slots=True)
class _Counter:
    limit: int
    times: deque[float] = field(default_factory=deque)
    closed_until: float = float("-inf")

    def forget(self, before: float) -> None:
        while self.times and self.times[0] <= before:
            self.times.popleft()


class Quota:
    """What every token has used of its quotas."""

    def __init__(self, limits: QuotaLimits) -> None:
        self._limits = limits
        self._graphql: defaultdict[str, _Counter] = defaultdict(lambda: _Counter(limits.graphql_requests))
        self._all: defaultdict[str, _Counter] = defaultdict(lambda: _Counter(limits.all_requests))
        self._of_scopes: defaultdict[str, _Counter] = defaultdict(lambda: _Counter(limits.graphql_requests))

    def charge(self, token: str, now: float, *, is_graphql: bool) -> Exceeded | None:
        """Count a request made at `now`, or tell which quota it exceeds; a refused request is not counted."""
        counters = [(Exceeded.ALL, self._all[token])]
        if is_graphql:
            counters.append((Exceeded.GRAPHQL, self._graphql[token]))
        for which, counter in counters:
            if self._is_used_up(counter, now):
                return which
        for _, counter in counters:
            counter.times.append(now)
        return None

    def charge_scopes(self, tags: Iterable[str], now: float) -> str | None:
        """Count a query made at `now` against each of these accounts and zones, or tell which of them has no more."""
        counters = {tag: self._of_scopes[tag] for tag in tags}
        for tag, counter in counters.items():
            if self._is_used_up(counter, now):
                return tag
        for counter in counters.values():
            counter.times.append(now)
        return None

    def _is_used_up(self, counter: _Counter, now: float) -> bool:
        counter.forget(now - self._limits.window_seconds)
        if now >= counter.closed_until and len(counter.times) >= counter.limit:
            counter.closed_until = now + self._limits.block_seconds
        return now < counter.closed_until

    def budget_left(self, token: str, now: float) -> int:
        """How many more queries the token may make now."""
        return self._left(self._graphql[token], now)

    def budget_left_of_scope(self, tag: str, now: float) -> int:
        """How many more queries the account or the zone may have now."""
        return self._left(self._of_scopes[tag], now)

    def _left(self, counter: _Counter, now: float) -> int:
        counter.forget(now - self._limits.window_seconds)
        return max(0, counter.limit - len(counter.times))

    def seconds_until_open(self, token: str, now: float, which: Exceeded) -> int:
        """How long the quota stays closed, rounded up."""
        counter = self._all[token] if which is Exceeded.ALL else self._graphql[token]
        return max(0, -int((now - counter.closed_until) // 1))
