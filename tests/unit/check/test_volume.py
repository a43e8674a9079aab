from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import ManualClock
from worker.check import volume
from worker.check.finding import Finding, State
from worker.check.memory import Memory
from worker.check.volume import look_at_volume
from worker.clock import SystemClock
from worker.config import LedgerSettings
from worker.errors import LedgerDamagedError
from worker.ledger import Ledger, Room, Volume, commit_seconds, volume_of

HOUR, GIB, MIB = 3600, 2**30, 2**20
NOW = 1_750_000_000


def memory(used_bytes: int = MIB, covered: tuple[int, int] | None = None) -> Memory:
    return Memory((), (), {}, {}, Room(used_bytes, used_bytes), covered)


@pytest.fixture
def settings(tmp_path: Path) -> LedgerSettings:
    return LedgerSettings(path=tmp_path / "data" / "ledger.db")


async def looked(settings: LedgerSettings, known: Memory | None) -> list[Finding]:
    return await look_at_volume(settings, known, ManualClock())


def at(monkeypatch: pytest.MonkeyPatch, file_system: str | None, *, free_bytes: int = 1000 * GIB) -> None:
    def found(path: Path) -> Volume:
        return Volume(volume_of(path).folder, file_system, free_bytes)

    monkeypatch.setattr(volume, "volume_of", found)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def about(findings: Sequence[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.what]
    return found


async def test_a_ledger_that_does_not_exist_yet_is_no_fault_and_nothing_is_made_for_it(
    settings: LedgerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "ext4")
    findings = await looked(settings, None)
    assert {finding.state for finding in findings} == {State.OK}
    assert "`cfrw run` makes it" in findings[0].what
    assert content(tmp_path) == {}


async def test_looking_leaves_the_ledger_and_its_folder_as_they_were(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger.db")
    try:
        before = content(tmp_path)
        await look_at_volume(LedgerSettings(path=ledger.path), memory(), SystemClock())
        assert content(tmp_path) == before
    finally:
        await ledger.close()


@pytest.mark.parametrize(
    ("file_system", "state", "words"),
    [
        ("ext4", State.OK, "local and lasts"),
        (None, State.OK, "that the system does not name"),
        ("tmpfs", State.FAILURE, "empty after a restart"),
        ("nfs4", State.FAILURE, "the worker does not start"),
        ("overlay", State.WARNING, "gone with the container"),
    ],
)
async def test_where_a_ledger_lasts(
    settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch, file_system: str | None, state: State, words: str
) -> None:
    at(monkeypatch, file_system)
    found = about(await looked(settings, None), words)
    assert found.state is state
    assert bool(found.to_do) is (state is not State.OK)


async def test_a_ledger_that_cannot_be_read_is_told_in_its_own_words(settings: LedgerSettings) -> None:
    first, *others = await look_at_volume(settings, LedgerDamagedError("it is damaged"), ManualClock())
    assert (first.state, first.what) == (State.FAILURE, "it is damaged")
    assert about(others, "durable commit").state is State.OK


@pytest.mark.parametrize(
    ("seconds", "state"),
    [([0.002] * 20, State.OK), ([0.002] * 19 + [3.0], State.WARNING), ([0.15] * 20, State.WARNING)],
)
async def test_how_fast_a_commit_is(
    settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch, seconds: list[float], state: State
) -> None:
    monkeypatch.setattr(volume, "commit_seconds", lambda *_: seconds)
    assert about(await looked(settings, None), "a durable commit takes").state is state


async def test_a_folder_that_cannot_be_written_is_a_failure(
    settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(volume, "commit_seconds", refused)
    found = about(await looked(settings, None), "cannot be written: Permission denied")
    assert found.state is State.FAILURE


def test_every_commit_is_timed_on_a_ledger_of_its_own(tmp_path: Path) -> None:
    ticks = iter(range(100))
    assert commit_seconds(tmp_path, 5, lambda: float(next(ticks))) == (1.0,) * 5
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("used_bytes", "state"), [(GIB, State.OK), (9 * GIB, State.WARNING), (10 * GIB, State.FAILURE)]
)
async def test_how_full_the_ledger_is(settings: LedgerSettings, used_bytes: int, state: State) -> None:
    found = about(await looked(settings, memory(used_bytes)), "(LEDGER_MAX_BYTES) are used")
    assert found.state is state
    assert bool(found.to_do) is (state is not State.OK)


async def test_a_volume_with_less_room_than_the_ledger_may_grow_by_is_a_warning_with_what_would_fit(
    settings: LedgerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "ext4", free_bytes=3 * GIB)
    found = about(await looked(settings, memory(2 * GIB)), "are free on the volume")
    assert found.state is State.WARNING
    assert "3.0 GiB" in found.what
    assert "may grow by 8.0 GiB" in found.what
    assert f"{5 * 1024}MiB" in found.to_do
    assert about(await looked(settings, memory(7 * GIB)), "are free on the volume").state is State.OK


@pytest.mark.parametrize(
    ("hours", "used_bytes", "state", "words"),
    [
        (None, MIB, State.SKIPPED, "when the ledger holds a day"),
        (12, MIB, State.SKIPPED, "when the ledger holds a day"),
        (84, 4 * GIB, State.OK, "take about 8.0 GiB, by the 84 h"),
        (84, 8 * GIB, State.WARNING, "take about 16.0 GiB"),
        (336, 8 * GIB, State.OK, "take about 8.0 GiB"),
    ],
)
async def test_what_retention_takes_is_reckoned_from_what_there_is(
    settings: LedgerSettings, hours: int | None, used_bytes: int, state: State, words: str
) -> None:
    covered = None if hours is None else (NOW - hours * HOUR, NOW)
    found = about(await looked(settings, memory(used_bytes, covered)), words)
    assert found.state is state
    if state is State.WARNING:
        assert "LEDGER_RETENTION_HOURS=105 " in found.to_do
