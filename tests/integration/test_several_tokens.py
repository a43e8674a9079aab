"""One worker with two API tokens at one simulated API: `a` sees the first account alone, `b` both of them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock, ManualClock
from worker.app import Worker
from worker.cloudflare import Api
from worker.config import (
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    Settings,
    TokenSettings,
)
from worker.errors import ConfigError
from worker.health import TokenState
from worker.ledger import (
    Backfill,
    BackfillResult,
    JobState,
    ask,
    denials,
    job,
    logged_requests,
    newest_readings,
    present_scopes,
    scope_reports,
)
from worker.remote_write.receiver import MemoryReceiver
from worker.simulator.api import SimulatedApi
from worker.simulator.faults import HttpStatus, TokenRevoked
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

HOUR = 3600
NOW = 1_750_032_600.0  # ten minutes past an hour
TOKENS = {"a": "token-of-a", "b": "token-of-b"}


@dataclass
class Scene:
    clock: ManualClock
    simulated: SimulatedApi
    settings: Settings
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def worker(self, **of_tokens: dict[str, Any]) -> Worker:
        """A worker with the tokens `a` and `b`, with changes to their settings."""
        cloudflare = self.settings.cloudflare
        tokens = [
            TokenSettings.model_validate({"name": name, "api_token": SecretStr(token)} | of_tokens.get(name, {}))
            for name, token in TOKENS.items()
        ]
        changed = cloudflare.model_copy(update=tokens[0].fields() | {"further_tokens": tuple(tokens[1:])})
        return Worker(self.settings.model_copy(update={"cloudflare": changed}), self.clock, once=True)

    def zones_of(self, name: str) -> set[str]:
        """The tags of the zones that are to be asked with a token."""
        account = self.simulated.fleet.accounts["ab".index(name)]
        return {zone.tag for zone in self.simulated.fleet.zones if zone.account == account}

    def asked(self) -> dict[str, set[str]]:
        """What each token was used to ask for, by GraphQL."""
        found: dict[str, set[str]] = {name: set() for name in TOKENS}
        for query in self.simulated.stats.queries:
            name = next(name for name, token in TOKENS.items() if token == query.token)
            found[name].update(tag for asked in query.asked for tag in asked.scope_tags)
        return found


@asynccontextmanager
async def a_scene(folder: Path, clock: ManualClock, **changes: Any) -> AsyncIterator[Scene]:
    fleet = Fleet(seed=5, zones=6, accounts=2)
    simulated = SimulatedApi(fleet, clock, tokens=TOKENS.values(), seen_by={TOKENS["a"]: [fleet.accounts[0].tag]})
    receiver = MemoryReceiver()
    async with serve(simulated) as api_url, receiver.listening() as write_url:
        given = {"api_token": SecretStr("unused"), "api_url": api_url, "replay_hours": 6, "drift_sample_percent": 100}
        settings = Settings(
            cloudflare=CloudflareSettings.model_validate(given | changes),
            destinations=(DestinationSettings(name="memory", url=write_url, out_of_order_time_window_seconds=86_400),),
            ledger=LedgerSettings(path=folder / "ledger.db"),
            listen=ListenSettings(host="127.0.0.1", port=0),
        )
        yield Scene(clock, simulated, settings)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(tmp_path, JumpingClock(NOW)) as made:
        yield made


async def lacking(worker: Worker, now: float) -> set[str]:
    """The scopes that lack windows."""
    found = await worker.ledger.read(scope_reports, since=NOW - 6 * HOUR, final_until=now - 600)
    return {report.tag for report in found if report.missing}


async def captured(worker: Worker) -> dict[str, int]:
    """How many windows of each scope were captured."""
    found = await worker.ledger.read(scope_reports, since=NOW - 6 * HOUR, final_until=NOW + 24 * HOUR)
    return {report.tag: report.captured for report in found}


async def owners(worker: Worker) -> dict[str, set[str]]:
    """The tags of the scopes that are asked with each token, as the ledger has them."""
    found: dict[str, set[str]] = {}
    for scope in await worker.ledger.read(present_scopes):
        found.setdefault(scope.token, set()).add(scope.tag)
    return found


def values(worker: Worker, name: str) -> Iterator[tuple[str, float]]:
    for metric in worker.metrics._registry.collect():
        for sample in metric.samples:
            if sample.name == name:
                yield sample.labels["token"], sample.value


async def test_each_zone_and_account_is_asked_with_the_first_token_that_lists_it(tmp_path: Path) -> None:
    datasets = ("http_requests", "workers_invocations", "facts")
    async with a_scene(tmp_path, JumpingClock(NOW), datasets=datasets) as scene:
        accounts = [account.tag for account in scene.simulated.fleet.accounts]
        own = {name: scene.zones_of(name) | {accounts["ab".index(name)]} for name in TOKENS}
        async with scene.worker() as worker:
            # The first time both may have found them before either knew of the other.
            assert await worker.run_once(scene.stopping)
            assert await owners(worker) == own
            scene.simulated.stats.queries.clear()
            scene.clock.set(scene.clock.now() + HOUR)
            assert await worker.run_once(scene.stopping)
            for meter in worker.drift_meters:
                await meter.read_due(scene.stopping)
            scene.clock.set(scene.clock.now() + 900)
            for meter in worker.drift_meters:
                await meter.read_due(scene.stopping)
            assert scene.asked() == own
            assert await worker.ledger.read(denials) == ()
            readings = await worker.ledger.read(newest_readings, "http_requests", most=1000)
            assert len(readings) >= 6, "of each zone"
            assert all(status == 200 for status in scene.simulated.stats.statuses)
            assert dict(values(worker, "cfrw_zones")) == {"a": 3, "b": 3}
            status = await worker.status()
        assert status.cloudflare.tokens == dict.fromkeys(TOKENS, TokenState.ACCEPTED)
        assert [(each.token, each.api) for each in status.cloudflare.budgets] == [
            (name, api) for name in TOKENS for api in ("graphql", "rest")
        ]
        assert not any(token in str(status) + repr(scene.worker) for token in TOKENS.values())


async def test_windows_of_the_past_are_fetched_with_the_token_that_owns_their_zone(scene: Scene) -> None:
    async with scene.worker() as worker:
        assert await worker.run_once(scene.stopping)
        scene.simulated.stats.queries.clear()
        wanted = Backfill(since=int(NOW) - 12 * HOUR, until=int(NOW))
        number = await worker.ledger.write(ask, wanted, reason="test", asked_by="ann@host", now=NOW)
        await worker.push_once(scene.stopping)
        found = await worker.ledger.read(job, number)
    assert found is not None
    assert isinstance(found.result, BackfillResult)
    assert (found.state, found.result.buckets, found.result.out_of_reach) == (JobState.DONE, 5 * 6, ())
    assert scene.asked() == {name: scene.zones_of(name) for name in TOKENS}


async def test_what_each_token_has_sent_counts_for_the_next_process(scene: Scene) -> None:
    async with scene.worker() as worker:
        assert await worker.run_once(scene.stopping)
        logged = {name: await worker.ledger.read(logged_requests, name) for name in TOKENS}
        sent = {name: len(api.quota.recent_seconds_ago(Api.GRAPHQL)) for name, api in worker.apis.items()}
    assert {name: len(apis["graphql"]) for name, apis in logged.items()} == sent
    async with scene.worker(b={"graphql_requests_per_5_minutes": 200}) as worker:
        assert await worker.run_once(scene.stopping)
        left = {name: api.quota.remaining(Api.GRAPHQL) for name, api in worker.apis.items()}
    # Four may have been under way when the process before this one ended.
    assert left["a"] <= 300 - sent["a"] - 4
    assert left["b"] <= 200 - sent["b"] - 4


@pytest.mark.parametrize("refused", TOKENS)
async def test_a_token_that_is_refused_costs_the_zones_of_the_other_nothing(refused: str, scene: Scene) -> None:
    (other,) = TOKENS.keys() - {refused}
    async with scene.worker() as worker:
        assert await worker.run_once(scene.stopping)
        own = await owners(worker)
    scene.simulated.faults.add(TokenRevoked(token=TOKENS[refused]))
    scene.simulated.stats.queries.clear()
    scene.clock.set(scene.clock.now() + HOUR)
    async with scene.worker() as worker:
        assert not await worker.run_once(scene.stopping)
        readiness = worker.health.readiness()
        assert worker.health.tokens == {refused: TokenState.REFUSED, other: TokenState.ACCEPTED}
        assert dict(values(worker, "cfrw_token_accepted")) == {refused: 0, other: 1}
        assert [problem.what for problem in readiness.problems if problem.what.startswith("token")] == [
            f"token {refused}"
        ]
        assert "api_token under `cloudflare`" in str(readiness.problems)
        assert await owners(worker) == own, "a token keeps what it had, though another could list it"
        assert await lacking(worker, scene.clock.now()) <= scene.zones_of(refused)
        assert not scene.asked()[other] & scene.zones_of(refused)
        told = {token.name: (token.refused_since, token.refusal) for token in (await worker.status()).tokens}
        assert told == {refused: (scene.clock.now(), "Authentication error"), other: (None, None)}
    scene.simulated.faults.clear()
    scene.clock.set(scene.clock.now() + 301)
    async with scene.worker() as worker:
        assert await worker.run_once(scene.stopping)
        assert [token.refusal for token in (await worker.status()).tokens] == [None, None]


async def test_neither_an_outage_nor_a_quota_that_is_used_up_holds_up_the_other_token(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    async with a_scene(tmp_path, clock) as scene:
        async with scene.worker() as worker:
            assert await worker.run_once(scene.stopping)
        first = dict.fromkeys(scene.zones_of("a") | scene.zones_of("b"), 6)
        await clock.advance(HOUR)
        # What may have been under way when the process before ended is more than that, and no time passes.
        async with scene.worker(a={"graphql_requests_per_5_minutes": 1}) as worker:
            await works_until(worker, scene, first | dict.fromkeys(scene.zones_of("b"), 7))
        scene.simulated.faults.add(HttpStatus(token=TOKENS["a"]))
        await clock.advance(HOUR)
        async with scene.worker() as worker:
            await works_until(worker, scene, first | dict.fromkeys(scene.zones_of("b"), 8))


async def works_until(worker: Worker, scene: Scene, wanted: dict[str, int]) -> None:
    """Run a worker until so many windows of each zone are captured."""
    scene.stopping.clear()
    running = asyncio.create_task(worker.run(scene.stopping))
    try:
        while await captured(worker) != wanted:
            await asyncio.sleep(0)
            assert not running.done()
    finally:
        scene.stopping.set()
        await running


async def test_what_does_not_fit_into_the_budget_of_one_token_is_refused_with_its_name(tmp_path: Path) -> None:
    async with (
        a_scene(tmp_path, JumpingClock(NOW), bucket_seconds=60) as scene,
        scene.worker(b={"graphql_requests_per_5_minutes": 1}) as worker,
    ):
        with pytest.raises(ConfigError, match="than Cloudflare allows the token b: 3 zones x 1 dataset"):
            await worker.run_once(scene.stopping)
