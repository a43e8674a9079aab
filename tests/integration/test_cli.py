"""Commands beside a running worker, each a process of its own, as on the machine of an engineer at night."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.worker_process import REPOSITORY, spawn
from worker.clock import SystemClock
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

REPLAY_HOURS = 5


@dataclass
class Outcome:
    """How a command ended and what it said."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class Scene:
    """A worker that runs and has delivered everything that is due."""

    config: Path
    log: Path
    receiver: MemoryReceiver
    worker: "subprocess.Popen[bytes]"
    url: str

    async def cfrw(self, *arguments: str) -> Outcome:
        process = await self.start(*arguments)
        stdout, stderr = await process.communicate()
        assert process.returncode is not None
        assert b"Traceback" not in stdout + stderr
        return Outcome(process.returncode, stdout.decode(), stderr.decode())

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "worker",
            *arguments,
            "--config",
            str(self.config),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    receiver = MemoryReceiver()
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    async with serve(SimulatedApi(Fleet(seed=13, zones=3), SystemClock())) as api_url, receiver.listening() as url:
        config.write_text(
            f"""
            cf_api_token: {ACCEPTED_BEARER}
            cf_api_url: {api_url}
            cf_replay_hours: {REPLAY_HOURS}
            ledger_path: {tmp_path / "ledger.db"}
            listen_address: 127.0.0.1:0
            remote_write:
              - name: memory
                url: {url}
                queue_config: {{min_backoff: 10ms, max_backoff: 10ms}}
            """
        )
        worker = spawn(["-m", "worker", "run", "--config", str(config)], {}, log)
        try:
            made = Scene(config, log, receiver, worker, await address_of(worker, log))
            await delivered(made)
            yield made
        finally:
            worker.kill()
            worker.wait()


async def address_of(worker: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where its HTTP side listens, once it says so."""
    while True:
        assert worker.poll() is None, logged(log)
        for line in logged(log):
            if url := line.get("url"):
                return str(url)
        await asyncio.sleep(0.02)


def logged(log: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


async def delivered(scene: Scene) -> None:
    """Wait until the worker is ready and nothing is missing or waits any more."""
    asked_at = time.time()
    async with httpx.AsyncClient(base_url=scene.url, trust_env=False) as client:
        while True:
            assert scene.worker.poll() is None, logged(scene.log)
            status = (await client.get("/api/v1/status")).json()
            is_captured = status["scopes"] and not any(scope["missing"] for scope in status["scopes"])
            # A status that was read for somebody else shortly before knows nothing of what happened since.
            is_fresh = status["now"] >= asked_at
            if (
                is_fresh
                and status["readiness"]["ok"]
                and is_captured
                and not status["destinations"][0]["pending_buckets"]
            ):
                return
            await asyncio.sleep(0.05)


async def test_commands_beside_a_running_worker(scene: Scene) -> None:
    samples = sum(map(len, scene.receiver.samples.values()))

    second, status, plan = await asyncio.gather(
        scene.cfrw("run"), scene.cfrw("status", "--json"), scene.cfrw("resend", "--since", "10h", "--dry-run", "--json")
    )
    assert second.exit_code == 4
    assert f"another worker (process {scene.worker.pid}) holds the ledger" in second.stderr
    assert status.exit_code == 0
    assert len(json.loads(status.stdout)["scopes"]) == 3
    assert plan.exit_code == 0
    assert json.loads(plan.stdout)["counts"][0]["samples"] == samples
    assert scene.receiver.repeated_samples == 0

    verified = await scene.cfrw("verify", "--since", "10h", "--json")
    assert verified.exit_code == 3
    assert "asked the running worker (repair 1)" in verified.stderr
    (not_read,) = json.loads(verified.stdout)["result"]["not_read"]
    assert "check query_url" in not_read["reason"], "this receiver has no query API"

    again = await scene.cfrw("resend", "--since", "10h", "--json")
    assert again.exit_code == 0
    assert "asked the running worker (repair 2)" in again.stderr
    (count,) = json.loads(again.stdout)["result"]["outcome"]
    assert (count["state"], count["samples"]) == ("acknowledged", samples)
    assert scene.receiver.repeated_samples == samples

    out = scene.config.with_name("out")
    exported = await scene.cfrw("export", "--from", "10h", "--output", str(out))
    assert (exported.exit_code, f"{samples:,} samples in " in exported.stderr) == (0, True)
    # What the worker has it skips; what is older than it collects is imported by it.
    files = [str(file) for file in out.glob("*.om")]
    zone, moment = json.loads(status.stdout)["scopes"][0]["scope"], int(time.time()) // 3600 * 3600 - 30 * 3600
    older = scene.config.with_name("older.om")
    older.write_text(f'cloudflare_zone_requests{{zone_id="{zone}"}} 5 {moment}\n# EOF\n')
    imported = await scene.cfrw("import", *files, str(older))
    assert imported.exit_code == 0, imported.stderr
    assert "asked the running worker" in imported.stderr
    assert "Imported 1 bucket with 1 sample" in imported.stdout
    assert scene.receiver.samples[(("__name__", "cloudflare_zone_requests"), ("zone_id", zone))] == {moment * 1000: 5.0}

    scene.worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(scene.worker.wait) == 0
    lines = logged(scene.log)
    assert lines[-1]["event"] == "The worker has stopped"
    assert {line["level"] for line in lines} == {"info"}
    assert not scene.config.with_name("ledger.db-wal").exists(), "the write-ahead log is moved into the file"


async def test_watching_a_repair_can_be_given_up_and_the_repair_goes_on(scene: Scene) -> None:
    scene.receiver.failure = Failure(503)
    watching = await scene.start("resend", "--since", "10h")
    assert watching.stderr is not None
    while b"asked the running worker" not in await watching.stderr.readline():
        pass
    while not scene.receiver.answers[503]:  # noqa: ASYNC110 - the request comes from another process
        await asyncio.sleep(0.02)
    watching.send_signal(signal.SIGINT)
    stdout, stderr = await watching.communicate()
    assert watching.returncode == 3
    assert b"pending" in stdout
    assert b"Traceback" not in stdout + stderr
    scene.receiver.failure = None
    await delivered(scene)
    # Some may come once more, to see whether a receiver that has failed works.
    assert scene.receiver.repeated_samples >= sum(map(len, scene.receiver.samples.values()))
