"""Which token each zone and account is asked with: the first of the configuration's that lists it.

Promises that no two tokens collect the same, that what a token listed last stays its own while it cannot list, over a
restart too, and that a scope is gone only where no token lists it any more. Knows nothing of how scopes are listed.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import assert_never

from worker.cloudflare import Account, Scope, ScopeKind, Zone, selects
from worker.config import CloudflareSettings
from worker.ledger import Ledger, present_scopes, record_scopes
from worker.ledger import Scope as KnownScope
from worker.observe import Metrics


class Owners:
    """The scopes of every token at this moment, shared by all who list.

    kinds: what is collected at all; other scopes are known, and asked for nothing.
    """

    def __init__(
        self,
        settings: Sequence[CloudflareSettings],
        *,
        kinds: Collection[ScopeKind],
        ledger: Ledger,
        metrics: Metrics,
    ) -> None:
        """`settings`: those of each token, in the order of the configuration."""
        self.kinds = kinds
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._is_recalled = False
        self._listed: dict[str, list[Scope]] = {each.name: [] for each in settings}
        self._asked: dict[str, dict[str, Scope]] = {each.name: {} for each in settings}
        # Of tokens that are in the configuration no more, perhaps as they are called otherwise now: nobody asks for
        # them, and they are not gone before every token has listed.
        self._left_over: list[KnownScope] = []
        self._to_list = set(self._listed)

    def scopes(self, token: str) -> Mapping[str, Scope]:
        """What is collected with a token, by the scope's tag."""
        return self._asked[token]

    async def recall(self) -> None:
        """Begin with what the ledger knows, as far as today's settings leave it; only the first time."""
        async with self._turn:
            if not self._is_recalled:
                known = await self._ledger.read(present_scopes)
                self._left_over = [scope for scope in known if scope.token not in self._listed]
                self._set({each.name: recalled(known, each) for each in self._settings})
                self._is_recalled = True

    async def take(self, token: str, scopes: Sequence[Scope], now: float) -> tuple[KnownScope, ...]:
        """Note all that a token has listed; what no token lists any more."""
        async with self._turn:
            listed = {**self._listed, token: list(scopes)}
            left_over = self._left_over if self._to_list - {token} else []
            owned = {scope.tag: _known(scope, name) for name, own in _owned(listed).items() for scope in own}
            others = [scope for scope in left_over if scope.tag not in owned]
            gone = await self._ledger.write(record_scopes, [*owned.values(), *others], now)
            self._left_over = left_over
            self._to_list.discard(token)
            self._set(listed)
        return gone

    def _set(self, listed: dict[str, list[Scope]]) -> None:
        self._listed = listed
        for name, scopes in _owned(listed).items():
            self._asked[name] = {scope.tag: scope for scope in scopes if scope.kind in self.kinds}
            self._metrics.zones.labels(name).set(sum(scope.kind is ScopeKind.ZONE for scope in scopes))
            self._metrics.accounts.labels(name).set(sum(scope.kind is ScopeKind.ACCOUNT for scope in scopes))


def _owned(listed: Mapping[str, Iterable[Scope]]) -> dict[str, list[Scope]]:
    """What each token has listed and none before it."""
    owners: dict[str, str] = {}
    for name, scopes in listed.items():
        for scope in scopes:
            owners.setdefault(scope.tag, name)
    return {name: [scope for scope in scopes if owners[scope.tag] == name] for name, scopes in listed.items()}


def recalled(scopes: Iterable[KnownScope], settings: CloudflareSettings) -> list[Scope]:
    """The scopes that the ledger knows to be asked with a token, as far as its settings of today leave them."""
    own = [scope for scope in scopes if scope.token == settings.name]
    zones = [_zone(scope) for scope in own if not scope.is_account]
    accounts = [Account(scope.tag, scope.account_name) for scope in own if scope.is_account]
    chosen = [zone for zone in zones if selects(zone, **selection(settings))]
    owners = {zone.account_tag for zone in chosen}
    owning = [account for account in accounts if not settings.zones or account.tag in owners]
    left: list[Scope] = [*chosen, *owning]
    return [scope for scope in left if is_ours(scope, settings)]


def all_recalled(scopes: Iterable[KnownScope], settings: CloudflareSettings) -> list[Scope]:
    """Those of every token."""
    known = list(scopes)
    return [scope for token in settings.by_token() for scope in recalled(known, token)]


def selection(settings: CloudflareSettings) -> dict[str, Sequence[str]]:
    """What the settings say of the zones that are listed."""
    return {"accounts": settings.accounts, "zones": settings.zones, "exclude_zones": settings.exclude_zones}


def is_ours(scope: Scope, settings: CloudflareSettings) -> bool:
    """Whether the scope is this worker's, of several that share them (CF_SHARD)."""
    return settings.shard is None or settings.shard.holds(scope.tag)


def _zone(scope: KnownScope) -> Zone:
    return Zone(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan)


def _known(scope: Scope, token: str) -> KnownScope:
    match scope:
        case Zone():
            return KnownScope(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan, token)
        case Account():
            return KnownScope(scope.tag, scope.name or scope.tag, scope.tag, scope.name, "", token)
        case _:
            assert_never(scope)
