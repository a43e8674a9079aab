import asyncio
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from worker.cli import main

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_simulated_api_answers_as_it_says_until_a_signal(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "simulate", "--listen", "127.0.0.1:0", "--zones", "7", "--accounts", "3"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = (await process.stdout.readuntil(b"cfrw run\n")).decode()
        exported = dict(re.findall(r"export (\w+)=(\S+)", said))
        headers = {"Authorization": f"Bearer {exported['CF_API_TOKEN']}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            zones = (await client.get(f"{exported['CF_API_URL']}/zones")).json()
        assert len(zones["result"]) == 7
        assert len({zone["account"]["id"] for zone in zones["result"]}) == 3
        process.send_signal(number)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_port_that_is_taken_is_bad_usage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(main, ["simulate", "--listen", address])
    assert result.exit_code == 2
    assert result.output == f"error: --listen {address}: cannot listen there: Address already in use\n"


def test_an_address_that_is_none_is_bad_usage() -> None:
    result = CliRunner().invoke(main, ["simulate", "--listen", "here"])
    assert result.exit_code == 2
    assert result.output.startswith("error: --listen here: must be host:port")


@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_without_graphql_core_it_says_what_to_install(command: str) -> None:
    # A None among the modules stands for one that is not there.
    program = "import sys; sys.modules['graphql'] = None; from worker.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "pip install 'cloudflare-remote-write[simulator]'" in ended.stderr
    assert "Traceback" not in ended.stderr
