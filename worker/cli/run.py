"""`cfrw run`."""

import asyncio
import sys
from pathlib import Path

import click

from worker.app import Worker, stop_on_signals
from worker.cli.options import EXIT_INCOMPLETE, config_option, settings_of, start_logging
from worker.cli.status import is_complete
from worker.clock import SystemClock
from worker.config import Settings


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Collect all that is due, push all that is pending, and exit.")
def run(config_file: Path | None, *, once: bool) -> None:
    """Collect, push and serve until SIGTERM."""
    settings = settings_of(config_file)
    start_logging(settings)
    complete = asyncio.run(_run_once(settings) if once else _run(settings))
    if not complete:
        click.echo("done, but something is still pending, refused or missing: `cfrw status` shows it", err=True)
        sys.exit(EXIT_INCOMPLETE)


async def _run(settings: Settings) -> bool:
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        async with Worker(settings, SystemClock()) as worker:
            await worker.run(stopping)
    return True


async def _run_once(settings: Settings) -> bool:
    stopping = asyncio.Event()
    clock = SystemClock()
    with stop_on_signals(stopping):
        async with Worker(settings, clock, once=True) as worker:
            # What becomes final while this goes on is for the next one; else minute windows would never be complete.
            begun_at = clock.now()
            collected = await worker.run_once(stopping)
            return collected and is_complete(await worker.status(due_at=begun_at))
