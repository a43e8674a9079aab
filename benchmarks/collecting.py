"""The way in: how soon a worker that starts asks Cloudflare, and what one window of a large fleet takes."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.processes import TASK_SECONDS, Measured, run
from benchmarks.sender import HOUR_SECONDS
from tests.receivers import free_port

_BEARER = "simulated-token"  # what the simulated Cloudflare accepts
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Collection:
    """One window of a fleet, captured.

    measured:         the collector's process; its wall time includes waiting for the simulated Cloudflare.
    graphql_requests: that it took.
    rest_requests:    to list the zones.
    """

    measured: Measured
    graphql_requests: int
    rest_requests: int


async def seconds_to_first_request() -> float:
    """From the start of `cfrw run`, with an empty ledger, to the first byte of its first request to Cloudflare."""
    arrived: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if not arrived.done():
            arrived.set_result(time.monotonic())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        settings = {
            "CF_API_TOKEN": _BEARER,
            "CF_API_URL": f"http://127.0.0.1:{port}/client/v4",
            "REMOTE_WRITE_URL": f"http://127.0.0.1:{port}/api/v1/write",
            "LEDGER_PATH": str(Path(folder, "ledger.db")),
            "LISTEN_ADDRESS": "127.0.0.1:0",
            "LOG_LEVEL": "error",
        }
        started = time.monotonic()
        async with _worker("run", settings), asyncio.timeout(TASK_SECONDS):
            seconds = await arrived - started
    server.close()
    return seconds


async def collect_fleet(zones: int) -> Collection:
    """Capture one hour of a fleet from a simulated Cloudflare in a process of its own."""
    # Half past the hour before: one hour is final and within the replay, and all of its traffic has long settled.
    now = time.time() // HOUR_SECONDS * HOUR_SECONDS - HOUR_SECONDS / 2
    with tempfile.TemporaryDirectory(prefix="cfrw-bench-") as folder:
        address = f"127.0.0.1:{free_port()}"
        api_url = f"http://{address}/client/v4"
        ledger = str(Path(folder, "ledger.db"))
        async with (
            _worker("simulate", {}, f"--listen={address}", f"--zones={zones}"),
            httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
        ):
            await _until_it_answers(client)
            measured = await run("benchmarks.sender", "collect", api_url, _BEARER, ledger, str(now))
            requests = (await client.get("/admin/stats")).json()["requests"]
    graphql = requests.pop("graphql")
    return Collection(measured=measured, graphql_requests=graphql, rest_requests=sum(requests.values()))


@contextlib.asynccontextmanager
async def _worker(command: str, settings: dict[str, str], *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CF_", "REMOTE_WRITE_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        command,
        *arguments,
        env=environment | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_it_answers(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(TASK_SECONDS):
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get("/admin/stats")
                return
            await asyncio.sleep(_POLL_SECONDS)
