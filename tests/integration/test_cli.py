"""The commands as a person has them: processes of their own, with a simulated Cloudflare and a receiver in memory."""

import asyncio
import contextlib
import getpass
import io
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.reports import DESTINATION, NOW, REPORT, SCOPE
from tests.unit.ledger.fleet import DATASET, HOUR, T0, acknowledge_all, bucket, scope, tag
from worker import cli
from worker.clock import SystemClock
from worker.ledger import Ledger, capture, jobs, outstanding_windows, record_scopes, register_destinations
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve
from worker.status import StatusReport

REPOSITORY = Path(__file__).parents[2]

# An answer after which the same is sent again.
DOWN = Failure(503)

RANGE = ("--since", str(T0), "--until", str(T0 + 100 * HOUR))

INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "worker.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
from worker.__main__ import main
main()
"""

INTERRUPTED_WHILE_READING = """
import os, signal
from unittest.mock import patch
from worker.cli import main

with patch("worker.cli.report_status", side_effect=lambda *_: os.kill(os.getpid(), signal.SIGINT)):
    main()
"""

FULL_BEFORE_THE_REPAIR = """
from unittest.mock import patch
from worker.cli import main
from worker.errors import LedgerFullError

with patch("worker.repair.carry_out_next", side_effect=LedgerFullError("no room is left")):
    main()
"""


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass
class Place:
    """A folder with a configuration, and the environment of the commands in it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "cfrw.yaml"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.db"

    def configure(self, *, api_url: str = "http://127.0.0.1:1/client/v4", urls: Mapping[str, str]) -> None:
        settings = {
            "cf_api_token": ACCEPTED_BEARER,
            "cf_api_url": api_url,
            "cf_replay_hours": 3,
            "ledger_retention_hours": 10 * 8760,  # the windows of `fill` are long ago
            "ledger_path": str(self.ledger),
            "listen_address": "127.0.0.1:0",
            "remote_write": [
                {
                    "name": name,
                    "url": url,
                    "out_of_order_time_window": "48h",
                    "queue_config": {"min_backoff": "20ms", "max_backoff": "20ms"},
                }
                for name, url in urls.items()
            ],
        }
        self.config.write_text(json.dumps(settings))  # which is YAML, too

    async def start(self, *arguments: str, program: str | None = None) -> asyncio.subprocess.Process:
        """A command, or what stands in its place, with this configuration."""
        python = ["-m", "worker"] if program is None else ["-c", program]
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, *python, *arguments, "--config", str(self.config)),
            env={**inherited, **self.environment},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def run(self, *arguments: str, program: str | None = None) -> Ended:
        return await end_of(await self.start(*arguments, program=program))


async def end_of(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def said(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until a command has written this to stderr."""
    assert process.stderr is not None
    seen = b""
    while text.encode() not in seen:
        line = await process.stderr.readline()
        assert line, seen.decode()
        seen += line


@contextlib.asynccontextmanager
async def going_on(process: asyncio.subprocess.Process) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that is stopped with its test."""
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.configure(urls={"prom": "http://127.0.0.1:1/api/v1/write"})
    return made


@pytest.fixture
async def receiver(place: Place) -> AsyncIterator[MemoryReceiver]:
    """A receiver that the configuration names."""
    memory = MemoryReceiver()
    async with memory.listening() as url:
        place.configure(urls={"prom": url})
        yield memory


async def fill(place: Place, *, zones: int = 1, name: str | None = None) -> None:
    """Four windows of every zone, all of them acknowledged."""
    ledger = Ledger.open(place.ledger)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=T0)
    await ledger.write(record_scopes, [scope(zone, name=name) for zone in range(zones)], T0)
    await ledger.write(capture, [bucket(zone, hour) for zone in range(zones) for hour in range(4)], T0)
    await acknowledge_all(ledger)
    starts = range(T0, T0 + 4 * HOUR, HOUR)
    tags = [tag(zone) for zone in range(zones)]
    await ledger.write(outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=starts)
    await ledger.close()


def cells(line: str) -> list[str]:
    return line.split()


# ------------------------------------------------------------------------------------------------- the whole way


async def test_what_was_collected_is_told_and_can_be_sent_again(place: Place) -> None:
    receiver = MemoryReceiver()
    api = SimulatedApi(Fleet(seed=4, zones=2), SystemClock())
    async with serve(api) as api_url, receiver.listening() as url:
        place.configure(api_url=api_url, urls={"prom": url})
        ran = await place.run("run", "--once")
        assert (ran.code, ran.out) == (0, ""), ran.err

        status = await place.run("status")
        assert status.code == 0, status.out
        assert "zone00001.example" in status.out
        assert "zone00002.example" in status.out

        again = await place.run("resend", "--since", "1d")
    assert again.code == 0, again.err
    planned, became = again.out.split("What became of it:\n")
    assert planned.removeprefix("To be sent again:\n").strip() == became.strip()
    assert cells(became.splitlines()[-1])[:2] == ["prom", "acknowledged"]
    assert receiver.repeated_samples == sum(len(series) for series in receiver.samples.values())


# --------------------------------------------------------------------------------------------------------- status


async def test_the_status_of_a_ledger_without_zones_says_that_none_was_listed(place: Place) -> None:
    await fill(place, zones=0)

    status = await place.run("status")

    assert status.code == 3
    assert status.out.splitlines()[-1] == "no zone has been listed yet"


async def test_the_status_as_json_claims_nothing_that_only_a_running_worker_knows(place: Place) -> None:
    await fill(place)

    told = json.loads((await place.run("status", "--json")).out)

    assert told.keys() == {each for each in StatusReport.__slots__ if each not in {"readiness", "cloudflare"}}
    assert told["destinations"][0]["acknowledged_buckets"] == 4


def shown(report: StatusReport, width: int = 80) -> list[str]:
    written = io.StringIO()
    cli.print_status(report, Console(file=written, width=width, markup=False, highlight=False, emoji=False))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_in_80_columns_no_name_and_no_number_of_the_status_is_cut() -> None:
    name = "checkout.staging.example.com"
    report = replace(
        REPORT,
        destinations=(
            replace(
                DESTINATION,
                pending_samples=12_345_678,
                oldest_pending_end=NOW - 100_000,
                acknowledged_buckets=16_800_000,
                refused_buckets=98_765,
            ),
        ),
        scopes=(replace(SCOPE, name=name, captured=10_070, expected=10_080, missing=10),),
    )

    lines = shown(report)

    assert all(len(line) <= 80 for line in lines)
    (delivery,) = (line for line in lines if line.startswith("prod"))
    assert cells(delivery) == ["prod", "12,345,678", "1d", "3h", "16,800,000", "98,765", "0", "0"]
    (zone,) = (line for line in lines if line.startswith(name))
    assert cells(zone) == [name, "2026-01-06T02:45:00Z", "10,070", "10,080", "10"]


def test_a_name_that_is_too_long_for_the_line_goes_on_in_the_next_one() -> None:
    name = "-".join(["a-very-long-name"] * 5) + ".example.com"
    lines = shown(replace(REPORT, scopes=(replace(SCOPE, name=name),)))

    (first,) = (number for number, line in enumerate(lines) if "2026-01-06T02:45:00Z" in line)
    assert "".join(line.split()[0] for line in lines[first:] if line) == name


def test_numbers_end_where_their_headings_end() -> None:
    lines = shown(REPORT)
    for heading, number in (("acknowledged", "1,234"), ("captured", "24")):
        (above,) = (line for line in lines if heading in line)
        (below,) = (line for line in lines if re.search(rf" {number}\b", line))
        end = above.index(heading) + len(heading)
        assert below[:end].endswith(f" {number}")


def test_what_is_wrong_stands_below_the_tables_in_one_piece() -> None:
    failure = "HTTP 503: " + "the store is not there " * 10
    reason = "3 failed: " + "Cloudflare did not answer " * 10
    report = replace(
        REPORT,
        destinations=(replace(DESTINATION, last_failure=failure, last_failure_at=NOW),),
        scopes=(replace(SCOPE, missing=3, reason=reason),),
    )

    lines = shown(report)

    assert f"prod: {failure} (2026-01-06T03:00:00Z)" in lines
    assert f"example.com: {reason}".rstrip() in lines


def test_of_a_failure_that_is_over_the_status_says_so() -> None:
    over = replace(DESTINATION, last_failure="HTTP 503", last_failure_at=NOW - 60, last_success_at=NOW)
    lines = shown(replace(REPORT, destinations=(over,)))
    assert "prod: HTTP 503 (2026-01-06T02:59:00Z; it has taken something since)" in lines


def test_the_width_of_windows_is_told_where_a_zone_has_more_than_one() -> None:
    assert not any("width" in line for line in shown(REPORT))

    minutes = replace(SCOPE, width_seconds=60, missing=1, reason="1 waiting for their turn")
    lines = shown(replace(REPORT, scopes=(SCOPE, minutes)))

    assert [cells(line)[1] for line in lines if line.startswith("example.com ")] == ["1h", "1m", "1m:"]


async def test_without_a_terminal_nothing_is_cut(place: Place) -> None:
    name = "-".join(["a-very-long-name"] * 10) + ".example.com"
    long_path = f"/{'deep/' * 40}ledger.db"
    place.environment["COLUMNS"] = "40"
    await fill(place, name=name)

    status = await place.run("status")
    assert re.search(rf"^{name}  2025-06-15T04:00:00Z ", status.out, re.MULTILINE)
    place.environment["LEDGER_PATH"] = long_path
    settings = await place.run("check", "--config-only")
    assert re.search(rf"^LEDGER_PATH +{long_path} *$", settings.out, re.MULTILINE)


def test_in_80_columns_the_settings_can_be_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    long_path = f"/{'deep/' * 40}ledger.db"
    monkeypatch.setattr(cli, "_console", lambda: Console(width=80, markup=False, highlight=False, emoji=False))

    arguments = ["check", "--config-only", "--config", str(place.config)]
    lines = CliRunner().invoke(cli.main, arguments, env={"LEDGER_PATH": long_path}).output.splitlines()

    assert all(len(line) <= 80 for line in lines)
    (first,) = (number for number, line in enumerate(lines) if line.startswith("LEDGER_PATH "))
    (after,) = (number for number, line in enumerate(lines) if line.startswith("LEDGER_RETENTION_HOURS "))
    assert "".join(line.removeprefix("LEDGER_PATH").strip() for line in lines[first:after]) == long_path


async def test_where_there_is_no_ledger_the_message_has_the_whole_path(place: Place) -> None:
    place.environment["LEDGER_PATH"] = "no/such/ledger.db"

    status = await place.run("status")

    assert status.code == 5
    assert f"there is no ledger at {REPOSITORY}/no/such/ledger.db yet" in status.err


# --------------------------------------------------------------------------------------------------------- resend


async def test_a_resend_that_could_not_be_begun_is_no_success(place: Place, receiver: MemoryReceiver) -> None:
    await fill(place)

    ended = await place.run("resend", *RANGE, program=FULL_BEFORE_THE_REPAIR)

    assert ended.code == 3
    assert "What became of it" not in ended.out
    told = "nothing was sent again: the ledger's volume is full; make room on it, and the next run does it (repair 1)"
    assert ended.err.splitlines()[-1] == told
    assert receiver.samples == {}


async def test_what_a_resend_leaves_pending_is_said_to_stay_so(place: Place, receiver: MemoryReceiver) -> None:
    await fill(place)
    receiver.failure = DOWN

    ended = await place.run("resend", *RANGE)

    assert ended.code == 3
    *table, last = ended.out.splitlines()
    assert cells(table[-1]) == ["prom", "pending", "4", "12"]
    assert last == "What is pending stays pending: a running worker goes on with it, else the next `cfrw run` does."


async def test_a_resend_whose_buckets_a_later_one_has_taken_over_tells_what_became_of_them(
    place: Place, receiver: MemoryReceiver
) -> None:
    api = SimulatedApi(Fleet(seed=4, zones=1), SystemClock())
    async with serve(api) as api_url, receiver.listening() as url:
        place.configure(api_url=api_url, urls={"prom": url})
        # The zone of the test is not one of the simulated ones; it disappears, and its buckets stay.
        await fill(place)
        receiver.failure = DOWN
        async with contextlib.AsyncExitStack() as running:
            worker = await running.enter_async_context(going_on(await place.start("run")))
            await said(worker, "The worker runs")
            watching = []
            for number in (1, 2):
                command = await running.enter_async_context(going_on(await place.start("resend", *RANGE)))
                watching.append(command)
                await said(command, f"asked the running worker (repair {number})")
                await said(worker, "Carried out a repair")
            first, second = watching
            second.send_signal(signal.SIGINT)
            cut_off = await end_of(second)
            receiver.failure = None
            taken_over = await end_of(first)
            worker.terminate()
            assert (await end_of(worker)).code == 0

    assert cut_off.code == 3
    assert cells(cut_off.out.splitlines()[-2]) == ["prom", "pending", "4", "12"]
    assert cut_off.out.splitlines()[-1].startswith("What is pending stays pending")
    assert taken_over.code == 0, taken_over.out
    assert cells(taken_over.out.splitlines()[-1]) == ["prom", "acknowledged", "4", "12"]


async def test_the_reason_in_the_journal_is_bounded_and_holds_no_secret(place: Place, receiver: MemoryReceiver) -> None:
    await fill(place)
    pasted = f"curl -H 'Authorization: Bearer {ACCEPTED_BEARER}' " + "x" * 2000

    ended = await place.run("resend", *RANGE, "--reason", pasted)
    assert ended.code == 0, ended.err

    assert receiver.samples
    ledger = Ledger.open_read_only(place.ledger)
    (job,) = await ledger.read(jobs, newest=10)
    await ledger.close()
    assert len(job.reason) == 1000
    assert job.reason.startswith("curl -H 'Authorization: Bearer ***' xxx")
    assert job.reason.endswith("x…")


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    assert cli._asked_by().startswith(f"uid {os.getuid()}@")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        (("--zone", "zone-1.exampel"), "did you mean zone-1.example or zone-"),
        (
            ("--zone", "QQ"),
            "known are zone-0.example, zone-1.example, zone-2.example, zone-3.example, zone-4.example, ...",
        ),
        (("--destination", "grafana"), "known are prom"),
        (("--dataset", "http_request"), "did you mean http_requests?"),
    ],
)
async def test_a_name_that_is_not_known_is_answered_with_those_that_are(
    place: Place, option: tuple[str, str], hint: str
) -> None:
    await fill(place, zones=7)

    result = await asyncio.to_thread(
        CliRunner().invoke, cli.main, ["resend", *RANGE, *option, "--config", str(place.config)]
    )

    assert result.exit_code == 2
    assert f"error: {' '.join(option)} is not known; {hint}" in result.output


async def test_where_no_zone_is_known_the_answer_says_so(place: Place) -> None:
    await fill(place, zones=0)
    ended = await place.run("resend", *RANGE, "--zone", "example.com")
    assert (ended.code, ended.err) == (2, "error: --zone example.com is not known; none is known yet\n")


# ------------------------------------------------------------------------------------------- starting and stopping


@pytest.mark.parametrize("program", [INTERRUPTED_WHILE_IMPORTING, INTERRUPTED_WHILE_READING])
async def test_ctrl_c_ends_a_command_without_a_traceback(place: Place, program: str) -> None:
    await fill(place)
    ended = await place.run("status", program=program)
    assert (ended.code, ended.out, ended.err) == (130, "", "")


def test_the_installed_command_starts_where_ctrl_c_is_caught() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"cfrw": "worker.__main__:main"}


async def test_variables_that_replace_the_destinations_of_the_file_are_warned_of(
    place: Place, receiver: MemoryReceiver
) -> None:
    await fill(place)
    place.environment["REMOTE_WRITE_URL"] = json.loads(place.config.read_text())["remote_write"][0]["url"]
    place.configure(urls={"prom": "http://127.0.0.1:1/", "mimir": "http://127.0.0.1:2/"})

    replaced = await place.run("resend", *RANGE)
    del place.environment["REMOTE_WRITE_URL"]
    place.configure(urls={"default": "http://127.0.0.1:1/"})
    kept = await place.run("resend", *RANGE)

    assert receiver.samples
    event = "REMOTE_WRITE_URL replaces the destinations of the file"
    (warning,) = (line for line in map(json.loads, replaced.err.splitlines()) if line["event"] == event)
    assert (warning["level"], warning["replaced"]) == ("warning", 2)
    assert event not in kept.err


async def test_what_simulate_prints_leaves_the_destinations_of_a_file_alone(place: Place) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "simulate", "--listen", "127.0.0.1:0"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    async with going_on(process):
        assert process.stdout is not None
        printed = (await process.stdout.readuntil(b"cfrw run\n")).decode()
    block = printed[printed.index("  export") :].replace("cfrw run", f"{sys.executable} -m worker check --config-only")

    typed = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"{block.rstrip()} --json --config {place.config}"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    told = json.loads((await end_of_output(typed)).decode())

    assert told["remote_write[0].name"] == "prom"
    assert "REMOTE_WRITE_URL=http://127.0.0.1:9090/api/v1/write" in printed


async def end_of_output(process: asyncio.subprocess.Process) -> bytes:
    out, _ = await process.communicate()
    return out
