from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from tests.unit.ledger.fleet import NOW, bucket, content, queue
from worker.errors import LedgerDamagedError, LedgerError, LedgerUnusableError
from worker.ledger import Ledger, capture, migrations
from worker.ledger.migrations import APPLICATION_ID, CURRENT_VERSION, MIGRATIONS, create, pragma


def header(path: Path) -> tuple[object, object]:
    connection = apsw.Connection(str(path))
    found = connection.pragma("user_version"), connection.pragma("application_id")
    connection.close()
    return found


def execute(path: Path, statements: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(statements)
    connection.close()


def later_versions(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[apsw.Connection], None]) -> None:
    def create_later(connection: apsw.Connection) -> None:
        create(connection)
        for step in steps:
            step(connection)

    monkeypatch.setattr(migrations, "create", create_later)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, *steps))
    monkeypatch.setattr(migrations, "CURRENT_VERSION", CURRENT_VERSION + len(steps))


def add_a_column(connection: apsw.Connection) -> None:
    connection.execute("ALTER TABLE scope ADD COLUMN colour TEXT")


async def test_a_new_ledger_has_the_current_version_and_the_mark_of_the_program(path: Path) -> None:
    await Ledger.open(path).close()

    assert header(path) == (CURRENT_VERSION, APPLICATION_ID)
    assert APPLICATION_ID.to_bytes(4, "big") == b"cfrw"


async def test_a_ledger_of_an_older_version_is_brought_up_with_what_it_holds(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.close()
    later_versions(monkeypatch, add_a_column)

    newer = Ledger.open(path)

    assert await queue(newer) == [(1, 0)]
    await newer.close()
    assert header(path) == (CURRENT_VERSION + 1, APPLICATION_ID)


async def test_a_step_that_fails_leaves_the_version_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await Ledger.open(path).close()

    def fail_halfway(connection: apsw.Connection) -> None:
        connection.execute("ALTER TABLE scope ADD COLUMN flavour TEXT")
        raise apsw.FullError

    with monkeypatch.context() as patch:
        later_versions(patch, add_a_column, fail_halfway)
        with pytest.raises(LedgerError):
            Ledger.open(path)
    assert header(path) == (CURRENT_VERSION + 1, APPLICATION_ID)

    later_versions(monkeypatch, add_a_column, lambda _: None)
    await Ledger.open(path).close()
    assert header(path) == (CURRENT_VERSION + 2, APPLICATION_ID)


async def test_what_a_step_sorts_is_in_files_beside_the_ledger_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("foreign_keys", "temp_store", "temp_store_directory")
    seen: list[list[object]] = []

    def look(connection: apsw.Connection) -> None:
        if connection.filename:  # and not the model that a schema is compared with
            seen.append([connection.pragma(name) for name in settings])

    ledger = Ledger.open(path)
    look(ledger._connection)
    await ledger.close()
    later_versions(monkeypatch, look)
    link = path.parent / "configured" / path.name
    link.parent.mkdir()
    link.symlink_to(path)
    ledger = Ledger.open(link)
    look(ledger._connection)
    await ledger.close()

    assert seen == [[1, 2, None], [0, 1, str(path.parent)], [1, 2, None]]


async def test_a_creation_that_was_cut_off_is_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: apsw.Connection) -> None:
        raise apsw.FullError

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "create", fail)
        with pytest.raises(LedgerError):
            Ledger.open(path)
    assert content(path)

    ledger = Ledger.open(path)

    assert [ledger._connection.pragma(name) for name in ("page_size", "auto_vacuum")] == [16_384, 2]
    await ledger.close()


@pytest.mark.parametrize("opening", [Ledger.open, Ledger.open_read_only, Ledger.open_to_ask])
async def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(
    path: Path, opening: Callable[[Path], Ledger]
) -> None:
    await Ledger.open(path).close()
    execute(path, f"PRAGMA user_version = {CURRENT_VERSION + 1}")
    before = content(path)

    with pytest.raises(LedgerUnusableError, match=f"version {CURRENT_VERSION + 1}.* up to {CURRENT_VERSION}"):
        opening(path)

    assert content(path) == before


@pytest.mark.parametrize("opening", [Ledger.open_read_only, Ledger.open_to_ask])
async def test_a_ledger_of_an_older_version_is_read_only_after_the_worker_has_brought_it_up(
    path: Path, opening: Callable[[Path], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    await Ledger.open(path).close()
    later_versions(monkeypatch, add_a_column)

    with pytest.raises(LedgerUnusableError, match="cfrw run"):
        opening(path)


@pytest.mark.parametrize("opening", [Ledger.open, Ledger.open_read_only, Ledger.open_to_ask])
@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE bookmark (url TEXT)",
        "CREATE TABLE bookmark (url TEXT); PRAGMA user_version = 1",
        "CREATE TABLE bookmark (url TEXT); PRAGMA user_version = 1; PRAGMA application_id = 1",
    ],
)
def test_a_database_of_another_program_is_refused_and_left_alone(
    path: Path, statements: str, opening: Callable[[Path], Ledger]
) -> None:
    execute(path, statements)
    before = content(path)

    with pytest.raises(LedgerDamagedError, match="LEDGER_PATH"):
        opening(path)

    assert content(path) == before


@pytest.mark.parametrize(
    "damage",
    [
        "DROP INDEX delivery_queue",
        "DROP TABLE job",
        "ALTER TABLE bucket RENAME COLUMN start TO stark",
        "DELETE FROM sqlite_schema WHERE name = 'hole'",
    ],
)
async def test_a_ledger_that_lacks_a_part_of_its_schema_is_damaged(path: Path, damage: str) -> None:
    await Ledger.open(path).close()
    execute(path, f"PRAGMA writable_schema = ON; {damage}")

    with pytest.raises(LedgerDamagedError, match=str(path)):
        Ledger.open(path)
    with pytest.raises(LedgerDamagedError, match=str(path)):
        Ledger.open_read_only(path)


def test_a_header_that_makes_no_sense_is_damage() -> None:
    with pytest.raises(LedgerDamagedError, match="journal_mode"):
        pragma(apsw.Connection(":memory:"), "journal_mode")


async def test_an_index_that_somebody_added_does_no_harm(path: Path) -> None:
    await Ledger.open(path).close()
    execute(path, "CREATE INDEX of_my_own ON bucket (captured_at)")

    await Ledger.open(path).close()
