"""The whole catalogue, asked of the simulated API: what is answered is its truth, and nothing is silently empty."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from worker.cloudflare import Account, Answered, CloudflareApi, Dataset, ErrorKind, Failed, Quota, Samples, Scope, Zone
from worker.cloudflare.catalogue import ScopeKind, Top, shipped
from worker.series import parse_label_block
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet

NOW = 1_750_032_600
NAMES = {"zone", "zone_id", "account", "account_id", "__name__"}
Series = tuple[str, tuple[str, ...]]


@asynccontextmanager
async def connected(simulated: SimulatedApi, clock: ManualClock) -> AsyncIterator[CloudflareApi]:
    api = CloudflareApi(
        api_url=f"http://simulated{BASE_PATH}",
        token=ACCEPTED_BEARER,
        clock=clock,
        quota=Quota(clock, graphql=100_000, total=100_000),
        transport=httpx.ASGITransport(simulated),
    )
    yield api
    await api.aclose()


def found(dataset: Dataset, samples: Samples) -> dict[Series, float]:
    """Value by metric and label values; maps and sample intervals are left out."""
    metrics = {total.metric.name for total in dataset.totals}
    values = {}
    for block, value in zip(samples.series, samples.values, strict=True):
        labels = parse_label_block(block)
        if labels["__name__"] in metrics:
            assert labels.keys() - NAMES == {label.name for label in dataset.labels}
            values[labels["__name__"], tuple(labels[label.name] for label in dataset.labels)] = value
    return values


def expected(dataset: Dataset, truth: Mapping[tuple[Any, ...], Mapping[Any, Any]]) -> dict[Series, Any]:
    """The same from the truth, in the plainest way."""
    rows: dict[tuple[str, ...], Counter[Any]] = {}
    for raw, numbers in truth.items():
        values = tuple(f"{value:g}" if isinstance(value, float) else str(value) or "unknown" for value in raw)
        rows.setdefault(values, Counter()).update(numbers)
    if not dataset.labels and not truth:
        rows[()] = Counter()
    top = dataset.top
    if top and len(rows) > top.keep:
        other = ("other",) * len(dataset.labels)
        ranked = sorted(rows.keys() - {other}, key=lambda values: (-rows[values][top.by], values))
        for values in ranked[top.keep :]:
            rows.setdefault(other, Counter()).update(rows.pop(values))
    return {
        (total.metric.name, values): pytest.approx(numbers[total.path] * total.scale)
        for values, numbers in rows.items()
        for total in dataset.totals
        if total.path in numbers or total.has_zero
    }


async def test_every_dataset_is_answered_with_its_truth_where_a_plan_has_it() -> None:
    clock = ManualClock(NOW)
    simulated = SimulatedApi(Fleet(zones=5), clock)
    zones: list[Scope] = [
        Zone(zone.tag, zone.name, zone.account.tag, zone.account.name) for zone in simulated.fleet.zones
    ]
    accounts: list[Scope] = [Account(account.tag, account.name) for account in simulated.fleet.accounts]
    start = NOW - NOW % 3600 - 4 * 3600
    folded = 0
    filled: set[str] = set()
    async with connected(simulated, clock) as api:
        for kind, scopes in ((ScopeKind.ZONE, zones), (ScopeKind.ACCOUNT, accounts)):
            # With few to keep there is something to sum up.
            datasets = [
                replace(dataset, top=Top(3, dataset.top.by)) if dataset.top else dataset
                for dataset in shipped().values()
                if dataset.scope is kind
            ]
            for answer in await api.fetch(datasets, 3600, scopes, [start, start + 3600]):
                if isinstance(answer, Failed):
                    assert answer.failure.kind is ErrorKind.PLAN_DATASET, answer
                    continue
                assert isinstance(answer, Answered)
                asked = answer.dataset.without(answer.dropped)
                for window, samples in answer.windows.items():
                    truth = simulated.events.truth(answer.scope.tag, asked, window, 3600)
                    assert found(asked, samples) == expected(asked, truth), (asked.name, window)
                    folded += samples.folded
                    if samples.series:
                        filled.add(asked.name)
    assert folded > 100
    assert filled == set(shipped())
