"""The schema's versions, and how a file of an older version becomes one of today's.

Each step and the number that records it share one transaction, so a crash leaves the file at one version or the next.
A new file gets today's schema at once; the steps end at the same text of it, and every opening compares that text.
A file of a newer version is refused: an older program must not write what it does not understand. So is a database that
is no ledger, before anything about it is changed.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import apsw

from worker.errors import LedgerDamagedError, LedgerUnusableError

# "cfrw" in ASCII; in the file's header, so that a ledger is not taken for some other program's database.
APPLICATION_ID = 0x63667277

_WAY_OUT = "move it away or set LEDGER_PATH to another file"


def _execute(connection: apsw.Connection, file_name: str) -> None:
    connection.execute(resources.files("worker.ledger").joinpath(file_name).read_text(encoding="utf-8"))


def create(connection: apsw.Connection) -> None:
    """Make the tables of CURRENT_VERSION in an empty file."""
    _execute(connection, "schema.sql")


def _to_version_2(connection: apsw.Connection) -> None:
    _execute(connection, "to_version_2.sql")


def _to_version_3(connection: apsw.Connection) -> None:
    _execute(connection, "to_version_3.sql")


def _to_version_4(connection: apsw.Connection) -> None:
    _execute(connection, "to_version_4.sql")


def _to_version_5(connection: apsw.Connection) -> None:
    _execute(connection, "to_version_5.sql")


def _to_version_6(connection: apsw.Connection) -> None:
    _execute(connection, "to_version_6.sql")


MIGRATIONS: tuple[Callable[[apsw.Connection], None], ...] = (
    _to_version_2,
    _to_version_3,
    _to_version_4,
    _to_version_5,
    _to_version_6,
)
"""The first step takes a file from version 1 to version 2, the next one from there to version 3, and so on."""

CURRENT_VERSION = 1 + len(MIGRATIONS)


def version_of(connection: apsw.Connection, path: str) -> int:
    """The version of the ledger's schema; 0 for a file that is empty so far.

    Raises LedgerDamagedError for a database that is not a ledger and LedgerUnusableError for a newer one.
    """
    version = pragma(connection, "user_version")
    made_here = pragma(connection, "application_id") == APPLICATION_ID
    if not made_here and (version or connection.execute("SELECT count(*) FROM sqlite_schema").get):
        message = f"{path} is a database of another program; {_WAY_OUT}"
        raise LedgerDamagedError(message)
    if version > CURRENT_VERSION:
        message = (
            f"{path} has schema version {version}, this program knows up to {CURRENT_VERSION}; "
            "run the version that wrote it or a newer one"
        )
        raise LedgerUnusableError(message)
    return version


def migrate(connection: apsw.Connection, path: str) -> None:
    """Bring the file to CURRENT_VERSION; raises what `version_of` does, and LedgerDamagedError for a broken schema."""
    version = version_of(connection, path)
    if version == 0:
        _take(create, CURRENT_VERSION, connection, path)
    elif version < CURRENT_VERSION:
        # Rows are copied with the references they have; looking up each bucket once more would read the whole file.
        # What is sorted for an index takes 70 bytes a row, which is too much for memory; a read-only system has room
        # beside the ledger only. These are settings of the connection that a transaction cannot change.
        settings = {"foreign_keys": 0, "temp_store": 1}
        before = {name: pragma(connection, name) for name in settings}
        for name, value in settings.items():
            connection.pragma(name, value)
        connection.pragma("temp_store_directory", str(Path(path).resolve().parent))
        try:
            for reached, step in enumerate(MIGRATIONS[version - 1 :], version + 1):
                _take(step, reached, connection, path)
        finally:
            # It is one of the process.
            connection.pragma("temp_store_directory", "")
        for name, value in before.items():
            connection.pragma(name, value)
    _check_schema(connection, path)


def _take(step: Callable[[apsw.Connection], None], reached: int, connection: apsw.Connection, path: str) -> None:
    try:
        with connection:
            step(connection)
            connection.execute(f"PRAGMA user_version = {reached}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            if reached == CURRENT_VERSION:
                # A file that is refused must not say that it is of this version.
                _check_schema(connection, path)
    except apsw.SQLError as error:
        # A table or a column that is not as its version had it.
        message = f"{path} is damaged: it cannot be brought to schema version {reached} ({error}); {_WAY_OUT}"
        raise LedgerDamagedError(message) from error


def require_current(connection: apsw.Connection, path: str) -> None:
    """Refuse a file that somebody other than its worker cannot use; raises what `migrate` raises."""
    version = version_of(connection, path)
    if version < CURRENT_VERSION:
        # Also met while a worker that starts for the first time has made the file and not yet its tables.
        message = f"{path} has schema version {version}; `cfrw run` brings it to {CURRENT_VERSION} when it starts"
        raise LedgerUnusableError(message)
    _check_schema(connection, path)


def _check_schema(connection: apsw.Connection, path: str) -> None:
    model = apsw.Connection(":memory:")
    create(model)
    missing = _schema(model) - _schema(connection)
    if missing:
        names = ", ".join(sorted(str(name) for name, _ in missing))
        message = f"{path} is damaged: its schema lacks or has changed {names}; {_WAY_OUT}"
        raise LedgerDamagedError(message)


def _schema(connection: apsw.Connection) -> set[tuple[object, ...]]:
    return set(connection.execute("SELECT name, sql FROM sqlite_schema"))


def pragma(connection: apsw.Connection, name: str) -> int:
    """The number that a pragma answers."""
    value = connection.pragma(name)
    if not isinstance(value, int):
        message = f"PRAGMA {name} answered {value!r}"
        raise LedgerDamagedError(message)
    return value
