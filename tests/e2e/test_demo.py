"""The demo as a person starts it: with each receiver, on a terminal and without one, to its end and broken off."""

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
CFRW_DEMO = ("-m", "worker", "demo")
ALTERED_DEMO = str(Path(__file__).with_name("altered_demo.py"))

# The hour takes 15 s instead of 30 s: fast enough to run twice, slow enough for the end of an outage to be met by a
# busy machine before windows are given up.
TWICE_AS_FAST = "240"
# Where nothing depends on the end of the outage.
MUCH_FASTER = "600"

# A shell that is half set up for something else: all of it is wrong, or leads astray.
HOSTILE = {
    "CF_API_TOKEN": "canary-of-the-shell",
    "CF_API_URL": "http://127.0.0.1:9/",
    "CF_BUCKET_SECONDS": "seven",
    "REMOTE_WRITE_URL": "http://127.0.0.1:9/",
    "REMOTE_WRITE_PASSWORD": "canary-of-the-shell",
    "LEDGER_PATH": "/nowhere/ledger.db",
    "LISTEN_ADDRESS": "nowhere",
    "LOG_LEVEL": "loud",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
}

NO_PROGRAMS = "/nowhere"

# Answers that it is ready, and ignores SIGTERM.
STUBBORN_PROMETHEUS = """
import http.server, signal, sys
if "--version" in sys.argv:
    print("prometheus, version 3.5.3")
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
port = next(int(argument.rpartition(":")[2]) for argument in sys.argv if "listen-address" in argument)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


class Demo:
    """A demo that runs, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, output: int) -> None:
        self.process = process
        self._output = output
        self.printed = ""

    async def until(self, text: str) -> str:
        """Read on until `text` is printed; the line that it is in."""
        while text not in self.printed or "\n" not in self.printed.partition(text)[2]:
            assert await self._read(), self.printed
        before, _, after = self.printed.partition(text)
        return before.rpartition("\n")[2] + text + after.partition("\n")[0].rstrip()

    async def end(self) -> int:
        """Read to the end; the exit code."""
        while await self._read():
            pass
        return await self.process.wait()

    @property
    def lines(self) -> list[str]:
        """What was printed, without what moves the cursor or changes colours."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.printed).splitlines()

    async def _read(self) -> bytes:
        chunk = await asyncio.to_thread(self._read_some)
        self.printed += chunk.decode(errors="replace")
        return chunk

    def _read_some(self) -> bytes:
        # Linux's way to say that nobody is at the other end of a terminal any more.
        with contextlib.suppress(OSError):
            return os.read(self._output, 65536)
        return b""


@asynccontextmanager
async def running(
    folder: Path, command: Sequence[str], *, path: Path | str = NO_PROGRAMS, on_terminal: bool = False
) -> AsyncIterator[Demo]:
    """Python with this command line, its temporary files in `folder` and `path` as its PATH."""
    ours, theirs = pty.openpty() if on_terminal else os.pipe()
    if on_terminal:
        termios.tcsetwinsize(theirs, (40, 100))
    environment = {**HOSTILE, "PATH": str(path), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "TERM": "xterm"}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            cwd=folder.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    try:
        yield Demo(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo's temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def prometheus_path(tmp_path: Path, required_program: Callable[[str], Path]) -> Path:
    """A PATH with a Prometheus and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "prometheus").symlink_to(required_program("prometheus-2.42").resolve())
    return folder


def assert_nothing_is_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    assert [command for command in commands() if str(folder) in command] == []


def commands() -> list[str]:
    """The command line of every process."""
    if sys.platform != "linux":
        return subprocess.check_output(["/bin/ps", "-axww", "-o", "command="], text=True).splitlines()
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


async def assert_the_whole_story_is_told(demo: Demo, receiver: str) -> None:
    """From the beginning to the end, with a look at what runs on the way."""
    async with httpx.AsyncClient(trust_env=False) as client:
        prometheus_url = re.search(r"runs: (http://127\.0\.0\.1:\d+)$", await demo.until(" runs"))
        page_url = re.search(r"status page.*: (http://127\.0\.0\.1:\d+/)$", await demo.until("status page"))
        await demo.until("is stopped")
        assert page_url
        assert (await client.get(page_url[1])).is_success
        if prometheus_url:
            with pytest.raises(httpx.ConnectError):
                await client.get(prometheus_url[1])
        waiting = re.search(r"started again; ([1-9]\d*) windows wait", await demo.until("is started again"))
        assert waiting
        await demo.until("The backlog is delivered")
    assert await demo.end() == 0
    lines = [line.strip() for line in demo.lines if line.strip()]
    assert lines[-1] == "0 missing"
    assert re.fullmatch(rf"Every sample in {receiver} equals Cloudflare's number: [\d,]{{6,}} compared\.", lines[-2])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│ zone")]
    assert rows == [[f"zone0000{number}.example", "110", "110", "110", "0"] for number in range(1, 6)]
    assert "canary" not in demo.printed


async def test_the_demo_with_the_built_in_receiver_on_a_terminal(folder: Path) -> None:
    async with running(folder, (ALTERED_DEMO, TWICE_AS_FAST), on_terminal=True) as demo:
        await assert_the_whole_story_is_told(demo, "the built-in receiver")
    assert "simulated time" in demo.printed
    # What went by while time ran is gone: only events and the end stay.
    assert demo.printed.count("\x1b[2K") > 100
    assert_nothing_is_left(folder)


async def test_the_demo_with_prometheus_and_without_a_terminal(folder: Path, prometheus_path: Path) -> None:
    async with running(folder, CFRW_DEMO, path=prometheus_path) as demo:
        await assert_the_whole_story_is_told(demo, r"Prometheus 2\.42\.0")
    assert "\x1b" not in demo.printed
    assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "Nothing leaves"),
        (signal.SIGHUP, "The worker runs"),
        (signal.SIGINT, "Now time runs"),
    ],
)
async def test_a_signal_leaves_nothing_behind(number: signal.Signals, moment: str, folder: Path) -> None:
    async with running(folder, CFRW_DEMO) as demo:
        await demo.until(moment)
        demo.process.send_signal(number)
        assert await demo.end() == 128 + number
    assert demo.lines[-1] == "Interrupted. Everything is stopped and removed."
    assert_nothing_is_left(folder)


async def test_an_impatient_ctrl_c_leaves_no_prometheus_behind(folder: Path, prometheus_path: Path) -> None:
    async with running(folder, CFRW_DEMO, path=prometheus_path) as demo:
        await demo.until("Prometheus 2.42.0 runs")
        for _ in range(3):
            demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 130
    assert_nothing_is_left(folder)


async def test_a_prometheus_that_does_not_stop_is_not_left_behind(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.write_text(f"#!{sys.executable}\n{STUBBORN_PROMETHEUS}")
    program.chmod(0o755)
    async with running(folder, CFRW_DEMO, path=tmp_path) as demo:
        await demo.until("The worker runs")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 130
    assert_nothing_is_left(folder)


async def test_a_prometheus_that_does_not_start_is_replaced(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\n[ $1 = --version ] && exec echo prometheus, version 3.5.3\necho no room; exit 1\n")
    program.chmod(0o755)
    async with running(folder, CFRW_DEMO, path=tmp_path) as demo:
        await demo.until("A small built-in receiver runs")
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 130
    assert "no room" in demo.printed
    assert_nothing_is_left(folder)


async def test_a_prometheus_that_was_asked_for_and_is_not_there_is_bad_usage(folder: Path) -> None:
    async with running(folder, (*CFRW_DEMO, "--receiver", "prometheus")) as demo:
        assert await demo.end() == 2
    assert demo.lines == [
        "error: --receiver prometheus: there is no `prometheus` of version 2.39 or later on PATH; builtin needs none"
    ]


async def test_one_wrong_sample_is_found_out(folder: Path) -> None:
    async with running(folder, (ALTERED_DEMO, MUCH_FASTER, "receiver-lies")) as demo:
        assert await demo.end() == 3
    assert "the built-in receiver holds is NOT what Cloudflare has" in demo.printed
    assert "1 differ;" in demo.printed
    assert "The end of the worker's log:" in demo.lines
    assert any("The receiver did not take a request" in line for line in demo.lines)
    assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    ("breakage", "code", "last_line"),
    [
        ("worker-fails", 5, "error: The ledger is damaged."),
        ("time-is-short", 1, "error: The demo did not come to its end within 1 s; it was broken off at this: "),
    ],
)
async def test_a_demo_that_cannot_go_on_says_why(breakage: str, code: int, last_line: str, folder: Path) -> None:
    async with running(folder, (ALTERED_DEMO, MUCH_FASTER, breakage)) as demo:
        assert await demo.end() == code
    assert demo.lines[-1].startswith(last_line)
    assert_nothing_is_left(folder)
