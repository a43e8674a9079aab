"""What is wrong with a command line, in one line like any other error's."""

from typing import Any

import click


class WrongUsage(click.ClickException):
    """A command line that click does not take; exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"error: {self.message}", file=file, err=file is None)


class WholeNumber(click.IntRange):
    """A whole number within bounds, which says so of what is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            least = "" if self.min is None else f" of {self.min:,} or more"
            most = f", and of {self.max:,} at most" if self.max is not None and str(value).isdecimal() else ""
            self.fail(f"{value} is not a whole number{least}{most}", param, ctx)


def one_line(error: click.UsageError, command_path: str) -> WrongUsage:
    """What is wrong, and what to do; `command_path` is the command where the error does not know it."""
    path = error.ctx.command_path if error.ctx is not None else command_path
    near = getattr(error, "possibilities", None)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `{path} --help`"
    match error:
        case click.MissingParameter(param=click.Parameter() as param):
            problem = f"{_name(param)} is required"
        case click.BadParameter(param=click.Parameter() as param):
            problem = f"{_name(param)}: {error.message}"
        case _:
            problem = error.message[:1].lower() + error.message[1:]
    return WrongUsage(f"{problem.removesuffix('.')}; {hint}")


def _name(param: click.Parameter) -> str:
    return param.human_readable_name if isinstance(param, click.Argument) else param.opts[0]
