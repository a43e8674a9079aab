"""What is still to be collected, and what to ask for next. Pure: a view of the ledger, and the rules of asking.

Every dataset of every scope has windows that are due and have no bucket. The oldest are asked for first; what is asked
together has the same windows outstanding. A scope whose last query had no answer comes last, and some of them alone:
what was wrong may be one of them, and it shall not cost its neighbours their windows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from worker.cloudflare import WINDOWS_PER_QUERY, ZONES_PER_QUERY, Dataset, Scope, ScopeKind, counted_by

# Of the scopes that had no answer so many are asked alone in a round: a tenth of the quota of five minutes. The others
# travel together, so that an outage of hours, which is no scope's fault, does not make a query of each.
_ASKED_ALONE = 30


class Runs:
    """Starts of windows, ascending, kept as runs without a gap: a year of minutes is one of them."""

    def __init__(self, runs: Iterable[range] = ()) -> None:
        """`runs` are ascending, do not overlap, and have the same step."""
        self._runs: list[range] = []
        for run in runs:
            self.append(run)

    def append(self, run: range) -> None:
        """Add windows behind all others."""
        if not run:
            return
        if self._runs and self._runs[-1].stop == run.start:
            run = range(self._runs.pop().start, run.stop, run.step)
        self._runs.append(run)

    def discard(self, starts: Iterable[int]) -> None:
        """Take these out, as far as they are there."""
        for gone in sorted(starts):
            for at, run in enumerate(self._runs):
                if run.start > gone:
                    break
                if gone in run:
                    index = run.index(gone)
                    self._runs[at : at + 1] = [part for part in (run[:index], run[index + 1 :]) if part]
                    break

    def discard_before(self, first: int) -> None:
        """Take out what starts before this moment."""
        kept = (range(max(run.start, -(-first // run.step) * run.step), run.stop, run.step) for run in self._runs)
        self._runs = [run for run in kept if run]

    @property
    def first_run(self) -> range:
        """The oldest windows up to the first gap; empty where there is none."""
        return self._runs[0] if self._runs else range(0)

    def before(self, moment: float) -> "Runs":
        """What starts before this moment."""
        return Runs(run[: len(range(run.start, math.ceil(moment), run.step))] for run in self._runs)

    def __iter__(self) -> Iterator[range]:
        """The runs, oldest first."""
        return iter(self._runs)

    def __len__(self) -> int:
        """How many windows they are together."""
        return sum(map(len, self._runs))


@dataclass(slots=True)
class Outstanding:
    """What is outstanding of one dataset of one scope.

    windows:    its windows.
    held_until: monotonic time until which it is not asked for.
    is_failing: whether the last query brought an error for it.
    unanswered: above 0 when the last query with it had no answer; how often in a row that was so although the scope was
                asked alone and Cloudflare answered other queries.
    """

    windows: Runs
    held_until: float = -math.inf
    is_failing: bool = False
    unanswered: int = 0


@dataclass(slots=True)
class Worklist:
    """What is outstanding of one dataset, by the scope's tag.

    delay_seconds: how long after its end a window of it is final.
    looked_at:     the windows that were final and within the replay bound when the clock was last looked at.
    """

    dataset: Dataset
    width_seconds: int
    delay_seconds: int
    looked_at: range = range(0)
    outstanding: dict[str, Outstanding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """Scopes and datasets that are asked together for the same windows; `is_retry` when they had no answer before."""

    worklists: tuple[Worklist, ...]
    scopes: tuple[Scope, ...]
    starts: range
    is_retry: bool

    def outstanding(self) -> Iterable[Outstanding]:
        """What is asked for, per dataset and scope."""
        return (worklist.outstanding[scope.tag] for worklist in self.worklists for scope in self.scopes)


def next_round(
    worklists: Sequence[Worklist], scopes: Mapping[str, Scope], monotonic: float, *, are_accounts_apart: bool = False
) -> list[Query]:
    """Queries that ask every scope once for the oldest outstanding windows of its datasets, the oldest of all first.

    are_accounts_apart: whether a query may ask for zones of one account only.
    """
    # By what can travel together: datasets of a scope with the same oldest window, then scopes with the same datasets.
    ready: list[tuple[bool, int, ScopeKind, tuple[int, ...], str, int, Scope]] = []
    for scope in scopes.values():
        of_scope: dict[tuple[bool, int], list[int]] = {}
        lengths: dict[tuple[bool, int], int] = {}
        for number, worklist in enumerate(worklists):
            found = worklist.outstanding.get(scope.tag)
            if found is None or found.held_until > monotonic or not (run := found.windows.first_run):
                continue
            key = (found.unanswered > 0, run.start)
            of_scope.setdefault(key, []).append(number)
            lengths[key] = min(len(run), lengths.get(key, WINDOWS_PER_QUERY))
        apart = counted_by(scope) if are_accounts_apart else ""
        ready += [
            (is_retry, start, scope.kind, tuple(numbers), apart, lengths[is_retry, start], scope)
            for (is_retry, start), numbers in of_scope.items()
        ]
    # Scopes with runs of the same length side by side: a query asks for the shortest of its scopes' runs.
    ready.sort(key=lambda entry: entry[:6])
    queries: list[Query] = []
    alone = 0
    for (is_retry, start, kind, numbers, _), group in groupby(ready, key=lambda entry: entry[:5]):
        alike = list(group)
        asked = tuple(worklists[number] for number in numbers)
        width_seconds = asked[0].width_seconds
        while alike:
            alone += is_retry
            most = 1 if kind is ScopeKind.ACCOUNT or (is_retry and alone <= _ASKED_ALONE) else ZONES_PER_QUERY
            together, alike = alike[:most], alike[most:]
            run = range(start, start + together[0][5] * width_seconds, width_seconds)
            queries.append(Query(asked, tuple(entry[6] for entry in together), run, is_retry))
    return queries
