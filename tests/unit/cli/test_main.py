import click
import pytest
from click.testing import CliRunner

from tests.unit.cli.scene import COMMANDS
from worker.cli import main
from worker.errors import UsageError


def test_without_a_command_the_help_is_shown() -> None:
    bare = CliRunner().invoke(main, [], prog_name="cfrw")
    assert bare.exit_code == 0
    assert bare.stdout == CliRunner().invoke(main, ["--help"], prog_name="cfrw").stdout
    for command in COMMANDS:
        assert f"  {command} " in bare.stdout
    assert "..." not in bare.stdout.partition("Commands:")[2], "a sentence is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    for option in ("-h", "--help"):
        result = CliRunner().invoke(main, [command, option], prog_name="cfrw")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: cfrw {command}")


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("cfrw, version ")


def test_errors_of_the_worker_are_one_message_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        message = "what happened, and what to do"
        raise UsageError(message)

    monkeypatch.setattr("worker.cli.status.settings_of", fail)
    result = CliRunner().invoke(main, ["status"])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: what happened, and what to do\n")


def test_the_commands_of_these_tests_are_all_there_are() -> None:
    assert isinstance(main, click.Group)
    assert set(main.commands) == set(COMMANDS)
