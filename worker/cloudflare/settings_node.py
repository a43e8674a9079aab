"""Reading the `settings` of zones and accounts: the queries, what their answers say, and what is made of refusals.

One query asks for up to ten zones, or one account, and a bounded number of nodes. A refused query is taken apart until
the refusal concerns one zone or one node, with a bounded number of further queries. Promises that every node of every
zone or account asked ends as an `Entitlement` or as the failure that stood in the way. Knows nothing of datasets.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import msgspec

from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.client import Answer, CloudflareClient, Refused
from worker.cloudflare.entitlements import Entitlement, Entitlements
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.query import ZONES_PER_QUERY, scope_selection, scope_variables
from worker.cloudflare.quota import Priority, RateLimitType
from worker.cloudflare.scope import Scope, counted_by

# A node's settings name up to 200 fields of 25 bytes: 10 zones x 25 nodes x 5 kB are 1.25 MB. So 1,000 zones with 25
# nodes cost 100 queries a day.
NODES_PER_QUERY = 25
# To find one node among 25 takes 2 x 5 queries, one zone among ten 2 x 4; a few more find out about a second one.
RETRIES_PER_GROUP = 24
# After so many queries in a row without an answer, Cloudflare is not there.
_QUERIES_WITHOUT_ANSWER = 3
# A century: more than Cloudflare keeps anything.
_MOST = 100 * 365 * 86_400

_SELECTION = "{ enabled availableFields maxDuration maxNumberOfFields maxPageSize notOlderThan }"
_TOO_MANY_QUERIES = ApiFailure(
    ErrorKind.REFUSED, f"not asked: the settings had their {RETRIES_PER_GROUP} further queries after refused ones"
)


@dataclass(frozen=True, slots=True)
class SettingsQuery:
    """One query.

    tags:    at most ZONES_PER_QUERY zones, or one account.
    nodes:   at most NODES_PER_QUERY names of the schema.
    account: tag of the account that zones, all of them its own, are asked for through; empty where they are not.
    """

    kind: ScopeKind
    tags: tuple[str, ...]
    nodes: tuple[str, ...]
    account: str = ""

    @property
    def text(self) -> str:
        """The GraphQL document."""
        nodes = " ".join(f"{node} {_SELECTION}" for node in self.nodes)
        declared, scopes = scope_selection(self.kind, f"settings {{ {nodes} }}", is_through_account=bool(self.account))
        return f"query Settings({declared}) {{ cost viewer {{ budget {scopes} }} }}"

    def payload(self) -> bytes:
        """The body of the POST request."""
        variables = scope_variables(self.kind, self.tags, self.account)
        return msgspec.json.encode({"query": self.text, "variables": variables})

    @property
    def counted_by(self) -> str:
        """The tag that Cloudflare counts it by, where it counts accounts."""
        return self.account or self.tags[0]

    def smaller(self, failure: ApiFailure) -> "list[SettingsQuery]":
        """The queries to be sent instead of one that was refused; empty where there is no use in any."""
        index = failure.zone_index
        named = {
            *failure.zone_tags,
            *failure.account_tags,
            *(self.tags[index : index + 1] if index is not None else ()),
        }
        blamed = tuple(tag for tag in self.tags if tag in named)
        others = tuple(tag for tag in self.tags if tag not in named)
        if blamed and others:
            return [replace(self, tags=others), replace(self, tags=blamed)]
        if failure.kind is ErrorKind.AUTH_SCOPE:  # about a zone or an account as such, and never about a node
            if self.account in named or failure.is_of_account:
                return []
            return [replace(self, tags=half) for half in _halves(self.tags)]
        return [replace(self, nodes=half) for half in _halves(self.nodes)]


def _halves(items: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    middle = (len(items) + 1) // 2
    return (items[:middle], items[middle:]) if len(items) > 1 else ()


async def read_entitlements(
    client: CloudflareClient, scopes: Sequence[Scope], nodes: Sequence[str], *, priority: Priority = Priority.DISCOVERY
) -> dict[str, Entitlements]:
    """What each of these zones or accounts, all of one kind, may ask of each of these nodes, by tag.

    Costs one query for ten zones, or one account, and 25 nodes, and where Cloudflare refuses queries at most
    RETRIES_PER_GROUP more for each. The ten zones are of one account where the client's quota counts accounts. Tells
    that quota what Cloudflare says of `cost` and `budget`.
    """
    reading = _Reading(client, priority)
    for group, account in _groups(scopes, are_accounts_apart=client.quota.rate_limit_type is RateLimitType.ACCOUNT):
        for node in range(0, len(nodes), NODES_PER_QUERY):
            some = tuple(nodes[node : node + NODES_PER_QUERY])
            await reading.group(SettingsQuery(scopes[0].kind, group, some, account))
    return {scope.tag: reading.found.get(scope.tag, {}) for scope in scopes}


def _groups(scopes: Sequence[Scope], *, are_accounts_apart: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    """The tags that one query each may ask for, and the account through which it has to."""
    alike: dict[str, list[Scope]] = {}
    for scope in sorted(set(scopes), key=lambda scope: scope.tag):
        is_apart = are_accounts_apart or scope.kind is ScopeKind.ACCOUNT
        alike.setdefault(counted_by(scope) if is_apart else "", []).append(scope)
    for same in alike.values():
        is_through_account = are_accounts_apart and same[0].kind is ScopeKind.ZONE
        for first in range(0, len(same), ZONES_PER_QUERY):
            group = tuple(scope.tag for scope in same[first : first + ZONES_PER_QUERY])
            yield group, same[0].account_tag if is_through_account else ""


class _Reading:
    """One run of reading, and everything that it has found."""

    def __init__(self, client: CloudflareClient, priority: Priority) -> None:
        self.found: dict[str, dict[str, Entitlement | ApiFailure]] = {}
        self._client = client
        self._priority = priority
        self._unanswered = 0
        self._stopped: ApiFailure | None = None

    async def group(self, query: SettingsQuery) -> None:
        """Bring every node of every zone or account of a query to its end."""
        pending = deque([query])
        allowed = 1 + RETRIES_PER_GROUP
        while pending:
            part = pending.popleft()
            if not allowed or self._stopped:
                self._fail(part, self._stopped or _TOO_MANY_QUERIES)
                continue
            allowed -= 1
            pending.extendleft(reversed(await self._ask(part)))

    async def _ask(self, query: SettingsQuery) -> list[SettingsQuery]:
        """Send a query and settle what its answer settles; the queries to be sent instead."""
        tags = (*query.tags, query.account) if query.account else query.tags
        outcome = await self._client.graphql(
            query.payload(), priority=self._priority, scopes=tags, account=query.counted_by
        )
        match outcome:
            case Answer(body):
                self._unanswered = 0
                self._take(query, body)
                return []
            case Refused(failures):
                return self._refused(query, failures[0])
            case never:
                assert_never(never)

    def _refused(self, query: SettingsQuery, failure: ApiFailure) -> list[SettingsQuery]:
        again: list[SettingsQuery] = []
        match failure.kind:
            case ErrorKind.TOKEN | ErrorKind.ENDPOINT:
                self._stopped = failure
            case ErrorKind.NETWORK | ErrorKind.SERVER:
                self._unanswered += 1
                self._stopped = failure if self._unanswered >= _QUERIES_WITHOUT_ANSWER else None
            case ErrorKind.RATE if not failure.zone_tags and not failure.account_tags:
                self._stopped = failure
            case _:
                self._unanswered = 0
                again = query.smaller(failure)
        if not again:
            self._fail(query, failure)
        return again

    def _take(self, query: SettingsQuery, body: bytes) -> None:
        try:
            data = msgspec.json.decode(body, type=_Body).data
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            text = one_line(f"the settings in the answer cannot be read: {error}")
            self._fail(query, ApiFailure(ErrorKind.MALFORMED, text))
            return
        self._client.quota.learn(_whole(data.cost), _whole(data.viewer.budget), account=query.counted_by)
        answered = {
            each.get(f"{query.kind}Tag"): each.get("settings")
            for each in _entries(data.viewer, query)
            if isinstance(each, dict) and isinstance(each.get(f"{query.kind}Tag"), str)
        }
        for tag in query.tags:
            if tag not in answered:
                text = f"the answer leaves out {query.kind} {tag}, as if there were none; the token may not read it"
                self._fail(replace(query, tags=(tag,)), ApiFailure(ErrorKind.MISSING_ZONE, text))
                continue
            settings = answered[tag]
            for node in query.nodes:
                found = settings.get(node) if isinstance(settings, dict) else None
                self.found.setdefault(tag, {})[node] = _entitlement(found)

    def _fail(self, query: SettingsQuery, failure: ApiFailure) -> None:
        for tag in query.tags:
            self.found.setdefault(tag, {}).update(dict.fromkeys(query.nodes, failure))


class _Viewer(msgspec.Struct):
    budget: Any = None
    zones: list[Any] | None = None
    accounts: list[Any] | None = None


def _entries(viewer: _Viewer, query: SettingsQuery) -> list[Any]:
    """What the answer has of each zone or account."""
    if not query.account:
        return viewer.zones or viewer.accounts or []
    zones = [account.get("zones") for account in viewer.accounts or [] if isinstance(account, dict)]
    return [zone for of_account in zones if isinstance(of_account, list) for zone in of_account]


class _Data(msgspec.Struct):
    viewer: _Viewer
    cost: Any = None


class _Body(msgspec.Struct):
    data: _Data


def _entitlement(settings: Any) -> Entitlement | ApiFailure:
    """What the settings of one node say; whatever of it is no number or no list is not known."""
    if not isinstance(settings, dict) or not isinstance(settings.get("enabled"), bool):
        return ApiFailure(ErrorKind.MALFORMED, "the answer does not say whether the node may be asked for")
    fields = settings.get("availableFields")
    return Entitlement(
        enabled=settings["enabled"],
        fields=frozenset(name for name in fields if isinstance(name, str)) if isinstance(fields, list) else frozenset(),
        max_duration_seconds=_bound(settings.get("maxDuration")),
        max_fields=_bound(settings.get("maxNumberOfFields")),
        max_page_rows=_bound(settings.get("maxPageSize")),
        retention_seconds=_bound(settings.get("notOlderThan")),
    )


def _whole(value: Any) -> int | None:
    """A number of the schema's type uint64."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64 else None


def _bound(value: Any) -> int | None:
    """A number of seconds, fields or rows; 0 cannot be meant by a node that may be asked for."""
    number = _whole(value)
    return min(number, _MOST) if number else None
