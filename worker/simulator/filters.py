"""Which slices of time a query's filter lets through.

A filter compares dimensions of time, each truncated to a width, and joins comparisons with AND and OR. All of that is
sets of half-open spans of unix seconds, so this module only intersects and unites spans.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Span = tuple[int, int]

# Past the year 36,000: no upper bound was given.
END_OF_TIME = 2**40
_ALWAYS = ((0, END_OF_TIME),)


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
