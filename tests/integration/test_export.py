"""What `cfrw export` writes, loaded into a real Prometheus by the steps of its own receipt."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.exporting import Scene, content_of
from tests.receivers import PrometheusServer
from tests.unit.ledger.fleet import HOUR, bucket_of
from tests.worker_process import REPOSITORY
from worker.buckets import Bucket, SampleTimestamp, Window
from worker.cli import export as command
from worker.clock import SystemClock
from worker.ledger import expire

DAY = 24 * HOUR
T0 = int(SystemClock().now()) // DAY * DAY - 4 * DAY


def history() -> list[Bucket]:
    """Hours of two days, of which the second zone's are stamped at their end, with values of every kind."""
    buckets = [
        bucket_of(zone, Window(T0 + hour * HOUR, HOUR), samples=20, stamp=stamp)
        for zone, stamp in ((1, SampleTimestamp.START), (2, SampleTimestamp.END))
        for hour in range(18, 32, zone)
    ]
    for number, value in enumerate((0.1 + 0.2, 5e-324, 2.0**53 + 2, -0.0, float("inf"), float("-inf"), 1e300)):
        buckets[number].values[0] = value
    return buckets


@pytest.mark.parametrize("name", ["prometheus-2.42", "prometheus-3.5"])
async def test_prometheus_has_what_the_ledger_has_after_the_steps_of_the_receipt(
    required_program: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    promtool = required_program("promtool")
    monkeypatch.setattr(command, "_LEAST_FILE_BYTES", 1)
    scene, buckets = Scene(tmp_path), history()
    out = tmp_path / "out put"
    async with PrometheusServer(required_program(name)) as prometheus:
        await prometheus.stop()
        # Files of the same time, whose blocks overlap, are made by the bound on their size.
        options = (
            "--from",
            "9d",
            "--output",
            str(out),
            "--max-bytes",
            "15kB",
            "--destination",
            "prom",
            "--undelivered",
        )

        def exported() -> Result:
            scene.captured(*buckets).write(expire, ended_before=T0 + 9 * DAY, now=0.0)
            return scene.cfrw("export", *options)

        result = await asyncio.to_thread(exported)
        assert result.exit_code == 0, result.stderr
        assert len(list(out.glob("*.om"))) == 4, "each day in two"
        steps = json.loads((out / "receipt.json").read_text())["steps"]
        commands = [step for step in steps if step.split()[0] in {"for", "promtool", "mv"}]
        assert len(commands) == 3
        search = f"{promtool.parent}:{os.environ['PATH']}"
        for step in commands:
            line = step.replace("/path/of/prometheus/data", str(prometheus.folder / "data"))
            process = await asyncio.create_subprocess_shell(f"set -e; {line}", env={**os.environ, "PATH": search})
            assert await process.wait() == 0
        await prometheus.start()
        assert await prometheus.read_all() == content_of(buckets)

        # The ledger learns of it by reading back: nothing of it could be sent.
        scene.write_url = prometheus.write_url
        config = await asyncio.to_thread(scene.configured)
        environment = {**os.environ, "CF_API_TOKEN": "token", "LEDGER_PATH": str(scene.path)}
        arguments = ("-m", "worker", "resend", "--since", "9d", "--only-missing", "--config", str(config))
        resend = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=REPOSITORY, env=environment)
        assert await resend.wait() == 0
        assert scene.rows("SELECT DISTINCT state FROM delivery") == [("acknowledged",)]
