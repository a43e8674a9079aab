import asyncio
import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.unit.cli.scene import Scene
from worker.cli import repair
from worker.ledger import (
    Ledger,
)


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


def test_a_user_without_a_name_is_on_record_by_number(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.collected()

    def unknown() -> str:
        message = "getpwuid(): uid not found: 65532"
        raise KeyError(message)

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert scene.cfrw("resend", "--since", "10h").exit_code == 0
    assert scene.journal()[0]["by"] == f"uid {os.getuid()}@{os.uname().nodename}"
