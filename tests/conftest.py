"""What tests of more than one folder share: the real receivers, and the word when they are missing."""

import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.fetch_receivers import PROGRAMS, locate
from tests.receivers import RECEIVERS, Receiver, new_receiver

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A clock that jumps keeps the event loop busy, and the ledger's thread would wait 5 ms for its turn after each row.
sys.setswitchinterval(0.0001)

# Thousands of collected tests are no garbage. With Python's own 700 for the first number, looking for some in what is
# there for good takes a sixth of the suite's time; 50,000 small objects are a few megabytes.
gc.set_threshold(50_000, 20, 20)

OUT_OF_ORDER_SECONDS = 30 * 86_400  # more than any test reaches back


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up logging for all of it; the next test finds it as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(capture=False)


@pytest.fixture
def required_program() -> Callable[[str], Path]:
    """Finds a program of `tests.fetch_receivers.PROGRAMS`; where it is missing the test is skipped, in CI it fails."""
    return _required_program


def _required_program(name: str) -> Path:
    program = locate(name)
    if program is None:
        message = f"{name} is missing: `make receivers` fetches it on Debian; elsewhere put it on PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return program


@pytest.fixture(params=RECEIVERS)
async def receiver(request: pytest.FixtureRequest) -> AsyncIterator[Receiver]:
    """Each real receiver in turn, running and empty, ready to take samples of the last 30 days in any order."""
    program = _required_program(request.param)
    async with new_receiver(request.param, program, out_of_order_seconds=OUT_OF_ORDER_SECONDS) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [name for name in PROGRAMS if locate(name) is None]
    if missing:
        line = f"!!! MISSING RECEIVERS: {', '.join(missing)}; the tests that need them did not run (make receivers)"
        terminalreporter.write_line(line, red=True, bold=True)
