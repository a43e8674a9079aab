"""Blame: which datasets of which scopes an error is about, as far as it says so. Pure.

Cloudflare names the culprit in several ways, none of them always: scopes by their ids in the text, the position of a
zone and the alias or the node in the path, a node or a field in the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.part import Pair, Part
from worker.cloudflare.query import Source, alias
from worker.cloudflare.scope import Scope

# What is wrong with a scope as a whole, where the error names it and no dataset.
_SCOPE_KINDS = frozenset({ErrorKind.AUTH_SCOPE, ErrorKind.RATE})


@dataclass(frozen=True, slots=True)
class Blame:
    """What an error is about.

    pairs:      those that it may be about, all of the part where it names none.
    is_certain: whether it is about each of them. A position is not certain: both sides may count differently.
    """

    pairs: frozenset[Pair]
    is_certain: bool


def names_nothing(failure: ApiFailure) -> bool:
    """Whether the error could be about anything that was asked."""
    return not (failure.zone_tags or failure.account_tags or failure.node) and failure.zone_index is None


def blame(part: Part, failure: ApiFailure) -> Blame:
    """What of the part the error is about."""
    scopes, sure_of_scopes = _scopes(part, failure)
    sources, sure_of_sources = named_sources(part, failure), True
    if not sources:
        sources = part.sources
        is_of_scope = failure.kind in _SCOPE_KINDS and bool(failure.zone_tags or failure.account_tags)
        is_of_scope |= _denies_their_account(part, failure)
        sure_of_sources = len(sources) == 1 or is_of_scope
    elif len(sources) > 1:
        # A node that the plan lacks is lacking for all datasets that are made of it.
        sure_of_sources = failure.kind is ErrorKind.PLAN_DATASET
    pairs = frozenset((source.dataset.name, scope) for source in sources for scope in scopes)
    return Blame(pairs, sure_of_scopes and sure_of_sources)


def named_sources(part: Part, failure: ApiFailure) -> Sequence[Source]:
    """The datasets that the error names; one of them at least is meant. Empty where it names none."""
    for number, source in enumerate(part.sources):
        if failure.node == alias(number):
            if failure.kind is not ErrorKind.PLAN_DATASET:
                return [source]
            return [each for each in part.sources if each.grain.node == source.grain.node]
    words = {word.lower() for word in (failure.node or "", *re.findall(r"\w+", failure.message))}
    if of_node := [source for source in part.sources if source.grain.node.lower() in words]:
        return of_node
    if failure.field:
        return [source for source in part.sources if _asks_for(source, failure.field)]
    return []


def _asks_for(source: Source, field: str) -> bool:
    dimensions = {label.dimension.lower() for label in source.dataset.labels} | {(source.grain.dimension or "").lower()}
    return field.lower() in dimensions or bool(source.dataset.fields_named(field))


def _denies_their_account(part: Part, failure: ApiFailure) -> bool:
    """Whether zones were asked for through an account that the token may not read, none of them and no dataset."""
    is_zones = part.sources[0].dataset.scope is ScopeKind.ZONE
    return is_zones and failure.kind is ErrorKind.AUTH_SCOPE and failure.is_of_account


def _scopes(part: Part, failure: ApiFailure) -> tuple[Sequence[Scope], bool]:
    """The scopes that the error may be about, and whether that is certain."""
    tags = {*failure.zone_tags, *failure.account_tags}
    named = [scope for scope in part.scopes if scope.tag in tags or scope.account_tag in tags]
    if named or len(part.scopes) == 1:
        return named or part.scopes, True
    if _denies_their_account(part, failure):
        return part.scopes, True
    index = failure.zone_index
    if index is not None and index < len(part.scopes):
        return [part.scopes[index]], False
    return part.scopes, False
