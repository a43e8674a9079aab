"""The commands as a person gives them, in this process; a simulated Cloudflare and a receiver run in another thread."""

import asyncio
import getpass
import io
import json
import logging
import os
import shlex
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import click
import pytest
import structlog
from click.testing import CliRunner, Result
from msgspec import structs
from pydantic import SecretStr
from rich.console import Console
from starlette.requests import Request
from starlette.responses import Response

from tests.reports import DATASET, DENIED, DESTINATION, NOW, REFUSAL, REPORT, SCOPE
from tests.truth import SAME, difference, expected_content
from worker import verification
from worker.cli import main, repair
from worker.cli.options import secrets_in
from worker.cli.status import is_complete, print_status
from worker.clock import SystemClock
from worker.cloudflare import shipped
from worker.config import CloudflareSettings, Settings, TokenSettings, load_settings
from worker.errors import UsageError
from worker.ledger import (
    Job,
    JobState,
    Ledger,
    NotRead,
    Progress,
    Resend,
    ResendCount,
    ResendResult,
    ScopeReport,
    Verify,
    VerifyCount,
    VerifyResult,
    present_scopes,
    record_scopes,
    scope_reports,
)
from worker.observe import Redactor
from worker.remote_write import Found, ReadBack, Selector
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import HttpStatus
from worker.simulator.fleet import Fleet
from worker.simulator.quota import QuotaLimits
from worker.simulator.serving import serve
from worker.status import GivenUp
from worker.times import instant

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


@pytest.fixture(scope="module")
def world_of_all() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def world(world_of_all: World) -> World:
    """The world as it was in the beginning."""
    world_of_all.api.faults.clear()
    world_of_all.receiver.failure = None
    world_of_all.receiver.samples.clear()
    world_of_all.receiver.answers.clear()
    world_of_all.receiver.repeated_samples = 0
    return world_of_all


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


@pytest.fixture
def scene(world: World, tmp_path: Path) -> Scene:
    return Scene(
        world,
        tmp_path / "ledger.db",
        {
            "CF_API_TOKEN": ACCEPTED_BEARER,
            "CF_API_URL": world.api_url,
            "CF_REPLAY_HOURS": str(REPLAY_HOURS),
            "REMOTE_WRITE_URL": world.write_url,
            "REMOTE_WRITE_BEARER_TOKEN": BEARER,
            "LEDGER_PATH": str(tmp_path / "ledger.db"),
            "LISTEN_ADDRESS": "127.0.0.1:0",
        },
    )


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what the set-up of logging changes in the process, and takes away what a user's shell may hold."""
    for name in list(os.environ):
        if name.startswith(("CF_", "REMOTE_WRITE_", "LEDGER_", "LISTEN_", "LOG_")):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    before = root.handlers, root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    yield
    root.handlers, root.level = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def config_file(folder: Path, scene: Scene, **destination: object) -> Path:
    """The settings of the scene as a file; its destination has further keys."""
    file = folder / "config.yaml"
    lines = [f"{name.lower()}: {value}" for name, value in scene.environment.items() if "REMOTE_WRITE" not in name]
    lines += ["remote_write:", f"  - url: {scene.world.write_url}", "    name: default"]
    lines += [f"    {key}: {json.dumps(value)}" for key, value in destination.items()]
    file.write_text("\n".join(lines))
    return file


# --------------------------------------------------------------------------------------------------- help and usage

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


def test_without_a_command_the_help_is_shown() -> None:
    bare = CliRunner().invoke(main, [], prog_name="cfrw")
    assert bare.exit_code == 0
    assert bare.stdout == CliRunner().invoke(main, ["--help"], prog_name="cfrw").stdout
    for command in COMMANDS:
        assert f"  {command} " in bare.stdout
    assert "..." not in bare.stdout.partition("Commands:")[2], "a sentence is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    for option in ("-h", "--help"):
        result = CliRunner().invoke(main, [command, option], prog_name="cfrw")
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: cfrw {command}")


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("cfrw, version ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "no such command 'fly'; see `cfrw --help`"),
        (["--fast"], "no such option '--fast'; see `cfrw --help`"),
        (["run", "--onse"], "no such option '--onse'; did you mean --once?"),
        (["resend"], "--since is required; see `cfrw resend --help`"),
        (["import"], "FILE... is required; see `cfrw import --help`"),
        (["--config", "x.yaml", "run"], "--config goes behind the command: cfrw run --config x.yaml"),
        (
            ["--resend-since", "3h", "status"],
            "--resend-since is a command by itself; `cfrw resend --since WHEN` takes further options",
        ),
        (
            ["simulate", "--zones", "0"],
            "--zones: 0 is not a whole number of 1 or more; see `cfrw simulate --help`",
        ),
        (["simulate", "--seed", "a"], "--seed: a is not a whole number; see `cfrw simulate --help`"),
        (["simulate", "--listen", "nowhere"], "--listen nowhere:"),
        (
            ["demo", "--receiver", "thanos"],
            "--receiver: 'thanos' is not one of 'auto', 'prometheus', 'builtin'; see `cfrw demo --help`",
        ),
        (["journal", "x"], "NUMBER: x is not a whole number of 1 or more"),
    ],
)
def test_wrong_usage_is_told_in_one_line_with_exit_code_2(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="cfrw")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {told}")


def wrong_lines(name: str) -> Iterator[tuple[list[str], str]]:
    """A command line of each kind that a command does not take, and what its error names."""
    command = main.commands[name]
    options = [each for each in command.params if isinstance(each, click.Option)]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    needed = [word for each in options if each.required for word in (each.opts[0], "1h")]
    yield [name, "--no-such-option"], "--no-such-option"
    yield from (([name, each.opts[0]], each.opts[0]) for each in options if not each.is_flag)
    yield from (([name, f"{each.opts[0]}=1"], each.opts[0]) for each in options if each.is_flag)
    yield from (([name, each.opts[0], "?"], each.opts[0]) for each in options if not isinstance(each.type, FREE))
    yield from (([name], each.opts[0]) for each in options if each.required)
    if not any(each.nargs == -1 for each in arguments):
        yield [name, *needed, *("1" for _ in arguments), "superfluous"], "superfluous"


FREE = (click.types.StringParamType, click.types.BoolParamType, click.Path)
"""Types that are no wrong ones to click."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_in_one_line_what_it_does_not_take(name: str) -> None:
    for arguments, wrong in wrong_lines(name):
        result = CliRunner().invoke(main, arguments, prog_name="cfrw")
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert result.stderr.startswith("error: "), arguments
        assert wrong in result.stderr, arguments
        assert result.stderr.count("\n") == 1, arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--once"],
        ["status"],
        ["status", "--json"],
        ["resend", "--since", "1h"],
        ["--resend-since", "1h"],
        ["verify", "--since", "1h"],
        ["check", "--config-only"],
    ],
)
def test_mistakes_of_the_configuration_are_told_all_at_once_with_exit_code_2(
    arguments: list[str], scene: Scene
) -> None:
    result = scene.cfrw(*arguments, CF_BUCKET_SECONDS="7", REMOTE_WRITE_URL=None, LOG_LEVEL="loud")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: The configuration has 3 mistakes:\n")
    assert not scene.ledger.exists()


def test_a_file_that_is_not_there_is_a_mistake_of_the_configuration(scene: Scene, tmp_path: Path) -> None:
    result = scene.cfrw("status", "--config", str(tmp_path / "missing.yaml"))
    assert result.exit_code == 2
    assert "missing.yaml" in result.stderr


# --------------------------------------------------------------------------------------------------- check


def test_a_sound_configuration_is_shown_without_its_secrets(scene: Scene) -> None:
    for option in ([], ["--json"]):
        result = scene.cfrw("check", "--config-only", *option)
        assert result.exit_code == 0
        assert scene.world.api_url in result.stdout
        assert ACCEPTED_BEARER not in result.output
        assert BEARER not in result.output
    shown = json.loads(scene.cfrw("check", "--config-only", "--json").stdout)
    assert shown["CF_REPLAY_HOURS"] == str(REPLAY_HOURS)


def test_a_check_looks_at_everything_beside_a_running_worker_and_changes_nothing(scene: Scene) -> None:
    scene.collected()
    before, held = scene.content(), dict(scene.world.receiver.samples)
    running = Ledger.open(scene.ledger)
    try:
        result = scene.cfrw("check", "--no-probe")
    finally:
        asyncio.run(running.close())
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    sections = ["config", "token", "clock", "zones", "token", "datasets", "API budget", "delay", *["ledger"] * 6]
    assert [line[9:21].strip() for line in lines[:-1]] == [*sections, "destination", "age window", "dashboards"]
    assert "takes requests of this worker, in remote write 2.0" in result.stdout
    assert lines[-1] == "0 failures, 0 warnings"
    assert (scene.content(), dict(scene.world.receiver.samples)) == (before, held)


def test_a_check_sends_samples_of_a_name_of_their_own_and_works_without_a_ledger(scene: Scene) -> None:
    for _ in range(2):
        result = scene.cfrw("check", "--json")
        assert result.exit_code == 0, result.output
        findings = json.loads(result.stdout)["findings"]
        assert {finding["state"] for finding in findings} <= {"ok", "skipped"}
        assert [finding["section"] for finding in findings[-2:]] == ["age window", "dashboards"]
    assert not scene.ledger.exists()
    assert {dict(labels)["__name__"] for labels in scene.world.receiver.samples} == {"cfrw_check_probe"}


def test_a_failure_has_an_exit_code_and_what_to_do_and_no_secret_is_told(scene: Scene) -> None:
    scene.world.receiver.failure = Failure(status=401, text="no")
    for option in ([], ["--json"]):
        result = scene.cfrw("check", *option, CF_API_TOKEN="canary-of-another-token")
        assert result.exit_code == 3
        assert "Cloudflare refuses it: " in result.stdout
        assert "the receiver does not accept the credentials" in result.stdout
        assert "canary-of-another-token" not in result.output
        assert BEARER not in result.output
        assert "set CF_API_TOKEN to a token that is active" in result.stdout


def test_the_newest_bucket_is_sent_again_where_that_is_asked_for(scene: Scene) -> None:
    scene.collected()
    before = {labels: dict(samples) for labels, samples in scene.world.receiver.samples.items()}
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ok       repair")]
    newest = max(report.newest_end or 0 for report in scene.reports()) - HOUR
    assert f"samples of http_requests from {instant(newest)} went out again as repair 1, and were acknowledged" in line
    assert scene.world.receiver.repeated_samples == int(line.split()[3]) > 0
    assert scene.world.receiver.samples == before
    sent, read = scene.journal()
    assert (sent["state"], sent["arguments"]["since"]) == ("done", newest)
    assert read["arguments"]["since"] == newest
    # This receiver has no query API, and nobody said so.
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped  repair")]
    assert "could not be read back: HTTP 404" in line


@pytest.mark.parametrize(
    ("read", "state", "told"),
    [
        (VerifyResult((VerifyCount("default", equal=7),)), "ok", "all 7 were found there, as repair 2 read back"),
        (VerifyResult((VerifyCount("default", equal=5, missing=2),)), "failure", "2 were acknowledged and are not"),
        (VerifyResult((VerifyCount("default", equal=5, different=1),)), "failure", "1 were acknowledged and are not"),
        (VerifyResult(), "failure", "0 were acknowledged and are not there, 0 are"),
        (VerifyResult(not_read=(NotRead("default", "HTTP 403"),)), "skipped", "could not be read back: HTTP 403"),
    ],
)
def test_a_repair_ends_with_what_is_there_afterwards(
    *, scene: Scene, monkeypatch: pytest.MonkeyPatch, read: VerifyResult, state: str, told: str
) -> None:
    def carried_out(_settings: object, _redactor: object, arguments: Resend | Verify, **_options: object) -> Job:
        sent = ResendResult(outcome=(ResendCount("default", "acknowledged", 1, 7),))
        number, result = (1, sent) if isinstance(arguments, Resend) else (2, read)
        return Job(number, "", arguments, "", "", 0, JobState.DONE, Progress(), False, None, result)

    monkeypatch.setattr("worker.cli.check.carry_out", carried_out)
    result = scene.collected().cfrw("check", "--no-probe", "--repair-test")
    *_, line = [line for line in result.stdout.splitlines() if line[9:].startswith("repair")]
    assert line.startswith(f"{state:8} repair       default: ")
    assert told in line


def test_a_repair_that_is_refused_is_a_failure_in_the_receiver_s_words(scene: Scene) -> None:
    scene.collected()
    scene.world.receiver.failure = Failure(status=400, text="not again")
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    assert result.exit_code == 3
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("failure  repair")]
    assert "refused: not again" in line
    assert "`cfrw journal 1`" in line
    assert BEARER not in result.output


@pytest.mark.parametrize(
    ("failing", "told"), [(None, "it has acknowledged nothing"), (Failure(status=401), "while a destination")]
)
def test_a_repair_is_not_tried_without_a_bucket_or_a_receiver(scene: Scene, failing: Failure | None, told: str) -> None:
    scene.world.receiver.failure = failing
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped  repair")]
    assert told in line
    assert not scene.ledger.exists()


def test_not_probing_is_no_option_of_what_sends_no_request(scene: Scene) -> None:
    result = scene.cfrw("check", "--config-only", "--no-probe")
    assert result.exit_code == 2
    assert "--no-probe" in result.stderr


@pytest.mark.parametrize("arguments", [["status"], ["gaps", "--since", "4h"]])
def test_what_only_reads_the_ledger_needs_no_token(scene: Scene, arguments: list[str]) -> None:
    scene.collected()
    result = scene.cfrw(*arguments, CF_API_TOKEN=None)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == scene.cfrw(*arguments).stdout
    wrong = scene.cfrw(*arguments, CF_API_TOKEN="Bearer x")
    assert wrong.exit_code == 2


# --------------------------------------------------------------------------------------------------- run --once


def test_once_collects_and_delivers_everything_that_is_due(scene: Scene) -> None:
    result = scene.cfrw("run", "--once")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    wanted: dict[Any, dict[int, float]] = {}
    for report, zone in zip(scene.reports(), sorted(scene.world.fleet.zones, key=lambda zone: zone.name), strict=True):
        assert report.newest_end is not None
        starts = range(report.newest_end - report.captured * HOUR, report.newest_end, HOUR)
        assert report.captured >= REPLAY_HOURS - 1
        wanted |= expected_content(scene.world.fleet, [zone], starts)
    stored = {frozenset(labels): samples for labels, samples in scene.world.receiver.samples.items()}
    assert difference(wanted, stored) == SAME


def test_once_with_a_token_that_cloudflare_refuses_is_incomplete_and_says_so(scene: Scene) -> None:
    result = scene.cfrw("run", "--once", CF_API_TOKEN="canary-wrong-token")
    assert result.exit_code == 3
    assert "Cloudflare refuses the API token; check CF_API_TOKEN" in result.stderr
    assert "`cfrw status` shows it" in result.stderr
    assert "canary-wrong-token" not in result.output


def test_once_without_cloudflare_is_incomplete_even_where_nothing_is_known_to_be_missing(scene: Scene) -> None:
    scene.collected()
    scene.world.api.faults.add(HttpStatus(is_html=True))
    result = scene.cfrw("run", "--once")
    assert result.exit_code == 3
    assert "The zones could not be listed; the last list stays in force" in result.stderr


def test_once_with_a_receiver_that_is_down_is_incomplete_and_says_so(scene: Scene, tmp_path: Path) -> None:
    scene.world.receiver.failure = Failure(503, "closed for repairs")
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    environment = dict.fromkeys(scene.environment)
    scene.environment = environment
    result = scene.cfrw("run", "--once", "--config", str(quick))
    assert result.exit_code == 3
    assert "closed for repairs" in result.stderr
    assert "Giving up for this run" in result.stderr
    shown = scene.cfrw("status", "--config", str(quick))
    assert shown.exit_code == 3
    assert "closed for repairs" in shown.stdout
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    assert scene.cfrw("status", "--config", str(quick)).exit_code == 0


def test_once_with_a_receiver_that_refuses_is_incomplete_and_status_has_its_words(scene: Scene) -> None:
    scene.world.receiver.failure = Failure(400, "out of bounds [/red] [bold]")
    assert scene.cfrw("run", "--once").exit_code == 3
    result = scene.cfrw("status")
    assert result.exit_code == 3
    assert "out of bounds [/red] [bold]" in result.stdout
    assert "  cloudflare_zone_" in result.stdout
    (destination,) = json.loads(scene.cfrw("status", "--json").stdout)["destinations"]
    assert destination["refused_samples"] > 0
    assert destination["refusals"][0]["status"] == 400


def test_a_ledger_that_another_worker_holds_is_told_with_exit_code_4(scene: Scene) -> None:
    held = Ledger.open(scene.ledger)
    try:
        for arguments in (["run"], ["run", "--once"]):
            result = scene.cfrw(*arguments)
            assert result.exit_code == 4
            assert f"another worker (process {os.getpid()}) holds the ledger" in result.stderr
    finally:
        asyncio.run(held.close())


def test_a_file_that_is_no_ledger_is_told_with_exit_code_5(scene: Scene) -> None:
    scene.ledger.write_bytes(b"this is not a database, " * 100)
    for arguments in (["run"], ["run", "--once"], ["status"], ["resend", "--since", "1h"]):
        result = scene.cfrw(*arguments)
        assert result.exit_code == 5
        assert f"{scene.ledger}" in result.stderr


def test_a_place_where_no_ledger_can_be_is_told_with_exit_code_5(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = scene.cfrw("run", "--once", LEDGER_PATH=str(tmp_path / "file" / "ledger.db"))
    assert result.exit_code == 5
    assert "LEDGER_PATH" in result.stderr


def test_a_port_that_is_taken_is_told_with_exit_code_2(scene: Scene) -> None:
    port = scene.world.api_url.split(":")[2].split("/")[0]
    result = scene.cfrw("run", LISTEN_ADDRESS=f"127.0.0.1:{port}")
    assert result.exit_code == 2
    assert "LISTEN_ADDRESS" in result.stderr


# --------------------------------------------------------------------------------------------------- status


def test_status_without_a_ledger_says_what_makes_one(scene: Scene) -> None:
    for option in ([], ["--json"]):
        result = scene.cfrw("status", *option)
        assert result.exit_code == 5
        assert "there is no ledger" in result.stderr
        assert "`cfrw run` makes it" in result.stderr
    assert not scene.ledger.exists()


def test_status_shows_zones_and_destinations_and_its_json_parses(scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("status")
    assert result.exit_code == 0
    for zone in scene.world.fleet.zones:
        assert zone.name in result.stdout
    report = json.loads(scene.cfrw("status", "--json").stdout)
    assert {scope["scope"] for scope in report["scopes"]} == {zone.tag for zone in scene.world.fleet.zones}
    assert all(scope["captured"] == scope["expected"] >= REPLAY_HOURS - 1 for scope in report["scopes"])
    (destination,) = report["destinations"]
    assert destination["pending_samples"] == 0
    assert not {"message", "parked"} & destination.keys(), "only a running worker knows"
    assert destination["acknowledged_buckets"] == sum(scope["captured"] for scope in report["scopes"])


def test_a_status_of_many_zones_shows_the_worst_and_says_how_many_more_there_are() -> None:
    scopes = tuple(structs.replace(SCOPE, scope=f"{number}", name=f"zone-{number:03}.example") for number in range(60))
    console = Console(file=io.StringIO(), width=200, markup=False)
    print_status(replace(REPORT, scope_count=60, scopes=scopes), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "zone-049.example" in shown
    assert "zone-050.example" not in shown
    assert "10 more are not shown: --json has all" in shown


def test_a_status_has_a_row_for_each_of_several_tokens() -> None:
    (one,) = REPORT.tokens
    console = Console(file=io.StringIO(), width=80, markup=False)
    for tokens in ((one,), (replace(one, name="agency"), replace(one, name="shops", zones=12_345, accounts=2))):
        print_status(replace(REPORT, tokens=tokens), console)
    assert isinstance(console.file, io.StringIO)
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert not any(line.startswith("default") for line in shown)
    assert "agency 1 0 20/300 100/1,200" in shown
    assert "shops 12,345 2 20/300 100/1,200" in shown


def test_a_status_names_the_token_that_cloudflare_refuses() -> None:
    (one,) = REPORT.tokens
    since = "Cloudflare has refused it since 2026-01-06T03:00:00Z"
    refused = replace(one, refused_since=NOW, refusal="Authentication error")
    for tokens, told in (
        ((refused,), f"the API token: {since}; check CF_API_TOKEN."),
        (
            (replace(refused, name="agency"), replace(one, name="shops")),
            f"token agency: {since}; check its api_token under `cloudflare`.",
        ),
    ):
        console = Console(file=io.StringIO(), width=80, markup=False)
        print_status(replace(REPORT, tokens=tokens), console)
        assert isinstance(console.file, io.StringIO)
        (line,) = [line for line in console.file.getvalue().splitlines() if "refused it" in line]
        assert line == f"{told} It said: Authentication error"


def test_every_token_is_a_secret() -> None:
    further = TokenSettings(name="b", api_token=SecretStr("canary-b"))
    cloudflare = CloudflareSettings(api_token=SecretStr("canary-a"), further_tokens=(further,))
    assert list(secrets_in(Settings(cloudflare=cloudflare, destinations=()))) == ["canary-a", "canary-b"]


def test_a_status_of_many_datasets_sums_them_up_and_shows_what_is_missing_and_denied() -> None:
    lacking = structs.replace(SCOPE, scope="1", name="lacking.example", missing=7, reason="7 failed: HTTP 503")
    firewall = replace(
        DENIED,
        dataset="firewall_events",
        scope_count=9_000,
        scopes=tuple(structs.replace(DENIED.scopes[0], name=f"{letter}.example") for letter in "abcd"),
    )
    longest = max(shipped(), key=len)
    report = replace(
        REPORT,
        datasets=(
            replace(DATASET, scope_count=10_000, captured=1_233, expected=1_240, missing=7),
            *(replace(DATASET, dataset=longest, kind="account") for _ in range(128)),
        ),
        denied=(firewall, DENIED),
        scope_count=2,
        scopes=(lacking, structs.replace(SCOPE, name="fine.example")),
    )
    report = replace(report, datasets=(*report.datasets, replace(DATASET, dataset="firewall_events")))
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(report, console)
    assert isinstance(console.file, io.StringIO)
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "http_requests 10,000 2026-01-06T02:45:00Z 7 0" in shown
    assert f"{longest} 1 2026-01-06T02:45:00Z 0 0" in shown
    assert "80 more are not shown: --json has all" in shown
    assert "lacking.example http_requests: 7 failed: HTTP 503" in shown
    assert "fine.example" not in console.file.getvalue()
    where = shown.index("not collected, as it is denied:")
    assert shown[where + 1 : where + 3] == [
        f"firewall_events: 9,000 zones (a.example, b.example, c.example, ...): {DENIED.reason}",
        f"http_requests: 1 zone (free.example): {DENIED.reason}",
    ]


def test_a_status_in_which_everything_is_denied_does_not_say_that_there_are_no_zones() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(replace(REPORT, scopes=(), scope_count=0, denied=(DENIED,)), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert f"http_requests: 1 zone (free.example): {DENIED.reason}" in shown
    assert "listed" not in shown


def test_a_status_names_the_samples_that_were_refused_in_full_and_what_the_receiver_said() -> None:
    series = f'cloudflare_zone_requests{{zone="{"z" * 250}.example"}}'
    words = "user=anonymous: the label value is too long " + "x" * 300
    destination = replace(
        DESTINATION,
        partial_buckets=3,
        refused_samples=1_070,
        last_failure="HTTP 503: busy",
        given_up=(
            GivenUp("expired", 2, NOW, None, "older than CF_REPLAY_HOURS"),
            GivenUp("partial", 3, NOW, 422, words),
        ),
        refusals=(
            replace(REFUSAL, samples=66, series=(series, "second"), status=422, reason=words),
            replace(REFUSAL, status=None, reason="five times\n500"),
        ),
    )
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(replace(REPORT, destinations=(destination,)), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in shown if line.startswith(("prod: ", "  "))][-10:] == [
        "prod: HTTP 503: busy",
        "prod: 2 expired: older than CF_REPLAY_HOURS (2026-01-06T03:00:00Z)",
        f"prod: 3 partial: HTTP 422: {words} (2026-01-06T03:00:00Z)",
        "prod: refused samples: 1,070; the newest:",
        f"  {series}",
        "  second",
        "  and 64 more",
        f"    stamped 2026-01-06T00:00:00Z, refused 2026-01-06T02:58:00Z: HTTP 422: {words}",
        '  cloudflare_zone_requests{zone="example.com"}',
        "    stamped 2026-01-06T00:00:00Z, refused 2026-01-06T02:58:00Z: five times 500",
    ]


def test_the_table_of_destinations_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    destination = replace(DESTINATION, name="prometheus", acknowledged_buckets=123_456_789, partial_buckets=1_234)
    print_status(replace(REPORT, destinations=(destination,)), console)
    assert isinstance(console.file, io.StringIO)
    (row,) = [line for line in console.file.getvalue().splitlines() if line.startswith("prometheus")]
    assert row.split() == ["prometheus", "0", "-", "123,456,789", "1,234", "0", "0", "0"]


@pytest.mark.parametrize(
    ("scope", "destination", "complete"),
    [
        ({}, {}, True),
        ({"missing": 1}, {}, False),
        ({}, {"pending_buckets": 1}, False),
        ({}, {"partial_buckets": 1}, False),
        ({}, {"refused_buckets": 1}, False),
        ({}, {"expired_buckets": 1}, False),
        ({}, {"damaged_buckets": 1}, False),
    ],
)
def test_a_report_is_complete_when_nothing_is_missing_pending_refused_expired_or_damaged(
    scope: dict[str, Any], destination: dict[str, Any], complete: object
) -> None:
    report = replace(
        REPORT, scopes=(structs.replace(SCOPE, **scope),), destinations=(replace(DESTINATION, **destination),)
    )
    assert is_complete(report) == complete


def test_a_report_without_zones_is_not_complete() -> None:
    assert not is_complete(replace(REPORT, scopes=(), scope_count=0))


# --------------------------------------------------------------------------------------------------- resend


def test_a_dry_run_shows_what_would_be_sent_and_changes_nothing(scene: Scene) -> None:
    scene.collected()
    before = scene.content(), scene.ledger.read_bytes(), sum(scene.world.receiver.answers.values())
    result = scene.cfrw("resend", "--since", "10h", "--dry-run")
    assert result.exit_code == 0
    assert "Would be sent again" in result.stdout
    (count,) = json.loads(scene.cfrw("resend", "--since", "10h", "--dry-run", "--json").stdout)["counts"]
    captured = sum(report.captured for report in scene.reports())
    assert (count["destination"], count["state"], count["buckets"]) == ("default", "acknowledged", captured)
    assert (scene.content(), scene.ledger.read_bytes(), sum(scene.world.receiver.answers.values())) == before


def test_a_plan_tells_what_a_receiver_will_refuse(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    for window, told in (("2h", "of them are older than 2h"), ("0s", "takes nothing older than the newest sample")):
        file = config_file(tmp_path, scene, out_of_order_time_window=window)
        scene.environment = {name: None if "REMOTE" in name else value for name, value in scene.environment.items()}
        shown = scene.cfrw("resend", "--since", "10h", "--dry-run", "--config", str(file)).stdout
        assert told in shown
        plan = json.loads(scene.cfrw("resend", "--since", "10h", "--dry-run", "--json", "--config", str(file)).stdout)
        assert bool(plan["too_old"]) is (window == "2h")
        assert plan["strict"] == (["default"] if window == "0s" else [])


def test_a_resend_pushes_the_same_samples_again_and_is_on_record(scene: Scene) -> None:
    scene.collected()
    samples = sum(map(len, scene.world.receiver.samples.values()))
    result = scene.cfrw("resend", "--since", "10h", "--reason", "the disk was swapped")
    assert result.exit_code == 0, result.output
    assert scene.world.receiver.repeated_samples == samples
    (entry,) = scene.journal()
    assert entry["reason"] == "the disk was swapped"
    assert entry["by"] == f"{getpass.getuser()}@{os.uname().nodename}"
    assert entry["state"] == "done"
    (count,) = json.loads(scene.cfrw("resend", "--since", "10h", "--json").stdout)["result"]["outcome"]
    assert (count["state"], count["samples"]) == ("acknowledged", samples)


@pytest.mark.parametrize("order", ["short", "long", "short with a file", "file first"])
def test_resend_since_is_the_same_in_every_form(order: str, scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    file = ["--config", str(config_file(tmp_path, scene))]
    if "file" in order:
        scene.environment = dict.fromkeys(scene.environment)
    arguments = {
        "short": ["--resend-since", "4h"],
        "long": ["resend", "--since", "4h"],
        "short with a file": ["--resend-since", "4h", *file],
        "file first": [*file, "--resend-since", "4h"],
    }[order]
    before = int(time.time())
    result = scene.cfrw(*arguments)
    assert result.exit_code == 0, result.output
    (entry,) = scene.journal()
    assert before <= entry["arguments"]["until"] <= time.time()
    assert entry["arguments"]["until"] - entry["arguments"]["since"] in {4 * HOUR, 4 * HOUR + 1}
    assert entry["state"] == "done"
    assert scene.world.receiver.repeated_samples > 0


def test_a_resend_may_be_of_one_zone_by_its_name_or_its_id(scene: Scene) -> None:
    scene.collected()
    zone = scene.world.fleet.zones[1]
    captured = {report.tag: report.captured for report in scene.reports()}[zone.tag]
    for given in (zone.name, zone.tag):
        plan = json.loads(scene.cfrw("resend", "--since", "10h", "--zone", given, "--dry-run", "--json").stdout)
        assert [count["buckets"] for count in plan["counts"]] == [captured]


def test_a_zone_that_has_disappeared_can_be_sent_again(scene: Scene) -> None:
    scene.collected()
    gone = scene.world.fleet.zones[0]

    async def let_it_disappear() -> None:
        ledger = Ledger.open(scene.ledger)
        left = [scope for scope in await ledger.read(present_scopes) if scope.tag != gone.tag]
        await ledger.write(record_scopes, left, scene.world.clock.now())
        await ledger.close()

    asyncio.run(let_it_disappear())
    assert scene.cfrw("resend", "--since", "10h", "--zone", gone.name).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["--since", "30"], "--since: '30' is no time"),
        (["--since", "999999999d"], "--since: '999999999d' lies before 1970"),
        (["--since", "9999999999"], "--since 9999999999 is in the future"),
        (["--since", "9999-12-31T23:59:59-14:00"], "is in the future"),
        (["--since", "1h", "--until", "2h"], "nothing lies between --since"),
        (["--since", "1h", "--until", "2999-01-01"], "--until 2999-01-01 is in the future"),
        (["--since", "1h", "--until", "soon"], "--until: 'soon' is no time"),
        (["--since", "1h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--since", "1h", "--dataset", "http_request"], "is not known; did you mean http_requests or "),
        (["--since", "1h", "--destination", "defualt"], "is not known; did you mean default?"),
    ],
)
def test_what_cannot_be_sent_again_is_told_with_exit_code_2_and_not_put_on_record(
    arguments: list[str], told: str, scene: Scene
) -> None:
    scene.collected()
    for command in ("resend", "verify"):
        result = scene.cfrw(command, *arguments)
        assert result.exit_code == 2
        assert told in result.stderr
    assert scene.journal() == []


def test_a_zone_that_is_misspelt_is_told_with_the_nearest_name(scene: Scene) -> None:
    scene.collected()
    name = scene.world.fleet.zones[0].name
    result = scene.cfrw("resend", "--since", "1h", "--zone", name[:-1])
    assert result.exit_code == 2
    assert name in result.stderr


def test_a_resend_to_a_receiver_that_is_down_is_incomplete_and_stays_on_record(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    scene.environment = dict.fromkeys(scene.environment)
    scene.world.receiver.failure = Failure(503)
    result = scene.cfrw("resend", "--since", "10h", "--config", str(quick))
    assert result.exit_code == 3
    assert "pending" in result.stdout
    (entry,) = scene.journal()
    assert entry["state"] == "running"
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    assert scene.world.receiver.repeated_samples > 0
    (entry,) = scene.journal()
    assert entry["state"] == "done"


def test_a_resend_of_nothing_says_so(scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("resend", "--since", "1s")
    assert result.exit_code == 0
    assert "To be sent again: nothing" in result.stdout


def test_without_a_ledger_there_is_nothing_to_send_again(scene: Scene) -> None:
    result = scene.cfrw("resend", "--since", "1h")
    assert result.exit_code == 5
    assert "there is no ledger" in result.stderr
    assert not scene.ledger.exists()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes as soon as a repair is on record."""

    @contextmanager
    def stop_at_once(stopping: asyncio.Event) -> Iterator[None]:
        stopping.set()
        yield

    monkeypatch.setattr(repair, "stop_on_signals", stop_at_once)


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("command", [["resend", "--since", "10h"], ["backfill", "--from", "10h"]])
def test_a_repair_that_is_cancelled_is_told_to_be_and_not_that_nothing_came_of_it(
    command: list[str], scene: Scene
) -> None:
    scene.collected()
    running = Ledger.open(scene.ledger)
    try:
        asked = scene.cfrw(*command, "--on-interrupt", "cancel")
        shown = scene.cfrw("journal", "1")
    finally:
        asyncio.run(running.close())
    assert asked.exit_code == 3
    assert "repair 1 is asked to end, and what it queued is still delivered; `cfrw journal 1` shows it" in asked.stderr
    assert "state:    asked; asked to end" in shown.stdout
    assert "became" not in asked.stdout + shown.stdout

    assert scene.cfrw("run", "--once").exit_code == 0
    assert scene.journal()[0]["state"] == "cancelled"
    alone = scene.cfrw(*command, "--on-interrupt", "cancel")
    assert alone.exit_code == 3
    assert "repair 2: cancelled; 0 buckets" in alone.stderr
    assert "became" not in alone.stdout


@pytest.fixture
def can_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver tells what it has stored, as far as it is asked for."""

    async def read(_: ReadBack, selector: Selector, first_ms: int, last_ms: int) -> Found:
        return Found(
            {
                frozenset(labels): [sample for sample in samples.items() if first_ms <= sample[0] <= last_ms]
                for labels, samples in world.receiver.samples.items()
                if dict(labels)["__name__"] in selector.metrics
                and dict(labels)["zone_id"] in selector.labels["zone_id"]
            }
        )

    monkeypatch.setattr(ReadBack, "read", read)
    monkeypatch.setattr(verification, "_SETTLE_SECONDS", 0.0)


@pytest.mark.usefixtures("can_be_read")
def test_verify_tells_what_was_lost_and_sends_it_again_when_asked_to(scene: Scene) -> None:
    scene.collected()
    stored = scene.world.receiver.samples
    samples = sum(map(len, stored.values()))
    plan = scene.cfrw("verify", "--since", "10h", "--dry-run").stdout
    assert f"would be read back from {scene.world.write_url.removesuffix('/api/v1/write')}" in plan
    assert scene.journal() == []
    assert scene.cfrw("verify", "--since", "10h").exit_code == 0

    labels, lost = next((labels, samples) for labels, samples in stored.items() if len(samples) > 1)
    moment, value = lost.popitem()
    result = scene.cfrw("verify", "--since", "10h")
    assert result.exit_code == 3
    assert f"ledger {value!r}, not there" in result.stdout
    assert dict(labels)["zone"] in result.stdout
    assert result.stdout in scene.cfrw("journal", "2").stdout
    assert moment not in lost

    healed = scene.cfrw("verify", "--since", "10h", "--repair", "--json")
    assert healed.exit_code == 0
    found, repair = json.loads(healed.stdout)
    assert found["result"]["totals"][0]["missing"] == 1
    assert [(count["state"], count["samples"]) for count in repair["result"]["outcome"]] == [
        ("acknowledged", 1),
        ("already there", samples - 1),
    ]
    assert lost[moment] == value

    again = scene.cfrw("verify", "--since", "10h", "--repair")
    assert again.exit_code == 0
    assert scene.world.receiver.repeated_samples == 0
    only_missing = scene.cfrw("resend", "--since", "10h", "--only-missing")
    assert only_missing.exit_code == 0
    assert "already there" in only_missing.stdout
    assert scene.world.receiver.repeated_samples == 0
    # Two reads, one of them healed, another read that found nothing to heal, and a resend of its own.
    is_resend = ["only_missing" in entry["arguments"] for entry in scene.journal()]
    assert is_resend == [False, False, False, True, False, True]


def test_what_cannot_be_read_is_not_called_lost(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    result = scene.cfrw("verify", "--since", "10h")
    assert result.exit_code == 3
    assert "was not read to the end: HTTP 404" in result.stdout
    assert "check query_url" in result.stdout
    elsewhere = config_file(tmp_path, scene)
    url = "http://127.0.0.1:1/api/v1/receive?key=canary"
    elsewhere.write_text(elsewhere.read_text().replace(scene.world.write_url, url))
    scene.environment = dict.fromkeys(scene.environment)
    for arguments in (["verify", "--since", "10h"], ["resend", "--since", "10h", "--only-missing"]):
        result = scene.cfrw(*arguments, "--config", str(elsewhere))
        assert result.exit_code == 2
        assert "query_url: is required to read back" in result.stderr
        assert "canary" not in result.stderr


def test_a_user_without_a_name_is_on_record_by_number(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.collected()

    def unknown() -> str:
        message = "getpwuid(): uid not found: 65532"
        raise KeyError(message)

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert scene.cfrw("resend", "--since", "10h").exit_code == 0
    assert scene.journal()[0]["by"] == f"uid {os.getuid()}@{os.uname().nodename}"


# ------------------------------------------------------------------------------------------- backfill and journal


def test_a_backfill_fetches_what_is_missing_and_a_second_one_nothing(scene: Scene) -> None:
    scene.collected()
    before = sum(report.captured for report in scene.reports())
    dry = json.loads(scene.cfrw("backfill", "--from", "12h", "--dry-run", "--json").stdout)
    assert (dry["windows"], dry["requests"], dry["out_of_reach"]) == (dry["missing"][0]["windows"], 1, [])
    assert sum(report.captured for report in scene.reports()) == before

    result = scene.cfrw("backfill", "--from", "12h", "--reason", "the worker was away")
    assert result.exit_code == 0, result.output
    assert f"Captured {dry['windows']} buckets" in result.stdout
    captured = {start for _, _, _, _, start, *_ in scene.content()["bucket"]}
    starts = range(min(captured), max(captured) + HOUR, HOUR)
    assert captured == set(starts)
    assert len(starts) in {10, 11}
    wanted = expected_content(scene.world.fleet, scene.world.fleet.zones, starts)
    received = {frozenset(labels): samples for labels, samples in scene.world.receiver.samples.items()}
    assert difference(wanted, received) == SAME
    requests = scene.world.receiver.answers.total()

    again = scene.cfrw("backfill", "--from", "12h")
    # In the first minutes of an hour the newest window is told of, as it is not final.
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "Nothing is missing that can be fetched")
    assert scene.world.receiver.answers.total() == requests
    (entry,) = scene.journal()
    assert (entry["reason"], entry["state"]) == ("the worker was away", "done")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "73h"], "is further back than CF_BACKFILL_MAX_HOURS (72 h) allows; --max-hours 73 goes that far"),
        (
            ["--from", "7h", "--max-hours", "6"],
            "is further back than --max-hours 6 allows; --max-hours 7 goes that far",
        ),
        (["--from", "169h", "--max-hours", "200"], "(LEDGER_RETENTION_HOURS=168): they would be deleted"),
        (["--from", "1h", "--to", "2h"], "nothing lies between --from"),
        (["--from", "2999-01-01"], "is in the future"),
        (["--from", "2h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--from", "2h", "--dataset", "http_request"], "did you mean http_requests"),
        (["--from", "2h", "--dataset", "certificates"], "facts have no past"),
    ],
)
def test_what_cannot_be_fetched_is_told_with_exit_code_2_and_not_put_on_record(
    arguments: list[str], told: str, scene: Scene
) -> None:
    scene.collected()
    result = scene.cfrw("backfill", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert scene.journal() == []


def test_gaps_are_listed_with_the_commands_that_fill_them(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    found = scene.cfrw("gaps", "--since", "4h")
    assert (found.exit_code, found.stdout.splitlines()[0]) == (0, "nothing is missing")

    found = scene.cfrw("gaps", "--since", "9h")
    assert found.exit_code == 3
    assert "never asked" in found.stdout
    (command,) = [line.strip() for line in found.stdout.splitlines() if line.startswith("  cfrw ")]
    (gap,) = json.loads(scene.cfrw("gaps", "--since", "9h", "--json").stdout)["gaps"]
    assert (gap["cause"], gap["command"], len(gap["scopes"])) == ("never asked", command, 3)

    elsewhere = config_file(tmp_path, scene)
    environment = dict.fromkeys(scene.environment)
    found = scene.cfrw("gaps", "--since", "9h", "--config", str(elsewhere), **environment)
    (pasted,) = [line.strip() for line in found.stdout.splitlines() if line.startswith("  cfrw ")]
    assert pasted == command.replace("backfill", f"backfill --config {elsewhere}")
    assert scene.cfrw(*shlex.split(pasted)[1:], **environment).exit_code == 0
    assert scene.cfrw("gaps", "--since", "9h").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--since", "1h", "--until", "2h"], "nothing lies between --since"),
        (["--since", "1h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--since", "1h", "--dataset", "http_request"], "did you mean http_requests"),
        (["--since", "2999-01-01"], "is in the future"),
    ],
)
def test_gaps_of_what_does_not_exist_are_told_with_exit_code_2(arguments: list[str], told: str, scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("gaps", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_the_journal_lists_repairs_and_shows_one(scene: Scene) -> None:
    scene.collected()
    assert scene.cfrw("journal").stdout == "no repair is on record\n"
    assert scene.cfrw("resend", "--since", "10h", "--reason", "the disk was swapped").exit_code == 0
    assert scene.cfrw("resend", "--since", "2h").exit_code == 0

    listed = scene.cfrw("journal")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == ["2", "1"]
    assert [each["job_id"] for each in json.loads(scene.cfrw("journal", "--newest", "1", "--json").stdout)] == [2]
    shown = scene.cfrw("journal", "1").stdout
    assert "the disk was swapped" in shown
    assert "buckets queued again" in shown
    assert json.loads(scene.cfrw("journal", "1", "--json").stdout)["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["7"], "there is no repair 7; `cfrw journal` lists those on record"),
        (["9" * 20], "is not a whole number of 1 or more, and of 9,223,372,036,854,775,807 at most"),
        (["--newest", "9" * 20], "--newest: 99999999999999999999 is not a whole number"),
        (["--cancel"], "--cancel needs the number of a repair"),
        (["1", "--cancel"], "repair 1 has ended (done); there is nothing to cancel"),
    ],
)
def test_what_the_journal_cannot_do_is_told_with_exit_code_2(arguments: list[str], told: str, scene: Scene) -> None:
    scene.collected()
    assert scene.cfrw("resend", "--since", "10h").exit_code == 0
    result = scene.cfrw("journal", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_repair_that_waits_can_be_cancelled(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    quick = config_file(tmp_path, scene, queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    scene.environment = dict.fromkeys(scene.environment)
    scene.world.receiver.failure = Failure(503)
    assert scene.cfrw("resend", "--since", "10h", "--config", str(quick)).exit_code == 3
    cancelled = scene.cfrw("journal", "1", "--cancel", "--config", str(quick))
    assert "asked to end" in cancelled.stdout
    scene.world.receiver.failure = None
    assert scene.cfrw("run", "--once", "--config", str(quick)).exit_code == 0
    (entry,) = scene.journal()
    assert entry["state"] == "done", "it had queued all that it was to queue"


# --------------------------------------------------------------------------------------------------- secrets

CANARIES = {
    "header": "canary-header-31aa",
    "basic": "canary-password-88ce",
    "query": "canary-query-04b2",
    "bare": "canary-bare-token-9e77",
    "token": "canary-token-6a0d",
}


@pytest.mark.parametrize("failure", [None, 400, 401, 503])
def test_no_secret_comes_out_of_any_command_at_debug_or_stands_in_the_ledger(
    failure: int | None, scene: Scene, tmp_path: Path
) -> None:
    key = f"?key={CANARIES['query']}"
    scene.world.receiver.failure = None if failure is None else Failure(failure)
    scene.world.api._tokens = frozenset({ACCEPTED_BEARER, CANARIES["token"]})
    scene.environment["CF_API_TOKEN"] = CANARIES["token"]
    file = config_file(tmp_path, scene)
    quick = {"min_backoff": "1ms", "max_backoff": "1ms"}
    destinations: list[dict[str, Any]] = [
        {"name": "basic", "url": scene.world.write_url, "basic_auth": {"username": "u", "password": CANARIES["basic"]}},
        {"name": "header", "url": scene.world.write_url, "headers": {"X-Key": CANARIES["header"]}},
        {"name": "bare", "url": scene.world.write_url, "headers": {"Authorization": f"Token {CANARIES['bare']}"}},
        {"name": "query", "url": scene.world.write_url + key, "bearer_token": BEARER},
    ]
    head = file.read_text().split("remote_write:")[0]
    entries = [{**destination, "queue_config": quick} for destination in destinations]
    file.write_text(f"{head}log_level: debug\nremote_write: {json.dumps(entries)}\n")
    scene.environment = dict.fromkeys(scene.environment)
    said = ""
    for arguments in (
        ["check", "--config-only"],
        ["run", "--once"],
        ["status"],
        ["status", "--json"],
        ["resend", "--since", "10h", "--reason", f"with {CANARIES['header']}"],
        ["resend", "--since", "later"],
        ["--resend-since", "3h"],
        ["verify", "--since", "10h"],
        ["check"],
    ):
        said += scene.cfrw(*arguments, "--config", str(file)).output
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    for secret in (*CANARIES.values(), BEARER):
        assert secret not in said
        assert secret.encode() not in kept
    # What a receiver repeated was shown, as far as it is no secret.
    assert failure is None or "x-prometheus-remote-write-version" in said


def test_the_name_of_a_tenant_is_no_secret_and_the_log_stays_readable(scene: Scene, tmp_path: Path) -> None:
    headers = {"X-Scope-OrgID": "1", "THANOS-TENANT": "team-a", "X-Mode": "on", "Authorization": "Bearer tok-93fd"}
    settings = load_settings(config_file(tmp_path, scene, headers=headers), {})
    line = "tenant 1 team-a turns on 1 of 11 with Bearer tok-93fd, and tok-93fd alone"
    assert Redactor(secrets_in(settings)).text(line) == "tenant 1 team-a turns on 1 of 11 with ***, and *** alone"


def test_every_secret_of_the_configuration_is_known_to_the_log(scene: Scene, tmp_path: Path) -> None:
    basic = {"username": "ops", "password": "s3cret-pass"}
    settings = load_settings(config_file(tmp_path, scene, basic_auth=basic), {})
    redactor = Redactor(secrets_in(settings))
    for text in (ACCEPTED_BEARER, "s3cret-pass", "b3BzOnMzY3JldC1wYXNz", "ops:s3cret-pass"):
        assert "***" in redactor.text(text)
        assert text not in redactor.text(text)


def test_errors_of_the_worker_are_one_message_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        message = "what happened, and what to do"
        raise UsageError(message)

    monkeypatch.setattr("worker.cli.status.settings_of", fail)
    result = CliRunner().invoke(main, ["status"])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: what happened, and what to do\n")


def test_the_commands_of_these_tests_are_all_there_are() -> None:
    assert isinstance(main, click.Group)
    assert set(main.commands) == set(COMMANDS)
