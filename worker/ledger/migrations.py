"""The schema's versions, and how a file of an older version becomes one of today's.

Each step and the number that records it share one transaction, so a crash leaves the file at one version or the next.
A file of a newer version is refused: an older program must not write what it does not understand.
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


def migrate(connection: apsw.Connection, path: str) -> None:
    """Bring the file to CURRENT_VERSION.

    Raises LedgerDamagedError for a database that is not a ledger and LedgerUnusableError for a newer one.
    """
    version = pragma(connection, "user_version")
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").get:
        message = f"{path} is a database of another program; {_WAY_OUT}"
        raise LedgerDamagedError(message)
    if version and pragma(connection, "application_id") != APPLICATION_ID:
        message = f"{path} is not a ledger of this program; {_WAY_OUT}"
        raise LedgerDamagedError(message)
    check_version(version, path)
    for step in range(version, CURRENT_VERSION):
        with connection:
            MIGRATIONS[step](connection)
            connection.execute(f"PRAGMA user_version = {step + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def check_version(version: int, path: str) -> None:
    """Refuse a file that a newer program wrote."""
    if version > CURRENT_VERSION:
        message = (
            f"{path} has schema version {version}, this program knows up to {CURRENT_VERSION}; "
            "run the version that wrote it or a newer one"
        )
        raise LedgerUnusableError(message)


def pragma(connection: apsw.Connection, name: str) -> int:
    """The number that a pragma answers."""
    value = connection.pragma(name)
    if not isinstance(value, int):
        message = f"PRAGMA {name} answered {value!r}"
        raise LedgerDamagedError(message)
    return value
