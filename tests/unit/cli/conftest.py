import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.unit.cli.scene import BEARER, REPLAY_HOURS, Scene, World
from worker.simulator.api import ACCEPTED_BEARER


@pytest.fixture(scope="session")
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
