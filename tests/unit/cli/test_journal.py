import json
from pathlib import Path

import pytest

from tests.unit.cli.scene import Scene, config_file
from worker.remote_write.receiver import Failure


def test_the_journal_lists_repairs_and_shows_one(scene: Scene) -> None:
    scene.collected()
    assert scene.cfrw("journal").stdout == "no repair is on record\n"
    assert scene.cfrw("resend", "--since", "10h", "--reason", "the disk was swapped").exit_code == 0
    assert scene.cfrw("resend", "--since", "2h").exit_code == 0

    listed = scene.cfrw("journal")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == ["2", "1"]
    assert [each["job_id"] for each in json.loads(scene.cfrw("journal", "--newest", "1", "--json").stdout)] == [2]
    shown = scene.cfrw("journal", "1").stdout
    assert "the disk was swapped" in shown
    assert "buckets queued again" in shown
    assert json.loads(scene.cfrw("journal", "1", "--json").stdout)["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["7"], "there is no repair 7; `cfrw journal` lists those on record"),
        (["9" * 20], "is not a whole number of 1 or more, and of 9,223,372,036,854,775,807 at most"),
        (["--newest", "9" * 20], "--newest: 99999999999999999999 is not a whole number"),
        (["--cancel"], "--cancel needs the number of a repair"),
        (["1", "--cancel"], "repair 1 has ended (done); there is nothing to cancel"),
    ],
)
def test_what_the_journal_cannot_do_is_told_with_exit_code_2(arguments: list[str], told: str, scene: Scene) -> None:
    scene.collected()
    assert scene.cfrw("resend", "--since", "10h").exit_code == 0
    result = scene.cfrw("journal", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_repair_that_waits_can_be_cancelled(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    scene.environment = dict.fromkeys(scene.environment)
    scene.world.receiver.failure = Failure(503)
    assert scene.cfrw("resend", "--since", "10h", "--config", str(quick)).exit_code == 3
    cancelled = scene.cfrw("journal", "1", "--cancel", "--config", str(quick))
    assert "asked to end" in cancelled.stdout
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    (entry,) = scene.journal()
    assert entry["state"] == "done", "it had queued all that it was to queue"
