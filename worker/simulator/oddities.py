"""What rows look like that are not what they should be: the answer's side of the fault `OddRows`."""

from collections.abc import Iterator
from typing import Any, assert_never

import msgspec

from worker.simulator.execution import Answer
from worker.simulator.faults import Oddity, OddRows

_NOT_A_NUMBER = msgspec.Raw(b"NaN")
_ENDLESS = msgspec.Raw(b"1e999")


def has_rows(answer: Answer, fault: OddRows) -> bool:
    """Whether the fault has any rows to hit."""
    return any(rows for _, _, rows in _lists(answer, fault))


def odd(answer: Answer, fault: OddRows) -> dict[str, Any] | None:
    """The answer's data with its rows as the fault makes them; the answer itself is used up."""
    for holder, key, rows in list(_lists(answer, fault)):
        plain = msgspec.to_builtins(rows)
        holder[key] = (
            [*plain, *plain] if fault.how is Oddity.DUPLICATED else [_odd_row(row, fault.how) for row in plain]
        )
    return answer.data


def _lists(answer: Answer, fault: OddRows) -> Iterator[tuple[dict[str, Any], str, list[Any]]]:
    """The lists of rows that the fault is about, each with the object that holds it and its key there."""
    for asked in answer.asked if answer.data is not None else ():
        if fault.node not in {None, asked.node}:
            continue
        for scope in _at(answer.data, asked.path):
            tag = scope.get("zoneTag", scope.get("accountTag"))
            # Whose rows they are can be told without its tag where only one is asked for.
            tag = tag or (asked.scope_tags[0] if len(asked.scope_tags) == 1 else None)
            if fault.scope in {None, tag}:
                yield scope, asked.key, scope[asked.key]


def _at(data: Any, path: tuple[str, ...]) -> list[dict[str, Any]]:
    for part in path:
        data = data[int(part)] if isinstance(data, list) else data[part]
    found: list[dict[str, Any]] = data
    return found


def _odd_row(row: dict[str, Any], how: Oddity) -> dict[str, Any]:
    changed = dict(row)
    for key, part in row.items():
        if how is Oddity.EMPTY and isinstance(part, dict) and key != "dimensions":
            changed[key] = None
            return changed
        if isinstance(part, int | float):
            changed[key] = _odd_number(how)
            return changed
        if isinstance(part, dict):
            leaf = next((name for name, value in part.items() if isinstance(value, int | float)), None)
            if leaf is not None and key != "dimensions":
                changed[key] = {**part, leaf: _odd_number(how)}
                return changed
    return changed


def _odd_number(how: Oddity) -> Any:
    match how:
        case Oddity.NOT_A_NUMBER:
            return _NOT_A_NUMBER
        case Oddity.ENDLESS:
            return _ENDLESS
        case Oddity.HUGE:
            return 2**53 + 1
        case Oddity.NEGATIVE:
            return -1
        case Oddity.EMPTY:
            return None
        case Oddity.DUPLICATED:
            message = "rows that come twice have no odd number"
            raise ValueError(message)
        case _:
            assert_never(how)
