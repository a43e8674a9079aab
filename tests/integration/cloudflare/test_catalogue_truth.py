"""The whole catalogue, asked of the simulated API: what is answered is its truth, and nothing is silently empty."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx

from tests.clocks import ManualClock
from tests.collected_fleet import Series, expected_samples, series_of
from worker.cloudflare import Account, Answered, CloudflareApi, ErrorKind, Failed, Quota, Samples, Scope, Zone
from worker.cloudflare.catalogue import ScopeKind, Top, shipped
from worker.series import parse_label_block
from worker.simulator.api import ACCEPTED_BEARER, BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet

NOW = 1_750_032_600


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


def found(samples: Samples) -> dict[Series, float]:
    """Value by metric and the dataset's own labels."""
    series = [series_of(parse_label_block(block))[0] for block in samples.series]
    return dict(zip(series, samples.values, strict=True))


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
                    assert found(samples) == expected_samples(asked, truth), (asked.name, window)
                    folded += samples.folded
                    if samples.series:
                        filled.add(asked.name)
    assert folded > 100
    assert filled == set(shipped())
