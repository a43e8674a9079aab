from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from tests.clocks import ManualClock
from tests.unit.cloudflare.datasets import KV_STORED
from tests.unit.cloudflare.fake import zone
from worker.cloudflare import (
    Account,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    ErrorKind,
    Narrowed,
    Priority,
    Scope,
    shipped,
)
from worker.discovery import AGAIN_SECONDS, REFRESH_SECONDS, Discovery
from worker.ledger import Ledger, denials, record_denials, record_scopes
from worker.ledger import Scope as KnownScope

NOW = 1_750_000_000.0
ROLLUPS = shipped()["http_requests"]
NO_PLAN = Denied("the plan does not include it")


@dataclass
class FakeSettings:
    """What every scope is entitled to, by tag; everything where nothing else is said."""

    denied: dict[str, Denied | ApiFailure] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    priorities: list[Priority] = field(default_factory=list)

    async def discover(
        self, datasets: Sequence[Dataset], _width: int, scopes: Sequence[Scope], *, priority: Priority
    ) -> dict[tuple[str, str], Narrowed | Denied | ApiFailure]:
        self.asked.append(tuple(scope.tag for scope in scopes))
        self.priorities.append(priority)
        return {
            (dataset.name, scope.tag): self.denied.get(scope.tag, Narrowed(dataset))
            for dataset in datasets
            for scope in scopes
        }


@dataclass
class Scene:
    api: FakeSettings
    clock: ManualClock
    ledger: Ledger
    discovery: Discovery
    scopes: dict[str, Scope]

    async def look(self) -> None:
        while not await self.discovery.step(self.scopes):
            pass

    async def denied(self) -> dict[str, str]:
        return {denial.tag: denial.detail for denial in await self.ledger.read(denials)}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = ManualClock(NOW)
    ledger = Ledger.open(tmp_path / "ledger.db")
    scopes: list[Scope] = [zone(number) for number in range(295)] + [Account(f"{number:032x}") for number in (901, 902)]
    known = [KnownScope(scope.tag, scope.name, "", "", "") for scope in scopes]
    await ledger.write(record_scopes, known, NOW)
    api = FakeSettings()
    discovery = Discovery([ROLLUPS, KV_STORED], 3600, api=cast(CloudflareApi, api), ledger=ledger, clock=clock)
    yield Scene(api, clock, ledger, discovery, {scope.tag: scope for scope in scopes})
    await ledger.close()


async def test_everybody_is_looked_at_once_in_steps_of_a_few_queries_zones_by_tens_and_accounts_alone(
    scene: Scene,
) -> None:
    assert not await scene.discovery.step(scene.scopes)
    assert len(scene.api.asked) == 24
    assert sum(map(scene.discovery.is_known, scene.scopes)) < len(scene.scopes)
    await scene.look()
    assert sorted(map(len, scene.api.asked)) == [1, 1, 5, *[10] * 29]
    await scene.look()
    assert len(scene.api.asked) == 32


async def test_what_is_denied_is_in_the_ledger_with_its_reason_until_a_look_finds_it_granted(
    scene: Scene,
) -> None:
    bad = zone(7).tag
    scene.api.denied[bad] = NO_PLAN
    await scene.look()
    assert scene.discovery.is_denied(ROLLUPS, bad)
    assert not scene.discovery.is_denied(ROLLUPS, zone(8).tag)
    assert await scene.denied() == {bad: NO_PLAN.reason}
    scene.api.denied.clear()
    scene.clock.set(NOW + REFRESH_SECONDS - 1)
    await scene.look()
    assert scene.discovery.is_denied(ROLLUPS, bad)
    scene.clock.set(NOW + REFRESH_SECONDS)
    while scene.discovery.is_denied(ROLLUPS, bad):
        await scene.discovery.step(scene.scopes)
    assert await scene.denied() == {}


async def test_a_denial_that_the_last_look_did_not_foresee_leads_to_another_within_the_hour(scene: Scene) -> None:
    await scene.look()
    scene.api.asked.clear()
    scene.discovery.note_denial(zone(3).tag)
    await scene.look()
    assert scene.api.asked == []
    scene.clock.set(NOW + AGAIN_SECONDS)
    await scene.look()
    assert scene.api.asked == [(zone(3).tag,)]
    assert set(scene.api.priorities[:-1]) == {Priority.LIVE}, "the newest windows wait for a first look"
    assert scene.api.priorities[-1] is Priority.DISCOVERY


async def test_who_could_not_be_looked_at_is_asked_for_everything_and_looked_at_again_within_the_hour(
    scene: Scene,
) -> None:
    unknown = zone(3).tag
    scene.api.denied[unknown] = ApiFailure(ErrorKind.SERVER, "unable to execute query")
    await scene.look()
    assert scene.discovery.is_known(unknown)
    assert not scene.discovery.is_denied(ROLLUPS, unknown)
    assert await scene.denied() == {}
    scene.api.asked.clear()
    scene.clock.set(NOW + AGAIN_SECONDS)
    await scene.look()
    assert scene.api.asked == [(unknown,)]


async def test_who_comes_back_is_looked_at_anew(scene: Scene) -> None:
    tag = zone(7).tag
    scene.api.denied[tag] = NO_PLAN
    await scene.look()
    back = scene.scopes.pop(tag)
    await scene.look()
    assert not scene.discovery.is_known(tag)
    # With another token it was not denied.
    await scene.ledger.write(record_denials, {(ROLLUPS.name, tag): None}, NOW)
    scene.scopes[tag] = back
    await scene.look()
    assert await scene.denied() == {tag: NO_PLAN.reason}


async def test_a_denial_of_the_process_before_that_is_none_any_more_is_forgotten(scene: Scene) -> None:
    bad = zone(7).tag
    scene.api.denied[bad] = NO_PLAN
    await scene.look()
    scene.api.denied.clear()
    scene.discovery = Discovery(
        [ROLLUPS, KV_STORED], 3600, api=cast(CloudflareApi, scene.api), ledger=scene.ledger, clock=scene.clock
    )
    await scene.look()
    assert await scene.denied() == {}
