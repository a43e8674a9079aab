"""The ledger makes room out of what was delivered, and whatever happens to its file is told."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.ledger.fleet import (
    acknowledge_all,
    ask_for_resend,
    carry_out_next,
    pending_ids,
)
from tests.unit.test_collect import HOUR, NOW, Scene, a_scene, due, new_collector
from worker.cli import main
from worker.cloudflare import shipped
from worker.config import LedgerSettings
from worker.errors import LedgerUnusableError
from worker.ledger import (
    Resend,
    register_destinations,
    room,
)
from worker.maintain import LOOP, Maintainer
from worker.observe import Redactor


@dataclass
class Upkeep:
    """A collector and the upkeep of the ledger that it fills."""

    scene: Scene
    maintainer: Maintainer

    async def used_bytes(self) -> int:
        return (await self.scene.ledger.read(room)).used_bytes

    def limit(self, max_bytes: int) -> None:
        """From now on the ledger may take so much."""
        scene = self.scene
        scene.collector = new_collector(scene, scene.settings, max_ledger_bytes=max_bytes)
        self.maintainer = maintainer_of(scene, max_bytes)


def maintainer_of(scene: Scene, max_bytes: int) -> Maintainer:
    settings = LedgerSettings.model_construct(retention_hours=168, max_bytes=max_bytes)
    return Maintainer(
        scene.settings,
        settings,
        datasets=[shipped()["http_requests"]],
        ledger=scene.ledger,
        clock=scene.clock,
        health=scene.health,
        metrics=scene.metrics,
    )


@pytest.fixture
async def upkeep(tmp_path: Path) -> AsyncIterator[Upkeep]:
    """Twelve hours of three zones are captured; the replay bound is six."""
    async with a_scene(tmp_path) as scene:
        scene.health.expect(LOOP, allowance_seconds=150, liveness_seconds=150)
        await scene.ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
        scene.api.samples_per_window = 1000
        await scene.collect()
        scene.clock.set(NOW + 6 * HOUR)
        await scene.collect()
        yield Upkeep(scene, maintainer_of(scene, 2**30))


# ------------------------------------------------------------------------------------------ the budget


async def test_at_the_budget_what_was_delivered_makes_room_and_collection_goes_on(upkeep: Upkeep) -> None:
    scene = upkeep.scene
    await acknowledge_all(scene.ledger)
    before = due(scene)
    await upkeep.maintainer.tidy()
    assert len((await scene.captured())[scene.api.zones[0].tag]) == 12, "below the budget, a week is kept"
    upkeep.limit(await upkeep.used_bytes())
    scene.clock.set(scene.clock.now() + HOUR)
    assert not await scene.collect()
    assert (await scene.captured())[scene.api.zones[0].tag][-1] == before[-1]
    await upkeep.maintainer.tidy()
    assert await scene.next_pass()
    assert set(map(tuple, (await scene.captured()).values())) == {tuple(due(scene))}


async def test_at_the_budget_nothing_is_deleted_that_is_younger_than_the_replay_bound(upkeep: Upkeep) -> None:
    scene = upkeep.scene
    await acknowledge_all(scene.ledger)
    before = await scene.captured()
    upkeep.limit(1)
    await upkeep.maintainer.tidy()
    bound = scene.clock.now() - 6 * HOUR
    younger = {tag: [start for start in starts if start + HOUR >= bound] for tag, starts in before.items()}
    assert await scene.captured() == younger
    assert {len(starts) for starts in younger.values()} == {6}


async def test_at_the_budget_what_waits_for_delivery_is_never_deleted(upkeep: Upkeep) -> None:
    scene = upkeep.scene
    await acknowledge_all(scene.ledger)
    now = scene.clock.now()
    await scene.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=now)
    await scene.ledger.write(carry_out_next, now)
    waiting = await pending_ids(scene.ledger)
    assert len(waiting) == 36
    upkeep.limit(1)
    await upkeep.maintainer.tidy()
    scene.clock.set(now + HOUR)
    assert not await scene.collect()
    await upkeep.maintainer.tidy()
    assert await pending_ids(scene.ledger) == waiting


async def test_below_the_budget_what_was_delivered_is_kept_as_long_as_retention_says(upkeep: Upkeep) -> None:
    scene = upkeep.scene
    await acknowledge_all(scene.ledger)
    upkeep.limit(await upkeep.used_bytes() + 1)
    await upkeep.maintainer.tidy()
    assert {len(starts) for starts in (await scene.captured()).values()} == {12}


# ------------------------------------------------------------------------------------------ the file


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def move(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))


@pytest.mark.parametrize("harm", [delete, replace, move])
async def test_a_ledger_whose_file_is_not_there_any_more_ends_the_worker(harm: Any, upkeep: Upkeep) -> None:
    await upkeep.maintainer.tidy()
    harm(upkeep.scene.ledger.path)
    with pytest.raises(LedgerUnusableError, match="was moved or deleted under the running worker"):
        await upkeep.maintainer.tidy()


@pytest.mark.parametrize("harm", [delete, replace])
@pytest.mark.parametrize("once", [[], ["--once"]], ids=["run", "once"])
def test_the_command_ends_with_5_and_says_what_became_of_the_ledger(
    harm: Any, once: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    tidy = Maintainer.tidy

    async def after_the_harm(self: Maintainer) -> None:
        harm(path)
        await tidy(self)

    monkeypatch.setattr(Maintainer, "tidy", after_the_harm)
    # Logging is of the whole process, and would go on writing to what this test closes.
    monkeypatch.setattr("worker.cli.options.configure_logging", lambda _level, _format, secrets: Redactor(secrets))
    result = CliRunner().invoke(
        main,
        ["run", *once],
        env={
            "CF_API_TOKEN": "canary-token",
            "CF_API_URL": "http://127.0.0.1:9/client/v4",
            "REMOTE_WRITE_URL": "http://127.0.0.1:9/api/v1/write",
            "LEDGER_PATH": str(path),
            "LISTEN_ADDRESS": "127.0.0.1:0",
        },
    )
    assert result.exit_code == 5, result.output
    assert f"error: the ledger {path} was moved or deleted under the running worker" in result.output
