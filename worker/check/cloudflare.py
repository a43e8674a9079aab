"""Cloudflare, with one token: whether it is accepted, what it may read, and whether what is collected fits its quota.

Asks little: a listing, as the worker does every half an hour, and what the first few zones and the first account are
entitled to. What the others are denied is known from the ledger. Every request is counted with those that the ledger
says were sent before; where there is no place for them, nothing is asked.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import assert_never

from worker.admission import best_case, plan_of, told
from worker.check.clocks import clock_finding
from worker.check.finding import Finding, State, failure, first_of, ok, skipped, warning
from worker.check.memory import Memory
from worker.clock import Clock
from worker.cloudflare import (
    ZONES_PER_QUERY,
    AccountList,
    Api,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    ErrorKind,
    FactSet,
    Narrowed,
    Priority,
    Scope,
    ScopeKind,
    TokenAccepted,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    ZoneList,
)
from worker.cloudflare.planning import Plan
from worker.config import DEFAULT_TOKEN, CloudflareSettings
from worker.datasets import Chosen
from worker.owners import is_ours, selection
from worker.times import instant

TOKEN, ZONES, ACCOUNTS, DATASETS, BUDGET = "token", "zones", "accounts", "datasets", "API budget"

# Two for the token, one for a page of accounts, and of GraphQL one for 25 datasets: all 150 are six for each kind.
_FEW_REQUESTS = 3 + 2 * 6
_ZONES_IN_A_PAGE = 50

# A token that is renewed by hand wants a date that somebody is there on.
_SOON_SECONDS = 14 * 86_400

_MAY_NOT = frozenset({ErrorKind.AUTH_SCOPE, ErrorKind.MISSING_ZONE, ErrorKind.TOKEN})
_PERMISSION = {
    ScopeKind.ZONE: "give the token Zone > Analytics > Read for these zones",
    ScopeKind.ACCOUNT: "give the token Account > Account Analytics > Read for these accounts",
}


@dataclass(frozen=True, slots=True)
class Looked:
    """What some scopes may be asked for.

    denied:  the reason, by dataset and tag.
    unknown: why that is not known of a scope, by its tag.
    asked:   of how many scopes of each kind Cloudflare was asked now.
    """

    denied: Mapping[tuple[str, str], str]
    unknown: Mapping[str, ApiFailure]
    asked: Mapping[ScopeKind, int]


async def look_at_cloudflare(
    settings: CloudflareSettings,
    collected: Chosen,
    api: CloudflareApi,
    memory: Memory | None,
    clock: Clock,
    *,
    taken: set[str],
) -> AsyncIterator[Finding]:
    """What is to be said of one token, the settings that say what is collected with it, and what that costs.

    taken: tags of what is asked with the tokens before it; what is asked with this one is added.
    """
    if not _has_places(settings.name, api, memory, clock):
        what = "Cloudflare is not asked: what the worker sent in the last five minutes leaves no place in the quota"
        yield skipped(TOKEN, what, "check again in five minutes")
        return
    token = await _token(settings.name, api, clock)
    yield token
    if (clocks := clock_finding("Cloudflare's", api.ahead_seconds)) is not None:
        yield clocks
    if token.state is State.FAILURE:
        yield skipped(ZONES, "not listed, as the token is not accepted; nor is anything known of datasets and budget")
        return
    findings, scopes = await _listed(settings, collected, api, taken)
    for finding in findings:
        yield finding
    if scopes is None:
        yield skipped(DATASETS, "not looked at, as nothing could be listed; nor is the budget known")
        return
    taken.update(scope.tag for scope in scopes)
    looked = await _look(settings, collected.datasets, scopes, api, memory)
    for finding in _entitlement_findings(collected, scopes, looked, memory):
        yield finding
    plan = plan_of(settings, collected.datasets, scopes, lambda dataset, tag: (dataset.name, tag) in looked.denied)
    yield _budget_finding(plan)


def _budget_finding(plan: Plan) -> Finding:
    """The arithmetic, and the verdict of the worker's own start."""
    at_best = best_case(plan)
    if plan.fits:
        return ok(BUDGET, _on_one_line(told(plan)))
    if at_best.fits:
        return warning(BUDGET, _on_one_line(told(plan)), "set one of these, or see whether windows fall behind")
    return failure(BUDGET, _on_one_line(told(at_best)), "set one of these: the worker does not start so")


def _on_one_line(text: str) -> str:
    first, *others = text.splitlines()
    return f"{first} {'; '.join(other.strip() for other in others)}".strip().rstrip(".")


def _has_places(token: str, api: CloudflareApi, memory: Memory | None, clock: Clock) -> bool:
    """Whether the quota has places for a check beside what the worker sent last, which is counted from here on."""
    if memory is None:
        return True
    now = clock.now()
    for name, ended_at in memory.requests.get(token, {}).items():
        api.quota.remember(Api(name), [now - moment for moment in ended_at])
    own = sum(scope.token == token for scope in memory.scopes)
    needed = _FEW_REQUESTS + ceil(own / _ZONES_IN_A_PAGE)
    return all(api.quota.remaining(name) >= min(needed, api.quota.limit(name)) for name in Api)


async def _token(name: str, api: CloudflareApi, clock: Clock) -> Finding:
    match await api.verify_token():
        case TokenAccepted(expires_at=expires_at):
            until = "" if expires_at is None else f" until {instant(expires_at)}"
            if expires_at is not None and expires_at - clock.now() < _SOON_SECONDS:
                to_do = "make another one before, and give it to the worker"
                return warning(TOKEN, f"Cloudflare accepts it{until}", to_do)
            return ok(TOKEN, f"Cloudflare accepts it{until}")
        case TokenRefused(message=message):
            setting = "CF_API_TOKEN" if name == DEFAULT_TOKEN else "its api_token under `cloudflare`"
            return failure(TOKEN, f"Cloudflare refuses it: {message}", f"set {setting} to a token that is active")
        case TokenUnknown(failure=unknown):
            what = f"Cloudflare could not be asked about it: {unknown.message}"
            return failure(TOKEN, what, "see whether CF_API_URL is right, and whether this machine reaches it")
        case never:
            assert_never(never)


async def _listed(
    settings: CloudflareSettings, collected: Chosen, api: CloudflareApi, taken: Collection[str]
) -> tuple[list[Finding], list[Scope] | None]:
    """What is to be said of the zones and accounts, and those that are collected; None where zones cannot be listed."""
    kinds: set[ScopeKind] = {each.scope for each in _all_of(collected)}
    listing = await api.list_zones(**selection(settings))
    findings = list(_listing_findings(settings, listing, kinds, taken))
    if isinstance(listing, ApiFailure):
        return findings, None
    scopes: list[Scope] = [*listing.zones] if ScopeKind.ZONE in kinds else []
    if ScopeKind.ACCOUNT in kinds:
        accounts = await api.list_accounts(accounts=settings.accounts, zones=listing.zones)
        findings += _account_findings(accounts)
        if isinstance(accounts, AccountList):
            owners = {zone.account_tag for zone in listing.zones}
            scopes += [each for each in accounts.accounts if not settings.zones or each.tag in owners]
    return findings, [scope for scope in scopes if is_ours(scope, settings) and scope.tag not in taken]


def _all_of(collected: Chosen) -> list[Dataset | FactSet]:
    return [*collected.datasets, *collected.fact_sets]


def _listing_findings(
    settings: CloudflareSettings, listing: ZoneList | ApiFailure, kinds: set[ScopeKind], taken: Collection[str]
) -> Iterator[Finding]:
    match listing:
        case ApiFailure(kind=kind, message=message):
            to_do = "give the token Zone > Zone > Read" if kind in _MAY_NOT else "check again"
            yield failure(ZONES, f"they could not be listed: {message}", to_do)
        case ZoneList(zones=zones, unmatched=unmatched, seen=seen):
            free = [zone for zone in zones if zone.tag not in taken]
            ours = [zone.name for zone in free if is_ours(zone, settings)]
            what = f"{len(ours):,} of the {seen:,} active zones that the token reads are selected{_named(ours)}"
            if seen > len(zones):
                what += f"; settings leave {seen - len(zones):,} out"
            if len(zones) > len(free):
                what += f"; {len(zones) - len(free):,} are asked with a token before it"
            if len(free) > len(ours):
                what += f"; {len(free) - len(ours):,} are of other shards"
            if ours or ScopeKind.ZONE not in kinds:
                yield ok(ZONES, what)
            elif zones and not free:
                yield warning(ZONES, what, "leave this token out, or give it zones of its own")
            elif not seen:
                of_whom = " of CF_ACCOUNTS" if settings.accounts else ""
                to_do = "give it Zone > Zone > Read for the zones"
                yield failure(ZONES, f"the token reads no active zone{of_whom}", to_do)
            else:
                yield failure(ZONES, what, "look at CF_ACCOUNTS, CF_ZONES, CF_EXCLUDE_ZONES and CF_SHARD")
            yield from map(_unmatched_finding, unmatched)
        case never:
            assert_never(never)


def _unmatched_finding(unmatched: Unmatched) -> Finding:
    what = f"{unmatched.setting} names {unmatched.given}, and the token reads nothing of that name or id"
    hint = (
        f"did you mean {unmatched.nearest}?" if unmatched.nearest else "give the token access, or correct the setting"
    )
    # What is excluded and not there is not collected, as it should be.
    state = State.WARNING if unmatched.setting == "CF_EXCLUDE_ZONES" else State.FAILURE
    return Finding(state, ZONES, what, hint)


def _account_findings(listed: AccountList | ApiFailure) -> Iterator[Finding]:
    match listed:
        case ApiFailure(message=message):
            yield failure(ACCOUNTS, f"they could not be listed: {message}", "check again")
        case AccountList(accounts=(), is_whole=is_whole):
            to_do = "look at CF_ACCOUNTS" if is_whole else "give the token Account > Account Settings > Read"
            yield failure(ACCOUNTS, "there is none to be collected", to_do)
        case AccountList(accounts=accounts, is_whole=is_whole):
            what = f"{len(accounts):,} that the token reads{_named([each.name or each.tag for each in accounts])}"
            if is_whole:
                yield ok(ACCOUNTS, what)
            else:
                to_do = "give the token Account > Account Settings > Read for those without a zone"
                yield warning(ACCOUNTS, f"{what}; only those that own a zone are known", to_do)
        case never:
            assert_never(never)


async def _look(
    settings: CloudflareSettings,
    datasets: Sequence[Dataset],
    scopes: Sequence[Scope],
    api: CloudflareApi,
    memory: Memory | None,
) -> Looked:
    """What the first zones and the first account may be asked for by Cloudflare, and the others by the ledger."""
    denied = {(each.dataset, each.tag): each.detail for each in memory.denials} if memory else {}
    unknown: dict[str, ApiFailure] = {}
    asked: Counter[ScopeKind] = Counter()
    for kind, most in ((ScopeKind.ZONE, ZONES_PER_QUERY), (ScopeKind.ACCOUNT, 1)):
        of_kind = [each for each in datasets if each.scope is kind]
        group = [scope for scope in scopes if scope.kind is kind][:most]
        if not group or not of_kind:
            continue
        asked[kind] = len(group)
        verdicts = await api.discover(of_kind, settings.bucket_seconds, group, priority=Priority.LIVE)
        for pair, verdict in verdicts.items():
            match verdict:
                case Denied(reason=reason):
                    denied[pair] = reason
                case Narrowed():
                    denied.pop(pair, None)
                case ApiFailure():
                    unknown[pair[1]] = verdict
                case never:
                    assert_never(never)
    return Looked(denied, unknown, asked)


def _entitlement_findings(
    collected: Chosen, scopes: Sequence[Scope], looked: Looked, memory: Memory | None
) -> Iterator[Finding]:
    remembered = {scope.tag for scope in memory.scopes} if memory else set()
    for kind, asked in looked.asked.items():
        of_kind = {scope.tag: scope.name for scope in scopes if scope.kind is kind}
        failed = {tag: found for tag, found in looked.unknown.items() if tag in of_kind}
        if failed:
            yield _unread(kind, asked, [of_kind[tag] or tag for tag in failed], next(iter(failed.values())))
        else:
            told_of = f", the first of {len(of_kind):,}" if asked < len(of_kind) else ""
            yield ok(TOKEN, f"it reads the analytics of {_counted(asked, kind)}{told_of}")
        if beyond := sum(tag not in remembered for tag in list(of_kind)[asked:]):
            what = f"{_counted(beyond, kind)} not looked at yet: that is done when the worker starts"
            yield skipped(DATASETS, what)
    free: list[str] = []
    for each in _all_of(collected):
        tags = [scope.tag for scope in scopes if scope.kind is each.scope]
        reasons = Counter(looked.denied[each.name, tag] for tag in tags if (each.name, tag) in looked.denied)
        if reasons:
            yield _denied_finding(each, reasons, len(tags))
        else:
            free.append(each.name)
    if free:
        yield ok(DATASETS, f"{len(free):,} that nobody is denied, as far as is known{_named(free)}")


def _unread(kind: ScopeKind, asked: int, names: Sequence[str], why: ApiFailure) -> Finding:
    whose = f"the analytics of {len(names):,} of {_counted(asked, kind)} that were asked for{_named(names)}"
    if why.kind in _MAY_NOT:
        return failure(TOKEN, f"it does not read {whose}: {why.message}", _PERMISSION[kind])
    return warning(TOKEN, f"it is not known whether it reads {whose}: {why.message}", "check again")


def _denied_finding(denied: Dataset | FactSet, reasons: Counter[str], scopes: int) -> Finding:
    count = reasons.total()
    told_reasons = "; ".join(
        f"{reason} ({times:,})" if len(reasons) > 1 else reason for reason, times in reasons.items()
    )
    what = f"{denied.name} is denied to {count:,} of {_counted(scopes, denied.scope)}: {told_reasons}"
    if count == scopes:
        return warning(DATASETS, what, "take it out of CF_DATASETS, or see what plan and permissions it needs")
    return ok(DATASETS, what)


def _named(names: Sequence[str]) -> str:
    """The first of them behind a colon."""
    return f": {first_of(names)}" if names else ""


def _counted(count: int, kind: ScopeKind) -> str:
    return f"{count:,} {kind}{'' if count == 1 else 's'}"
