"""`cfrw simulate` and `cfrw demo`: the worker tried without Cloudflare."""

import asyncio
import os
import sys

import click

from worker.app import stop_on_signals
from worker.cli.tables import terminal
from worker.cli.usage import WholeNumber
from worker.clock import SystemClock
from worker.config.endpoints import listen_address
from worker.errors import UsageError


@click.command()
@click.option(
    "--listen", default="127.0.0.1:8787", show_default=True, metavar="HOST:PORT", help="Where to listen; port 0: any."
)
@click.option("--zones", default=5, show_default=True, type=WholeNumber(1), help="How many zones there are.")
@click.option("--accounts", default=2, show_default=True, type=WholeNumber(1), help="Over how many accounts.")
@click.option("--seed", default=1, show_default=True, type=WholeNumber(), help="Everything follows from it.")
def simulate(*, listen: str, zones: int, accounts: int, seed: int) -> None:
    """Serve a simulated Cloudflare API until Ctrl-C, for a worker to be tried on."""
    from worker.simulator import api, fleet, serving  # noqa: PLC0415 - needs graphql-core, which a worker does not

    try:
        host, port = listen_address(listen)
    except ValueError as error:
        msg = f"--listen {listen}: {error}"
        raise UsageError(msg) from None

    async def serve_until_stopped() -> None:
        simulated = api.SimulatedApi(fleet.Fleet(seed, zones=zones, accounts=accounts), SystemClock())
        stopping = asyncio.Event()
        with stop_on_signals(stopping):
            async with serving.serve(simulated, host, port) as url:
                click.echo(
                    f"A simulated Cloudflare API with {zones:,} zones listens at {url} until Ctrl-C.\n"
                    "For a worker that collects from it:\n\n"
                    f"  export CF_API_URL={url}\n"
                    f"  export CF_API_TOKEN={api.ACCEPTED_BEARER}\n"
                    "  # Only without a --config file: this replaces every destination that a file lists.\n"
                    "  # export REMOTE_WRITE_URL=http://127.0.0.1:9090/api/v1/write\n"
                    "  cfrw run\n"
                )
                await stopping.wait()

    try:
        asyncio.run(serve_until_stopped())
    except OSError as error:
        # Of the resolver's errors the numbers are negative, and not the operating system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        msg = f"--listen {listen}: cannot listen there: {reason}"
        raise UsageError(msg) from error


@click.command()
@click.option(
    "--receiver",
    type=click.Choice(["auto", "prometheus", "builtin"]),
    default="auto",
    show_default=True,
    help="What receives: a `prometheus` on PATH, or a small one in memory; auto takes the first that there is.",
)
def demo(receiver: str) -> None:
    """Show the whole job on this machine, with an outage in the middle; takes under a minute."""
    from worker.demo.show import Choice, run_demo  # noqa: PLC0415 - needs graphql-core, which a worker does not

    sys.exit(run_demo(Choice(receiver), terminal()))
