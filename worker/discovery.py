"""What each zone and account may be asked for, by its own `settings`: looked at once a day, and after a denial.

Promises: what is denied is written into the ledger with its reason and not asked for until the next look; a scope that
could not be looked at is asked for everything. A fleet of thousands is looked at in steps, between which recent windows
are collected. Knows nothing of windows.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import assert_never

from worker.clock import Clock
from worker.cloudflare import (
    ZONES_PER_QUERY,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    Narrowed,
    Priority,
    Scope,
    ScopeKind,
)
from worker.ledger import Ledger, record_denials
from worker.observe import get_logger

# Plans change rarely, and Cloudflare tells a change by a denial at once.
REFRESH_SECONDS = 86_400.0
AGAIN_SECONDS = 3600.0
"""After a denial or a refusal that the last look did not foresee, or a look that failed."""
# Groups of ten zones, or single accounts, that are looked at at once, to hide the latency.
_GROUPS_AT_ONCE = 4
# In a step: half a minute at the pace of what can wait (`worker.cloudflare.quota`), which recent windows do not notice,
# and a few seconds where it is the first look.
_GROUPS_IN_A_STEP = 24

log = get_logger()


class Discovery:
    """What the scopes are entitled to, as far as it is known."""

    def __init__(
        self, datasets: Sequence[Dataset], width_seconds: int, *, api: CloudflareApi, ledger: Ledger, clock: Clock
    ) -> None:
        self._of_kind = {kind: [each for each in datasets if each.scope is kind] for kind in ScopeKind}
        self._width_seconds = width_seconds
        self._api = api
        self._ledger = ledger
        self._clock = clock
        self._due_at: dict[str, float] = {}  # by tag, on the monotonic clock
        self._denied: dict[tuple[str, str], str] = {}

    def is_denied(self, dataset: Dataset, tag: str) -> bool:
        """Whether there is no use in asking the scope for the dataset."""
        return (dataset.name, tag) in self._denied

    def is_known(self, tag: str) -> bool:
        """Whether the scope was looked at."""
        return tag in self._due_at

    def note_denial(self, tag: str) -> None:
        """Cloudflare denied something that was asked for, or does not know it any more: look again soon."""
        soon = self._clock.monotonic() + AGAIN_SECONDS
        self._due_at[tag] = min(soon, self._due_at.get(tag, soon))

    async def step(self, scopes: Mapping[str, Scope]) -> bool:
        """Look at some of the scopes that are due for it; whether all of them have been looked at.

        Of others everything is forgotten: one that comes back may have been looked at with another token meanwhile.
        """
        if others := self._due_at.keys() - scopes.keys():
            self._due_at = {tag: due_at for tag, due_at in self._due_at.items() if tag not in others}
            self._denied = {pair: reason for pair, reason in self._denied.items() if pair[1] not in others}
        now = self._clock.monotonic()
        due = [scope for scope in scopes.values() if self._due_at.get(scope.tag, now) <= now]
        # Zones of an account side by side: where Cloudflare counts accounts, only those share a query.
        due.sort(key=lambda scope: (self.is_known(scope.tag), scope.kind, scope.account_tag, scope.tag))
        groups = islice(_groups(due), _GROUPS_IN_A_STEP)

        async def look_in_turn() -> None:
            for group in groups:
                await self._look_at(group)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_GROUPS_AT_ONCE, len(due))):
                tasks.create_task(look_in_turn())
        return all(self.is_known(tag) for tag in scopes)

    async def _look_at(self, group: Sequence[Scope]) -> None:
        datasets = self._of_kind[group[0].kind]
        # Nothing is collected of a scope before it was looked at: the first time, its newest windows wait for that.
        is_known = all(self.is_known(scope.tag) for scope in group)
        priority = Priority.DISCOVERY if is_known else Priority.LIVE
        verdicts = await self._api.discover(datasets, self._width_seconds, group, priority=priority)
        changes: dict[tuple[str, str], str | None] = {}
        unknown: dict[str, ApiFailure] = {}
        for pair, verdict in verdicts.items():
            match verdict:
                case Denied(reason=reason):
                    if self._denied.get(pair) != reason:
                        self._denied[pair] = changes[pair] = reason
                case Narrowed():
                    if not self.is_known(pair[1]) or pair in self._denied:
                        self._denied.pop(pair, None)
                        changes[pair] = None
                case ApiFailure():
                    unknown[pair[1]] = verdict
                case _:
                    assert_never(verdict)
        if changes:
            await self._ledger.write(record_denials, changes, self._clock.now())
        self._tell(group, changes)
        if unknown:
            failure = next(iter(unknown.values()))
            log.warning(
                "What zones or accounts are entitled to could not be read; they are asked for everything until then",
                scopes=len(unknown),
                kind=failure.kind,
                error=failure.message,
            )
        now = self._clock.monotonic()
        for scope in group:
            self._due_at[scope.tag] = now + (AGAIN_SECONDS if scope.tag in unknown else REFRESH_SECONDS)

    def _tell(self, group: Sequence[Scope], changes: Mapping[tuple[str, str], str | None]) -> None:
        """One line for each reason: a plan denies the same to many zones."""
        names = {scope.tag: scope.name for scope in group}
        by_reason: dict[str, list[tuple[str, str]]] = {}
        for pair, reason in changes.items():
            if reason is not None:
                by_reason.setdefault(reason, []).append(pair)
        for reason, pairs in by_reason.items():
            log.info(
                "A dataset is not collected, as it is denied",
                dataset=pairs[0][0],
                scopes=len({tag for _, tag in pairs}),
                first_scope=names[pairs[0][1]],
                reason=reason,
            )


def _groups(scopes: Sequence[Scope]) -> Iterable[tuple[Scope, ...]]:
    """As many as one query may ask for, all of one kind."""
    for kind in ScopeKind:
        size = ZONES_PER_QUERY if kind is ScopeKind.ZONE else 1
        alike = [scope for scope in scopes if scope.kind is kind]
        yield from (tuple(alike[first : first + size]) for first in range(0, len(alike), size))
