"""The worker as a child process, with time running as fast as its test wants.

python -m tests.worker_process run|once CONFIG ANCHOR ORIGIN SPEED

runs the worker with the settings of that file, until SIGTERM or until nothing is due; its clock reads ORIGIN (unix
seconds) at the real instant ANCHOR and runs SPEED times as fast as the machine's.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from worker.app import Worker, stop_on_signals
from worker.clock import ScaledClock
from worker.config import load_settings
from worker.ledger import GATHER_SECONDS
from worker.observe import configure_logging

REPOSITORY = Path(__file__).parent.parent


def scaled_clock(anchor: float, origin: float, speed: float) -> ScaledClock:
    """A clock that agrees with every other one made from the same numbers, in whatever process."""
    return ScaledClock(origin + (time.time() - anchor) * speed, speed)


def start(
    config: Path, log: Path, anchor: float, origin: float, speed: float, *, once: bool = False
) -> subprocess.Popen[bytes]:
    """Start a worker in a process of its own; what it logs is appended to `log`."""
    how = "once" if once else "run"
    return spawn(["-m", "tests.worker_process", how, str(config), repr(anchor), repr(origin), repr(speed)], {}, log)


def spawn(arguments: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start Python with only this environment and what Python itself needs; output is appended to `log`."""
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**inherited, **environment},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


async def _run(config: Path, clock: ScaledClock, speed: float, *, once: bool) -> None:
    settings = load_settings(config, {})
    configure_logging("info", "console", [])
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        async with Worker(settings, clock, once=once, gather_seconds=GATHER_SECONDS / speed) as worker:
            await (worker.run_once(stopping) if once else worker.run(stopping))


if __name__ == "__main__":
    how, path, *numbers = sys.argv[1:]
    anchor, origin, speed = map(float, numbers)
    asyncio.run(_run(Path(path), scaled_clock(anchor, origin, speed), speed, once=how == "once"))
