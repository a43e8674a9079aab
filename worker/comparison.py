"""What the ledger says a destination has, against what was read back from it, sample by sample.

Owns what counts as the same value and as the same series. Pure: knows neither where the samples of the ledger come from
nor how the others were read, and remembers nothing.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.remote_write import Found, Labels

# Next to a number a quadrillion times as large, a decimal that a receiver keeps in the same block has no digits left.
_BLOCK_ERROR = 1e-15


class Finding(StrEnum):
    """What was found of a sample."""

    EQUAL = "equal"
    """It is there, with the same value."""

    MISSING = "missing"
    """It is on record as delivered, and not there."""

    DIFFERENT = "different"
    """Another value is there, alone or beside the right one."""

    UNDELIVERED = "undelivered"
    """It is not there, and the ledger does not say that it is: it waits, has expired, or was refused."""

    EXTRA = "extra"
    """It is there, and the ledger does not have it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sample of the ledger, as a destination should have it.

    labels: as they are sent there.
    is_due: whether the ledger says that the destination has it.
    """

    bucket_id: int
    series_id: int
    labels: Labels
    timestamp_ms: int
    value: float
    is_due: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of a claim; `values` are those that are there for its series and time."""

    claim: Claim
    finding: Finding
    values: tuple[float, ...]

    @property
    def is_duplicated(self) -> bool:
        """Whether it is stored more than once."""
        return len(self.values) > 1


@dataclass(frozen=True, slots=True)
class ExtraSample:
    """A sample that only the destination has."""

    labels: Labels
    timestamp_ms: int
    value: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every claim with what was found of it, in their order; and what was found beside them."""

    outcomes: tuple[Outcome, ...]
    extra: tuple[ExtraSample, ...]


def compare(claims: Sequence[Claim], found: Found) -> Comparison:
    """Hold the claims, of which no two have the same series and time, against all that was read of their series.

    Some receivers add labels of their own, such as Thanos its tenant: where a series that was read is none of the
    claims', it is taken without the labels whose names none of theirs has.
    """
    claimed = {claim.labels for claim in claims}
    names = {name for labels in claimed for name, _ in labels}
    values: dict[tuple[Labels, int], list[float]] = {}
    for labels, samples in found.series.items():
        ours = frozenset(pair for pair in labels if pair[0] in names)
        known = ours if labels not in claimed and ours in claimed else labels
        for timestamp_ms, value in samples:
            values.setdefault((known, timestamp_ms), []).append(value)
    largest = dict.fromkeys(claimed, 0.0) if found.relative_error else {}
    for claim in claims if largest else ():
        if math.isfinite(claim.value):
            largest[claim.labels] = max(largest[claim.labels], abs(claim.value))
    outcomes = []
    for claim in claims:
        there = tuple(values.pop((claim.labels, claim.timestamp_ms), ()))
        allowed = largest.get(claim.labels, 0.0) * _BLOCK_ERROR
        outcomes.append(Outcome(claim, _finding(claim, there, found.relative_error, allowed), there))
    extra = [ExtraSample(labels, at, value) for (labels, at), left in values.items() for value in left]
    return Comparison(tuple(outcomes), tuple(extra))


def _finding(claim: Claim, there: tuple[float, ...], relative_error: float, absolute_error: float) -> Finding:
    if not there:
        return Finding.MISSING if claim.is_due else Finding.UNDELIVERED
    is_equal = all(_is_same(claim.value, value, relative_error, absolute_error) for value in there)
    return Finding.EQUAL if is_equal else Finding.DIFFERENT


def _is_same(one: float, other: float, relative_error: float, absolute_error: float) -> bool:
    # No query API tells the bits of a NaN.
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    if not relative_error:
        return struct.pack("<d", one) == struct.pack("<d", other)
    return math.isclose(one, other, rel_tol=relative_error, abs_tol=absolute_error)
