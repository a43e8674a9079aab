"""Discovery: is the token good, and which zones and accounts are there to be collected.

Over REST, whole listings or none. Knows nothing of datasets.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

import msgspec

from worker.cloudflare.client import Answer, CloudflareClient, Refused
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.paging import Page, all_pages, decoded
from worker.cloudflare.scope import Account, Zone


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A name or id in a setting that fits nothing the token can see.

    setting: CF_ACCOUNTS, CF_ZONES or CF_EXCLUDE_ZONES.
    given:   what stands there.
    nearest: the most similar name that exists, if one is similar at all.
    """

    setting: str
    given: str
    nearest: str | None


@dataclass(frozen=True, slots=True)
class ZoneList:
    """The zones to collect, by name, and the settings that fit none.

    seen: how many the token can read, of the accounts that the settings name or of all.
    """

    zones: tuple[Zone, ...]
    unmatched: tuple[Unmatched, ...] = ()
    seen: int = 0


@dataclass(frozen=True, slots=True)
class AccountList:
    """The accounts to collect, by name.

    is_whole: whether the token may list accounts; where it may not, these are the accounts that own zones.
    """

    accounts: tuple[Account, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class TokenAccepted:
    """Cloudflare knows the token and it is active.

    expires_at: when it will not be any more, unix seconds; None where that was not said.
    """

    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """Cloudflare refuses the token; only another token, or another state of this one, will help."""

    message: str


@dataclass(frozen=True, slots=True)
class TokenUnknown:
    """Cloudflare could not be asked; nothing is known about the token."""

    failure: ApiFailure


TokenCheck = TokenAccepted | TokenRefused | TokenUnknown


class _Account(msgspec.Struct):
    id: str
    name: str = ""


class _Plan(msgspec.Struct):
    legacy_id: str | None = None


class _Zone(msgspec.Struct):
    id: str
    name: str
    account: _Account | None = None
    plan: _Plan | None = None


class _SomeZones(msgspec.Struct):
    result: list[_Zone]


class _TokenState(msgspec.Struct):
    status: str
    expires_on: Any = None


class _Verified(msgspec.Struct):
    result: _TokenState


async def list_zones(
    client: CloudflareClient,
    *,
    accounts: Sequence[str] = (),
    zones: Sequence[str] = (),
    exclude_zones: Sequence[str] = (),
) -> ZoneList | ApiFailure:
    """The active zones that the token can see and the settings allow; each setting holds ids or names.

    Only active zones have traffic to count: a pending zone's name servers do not point to Cloudflare yet, a moved or
    deactivated one's no longer do. A paused zone stays active, and what it then answers, no requests, is true.
    """
    owners: list[str | None] = [None]
    known_accounts: list[_Account] = []
    if accounts:
        listed = await _listed_accounts(client)
        if isinstance(listed, ApiFailure):
            return listed
        known_accounts = listed or []
        matching = [account.id for account in known_accounts if _fits(accounts, account.id, account.name)]
        if all(any(_fits([given], each.id, each.name) for each in known_accounts) for given in accounts):
            owners = list(matching)
    found: dict[str, _Zone] = {}
    for owner in owners:
        only = {"account.id": owner} if owner else {}
        listed_zones = await all_pages(client, "/zones", {"status": "active", **only}, Page[_Zone])
        if not isinstance(listed_zones, list):
            return listed_zones
        found.update((zone.id, zone) for zone in listed_zones)
    return _selected([_zone(zone) for zone in found.values()], known_accounts, accounts, zones, exclude_zones)


async def list_accounts(
    client: CloudflareClient, *, accounts: Sequence[str] = (), zones: Iterable[Zone] = ()
) -> AccountList | ApiFailure:
    """The accounts that the token can see and the setting (ids or names) allows, and those that own the zones.

    zones: what was listed before.
    """
    listed = await _listed_accounts(client)
    if isinstance(listed, ApiFailure):
        return listed
    names = {zone.account_tag: zone.account_name for zone in zones if zone.account_tag}
    names.update((account.id, account.name or names.get(account.id, "")) for account in listed or ())
    chosen = [Account(tag, name) for tag, name in names.items() if not accounts or _fits(accounts, tag, name)]
    return AccountList(tuple(sorted(chosen, key=lambda each: (each.name, each.tag))), is_whole=listed is not None)


async def verify_token(client: CloudflareClient) -> TokenCheck:
    """Ask Cloudflare about the token itself.

    A user's token is verified under /user. A token that an account owns is refused there, and verified under its
    account, which the zones it can read tell.
    """
    check = await _verified(client, "/user/tokens/verify")
    if not isinstance(check, TokenRefused):
        return check
    page = await client.get("/zones", {"page": 1, "per_page": 5})  # 5 is the smallest page that Cloudflare takes
    match page:
        case Refused(failures):
            refused = failures[0].kind in (ErrorKind.TOKEN, ErrorKind.AUTH_SCOPE)
            return check if refused else TokenUnknown(failures[0])
        case Answer(body):
            seen = decoded(body, _SomeZones)
            if isinstance(seen, ApiFailure):
                return TokenUnknown(seen)
            account = next((zone.account.id for zone in seen.result if zone.account), None)
            # Somebody who may list zones is known to Cloudflare, even where there is no zone to list.
            return await _verified(client, f"/accounts/{account}/tokens/verify") if account else TokenAccepted()
        case never:
            assert_never(never)


async def _verified(client: CloudflareClient, path: str) -> TokenCheck:
    match await client.get(path, {}):
        case Answer(body):
            verified = decoded(body, _Verified)
            if isinstance(verified, ApiFailure):
                return TokenUnknown(verified)
            if verified.result.status == "active":
                return TokenAccepted(_instant(verified.result.expires_on))
            return TokenRefused(one_line(f"Cloudflare says that the token is {verified.result.status}"))
        case Refused((failure, *_)) if failure.kind in (ErrorKind.TOKEN, ErrorKind.AUTH_SCOPE):
            return TokenRefused(failure.message)
        case Refused(failures):
            return TokenUnknown(failures[0])
        case never:
            assert_never(never)


def _instant(text: Any) -> float | None:
    """Unix seconds of an RFC 3339 time; None for anything else: whether a token is good does not depend on it."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


async def _listed_accounts(client: CloudflareClient) -> list[_Account] | ApiFailure | None:
    """Every account that the token can see; None where it may not list them.

    Reading accounts is a permission of its own, and Cloudflare may speak of its lack as of a wrong token. The zones
    name their accounts too, and listing them tells whether the token really is wrong.
    """
    listed = await all_pages(client, "/accounts", {}, Page[_Account])
    if isinstance(listed, ApiFailure) and listed.kind in (ErrorKind.AUTH_SCOPE, ErrorKind.TOKEN):
        return None
    return listed


def _zone(zone: _Zone) -> Zone:
    account = zone.account or _Account("")
    return Zone(zone.id, zone.name, account.id, account.name, (zone.plan and zone.plan.legacy_id) or "")


def _selected(
    zones: Iterable[Zone],
    known_accounts: Sequence[_Account],
    accounts: Sequence[str],
    wanted: Sequence[str],
    excluded: Sequence[str],
) -> ZoneList:
    """The zones that the settings leave; equal names in different accounts are different zones."""
    everything = sorted(zones, key=lambda zone: (zone.name, zone.tag))
    owned = [zone for zone in everything if selects(zone, accounts=accounts)]
    chosen = tuple(zone for zone in owned if selects(zone, zones=wanted, exclude_zones=excluded))
    account_names = {account.id: account.name for account in known_accounts}
    account_names.update((zone.account_tag, zone.account_name) for zone in everything)
    zone_names = {zone.tag: zone.name for zone in owned}
    unmatched = (
        *_unmatched("CF_ACCOUNTS", accounts, account_names),
        *_unmatched("CF_ZONES", wanted, zone_names),
        *_unmatched("CF_EXCLUDE_ZONES", excluded, zone_names),
    )
    return ZoneList(chosen, unmatched, len(owned))


def selects(
    zone: Zone, *, accounts: Sequence[str] = (), zones: Sequence[str] = (), exclude_zones: Sequence[str] = ()
) -> bool:
    """Whether the settings, each of ids or names, leave a zone to be collected."""
    return (
        (not accounts or _fits(accounts, zone.account_tag, zone.account_name))
        and (not zones or _fits(zones, zone.tag, zone.name))
        and not _fits(exclude_zones, zone.tag, zone.name)
    )


def _fits(given: Iterable[str], tag: str, name: str) -> bool:
    return any(each.casefold() in (tag.casefold(), name.casefold()) for each in given)


def _unmatched(setting: str, given: Sequence[str], names: dict[str, str]) -> Iterable[Unmatched]:
    """The entries of a setting that are neither the id nor the name of anything; `names` is by id."""
    for each in given:
        if not any(_fits([each], tag, name) for tag, name in names.items()):
            similar = {name.casefold(): name for name in names.values()}
            nearest = difflib.get_close_matches(each.casefold(), similar, n=1)
            yield Unmatched(setting, each, similar[nearest[0]] if nearest else None)
