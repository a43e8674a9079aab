"""What earlier answers taught about the limits of each zone, so that a query is not refused twice for the same reason.

Cloudflare's limits differ per zone, node, plan and field, and change without notice; so everything learnt here is
forgotten after a while and learnt anew. In memory only: a restart costs a few refused queries. Knows nothing of how
queries are sent or split.
"""

from dataclasses import replace
from typing import Generic, TypeVar

from worker.clock import Clock
from worker.cloudflare.catalogue import Dataset, Grain
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.query import WINDOWS_PER_QUERY, ZONES_PER_QUERY
from worker.cloudflare.scope import Zone

# Plans change rarely: a day late is early enough to find a field or a wider window that was not there before.
FORGET_AFTER_SECONDS = 86_400.0
# A dataset that a zone has just been upgraded to should not stay away for long, and a probe an hour costs little.
DENIED_DATASET_SECONDS = 3600.0
# A new token, or new permissions of a token, flap for about a minute. Whatever else is refused for one zone alone gets
# the same rest, so that isolating it again does not use up the quota.
DENIED_SCOPE_SECONDS = 300.0
# The quota of a single zone comes back after five minutes, like that of a token.
DENIED_RATE_SECONDS = 300.0

K = TypeVar("K")
V = TypeVar("V")


class _Memory(Generic[K, V]):
    """A mapping whose entries end by themselves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[K, tuple[float, V]] = {}

    def learn(self, key: K, value: V, seconds: float = FORGET_AFTER_SECONDS) -> None:
        self._entries[key] = (self._clock.monotonic() + seconds, value)

    def recall(self, key: K) -> tuple[float, V] | None:
        """The value and for how many seconds more it is kept."""
        until, value = self._entries.get(key, (0.0, None))
        left = until - self._clock.monotonic()
        if value is None or left <= 0:
            self._entries.pop(key, None)
            return None
        return left, value


class Limits:
    """The limits known at this moment, per GraphQL node or per zone of a node."""

    def __init__(self, clock: Clock) -> None:
        self._zones_per_query: _Memory[str, int] = _Memory(clock)
        self._span_seconds: _Memory[str, int] = _Memory(clock)
        self._fields: _Memory[tuple[str, str], frozenset[str]] = _Memory(clock)
        self._denials: _Memory[tuple[str, str], ApiFailure] = _Memory(clock)

    def zones_per_query(self, grain: Grain) -> int:
        """How many zones a query may ask for."""
        known = self._zones_per_query.recall(grain.node)
        return known[1] if known else ZONES_PER_QUERY

    def learn_zones_per_query(self, grain: Grain, zones: int) -> None:
        self._zones_per_query.learn(grain.node, max(1, min(zones, self.zones_per_query(grain))))

    def windows_per_query(self, grain: Grain) -> int:
        """How many windows a query may span."""
        known = self._span_seconds.recall(grain.node)
        return max(1, min(WINDOWS_PER_QUERY, known[1] // grain.width_seconds)) if known else WINDOWS_PER_QUERY

    def learn_span(self, grain: Grain, seconds: int) -> None:
        known = self._span_seconds.recall(grain.node)
        self._span_seconds.learn(grain.node, min(seconds, known[1]) if known else seconds)

    def dropped_fields(self, grain: Grain, zone: Zone) -> frozenset[str]:
        """The fields that the zone's plan denies."""
        known = self._fields.recall((grain.node, zone.tag))
        return known[1] if known else frozenset()

    def learn_denied_field(self, dataset: Dataset, grain: Grain, zone: Zone, name: str) -> bool:
        """Leave out what Cloudflare calls `name` from now on; False where that changes nothing or leaves nothing."""
        known = self.dropped_fields(grain, zone)
        dropped = known | dataset.without(known).fields_named(name)
        if dropped == known or dataset.without(dropped).is_empty:
            return False
        self._fields.learn((grain.node, zone.tag), dropped)
        return True

    def denial(self, grain: Grain, zone: Zone) -> ApiFailure | None:
        """Why the zone should not be asked for at this moment, and for how long not."""
        known = self._denials.recall((grain.node, zone.tag))
        return replace(known[1], retry_after_seconds=known[0]) if known else None

    def learn_denial(self, grain: Grain, zone: Zone, failure: ApiFailure) -> None:
        """Do not ask for the zone for as long as the failure's kind suggests; a passing failure denies nothing."""
        match failure.kind:
            case ErrorKind.PLAN_DATASET | ErrorKind.PLAN_FIELD:
                seconds = DENIED_DATASET_SECONDS
            case ErrorKind.AUTH_SCOPE | ErrorKind.REFUSED:
                seconds = DENIED_SCOPE_SECONDS
            case ErrorKind.RATE:
                seconds = failure.retry_after_seconds or DENIED_RATE_SECONDS
            case _:
                return
        self._denials.learn((grain.node, zone.tag), failure, seconds)
