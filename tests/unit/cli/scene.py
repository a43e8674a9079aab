"""A person at a terminal: commands in this process; a simulated Cloudflare and a receiver run in another thread."""

import asyncio
import json
import sqlite3
import threading
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from click.testing import CliRunner, Result
from starlette.requests import Request
from starlette.responses import Response

from worker.cli import main
from worker.clock import SystemClock
from worker.ledger import (
    Ledger,
    ScopeReport,
    scope_reports,
)
from worker.remote_write.receiver import MemoryReceiver
from worker.simulator.api import SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.quota import QuotaLimits
from worker.simulator.serving import serve

HOUR = 3600


REPLAY_HOURS = 5


BEARER = "canary-bearer-5d1f"


class Receiver(MemoryReceiver):
    """One that, made to fail, repeats the request that it complains about, credentials and all."""

    async def _answer(self, request: Request) -> Response:
        if self.failure is None:
            return await super()._answer(request)
        return Response(f"{self.failure.text}: {request.url} {request.headers.items()}", self.failure.status)


class World:
    """A simulated Cloudflare and a receiver, in an event loop of their own thread."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.fleet = Fleet(seed=11, zones=3)
        unlimited = QuotaLimits(graphql_requests=10**6, all_requests=10**6)
        self.api = SimulatedApi(self.fleet, self.clock, quota=unlimited)
        self.receiver = Receiver()
        self._urls: Future[tuple[str, str]] = Future()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        self.api_url, self.write_url = self._urls.result()
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            api_url = await stack.enter_async_context(serve(self.api))
            self._urls.set_result((api_url, await stack.enter_async_context(self.receiver.listening())))
            await self._stopping.wait()


@dataclass
class Scene:
    """Somebody at a terminal, with settings for a worker between the two."""

    world: World
    ledger: Path
    environment: dict[str, str | None] = field(default_factory=dict)

    def cfrw(self, *arguments: str, **environment: str | None) -> Result:
        given = CliRunner().invoke(main, arguments, env={**self.environment, **environment}, prog_name="cfrw")
        assert given.exception is None or isinstance(given.exception, SystemExit), given.exc_info
        assert "Traceback" not in given.output
        return given

    def collected(self) -> "Scene":
        """The same after a run that collected and delivered everything."""
        result = self.cfrw("run", "--once")
        assert result.exit_code == 0, result.output
        return self

    def reports(self) -> tuple[ScopeReport, ...]:
        async def read() -> tuple[ScopeReport, ...]:
            ledger = Ledger.open_read_only(self.ledger)
            try:
                return await ledger.read(scope_reports, since=0, final_until=self.world.clock.now())
            finally:
                await ledger.close()

        return asyncio.run(read())

    def content(self) -> dict[str, list[Any]]:
        """Every row of every table that a command could change."""
        with sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True) as connection:
            tables = ("bucket", "delivery", "job", "scope", "hole", "destination", "expectation")
            return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608 - names above

    def journal(self) -> list[dict[str, Any]]:
        rows = self.content()["job"]
        return [
            {"arguments": json.loads(arguments), "reason": reason, "by": by, "state": state}
            for _, _, arguments, reason, by, _, state, *_ in rows
        ]


def config_file(folder: Path, scene: Scene, **destination: object) -> Path:
    """The settings of the scene as a file; its destination has further keys."""
    file = folder / "config.yaml"
    lines = [f"{name.lower()}: {value}" for name, value in scene.environment.items() if "REMOTE_WRITE" not in name]
    lines += ["remote_write:", f"  - url: {scene.world.write_url}", "    name: default"]
    lines += [f"    {key}: {json.dumps(value)}" for key, value in destination.items()]
    file.write_text("\n".join(lines))
    return file


COMMANDS = (
    "run",
    "check",
    "datasets",
    "status",
    "resend",
    "backfill",
    "verify",
    "gaps",
    "export",
    "import",
    "journal",
    "simulate",
    "demo",
)
