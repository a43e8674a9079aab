"""vmagent as a child process: the peer, whose queue on disk does what the ledger's backlog does."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from benchmarks.processes import peak_rss_bytes
from tests.receivers import free_port

_START_SECONDS = 30.0  # it answers after 0.1 s
_STOP_SECONDS = 60.0  # it waits 5 s for requests under way
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Used:
    """What one run of vmagent used, from its start to its end."""

    cpu_seconds: float
    peak_rss_bytes: int


class Vmagent:
    """One run of vmagent, inside its `async with` block; what it has not sent stays in `queue`.

    program: the file to run.
    url:     where it sends to; its queue on disk belongs to this URL.
    queue:   folder of its queue.
    flags:   handed to it besides the ones that name these.
    """

    def __init__(self, program: Path, *, url: str, queue: Path, flags: Sequence[str]) -> None:
        self._port = free_port()
        self._command = [
            str(program),
            f"-httpListenAddr=127.0.0.1:{self._port}",
            f"-remoteWrite.url={url}",
            f"-remoteWrite.tmpDataPath={queue}",
            "-loggerLevel=ERROR",
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def write_url(self) -> str:
        """Where it takes remote write requests."""
        return f"http://127.0.0.1:{self._port}/api/v1/write"

    async def __aenter__(self) -> Self:
        self._spawn()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def wait_until_ready(self) -> None:
        """Return when it takes requests."""
        deadline = time.monotonic() + _START_SECONDS
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{self._port}/health")
                except httpx.TransportError:
                    if time.monotonic() > deadline or self._known().poll() is not None:
                        raise
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    return

    async def stop(self) -> Used:
        """Stop it in order, which writes all that is in its memory to its queue."""
        process, self._process = self._known(), None
        peak = peak_rss_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                _, status, used = await asyncio.to_thread(os.wait4, process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        return Used(used.ru_utime + used.ru_stime, peak)

    def _spawn(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def _known(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            message = "vmagent does not run"
            raise RuntimeError(message)
        return self._process
