"""A fleet that the real collector collects from the simulated API into a real ledger, and what the ledger must hold.

What is expected is said from the simulator's truth in the plainest way, never with the worker's own decoding.
"""

import asyncio
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.clocks import JumpingClock
from worker.clock import Clock
from worker.cloudflare import CloudflareApi, Dataset, Quota
from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL, SAMPLE_INTERVAL_LABEL
from worker.collect import LOOP, Collector
from worker.config import CloudflareSettings
from worker.health import Health
from worker.ledger import Ledger, denials
from worker.observe import Metrics
from worker.series import parse_label_block
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.entitlements import ENTITLEMENTS, PLAN_ORDER, Entitlement, entitlement
from worker.simulator.fleet import Plan
from worker.simulator.wire import CUT, End

HOUR = 3600
DAY = 24 * HOUR

Pair = tuple[str, str]
"""A dataset's name and a scope's tag."""

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name, and the labels that are not the scope's own, sorted."""

Windows = dict[int, dict[Series, float]]
"""Samples by the start of their window."""

_SCOPE_LABELS = frozenset({"__name__", "zone", "zone_id", "account", "account_id"})


class ShiftedClock:
    """A clock that is `ahead_seconds` before another one, and passes with it."""

    def __init__(self, clock: Clock, ahead_seconds: float) -> None:
        self._clock = clock
        self.ahead_seconds = ahead_seconds

    def now(self) -> float:
        return self._clock.now() + self.ahead_seconds

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


@dataclass
class Collected:
    """A collector, the simulated API that it collects from, and the ledger that it collects into."""

    clock: JumpingClock
    simulated: SimulatedApi
    settings: CloudflareSettings
    datasets: Sequence[Dataset]
    ledger: Ledger
    api: CloudflareApi
    collector: Collector
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _series: dict[int, Series] = field(default_factory=dict)
    _owners: dict[int, str] = field(default_factory=dict)

    async def next_pass(self, pause_seconds: float) -> bool:
        self.clock.set(self.clock.now() + pause_seconds)
        return await self.collector.collect_due(self.stopping)

    def pairs(self) -> Iterator[tuple[Dataset, str, Plan]]:
        """Every dataset with every scope of its kind, and the plan that decides on it."""
        fleet = self.simulated.fleet
        best = {
            account.tag: max((zone.plan for zone in fleet.zones if zone.account == account), key=PLAN_ORDER.index)
            for account in fleet.accounts
        }
        plans = {ScopeKind.ZONE: {zone.tag: zone.plan for zone in fleet.zones}, ScopeKind.ACCOUNT: best}
        return ((dataset, tag, plan) for dataset in self.datasets for tag, plan in plans[dataset.scope].items())

    async def windows(self, dataset: Dataset, tag: str) -> Windows:
        """What was captured of a dataset and scope."""
        return await self.ledger.read(captured_windows, dataset.name, tag, self._series, self._owners)

    async def reasons(self) -> dict[tuple[str, str, int], str]:
        """Why windows have no bucket."""
        return await self.ledger.read(hole_reasons)

    async def denied(self) -> dict[Pair, str]:
        """Why datasets are not collected."""
        return {(denial.dataset, denial.tag): denial.detail for denial in await self.ledger.read(denials)}

    def truth(self, dataset: Dataset, tag: str, start: int, width_seconds: int) -> dict[Series, float]:
        """What a bucket of the window must hold."""
        return expected_samples(dataset, self.simulated.events.truth(tag, dataset, start, width_seconds))


@asynccontextmanager
async def collected(
    folder: Path,
    simulated: Callable[[Clock], SimulatedApi],
    datasets: Sequence[Dataset],
    *,
    now: float,
    ahead_seconds: float = 0.0,
    requests_per_5_minutes: int = 300,
    **changes: Any,
) -> AsyncIterator[Collected]:
    """A collector that has not begun; its clock, not Cloudflare's, is `ahead_seconds` ahead."""
    clock = JumpingClock(now)
    cloudflare = simulated(ShiftedClock(clock, -ahead_seconds))
    given = {"api_token": SecretStr(ACCEPTED_BEARER), "api_url": "http://localhost/client/v4", "replay_hours": 24}
    settings = CloudflareSettings.model_validate(given | changes)
    ledger = Ledger.open(folder / "ledger.db")
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=1860, liveness_seconds=960)
    names = [dataset.name for dataset in datasets]
    api = CloudflareApi(
        api_url=f"http://simulated{BASE_PATH}",
        token=ACCEPTED_BEARER,
        clock=clock,
        quota=Quota(clock, graphql=requests_per_5_minutes, total=4 * requests_per_5_minutes),
        transport=httpx.ASGITransport(_cuttable(cloudflare)),
    )
    collector = Collector(
        settings,
        datasets=datasets,
        max_ledger_bytes=2**40,
        api=api,
        ledger=ledger,
        clock=clock,
        health=health,
        metrics=Metrics(clock, health, version="1", sqlite_version="3", datasets=names),
    )
    try:
        yield Collected(clock, cloudflare, settings, datasets, ledger, api, collector)
    finally:
        await api.aclose()
        await ledger.close()


def _cuttable(app: ASGIApp) -> ASGIApp:
    """The application as a server runs it whose connections can break off."""

    def cut(end: End) -> None:
        message = f"the connection is {end}"
        raise httpx.ReadError(message)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, CUT: cut}, receive, send)

    return application


def captured_windows(
    session: Any, dataset: str, tag: str, series: dict[int, Series], owners: dict[int, str]
) -> Windows:
    """The buckets of a dataset and scope; the series known by their number, and whose they are, are completed."""
    run = session._connection.execute
    for number, labels in run(_NEW_SERIES, (max(series, default=0),)):
        series[number], owners[number] = series_of(parse_label_block(labels))
    windows: Windows = {}
    for start, packed, values in run(_BUCKETS, (dataset, tag)):
        ids = array("I", packed)
        assert set(map(owners.__getitem__, ids)) <= {tag}, "a sample of another scope"
        windows[start] = dict(zip(map(series.__getitem__, ids), array("d", values), strict=True))
        assert len(windows[start]) == len(ids), "a series twice"
    return windows


_NEW_SERIES = "SELECT id, labels FROM series WHERE id > ?"
# By the index of (dataset, scope), which a join would not use.
_BUCKETS = (
    "SELECT start, series_ids, sample_values FROM bucket WHERE dataset_id = (SELECT id FROM dataset WHERE name = ?)"
    " AND scope_id = (SELECT id FROM scope WHERE tag = ?) ORDER BY start"
)


def series_of(labels: Mapping[str, str]) -> tuple[Series, str]:
    """A series, and the tag of the scope that it belongs to."""
    others = tuple(sorted(item for item in labels.items() if item[0] not in _SCOPE_LABELS))
    return (labels["__name__"], others), labels.get("zone_id") or labels["account_id"]


def hole_reasons(session: Any) -> dict[tuple[str, str, int], str]:
    rows = session._connection.execute(
        "SELECT dataset.name, tag, start, reason FROM hole"
        " JOIN dataset ON dataset.id = dataset_id JOIN scope ON scope.id = scope_id"
    )
    return {(name, tag, start): reason for name, tag, start, reason in rows}


def expected_samples(dataset: Dataset, truth: Mapping[tuple[Any, ...], Mapping[Any, Any]]) -> dict[Series, float]:
    """What a window's bucket must hold, of the simulator's truth of it (`Events.truth`) without any sampling."""
    names = [label.name for label in dataset.labels]
    samples: defaultdict[Series, float] = defaultdict(float)
    for values, numbers in _kept_rows(dataset, truth).items():
        labels = tuple(sorted(zip(names, values, strict=True)))
        for total in dataset.totals:
            if total.path in numbers or total.has_zero:
                samples[total.metric.name, labels] = numbers[total.path] * total.scale
        for item in dataset.breakdowns:
            metrics = dict(item.values)
            for path, number in numbers.items():
                if path[:-2] == item.path and path[-1] in metrics:
                    samples[metrics[path[-1]].name, ((item.label, path[-2] or "unknown"),)] += number
    if dataset.is_sampled and truth:
        samples[SAMPLE_INTERVAL[dataset.scope].name, ((SAMPLE_INTERVAL_LABEL, dataset.name),)] = 1
    return {series: float(value) for series, value in samples.items()}


def _kept_rows(
    dataset: Dataset, truth: Mapping[tuple[Any, ...], Mapping[Any, Any]]
) -> dict[tuple[str, ...], Counter[Any]]:
    """The numbers by the labels' values, all but the top ones summed up in `other`."""
    rows: dict[tuple[str, ...], Counter[Any]] = {}
    for raw, numbers in truth.items():
        values = tuple(f"{value:g}" if isinstance(value, float) else str(value) or "unknown" for value in raw)
        rows.setdefault(values, Counter()).update(numbers)
    if not dataset.labels:
        rows.setdefault((), Counter())
    top = dataset.top
    if top and len(rows) > top.keep:
        other = ("other",) * len(dataset.labels)
        ranked = sorted(rows.keys() - {other}, key=lambda values: (-rows[values][top.by], values))
        for values in ranked[top.keep :]:
            rows.setdefault(other, Counter()).update(rows.pop(values))
    return rows


def additive_metrics(dataset: Dataset) -> dict[str, float]:
    """The metrics whose samples add up over windows and labels, and their scale."""
    metrics = {total.metric.name: total.scale for total in dataset.totals if total.metric.additive}
    return metrics | {metric.name: 1.0 for item in dataset.breakdowns for _, metric in item.values}


def sums(dataset: Dataset, windows: Iterable[Mapping[Series, float]]) -> dict[str, float]:
    """The sum over windows and labels of each metric that can be summed."""
    found = dict.fromkeys(additive_metrics(dataset), 0.0)
    for samples in windows:
        for (name, _), value in samples.items():
            if name in found:
                found[name] += value
    return found


def is_same_sum(captured: float, expected: float, scale: float) -> bool:
    """Whether two sums are equal, to the bit where a float64 holds all that was added."""
    if scale == 1 and expected < 2**53:
        return captured == expected
    return math.isclose(captured, expected, rel_tol=1e-12)


def narrowed(dataset: Dataset, allowed: Entitlement) -> Dataset | None:
    """What a plan leaves of a dataset; None where that is nothing."""
    lacks = {f"dimensions_{label.dimension}" for label in dataset.labels} & allowed.denied_fields
    left = dataset.without(allowed.denied_fields)
    return None if not allowed.is_enabled or lacks or left.is_empty else left


def entitled(dataset: Dataset, plan: Plan, width_seconds: int) -> Dataset | None:
    """What the simulator's plans leave of a dataset in windows of this width."""
    return narrowed(dataset, entitlement(ENTITLEMENTS, plan, dataset.grain(width_seconds).node))


@dataclass
class Verdict:
    """What a comparison of the ledger with the truth has found; nothing is wrong where `wrong` is empty.

    windows, samples: that were captured, and are as they must be or told in `wrong`.
    denied:           datasets that a scope may not have, with the reason in the ledger.
    filled:           the datasets that have samples other than 0.
    """

    windows: int = 0
    samples: int = 0
    denied: int = 0
    filled: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


async def compared(scene: Collected, since: int, until: int, *, every: int = 1) -> Verdict:
    """Hold days of every dataset and scope against the truth: each day's sums, and every so many windows whole."""
    verdict = Verdict()
    width_seconds = scene.settings.bucket_seconds
    denied = await scene.denied()
    for dataset, tag, plan in scene.pairs():
        left = entitled(dataset, plan, width_seconds)
        windows = await scene.windows(dataset, tag)
        about = f"{dataset.name} of {tag} ({plan})"
        if left is None:
            verdict.denied += 1
            if windows or not denied.get((dataset.name, tag)):
                verdict.wrong.append(f"{about}: denied, with {len(windows)} windows and no reason")
            continue
        if missing := set(range(since, until, width_seconds)) - windows.keys():
            verdict.wrong.append(f"{about}: {len(missing)} windows are missing")
        verdict.windows += len(windows)
        verdict.samples += sum(map(len, windows.values()))
        if any(any(samples.values()) for samples in windows.values()):
            verdict.filled.add(dataset.name)
        for start in range(since, until, every * width_seconds):
            if windows.get(start) != scene.truth(left, tag, start, width_seconds):
                verdict.wrong.append(f"{about}: the window of {start} differs")
        # The node of the windows, and not that of days, where those are different ones.
        by_day = replace(left, grains=(replace(left.grain(width_seconds), width_seconds=DAY),))
        for day in range(since, until, DAY):
            captured = sums(left, [samples for start, samples in windows.items() if day <= start < day + DAY])
            expected = sums(left, [scene.truth(by_day, tag, day, DAY)])
            verdict.wrong += [
                f"{about}: {name} of {day} is {captured[name]}, not {expected[name]}"
                for name, scale in additive_metrics(left).items()
                if not is_same_sum(captured[name], expected[name], scale)
            ]
    return verdict
