"""The command line: what a person asks for, handed to the part that does it, and told in a table, JSON or one line.

Owns the names of commands and options, the exit codes, and how results look on a terminal. Decides nothing else.

Exit codes: 0 done; 1 unexpected failure; 2 bad usage or configuration; 3 done, but something is still pending, refused
or missing, or a check found a failure; 4 another worker holds the ledger; 5 the ledger is damaged or its volume is
unusable. Where Ctrl-C cuts a command off that has nothing to finish, it is 130, as shells have it.
"""

from pathlib import Path
from typing import Any

import click

from worker import __version__
from worker.cli import backfill, check, datasets, export, gaps, imports, journal, resend, run, simulate, status, verify
from worker.cli.options import EXIT_INTERRUPTED, config_option
from worker.cli.usage import one_line
from worker.errors import UsageError, WorkerError

# Longer than the first sentence of any command.
_WHOLE_SENTENCE_CHARACTERS = 1000


class Group(click.Group):
    """Turns errors, the worker's own and those of a command line, into one message and their exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise one_line(error, str(info_name)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with a whole sentence each, which click would cut at the end of the line."""
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(_WHOLE_SENTENCE_CHARACTERS)) for name in names]
            )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WorkerError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            raise one_line(error, f"{ctx.command_path} {ctx.invoked_subcommand}") from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cfrw")
@click.option(
    "--resend-since",
    metavar="WHEN",
    help="Push captured buckets again from WHEN on: the same as `cfrw resend --since WHEN`.",
)
@config_option
@click.pass_context
def main(ctx: click.Context, resend_since: str | None, config_file: Path | None) -> None:
    """Finalized Cloudflare analytics, pushed to Prometheus with their own timestamps.

    Settings come from environment variables and from the file that --config names. WHEN is RFC 3339
    (2026-01-06T03:00:00Z), unix seconds, or a duration ago (90s, 15m, 6h, 3d).
    """
    if ctx.invoked_subcommand is not None:
        if resend_since is not None:
            msg = "--resend-since is a command by itself; `cfrw resend --since WHEN` takes further options"
            raise UsageError(msg)
        if config_file is not None:
            msg = f"--config goes behind the command: cfrw {ctx.invoked_subcommand} --config {config_file}"
            raise UsageError(msg)
        return
    if resend_since is not None:
        ctx.invoke(resend.resend, since=resend_since, config_file=config_file)
        return
    click.echo(ctx.get_help())


for _command in (
    run.run,
    status.status,
    datasets.datasets,
    check.check,
    resend.resend,
    verify.verify,
    backfill.backfill,
    gaps.gaps,
    export.export,
    imports.import_,
    journal.journal,
    simulate.simulate,
    simulate.demo,
):
    main.add_command(_command)
