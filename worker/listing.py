"""Which zones and accounts are collected with a token: what Cloudflare lists, and what the settings leave of it.

Promises: an outage, or a token that has lost its permissions, leaves the last list in force, over a restart too; a
scope that disappears is told and its history kept. Knows nothing of windows.
"""

from collections.abc import Mapping, Sequence
from typing import assert_never

from worker.budget import recall_requests
from worker.clock import Clock
from worker.cloudflare import (
    Account,
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
)
from worker.config import CloudflareSettings
from worker.health import Health
from worker.ledger import Ledger
from worker.observe import get_logger
from worker.owners import Owners, is_ours, selection
from worker.tokens import note_accepted, note_refused

# A zone that was added is seen within half an hour; a listing of 10,000 zones is 200 requests of 1,200 in 5 minutes.
REFRESH_SECONDS = 1800.0

log = get_logger()


class Listing:
    """The scopes of one token at this moment."""

    def __init__(
        self,
        settings: CloudflareSettings,
        *,
        owners: Owners,
        api: CloudflareApi,
        ledger: Ledger,
        clock: Clock,
        health: Health,
    ) -> None:
        self._settings = settings
        self._owners = owners
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._health = health
        self._listed_at: float | None = None
        self._tried_at: float | None = None

    @property
    def scopes(self) -> Mapping[str, Scope]:
        """Every scope that is collected, by its tag."""
        return self._owners.scopes(self._settings.name)

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
            await recall_requests(self._settings.name, self._api.quota, self._ledger, self._clock)
            await self._owners.recall()
        self._tried_at = monotonic
        await self._verify_token()
        listing = await self._api.list_zones(**selection(self._settings))
        match listing:
            case ApiFailure(kind=kind, message=message):
                log.warning(
                    "The zones could not be listed; the last list stays in force",
                    token=self._settings.name,
                    kind=kind,
                    error=message,
                )
            case ZoneList(zones=(), unmatched=unmatched):
                # A token that lost its permissions sees no zones, without an error.
                self._warn_unmatched(unmatched)
                log.warning(
                    "The token can read no zone that the settings ask for; the last list stays in force",
                    token=self._settings.name,
                )
            case ZoneList(zones=zones, unmatched=unmatched):
                self._warn_unmatched(unmatched)
                await self._take(zones, await self._accounts(zones))
                self._listed_at = monotonic
                return True
            case _:
                assert_never(listing)
        return False

    async def _accounts(self, zones: Sequence[Zone]) -> Sequence[Account]:
        """Those that are collected: all that the token sees and CF_ACCOUNTS leaves, or where CF_ZONES chooses, theirs.

        Where they cannot be listed, those that are known stay.
        """
        if ScopeKind.ACCOUNT not in self._owners.kinds:
            return ()
        listed = await self._api.list_accounts(accounts=self._settings.accounts, zones=zones)
        if isinstance(listed, ApiFailure):
            log.warning(
                "The accounts could not be listed; the last list stays in force",
                token=self._settings.name,
                kind=listed.kind,
                error=listed.message,
            )
            return [scope for scope in self.scopes.values() if isinstance(scope, Account)]
        owners = {zone.account_tag for zone in zones}
        return [account for account in listed.accounts if not self._settings.zones or account.tag in owners]

    async def _take(self, zones: Sequence[Zone], accounts: Sequence[Account]) -> None:
        listed: list[Scope] = [*zones, *accounts]
        scopes = [scope for scope in listed if is_ours(scope, self._settings)]
        gone = await self._owners.take(self._settings.name, scopes, self._clock.now())
        for scope in gone:
            told = {"account": scope.name} if scope.is_account else {"zone": scope.name, "zone_id": scope.tag}
            log.warning("A zone or account has disappeared; what was captured of it is kept", **told)
        log.info(
            "Listed the zones",
            token=self._settings.name,
            zones=len(zones),
            accounts=len(accounts),
            collected=len(self.scopes),
        )

    async def _verify_token(self) -> None:
        name = self._settings.name
        check = await self._api.verify_token()
        match check:
            case TokenAccepted():
                await note_accepted(name, self._health, self._ledger)
            case TokenRefused(message=message):
                await note_refused(name, message, self._health, self._ledger, self._clock)
                log.error(
                    "Cloudflare refuses the API token; check CF_API_TOKEN, or the token's entry under cloudflare",
                    token=name,
                    error=message,
                )
            case TokenUnknown(failure=failure):
                log.warning("The API token could not be verified", token=name, kind=failure.kind, error=failure.message)
            case _:
                assert_never(check)

    def _warn_unmatched(self, unmatched: Sequence[Unmatched]) -> None:
        for each in unmatched:
            log.warning(
                "A setting names something that the token cannot see",
                token=self._settings.name,
                setting=each.setting,
                given=each.given,
                nearest=each.nearest,
            )
