"""What the worker can say about its work, as values: the page for people and the JSON show the same.

Filled from the ledger by whoever composes the worker; holds no secret and no unbounded text. Every instant is in unix
seconds, every size in bytes, and None stands for "never" or "none".

The field names are those of /api/v1/status: renaming one breaks its readers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from worker.health import TokenState, Verdict


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What a destination will not get unless it is sent again, by what became of it.

    state:     `partial` (all but some refused samples arrived), `refused`, `expired` or `damaged`.
    newest_at: when that was last decided.
    status:    HTTP status of the newest one, where the receiver decided it.
    reason:    why, of the newest one.
    """

    state: str
    buckets: int
    newest_at: float
    status: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class RefusedStatus:
    """Samples of one bucket that a receiver refused for one reason.

    timestamp: what they carry.
    samples:   how many there are.
    series:    of the first of them, as PromQL writes a series.
    status:    HTTP status; None where the receiver never answered to them.
    reason:    the receiver's words.
    """

    refused_at: float
    timestamp: float
    samples: int
    series: tuple[str, ...]
    status: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """One remote-write endpoint.

    url:                without user, password and query.
    message:            which version of remote write it is spoken to in, and why where it is not the newest; None where
                        no worker runs.
    parked:             why, and since when, nothing but a probe goes to it; None while it is not, or no worker runs.
    pending_*:          what is captured and not decided on yet.
    oldest_pending_end: end of the oldest window that waits.
    last_failure:       what went wrong last, on one line; it may be long over, see last_success_at.
    *_buckets:          what became of the buckets that the ledger still holds.
    refused_samples:    of the partial and of the refused buckets.
    given_up:           the same counts, with reasons.
    refusals:           the newest, newest first.
    """

    name: str
    url: str
    message: str | None
    parked: str | None
    pending_buckets: int
    pending_samples: int
    oldest_pending_end: float | None
    last_success_at: float | None
    last_failure_at: float | None
    last_failure: str | None
    acknowledged_buckets: int
    partial_buckets: int
    refused_buckets: int
    expired_buckets: int
    damaged_buckets: int
    refused_samples: int
    given_up: tuple[GivenUp, ...]
    refusals: tuple[RefusedStatus, ...]


class ScopeStatus(msgspec.Struct, frozen=True, gc=False):
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
class DatasetStatus:
    """One dataset that is collected, over the zones or accounts that windows of it are expected of.

    kind:              `zone` or `account`.
    delay_seconds:     how long after its end a window of it is taken to be final.
    scope_count:       how many zones or accounts there are with windows that are expected, or were.
    scopes_missing:    how many of them lack windows.
    scopes_denied:     how many are not entitled to it.
    newest_window_end: end of the newest window that was captured, of any of them.
    """

    dataset: str
    kind: str
    delay_seconds: int
    scope_count: int
    scopes_missing: int
    scopes_denied: int
    newest_window_end: float | None
    expected: int
    captured: int
    missing: int


class DeniedScope(msgspec.Struct, frozen=True, gc=False):
    """A zone or an account, by its tag (id) and its name, that is denied something since then."""

    scope: str
    name: str
    since: float


@dataclass(frozen=True, slots=True)
class DeniedStatus:
    """Zones or accounts that are not entitled to a dataset for the same reason: it is neither asked for nor expected.

    kind:        `zone` or `account`.
    scope_count: how many there are, also where `scopes` is a part of them.
    """

    dataset: str
    kind: str
    reason: str
    scope_count: int
    scopes: tuple[DeniedScope, ...]


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
    """How many requests one API of Cloudflare still takes from one token.

    token:     its name.
    api:       `graphql` or `rest`.
    remaining: requests that may be sent at once.
    limit:     requests that the worker allows itself per five minutes.
    """

    token: str
    api: str
    remaining: int
    limit: int


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """One API token: what is asked with it, and how much was sent with it in the last five minutes.

    name:             `default` where there is one.
    graphql_requests: GraphQL queries.
    graphql_limit:    how many the worker allows itself; to each account, where Cloudflare counts those.
    requests:         of all kinds.
    requests_limit:   how many the worker allows itself.
    refused_since:    from when on Cloudflare has refused it, each time it was asked; None where it takes it.
    refusal:          what Cloudflare said last.
    """

    name: str
    zones: int
    accounts: int
    graphql_requests: int
    graphql_limit: int
    requests: int
    requests_limit: int
    refused_since: float | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class CloudflareStatus:
    """The other side: does it take the token, and how much may be asked?

    token:  of several, what is true of the one that is best off.
    tokens: each by its name.
    """

    token: TokenState
    tokens: Mapping[str, TokenState]
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
    tokens:      in the order of the configuration.
    journal:     the newest repairs, newest first.
    datasets:    every dataset that is collected.
    denied:      what is not collected because it is denied.
    scope_count: how many scopes there are, also where `scopes` is a part of them.
    """

    version: str
    now: float
    readiness: Verdict
    destinations: tuple[DestinationStatus, ...]
    cloudflare: CloudflareStatus
    tokens: tuple[TokenStatus, ...]
    ledger: LedgerStatus
    journal: tuple[JournalEntry, ...]
    datasets: tuple[DatasetStatus, ...]
    # Without a repr: `asyncio.run` makes one of what it returns (for a message that nobody sees), here of 100 MB.
    denied: tuple[DeniedStatus, ...] = field(repr=False)
    scope_count: int
    scopes: tuple[ScopeStatus, ...] = field(repr=False)


def worst_first(report: StatusReport) -> StatusReport:
    """The report with what matters first.

    Scopes by missing windows, then the one furthest behind, then by name; datasets by missing windows, then by zones or
    accounts that are denied them; denials by how many they concern.
    """
    return replace(
        report,
        scopes=tuple(sorted(report.scopes, key=_badness)),
        datasets=tuple(sorted(report.datasets, key=lambda each: (-each.missing, -each.scopes_denied, each.dataset))),
        denied=tuple(sorted(report.denied, key=lambda each: (-each.scope_count, each.dataset, each.reason))),
    )


def worth_a_row(report: StatusReport) -> tuple[ScopeStatus, ...]:
    """The scopes that a person looks at one by one: all of a single dataset, else those that lack windows.

    A zone has a row for each dataset, of which there may be a hundred; `datasets` sums them up.
    """
    if len(report.datasets) <= 1:
        return report.scopes
    return tuple(scope for scope in report.scopes if scope.missing)


def part_of_scopes(report: StatusReport, offset: int, limit: int | None) -> StatusReport:
    """The report with `limit` of its scopes from `offset` on, of each denial as well; all where the limit is None."""
    end = None if limit is None else offset + limit
    denied = tuple(replace(each, scopes=each.scopes[offset:end]) for each in report.denied)
    return replace(report, scopes=report.scopes[offset:end], denied=denied)


def _badness(scope: ScopeStatus) -> tuple[int, float, str, str]:
    newest = float("-inf") if scope.newest_window_end is None else scope.newest_window_end
    return (-scope.missing, newest, scope.name, scope.dataset)
