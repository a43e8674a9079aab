import asyncio
import getpass
import json
import os
import time
from pathlib import Path

import pytest

from tests.unit.cli.scene import HOUR, Scene, config_file
from worker.ledger import (
    Ledger,
    present_scopes,
    record_scopes,
)
from worker.remote_write.receiver import Failure


def test_a_dry_run_shows_what_would_be_sent_and_changes_nothing(scene: Scene) -> None:
    scene.collected()
    before = scene.content(), scene.ledger.read_bytes(), sum(scene.world.receiver.answers.values())
    result = scene.cfrw("resend", "--since", "10h", "--dry-run")
    assert result.exit_code == 0
    assert "Would be sent again" in result.stdout
    (count,) = json.loads(scene.cfrw("resend", "--since", "10h", "--dry-run", "--json").stdout)["counts"]
    captured = sum(report.captured for report in scene.reports())
    assert (count["destination"], count["state"], count["buckets"]) == ("default", "acknowledged", captured)
    assert (scene.content(), scene.ledger.read_bytes(), sum(scene.world.receiver.answers.values())) == before


def test_a_plan_tells_what_a_receiver_will_refuse(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    for window, told in (("2h", "of them are older than 2h"), ("0s", "takes nothing older than the newest sample")):
        file = config_file(tmp_path, scene, out_of_order_time_window=window)
        scene.environment = {name: None if "REMOTE" in name else value for name, value in scene.environment.items()}
        shown = scene.cfrw("resend", "--since", "10h", "--dry-run", "--config", str(file)).stdout
        assert told in shown
        plan = json.loads(scene.cfrw("resend", "--since", "10h", "--dry-run", "--json", "--config", str(file)).stdout)
        assert bool(plan["too_old"]) is (window == "2h")
        assert plan["strict"] == (["default"] if window == "0s" else [])


def test_a_resend_pushes_the_same_samples_again_and_is_on_record(scene: Scene) -> None:
    scene.collected()
    samples = sum(map(len, scene.world.receiver.samples.values()))
    result = scene.cfrw("resend", "--since", "10h", "--reason", "the disk was swapped")
    assert result.exit_code == 0, result.output
    assert scene.world.receiver.repeated_samples == samples
    (entry,) = scene.journal()
    assert entry["reason"] == "the disk was swapped"
    assert entry["by"] == f"{getpass.getuser()}@{os.uname().nodename}"
    assert entry["state"] == "done"
    (count,) = json.loads(scene.cfrw("resend", "--since", "10h", "--json").stdout)["result"]["outcome"]
    assert (count["state"], count["samples"]) == ("acknowledged", samples)


@pytest.mark.parametrize("order", ["short", "long", "short with a file", "file first"])
def test_resend_since_is_the_same_in_every_form(order: str, scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    file = ["--config", str(config_file(tmp_path, scene))]
    if "file" in order:
        scene.environment = dict.fromkeys(scene.environment)
    arguments = {
        "short": ["--resend-since", "4h"],
        "long": ["resend", "--since", "4h"],
        "short with a file": ["--resend-since", "4h", *file],
        "file first": [*file, "--resend-since", "4h"],
    }[order]
    before = int(time.time())
    result = scene.cfrw(*arguments)
    assert result.exit_code == 0, result.output
    (entry,) = scene.journal()
    assert before <= entry["arguments"]["until"] <= time.time()
    assert entry["arguments"]["until"] - entry["arguments"]["since"] in {4 * HOUR, 4 * HOUR + 1}
    assert entry["state"] == "done"
    assert scene.world.receiver.repeated_samples > 0


def test_a_resend_may_be_of_one_zone_by_its_name_or_its_id(scene: Scene) -> None:
    scene.collected()
    zone = scene.world.fleet.zones[1]
    captured = {report.tag: report.captured for report in scene.reports()}[zone.tag]
    for given in (zone.name, zone.tag):
        plan = json.loads(scene.cfrw("resend", "--since", "10h", "--zone", given, "--dry-run", "--json").stdout)
        assert [count["buckets"] for count in plan["counts"]] == [captured]


def test_a_zone_that_has_disappeared_can_be_sent_again(scene: Scene) -> None:
    scene.collected()
    gone = scene.world.fleet.zones[0]

    async def let_it_disappear() -> None:
        ledger = Ledger.open(scene.ledger)
        left = [scope for scope in await ledger.read(present_scopes) if scope.tag != gone.tag]
        await ledger.write(record_scopes, left, scene.world.clock.now())
        await ledger.close()

    asyncio.run(let_it_disappear())
    assert scene.cfrw("resend", "--since", "10h", "--zone", gone.name).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["--since", "30"], "--since: '30' is no time"),
        (["--since", "999999999d"], "--since: '999999999d' lies before 1970"),
        (["--since", "9999999999"], "--since 9999999999 is in the future"),
        (["--since", "9999-12-31T23:59:59-14:00"], "is in the future"),
        (["--since", "1h", "--until", "2h"], "nothing lies between --since"),
        (["--since", "1h", "--until", "2999-01-01"], "--until 2999-01-01 is in the future"),
        (["--since", "1h", "--until", "soon"], "--until: 'soon' is no time"),
        (["--since", "1h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--since", "1h", "--dataset", "http_request"], "is not known; did you mean http_requests or "),
        (["--since", "1h", "--destination", "defualt"], "is not known; did you mean default?"),
    ],
)
def test_what_cannot_be_sent_again_is_told_with_exit_code_2_and_not_put_on_record(
    arguments: list[str], told: str, scene: Scene
) -> None:
    scene.collected()
    for command in ("resend", "verify"):
        result = scene.cfrw(command, *arguments)
        assert result.exit_code == 2
        assert told in result.stderr
    assert scene.journal() == []


def test_a_zone_that_is_misspelt_is_told_with_the_nearest_name(scene: Scene) -> None:
    scene.collected()
    name = scene.world.fleet.zones[0].name
    result = scene.cfrw("resend", "--since", "1h", "--zone", name[:-1])
    assert result.exit_code == 2
    assert name in result.stderr


def test_a_resend_to_a_receiver_that_is_down_is_incomplete_and_stays_on_record(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    scene.environment = dict.fromkeys(scene.environment)
    scene.world.receiver.failure = Failure(503)
    result = scene.cfrw("resend", "--since", "10h", "--config", str(quick))
    assert result.exit_code == 3
    assert "pending" in result.stdout
    (entry,) = scene.journal()
    assert entry["state"] == "running"
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    assert scene.world.receiver.repeated_samples > 0
    (entry,) = scene.journal()
    assert entry["state"] == "done"


def test_a_resend_of_nothing_says_so(scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("resend", "--since", "1s")
    assert result.exit_code == 0
    assert "To be sent again: nothing" in result.stdout


def test_without_a_ledger_there_is_nothing_to_send_again(scene: Scene) -> None:
    result = scene.cfrw("resend", "--since", "1h")
    assert result.exit_code == 5
    assert "there is no ledger" in result.stderr
    assert not scene.ledger.exists()
