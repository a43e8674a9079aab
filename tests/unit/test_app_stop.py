"""How a worker ends: at once at the second signal, and with the error that says what to do."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_app import Scene, scene, sees
from tests.worker_process import REPOSITORY
from worker.errors import LedgerDamagedError, LedgerError, LedgerUnusableError
from worker.ledger import acknowledge, outstanding_windows, record_answer, record_scopes

__all__ = ["scene"]  # a fixture

PROGRAM = """
import asyncio, sys, time
from worker.app import stop_on_signals

async def main():
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        print("ready", flush=True)
        await stopping.wait()
        print("stopping", flush=True)
        if sys.argv[1] == "hangs":
            time.sleep(60)
        elif sys.argv[1] == "waits":
            await asyncio.sleep(60)
    print("done", flush=True)

asyncio.run(main())
"""


@contextmanager
def program(how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that stops on signals, and that finishes, waits or hangs once it was told to."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert line(process) == "ready"
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("how", ["waits", "hangs"])
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 143),
        (signal.SIGTERM, signal.SIGINT, 130),
    ],
)
def test_the_second_signal_ends_the_process_at_once_with_its_own_code(
    how: str, first: signal.Signals, second: signal.Signals, code: int
) -> None:
    with program(how) as process:
        process.send_signal(first)
        assert line(process) == "stopping"
        process.send_signal(second)
        # Not -15: the default action of a signal is no action for the first process of a container.
        assert process.wait() == code
        assert line(process) == ""


def test_one_signal_lets_the_process_finish() -> None:
    with program("finishes") as process:
        process.send_signal(signal.SIGTERM)
        assert [line(process), line(process)] == ["stopping", "done"]
        assert process.wait() == 0


def failing(verb: object, error: LedgerError, write: Any) -> Any:
    """The ledger's `write`, except that one verb raises."""

    async def write_or_fail(given: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(given, "func", given) is verb:
            raise error
        return await write(given, *args, **kwargs)

    return write_or_fail


@pytest.mark.parametrize("verb", [record_scopes, outstanding_windows, record_answer, acknowledge])
@pytest.mark.parametrize("error", [LedgerUnusableError("look at its volume"), LedgerDamagedError("it is damaged")])
async def test_once_an_unusable_ledger_is_raised_as_it_is_wherever_it_is_met(
    verb: object, error: LedgerError, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene.worker(once=True) as worker:
        monkeypatch.setattr(worker.ledger, "write", failing(verb, error, worker.ledger.write))
        monkeypatch.setattr(worker.ledger, "write_soon", failing(verb, error, worker.ledger.write_soon))
        with pytest.raises(LedgerError) as raised:
            await worker.run_once(scene.stopping)
    assert raised.value is error
    assert raised.value.exit_code == 5
    assert await scene.is_free()


async def test_a_ledger_that_is_moved_away_under_a_running_worker_ends_it(scene: Scene) -> None:
    path: Path = scene.settings.ledger.path

    async def run_without_it() -> None:
        async with scene.worker() as worker:
            running = asyncio.create_task(worker.run(scene.stopping))
            await sees(lambda: worker.health.readiness().ok, running)
            await asyncio.to_thread(path.rename, path.with_suffix(".moved"))
            while not running.done():
                await scene.clock.advance(15)
            await running

    with pytest.raises(LedgerUnusableError, match="was moved or deleted"):
        await run_without_it()
