"""A fleet on mixed plans with every dataset: what the ledger holds in the end is the truth, all of it."""

import math
from pathlib import Path

from tests.collected_fleet import DAY, HOUR, Collected, collected, compared, sums
from worker.cloudflare import Dataset, shipped
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL, SAMPLE_INTERVAL_LABEL
from worker.simulator.api import SimulatedApi
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.groups import Sampling

MIDNIGHT = 1_750_032_000  # 2025-06-16T00:00:00Z
DAYS = 1
"""What the suite has time for, at 10 s of CPU a day; `python -m benchmarks.fleets month` does the same for a month."""

NOON = MIDNIGHT + 12 * HOUR + 900
"""So late that, with thirteen hours of replay, the windows of the whole day are caught up."""


async def collect_until(scene: Collected, until: int) -> None:
    """Twice a day, until the day that ends at `until` is final for the datasets that take longest."""
    while scene.clock.now() < until + HOUR:
        await scene.next_pass(min(12 * HOUR, until + HOUR + 900 - scene.clock.now()))
    while not await scene.next_pass(60):
        assert scene.clock.now() < until + 2 * HOUR


async def test_all_that_every_dataset_has_is_the_truth_or_denied_with_a_reason(tmp_path: Path) -> None:
    fleet = Fleet(zones=30, plans=tuple(Plan)[::-1], profiles=6)
    until = MIDNIGHT + DAYS * DAY
    datasets = tuple(shipped().values())
    async with collected(
        tmp_path, lambda clock: SimulatedApi(fleet, clock), datasets, now=NOON, replay_hours=13
    ) as scene:
        await scene.next_pass(0)
        await collect_until(scene, until)
        verdict = await compared(scene, MIDNIGHT, until, every=24)
    assert verdict.wrong == []
    assert verdict.filled == {dataset.name for dataset in datasets}, "no dataset is silently empty"
    assert verdict.denied > 100


async def test_sampled_numbers_are_as_exact_as_their_sample_interval_says(tmp_path: Path) -> None:
    fleet = Fleet(zones=5, plans=(Plan.ENTERPRISE,), accounts=1)
    datasets = [each for each in shipped().values() if each.is_sampled][::8]
    until = MIDNIGHT + DAY
    intervals: set[float] = set()
    far: list[str] = []
    async with collected(
        tmp_path,
        lambda clock: SimulatedApi(fleet, clock, sampling=Sampling(most_counted=1_000)),
        datasets,
        now=NOON,
        replay_hours=13,
    ) as scene:
        await scene.next_pass(0)
        await collect_until(scene, until)
        for dataset, tag, _ in scene.pairs():
            windows = await scene.windows(dataset, tag)
            assert windows.keys() >= set(range(MIDNIGHT, until, HOUR))
            variance = dict.fromkeys(sums(dataset, []), 0.0)
            expected = dict.fromkeys(variance, 0.0)
            for start, samples in windows.items():
                truth = sums(dataset, [scene.truth(dataset, tag, start, HOUR)])
                interval = samples.get(_interval_of(dataset), 1.0)
                intervals.add(interval)
                for name, value in truth.items():
                    expected[name] += value
                    variance[name] += value * (interval - 1)
            far += [
                f"{dataset.name} of {tag}: {name} is {value}, not {expected[name]}"
                for name, value in sums(dataset, windows.values()).items()
                if abs(value - expected[name])
                > 6 * math.sqrt(variance[name] * _most_of_one(dataset, name)) + 1e-12 * expected[name]
            ]
    assert far == []
    assert intervals == {1, 10, 100}


def _interval_of(dataset: Dataset) -> tuple[str, tuple[tuple[str, str], ...]]:
    return SAMPLE_INTERVAL[dataset.scope].name, ((SAMPLE_INTERVAL_LABEL, dataset.name),)


def _most_of_one(dataset: Dataset, metric: str) -> float:
    """The most that one event adds to a sum: the variance of a sum is that of a count times this."""
    (total,) = (total for total in dataset.totals if total.metric.name == metric)
    return 1.0 if total.path[0] == "count" else 65_536 * total.scale
