"""What a query's filter lets through.

A filter compares dimensions and joins comparisons with AND and OR. Those of time, each truncated to a width, are sets
of half-open spans of unix seconds, so they only need intersecting and uniting (`spans`); all others are tested value by
value (`accepts`). `divided` takes the two kinds apart.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from graphql import GraphQLError

Span = tuple[int, int]
Filter = Mapping[str, Any]
Conditions = tuple[tuple[str, Any], ...]
"""A filter's fields and their values, lists as tuples, so that it can be remembered what they let through."""

# Past the year 36,000: no upper bound was given.
END_OF_TIME = 2**40
_ALWAYS = ((0, END_OF_TIME),)


def divided(whole: Filter, times: Collection[str]) -> tuple[Filter, Conditions]:
    """The part of a filter that is about the dimensions in `times`, and the conditions that are about others.

    Both must hold. GraphQLError for an OR between the two kinds, which is not simulated.
    """
    of_time: dict[str, Any] = {}
    others: list[tuple[str, Any]] = []
    for name, value in whole.items():
        if value is None:
            continue
        if name in {"AND", "OR"}:
            below = [divided(each, times) for each in value]
            if name == "AND":
                # What lets everything through decides nothing.
                below = [part for part in below if any(part)]
            if name == "OR" and any(time for time, _ in below) and any(other for _, other in below):
                message = "OR between times and other dimensions is not simulated"
                raise GraphQLError(message)
            if any(time for time, _ in below) or (name == "OR" and not below):
                of_time[name] = [time for time, _ in below]
            if any(other for _, other in below):
                others.append((name, tuple(other for _, other in below)))
        elif name.partition("_")[0] in times:
            of_time[name] = value
        else:
            others.append((name, tuple(value) if isinstance(value, list) else value))
    return of_time, tuple(others)


def accepts(conditions: Conditions, values: Mapping[str, Any]) -> bool:
    """Whether the conditions, all of whose dimensions are among the values, let them through."""
    for name, wanted in conditions:
        if name == "AND":
            passed = all(accepts(part, values) for part in wanted)
        elif name == "OR":
            passed = any(accepts(part, values) for part in wanted)
        else:
            dimension, _, comparison = name.partition("_")
            passed = holds(comparison, values[dimension], wanted)
        if not passed:
            return False
    return True


def holds(comparison: str, value: Any, wanted: Any) -> bool:
    """Whether a value compares so; KeyError for a comparison that there is not."""
    return _COMPARISONS[comparison](value, wanted)


@lru_cache(64)
def _pattern(like: str) -> re.Pattern[str]:
    """SQL's: a percent sign stands for any text, an underscore for one character."""
    signs = {"%": ".*", "_": "."}
    return re.compile("".join(signs.get(sign) or re.escape(sign) for sign in like), re.DOTALL)


def _is_like(value: str, like: str) -> bool:
    return _pattern(like).fullmatch(value) is not None


# No comparison means equality.
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "": operator.eq,
    "neq": operator.ne,
    "geq": operator.ge,
    "gt": operator.gt,
    "leq": operator.le,
    "lt": operator.lt,
    "in": lambda value, wanted: value in wanted,
    "notin": lambda value, wanted: value not in wanted,
    "like": _is_like,
    "notlike": lambda value, like: not _is_like(value, like),
}


def spans(time_filter: Mapping[str, Any], widths: Mapping[str, int]) -> tuple[Span, ...]:
    """The spans of time that the filter lets through, in order and apart from each other.

    time_filter: as the query gave it, times as unix seconds, for example {"datetime_geq": 0.0, "datetime_lt": 60.0}.
    widths:      to how many seconds each dimension is truncated.
    """
    found: tuple[Span, ...] = _ALWAYS
    for name, value in time_filter.items():
        if value is None:
            continue
        if name == "AND":
            for part in value:
                found = _intersected(found, spans(part, widths))
        elif name == "OR":
            found = _intersected(found, _united(span for part in value for span in spans(part, widths)))
        else:
            dimension, _, comparison = name.partition("_")
            found = _intersected(found, _compared(comparison, value, widths[dimension]))
    return found


def _compared(comparison: str, value: Any, width: int) -> tuple[Span, ...]:
    """Where the comparison holds for a time truncated to `width`; no comparison means equality."""
    match comparison:
        case "in":
            return _united(span for each in value for span in _compared("", each, width))
        case "notin":
            found: tuple[Span, ...] = _ALWAYS
            for each in value:
                found = _intersected(found, _compared("neq", each, width))
            return found
        case _:
            floor = int(value // width) * width
            after = floor + width
            is_aligned = floor == value
            ceiling = floor if is_aligned else after
            return {
                "geq": ((ceiling, END_OF_TIME),),
                "gt": ((after, END_OF_TIME),),
                "lt": ((0, ceiling),),
                "leq": ((0, after),),
                "neq": ((0, floor), (after, END_OF_TIME)) if is_aligned else _ALWAYS,
                "": ((floor, after),) if is_aligned else (),
            }[comparison]


def _intersected(some: tuple[Span, ...], others: tuple[Span, ...]) -> tuple[Span, ...]:
    overlaps = ((max(start, other[0]), min(end, other[1])) for start, end in some for other in others)
    return tuple(sorted((start, end) for start, end in overlaps if start < end))


def _united(some: Iterable[Span]) -> tuple[Span, ...]:
    apart: list[Span] = []
    for start, end in sorted(some):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return tuple(apart)
