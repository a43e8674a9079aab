"""Lateness: how a later answer differs from what was captured, and what many such readings say about the delay.

Pure; knows neither when windows are read again nor where readings are kept.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from worker.ledger import Reading
from worker.series import metric_name
from worker.times import span

# With fewer windows nothing is said: of 20 in a row that were final, one in seven may still not be (6/7 ** 20 = 5 %).
FEWEST_WINDOWS = 20

# A delay is enough where 99 of 100 windows were final after it: for each single one all the others would be late.
SETTLED_SHARE = 0.99

_MINUTE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a later answer differs from what was captured.

    samples_differing:    samples whose value is another one, with those that only one of the two has.
    relative_differences: of the total of every metric that can be summed, by its name: (later - captured) / captured;
                          1 where nothing was captured and something is there now.
    """

    samples_differing: int
    relative_differences: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether the delay is enough.

    delay_seconds: what it should be at least, as far as the readings tell; None where they do not.
    reason:        why, as a sentence for people.
    """

    delay_seconds: int | None
    reason: str


def compare(captured: Mapping[bytes, float], later: Mapping[bytes, float], metrics: Iterable[str]) -> Comparison:
    """The two answers for one window, values by label block. `metrics`: the names of those that can be summed."""
    differing = sum(captured.get(series) != later.get(series) for series in captured.keys() | later.keys())
    before, after = _totals(captured), _totals(later)
    differences = {name: _relative_difference(before[name], after[name]) for name in metrics}
    return Comparison(differing, differences)


def _totals(samples: Mapping[bytes, float]) -> Counter[str]:
    values: dict[str, list[float]] = {}
    for series, value in samples.items():
        values.setdefault(metric_name(series), []).append(value)
    # With one rounding: the order of samples is no difference.
    return Counter({name: math.fsum(each) for name, each in values.items()})


def _relative_difference(captured: float, later: float) -> float:
    if captured == later:
        return 0.0
    return (later - captured) / captured if captured else 1.0


def recommended_delay(readings: Collection[Reading], *, delay_seconds: int, is_sampled: bool) -> Advice:
    """What the readings of one dataset say about the delay that is in force.

    A window had settled at the first of its readings from which on they all say the same, or before its capture where
    none of them differs. Between two readings nobody looked, so a longer delay is advised in steps of these.

    is_sampled: whether Cloudflare computes its numbers from a sample of the traffic.
    """
    if is_sampled:
        return Advice(
            None, "its numbers are estimates from a sample of the traffic, which differ from answer to answer"
        )
    by_window = groupby(sorted(readings, key=attrgetter("bucket_id", "after_seconds")), key=attrgetter("bucket_id"))
    needed = sorted(max(delay_seconds, _settled_seconds(list(group))) for _, group in by_window)
    if len(needed) < FEWEST_WINDOWS:
        text = f"{len(needed)} windows were read again so far, and at least {FEWEST_WINDOWS} are needed to tell"
        return Advice(None, text)
    drifted = sum(seconds > delay_seconds for seconds in needed)
    if not drifted:
        return Advice(delay_seconds, f"it is enough: none of {len(needed)} windows that were read again had changed")
    share = f"{drifted} of {len(needed)} windows that were read again had changed"
    enough = needed[math.ceil(len(needed) * SETTLED_SHARE) - 1]
    if enough == delay_seconds:
        return Advice(delay_seconds, f"it is enough: {share}, fewer than one in a hundred")
    minutes = math.ceil(enough / _MINUTE_SECONDS) * _MINUTE_SECONDS
    text = (
        f"{share}; {span(minutes)} after their end 99 of 100 said what they say now, so the delay should be {minutes} s"
    )
    return Advice(minutes, text)


def _settled_seconds(readings: Sequence[Reading]) -> int:
    """How long after its end a window had certainly settled, from its readings in their order; 0 before its capture."""
    said = [(reading.samples_differing, reading.relative_difference) for reading in readings]
    if not any(differing for differing, _ in said):
        return 0
    first = next(number for number, each in enumerate(said) if all(later == said[-1] for later in said[number:]))
    return readings[first].age_seconds + readings[first].after_seconds
