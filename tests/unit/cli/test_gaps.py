import json
import shlex
from pathlib import Path

import pytest

from tests.unit.cli.scene import Scene, config_file


def test_gaps_are_listed_with_the_commands_that_fill_them(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    found = scene.cfrw("gaps", "--since", "4h")
    assert (found.exit_code, found.stdout.splitlines()[0]) == (0, "nothing is missing")

    found = scene.cfrw("gaps", "--since", "9h")
    assert found.exit_code == 3
    assert "never asked" in found.stdout
    (command,) = [line.strip() for line in found.stdout.splitlines() if line.startswith("  cfrw ")]
    (gap,) = json.loads(scene.cfrw("gaps", "--since", "9h", "--json").stdout)["gaps"]
    assert (gap["cause"], gap["command"], len(gap["scopes"])) == ("never asked", command, 3)

    elsewhere = config_file(tmp_path, scene)
    environment = dict.fromkeys(scene.environment)
    found = scene.cfrw("gaps", "--since", "9h", "--config", str(elsewhere), **environment)
    (pasted,) = [line.strip() for line in found.stdout.splitlines() if line.startswith("  cfrw ")]
    assert pasted == command.replace("backfill", f"backfill --config {elsewhere}")
    assert scene.cfrw(*shlex.split(pasted)[1:], **environment).exit_code == 0
    assert scene.cfrw("gaps", "--since", "9h").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--since", "1h", "--until", "2h"], "nothing lies between --since"),
        (["--since", "1h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--since", "1h", "--dataset", "http_request"], "did you mean http_requests"),
        (["--since", "2999-01-01"], "is in the future"),
    ],
)
def test_gaps_of_what_does_not_exist_are_told_with_exit_code_2(arguments: list[str], told: str, scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("gaps", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
