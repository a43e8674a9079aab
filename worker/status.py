"""What the worker can say about its work, as values: the page for people and the JSON show the same.

Filled from the ledger by whoever composes the worker; holds no secret and no unbounded text. Every instant is in unix
seconds, every size in bytes, and None stands for "never" or "none".

The field names are those of /api/v1/status: renaming one breaks its readers.
"""

from dataclasses import dataclass, replace

from worker.health import TokenState, Verdict


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One remote-write endpoint.

    url:                without user, password and query.
    pending_*:          what is captured and not decided on yet.
    oldest_pending_end: end of the oldest window that waits.
    last_failure:       what went wrong last, on one line; it may be long over, see last_success_at.
    *_buckets:          what became of the buckets that the ledger still holds.
    """

    name: str
    url: str
    pending_buckets: int
    pending_samples: int
    oldest_pending_end: float | None
    last_success_at: float | None
    last_failure_at: float | None
    last_failure: str | None
    acknowledged_buckets: int
    refused_buckets: int
    expired_buckets: int
    damaged_buckets: int


@dataclass(frozen=True, slots=True)
class ScopeStatus:
    """One dataset of one zone or account, over the reach of automatic replay.

    scope:             Cloudflare's tag (id).
    width_seconds:     of its windows; a zone has several after CF_BUCKET_SECONDS was changed.
    newest_window_end: end of the newest window that was captured.
    expected:          windows that are final by now.
    captured:          those of them in the ledger.
    missing:           expected - captured.
    reason:            why the newest of the missing ones is missing.
    """

    dataset: str
    scope: str
    name: str
    width_seconds: int
    newest_window_end: float | None
    expected: int
    captured: int
    missing: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The ledger on disk.

    size_bytes: its files, the write-ahead log included.
    max_bytes:  what it may take.
    """

    path: str
    size_bytes: int
    max_bytes: int
    buckets: int


@dataclass(frozen=True, slots=True)
class ApiBudget:
    """How many requests one API of Cloudflare still takes.

    api:       `graphql` or `rest`.
    remaining: requests that may be sent at once.
    limit:     requests that the worker allows itself per five minutes.
    """

    api: str
    remaining: int
    limit: int


@dataclass(frozen=True, slots=True)
class CloudflareStatus:
    """The other side: does it take the token, and how much may be asked?"""

    token: TokenState
    budgets: tuple[ApiBudget, ...]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One repair: what was asked, by whom, when, why, and what came of it; all in short words."""

    at: float
    asked: str
    by: str
    reason: str
    outcome: str


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Everything, at one moment.

    version:     of the worker.
    now:         when the report was made.
    readiness:   what /-/ready says.
    scope_count: how many scopes there are, also where `scopes` is a part of them.
    journal:     the newest repairs, newest first.
    """

    version: str
    now: float
    readiness: Verdict
    destinations: tuple[DestinationStatus, ...]
    cloudflare: CloudflareStatus
    ledger: LedgerStatus
    journal: tuple[JournalEntry, ...]
    scope_count: int
    scopes: tuple[ScopeStatus, ...]


def worst_first(report: StatusReport) -> StatusReport:
    """The report with its scopes ordered: most missing windows first, then the one furthest behind, then by name."""
    return replace(report, scopes=tuple(sorted(report.scopes, key=_badness)))


def part_of_scopes(report: StatusReport, offset: int, limit: int | None) -> StatusReport:
    """The report with `limit` of its scopes from `offset` on; all from there where the limit is None."""
    end = None if limit is None else offset + limit
    return replace(report, scopes=report.scopes[offset:end])


def _badness(scope: ScopeStatus) -> tuple[int, float, str, str]:
    newest = float("-inf") if scope.newest_window_end is None else scope.newest_window_end
    return (-scope.missing, newest, scope.name, scope.dataset)
