"""What was asked of the API: the proof that a test did to it what it says.

Owns counts of requests by endpoint and by outcome, the times of all queries, and the latest queries themselves.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from worker.simulator.execution import Asked

# A query's record is some 300 bytes: at most 6 MB.
_REMEMBERED_QUERIES = 20_000


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """One GraphQL query that was looked at.

    at: when it came, unix seconds.
    """

    at: float
    status: int
    asked: tuple[Asked, ...]
    token: str


class Stats:
    """The counts.

    requests:    by endpoint: verify, accounts, zones, graphql, and the last part of the path of all others.
    statuses:    by HTTP status; 0 stands for a connection that was reset.
    query_times: of every GraphQL request, unix seconds, in order.
    queries:     the latest ones.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.query_times: list[float] = []
        self.queries: deque[QueryRecord] = deque(maxlen=_REMEMBERED_QUERIES)

    def busiest(self, seconds: float) -> int:
        """The most GraphQL requests that came in any span of this length."""
        most = first = 0
        for place, at in enumerate(self.query_times):
            while at - self.query_times[first] >= seconds:
                first += 1
            most = max(most, place - first + 1)
        return most

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "most_queries_in_5_minutes": self.busiest(300),
        }
