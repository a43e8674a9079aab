"""Which zones and accounts are collected: what Cloudflare lists, what the settings leave of it, what the ledger knows.

Promises: an outage, or a token that has lost its permissions, leaves the last list in force, over a restart too; a
scope that disappears is told and its history kept. Knows nothing of windows.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import assert_never

from worker.clock import Clock
from worker.cloudflare import (
    Account,
    Api,
    ApiFailure,
    CloudflareApi,
    Scope,
    ScopeKind,
    TokenAccepted,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    Zone,
    ZoneList,
    selects,
)
from worker.config import CloudflareSettings
from worker.health import Health
from worker.ledger import Ledger, logged_requests, present_scopes, record_scopes
from worker.ledger import Scope as KnownScope
from worker.observe import Metrics, get_logger

# A zone that was added is seen within half an hour; a listing of 10,000 zones is 200 requests of 1,200 in 5 minutes.
REFRESH_SECONDS = 1800.0

# Requests that the process before this one may have had under way when it ended: as many as are sent at once.
_UNDER_WAY = 4

log = get_logger()


class Listing:
    """The scopes at this moment."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        kinds: Collection[ScopeKind],
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
    ) -> None:
        """`kinds`: what is collected at all; accounts are not listed where nothing is collected of them."""
        self.scopes: dict[str, Scope] = {}
        """Every scope that is collected, by its tag."""
        self._settings = settings
        self._kinds = kinds
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._selection = _selection(settings)
        self._listed_at: float | None = None
        self._tried_at: float | None = None

    async def refresh(self) -> bool:
        """List anew when the last list is old; False while that fails."""
        monotonic = self._clock.monotonic()
        if self._listed_at is not None and monotonic - self._listed_at < REFRESH_SECONDS:
            return True
        if self._tried_at is not None:
            # A listing of many zones is many requests: one that fails is not tried again at every round.
            if monotonic - self._tried_at < self._settings.collection_interval_seconds:
                return False
        else:
            await recall_requests(self._ledger, self._api, self._clock)
            await self._recall_scopes()
        self._tried_at = monotonic
        await self._verify_token()
        listing = await self._api.list_zones(**self._selection)
        match listing:
            case ApiFailure(kind=kind, message=message):
                log.warning("The zones could not be listed; the last list stays in force", kind=kind, error=message)
            case ZoneList(zones=(), unmatched=unmatched):
                # A token that lost its permissions sees no zones, without an error.
                _warn_unmatched(unmatched)
                log.warning("The token can read no zone that the settings ask for; the last list stays in force")
            case ZoneList(zones=zones, unmatched=unmatched):
                _warn_unmatched(unmatched)
                await self._take(zones, await self._accounts(zones))
                self._listed_at = monotonic
                return True
            case _:
                assert_never(listing)
        return False

    async def _recall_scopes(self) -> None:
        """Begin with the scopes that the ledger knows, as far as today's settings leave them."""
        self._set(recalled(await self._ledger.read(present_scopes), self._settings))

    async def _accounts(self, zones: Sequence[Zone]) -> Sequence[Account]:
        """Those that are collected: all that the token sees and CF_ACCOUNTS leaves, or where CF_ZONES chooses, theirs.

        Where they cannot be listed, those that are known stay.
        """
        if ScopeKind.ACCOUNT not in self._kinds:
            return ()
        listed = await self._api.list_accounts(accounts=self._settings.accounts, zones=zones)
        if isinstance(listed, ApiFailure):
            log.warning(
                "The accounts could not be listed; the last list stays in force", kind=listed.kind, error=listed.message
            )
            return [scope for scope in self.scopes.values() if isinstance(scope, Account)]
        owners = {zone.account_tag for zone in zones}
        return [account for account in listed.accounts if not self._settings.zones or account.tag in owners]

    async def _take(self, zones: Sequence[Zone], accounts: Sequence[Account]) -> None:
        listed: list[Scope] = [*zones, *accounts]
        scopes = [scope for scope in listed if _is_ours(scope, self._settings)]
        gone = await self._ledger.write(record_scopes, [_known(scope) for scope in scopes], self._clock.now())
        self._set(scopes)
        for scope in gone:
            told = {"account": scope.name} if scope.is_account else {"zone": scope.name, "zone_id": scope.tag}
            log.warning("A zone or account has disappeared; what was captured of it is kept", **told)
        log.info("Listed the zones", zones=len(zones), accounts=len(accounts), collected=len(self.scopes))

    def _set(self, scopes: Sequence[Scope]) -> None:
        self.scopes = {scope.tag: scope for scope in scopes if scope.kind in self._kinds}
        self._metrics.zones.set(sum(scope.kind is ScopeKind.ZONE for scope in scopes))
        self._metrics.accounts.set(sum(scope.kind is ScopeKind.ACCOUNT for scope in scopes))

    async def _verify_token(self) -> None:
        check = await self._api.verify_token()
        match check:
            case TokenAccepted():
                self._health.token_accepted()
            case TokenRefused(message=message):
                self._health.token_refused(message)
                log.error("Cloudflare refuses the API token; check CF_API_TOKEN", error=message)
            case TokenUnknown(failure=failure):
                log.warning("The API token could not be verified", kind=failure.kind, error=failure.message)
            case _:
                assert_never(check)


async def recall_requests(ledger: Ledger, api: CloudflareApi, clock: Clock) -> None:
    """Count what the process before this one sent, and what it may have had under way when it ended; once."""
    if api.quota.has_remembered:
        return
    now = clock.now()
    for kind, ended_at in (await ledger.read(logged_requests)).items():
        api.quota.remember(Api(kind), [now - moment for moment in ended_at])
        api.quota.remember(Api(kind), [0.0] * _UNDER_WAY)


def recalled(known: Iterable[KnownScope], settings: CloudflareSettings) -> list[Scope]:
    """The scopes that the ledger knows, as far as today's settings leave them."""
    scopes = list(known)
    selection = _selection(settings)
    zones = [_zone(scope) for scope in scopes if not scope.is_account]
    accounts = [Account(scope.tag, scope.account_name) for scope in scopes if scope.is_account]
    chosen = [zone for zone in zones if selects(zone, **selection)]
    owners = {zone.account_tag for zone in chosen}
    owning = [account for account in accounts if not settings.zones or account.tag in owners]
    left: list[Scope] = [*chosen, *owning]
    return [scope for scope in left if _is_ours(scope, settings)]


def _selection(settings: CloudflareSettings) -> dict[str, Sequence[str]]:
    return {"accounts": settings.accounts, "zones": settings.zones, "exclude_zones": settings.exclude_zones}


def _is_ours(scope: Scope, settings: CloudflareSettings) -> bool:
    """Whether the scope is this worker's, of several that share them (CF_SHARD)."""
    return settings.shard is None or settings.shard.holds(scope.tag)


def _warn_unmatched(unmatched: Sequence[Unmatched]) -> None:
    for each in unmatched:
        log.warning(
            "A setting names something that the token cannot see",
            setting=each.setting,
            given=each.given,
            nearest=each.nearest,
        )


def _zone(scope: KnownScope) -> Zone:
    return Zone(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan)


def _known(scope: Scope) -> KnownScope:
    match scope:
        case Zone():
            return KnownScope(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan)
        case Account():
            return KnownScope(scope.tag, scope.name or scope.tag, scope.tag, scope.name, "")
        case _:
            assert_never(scope)
