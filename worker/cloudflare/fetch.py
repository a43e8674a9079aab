"""Fetching: how windows of datasets and scopes are asked for, and asked for again when Cloudflare refuses a query.

A query covers up to five datasets of ten zones, or of one account, and a run of windows; and a mistake in one of them
makes Cloudflare refuse all of it. So a refused query is taken apart until the refusal concerns one dataset of one
scope, or is about a size that is small enough:

    the error names its culprits         those are dealt with, the others are asked again without them
    the error may be about some of them  those are asked for apart from the others
    the error is about a size            what was learnt is remembered; half the datasets, half the scopes, half the
                                         time
    the error names nothing              half the datasets, until one is left; then half the scopes, except where
                                         Cloudflare just failed
    a page is full                       half the time, for the datasets and scopes that it is full of

Promises that every window of every dataset and scope asked ends in exactly one answer, that none of them loses its
windows for what another one did, and that a group (what a first query covers) costs at most 1 + RETRIES_PER_GROUP
queries (where smaller limits were learnt: as many as those require, and RETRIES_PER_GROUP). What Cloudflare failed to
answer is not asked again: when to try again is for the caller to say.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from worker.clock import Clock
from worker.cloudflare.blame import blame, named_sources, names_nothing
from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.cloudflare.client import Answer, Refused
from worker.cloudflare.decode import Answers
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.limits import Limits
from worker.cloudflare.part import Pair, Part, pieces
from worker.cloudflare.query import Source, WindowsQuery
from worker.cloudflare.rows import Samples
from worker.cloudflare.scope import Scope

# Halving ten datasets down to single ones takes 18 queries more: 2 + 4 + 8, and 4 for the groups of three. Halving the
# ten zones of one of them takes 18, too. A few more find out about a field or a window. Where more than that is wrong,
# what was learnt makes the next groups smaller.
RETRIES_PER_GROUP = 42
# After so many queries in a row without an answer, Cloudflare is not there: three deadlines of 30 s are enough to know.
_QUERIES_WITHOUT_ANSWER = 3

# About the size of the query, whatever the error happens to name.
_SIZE_KINDS = frozenset(
    {ErrorKind.COMPLEXITY, ErrorKind.COST, ErrorKind.PAGE, ErrorKind.TOO_LARGE, ErrorKind.WINDOW, ErrorKind.ZONES}
)
# About the width of the windows or the rows in them: fewer scopes are no help.
_TIME_KINDS = frozenset({ErrorKind.PAGE, ErrorKind.WINDOW})
# About one scope or its answer, even where the error does not say which.
_SCOPE_KINDS = frozenset(
    {
        ErrorKind.AUTH_SCOPE,
        ErrorKind.MALFORMED,
        ErrorKind.PLAN_DATASET,
        ErrorKind.PLAN_FIELD,
        ErrorKind.REFUSED,
        ErrorKind.RETENTION,
    }
)


@dataclass(frozen=True, slots=True)
class Answered:
    """Final numbers of one dataset and scope.

    windows: the samples of every window answered, by its start in unix seconds, oldest first; a window without
             traffic is there, with zeros or empty.
    dropped: fields that the scope's plan denies, as `settings.availableFields` names them; their metrics are absent.
    """

    dataset: Dataset
    scope: Scope
    windows: Mapping[int, Samples]
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failed:
    """Windows of one dataset and scope that were not answered, all for the same reason.

    starts: the windows' starts in unix seconds, contiguous.
    With kind RETENTION and a `bound_seconds`, a window that starts longer ago than that cannot be had any more.
    """

    dataset: Dataset
    scope: Scope
    starts: range
    failure: ApiFailure


ScopeAnswer = Answered | Failed


class Fetch:
    """One run of fetching: everything that is still to be asked, and everything that has been answered.

    send:   sends a query.
    decode: reads the body of its answer.
    """

    def __init__(
        self,
        *,
        send: Callable[[WindowsQuery], Awaitable[Answer | Refused]],
        decode: Callable[[bytes, WindowsQuery], Awaitable[Answers | ApiFailure]],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._send = send
        self._decode = decode
        self._limits = limits
        self._clock = clock
        self._windows: dict[Pair, dict[int, Samples]] = {}
        self._failed: dict[Pair, list[Failed]] = {}
        self._unanswered = 0
        self._stopped: ApiFailure | None = None
        self._refusal: ApiFailure | None = None  # the last one

    async def run(self, sources: Sequence[Source], scopes: Sequence[Scope], starts: range) -> list[ScopeAnswer]:
        """Ask for these windows of these datasets and scopes, the oldest windows first."""
        # By tag, because the index in an error's path is then likely to mean the same zone here and at Cloudflare.
        everything = Part(tuple(sources), tuple(sorted(scopes, key=lambda scope: scope.tag)), starts)
        for askable in self._askable(everything):
            for group in pieces(askable, self._limits):
                await self._group(group)
        return [answer for scope in scopes for source in sources for answer in self._answers(source, scope)]

    def _answers(self, source: Source, scope: Scope) -> list[ScopeAnswer]:
        answers: list[ScopeAnswer] = []
        pair = (source.dataset.name, scope)
        if windows := self._windows.get(pair):
            dropped = self._limits.dropped_fields(source, scope)
            in_order = {start: windows[start] for start in sorted(windows)}
            answers.append(Answered(source.dataset, scope, in_order, dropped))
        return answers + sorted(self._failed.get(pair, []), key=lambda failed: failed.starts.start)

    async def _group(self, group: Part) -> None:
        """Bring every window of a group to its answer, within the group's own allowance of queries."""
        pending = deque(pieces(group, self._limits))  # a group before may have taught a smaller size
        # What is wrong with a single dataset of a single scope, perhaps window by window, waits for the innocent.
        culprits: deque[Part] = deque()
        allowed = len(pending) + RETRIES_PER_GROUP
        while queue := pending or culprits:
            part = queue.popleft()
            if self._stopped:
                self._fail(part, self._stopped)
                continue
            # What was learnt since the part was put aside counts for it too.
            smaller = [piece for askable in self._askable(part) for piece in pieces(askable, self._limits)]
            if smaller != [part]:
                queue.extendleft(reversed(smaller))
                continue
            if not allowed:
                self._fail(part, self._too_many_queries())
                continue
            allowed -= 1
            again = await self._ask(part)
            if queue is pending and part.is_single:
                culprits.extend(again)
            else:
                queue.extendleft(reversed(again))

    def _too_many_queries(self) -> ApiFailure:
        text = f"not asked: {RETRIES_PER_GROUP} queries of its group were refused, the last one for: "
        return ApiFailure(ErrorKind.REFUSED, one_line(text + (self._refusal.message if self._refusal else "")))

    async def _ask(self, part: Part) -> list[Part]:
        """Send the query for a part and settle what its answer settles; the parts to be asked instead."""
        sources = tuple(self._narrowed(source, part) for source in part.sources)
        is_through_account = self._limits.are_accounts_apart and sources[0].dataset.scope is ScopeKind.ZONE
        account = part.scopes[0].account_tag if is_through_account else ""  # the same for all of its scopes
        query = WindowsQuery(sources, part.scopes, part.starts, account)
        match await self._send(query):
            case Answer(body):
                decoded = await self._decode(body, query)
                if isinstance(decoded, ApiFailure):
                    return self._refused(part, [decoded])
                self._unanswered = 0
                return self._take(part, decoded)
            case Refused(failures):
                return self._refused(part, failures)
            case never:
                assert_never(never)

    def _narrowed(self, source: Source, part: Part) -> Source:
        dropped = self._limits.dropped_fields(source, part.scopes[0])  # the same for all of its scopes
        return Source(source.dataset.without(dropped), source.grain, self._limits.page_rows(source, part.scopes[0]))

    def _askable(self, part: Part) -> list[Part]:
        """The part without what there is no use in asking for at this moment, which is settled."""
        return [recent for rest in part.without(self._fail_denied(part)) for recent in self._fail_expired(rest)]

    def _fail_expired(self, part: Part) -> list[Part]:
        """Settle the windows that are known to be kept no longer; what is left."""
        now = self._clock.now()
        left: dict[range, set[Pair]] = {}
        for source, scope in part.pairs():
            starts = part.starts
            if (known := self._limits.retention(source, scope)) and known.bound_seconds is not None:
                lost = sum(start < now - known.bound_seconds for start in starts)
                if lost:
                    self._fail(Part((source,), (scope,), starts[:lost]), known)
                starts = starts[lost:]
            left.setdefault(starts, set()).add((source.dataset.name, scope))
        if left.keys() == {part.starts}:
            return [part]
        return [replace(rest, starts=starts) for starts, pairs in left.items() if starts for rest in part.only(pairs)]

    def _fail_denied(self, part: Part) -> set[Pair]:
        """Settle what is denied at this moment."""
        denied = set()
        for source, scope in part.pairs():
            if denial := self._limits.denial(source, scope):
                self._fail(Part((source,), (scope,), part.starts), denial)
                denied.add((source.dataset.name, scope))
        return denied

    def _take(self, part: Part, answers: Answers) -> list[Part]:
        """Keep what was answered; what is to be asked in smaller pieces because its page was full."""
        full: set[Pair] = set()
        for source in part.sources:
            self._limits.learn_answered(source)
        for source, scope in part.pairs():
            found = answers[scope.tag, source.dataset.name]
            if not isinstance(found, ApiFailure):
                self._windows.setdefault((source.dataset.name, scope), {}).update(found)
                if source.dataset.labels:
                    self._limits.learn_rows_per_window(source, max(samples.rows for samples in found.values()))
            elif found.kind is ErrorKind.TRUNCATED and source.dataset.labels:
                full.add((source.dataset.name, scope))
                rows = -(-self._limits.page_rows(source, scope) // len(part.starts))
                self._limits.learn_rows_per_window(source, rows)
            else:
                self._fail(Part((source,), (scope,), part.starts), found)
        return [again for rest in part.only(full) for again in self._less_time(rest)]

    def _less_time(self, part: Part) -> list[Part]:
        """The part in shorter spans, after it did not fit its page; fewer scopes are no help, as each has its own."""
        smaller = pieces(part, self._limits)
        again = smaller if len(smaller) > 1 else part.time_halves()
        if not again:
            for source in part.sources:
                most = self._limits.page_rows(source, part.scopes[0])
                text = (
                    f"a window has more rows than the {most} that Cloudflare answers: "
                    f"set a smaller CF_BUCKET_SECONDS, or leave {source.dataset.name} out of CF_DATASETS"
                )
                self._fail(replace(part, sources=(source,)), ApiFailure(ErrorKind.TRUNCATED, text))
        return again

    # --- refused queries -----------------------------------------------------------------------------------------

    def _refused(self, part: Part, failures: Sequence[ApiFailure]) -> list[Part]:
        self._refusal = failures[0]
        guilty: dict[Pair, list[ApiFailure]] = {}
        for failure in failures:
            if self._concerns_everything(part, failure):
                self._stopped = failure
                self._fail(part, failure)
                return []
            if failure.kind in _SIZE_KINDS or (failure.kind is ErrorKind.RATE and names_nothing(failure)):
                continue
            blamed = blame(part, failure)
            if blamed.is_certain:
                for pair in blamed.pairs:
                    guilty.setdefault(pair, []).append(failure)
        if not guilty:
            return self._take_apart(part, failures[0])
        again = [
            retry
            for one in part.only(guilty)
            for source, scope in one.pairs()
            for retry in self._settle(source, scope, part.starts, guilty[source.dataset.name, scope])
        ]
        return part.without(guilty) + again

    def _concerns_everything(self, part: Part, failure: ApiFailure) -> bool:
        """Whether asking for anything else is in vain for now."""
        match failure.kind:
            case ErrorKind.TOKEN | ErrorKind.ENDPOINT:
                return True
            case ErrorKind.NETWORK | ErrorKind.SERVER if names_nothing(failure):
                # With several datasets it may be about one of them, which is found out first.
                if len(part.sources) == 1:
                    self._limits.learn_unanswered(part.sources[0])
                    self._unanswered += 1
                return self._unanswered >= _QUERIES_WITHOUT_ANSWER
            case _:
                self._unanswered = 0
                return False

    def _settle(self, source: Source, scope: Scope, starts: range, reasons: Sequence[ApiFailure]) -> list[Part]:
        """Deal with errors about one dataset of one scope; what can be asked for it all the same."""
        reason = reasons[0]
        one = Part((source,), (scope,), starts)
        match reason.kind:
            case ErrorKind.PLAN_FIELD:
                learnt = [self._limits.learn_denied_field(source, scope, each.field) for each in reasons if each.field]
                if any(learnt):
                    return [one]
            case ErrorKind.RETENTION if reason.bound_seconds is not None:
                self._limits.learn_retention(source, scope, reason)
                if (recent := self._fail_expired(one)) != [one]:
                    return recent
            case _:
                pass
        self._limits.learn_denial(source, scope, reason)
        self._fail(one, reason)
        return []

    def _take_apart(self, part: Part, failure: ApiFailure) -> list[Part]:
        """Deal with an error that is certainly about nothing in particular."""
        again = self._smaller(part, failure) if failure.kind in _SIZE_KINDS else _suspects_apart(part, failure)
        if not again:
            self._fail(part, failure)
        return again

    def _smaller(self, part: Part, failure: ApiFailure) -> list[Part]:
        """The part in pieces of the size that an error is about; empty where it cannot be smaller."""
        sources = named_sources(part, failure) or part.sources
        if failure.kind in _TIME_KINDS and len(sources) < len(part.sources):
            named = {(source.dataset.name, scope) for source in sources for scope in part.scopes}
            return [*part.without(named), *part.only(named)]
        if self._learn_size(part, failure):
            smaller = pieces(part, self._limits)
            if len(smaller) > 1 or failure.kind is ErrorKind.PAGE:
                return smaller
        if failure.kind in _TIME_KINDS:
            return part.source_halves() or part.time_halves()
        return part.source_halves() or part.scope_halves() or part.time_halves()

    def _learn_size(self, part: Part, failure: ApiFailure) -> bool:
        """Remember what the error says about sizes; whether that may help."""
        nodes = len(part.sources) * len(part.scopes)
        match failure.kind:
            case ErrorKind.COMPLEXITY if nodes > 1:
                self._limits.learn_nodes_per_query(nodes // 2)
            case ErrorKind.ZONES if len(part.scopes) > 1:
                self._limits.learn_zones_per_query(len(part.scopes) // 2)
            case ErrorKind.WINDOW if failure.bound_seconds is not None and len(part.sources) == 1:
                self._limits.learn_span(part.sources[0], part.scopes[0], failure.bound_seconds)
            case ErrorKind.PAGE if failure.bound_rows is not None and len(part.sources) == 1:
                return self._limits.learn_page_rows(part.sources[0], part.scopes[0], failure.bound_rows)
            case _:
                return False
        return True

    def _fail(self, part: Part, failure: ApiFailure) -> None:
        for source, scope in part.pairs():
            failed = Failed(source.dataset, scope, part.starts, failure)
            self._failed.setdefault((source.dataset.name, scope), []).append(failed)


def _suspects_apart(part: Part, failure: ApiFailure) -> list[Part]:
    """What the error may be about apart from the rest; where that is everything, in halves. Empty where that is vain.

    A permission is usually a scope's, whatever is asked for it; anything else rather a dataset's.
    """
    suspects: Collection[Pair] = blame(part, failure).pairs
    if rest := part.without(suspects):
        return [*rest, *part.only(suspects)]
    if failure.kind is ErrorKind.RATE:
        return []
    by_scope = part.scope_halves() if failure.kind in _SCOPE_KINDS else []
    if failure.kind is ErrorKind.AUTH_SCOPE:
        return by_scope or part.source_halves()
    return part.source_halves() or by_scope
