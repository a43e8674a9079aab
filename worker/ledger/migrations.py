"""The schema's versions, and how a file of an older version becomes one of today's.

Each step and the number that records it share one transaction, so a crash leaves the file at one version or the next.
A file of a newer version is refused: an older program must not write what it does not understand. So is a database that
is no ledger, before anything about it is changed.
"""

from collections.abc import Callable
from importlib import resources

import apsw

from worker.errors import LedgerDamagedError, LedgerUnusableError

# "cfrw" in ASCII; in the file's header, so that a ledger is not taken for some other program's database.
APPLICATION_ID = 0x63667277

_WAY_OUT = "move it away or set LEDGER_PATH to another file"


def _create(connection: apsw.Connection) -> None:
    connection.execute(resources.files("worker.ledger").joinpath("schema.sql").read_text(encoding="utf-8"))


MIGRATIONS: tuple[Callable[[apsw.Connection], None], ...] = (_create,)
"""Step n takes a file from version n to version n + 1."""

CURRENT_VERSION = len(MIGRATIONS)


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
    for step in range(version_of(connection, path), CURRENT_VERSION):
        with connection:
            MIGRATIONS[step](connection)
            connection.execute(f"PRAGMA user_version = {step + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _check_schema(connection, path)


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
    for step in MIGRATIONS:
        step(model)
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
