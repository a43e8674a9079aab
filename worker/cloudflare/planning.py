"""Planning: how many requests a configuration costs, and what would fit where that is more than Cloudflare accepts.

    a group of zones of equal entitlement   ceil(zones / 10) x ceil(datasets / 5) requests for a window
    the same where accounts are counted     the sum over the accounts of ceil(their zones / 10) x ceil(datasets / 5)
    a group of such accounts                accounts x ceil(datasets / 5)
    several windows at once                 as many requests as one window, for datasets whose rows name their window

So windows of a minute need not cost a request a minute: what becomes final within CF_COLLECTION_INTERVAL_SECONDS is
asked for together. Every 300 s it is five windows in the requests of one, at the price of numbers that are up to four
minutes later. Datasets with many rows are asked for fewer windows at once; how many is learnt, and not foreseen here.

A configuration fits if recent windows need no more of the quota than is theirs whatever else waits
(`worker.cloudflare.quota.LIVE_SHARE`). Pure; sends nothing and knows no zone by name.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.cloudflare.query import ACCOUNTS_PER_QUERY, WINDOWS_PER_QUERY, ZONES_PER_QUERY
from worker.cloudflare.quota import LIVE_SHARE, WINDOW_SECONDS, RateLimitType
from worker.times import span

# Datasets in a query that are known to have been answered for years, for ten zones. Where Cloudflare answers more
# (`worker.cloudflare.query.NODES_PER_QUERY`), a configuration costs as little as half of what is reckoned here.
SAFE_NODES_PER_QUERY = 5

# What the collector has under way at once, and how long an answer over ten zones takes, roughly.
QUERIES_AT_ONCE = 4
ANSWER_SECONDS = 1.0

# The longest CF_COLLECTION_INTERVAL_SECONDS, and the most workers, that are suggested.
_LONGEST_INTERVAL_SECONDS = 3600
_MOST_SHARDS = 100

_SCOPES_PER_QUERY = {ScopeKind.ZONE: ZONES_PER_QUERY, ScopeKind.ACCOUNT: ACCOUNTS_PER_QUERY}


@dataclass(frozen=True, slots=True)
class Group:
    """Zones, or accounts, that are asked for the same.

    scopes:   how many.
    datasets: what each of them is asked for.
    apart:    how many of them each account has, where accounts are counted by themselves; empty otherwise.
    """

    kind: ScopeKind
    scopes: int
    datasets: tuple[Dataset, ...]
    apart: tuple[int, ...] = ()

    def requests(self, width_seconds: int, windows: int, nodes_per_query: int = SAFE_NODES_PER_QUERY) -> int:
        """How many requests so many windows of all of them cost; ValueError where a dataset has no such windows."""
        named = [dataset.grain(width_seconds).dimension is not None for dataset in self.datasets]
        together = sum(named) if windows > 1 else len(named)
        alone = len(named) - together
        queries = ceil(together / nodes_per_query) + windows * ceil(alone / nodes_per_query)
        return queries * sum(ceil(scopes / _SCOPES_PER_QUERY[self.kind]) for scopes in self.apart or (self.scopes,))

    def __str__(self) -> str:
        scopes, datasets = _counted(self.scopes, self.kind), _counted(len(self.datasets), "dataset")
        return f"{scopes} x {datasets}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What collecting costs while nothing is behind.

    groups:           all zones and accounts.
    width_seconds:    width of the windows.
    interval_seconds: how often it is looked for windows that have become final.
    limit:            how many GraphQL queries are allowed in five minutes.
    nodes_per_query:  how many datasets a query may ask for.
    """

    groups: tuple[Group, ...]
    width_seconds: int
    interval_seconds: int
    limit: int
    nodes_per_query: int = SAFE_NODES_PER_QUERY

    @property
    def windows_at_once(self) -> int:
        """How many windows become final within an interval, and are asked for together."""
        return max(1, min(self.interval_seconds // self.width_seconds, WINDOWS_PER_QUERY))

    @property
    def period_seconds(self) -> int:
        """In what time that many windows are to be collected, so that nothing falls behind."""
        return self.windows_at_once * self.width_seconds

    @property
    def requests(self) -> int:
        """How many requests that many windows cost."""
        return sum(
            group.requests(self.width_seconds, self.windows_at_once, self.nodes_per_query) for group in self.groups
        )

    @property
    def allowed(self) -> float:
        """How many requests Cloudflare accepts in that time."""
        return self.limit * self.period_seconds / WINDOW_SECONDS

    @property
    def share(self) -> float:
        """The part of the quota that is needed; above 1, windows fall further and further behind."""
        return self.requests / self.allowed

    @property
    def requests_per_window(self) -> float:
        """How many requests one window costs, on average."""
        return self.requests / self.windows_at_once

    @property
    def fits(self) -> bool:
        """Whether recent windows can be collected in time whatever else waits."""
        return self.share <= LIVE_SHARE

    @property
    def seconds_to_collect(self) -> float:
        """How long it takes from the first of these requests to the last answer, where the quota is not used up yet."""
        waits, last = divmod(max(self.requests - 1, 0), self.limit)
        return waits * WINDOW_SECONDS + (last + 1) * ANSWER_SECONDS / QUERIES_AT_ONCE

    def __str__(self) -> str:
        at_once = f", {self.windows_at_once} at a time" if self.windows_at_once > 1 else ""
        return (
            f"{' and '.join(map(str, self.groups)) or 'nothing'} in windows of {span(self.width_seconds)}{at_once}: "
            f"{_counted(self.requests, 'request')} every {span(self.period_seconds)}, {self.share:.1%} of the "
            f"{self.allowed:,.0f} that are allowed, answered within {span(ceil(self.seconds_to_collect))}"
        )


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to be set otherwise, and what is needed of the quota then.

    change: for people.
    share:  as Plan.share.
    """

    change: str
    share: float

    def __str__(self) -> str:
        return f"{self.change} ({self.share:.1%})"


def limit_of(graphql: int, total: int, rate_limit_type: RateLimitType, requests: Collection[int] = ()) -> int:
    """How many GraphQL queries are allowed in five minutes, over all accounts where each has its own quota.

    requests: what each account costs for a window: the one that costs most is the first whose quota is used up, and
              the others have had their share then.
    """
    most = max(requests, default=0)
    if rate_limit_type is RateLimitType.TOKEN or not most:
        return min(graphql, total)
    return min(graphql * sum(requests) // most, total)


def remedies(plan: Plan, widths_seconds: Sequence[int]) -> tuple[Remedy, ...]:
    """What would make a plan fit, each for itself; the smallest change of every kind.

    widths_seconds: what CF_BUCKET_SECONDS may be set to, ascending.
    """
    kinds = (_wider(plan, widths_seconds), _rarer(plan), *(_fewer(plan, kind) for kind in ScopeKind), _shards(plan))
    found = (next((Remedy(change, other.share) for change, other in tries if other.fits), None) for tries in kinds)
    return tuple(remedy for remedy in found if remedy)


def verdict(plan: Plan, widths_seconds: Sequence[int]) -> str:
    """The arithmetic for people; where it does not fit, with the reason and what would."""
    if plan.fits:
        return f"{plan}."
    others = [f"\n  {remedy}" for remedy in remedies(plan, widths_seconds)]
    reason = f"That is more than the {LIVE_SHARE:.0%} that recent windows can count on beside everything else"
    return f"{plan}. {reason}. What would fit:{''.join(others) or ' nothing that a setting could change.'}"


_Tries = Iterable[tuple[str, Plan]]


def _wider(plan: Plan, widths_seconds: Sequence[int]) -> Iterator[tuple[str, Plan]]:
    for width in widths_seconds:
        known = all(width in dataset.widths_seconds for group in plan.groups for dataset in group.datasets)
        if width > plan.width_seconds and known:
            yield f"CF_BUCKET_SECONDS={width}", replace(plan, width_seconds=width)


def _rarer(plan: Plan) -> Iterator[tuple[str, Plan]]:
    longest = min(_LONGEST_INTERVAL_SECONDS // plan.width_seconds, WINDOWS_PER_QUERY)
    for windows in range(plan.windows_at_once + 1, longest + 1):
        interval = windows * plan.width_seconds
        later = span(interval - plan.width_seconds)
        change = f"CF_COLLECTION_INTERVAL_SECONDS={interval}: {windows} windows in a request, up to {later} later"
        yield change, replace(plan, interval_seconds=interval)


def _fewer(plan: Plan, kind: ScopeKind) -> Iterator[tuple[str, Plan]]:
    most = max((len(group.datasets) for group in plan.groups if group.kind is kind), default=0)
    for count in range(most - 1, 0, -1):
        groups = tuple(
            replace(group, datasets=group.datasets[:count]) if group.kind is kind else group for group in plan.groups
        )
        yield f"CF_DATASETS with at most {_counted(count, 'dataset')} of {kind}s", replace(plan, groups=groups)


def _shards(plan: Plan) -> Iterator[tuple[str, Plan]]:
    if any(group.apart for group in plan.groups):
        return  # an account has one quota, whoever asks for it
    for count in range(2, _MOST_SHARDS + 1):
        groups = tuple(replace(group, scopes=ceil(group.scopes / count)) for group in plan.groups)
        change = f"CF_SHARD=1/{count} to {count}/{count}: {count} workers, each with a token of its own"
        yield change, replace(plan, groups=groups)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
