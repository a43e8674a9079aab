"""Rows: what the rows of one dataset and scope become, window by window. The hot part of decoding.

A row of a dataset without labels is a window; a window without a row is one without traffic: its totals are 0 where a
total has a zero, and its breakdowns are empty. A row of a dataset with labels is a window and one combination of label
values; a combination without a row has no samples.

    empty value      An empty label value is no label at all for Prometheus, and the sample would take the identity of
                     another series; so it is spelt `unknown`. Where both occur, their numbers are summed. A row that
                     comes twice as it is was never grouped by Cloudflare: such an answer is not believed.
    top              Of a window's combinations those with the highest numbers keep their values, equal numbers in the
                     order of the values. All others are summed up in one whose labels all say `other`; a combination
                     that is called so already is one of those. Nothing is lost: the sums over a window stay.
    sample interval  The largest one of a window's rows is one more sample of the window.

Integers are summed as integers, other numbers with one rounding at the end, so no result depends on the order of rows.
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from worker.cloudflare.catalogue import Breakdown, Dataset
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL, SAMPLE_INTERVAL_LABEL
from worker.cloudflare.scope import Scope
from worker.cloudflare.shape import OTHER, Numbers, Shape, Values, label_value, start_of
from worker.series import label_block


class MalformedRowsError(ValueError):
    """The rows are not what was asked for; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one window of one dataset and scope.

    series: one label block (`worker.series`) per sample; distinct.
    values: one float64 per series, in the same order. An integer over 2**53 is the float64 nearest to it.
    rows:   how many rows of Cloudflare's they were made of.
    folded: how many combinations of label values were summed up in `other`.
    """

    series: tuple[bytes, ...]
    values: "array[float]"
    rows: int = 0
    folded: int = 0


def windows_of(rows: Sequence[Any], shape: Shape, blocks: "ScopeBlocks", starts: range) -> dict[int, Samples]:
    """The rows of one scope, decoded by `shape.rows`, as samples of every window; MalformedRowsError."""
    by_window = _by_window(rows, shape, starts)
    make = _grouped if shape.dataset.labels else _single
    try:
        return {start: make(by_window.get(start, ()), shape, blocks) for start in starts}
    except OverflowError:
        message = "a number is too large"
        raise MalformedRowsError(message) from None


def _by_window(rows: Sequence[Any], shape: Shape, starts: range) -> dict[int, list[Any]]:
    """The rows of each window; rows of one window usually come one after the other."""
    if shape.time is None:
        return {starts.start: list(rows)} if rows else {}
    found: dict[str, list[Any]] = {}
    for row in rows:
        moment = row.dimensions.start
        same = found.get(moment)
        if same is None:
            found[moment] = [row]
        else:
            same.append(row)
    by_window: dict[int, list[Any]] = {}
    for moment, same in found.items():
        try:
            start = start_of(moment, shape.time)
        except ValueError as error:
            message = f"a row is not as it should be: {error}: {moment!r}"
            raise MalformedRowsError(message) from error
        if start not in starts:
            message = f"a row for {moment}, which is no window that was asked for"
            raise MalformedRowsError(message)
        by_window.setdefault(start, []).extend(same)
    return by_window


def _single(rows: Sequence[Any], shape: Shape, blocks: "ScopeBlocks") -> Samples:
    """A window of a dataset without labels."""
    if not rows:
        return blocks.no_traffic
    if len(rows) > 1:
        message = f"{len(rows)} rows for one window"
        raise MalformedRowsError(message)
    (row,) = rows
    series = list(blocks.totals)
    numbers = list(shape.numbers(row))
    for breakdown, read, known in blocks.breakdowns:
        holder = getattr(row, breakdown.path[0])
        if holder is None:
            continue
        for element in getattr(holder, breakdown.path[1]):
            value, *leaves = read(element)
            found = known.get(value)
            if found is None:
                found = blocks.of_breakdown(breakdown, known, value)
            series += found
            numbers += leaves
    if len(set(series)) != len(series):
        series, numbers = _distinct(series, numbers)
    for index, scale in shape.scales:
        numbers[index] = _scaled(numbers[index], scale)
    return _samples(series, numbers, rows, shape, blocks)


def _grouped(rows: Sequence[Any], shape: Shape, blocks: "ScopeBlocks") -> Samples:
    """A window of a dataset with labels."""
    groups: dict[_Combination, Any] = {}  # to its row, usually the only one
    repeated: dict[_Combination, list[Any]] = {}  # to its further rows
    # Several spellings may mean the same combination; but what is grouped has no row twice, and one that comes twice
    # would be counted twice.
    spellings: set[Any] = set()
    for row in rows:
        spelling = shape.read_values(row)
        combination = blocks.combination(spelling)
        if combination not in groups:
            groups[combination] = row
        elif spelling in spellings:
            message = "two rows for the same window and labels"
            raise MalformedRowsError(message)
        else:
            repeated.setdefault(combination, []).append(row)
        spellings.add(spelling)
    if repeated and not shape.is_additive:
        message = "two rows with the same labels, whose numbers cannot be summed"
        raise MalformedRowsError(message)
    found = {combination: shape.numbers(row) for combination, row in groups.items()}
    for combination, further in repeated.items():
        found[combination] = _sums([found[combination], *map(shape.numbers, further)])
    folded = _fold(found, shape, blocks) if shape.keep is not None else 0
    series: list[bytes] = []
    numbers: list[int | float | None] = []
    for combination in sorted(found, key=_BY_VALUES):
        series += combination.blocks or blocks.serialized(combination)
        numbers += found[combination]
    for index, scale in shape.scales:
        step = len(shape.dataset.totals)
        numbers[index::step] = [_scaled(number, scale) for number in numbers[index::step]]
    samples = _samples(series, numbers, rows, shape, blocks)
    return replace(samples, folded=folded) if folded else samples


def _fold(found: dict["_Combination", Numbers], shape: Shape, blocks: "ScopeBlocks") -> int:
    """Sum up all but the top combinations in `other`; how many combinations that were."""
    other = blocks.other
    rest = [found.pop(other)] if other in found else []
    excess = len(found) - (shape.keep or 0)
    if excess > 0:
        by = shape.ranked_by
        ranked = sorted([(-(numbers[by] or 0), each.values, each) for each, numbers in found.items()])
        rest += [found.pop(combination) for _, _, combination in ranked[shape.keep :]]
    if rest:
        found[other] = _sums(rest)
    return max(excess, 0)


def _samples(
    series: list[bytes], numbers: list[int | float | None], rows: Sequence[Any], shape: Shape, blocks: "ScopeBlocks"
) -> Samples:
    """What was found, and how much the rows were sampled."""
    if None in numbers:
        there = [(block, number) for block, number in zip(series, numbers, strict=True) if number is not None]
        series, numbers = [block for block, _ in there], [number for _, number in there]
    if shape.dataset.is_sampled and (intervals := [row.avg.sampleInterval for row in rows if row.avg is not None]):
        series.append(blocks.sample_interval)
        numbers.append(max(intervals))
    values: array[float] = array("d", numbers)  # type: ignore[arg-type]  # None is gone
    if not all(map(math.isfinite, values)):
        raise OverflowError
    return Samples(tuple(series), values, len(rows))


def _sums(rows: Sequence[Numbers]) -> Numbers:
    return tuple(map(_sum, zip(*rows, strict=True)))


def _sum(column: Iterable[int | float | None]) -> int | float | None:
    """The sum whatever the order; None where no row has the number."""
    numbers = [number for number in column if number is not None]
    if not numbers:
        return None
    return sum(numbers) if set(map(type, numbers)) == {int} else math.fsum(numbers)


def _scaled(number: float | None, scale: float) -> float | None:
    return None if number is None else number * scale


def _distinct(series: list[bytes], numbers: list[int | float | None]) -> tuple[list[bytes], list[int | float | None]]:
    """The same with distinct series; only breakdowns can repeat one, and all of them are additive."""
    columns: dict[bytes, list[int | float | None]] = {}
    for block, number in zip(series, numbers, strict=True):
        columns.setdefault(block, []).append(number)
    return list(columns), [_sum(column) for column in columns.values()]


class _Combination:
    """One combination of label values, the same object in all windows of a scope.

    values: in the order of the dataset's labels, none of them empty.
    blocks: one label block per total; empty until they are needed.
    """

    __slots__ = ("blocks", "values")

    def __init__(self, values: Values) -> None:
        self.values = values
        self.blocks: tuple[bytes, ...] = ()


_BY_VALUES = attrgetter("values")


class ScopeBlocks:
    """The label blocks of one dataset and scope.

    count:           how many they are; a combination of label values counts as one too.
    totals:          one per total of a dataset without labels.
    sample_interval: of the metric that tells how much was sampled.
    other:           the combination that the rest is summed up in.
    no_traffic:      the samples of a window without a row.
    breakdowns:      per breakdown: how to read an element, and the blocks of each value seen.
    """

    def __init__(self, dataset: Dataset, scope: Scope) -> None:
        self._labels = scope.labels()
        self._names = tuple(label.name for label in dataset.labels)
        self._metrics = tuple(total.metric.name for total in dataset.totals)
        self.other = _Combination((OTHER,) * len(self._names))
        self._combinations = {self.other.values: self.other}
        self._written: dict[Any, _Combination] = {}
        self.sample_interval = self._block(SAMPLE_INTERVAL[dataset.scope].name, {SAMPLE_INTERVAL_LABEL: dataset.name})
        self.totals = () if self._names else tuple(self._block(name, {}) for name in self._metrics)
        zeros = [block for block, total in zip(self.totals, dataset.totals, strict=False) if total.has_zero]
        self.no_traffic = Samples(tuple(zeros), array("d", bytes(8 * len(zeros))))
        self.breakdowns: list[tuple[Breakdown, attrgetter[tuple[Any, ...]], dict[str | int, tuple[bytes, ...]]]] = [
            (item, attrgetter(item.key, *(leaf for leaf, _ in item.values)), {}) for item in dataset.breakdowns
        ]
        self.count = 1 + len(self.totals)

    def combination(self, written: Any) -> _Combination:
        """The combination of label values that a row writes so: several spellings may mean the same."""
        known = self._written.get(written)
        if known is None:
            values = tuple(map(label_value, written if len(self._names) > 1 else (written,)))
            known = self._combinations.setdefault(values, _Combination(values))
            self._written[written] = known
            self.count += 1
        return known

    def serialized(self, combination: _Combination) -> tuple[bytes, ...]:
        """The blocks of a combination that has none yet."""
        labels = dict(zip(self._names, combination.values, strict=True))
        combination.blocks = tuple(self._block(name, labels) for name in self._metrics)
        self.count += len(combination.blocks)
        return combination.blocks

    def of_breakdown(
        self, breakdown: Breakdown, known: dict[str | int, tuple[bytes, ...]], value: str | int
    ) -> tuple[bytes, ...]:
        """One block per number of a breakdown, for a value that is not among the known ones yet."""
        labels = {breakdown.label: label_value(value)}
        known[value] = tuple(self._block(metric.name, labels) for _, metric in breakdown.values)
        self.count += len(breakdown.values)
        return known[value]

    def _block(self, name: str, labels: Mapping[str, str]) -> bytes:
        return label_block(name, {**self._labels, **labels})
