"""Parts: what one query could ask for, and how that is cut into smaller ones. Pure."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from worker.cloudflare.limits import Allowed, Limits
from worker.cloudflare.query import NODES_PER_QUERY, ROWS_PER_QUERY, Source
from worker.cloudflare.scope import Scope, counted_by

Pair = tuple[str, Scope]
"""A dataset's name and a scope: what an answer, or a failure, is about."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some datasets of some scopes, all of one kind, in a run of windows.

    sources: with all their fields.
    starts:  the windows' starts in unix seconds.
    """

    sources: tuple[Source, ...]
    scopes: tuple[Scope, ...]
    starts: range

    def pairs(self) -> Iterator[tuple[Source, Scope]]:
        """Every dataset of every scope."""
        return ((source, scope) for source in self.sources for scope in self.scopes)

    @property
    def is_single(self) -> bool:
        """Whether it is one dataset of one scope."""
        return len(self.sources) == len(self.scopes) == 1

    def source_halves(self) -> list["Part"]:
        """Half the datasets each; empty where there is only one."""
        middle = (len(self.sources) + 1) // 2
        halves = (self.sources[:middle], self.sources[middle:])
        return [Part(sources, self.scopes, self.starts) for sources in halves] if all(halves) else []

    def scope_halves(self) -> list["Part"]:
        """Half the scopes each; empty where there is only one."""
        middle = (len(self.scopes) + 1) // 2
        halves = (self.scopes[:middle], self.scopes[middle:])
        return [Part(self.sources, scopes, self.starts) for scopes in halves] if all(halves) else []

    def time_halves(self) -> list["Part"]:
        """Half the windows each, the older ones first; empty where there is only one."""
        middle = (len(self.starts) + 1) // 2
        halves = (self.starts[:middle], self.starts[middle:])
        return [Part(self.sources, self.scopes, starts) for starts in halves] if all(halves) else []

    def without(self, pairs: Collection[Pair]) -> list["Part"]:
        """The rest, in as many parts as it takes: scopes of which the same datasets are left stay together."""
        return self._of({(source.dataset.name, scope) for source, scope in self.pairs()}.difference(pairs))

    def only(self, pairs: Collection[Pair]) -> list["Part"]:
        """These pairs of it, likewise."""
        return self._of({(source.dataset.name, scope) for source, scope in self.pairs()}.intersection(pairs))

    def _of(self, pairs: Collection[Pair]) -> list["Part"]:
        alike: dict[tuple[str, ...], list[Scope]] = {}
        for scope in self.scopes:
            names = tuple(source.dataset.name for source in self.sources if (source.dataset.name, scope) in pairs)
            alike.setdefault(names, []).append(scope)
        return [
            Part(tuple(source for source in self.sources if source.dataset.name in names), tuple(scopes), self.starts)
            for names, scopes in alike.items()
            if names
        ]


def pieces(part: Part, limits: Limits) -> list[Part]:
    """The part in pieces that one query each may ask for, the oldest windows first; itself where it is one.

    Datasets whose queries may span as many windows, and scopes whose plans allow queries as large and deny the same
    fields, go together; zones of different accounts only where Cloudflare does not count each account by itself. A
    dataset that lately had no answer is asked for alone, after the others.
    """
    found: list[tuple[bool, Part]] = []
    for alike in _scopes_of_a_size(part, limits):
        for is_unanswered, windows, chunk in _sources_together(part, alike[0], limits):
            for scopes in _scopes_together(alike, chunk, limits):
                rows = len(scopes) * sum(map(limits.rows_per_window, chunk))
                span = max(1, min(windows, ROWS_PER_QUERY // rows))
                found += [
                    (is_unanswered, Part(chunk, scopes, part.starts[start : start + span]))
                    for start in range(0, len(part.starts), span)
                ]
    return [piece for _, piece in sorted(found, key=lambda entry: (entry[0], entry[1].starts.start))]


def _scopes_of_a_size(part: Part, limits: Limits) -> Iterable[tuple[Scope, ...]]:
    """The scopes that may be asked for as many of these windows, and as many rows, of each of the datasets."""
    sizes: dict[tuple[Allowed, ...], tuple[tuple[int, int], ...]] = {}
    alike: dict[tuple[tuple[int, int], ...], list[Scope]] = {}
    for scope in part.scopes:
        allowed = tuple(limits.allowed(source, scope) for source in part.sources)
        if allowed not in sizes:
            sizes[allowed] = tuple(
                (
                    min(len(part.starts), limits.windows_per_query(source, scope)),
                    # Without labels, a row for each window is asked for, and one more.
                    limits.page_rows(source, scope) if source.dataset.labels else 0,
                )
                for source in part.sources
            )
        alike.setdefault(sizes[allowed], []).append(scope)
    return map(tuple, alike.values())


def _sources_together(part: Part, scope: Scope, limits: Limits) -> Iterator[tuple[bool, int, tuple[Source, ...]]]:
    """Datasets that one query may ask for, the windows that it may span, and whether they lately had no answer."""
    alike: dict[tuple[bool, int], list[Source]] = {}
    for source in part.sources:
        windows = min(len(part.starts), limits.windows_per_query(source, scope))
        alike.setdefault((limits.is_unanswered(source), windows), []).append(source)
    for (is_unanswered, windows), sources in alike.items():
        most = 1 if is_unanswered else min(NODES_PER_QUERY, limits.nodes_per_query())
        for first in range(0, len(sources), most):
            yield is_unanswered, windows, tuple(sources[first : first + most])


def _scopes_together(
    scopes: tuple[Scope, ...], sources: tuple[Source, ...], limits: Limits
) -> Iterator[tuple[Scope, ...]]:
    alike: dict[tuple[str, tuple[frozenset[str], ...]], list[Scope]] = {}
    for scope in scopes:
        apart = counted_by(scope) if limits.are_accounts_apart else ""
        dropped = tuple(limits.dropped_fields(source, scope) for source in sources)
        alike.setdefault((apart, dropped), []).append(scope)
    most = min(limits.scopes_per_query(sources[0].dataset.scope), max(1, limits.nodes_per_query() // len(sources)))
    return (tuple(same[first : first + most]) for same in alike.values() for first in range(0, len(same), most))
