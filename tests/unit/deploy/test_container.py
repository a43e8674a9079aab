import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.dockerfile import (
    REPOSITORY,
    arguments_of,
    build_argument_defaults,
    health_check_command,
    image_environment,
    stages,
)
from worker.config import SETTINGS, ListenSettings

BUILD, FINAL = 0, 1


@asynccontextmanager
async def _server_that_answers(status: int) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on a free port with the request lines it got."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[0])
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


async def _run_health_check(port: int) -> int:
    program, *arguments = health_check_command()
    assert program == "python"
    environment = {**image_environment(), "LISTEN_ADDRESS": f"0.0.0.0:{port}", "http_proxy": "http://127.0.0.1:1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    answer = subprocess.run([hadolint, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert answer.stdout + answer.stderr == ""
    assert answer.returncode == 0


def test_the_base_is_pinned_by_its_tag_and_the_same_in_both_stages() -> None:
    base = build_argument_defaults()["BASE"]
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)
    assert arguments_of("FROM", BUILD) == ["${BASE} AS build"]
    assert arguments_of("FROM", FINAL) == ["${BASE}"]
    assert len(stages()) == 2


def test_every_package_is_checked_against_its_hash_or_comes_from_the_build_itself() -> None:
    steps = [step for arguments in arguments_of("RUN", BUILD) for step in arguments.split("&&")]
    from_pip = [step for step in steps if re.search(r"\bpip\b.*\b(install|wheel)\b", step)]
    assert len(from_pip) == 4
    assert all("--require-hashes" in step or "--no-index" in step for step in from_pip)
    assert not any("pip" in arguments for arguments in arguments_of("RUN", FINAL))


def test_it_runs_as_nobody_in_particular_and_writes_to_its_volume_only() -> None:
    assert arguments_of("USER") == ["65532:65532"]
    assert arguments_of("VOLUME") == ["/data"]
    assert arguments_of("WORKDIR") == ["/data"]
    assert arguments_of("RUN") == ["install --directory --owner=65532 --group=65532 --mode=0700 /data"]
    environment = image_environment()
    assert environment["LEDGER_PATH"].startswith("/data/")
    assert environment["TMPDIR"] == "/data"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_its_settings_exist_and_its_port_is_the_default_one() -> None:
    other = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "TMPDIR", "USER"}
    assert image_environment().keys() - other <= {setting.name for setting in SETTINGS}
    assert image_environment()["LISTEN_ADDRESS"] == ListenSettings().address
    assert arguments_of("EXPOSE") == [str(ListenSettings().port)]


def test_its_program_is_the_console_command() -> None:
    (entry_point,) = arguments_of("ENTRYPOINT")
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(entry_point) == list(scripts)
    assert arguments_of("CMD") == ['["run"]']


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_through = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {source for arguments in arguments_of("COPY", BUILD) for source in arguments.split()[:-1]}
    assert let_through == copied
    assert all((REPOSITORY / source).exists() for source in copied)
    assert rules[-1] == "**/__pycache__"


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
async def test_the_health_check_says_what_the_worker_says(status: int, exit_code: int) -> None:
    async with _server_that_answers(status) as (port, asked):
        assert await _run_health_check(port) == exit_code
    assert asked == ["GET /-/healthy HTTP/1.1"]


async def test_the_health_check_fails_where_nobody_answers() -> None:
    async with _server_that_answers(200) as (port, _):
        pass
    assert await _run_health_check(port) != 0
