"""The demo's receiver: Prometheus as a child process, or one in memory; either can be taken down and brought back.

Owns the search for a `prometheus` that will do. Promises that what it starts ends with the demo, and is reached from
this machine only.
"""

import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from worker.clock import SystemClock
from worker.demo.outcome import Samples
from worker.errors import WorkerError
from worker.remote_write.receiver import MemoryReceiver
from worker.serve import Server

HOST = "127.0.0.1"

# 2.39 is the first version with an out-of-order window.
_OLDEST_PROMETHEUS = (2, 39)
# It takes 0.1 s to tell its version.
_VERSION_SECONDS = 10

# Longer than the demo reaches back, so that any order is taken.
OUT_OF_ORDER_SECONDS = 86_400

# It is ready after half a second; a machine that needs longer than this does not finish the demo in time either.
_START_SECONDS = 20.0
_LOOK_SECONDS = 0.05
# It stops in a tenth of a second. After the grace it is killed, which takes no time.
_GRACE_SECONDS = 5.0
_KILLED_SECONDS = 5.0
_QUERY_SECONDS = 20.0

# Below the ports that Linux (from 32768) and macOS (from 49152) hand to outgoing connections: nobody is given the
# receiver's port while it is down, least of all the worker, which would then connect to itself.
_PORTS = range(20_000, 32_000)


class Receiver(Protocol):
    """Where the demo's samples go. It keeps its address and what it has stored while it is down.

    name:      as a sentence calls it.
    base_url:  where it listens.
    write_url: where remote write goes.
    """

    name: str
    base_url: str

    @property
    def write_url(self) -> str: ...

    async def start(self) -> None:
        """Come up; return when requests are answered. WorkerError where that fails."""

    async def stop(self) -> None:
        """Go down; return when the port is closed. Nothing happens where it is down already."""

    async def read(self) -> Samples:
        """Everything that it has stored."""


class BuiltIn:
    """The receiver in memory, which refuses whatever breaks a rule of remote write."""

    name = "the built-in receiver"

    def __init__(self) -> None:
        self.memory = MemoryReceiver()
        self._port = _free_port()
        self.base_url = f"http://{HOST}:{self._port}"
        self._serving: tuple[Server, asyncio.Task[None]] | None = None

    @property
    def write_url(self) -> str:
        return f"{self.base_url}/api/v1/write"

    async def start(self) -> None:
        server = await Server.bind(self.memory.app, HOST, self._port)
        self._serving = server, asyncio.create_task(server.serve(), name="receiver")

    async def stop(self) -> None:
        if self._serving is not None:
            server, serving = self._serving
            self._serving = None
            server.stop()
            await serving

    async def read(self) -> Samples:
        return self.memory.samples


@dataclass(frozen=True, slots=True)
class PrometheusProgram:
    """A `prometheus` that will do, and the version that it tells."""

    path: Path
    version: str


class Prometheus:
    """Prometheus with its data in `folder`, which has to exist."""

    def __init__(self, program: PrometheusProgram, folder: Path) -> None:
        self.name = f"Prometheus {program.version}"
        self._program = program.path
        self._folder = folder
        self._port = _free_port()
        self.base_url = f"http://{HOST}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def write_url(self) -> str:
        return f"{self.base_url}/api/v1/write"

    async def start(self) -> None:
        # Every JSON text is a YAML text.
        configuration = {"storage": {"tsdb": {"out_of_order_time_window": f"{OUT_OF_ORDER_SECONDS}s"}}}
        (self._folder / "prometheus.yml").write_text(json.dumps(configuration))
        self._process = self._spawn()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._until_ready(self._process)
        except TimeoutError:
            msg = f"{self.name} was not ready within {_START_SECONDS:.0f} s.{self._last_words()}"
            raise WorkerError(msg) from None

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The end of its leash.
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.to_thread(process.wait, _GRACE_SECONDS + _KILLED_SECONDS)

    async def read(self) -> Samples:
        # Over an hour from now back to two days ago; the demo's samples lie in the few hours before now.
        query = {"query": '{__name__=~"cloudflare_.+"}[49h]', "time": str(SystemClock().now() + 3600)}
        async with httpx.AsyncClient(timeout=_QUERY_SECONDS, trust_env=False) as client:
            answer = await client.post(f"{self.base_url}/api/v1/query", data=query)
        if answer.is_error:
            msg = f"{self.name} answers a query with {answer.status_code}: {answer.text[:300]}"
            raise WorkerError(msg)
        return {
            tuple(sorted(series["metric"].items())): {
                round(seconds * 1000): float(value) for seconds, value in series["values"]
            }
            for series in answer.json()["data"]["result"]
        }

    def _spawn(self) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("leash.py")),
            str(_GRACE_SECONDS),
            str(self._program),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={HOST}:{self._port}",
            "--web.enable-remote-write-receiver",
            "--log.level=warn",
        ]
        with self._log.open("ab") as log:
            # Signals of the terminal go to its own sessions only, so that the demo alone decides when this one ends.
            return subprocess.Popen(  # noqa: S603 - a program that the user has, with arguments written here
                command,
                cwd=self._folder,
                env={},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def _until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        machine = SystemClock()
        async with httpx.AsyncClient(timeout=_QUERY_SECONDS, trust_env=False) as client:
            while process.poll() is None:
                try:
                    if (await client.get(f"{self.base_url}/-/ready")).is_success:
                        return
                except httpx.TransportError:
                    pass  # nobody listens yet
                await machine.sleep(_LOOK_SECONDS)
        msg = f"{self.name} ({self._program}) does not start.{self._last_words()}"
        raise WorkerError(msg)

    @property
    def _log(self) -> Path:
        return self._folder / "prometheus.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "".join(f"\n  {line}" for line in lines[-5:])


def find_prometheus(folder: Path) -> PrometheusProgram | None:
    """A `prometheus` that will do: the one on PATH, else the newest that was fetched for tests below `folder`."""
    if (on_path := shutil.which("prometheus")) and (program := _examined(Path(on_path))):
        return program
    fetched = [program for path in _fetched(folder) if (program := _examined(path))]
    return max(fetched, key=lambda program: _number(program.version), default=None)


def _fetched(folder: Path) -> Iterator[Path]:
    for path in (folder / ".cache" / "receivers").glob("**/prometheus"):
        if path.is_file() and os.access(path, os.X_OK):
            yield path


def _examined(path: Path) -> PrometheusProgram | None:
    """What its own word is for; None where it does not run or is too old."""
    try:
        answer = subprocess.run(  # noqa: S603 - the user's own program, asked for its version
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True, env={}
        )
    except (OSError, subprocess.SubprocessError):
        return None  # not for this machine, or no Prometheus at all: there is another receiver
    # Some builds of version 2 write to stderr. Debian appends "+ds" and more.
    match = re.search(r"prometheus, version ([0-9]+\.[0-9]+(?:\.[0-9]+)?)", answer.stdout + answer.stderr)
    if match is None or _number(match[1]) < _OLDEST_PROMETHEUS:
        return None
    return PrometheusProgram(path.absolute(), match[1])


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _free_port() -> int:
    chance = random.SystemRandom()
    while True:
        port = chance.choice(_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                return port
