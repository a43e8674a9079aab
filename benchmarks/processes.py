"""Child processes and what they used: CPU time and the largest resident set, as Linux counts them."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

TASK_SECONDS = 200.0
"""The longest that one process may take: 10 million samples at 50,000 a second."""

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU time of a running process, user and system, all its threads."""
    # The second field, the name in parentheses, may hold spaces; utime and stime are the fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def peak_rss_bytes(pid: int) -> int:
    """The largest resident set that a running process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        message = f"/proc/{pid}/status does not tell the peak of the resident set"
        raise ValueError(message)
    return int(match[1]) * 1024


def written_bytes() -> int:
    """What this process has handed to the system to write, to whatever file."""
    match = re.search(r"^wchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    if match is None:
        message = "/proc/self/io does not tell what was written"
        raise ValueError(message)
    return int(match[1])


@dataclass(frozen=True)
class Measured:
    """What one task took, without the start of its process.

    cpu_seconds:    of the whole process, all its threads.
    wall_seconds:   of the same stretch.
    peak_rss_bytes: of the process, from its start.
    samples:        moved.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_rss_bytes: int
    samples: int

    def print(self) -> None:
        """Tell it to the process that waits for it."""
        print(json.dumps(asdict(self)))


class Stopwatch:
    """CPU and wall time of the stretches inside its `with` blocks."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self._started = (0.0, 0.0)

    def __enter__(self) -> None:
        self._started = (time.process_time(), time.monotonic())

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds += time.process_time() - self._started[0]
        self.wall_seconds += time.monotonic() - self._started[1]

    def measured(self, samples: int) -> Measured:
        return Measured(self.cpu_seconds, self.wall_seconds, peak_rss_bytes(os.getpid()), samples)


async def run(*arguments: str, task_seconds: float = TASK_SECONDS) -> Measured:
    """Run a module of the benchmarks, with its arguments, to its end."""
    async with started(*arguments) as process:
        return await result_of(process, task_seconds)


@contextlib.asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The same while it runs; it does not outlive the block."""
    command = (sys.executable, "-m", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def result_of(process: asyncio.subprocess.Process, task_seconds: float = TASK_SECONDS) -> Measured:
    """What it measured, when it has ended."""
    async with asyncio.timeout(task_seconds):
        output, _ = await process.communicate()
    if process.returncode:
        message = f"a process ended with exit code {process.returncode}; its reason stands above"
        raise RuntimeError(message)
    return Measured(**json.loads(output))
