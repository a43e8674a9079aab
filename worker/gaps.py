"""Every hole in what was to be collected and delivered over a stretch of time, why it is there, and what would fill it.

Looks at the ledger alone and changes nothing: what Cloudflare still has of it, a dry run of `cfrw backfill` says.
"""

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from math import ceil

from worker.cloudflare import Dataset
from worker.config import CloudflareSettings
from worker.ledger import (
    HoleReason,
    KnownHole,
    Ledger,
    NotDelivered,
    denials,
    holes_between,
    missing_windows,
    not_delivered_between,
    present_scopes,
)
from worker.owners import all_recalled
from worker.times import instant

# So many zones, and datasets, stand in a command: with 25 characters and the option 650 of a line. More are meant by
# naming none: a backfill leaves out what is there, and a resend sends what the receiver has, which it takes again.
_MOST_NAMES = 20


class Cause(StrEnum):
    """Why something is missing."""

    WAITING = "waiting"
    """Final, and not asked for yet: `cfrw run` does it."""

    FAILED = "failed"
    """The last attempt failed; `cfrw run` tries again."""

    GIVEN_UP = "given up"
    """Attempts failed until it was older than CF_REPLAY_HOURS."""

    NEVER_ASKED = "never asked"
    """Older than CF_REPLAY_HOURS before anybody asked for it."""

    DENIED = "denied"
    """The plan or the token does not give it."""

    EXPIRED = "expired at Cloudflare"
    """Cloudflare has no data for it any more."""

    NOT_DELIVERED = "not delivered"
    """Captured, and decided against at a destination: refused, in part perhaps, too old, or damaged."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Windows that are missing for one reason, of one dataset.

    scopes:      names of the zones or accounts, each of which lacks all of these windows.
    since, until: from the first window's start to the last one's end, unix seconds.
    windows:     how many are missing, of all of the zones or accounts together.
    destination: where, of what was captured; None of what was not.
    detail:      what Cloudflare or the receiver said; empty where nobody was asked.
    command:     what would fill it, and others with the same command; None where nothing can.
    """

    cause: Cause
    dataset: str
    scopes: tuple[str, ...]
    width_seconds: int
    since: int
    until: int
    windows: int
    destination: str | None
    detail: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Gaps:
    """All of them, those that a person has to do something about first.

    not_final: how many windows are not final yet.
    since:     from when on windows were looked at, unix seconds: what is older is deleted when it is delivered, so that
               nobody can tell whether it was.
    """

    gaps: tuple[Gap, ...]
    not_final: int
    since: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Windows of one zone or account without a bucket, for one reason."""

    cause: Cause
    dataset: str
    scope: str
    starts: range
    detail: str


FETCHED_BY_ITSELF = frozenset({Cause.FAILED, Cause.WAITING})
"""What a `cfrw run` is at."""

_FETCHED_WHEN_ASKED = frozenset({Cause.GIVEN_UP, Cause.NEVER_ASKED})

_OF_HOLE = {HoleReason.DENIED: Cause.DENIED, HoleReason.EXPIRED: Cause.EXPIRED}

_DAMAGED = "damaged"

# What a person has to do something about, then what goes by itself, then what stays as it is.
_ORDER = (
    Cause.NOT_DELIVERED,
    Cause.GIVEN_UP,
    Cause.NEVER_ASKED,
    Cause.FAILED,
    Cause.WAITING,
    Cause.EXPIRED,
    Cause.DENIED,
)


async def find_gaps(
    ledger: Ledger,
    settings: CloudflareSettings,
    collected: Sequence[Dataset],
    *,
    since: int,
    until: int,
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
    options: Sequence[str] = (),
    retention_hours: int,
    now: float,
) -> Gaps:
    """The gaps among the windows that start in [since, until), unix seconds.

    Windows without a bucket are those of the datasets that are collected, of what the last listing showed; what was
    captured and not delivered may be of others, too.

    zones:    names or tags; empty means all.
    datasets: names; empty means all.
    options:  what each command gets besides, such as `--config FILE`.
    """
    first = max(since, ceil(now - retention_hours * 3600))
    scopes = [
        each
        for each in all_recalled(await ledger.read(present_scopes), settings)
        if not zones or {each.tag, each.name} & {*zones}
    ]
    denied = {(each.dataset, each.tag): each.detail for each in await ledger.read(denials)}
    width_seconds = settings.bucket_seconds
    why = _Why(now - settings.replay_hours * 3600, width_seconds)
    asked = range(ceil(first / width_seconds) * width_seconds, until, width_seconds)
    runs: list[_Run] = []
    not_final = 0
    for dataset in collected:
        if datasets and dataset.name not in datasets:
            continue
        after_newest = now - dataset.final_after_seconds(settings.delay_seconds) - width_seconds
        starts = asked[: len(range(asked.start, min(asked.stop, int(after_newest) + 1), width_seconds))]
        names = {scope.tag: scope.name for scope in scopes if scope.kind is dataset.scope}
        not_final += len(names) * (len(asked) - len(starts))
        missing = await ledger.read(
            missing_windows,
            dataset=dataset.name,
            widths_seconds=dataset.widths_seconds,
            tags=list(names),
            starts=starts,
        )
        known = await ledger.read(
            holes_between,
            dataset=dataset.name,
            tags=missing,
            width_seconds=width_seconds,
            since=starts.start,
            until=starts.stop,
        )
        for tag, lacking in missing.items():
            parts = why.parts(lacking, known[tag], denied.get((dataset.name, tag)))
            runs += (_Run(cause, dataset.name, names[tag], run, detail) for cause, run, detail in parts)
    lost = [
        each
        for each in await ledger.read(not_delivered_between, since=since, until=until)
        if (not datasets or each.dataset in datasets) and (not zones or {each.tag, each.scope} & {*zones})
    ]
    commands = _Commands(zones, datasets, options, settings.backfill_max_hours, now)
    kinds = {dataset.name: dataset.scope for dataset in collected}
    names_of = {kind: {each.name for each in scopes if each.kind is kind} for kind in kinds.values()}
    gaps = [
        *commands.fetching(_together(runs), {name: names_of[kind] for name, kind in kinds.items()}),
        *commands.sending(_not_delivered(each) for each in lost if each.state != _DAMAGED),
        # What is damaged in the ledger cannot be sent.
        *(_not_delivered(each) for each in lost if each.state == _DAMAGED),
    ]
    gaps.sort(key=lambda each: (_ORDER.index(each.cause), each.since, each.dataset))
    return Gaps(tuple(gaps), not_final, first)


class _Why:
    """Why windows of a dataset and scope have no bucket."""

    def __init__(self, replay_since: float, width_seconds: int) -> None:
        self._replay_since = replay_since
        self._width_seconds = width_seconds
        # Thousands of zones lack the same for the same reasons.
        self._told: dict[object, list[tuple[Cause, range, str]]] = {}

    def parts(
        self, missing: tuple[range, ...], known: tuple[KnownHole, ...], denied: str | None
    ) -> list[tuple[Cause, range, str]]:
        """Runs of windows that are missing for the same reason, with what was said."""
        found = self._told.get((missing, known, denied))
        if found is None:
            holes = {each.start: each for each in known}
            found = self._told[missing, known, denied] = []
            for run in missing:
                for (cause, detail), starts in groupby(run, lambda start: self._of(start, holes.get(start), denied)):
                    same = list(starts)
                    found.append((cause, range(same[0], same[-1] + run.step, run.step), detail))
        return found

    def _of(self, start: int, hole: KnownHole | None, denied: str | None) -> tuple[Cause, str]:
        is_replayed = start + self._width_seconds > self._replay_since
        if hole is not None and hole.reason in _OF_HOLE:
            return _OF_HOLE[hole.reason], hole.detail
        if denied is not None:
            return Cause.DENIED, denied
        if hole is not None:
            return (Cause.FAILED if is_replayed else Cause.GIVEN_UP), hole.detail
        return (Cause.WAITING if is_replayed else Cause.NEVER_ASKED), ""


def _together(runs: Iterable[_Run]) -> Iterator[Gap]:
    """One gap for all zones or accounts that lack the same windows of a dataset for the same reason."""
    alike: dict[tuple[Cause, str, range, str], list[str]] = {}
    for run in runs:
        alike.setdefault((run.cause, run.dataset, run.starts, run.detail), []).append(run.scope)
    for (cause, dataset, starts, detail), names in alike.items():
        yield Gap(
            cause,
            dataset,
            tuple(sorted(names)),
            starts.step,
            starts.start,
            starts.stop,
            len(starts) * len(names),
            None,
            detail,
        )


def _not_delivered(lost: NotDelivered) -> Gap:
    status = "" if lost.status is None else f"HTTP {lost.status}: "
    return Gap(
        Cause.NOT_DELIVERED,
        lost.dataset,
        (lost.scope,),
        lost.width_seconds,
        lost.since,
        lost.until,
        lost.buckets,
        lost.destination,
        f"{lost.state}: {status}{lost.reason}",
    )


@dataclass(frozen=True, slots=True)
class _Commands:
    """The fewest commands that fill gaps, of the zones and datasets that were asked about."""

    zones: Sequence[str]
    datasets: Sequence[str]
    options: Sequence[str]
    max_hours: int
    now: float

    def fetching(self, gaps: Iterable[Gap], names_of: Mapping[str, AbstractSet[str]]) -> Iterator[Gap]:
        """Gaps of what was not captured, with one backfill for all that it takes, and one for what goes by itself.

        names_of: the names of all zones or accounts that a dataset is collected of.
        """
        of_causes: dict[frozenset[Cause], list[Gap]] = {_FETCHED_WHEN_ASKED: [], FETCHED_BY_ITSELF: []}
        for gap in gaps:
            for causes, alike in of_causes.items():
                if gap.cause in causes:
                    alike.append(gap)
                    break
            else:
                yield gap
        for alike in filter(None, of_causes.values()):
            first = min(gap.since for gap in alike)
            words = ["--from", instant(first), "--to", instant(max(gap.until for gap in alike))]
            # An hour for whoever reads it before it is run.
            hours = ceil((self.now - first) / 3600) + 1
            if hours > self.max_hours:
                words += ["--max-hours", str(hours)]
            everybody = frozenset().union(*(names_of[gap.dataset] for gap in alike))
            yield from self._filled(alike, "backfill", words, names_of.keys(), everybody)

    def sending(self, gaps: Iterable[Gap]) -> Iterator[Gap]:
        """Gaps of what was captured, with one resend for each destination and stretch of time without a break."""
        stretches: list[list[Gap]] = []
        until = 0
        for gap in sorted(gaps, key=lambda gap: (gap.destination, gap.since)):
            if stretches and gap.destination == stretches[-1][0].destination and gap.since <= until:
                stretches[-1].append(gap)
                until = max(until, gap.until)
            else:
                stretches.append([gap])
                until = gap.until
        for alike in stretches:
            # The window of facts may last still.
            last = min(max(gap.until for gap in alike), self.now)
            words = ["--since", instant(alike[0].since), "--until", instant(last)]
            yield from self._filled(alike, "resend", [*words, "--destination", str(alike[0].destination)])

    def _filled(
        self,
        gaps: Sequence[Gap],
        command: str,
        words: Sequence[str],
        all_datasets: Collection[str] = (),
        everybody: Collection[str] = (),
    ) -> Iterator[Gap]:
        datasets = _named("--dataset", {gap.dataset for gap in gaps}, all_datasets, self.datasets)
        zones = _named("--zone", {name for gap in gaps for name in gap.scopes}, everybody, self.zones)
        line = shlex.join(["cfrw", command, *self.options, *words, *datasets, *zones])
        return (replace(gap, command=line) for gap in gaps)


def _named(option: str, names: AbstractSet[str], everything: Collection[str], asked: Sequence[str]) -> list[str]:
    """The option for each name; for what was asked about where these are all of it, or too many to be named."""
    if len(names) > _MOST_NAMES or names == set(everything):
        return [word for name in asked for word in (option, name)]
    return [word for name in sorted(names) for word in (option, name)]
