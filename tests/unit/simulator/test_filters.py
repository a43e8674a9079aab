import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
from graphql import GraphQLError
from hypothesis import given
from hypothesis import strategies as st

from worker.simulator.filters import END_OF_TIME, accepts, divided, spans

WIDTHS = {"datetime": 60, "datetimeFiveMinutes": 300}
LAST = 1_800

# Often just where a minute begins.
times = st.one_of(st.integers(0, LAST), st.integers(0, LAST // 60).map(lambda minute: 60 * minute))
comparisons = st.sampled_from(["", "_geq", "_gt", "_leq", "_lt", "_neq"])
memberships = st.sampled_from(["_in", "_notin"])
single = st.tuples(st.sampled_from(sorted(WIDTHS)), comparisons, times).map(
    lambda parts: {parts[0] + parts[1]: parts[2]}
)
several = st.tuples(st.sampled_from(sorted(WIDTHS)), memberships, st.lists(times, max_size=3)).map(
    lambda parts: {parts[0] + parts[1]: parts[2]}
)
conditions = st.recursive(
    st.one_of(single, several),
    lambda below: st.one_of(
        st.lists(below, max_size=3).map(lambda parts: {"AND": parts}),
        st.lists(below, min_size=1, max_size=3).map(lambda parts: {"OR": parts}),
        st.lists(below, max_size=3).map(lambda parts: {key: value for part in parts for key, value in part.items()}),
    ),
    max_leaves=6,
)


_MEANINGS: dict[str, Callable[[int, Any], bool]] = {
    "": operator.eq,
    "geq": operator.ge,
    "gt": operator.gt,
    "leq": operator.le,
    "lt": operator.lt,
    "neq": operator.ne,
    "in": lambda at, given: at in given,
    "notin": lambda at, given: at not in given,
}


def lets_through(condition: dict[str, Any], minute: int) -> bool:
    """The same meaning, said once more in another way: minute by minute."""
    for name, value in condition.items():
        if name == "AND":
            holds = all(lets_through(part, minute) for part in value)
        elif name == "OR":
            holds = any(lets_through(part, minute) for part in value)
        else:
            dimension, _, comparison = name.partition("_")
            truncated = minute - minute % WIDTHS[dimension]
            holds = _MEANINGS[comparison](truncated, value)
        if not holds:
            return False
    return True


@given(conditions)
def test_spans_hold_exactly_the_minutes_that_a_filter_lets_through(condition: dict[str, Any]) -> None:
    found = spans(condition, WIDTHS)
    assert list(found) == sorted(found)
    assert all(start < end for start, end in found)
    for minute in range(0, LAST + 600, 60):
        holding = [start for start, end in found if start <= minute < end]
        assert len(holding) == lets_through(condition, minute)


def test_a_filter_without_an_upper_bound_reaches_to_the_end_of_time() -> None:
    assert spans({"datetime_geq": 60.0, "datetime_lt": None}, WIDTHS) == ((60, END_OF_TIME),)


def test_times_between_minutes_are_compared_with_whole_minutes() -> None:
    assert spans({"datetime_geq": 60.5, "datetime_lt": 180.5}, WIDTHS) == ((120, 240),)


@given(conditions, conditions)
def test_times_and_other_dimensions_are_taken_apart(time: dict[str, Any], other: dict[str, Any]) -> None:
    # The other dimension is called differently, and nothing else is different about its part.
    renamed = json.loads(json.dumps(other).replace('"datetime', '"size'))
    of_time, others = divided({"AND": [{**time, "size_geq": None}, renamed]}, WIDTHS)
    assert spans(of_time, WIDTHS) == spans(time, WIDTHS)
    for minute in range(0, LAST + 600, 60):
        values = {name.replace("datetime", "size"): minute - minute % width for name, width in WIDTHS.items()}
        assert accepts(others, values) == lets_through(other, minute)


def test_either_a_time_or_something_else_is_not_simulated() -> None:
    with pytest.raises(GraphQLError, match="not simulated"):
        divided({"OR": [{"datetime": 0}, {"size": 1}]}, WIDTHS)


@pytest.mark.parametrize(
    ("like", "fitting"), [("a%", {"a", "abc"}), ("%b%", {"abc"}), ("a_c", {"abc"}), ("A%", set()), ("a.c", set())]
)
def test_likeness_is_that_of_sql(like: str, fitting: set[str]) -> None:
    for value in ("a", "abc", "ca"):
        assert accepts((("name_like", like),), {"name": value}) == (value in fitting)
        assert accepts((("name_notlike", like),), {"name": value}) != (value in fitting)
