"""Fetching: how windows of many zones are asked for, and asked for again when Cloudflare refuses a query.

A query covers up to ten zones and sixty windows, and one zone's mistake makes Cloudflare refuse all of it. So a refused
query is taken apart until the refusal concerns one zone, or is about a size that is small enough:

    the error names zones               those are dealt with, the others are asked again without them
    the error's path points to a zone   that zone is asked alone, and the others without it
    the error is about a size           half the zones, then half the time; what was learnt is remembered
    the error names nothing             half the zones, until one is left

Promises that every window of every zone asked ends in exactly one answer, and that a group of ten zones and sixty
windows costs at most 1 + RETRIES_PER_GROUP queries (where smaller limits were learnt: as many as those require, and
RETRIES_PER_GROUP). What Cloudflare failed to answer is not asked again: when to try again is for the caller to say.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

from worker.clock import Clock
from worker.cloudflare.catalogue import Dataset, Grain
from worker.cloudflare.client import Answer, Refused
from worker.cloudflare.decode import Answers
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.limits import Limits
from worker.cloudflare.query import Source, WindowsQuery
from worker.cloudflare.rows import Samples
from worker.cloudflare.scope import Zone

# Halving ten zones down to single ones takes 18 queries more: 2 + 4 + 8, and 4 for the groups of three that end as two
# and one. A few more find out about a field or a window.
RETRIES_PER_GROUP = 24
_TOO_MANY_QUERIES = ApiFailure(
    ErrorKind.REFUSED, f"not asked: the group of zones had its {RETRIES_PER_GROUP} further queries after refused ones"
)
# After so many queries in a row without an answer, Cloudflare is not there: three deadlines of 30 s are enough to know.
_QUERIES_WITHOUT_ANSWER = 3

# About the size of the query, whatever zone the error happens to name.
_SIZE_KINDS = frozenset(
    {ErrorKind.COMPLEXITY, ErrorKind.COST, ErrorKind.PAGE, ErrorKind.TOO_LARGE, ErrorKind.WINDOW, ErrorKind.ZONES}
)
# About one zone, even where the error does not say which.
_ZONE_KINDS = frozenset(
    {ErrorKind.AUTH_SCOPE, ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.REFUSED, ErrorKind.RETENTION}
)


@dataclass(frozen=True, slots=True)
class Answered:
    """Final numbers of one zone.

    windows: the samples of every window answered, by its start in unix seconds, oldest first; a window without
             traffic is there, with zeros.
    dropped: fields that the zone's plan denies, as `settings.availableFields` names them; their metrics are absent.
    """

    zone: Zone
    windows: Mapping[int, Samples]
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failed:
    """Windows of one zone that were not answered, all for the same reason.

    starts: the windows' starts in unix seconds, contiguous.
    With kind RETENTION and a `bound_seconds`, a window that starts longer ago than that cannot be had any more.
    """

    zone: Zone
    starts: range
    failure: ApiFailure


ZoneAnswer = Answered | Failed


@dataclass(frozen=True, slots=True)
class _Part:
    """What one query could ask: some zones, a run of windows."""

    zones: tuple[Zone, ...]
    starts: range

    def zone_halves(self) -> list["_Part"]:
        """Half the zones each; empty where it has only one."""
        middle = (len(self.zones) + 1) // 2
        halves = (self.zones[:middle], self.zones[middle:])
        return [_Part(zones, self.starts) for zones in halves] if all(halves) else []

    def time_halves(self) -> list["_Part"]:
        """Half the windows each, the older ones first; empty where it has only one."""
        middle = (len(self.starts) + 1) // 2
        halves = (self.starts[:middle], self.starts[middle:])
        return [_Part(self.zones, starts) for starts in halves] if all(halves) else []

    def without(self, zones: Sequence[Zone]) -> list["_Part"]:
        """The same for the other zones; empty where there are none."""
        gone = set(zones)
        others = tuple(zone for zone in self.zones if zone not in gone)
        return [_Part(others, self.starts)] if others else []


class Fetch:
    """One run of fetching: everything that is still to be asked, and everything that has been answered.

    send:   sends a query.
    decode: reads the body of its answer.
    """

    def __init__(
        self,
        dataset: Dataset,
        grain: Grain,
        *,
        send: Callable[[WindowsQuery], Awaitable[Answer | Refused]],
        decode: Callable[[bytes, WindowsQuery], Awaitable[Answers]],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._dataset = dataset
        self._grain = grain
        self._send = send
        self._decode = decode
        self._limits = limits
        self._clock = clock
        self._windows: dict[Zone, dict[int, Samples]] = {}
        self._failed: dict[Zone, list[Failed]] = {}
        self._unanswered = 0
        self._stopped: ApiFailure | None = None

    async def run(self, zones: Sequence[Zone], starts: range) -> list[ZoneAnswer]:
        """Ask for these windows of these zones, the oldest windows first."""
        # By tag, because the index in an error's path is then likely to mean the same zone here and at Cloudflare.
        everything = _Part(tuple(sorted(zones, key=lambda zone: zone.tag)), starts)
        for askable in everything.without(self._fail_denied(everything)):
            for group in self._within_limits(askable):
                await self._group(group)
        return [answer for zone in zones for answer in self._answers(zone)]

    def _answers(self, zone: Zone) -> list[ZoneAnswer]:
        answers: list[ZoneAnswer] = []
        if windows := self._windows.get(zone):
            dropped = self._limits.dropped_fields(self._grain, zone)
            answers.append(Answered(zone, {start: windows[start] for start in sorted(windows)}, dropped))
        return answers + sorted(self._failed.get(zone, []), key=lambda failed: failed.starts.start)

    def _within_limits(self, part: _Part) -> list[_Part]:
        """The part in pieces that one query each may ask for: oldest windows first, equal fields together."""
        windows = self._limits.windows_per_query(self._grain)
        spans = [part.starts[first : first + windows] for first in range(0, len(part.starts), windows)]

        def dropped(zone: Zone) -> list[str]:
            return sorted(self._limits.dropped_fields(self._grain, zone))

        alike = [tuple(same) for _, same in groupby(sorted(part.zones, key=dropped), key=dropped)]
        size = self._limits.zones_per_query(self._grain)
        chunks = [same[first : first + size] for same in alike for first in range(0, len(same), size)]
        return [_Part(chunk, span) for span in spans for chunk in chunks]

    async def _group(self, group: _Part) -> None:
        """Bring every window of a group to its answer, within the group's own allowance of queries."""
        pending = deque(self._within_limits(group))  # a group before may have taught a smaller size
        allowed = len(pending) + RETRIES_PER_GROUP
        while pending:
            part = pending.popleft()
            if self._stopped:
                self._fail(part.zones, part.starts, self._stopped)
                continue
            # What was learnt since the part was put aside counts for it too.
            denied = self._fail_denied(part)
            pieces = [piece for rest in part.without(denied) for piece in self._within_limits(rest)]
            if pieces != [part]:
                pending.extendleft(reversed(pieces))
                continue
            if not allowed:
                self._fail(part.zones, part.starts, _TOO_MANY_QUERIES)
                continue
            allowed -= 1
            pending.extendleft(reversed(await self._ask(part)))

    async def _ask(self, part: _Part) -> list[_Part]:
        """Send the query for a part and settle what its answer settles; the parts to be asked instead."""
        dropped = self._limits.dropped_fields(self._grain, part.zones[0])  # the same for all of its zones
        query = WindowsQuery((Source(self._dataset.without(dropped), self._grain),), part.zones, part.starts)
        match await self._send(query):
            case Answer(body):
                self._unanswered = 0
                self._take(part, await self._decode(body, query))
                return []
            case Refused(failures):
                return self._refused(part, failures)
            case never:
                assert_never(never)

    def _fail_denied(self, part: _Part) -> list[Zone]:
        """Settle the zones that there is no use in asking for at this moment."""
        denied = []
        for zone in part.zones:
            if denial := self._limits.denial(self._grain, zone):
                self._fail((zone,), part.starts, denial)
                denied.append(zone)
        return denied

    def _take(self, part: _Part, decoded: Answers) -> None:
        for zone in part.zones:
            found = decoded[zone.tag, self._dataset.name]
            if isinstance(found, ApiFailure):
                self._fail((zone,), part.starts, found)
            else:
                self._windows.setdefault(zone, {}).update(found)

    def _refused(self, part: _Part, failures: Sequence[ApiFailure]) -> list[_Part]:
        blamed: dict[Zone, list[ApiFailure]] = {}
        for failure in failures:
            culprits = _culprits(part, failure)
            if self._concerns_everything(failure, culprits):
                self._stopped = failure
                self._fail(part.zones, part.starts, failure)
                return []
            for zone in culprits:
                blamed.setdefault(zone, []).append(failure)
        if blamed:
            again = [retry for zone, reasons in blamed.items() for retry in self._blame(zone, part.starts, reasons)]
            return part.without(tuple(blamed)) + again
        return self._take_apart(part, failures[0])

    def _concerns_everything(self, failure: ApiFailure, culprits: Sequence[Zone]) -> bool:
        """Whether asking for anything else is in vain for now."""
        match failure.kind:
            case ErrorKind.TOKEN | ErrorKind.ENDPOINT:
                return True
            case ErrorKind.NETWORK | ErrorKind.SERVER if not culprits and failure.zone_index is None:
                self._unanswered += 1
                return self._unanswered >= _QUERIES_WITHOUT_ANSWER
            case _:
                self._unanswered = 0
                return False

    def _blame(self, zone: Zone, starts: range, reasons: Sequence[ApiFailure]) -> list[_Part]:
        """Deal with errors that concern one zone; what can be asked for it all the same."""
        reason = reasons[0]
        match reason.kind:
            case ErrorKind.PLAN_FIELD:
                learnt = [
                    self._limits.learn_denied_field(self._dataset, self._grain, zone, each.field)
                    for each in reasons
                    if each.field
                ]
                if any(learnt):
                    return [_Part((zone,), starts)]
            case ErrorKind.RETENTION if reason.bound_seconds is not None:
                oldest = self._clock.now() - reason.bound_seconds
                lost = sum(start < oldest for start in starts)
                if 0 < lost < len(starts):
                    self._fail((zone,), starts[:lost], reason)
                    return [_Part((zone,), starts[lost:])]
            case _:
                pass
        self._limits.learn_denial(self._grain, zone, reason)
        self._fail((zone,), starts, reason)
        return []

    def _take_apart(self, part: _Part, failure: ApiFailure) -> list[_Part]:
        """Deal with an error that names no zone of the part."""
        index = failure.zone_index
        if failure.kind in _SIZE_KINDS:
            self._learn_size(part, failure)
            smaller = self._within_limits(part)
            again = smaller if len(smaller) > 1 else _smaller(part, failure.kind)
        elif index is not None and index < len(part.zones):
            named = (part.zones[index],)
            again = [*part.without(named), _Part(named, part.starts)]
        else:
            again = part.zone_halves() if failure.kind in _ZONE_KINDS else []
        if not again:
            self._fail(part.zones, part.starts, failure)
        return again

    def _learn_size(self, part: _Part, failure: ApiFailure) -> None:
        match failure.kind:
            case ErrorKind.COMPLEXITY | ErrorKind.ZONES if len(part.zones) > 1:
                self._limits.learn_zones_per_query(self._grain, len(part.zones) // 2)
            case ErrorKind.WINDOW if failure.bound_seconds is not None:
                self._limits.learn_span(self._grain, failure.bound_seconds)
            case _:
                pass

    def _fail(self, zones: Sequence[Zone], starts: range, failure: ApiFailure) -> None:
        for zone in zones:
            self._failed.setdefault(zone, []).append(Failed(zone, starts, failure))


def _smaller(part: _Part, kind: ErrorKind) -> list[_Part]:
    """A part in halves of the size that an error is about; empty where it cannot be smaller."""
    if kind in (ErrorKind.WINDOW, ErrorKind.PAGE):
        return part.time_halves()
    return part.zone_halves() or part.time_halves()


def _culprits(part: _Part, failure: ApiFailure) -> list[Zone]:
    """The zones of the part that an error is certainly about."""
    if failure.kind in _SIZE_KINDS:
        return []
    named = [zone for zone in part.zones if zone.tag in failure.zone_tags]
    if named or len(part.zones) > 1:
        return named
    return list(part.zones) if failure.zone_index is not None or failure.kind in _ZONE_KINDS else []
