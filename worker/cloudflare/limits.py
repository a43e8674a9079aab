"""What earlier answers taught about the limits of Cloudflare, so that a query is not refused twice for the same reason.

Cloudflare's limits differ per scope, node, plan and field, and change without notice; so everything learnt here is
forgotten after a while and learnt anew. In memory only: a restart costs a few refused queries. Knows nothing of how
queries are sent or split.
"""

from dataclasses import replace
from typing import Generic, TypeVar, assert_never

from worker.clock import Clock
from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.entitlements import Denied, Entitlement, Narrowed
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.query import (
    ACCOUNTS_PER_QUERY,
    NODES_PER_QUERY,
    PAGE_ROWS,
    WINDOWS_PER_QUERY,
    ZONES_PER_QUERY,
    Source,
)
from worker.cloudflare.scope import Scope

# Plans change rarely: a day late is early enough to find a field or a wider window that was not there before.
FORGET_AFTER_SECONDS = 86_400.0
# A dataset that a zone has just been upgraded to, or its older data, should not stay away for long, and a probe an hour
# costs little.
DENIED_DATASET_SECONDS = 3600.0
# A new token, or new permissions of a token, flap for about a minute. Whatever else is refused for one scope alone gets
# the same rest, so that isolating it again does not use up the quota.
DENIED_SCOPE_SECONDS = 300.0
# The quota of a single scope comes back after five minutes, like that of a token.
DENIED_RATE_SECONDS = 300.0
# A dataset whose queries had no answer travels alone for half an hour, or until it has one.
UNANSWERED_SECONDS = 1800.0

# A dataset with labels is taken to have five times the rows that are kept of a window, until its rows have been seen.
_ROWS_PER_KEPT = 5
# Without a top there is no telling; a hundred rows are fifty windows in a page that is to be half full.
_ROWS_UNKNOWN = 100
# The maps of a busy zone are 24 kB in one row, a hundred times a row without any (`worker.cloudflare.query`).
_ROWS_PER_BREAKDOWNS = 100

Allowed = tuple[int | None, int | None]
"""What a plan allows a query to the node: rows of a page, and seconds that it spans; None where that is not known."""

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
        known = self._entries.get(key)
        if known is None:
            return None
        left = known[0] - self._clock.monotonic()
        if left <= 0:
            del self._entries[key]
            return None
        return left, known[1]

    def forget(self, key: K) -> None:
        self._entries.pop(key, None)


class Limits:
    """The limits known at this moment: of any query, per GraphQL node and plan, per dataset, and per dataset and scope.

    What one scope's plan does not allow makes no other scope's queries smaller. What an error teaches about a size is
    believed of the node for all scopes whose plans allow as much.

    are_accounts_apart: whether a query may ask for zones of one account only, and through that account.
    """

    def __init__(self, clock: Clock, *, are_accounts_apart: bool = False) -> None:
        self.are_accounts_apart = are_accounts_apart
        self._zones_per_query: _Memory[None, int] = _Memory(clock)
        self._nodes_per_query: _Memory[None, int] = _Memory(clock)
        self._allowed: _Memory[tuple[str, str], Allowed] = _Memory(clock)
        self._span_seconds: _Memory[tuple[str, Allowed], int] = _Memory(clock)
        self._page_rows: _Memory[tuple[str, Allowed], int] = _Memory(clock)
        self._rows_per_window: _Memory[tuple[str, int], int] = _Memory(clock)
        self._unanswered: _Memory[str, bool] = _Memory(clock)
        self._fields: _Memory[tuple[str, str, str], frozenset[str]] = _Memory(clock)
        self._denials: _Memory[tuple[str, str, str], ApiFailure] = _Memory(clock)
        self._retentions: _Memory[tuple[str, str], ApiFailure] = _Memory(clock)

    def scopes_per_query(self, kind: ScopeKind) -> int:
        """How many scopes a query may ask for."""
        match kind:
            case ScopeKind.ZONE:
                known = self._zones_per_query.recall(None)
                return known[1] if known else ZONES_PER_QUERY
            case ScopeKind.ACCOUNT:
                return ACCOUNTS_PER_QUERY
            case _:
                assert_never(kind)

    def learn_zones_per_query(self, zones: int) -> None:
        self._zones_per_query.learn(None, max(1, min(zones, self.scopes_per_query(ScopeKind.ZONE))))

    def nodes_per_query(self) -> int:
        """How many datasets times scopes a query may ask for."""
        known = self._nodes_per_query.recall(None)
        return known[1] if known else NODES_PER_QUERY * ZONES_PER_QUERY

    def learn_nodes_per_query(self, nodes: int) -> None:
        self._nodes_per_query.learn(None, max(1, min(nodes, self.nodes_per_query())))

    def allowed(self, source: Source, scope: Scope) -> Allowed:
        """What the scope's plan allows, as its settings say it; where that is the same, queries may be as large."""
        known = self._allowed.recall((source.grain.node, scope.tag))
        return known[1] if known else (None, None)

    def windows_per_query(self, source: Source, scope: Scope) -> int:
        """How many windows a query for the dataset may span.

        So many that a page of a dataset with labels is half full at most, in powers of two, so that datasets with about
        as many rows can share a query.
        """
        if source.grain.dimension is None:
            return 1
        page_rows = self.page_rows(source, scope)
        windows = min(WINDOWS_PER_QUERY, page_rows - 1)
        if source.dataset.labels:
            fitting = page_rows // (2 * self.rows_per_window(source))
            windows = min(windows, 1 << max(0, fitting.bit_length() - 1))
        allowed = self.allowed(source, scope)
        known = self._span_seconds.recall((source.grain.node, allowed))
        for seconds in (known[1] if known else None, allowed[1]):
            if seconds is not None:
                windows = min(windows, seconds // source.grain.width_seconds)
        return max(1, windows)

    def learn_span(self, source: Source, scope: Scope, seconds: int) -> None:
        key = (source.grain.node, self.allowed(source, scope))
        known = self._span_seconds.recall(key)
        self._span_seconds.learn(key, min(seconds, known[1]) if known else seconds)

    def page_rows(self, source: Source, scope: Scope) -> int:
        """How many rows the node answers at most."""
        allowed = self.allowed(source, scope)
        known = self._page_rows.recall((source.grain.node, allowed))
        return min(known[1] if known else PAGE_ROWS, allowed[0] or PAGE_ROWS)

    def learn_page_rows(self, source: Source, scope: Scope, rows: int) -> bool:
        """False where that is no smaller page than was known."""
        if not 0 < rows < self.page_rows(source, scope):
            return False
        self._page_rows.learn((source.grain.node, self.allowed(source, scope)), rows)
        return True

    def rows_per_window(self, source: Source) -> int:
        """How many rows without maps the rows of a window and scope weigh, the most that was seen in a day."""
        dataset = source.dataset
        if not dataset.labels:
            return _ROWS_PER_BREAKDOWNS if dataset.breakdowns else 1
        if known := self._rows_per_window.recall(_window_key(source)):
            return known[1]
        return _ROWS_PER_KEPT * dataset.top.keep if dataset.top else _ROWS_UNKNOWN

    def learn_rows_per_window(self, source: Source, rows: int) -> None:
        known = self._rows_per_window.recall(_window_key(source))
        if rows and (known is None or rows >= known[1]):
            self._rows_per_window.learn(_window_key(source), rows)

    def is_unanswered(self, source: Source) -> bool:
        """Whether the last query for this dataset alone had no answer."""
        return self._unanswered.recall(source.dataset.name) is not None

    def learn_unanswered(self, source: Source) -> None:
        self._unanswered.learn(source.dataset.name, value=True, seconds=UNANSWERED_SECONDS)

    def learn_answered(self, source: Source) -> None:
        self._unanswered.forget(source.dataset.name)

    def dropped_fields(self, source: Source, scope: Scope) -> frozenset[str]:
        """The fields that the scope's plan denies."""
        known = self._fields.recall(_key(source, scope))
        return known[1] if known else frozenset()

    def learn_denied_field(self, source: Source, scope: Scope, name: str) -> bool:
        """Leave out what Cloudflare calls `name` from now on; False where that changes nothing or leaves nothing."""
        known = self.dropped_fields(source, scope)
        dropped = known | source.dataset.without(known).fields_named(name)
        if dropped == known or source.dataset.without(dropped).is_empty:
            return False
        self._fields.learn(_key(source, scope), dropped)
        return True

    def learn_entitlement(
        self, source: Source, scope: Scope, entitlement: Entitlement, verdict: Narrowed | Denied
    ) -> None:
        """Take what `settings` say of a scope for known: which fields it lacks, and how large its queries may be."""
        match verdict:
            case Narrowed(dropped=dropped):
                self._fields.learn(_key(source, scope), self.dropped_fields(source, scope) | dropped)
            case Denied():
                pass
            case _:
                assert_never(verdict)
        allowed = (entitlement.max_page_rows, entitlement.max_duration_seconds)
        self._allowed.learn((source.grain.node, scope.tag), allowed)

    def retention(self, source: Source, scope: Scope) -> ApiFailure | None:
        """The error that said how far back the scope may be asked for the node, by its `bound_seconds`."""
        known = self._retentions.recall((source.grain.node, scope.tag))
        return known[1] if known else None

    def learn_retention(self, source: Source, scope: Scope, failure: ApiFailure) -> None:
        """Believe an error about old data. What `settings` say of it is not believed: what is not asked for is lost."""
        self._retentions.learn((source.grain.node, scope.tag), failure, DENIED_DATASET_SECONDS)

    def denial(self, source: Source, scope: Scope) -> ApiFailure | None:
        """Why the dataset should not be asked for at this moment, and for how long not."""
        known = self._denials.recall(_key(source, scope))
        return replace(known[1], retry_after_seconds=known[0]) if known else None

    def learn_denial(self, source: Source, scope: Scope, failure: ApiFailure) -> None:
        """Do not ask for the dataset for as long as the failure's kind suggests; a passing failure denies nothing."""
        match failure.kind:
            case ErrorKind.PLAN_DATASET | ErrorKind.PLAN_FIELD:
                seconds = DENIED_DATASET_SECONDS
            case ErrorKind.AUTH_SCOPE | ErrorKind.REFUSED:
                seconds = DENIED_SCOPE_SECONDS
            case ErrorKind.RATE:
                seconds = failure.retry_after_seconds or DENIED_RATE_SECONDS
            case _:
                return
        self._denials.learn(_key(source, scope), failure, seconds)


def _key(source: Source, scope: Scope) -> tuple[str, str, str]:
    return source.dataset.name, source.grain.node, scope.tag


def _window_key(source: Source) -> tuple[str, int]:
    return source.dataset.name, source.grain.width_seconds
