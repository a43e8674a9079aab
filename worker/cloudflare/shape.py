"""Shapes: how the rows of a dataset are read, as types and functions that are made at run time.

Every node has its own rows, and what a query asks of it is the catalogue's matter; so the decoder of a row is built
from the dataset's description, once. Pure; knows nothing of windows and of scopes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import count
from operator import attrgetter
from typing import Annotated, Any, Final, assert_never

import msgspec

from worker.cloudflare.catalogue import Dataset, Grain, TimeType
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL_PATH

UNKNOWN: Final = "unknown"
"""The label value that stands for an empty one."""

OTHER: Final = "other"
"""The value of every label of what is summed up."""

Values = tuple[str, ...]
"""The label values of a row, none of them empty."""

Numbers = tuple[int | float | None, ...]
"""The totals of a row; None for one that it does not have, where that is not zero."""

# The schema's numbers. Negative, boolean, textual, infinite and missing ones are all refused.
_Number = Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)]
_Value = str | int | float | bool
_Key = str | Annotated[int, msgspec.Meta(ge=0)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class Shape:
    """The rows of one dataset: how they are read.

    number:      another one for every shape.
    rows:        the decoder of a list of them.
    time:        the type of their window's start; None where they have none.
    read_values: the label values of a row as it writes them: a tuple of them, or the only one.
    numbers:     the totals of a row; None for one that it does not have, where that is not zero.
    scales:      positions of totals and what they are multiplied by, where that is not 1.
    is_additive: whether all totals may be summed.
    keep:        how many combinations of label values a window may have; None for any number.
    ranked_by:   the position of the total that they are ranked by.
    """

    number: int
    dataset: Dataset
    rows: msgspec.json.Decoder[list[Any]]
    time: TimeType | None
    read_values: Callable[[Any], Any]
    numbers: Callable[[Any], Numbers]
    scales: tuple[tuple[int, float], ...]
    is_additive: bool
    keep: int | None
    ranked_by: int


def shape_of(dataset: Dataset, grain: Grain) -> Shape:
    """How the rows of a dataset are read; the same object for the same dataset."""
    return _shape(dataset, grain.time if grain.dimension else None)


@lru_cache(maxsize=1024)
def _shape(dataset: Dataset, time: TimeType | None) -> Shape:
    paths = [total.path for total in dataset.totals]
    return Shape(
        number=next(_shape_numbers),
        dataset=dataset,
        rows=msgspec.json.Decoder(list[_row(dataset, time)]),  # type: ignore[misc]  # made at run time
        time=time,
        read_values=_values_reader(dataset),
        numbers=_numbers_reader(dataset),
        scales=tuple((index, total.scale) for index, total in enumerate(dataset.totals) if total.scale != 1),
        is_additive=all(total.metric.additive for total in dataset.totals),
        keep=dataset.top.keep if dataset.top else None,
        ranked_by=paths.index(dataset.top.by) if dataset.top else 0,
    )


_shape_numbers = count()


def _row(dataset: Dataset, time: TimeType | None) -> type[msgspec.Struct]:
    """The type of a row. None of it can be part of a cycle, so the garbage collector need not look."""
    fields: dict[str, Any] = {}
    objects: dict[str, dict[str, Any]] = {}
    for path in [total.path for total in dataset.totals] + [SAMPLE_INTERVAL_PATH] * dataset.is_sampled:
        if len(path) == 1:
            fields[path[0]] = _Number
        else:
            objects.setdefault(path[0], {})[path[1]] = _Number
    for item in dataset.breakdowns:
        element = _struct("Element", {item.key: _Key, **{leaf: _Number for leaf, _ in item.values}})
        objects.setdefault(item.path[0], {})[item.path[1]] = list[element]  # type: ignore[valid-type]  # made at run time
    dimensions: dict[str, Any] = {label.dimension: _Value for label in dataset.labels}
    if time is not None:
        dimensions["start"] = str
    if dimensions:
        fields["dimensions"] = _struct("Dimensions", dimensions)
    fields |= {name: _struct(name, leaves) | None for name, leaves in objects.items()}
    return _struct("Row", fields)


def _struct(name: str, fields: Mapping[str, Any]) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, fields.items(), gc=False)


def _values_reader(dataset: Dataset) -> Callable[[Any], Any]:
    # attrgetter takes at least one name.
    names = [f"dimensions.{label.dimension}" for label in dataset.labels]
    return attrgetter(*names) if names else lambda _: ()


def _numbers_reader(dataset: Dataset) -> Callable[[Any], Numbers]:
    totals = dataset.totals
    paths = [".".join(total.path) for total in totals]
    at_once: Callable[[Any], Any] = attrgetter(*paths) if paths else lambda _: ()

    def one_by_one(row: Any) -> Numbers:
        found: list[int | float | None] = []
        for total in totals:
            number = getattr(row, total.path[0])
            if len(total.path) > 1 and number is not None:
                number = getattr(number, total.path[1])
            found.append(0 if number is None and total.has_zero else number)
        return tuple(found)

    def read(row: Any) -> Numbers:
        try:
            numbers: Numbers = at_once(row)
        except AttributeError:  # an object is null
            return one_by_one(row)
        return numbers

    # For a single name, attrgetter does not give a tuple.
    return read if len(paths) != 1 else one_by_one


def label_value(value: str | float) -> str:
    """The text that a value is written as; a whole number as such, whatever its type in the schema."""
    match value:
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value) or UNKNOWN


# The same windows are asked of every zone.
@lru_cache(maxsize=1024)
def start_of(text: str, time: TimeType) -> int:
    """Unix seconds of a row's window; -1 for a moment between two seconds, which starts no window.

    ValueError for what is no moment.
    """
    match time:
        case TimeType.TIME:
            moment = msgspec.convert(text, _Time)
            return -1 if moment.microsecond else int(moment.timestamp())
        case TimeType.DATE:
            return int(datetime.combine(msgspec.convert(text, date), datetime.min.time(), UTC).timestamp())
        case _:
            assert_never(time)
