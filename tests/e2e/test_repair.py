"""docs/repair.md, executed: a week with holes of every kind is whole in the end, on every receiver."""

import asyncio
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.receivers import RECEIVERS, PrometheusServer, Receiver, new_receiver
from tests.truth import SAME, Content, difference, expected_content
from worker.clock import SystemClock
from worker.ledger import Ledger
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import GraphqlError
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.quota import QuotaLimits
from worker.simulator.refusals import RefusalKind
from worker.simulator.serving import serve

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "repair.md"

HOUR = 3600
ZONES = 3
LOST_HOURS = 60
REPLAY_HOURS = 24
HISTORY_HOURS = 144
WINDOW_HOURS = 96
"""Of the receivers that have one: what is older is not taken by remote write."""

RequiredProgram = Callable[[str], Path]

INCOMPLETE = 3

AGAIN = ("cfrw backfill --from 6d --max-hours 144", "cfrw resend --since 6d --only-missing")
"""Repairs that were done and have nothing to do the second time."""


@dataclass(frozen=True)
class Step:
    """A command line of the document, and the section that it stands in."""

    section: str
    line: str


def steps() -> list[Step]:
    """Every command line of the document, in its order."""
    found: list[Step] = []
    section = ""
    in_block = False
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("```"):
            in_block = line == "```console"
        elif in_block and line.startswith("$ "):
            found.append(Step(section, line.removeprefix("$ ")))
    return found


@dataclass
class Shell:
    """Somebody's shell, in a folder of its own."""

    folder: Path
    environment: dict[str, str]

    async def run(self, line: str, **environment: str) -> tuple[int, str]:
        """How a command line ended, and what it said."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            line,
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()


@pytest.fixture
def shell(tmp_path: Path, required_program: RequiredProgram) -> Shell:
    programs = tmp_path / "bin"
    programs.mkdir()
    cfrw = programs / "cfrw"
    cfrw.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m worker "$@"\n')
    cfrw.chmod(0o755)
    (programs / "promtool").symlink_to(required_program("promtool"))
    folder = tmp_path / "shell"
    folder.mkdir()
    return Shell(
        folder,
        {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "CF_API_TOKEN": ACCEPTED_BEARER,
            "LEDGER_PATH": str(tmp_path / "ledger.db"),
            "LISTEN_ADDRESS": "127.0.0.1:0",
            # The next window is final in half an hour: none is while this goes on.
            "CF_DELAY_SECONDS": str((int(time.time()) - HOUR // 2) % HOUR),
        },
    )


def config(folder: Path, url: str, *, window_hours: int | None) -> str:
    """A file with one destination, which is always called the same."""
    path = folder / "cfrw.yaml"
    window = "" if window_hours is None else f"    out_of_order_time_window: {window_hours}h\n"
    path.write_text(f"remote_write:\n  - name: receiver\n    url: {url}\n{window}")
    return str(path)


async def make_holes(shell: Shell, api: SimulatedApi, fleet: Fleet, receiver_url: str) -> None:
    """A ledger in which nothing is as it should be.

    first zone:   captured, and acknowledged by a receiver that has lost it since
    second zone:  Cloudflare failed until all but a day of it was older than automatic replay
    third zone:   a day of it was refused
    all of them:  nobody asked for what was before
    """
    first, second, third = fleet.zones
    other = MemoryReceiver()
    async with other.listening() as other_url:
        run = f"cfrw run --once --config {config(shell.folder, other_url, window_hours=None)}"
        code, told = await shell.run(run, CF_REPLAY_HOURS=str(LOST_HOURS), CF_ZONES=first.tag)
        assert code == 0, told
        api.faults.add(GraphqlError(error=RefusalKind.INTERNAL))
        code, told = await shell.run(run, CF_REPLAY_HOURS=str(LOST_HOURS), CF_ZONES=second.tag)
        assert code == INCOMPLETE, told
        api.faults.clear()

        other.failure = Failure(400, "out of bounds")
        code, told = await shell.run(run, CF_REPLAY_HOURS=str(REPLAY_HOURS), CF_ZONES=third.tag)
        assert code == INCOMPLETE, told

    run = f"cfrw run --once --config {config(shell.folder, receiver_url, window_hours=WINDOW_HOURS)}"
    code, told = await shell.run(run, CF_REPLAY_HOURS=str(REPLAY_HOURS))
    assert code == INCOMPLETE, told
    with sqlite3.connect(shell.environment["LEDGER_PATH"]) as connection:
        # As if a minute had passed: a sample that has just been acknowledged may not be shown yet.
        connection.execute("UPDATE delivery SET decided_at = decided_at - 60")


def is_for(step: Step, receiver: Receiver) -> bool:
    """Whether the document means this receiver."""
    return isinstance(receiver, PrometheusServer) or "blocks" not in step.section


def code_of(step: Step, receiver: Receiver, *, is_first: bool) -> int:
    """How a command ends: with 3 as long as something is missing.

    is_first: whether the same command does not come again.
    """
    is_incomplete = {
        "cfrw gaps": is_first,
        "cfrw verify": is_first,
        "cfrw backfill": isinstance(receiver, PrometheusServer) and "--dry-run" not in step.line,
        "cfrw resend": isinstance(receiver, PrometheusServer) and "lost its disk" in step.line,
    }
    return INCOMPLETE if is_incomplete.get(" ".join(step.line.split()[:2]), False) else 0


# The oldest one takes the same steps as the newest, over the version of remote write that VictoriaMetrics speaks.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name == "prometheus-2.42" else name for name in RECEIVERS]
)
async def test_a_week_with_holes_of_every_kind_is_whole_after_what_the_document_says(
    name: str, shell: Shell, required_program: RequiredProgram
) -> None:
    fleet = Fleet(seed=7, zones=ZONES, plans=(Plan.ENTERPRISE,))
    api = SimulatedApi(fleet, SystemClock(), quota=QuotaLimits(graphql_requests=10**6, all_requests=10**6))
    window_hours = WINDOW_HOURS if name.startswith("prometheus") else None
    receiving = new_receiver(name, required_program(name), out_of_order_seconds=WINDOW_HOURS * HOUR)
    async with serve(api) as api_url, receiving as receiver:
        shell.environment |= {"CF_API_URL": api_url, "PROMETHEUS_DATA": str(receiver.folder / "data")}
        await make_holes(shell, api, fleet, receiver.write_url)
        settings = config(shell.folder, receiver.write_url, window_hours=window_hours)
        # What was six days ago is the same for all commands, or an hour that ends in between would part them; and it is
        # no longer ago for the last one either.
        since = str(int(time.time()) + 600 - 6 * 86_400)
        seen: set[str] = set()
        for step in steps():
            if not is_for(step, receiver):
                continue
            expected = code_of(step, receiver, is_first=step.line not in seen)
            seen.add(step.line)
            line = re.sub(r"^cfrw \w+", rf"\g<0> --config {settings}", step.line)
            code, told = await shell.run(re.sub(r"\b6d\b", since, line))
            assert code == expected, f"{step.line}\n{told}"
            if step.line.startswith("cp "):
                # It would find the blocks by itself within a minute.
                await receiver.stop()
                await receiver.start()
        stored = await receiver.read_all()
        for line in AGAIN:
            code, told = await shell.run(f"{line.replace('6d', since)} --config {settings}")
            assert code == 0, f"{line}\n{told}"
        assert await receiver.read_all() == stored, "doing it twice changes nothing"

    captured = await captured_starts(Path(shell.environment["LEDGER_PATH"]))
    wanted: Content = {}
    for zone in fleet.zones:
        starts = range(min(captured[zone.tag]), max(captured[zone.tag]) + HOUR, HOUR)
        assert captured[zone.tag] == set(starts)
        assert len(starts) in {HISTORY_HOURS - 1, HISTORY_HOURS - 2}
        wanted |= expected_content(fleet, [zone], starts)
    assert difference(wanted, stored) == SAME


async def captured_starts(path: Path) -> dict[str, set[int]]:
    """The starts of the captured windows of every zone."""
    ledger = Ledger.open_read_only(path)
    try:
        rows = await ledger.read(lambda session: list(session._connection.execute(_STARTS)))
    finally:
        await ledger.close()
    found: dict[str, set[int]] = {}
    for tag, start in rows:
        found.setdefault(tag, set()).add(start)
    return found


_STARTS = "SELECT scope.tag, bucket.start FROM bucket JOIN scope ON scope.id = bucket.scope_id"
