import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog

from worker.observe import LogFormat, configure_logging, get_logger

CANARY = "canary-7f3a9c"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what the set-up of logging changes in the process."""
    root = logging.getLogger()
    before = root.handlers, root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    quiet = [logging.getLogger(name) for name in ("asyncio", "httpx", "httpcore", "uvicorn", "uvicorn.error")]
    levels = [logger.level for logger in quiet]
    yield
    root.handlers, root.level = before
    for logger, level in zip(quiet, levels, strict=True):
        logger.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_a_sentence_with_its_fields_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", [])

    get_logger().info("captured a window", zone="example.com", samples=42)

    (line,) = lines(capsys)
    assert line["event"] == "captured a window"
    assert (line["level"], line["zone"], line["samples"]) == ("info", "example.com", 42)
    assert line["timestamp"].endswith("Z")
    assert list(line)[:3] == ["timestamp", "level", "event"]


def test_a_line_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json", [])

    get_logger().info("not this")
    logging.getLogger("some.library").info("nor this")
    get_logger().warning("this")

    assert [line["event"] for line in lines(capsys)] == ["this"]


def test_a_logger_made_before_the_set_up_obeys_it(capsys: pytest.CaptureFixture[str]) -> None:
    early = get_logger()
    configure_logging("info", "json", [])
    early.info("one")
    configure_logging("error", "json", [])
    early.info("two")

    assert [line["event"] for line in lines(capsys)] == ["one"]


def test_libraries_are_heard_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json", [CANARY])

    logging.getLogger("uvicorn.error").warning("Invalid request from %s", CANARY)

    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("Invalid request from ***", "warning", "uvicorn.error")


def test_python_s_warnings_come_out_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", [CANARY])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"old {CANARY}", UserWarning, stacklevel=1)

    (line,) = lines(capsys)
    assert "UserWarning: old ***" in line["event"]


async def test_httpx_tells_no_url_even_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json", [])
    transport = httpx.MockTransport(lambda _request: httpx.Response(200))

    async with httpx.AsyncClient(transport=transport) as client:
        await client.get(f"https://user:{CANARY}@example.com/?token={CANARY}")

    assert lines(capsys) == []


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_comes_out_of_a_value_or_a_traceback(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug", log_format, [CANARY, f"ops:{CANARY}"])
    log = get_logger().bind(token=CANARY)

    def fail() -> None:
        local_variable = "only-a-local-knows-this"
        message = f"bad token {CANARY}"
        raise ValueError(message, len(local_variable))

    try:
        fail()
    except ValueError as error:
        log.exception("cannot %s", CANARY, headers={"Authorization": f"Bearer {CANARY}"}, error=error)
        logging.getLogger("some.library").exception("failed for %s", CANARY)
    log.debug("state", stack_info=True, url=f"https://ops:{CANARY}@example.com")

    err = capsys.readouterr().err
    assert CANARY not in err
    assert "only-a-local-knows-this" not in err
    assert err.count("Traceback") == 2
    assert "in fail" in err


def test_a_line_that_cannot_be_made_tells_no_secret_either(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", [CANARY])

    logging.getLogger("some.library").warning("two %s places %s", *[CANARY])

    err = capsys.readouterr().err
    assert "could not be written" in err
    assert "not enough arguments" in err
    assert CANARY not in err


def test_a_stderr_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("info", "json", [])
    stream.close()

    get_logger().info("nobody reads this")


def test_the_console_has_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("info", "console", [])
        get_logger().info("captured a window", zone="example.com")
        written[type(stream)] = stream.getvalue()

    assert "\x1b[" not in written[io.StringIO]
    assert "zone=example.com" in written[io.StringIO]
    assert "\x1b[" in written[Terminal]


def test_a_remote_text_cannot_steer_the_terminal_or_fake_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("info", "console", [])

    get_logger().info("refused\nfake", text="\x1b[2Jbad\r\nline\x9b1m", list=["\x1b]0;title\x07"])

    assert len(stream.getvalue().splitlines()) == 1
    assert not set("\x1b\r\x9b\x07") & set(stream.getvalue())


def test_json_lines_hold_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", [])

    get_logger().info("zwölf\n", value=float("nan"), other={1: {2}})

    (line,) = lines(capsys)
    assert (line["event"], line["value"], line["other"]) == ("zwölf\n", "nan", {"1": [2]})


UNCAUGHT = f"""
import asyncio, gc, sys, threading
from worker.observe import configure_logging

configure_logging("debug", "json", ["{CANARY}"])

def fail(where):
    secret = "{CANARY}"
    raise ValueError(f"{{where}} failed with {{secret}}")

class Dying:
    def __del__(self):
        fail("destructor")

class Leaving(threading.Thread):
    def run(self):
        sys.exit()

async def leave_a_failed_task():
    asyncio.get_running_loop().slow_callback_duration = 3600  # a busy machine is no error
    task = asyncio.create_task(asyncio.to_thread(fail, "task"), name="task of {CANARY}")
    await asyncio.wait([task])
    asyncio.get_running_loop().call_soon(fail, "callback")
    await asyncio.sleep(0)

Dying()
for thread in (threading.Thread(target=fail, args=("thread",)), Leaving()):
    thread.start()
    thread.join()
asyncio.run(leave_a_failed_task(), debug=True)
gc.collect()
fail("main")
"""


def test_errors_that_nothing_caught_are_logged_without_secrets() -> None:
    result = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert CANARY not in result.stdout + result.stderr
    errors = [json.loads(line) for line in result.stderr.splitlines()]
    exceptions = [line["exception"].splitlines()[-1] for line in errors]
    assert sorted(exceptions) == [
        f"ValueError: {where} failed with ***" for where in ("callback", "destructor", "main", "task", "thread")
    ]


def test_ctrl_c_is_no_error_to_log() -> None:
    program = (
        "from worker.observe import configure_logging; configure_logging('info', 'json', []); raise KeyboardInterrupt"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert "critical" not in result.stderr
    assert "KeyboardInterrupt" in result.stderr


async def test_lines_of_concurrent_tasks_do_not_share_what_is_bound(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", [])

    async def work(zone: str) -> None:
        structlog.contextvars.bind_contextvars(zone=zone)
        await asyncio.sleep(0)
        get_logger().info("done")

    await asyncio.gather(work("a"), work("b"))

    assert [line["zone"] for line in lines(capsys)] == ["a", "b"]
