"""Rows: what the rows of one dataset and scope become, window by window. The hot part of decoding.

A row of a dataset without labels is a window; a window without a row is one without traffic: its totals are 0 where a
total has a zero, and its breakdowns are empty. A row of a dataset with labels is a window and one combination of label
values; a combination without a row has no samples.

    empty value      An empty label value is no label at all for Prometheus, and the sample would take the identity of
                     another series; so it is spelt `unknown`. Where both occur, their numbers are summed.
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
from worker.cloudflare.shape import Numbers, Shape, Values, label_value, start_of
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
    series: list[bytes] = []
    numbers: list[float] = []
    for block, number, scale in zip(blocks.totals, shape.numbers(row), shape.scales, strict=True):
        if number is not None:
            series.append(block)
            numbers.append(number * scale)
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
    return _samples(series, numbers, rows, shape, blocks)


def _grouped(rows: Sequence[Any], shape: Shape, blocks: "ScopeBlocks") -> Samples:
    """A window of a dataset with labels."""
    combinations: dict[Values, list[Numbers]] = {}
    for row in rows:
        combinations.setdefault(shape.values(row), []).append(shape.numbers(row))
    if not shape.is_additive and len(combinations) < len(rows):
        message = "two rows with the same labels, whose numbers cannot be summed"
        raise MalformedRowsError(message)
    folded = _fold(combinations, shape) if shape.keep is not None else 0
    series: list[bytes] = []
    numbers: list[float] = []
    for values in sorted(combinations):
        same = combinations[values]
        sums = same[0] if len(same) == 1 else tuple(map(_sum, zip(*same, strict=True)))
        for block, number, scale in zip(blocks.of_combination(values), sums, shape.scales, strict=True):
            if number is not None:
                series.append(block)
                numbers.append(number * scale)
    samples = _samples(series, numbers, rows, shape, blocks)
    return replace(samples, folded=folded) if folded else samples


def _fold(combinations: dict[Values, list[Numbers]], shape: Shape) -> int:
    """Put the rows of all but the top combinations under `other`; how many combinations that were."""
    rest = combinations.pop(shape.other, [])
    excess = len(combinations) - (shape.keep or 0)
    if excess > 0:

        def rank(values: Values) -> tuple[float, Values]:
            same = combinations[values]
            return -(_sum([numbers[shape.ranked_by] for numbers in same]) or 0), values

        for values in sorted(combinations, key=rank)[shape.keep :]:
            rest += combinations.pop(values)
    if rest:
        combinations[shape.other] = rest
    return max(excess, 0)


def _samples(
    series: list[bytes],
    numbers: list[float],
    rows: Sequence[Any],
    shape: Shape,
    blocks: "ScopeBlocks",
) -> Samples:
    """What was found, and how much the rows were sampled."""
    if shape.dataset.is_sampled and (intervals := [row.avg.sampleInterval for row in rows if row.avg is not None]):
        series.append(blocks.sample_interval)
        numbers.append(max(intervals))
    values = array("d", numbers)
    if not all(map(math.isfinite, values)):
        raise OverflowError
    return Samples(tuple(series), values, len(rows))


def _sum(column: Iterable[int | float | None]) -> int | float | None:
    """The sum whatever the order; None where no row has the number."""
    numbers = [number for number in column if number is not None]
    if not numbers:
        return None
    return sum(numbers) if all(type(number) is int for number in numbers) else math.fsum(numbers)


def _distinct(series: list[bytes], numbers: list[float]) -> tuple[list[bytes], list[float]]:
    """The same with distinct series; only breakdowns can repeat one, and all of them are additive."""
    columns: dict[bytes, list[float]] = {}
    for block, number in zip(series, numbers, strict=True):
        columns.setdefault(block, []).append(number)
    return list(columns), [_sum(column) or 0 for column in columns.values()]


class ScopeBlocks:
    """The label blocks of one dataset and scope.

    count:           how many they are.
    totals:          one per total of a dataset without labels.
    sample_interval: of the metric that tells how much was sampled.
    no_traffic:      the samples of a window without a row.
    breakdowns:      per breakdown: how to read an element, and the blocks of each value seen.
    """

    def __init__(self, dataset: Dataset, scope: Scope) -> None:
        self._labels = scope.labels()
        self._names = tuple(label.name for label in dataset.labels)
        self._metrics = tuple(total.metric.name for total in dataset.totals)
        self._combinations: dict[Values, tuple[bytes, ...]] = {}
        self.sample_interval = self._block(SAMPLE_INTERVAL[dataset.scope].name, {SAMPLE_INTERVAL_LABEL: dataset.name})
        self.totals = () if self._names else tuple(self._block(name, {}) for name in self._metrics)
        zeros = [block for block, total in zip(self.totals, dataset.totals, strict=False) if total.has_zero]
        self.no_traffic = Samples(tuple(zeros), array("d", bytes(8 * len(zeros))))
        self.breakdowns: list[tuple[Breakdown, attrgetter[tuple[Any, ...]], dict[str | int, tuple[bytes, ...]]]] = [
            (item, attrgetter(item.key, *(leaf for leaf, _ in item.values)), {}) for item in dataset.breakdowns
        ]
        self.count = 1 + len(self.totals)

    def of_combination(self, values: Values) -> tuple[bytes, ...]:
        """One block per total."""
        known = self._combinations.get(values)
        if known is None:
            labels = dict(zip(self._names, values, strict=True))
            known = self._combinations[values] = tuple(self._block(name, labels) for name in self._metrics)
            self.count += len(known)
        return known

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
