"""Opening the ledger's file: who may, and whether the volume and the file are what they should be.

Owns the lock file, the connection's settings and the translation of SQLite's errors. One process writes: it holds an
exclusive `flock` on `<path>.lock` for as long as it lives. Others may read at any time, and may add a row to the
journal, or buckets to an import (`open_to_ask`), which the holder carries out.

SQLite's settings are set and read back, because a setting that silently did not take (a file system without shared
memory stays out of WAL mode) would void what the ledger promises.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import apsw
import msgspec

from worker.errors import LedgerDamagedError, LedgerFullError, LedgerHeldError, LedgerUnusableError
from worker.ledger.migrations import migrate, pragma, require_current, version_of

# Buckets are rows of 1 to 4 kB: of 100 samples (1,250 bytes with its header) 13 fill a page of 16 KiB to 99 %, while 3
# fill one of 4 KiB to 92 %.
_PAGE_BYTES = 16 * 1024

# Reliability first: WAL with synchronous=FULL (2) loses no commit at a power cut; NORMAL loses the last ones.
# A checkpoint every 1,024 pages of 16 KiB keeps the write-ahead log at about 16 MiB, and the limit of 32 MiB truncates
# it after a burst. One transaction after the other changes the same pages of the indexes, and a checkpoint copies each
# once: at a quarter of this length, capture takes a tenth more CPU. No memory map: it turns a stray write of any
# library into damage of the file.
_PRAGMAS = MappingProxyType(
    {
        "synchronous": 2,
        "fullfsync": 1,  # macOS: sync through the drive's own cache; elsewhere it changes nothing
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "wal_autocheckpoint": 1024,
        "journal_size_limit": 32 * 1024 * 1024,
        "mmap_size": 0,
        # In memory: a read-only root file system has no place for temporary files.
        "temp_store": 2,
        # In KiB when negative: 16 MiB hold the upper levels of every index of a ledger of 10 GiB.
        "cache_size": -16 * 1024,
    }
)

# What SQLite says of a file that it cannot make sense of; and what only damage makes true, since no statement of the
# ledger breaks a constraint, is too long, or reads anything but UTF-8 and its own JSON on a file that is sound.
_SIGNS_OF_DAMAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    apsw.ConstraintError,
    apsw.TooBigError,
    UnicodeDecodeError,
    msgspec.DecodeError,
)

# Locks and shared memory of these do not do what SQLite's WAL mode needs.
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.glusterfs"})


class LedgerLock:
    """The right to write to one ledger; held until `release` or the end of the process, however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock; LedgerHeldError when another process has it, LedgerUnusableError when it cannot be made."""
        # Beside the file itself, so that two links to one file are one ledger.
        real_path = Path(os.path.realpath(path))
        lock_path = real_path.with_name(real_path.name + ".lock")
        try:
            lock_path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable_volume(path, error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            message = f"another worker (process {holder}) holds the ledger {path}; one ledger has one worker"
            raise LedgerHeldError(message) from None
        except OSError as error:
            os.close(self._descriptor)
            raise _unusable_volume(path, error) from None

    def release(self) -> None:
        """Let another process have it. The file stays: removing it would let two processes lock two files."""
        os.close(self._descriptor)


def open_to_write(path: Path, mounts: str) -> apsw.Connection:
    """The connection of the lock's holder: the file is made or migrated, its settings are checked."""
    file_system = file_system_of(path, mounts)
    if file_system in NETWORK_FILE_SYSTEMS:
        message = f"{path} is on a network file system ({file_system}); put the ledger on a local volume"
        raise LedgerUnusableError(message)
    with _opened(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) as connection:
        version_of(connection, str(path))
        _configure(connection, path)
        migrate(connection, str(path))
        return connection


def open_to_read(path: Path) -> apsw.Connection:
    """A connection that only reads, beside a running worker or without one."""
    with _opened(path, apsw.SQLITE_OPEN_READONLY) as connection:
        require_current(connection, str(path))
        return connection


def open_to_ask(path: Path) -> apsw.Connection:
    """A connection that adds to the journal, or to an import, beside a running worker. It never checkpoints."""
    with _opened(path, apsw.SQLITE_OPEN_READWRITE) as connection:
        require_current(connection, str(path))
        connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("synchronous", _PRAGMAS["synchronous"])
        return connection


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[apsw.Connection]:
    """A connection that is closed again if what is done with it here raises."""
    if not flags & apsw.SQLITE_OPEN_CREATE and not path.exists():
        message = f"there is no ledger at {path.absolute()} yet; LEDGER_PATH names the file, and `cfrw run` makes it"
        raise LedgerUnusableError(message)
    with translated_errors(path):
        connection = apsw.Connection(str(path), flags=flags)
        try:
            connection.set_busy_timeout(_PRAGMAS["busy_timeout"])
            yield connection
        except BaseException:
            connection.close()
            raise


@contextlib.contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as the worker's own."""
    try:
        yield
    except apsw.FullError:
        message = f"no room is left for the ledger {path}; make room on its volume"
        raise LedgerFullError(message) from None
    except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError) as error:
        message = f"another program keeps the ledger {path} locked ({error}); only the worker may write to it"
        raise LedgerUnusableError(message) from error
    except _SIGNS_OF_DAMAGE as error:
        message = (
            f"the ledger {path} is damaged ({error}); keep the file, start with another LEDGER_PATH, "
            "and what Cloudflare still has will be collected again"
        )
        raise LedgerDamagedError(message) from error
    except (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError) as error:
        # A failed sync must never be tried again in the same process: the kernel may have dropped the pages.
        message = f"the ledger {path} cannot be read or written ({error}); look at its volume and its owner"
        raise LedgerUnusableError(message) from error


def _configure(connection: apsw.Connection, path: Path) -> None:
    connection.set_busy_timeout(_PRAGMAS["busy_timeout"])
    if pragma(connection, "page_count") == 0:
        connection.pragma("page_size", _PAGE_BYTES)
        connection.pragma("auto_vacuum", 2)  # incremental: what retention frees can be given back to the volume
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        message = f"the volume of {path} does not support SQLite's WAL mode (it answered {mode!r}); use a local volume"
        raise LedgerUnusableError(message)
    for name, wanted in _PRAGMAS.items():
        connection.pragma(name, wanted)
        if (got := pragma(connection, name)) != wanted:
            message = f"SQLite did not take {name}={wanted} for {path}, it says {got}"
            raise LedgerUnusableError(message)


def _unusable_volume(path: Path, error: OSError) -> LedgerUnusableError:
    return LedgerUnusableError(f"the ledger {path} cannot be written: {error.strerror or error}; look at LEDGER_PATH")


def read_mounts() -> str:
    """What is mounted where, as Linux tells it; nothing on other systems."""
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def file_system_of(path: Path, mounts: str) -> str | None:
    """The type of the file system that `path` lies on according to the lines of `mounts`; None where none tells."""
    real_path = Path(os.path.realpath(path))
    best, kind = -1, None
    for line in mounts.splitlines():
        _, mount_point, file_system, *_ = (*line.split(" "), "", "")
        # Mount points write a space as \040.
        point = Path(mount_point.encode("ascii", "backslashreplace").decode("unicode_escape"))
        if real_path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), file_system
    return kind
