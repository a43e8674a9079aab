"""Queries: the GraphQL text and the variables that ask for a run of windows of some scopes.

Answers look alike for every dataset and width, by aliases: `viewer.zones[].r0[].dimensions.start`, and `r1` for the
second dataset. Rows are ordered by their window, and the limit is always more than is expected, so a full page is
noticed. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import assert_never

import msgspec

from worker.cloudflare.catalogue import Dataset, Grain, ScopeKind, TimeType
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL_PATH
from worker.cloudflare.scope import Scope

# Cloudflare refuses a query over more zones ("too many zones requested"), and one over two accounts.
ZONES_PER_QUERY = 10
ACCOUNTS_PER_QUERY = 1

# Cloudflare refuses a query over too many zones times datasets, and does not say how many that is; 5 datasets of 10
# zones are known to work. Twice as many halve the requests; where that is refused a smaller number is learnt, at the
# price of a refused query a day.
NODES_PER_QUERY = 10

# What an answer may hold, in rows of 250 bytes without maps: 15 MB of JSON, and a second of decoding at most. As many
# as ten zones have in an hour of minutes, where a busy zone's maps (250 countries of 75 bytes each, 30 statuses, 30
# content types and 40 browsers of 50 bytes each: 24 kB) weigh a hundred rows.
ROWS_PER_QUERY = 60_000

# A run as a caller should ask for it: an hour of minutes, or two and a half days of hours. How many of the windows go
# into one query depends on their rows (`worker.cloudflare.limits`).
WINDOWS_PER_QUERY = 60

# The page that Cloudflare documents for grouped nodes (`maxPageSize`).
PAGE_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Source:
    """What one alias of a query asks for.

    dataset:   already without the fields that these scopes' plans deny; not empty.
    grain:     one of its grains.
    page_rows: how many rows the node answers at most.
    """

    dataset: Dataset
    grain: Grain
    page_rows: int = PAGE_ROWS

    def limit(self, windows: int) -> int:
        """How many rows Cloudflare may answer per scope; as many rows mean that more may have been cut off."""
        return self.page_rows if self.dataset.labels else windows + 1


@dataclass(frozen=True, slots=True)
class WindowsQuery:
    """One query.

    sources: at most NODES_PER_QUERY, of different datasets for the same kind of scope.
    scopes:  of that kind; at most ZONES_PER_QUERY, or ACCOUNTS_PER_QUERY.
    starts:  the windows' starts in unix seconds, contiguous: the step is the width of every grain. A single one where a
             grain has no time dimension.
    account: tag of the account that zones, all of them its own, are asked for through; empty where they are not.
    """

    sources: tuple[Source, ...]
    scopes: tuple[Scope, ...]
    starts: range
    account: str = ""

    @property
    def kind(self) -> ScopeKind:
        """What it asks for."""
        return self.sources[0].dataset.scope

    @property
    def text(self) -> str:
        """The GraphQL document."""
        pairs = tuple((source.dataset, source.grain) for source in self.sources)
        return _text(pairs, is_through_account=bool(self.account))

    @property
    def variables(self) -> dict[str, object]:
        """The values of the document's variables."""
        values = scope_variables(self.kind, [scope.tag for scope in self.scopes], self.account)
        for time in _times(source.grain for source in self.sources):
            values[f"since{time}"] = _instant(self.starts.start, time)
            values[f"until{time}"] = _instant(self.starts.stop, time)
        windows = len(self.starts)
        return values | {f"limit{number}": source.limit(windows) for number, source in enumerate(self.sources)}

    def payload(self) -> bytes:
        """The body of the POST request."""
        return msgspec.json.encode({"query": self.text, "variables": self.variables})


def alias(number: int) -> str:
    """What the rows of a query's source are called in the answer, and in the paths of errors."""
    return f"r{number}"


def scope_selection(kind: ScopeKind, selection: str, *, is_through_account: bool) -> tuple[str, str]:
    """The declaration of the variables that name zones or an account, and the field that selects this of each of them.

    Where Cloudflare counts queries by account, it takes a list of zones only through the account that they belong to.
    """
    account, zones = "accounts(filter: { accountTag: $account })", "zones(filter: { zoneTag_in: $zones })"
    match kind:
        case ScopeKind.ZONE if is_through_account:
            return "$account: string!, $zones: [string!]", f"{account} {{ {zones} {{ zoneTag {selection} }} }}"
        case ScopeKind.ZONE:
            return "$zones: [string!]", f"{zones} {{ zoneTag {selection} }}"
        case ScopeKind.ACCOUNT:
            return "$account: string!", f"{account} {{ accountTag {selection} }}"
        case _:
            assert_never(kind)


def scope_variables(kind: ScopeKind, tags: Sequence[str], account: str) -> dict[str, object]:
    """The values of those variables; `account` is the one that zones are asked for through, or empty."""
    match kind:
        case ScopeKind.ZONE:
            return ({"account": account} if account else {}) | {"zones": list(tags)}
        case ScopeKind.ACCOUNT:
            (tag,) = tags
            return {"account": tag}
        case _:
            assert_never(kind)


@lru_cache(maxsize=1024)
def _text(sources: tuple[tuple[Dataset, Grain], ...], *, is_through_account: bool) -> str:
    rows = " ".join(_rows(number, dataset, grain) for number, (dataset, grain) in enumerate(sources))
    declared, scopes = scope_selection(sources[0][0].scope, rows, is_through_account=is_through_account)
    for time in _times(grain for _, grain in sources):
        declared += f", $since{time}: {time}!, $until{time}: {time}!"
    for number in range(len(sources)):
        declared += f", $limit{number}: uint64!"
    return f"query Windows({declared}) {{ viewer {{ {scopes} }} }}"


def _rows(number: int, dataset: Dataset, grain: Grain) -> str:
    conditions = [f"{grain.since}: $since{grain.time}", f"{grain.until}: $until{grain.time}"]
    # JSON's strings, numbers, booleans and lists are GraphQL's.
    conditions += [f"{field}: {msgspec.json.encode(value).decode()}" for field, value in dataset.where]
    arguments = f"filter: {{ {', '.join(conditions)} }}, limit: $limit{number}"
    dimensions = [f"start: {grain.dimension}"] if grain.dimension else []
    dimensions += [label.dimension for label in dataset.labels]
    # Where nothing is grouped by, there is one row, and nothing to order by.
    if order := grain.dimension or (dataset.labels[0].dimension if dataset.labels else None):
        arguments += f", orderBy: [{order}_ASC]"
    selection = [f"dimensions {{ {' '.join(dimensions)} }}"] if dimensions else []
    return f"{alias(number)}: {grain.node}({arguments}) {{ {' '.join((*selection, *_numbers(dataset)))} }}"


def _numbers(dataset: Dataset) -> list[str]:
    objects: dict[str, dict[str, None]] = {}
    paths = [total.path for total in dataset.totals] + [SAMPLE_INTERVAL_PATH] * dataset.is_sampled
    for path in paths:
        objects.setdefault(path[0], {}).update(dict.fromkeys(path[1:]))
    for breakdown in dataset.breakdowns:
        leaves = " ".join((breakdown.key, *(leaf for leaf, _ in breakdown.values)))
        objects.setdefault(breakdown.path[0], {})[f"{breakdown.path[1]} {{ {leaves} }}"] = None
    return [f"{name} {{ {' '.join(fields)} }}" if fields else name for name, fields in objects.items()]


def _times(grains: Iterable[Grain]) -> list[TimeType]:
    """The types of time among the grains, which have variables of their own."""
    return list(dict.fromkeys(grain.time for grain in grains))


def _instant(seconds: int, time: TimeType) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    match time:
        case TimeType.TIME:
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        case TimeType.DATE:
            return moment.strftime("%Y-%m-%d")
        case _:
            assert_never(time)
