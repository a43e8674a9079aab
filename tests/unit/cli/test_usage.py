from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from tests.unit.cli.scene import COMMANDS
from worker.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "no such command 'fly'; see `cfrw --help`"),
        (["--fast"], "no such option '--fast'; see `cfrw --help`"),
        (["run", "--onse"], "no such option '--onse'; did you mean --once?"),
        (["resend"], "--since is required; see `cfrw resend --help`"),
        (["import"], "FILE... is required; see `cfrw import --help`"),
        (["--config", "x.yaml", "run"], "--config goes behind the command: cfrw run --config x.yaml"),
        (
            ["--resend-since", "3h", "status"],
            "--resend-since is a command by itself; `cfrw resend --since WHEN` takes further options",
        ),
        (
            ["simulate", "--zones", "0"],
            "--zones: 0 is not a whole number of 1 or more; see `cfrw simulate --help`",
        ),
        (["simulate", "--seed", "a"], "--seed: a is not a whole number; see `cfrw simulate --help`"),
        (["simulate", "--listen", "nowhere"], "--listen nowhere:"),
        (
            ["demo", "--receiver", "thanos"],
            "--receiver: 'thanos' is not one of 'auto', 'prometheus', 'builtin'; see `cfrw demo --help`",
        ),
        (["journal", "x"], "NUMBER: x is not a whole number of 1 or more"),
    ],
)
def test_wrong_usage_is_told_in_one_line_with_exit_code_2(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="cfrw")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {told}")


def wrong_lines(name: str) -> Iterator[tuple[list[str], str]]:
    """A command line of each kind that a command does not take, and what its error names."""
    command = main.commands[name]
    options = [each for each in command.params if isinstance(each, click.Option)]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    needed = [word for each in options if each.required for word in (each.opts[0], "1h")]
    yield [name, "--no-such-option"], "--no-such-option"
    yield from (([name, each.opts[0]], each.opts[0]) for each in options if not each.is_flag)
    yield from (([name, f"{each.opts[0]}=1"], each.opts[0]) for each in options if each.is_flag)
    yield from (([name, each.opts[0], "?"], each.opts[0]) for each in options if not isinstance(each.type, FREE))
    yield from (([name], each.opts[0]) for each in options if each.required)
    if not any(each.nargs == -1 for each in arguments):
        yield [name, *needed, *("1" for _ in arguments), "superfluous"], "superfluous"


FREE = (click.types.StringParamType, click.types.BoolParamType, click.Path)
"""Types that are no wrong ones to click."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_in_one_line_what_it_does_not_take(name: str) -> None:
    for arguments, wrong in wrong_lines(name):
        result = CliRunner().invoke(main, arguments, prog_name="cfrw")
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert result.stderr.startswith("error: "), arguments
        assert wrong in result.stderr, arguments
        assert result.stderr.count("\n") == 1, arguments
