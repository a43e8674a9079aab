import asyncio
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

from tests.integration.ledger.history import close, integrity
from tests.unit.ledger.version_1 import rows, turn_into_version_1, version, write_everything
from worker.ledger import Ledger
from worker.ledger.migrations import CURRENT_VERSION

REPOSITORY = Path(__file__).parents[3]

# The migrations have about 45 statements, and a process for each of them takes half a second.
EVERY = 4


def migrate_and_kill(path: Path, statements: int) -> int:
    """How a process ended that was killed after so many statements of the migration."""
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.ledger.migrating", str(path), str(statements)],
        cwd=REPOSITORY,
        check=False,
    ).returncode


def test_a_migration_that_is_killed_leaves_the_version_before_and_the_next_start_does_it(tmp_path: Path) -> None:
    asyncio.run(write_everything(tmp_path / "written.db"))
    path, undisturbed = tmp_path / "ledger.db", tmp_path / "undisturbed.db"
    for each in (path, undisturbed):
        turn_into_version_1(tmp_path / "written.db", each)
    before, untouched = rows(path), path.read_bytes()
    close(Ledger.open(undisturbed))

    logs: list[int] = []
    for statements in count(0, EVERY):
        ended = migrate_and_kill(path, statements)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        logs.append(path.with_name("ledger.db-wal").stat().st_size)
        if version(path) == 1:
            assert rows(path) == before
            continue
        # Some steps were taken; what was done of the next one is undone.
        assert version(path) < CURRENT_VERSION
        assert "job_2" not in rows(path)
        close(Ledger.open(path))
        assert rows(path) == rows(undisturbed)
        path.write_bytes(untouched)
    # Killed early and late, and then with a half-done migration in the log.
    assert len(logs) > 5
    assert max(logs) > 0

    survivor = Ledger.open(path)
    assert integrity(survivor._connection) == "ok"
    close(survivor)
    assert version(path) == CURRENT_VERSION
    assert rows(path) == rows(undisturbed)
