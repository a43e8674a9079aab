"""What a backfill would fetch: the windows that the ledger lacks, and which of them Cloudflare still has.

Asks Cloudflare only what zones and accounts are entitled to, and the ledger what it holds; changes nothing. What was
captured is never asked for again. Two widths of one dataset never overlap, so the wider windows that `coarser` allows
are taken only where no narrow one was captured and none can be had any more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import assert_never

from worker.cloudflare import (
    ZONES_PER_QUERY,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    Narrowed,
    Priority,
    RateLimitType,
    Scope,
    ScopeKind,
)
from worker.cloudflare.planning import SAFE_NODES_PER_QUERY
from worker.cloudflare.quota import PACE_SECONDS, PACE_SHARE
from worker.config import CloudflareSettings
from worker.ledger import Backfill, HoleReason, Ledger, OutOfReach, added, missing_windows, present_scopes
from worker.outstanding import Outstanding, Query, Runs, Worklist, next_round
from worker.owners import recalled
from worker.times import span

# Of so many the ledger is asked at a time: with a day of hourly windows 20 ms, in which nothing else gets at it.
_SCOPES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """What there is to fetch.

    worklists:    of each dataset and width, what is missing of which zone or account.
    scopes:       those zones and accounts, by tag.
    out_of_reach: what cannot be had, and why.
    not_final:    how many windows are left to `cfrw run`, which collects them when they are final.
    are_apart:    whether Cloudflare counts the queries of each account by themselves.
    """

    worklists: tuple[Worklist, ...]
    scopes: Mapping[str, Scope]
    out_of_reach: tuple[OutOfReach, ...]
    not_final: int
    are_apart: bool

    @property
    def windows(self) -> int:
        """How many windows are still to be fetched."""
        return sum(len(found.windows) for each in self.worklists for found in each.outstanding.values())

    def next_queries(self, monotonic: float) -> list[Query]:
        """What to ask next: the oldest windows of everything that is not held back, each query of one width."""
        return [
            query
            for width_seconds in dict.fromkeys(each.width_seconds for each in self.worklists)
            for query in next_round(
                [each for each in self.worklists if each.width_seconds == width_seconds],
                self.scopes,
                monotonic,
                are_accounts_apart=self.are_apart,
            )
        ]

    def requests(self) -> int:
        """How many requests that takes, where Cloudflare refuses none and takes five datasets of ten zones in one."""
        copies = [
            Worklist(
                each.dataset,
                each.width_seconds,
                each.delay_seconds,
                outstanding={tag: Outstanding(Runs(found.windows)) for tag, found in each.outstanding.items()},
            )
            for each in self.worklists
        ]
        rest = BackfillPlan(tuple(copies), self.scopes, (), 0, self.are_apart)
        requests = 0
        while queries := rest.next_queries(0.0):
            for query in queries:
                requests += ceil(len(query.worklists) / SAFE_NODES_PER_QUERY)
                for found in query.outstanding():
                    found.windows.discard_before(query.starts.stop)
        return requests


def seconds_for(requests: int, limit: int) -> float:
    """How long so many requests take at the pace of what a person asked for, of `limit` requests in five minutes."""
    return requests / max(1, int(limit * PACE_SHARE)) * PACE_SECONDS


async def plan_backfill(
    wanted: Backfill,
    datasets: Sequence[Dataset],
    *,
    settings: CloudflareSettings,
    ledger: Ledger,
    api: CloudflareApi,
    now: float,
) -> BackfillPlan:
    """What is missing of these datasets, of the zones and accounts that the last listing with a token showed.

    settings: those of the token.
    now:      unix seconds, by which windows are final and retention is reckoned.
    """
    known = recalled(await ledger.read(present_scopes), settings)
    scopes = {each.tag: each for each in known if not wanted.zones or {each.tag, each.name} & set(wanted.zones)}
    survey = _Survey(wanted, scopes, settings=settings, ledger=ledger, api=api, now=now)
    worklists = [await survey.missing(dataset) for dataset in datasets]
    lost = await survey.leave_what_can_be_had(worklists)
    wider: list[Worklist] = []
    if wanted.coarser:
        wider = await survey.wider(lost)
    return BackfillPlan(
        worklists=tuple(each for each in (*worklists, *wider) if each.outstanding),
        scopes=scopes,
        out_of_reach=survey.out_of_reach(lost),
        not_final=survey.not_final,
        are_apart=api.quota.rate_limit_type is RateLimitType.ACCOUNT,
    )


@dataclass(frozen=True, slots=True)
class _Lost:
    """Windows of one dataset and scope that Cloudflare has no more."""

    dataset: Dataset
    width_seconds: int
    tag: str
    windows: Runs
    reason: str


class _Survey:
    """A look at the ledger and at what scopes are entitled to, for one plan."""

    def __init__(
        self,
        wanted: Backfill,
        scopes: Mapping[str, Scope],
        *,
        settings: CloudflareSettings,
        ledger: Ledger,
        api: CloudflareApi,
        now: float,
    ) -> None:
        self._wanted = wanted
        self._scopes = scopes
        self._settings = settings
        self._ledger = ledger
        self._api = api
        self._now = now
        self._out_of_reach: list[OutOfReach] = []
        self.not_final = 0

    async def missing(self, dataset: Dataset) -> Worklist:
        """The final windows of the usual width without a bucket."""
        width_seconds = self._settings.bucket_seconds
        delay_seconds = dataset.final_after_seconds(self._settings.delay_seconds)
        asked = _aligned(range(self._wanted.since, self._wanted.until), width_seconds)
        after_newest = int((self._now - delay_seconds) // width_seconds) * width_seconds
        starts = range(asked.start, min(asked.stop, after_newest), width_seconds)
        worklist = Worklist(dataset, width_seconds, delay_seconds)
        tags = [tag for tag, scope in self._scopes.items() if scope.kind is dataset.scope]
        self.not_final += len(tags) * (len(asked) - len(starts))
        for first in range(0, len(tags), _SCOPES_AT_ONCE):
            found = await self._missing(dataset, tags[first : first + _SCOPES_AT_ONCE], starts)
            worklist.outstanding.update({tag: Outstanding(Runs(runs)) for tag, runs in found.items()})
        return worklist

    async def _missing(self, dataset: Dataset, tags: Sequence[str], starts: range) -> Mapping[str, Iterable[range]]:
        return await self._ledger.read(
            missing_windows, dataset=dataset.name, widths_seconds=dataset.widths_seconds, tags=tags, starts=starts
        )

    async def leave_what_can_be_had(self, worklists: Sequence[Worklist]) -> list[_Lost]:
        """Take out what scopes are not entitled to, and what is older than Cloudflare keeps it, which is returned."""
        lost: list[_Lost] = []
        for kind in ScopeKind:
            of_kind = [each for each in worklists if each.dataset.scope is kind and each.outstanding]
            for width_seconds in dict.fromkeys(each.width_seconds for each in of_kind):
                alike = [each for each in of_kind if each.width_seconds == width_seconds]
                tags = sorted({tag for each in alike for tag in each.outstanding}, key=self._account_and_tag)
                size = ZONES_PER_QUERY if kind is ScopeKind.ZONE else 1
                for first in range(0, len(tags), size):
                    lost += await self._look_at(alike, [self._scopes[tag] for tag in tags[first : first + size]])
        return lost

    def _account_and_tag(self, tag: str) -> tuple[str, str]:
        return self._scopes[tag].account_tag, tag

    async def _look_at(self, worklists: Sequence[Worklist], scopes: Sequence[Scope]) -> list[_Lost]:
        of_name = {each.dataset.name: each for each in worklists}
        datasets = [each.dataset for each in worklists]
        verdicts = await self._api.discover(datasets, worklists[0].width_seconds, scopes, priority=Priority.BACKFILL)
        lost = []
        for (name, tag), verdict in verdicts.items():
            worklist = of_name[name]
            found = worklist.outstanding.get(tag)
            if found is None:
                continue
            match verdict:
                case Denied(reason=reason):
                    denied = OutOfReach(name, len(found.windows), HoleReason.DENIED, reason)
                    self._out_of_reach.append(denied)
                    del worklist.outstanding[tag]
                case Narrowed(retention_seconds=int() as kept):
                    older = found.windows.before(self._now - kept)
                    if older:
                        reason = f"Cloudflare keeps windows of {span(worklist.width_seconds)} for {span(kept)}"
                        lost.append(_Lost(worklist.dataset, worklist.width_seconds, tag, older, reason))
                        found.windows.discard_before(ceil(self._now - kept))
                    if not found.windows:
                        del worklist.outstanding[tag]
                case Narrowed() | ApiFailure():
                    # Not known: they are asked for, and Cloudflare says so where it has them no more.
                    pass
                case _:
                    assert_never(verdict)
        return lost

    async def wider(self, lost: list[_Lost]) -> list[Worklist]:
        """Wider windows in place of what is lost, the narrowest that can be had; these are taken out of `lost`."""
        found: list[Worklist] = []
        widths = sorted({width for each in lost for width in each.dataset.widths_seconds})
        for width_seconds in widths:
            worklists: dict[str, Worklist] = {}
            for each in lost:
                if width_seconds <= each.width_seconds or width_seconds not in each.dataset.widths_seconds:
                    continue
                delay_seconds = each.dataset.final_after_seconds(self._settings.delay_seconds)
                fresh = Worklist(each.dataset, width_seconds, delay_seconds)
                worklist = worklists.setdefault(each.dataset.name, fresh)
                inside = [_aligned(range(run.start, run.stop), width_seconds) for run in each.windows]
                found_in = [await self._missing(each.dataset, [each.tag], starts) for starts in inside]
                if runs := [run for missing in found_in for run in missing.get(each.tag, ())]:
                    worklist.outstanding[each.tag] = Outstanding(Runs(runs))
            await self.leave_what_can_be_had(list(worklists.values()))
            for each in lost:
                taken = worklists.get(each.dataset.name)
                if taken is None or each.tag not in taken.outstanding:
                    continue
                for run in taken.outstanding[each.tag].windows:
                    each.windows.discard(range(run.start, run.stop, each.width_seconds))
            found += worklists.values()
        return found

    def out_of_reach(self, lost: Iterable[_Lost]) -> tuple[OutOfReach, ...]:
        """What cannot be had, the most windows first."""
        expired = (OutOfReach(each.dataset.name, len(each.windows), HoleReason.EXPIRED, each.reason) for each in lost)
        return added(self._out_of_reach, (each for each in expired if each.windows))


def _aligned(within: range, width_seconds: int) -> range:
    """The starts of all whole windows that lie in a stretch of time."""
    first = ceil(within.start / width_seconds) * width_seconds
    return range(first, max(first, within.stop // width_seconds * width_seconds), width_seconds)
