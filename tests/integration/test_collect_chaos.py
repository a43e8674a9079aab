"""Chaos on the API's side: whatever Cloudflare answers, no wrong bucket is captured, and all that returns is had."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.collected_fleet import HOUR, Collected, Pair, Series, collected, expected_samples
from worker.cloudflare import Dataset, shipped
from worker.simulator.api import SimulatedApi
from worker.simulator.entitlements import ENTITLEMENTS, entitlement
from worker.simulator.faults import (
    ConnectionReset,
    EntitlementChanged,
    Fault,
    FieldDenied,
    FieldRemoved,
    GraphqlError,
    HttpStatus,
    MalformedJson,
    Oddity,
    OddRows,
    TokenRevoked,
    TruncatedBody,
    ZoneChanged,
    ZoneMissing,
)
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits
from worker.simulator.refusals import RefusalKind

NOW = 1_750_032_900.0  # 2025-06-16T00:15:00Z

REPLAY_HOURS = 48

# Rollups with maps, labels with and without a top, states, and both kinds of scopes.
DATASETS = (
    "http_requests",
    "http_cache_status",
    "firewall_events",
    "health_check_timings",
    "r2_operations",
    "r2_storage",
)

# What Cloudflare may say without its being wrong: a number that large is one, and a null is none.
ODDITIES = tuple(each for each in Oddity if each not in {Oddity.HUGE, Oddity.EMPTY})


class Chaos:
    """Faults drawn from a seed, and which fields were ever denied because of them."""

    def __init__(self, seed: int, fleet: Fleet, datasets: Sequence[Dataset], now: Callable[[], float]) -> None:
        self.denied_fields: defaultdict[Pair, set[str]] = defaultdict(set)
        self._draw = random.Random(seed)
        self._fleet = fleet
        self._datasets = datasets
        self._now = now
        self._kinds = [
            self._refusal,
            self._refusal,
            self._refusal,
            self._broken,
            self._odd,
            self._zone,
            self._field,
            self._entitlement,
        ]

        for zone in fleet.zones:
            self._note_plan(zone.tag, zone.plan)

    def pause_seconds(self) -> float:
        return self._draw.choice((60.0, 600.0, 1800.0, 3600.0))

    def faults(self) -> list[Fault]:
        return [self._draw.choice(self._kinds)() for _ in range(self._draw.randrange(3))]

    def _until(self) -> float:
        return self._now() + self._draw.choice((600, 3600, 5 * HOUR))

    def _dataset(self) -> tuple[Dataset, str]:
        """A dataset, and the zone or account that is hit."""
        dataset = self._draw.choice(self._datasets)
        return dataset, self._draw.choice(self._tags(dataset))

    def _tags(self, dataset: Dataset) -> list[str]:
        scopes = self._fleet.zones if dataset.scope == "zone" else self._fleet.accounts
        return [scope.tag for scope in scopes]

    def _note_plan(self, zone: str, plan: Plan) -> None:
        """A zone has a plan, and its account may have no better one."""
        for dataset in self._datasets:
            lacking = entitlement(ENTITLEMENTS, plan, dataset.grain(HOUR).node).denied_fields
            for tag in (zone, *(account.tag for account in self._fleet.accounts)):
                self.denied_fields[dataset.name, tag] |= lacking

    def _refusal(self) -> Fault:
        kind = self._draw.choice(tuple(RefusalKind))
        dataset, tag = self._dataset()
        return GraphqlError(
            error=kind,
            zone=self._draw.choice((None, tag)),
            node=self._draw.choice((None, dataset.grain(HOUR).node)),
            status=self._draw.choice((None, 200)),
            is_partial=self._draw.random() < 0.3,
            count=self._draw.choice((1, 2, 5)),
        )

    def _broken(self) -> Fault:
        count = self._draw.choice((1, 3, 8))
        return self._draw.choice(
            (
                HttpStatus(status=self._draw.choice((403, 429, 500, 502, 503, 520)), count=count),
                HttpStatus(status=self._draw.choice((200, 403, 502)), is_html=True, count=count),
                MalformedJson(count=count),
                TruncatedBody(count=count),
                ConnectionReset(count=count),
                TokenRevoked(count=count),
            )
        )

    def _odd(self) -> Fault:
        dataset, tag = self._dataset()
        return OddRows(
            how=self._draw.choice(ODDITIES),
            scope=self._draw.choice((None, tag)),
            node=self._draw.choice((None, dataset.grain(HOUR).node)),
            count=self._draw.choice((1, 3)),
        )

    def _zone(self) -> Fault:
        zone = self._draw.choice(self._fleet.zones).tag
        plan = self._draw.choice(tuple(Plan))
        self._note_plan(zone, plan)
        return self._draw.choice(
            (ZoneMissing(zone=zone, until=self._until()), ZoneChanged(zone=zone, plan=plan, until=self._until()))
        )

    def _field(self) -> Fault:
        dataset, tag = self._dataset()
        node = dataset.grain(HOUR).node
        ranked = "_".join(dataset.top.by) if dataset.top else ""
        fields = [total.field for total in dataset.totals if total.field != ranked]
        name = self._draw.choice([*fields, *(item.field for item in dataset.breakdowns), "count"])
        fault = self._draw.choice(
            (
                FieldDenied(zone=tag, node=node, field=name, until=self._until()),
                FieldRemoved(node=node, field=name, until=self._until()),
                FieldRemoved(node=node, until=self._until()),
            )
        )
        for each in self._datasets:
            if each.grain(HOUR).node == node:
                for whose in self._tags(each):
                    self.denied_fields[each.name, whose].add(name)
        return fault

    def _entitlement(self) -> Fault:
        dataset, tag = self._dataset()
        return EntitlementChanged(
            scope=tag,
            node=dataset.grain(HOUR).node,
            is_enabled=self._draw.choice((None, None, False)),
            max_duration_seconds=self._draw.choice((None, HOUR, 6 * HOUR)),
            max_page_size=self._draw.choice((None, 500)),
            until=self._until(),
        )


@pytest.mark.parametrize(("seed", "ahead_seconds"), [(1, 0.0), (2, 600.0), (3, -600.0)])
async def test_no_bucket_is_wrong_and_what_returns_is_caught_up(
    seed: int, ahead_seconds: float, tmp_path: Path
) -> None:
    fleet = Fleet(seed=seed, zones=5, plans=(Plan.ENTERPRISE, Plan.BUSINESS, Plan.PRO, Plan.FREE), profiles=4)
    datasets = [shipped()[name] for name in DATASETS]
    async with collected(
        tmp_path,
        lambda clock: SimulatedApi(fleet, clock, quota=QuotaLimits(graphql_requests=60)),
        datasets,
        now=NOW,
        ahead_seconds=ahead_seconds,
        replay_hours=REPLAY_HOURS,
    ) as scene:
        chaos = Chaos(seed, fleet, datasets, lambda: scene.clock.now() - ahead_seconds)
        while scene.clock.now() < NOW + 12 * HOUR:
            scene.simulated.faults.add(*chaos.faults())
            await scene.next_pass(chaos.pause_seconds())
        await is_all_true(scene, chaos)
        scene.simulated.faults.clear()
        # Half an hour is what one is held back at most, an hour a denial; what a plan denies is looked at once a day.
        for pause_seconds in (HOUR / 2, HOUR / 2, HOUR, 11 * HOUR, 11 * HOUR, HOUR / 2):
            await scene.next_pass(pause_seconds)
        await is_all_true(scene, chaos)
        await has_everything_or_a_reason(scene)


async def is_all_true(scene: Collected, chaos: Chaos) -> None:
    """Every bucket holds its window's truth, but for metrics of fields that were denied at some time."""
    for dataset, tag, _ in scene.pairs():
        left = {metric.name for metric, _ in dataset.without(chaos.denied_fields[dataset.name, tag]).metrics()}
        for start, samples in (await scene.windows(dataset, tag)).items():
            assert start + HOUR + 600 <= scene.clock.now() - max(0.0, scene_ahead(scene)), "not final"
            truth = expected_samples(dataset, scene.simulated.events.truth(tag, dataset, start, HOUR))
            there = {name for name, _ in samples}
            lacking = {name for name, _ in truth} - there
            assert not lacking & left, f"{dataset.name} of {tag}: the window of {start} lacks {lacking & left}"
            expected: dict[Series, float] = {series: value for series, value in truth.items() if series[0] in there}
            assert samples == expected, f"{dataset.name} of {tag}: the window of {start} is wrong"


def scene_ahead(scene: Collected) -> float:
    return scene.api.ahead_seconds or 0.0


async def has_everything_or_a_reason(scene: Collected) -> None:
    """Of every window that is final: a bucket; or why it has none, which is no failure that may still end."""
    denied, reasons = await scene.denied(), await scene.reasons()
    now = scene.clock.now() - max(0.0, scene_ahead(scene))
    for dataset, tag, plan in scene.pairs():
        captured = (await scene.windows(dataset, tag)).keys()
        if reason := denied.get((dataset.name, tag)):
            is_enabled = entitlement(ENTITLEMENTS, plan, dataset.grain(HOUR).node).is_enabled
            assert not is_enabled, f"{dataset.name} of {tag} is still denied: {reason}"
            continue
        delay_seconds = max(600, dataset.delay_seconds or 0)
        first = int(-(-(now - REPLAY_HOURS * HOUR) // HOUR)) * HOUR
        last = int((now - delay_seconds) // HOUR) * HOUR
        missing = set(range(first, last, HOUR)) - captured
        lost = {start for start in missing if reasons.get((dataset.name, tag, start)) != "expired"}
        assert not lost, (
            f"{dataset.name} of {tag} lacks {len(lost)} windows: {reasons.get((dataset.name, tag, min(lost)))}"
        )
        assert not {start for start in captured if (dataset.name, tag, start) in reasons}


async def test_a_field_that_is_gone_costs_its_metric_and_not_the_dataset(tmp_path: Path) -> None:
    dataset = shipped()["http_cache_status"]
    fleet = Fleet(zones=3, plans=(Plan.ENTERPRISE,), profiles=4)
    gone = next(total for total in dataset.totals if total.field == "sum_edgeResponseBytes")
    async with collected(tmp_path, lambda clock: SimulatedApi(fleet, clock), [dataset], now=NOW) as scene:
        assert await scene.next_pass(0)
        scene.simulated.faults.add(FieldRemoved(node=dataset.grain(HOUR).node, field=gone.field))
        assert not await scene.next_pass(HOUR)
        # The settings, which do not list it any more, are read again within the hour.
        assert [await scene.next_pass(HOUR / 2) for _ in range(3)][-1]
        for zone in fleet.zones:
            windows = await scene.windows(dataset, zone.tag)
            newest = max(windows)
            left = dataset.without({gone.field})
            assert windows[newest] == scene.truth(left, zone.tag, newest, HOUR)
            assert set(range(min(windows), newest, HOUR)) <= windows.keys()


async def test_a_number_that_no_float64_holds_is_the_nearest_one(tmp_path: Path) -> None:
    dataset = shipped()["http_requests"]
    fleet = Fleet(zones=1, plans=(Plan.ENTERPRISE,), profiles=4)
    async with collected(
        tmp_path, lambda clock: SimulatedApi(fleet, clock), [dataset], now=NOW, replay_hours=3
    ) as scene:
        scene.simulated.faults.add(OddRows(how=Oddity.HUGE))
        assert await scene.next_pass(0)
        tag = fleet.zones[0].tag
        for start, samples in (await scene.windows(dataset, tag)).items():
            truth = scene.truth(dataset, tag, start, HOUR)
            assert [samples[series] for series in truth if samples[series] != truth[series]] == [2.0**53]
