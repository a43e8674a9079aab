import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.truth import SAME, difference, expected_content
from tests.unit.cli.scene import HOUR, REPLAY_HOURS, Scene, config_file
from worker.ledger import (
    Ledger,
)
from worker.remote_write.receiver import Failure
from worker.simulator.faults import HttpStatus


def test_once_collects_and_delivers_everything_that_is_due(scene: Scene) -> None:
    result = scene.cfrw("run", "--once")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    wanted: dict[Any, dict[int, float]] = {}
    for report, zone in zip(scene.reports(), sorted(scene.world.fleet.zones, key=lambda zone: zone.name), strict=True):
        assert report.newest_end is not None
        starts = range(report.newest_end - report.captured * HOUR, report.newest_end, HOUR)
        assert report.captured >= REPLAY_HOURS - 1
        wanted |= expected_content(scene.world.fleet, [zone], starts)
    stored = {frozenset(labels): samples for labels, samples in scene.world.receiver.samples.items()}
    assert difference(wanted, stored) == SAME


def test_once_with_a_token_that_cloudflare_refuses_is_incomplete_and_says_so(scene: Scene) -> None:
    result = scene.cfrw("run", "--once", CF_API_TOKEN="canary-wrong-token")
    assert result.exit_code == 3
    assert "Cloudflare refuses the API token; check CF_API_TOKEN" in result.stderr
    assert "`cfrw status` shows it" in result.stderr
    assert "canary-wrong-token" not in result.output


def test_once_without_cloudflare_is_incomplete_even_where_nothing_is_known_to_be_missing(scene: Scene) -> None:
    scene.collected()
    scene.world.api.faults.add(HttpStatus(is_html=True))
    result = scene.cfrw("run", "--once")
    assert result.exit_code == 3
    assert "The zones could not be listed; the last list stays in force" in result.stderr


def test_once_with_a_receiver_that_is_down_is_incomplete_and_says_so(scene: Scene, tmp_path: Path) -> None:
    scene.world.receiver.failure = Failure(503, "closed for repairs")
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    environment = dict.fromkeys(scene.environment)
    scene.environment = environment
    result = scene.cfrw("run", "--once", "--config", str(quick))
    assert result.exit_code == 3
    assert "closed for repairs" in result.stderr
    assert "Giving up for this run" in result.stderr
    shown = scene.cfrw("status", "--config", str(quick))
    assert shown.exit_code == 3
    assert "closed for repairs" in shown.stdout
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    assert scene.cfrw("status", "--config", str(quick)).exit_code == 0


def test_once_with_a_receiver_that_refuses_is_incomplete_and_status_has_its_words(scene: Scene) -> None:
    scene.world.receiver.failure = Failure(400, "out of bounds [/red] [bold]")
    assert scene.cfrw("run", "--once").exit_code == 3
    result = scene.cfrw("status")
    assert result.exit_code == 3
    assert "out of bounds [/red] [bold]" in result.stdout
    assert "  cloudflare_zone_" in result.stdout
    (destination,) = json.loads(scene.cfrw("status", "--json").stdout)["destinations"]
    assert destination["refused_samples"] > 0
    assert destination["refusals"][0]["status"] == 400


def test_a_ledger_that_another_worker_holds_is_told_with_exit_code_4(scene: Scene) -> None:
    held = Ledger.open(scene.ledger)
    try:
        for arguments in (["run"], ["run", "--once"]):
            result = scene.cfrw(*arguments)
            assert result.exit_code == 4
            assert f"another worker (process {os.getpid()}) holds the ledger" in result.stderr
    finally:
        asyncio.run(held.close())


def test_a_file_that_is_no_ledger_is_told_with_exit_code_5(scene: Scene) -> None:
    scene.ledger.write_bytes(b"this is not a database, " * 100)
    for arguments in (["run"], ["run", "--once"], ["status"], ["resend", "--since", "1h"]):
        result = scene.cfrw(*arguments)
        assert result.exit_code == 5
        assert f"{scene.ledger}" in result.stderr


def test_a_place_where_no_ledger_can_be_is_told_with_exit_code_5(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = scene.cfrw("run", "--once", LEDGER_PATH=str(tmp_path / "file" / "ledger.db"))
    assert result.exit_code == 5
    assert "LEDGER_PATH" in result.stderr


def test_a_port_that_is_taken_is_told_with_exit_code_2(scene: Scene) -> None:
    port = scene.world.api_url.split(":")[2].split("/")[0]
    result = scene.cfrw("run", LISTEN_ADDRESS=f"127.0.0.1:{port}")
    assert result.exit_code == 2
    assert "LISTEN_ADDRESS" in result.stderr
