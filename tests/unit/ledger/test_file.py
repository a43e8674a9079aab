import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.unit.ledger.fleet import NOW, bucket, queue, scope
from worker.errors import LedgerDamagedError, LedgerError, LedgerFullError, LedgerHeldError, LedgerUnusableError
from worker.ledger import Ledger, capture, file, jobs, prove_writable, record_scopes
from worker.ledger.file import file_system_of, open_to_write, read_mounts, translated_errors

HOLDER = """
import sys, os
from pathlib import Path
from worker.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
print("holding", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def another_worker(path: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


@contextlib.contextmanager
def default_vfs(name: str) -> Iterator[None]:
    before = apsw.vfs_names()[0]
    apsw.set_default_vfs(name)
    try:
        yield
    finally:
        apsw.set_default_vfs(before)


# Who may open it


def test_a_second_process_is_told_which_one_holds_the_ledger(path: Path) -> None:
    with another_worker(path) as holder:
        with pytest.raises(LedgerHeldError, match=rf"process {holder.pid}\b") as caught:
            Ledger.open(path)
        assert caught.value.exit_code == 4
        assert str(path) in str(caught.value)


async def test_a_ledger_is_free_as_soon_as_its_holder_is_killed(path: Path) -> None:
    with another_worker(path) as holder:
        holder.kill()
        holder.wait()

    await Ledger.open(path).close()


async def test_a_ledger_is_free_as_soon_as_it_is_closed(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerHeldError, match=f"process {os.getpid()}"):
        Ledger.open(path)
    await ledger.close()

    await Ledger.open(path).close()


@pytest.mark.usefixtures("ledger")
async def test_a_link_to_the_file_does_not_get_around_the_lock(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)

    with pytest.raises(LedgerHeldError):
        Ledger.open(link)


def test_the_lock_is_given_back_when_the_file_cannot_be_used(path: Path) -> None:
    path.write_text("not a database " * 100)
    for _ in range(2):
        with pytest.raises(LedgerDamagedError):
            Ledger.open(path)


async def test_a_volume_that_is_too_full_for_the_lock_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(LedgerUnusableError, match="No space left"):
            Ledger.open(path)

    await Ledger.open(path).close()


async def test_others_read_beside_the_worker_and_see_what_is_committed(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    reader = Ledger.open_read_only(path)
    assert await queue(reader) == [(1, 0)]

    await ledger.write(capture, [bucket(1, 1)], NOW)

    assert await queue(reader) == [(1, 0), (1, 1)]
    await reader.close()


@pytest.mark.usefixtures("ledger")
async def test_a_reader_cannot_write(path: Path) -> None:
    reader = Ledger.open_read_only(path)

    with pytest.raises(LedgerUnusableError):
        await reader.write(prove_writable)

    await reader.close()


async def test_a_ledger_that_nobody_holds_can_be_read(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.close()

    reader = Ledger.open_read_only(path)
    assert await queue(reader) == [(1, 0)]
    await reader.close()


async def test_a_command_can_ask_beside_the_worker(ledger: Ledger, path: Path) -> None:
    asking = Ledger.open_to_ask(path)
    await asking.write(record_scopes, [scope(7)], NOW)
    assert await asking.read(jobs, newest=1) == ()
    await asking.close()

    await ledger.write(capture, [bucket(7, 0)], NOW)


@pytest.mark.usefixtures("ledger")
async def test_the_lock_file_is_readable_by_its_owner_only(path: Path) -> None:
    assert path.with_name("ledger.db.lock").stat().st_mode & 0o777 == 0o600


# What it must be


async def test_the_settings_that_the_promises_rest_on_are_in_force(ledger: Ledger) -> None:
    names = (
        "journal_mode",
        "synchronous",
        "fullfsync",
        "foreign_keys",
        "mmap_size",
        "page_size",
        "auto_vacuum",
        "wal_autocheckpoint",
        "journal_size_limit",
        "busy_timeout",
    )
    assert {name: ledger._connection.pragma(name) for name in names} == {
        "journal_mode": "wal",
        "synchronous": 2,
        "fullfsync": 1,
        "foreign_keys": 1,
        "mmap_size": 0,
        "page_size": 16_384,
        "auto_vacuum": 2,
        "wal_autocheckpoint": 1024,
        "journal_size_limit": 32 * 2**20,
        "busy_timeout": 5000,
    }


def test_a_setting_that_does_not_take_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_PRAGMAS", {**file._PRAGMAS, "foreign_keys": 7})

    with pytest.raises(LedgerUnusableError, match="foreign_keys=7"):
        Ledger.open(path)


def test_a_volume_without_shared_memory_is_refused(path: Path) -> None:
    with default_vfs("unix-none"), pytest.raises(LedgerUnusableError, match="WAL"):
        Ledger.open(path)


def test_the_sqlite_in_use_does_not_have_the_corruption_of_the_write_ahead_log() -> None:
    # Fixed in SQLite 3.51.3.
    assert apsw.SQLITE_VERSION_NUMBER >= 3_051_003


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ledger.db"

    await Ledger.open(path).close()

    assert path.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")

    with pytest.raises(LedgerUnusableError, match="LEDGER_PATH"):
        Ledger.open(tmp_path / "a" / "ledger.db")


def test_a_folder_in_the_place_of_the_file_is_told(path: Path) -> None:
    path.mkdir()

    with pytest.raises(LedgerUnusableError, match=str(path)):
        Ledger.open(path)


@pytest.mark.parametrize("content", [b"not", b"not a database", b"SQLite format 3\0", bytes(100), b"\xff" * 20_000])
def test_a_file_that_is_no_database_is_told_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(LedgerDamagedError, match=str(path)) as caught:
        Ledger.open(path)
    with pytest.raises(LedgerError):
        Ledger.open_read_only(path)

    assert caught.value.exit_code == 5
    assert path.read_bytes() == content


async def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=tmp_path) as empty:
        ledger = Ledger.open(Path(empty.name))
        await ledger.write(prove_writable)
        await ledger.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(LedgerUnusableError, match="Permission denied"):
        Ledger.open(tmp_path / "ledger.db")


def test_a_reader_without_a_ledger_is_told_how_one_is_made(path: Path) -> None:
    with pytest.raises(LedgerUnusableError, match="cfrw run"):
        Ledger.open_read_only(path)

    assert not path.exists()


def test_whoever_asks_does_not_make_a_ledger(path: Path) -> None:
    with pytest.raises(LedgerUnusableError):
        Ledger.open_to_ask(path)

    assert not path.exists()


def test_a_reader_of_a_file_that_is_just_being_made_is_told_that_there_is_none_yet(path: Path) -> None:
    path.touch()

    with pytest.raises(LedgerUnusableError, match="cfrw run"):
        Ledger.open_read_only(path)


MOUNTS = r"""
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw,vers=4.2 0 0
/dev/sdb1 /data/local ext4 rw 0 0
//host/share /my\040share cifs rw 0 0
user@host:/ /über fuse.sshfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/var/lib/ledger.db", "overlay"),
        ("/data/ledger.db", "nfs4"),
        ("/data/deep/er/ledger.db", "nfs4"),
        ("/data/local/ledger.db", "ext4"),
        ("/data/localhost/ledger.db", "nfs4"),
        ("/my share/ledger.db", "cifs"),
        ("/über/ledger.db", "fuse.sshfs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(where: str, kind: str) -> None:
    assert file_system_of(Path(where), MOUNTS) == kind


def test_no_file_system_is_told_where_the_machine_tells_no_mounts() -> None:
    assert file_system_of(Path("/data/ledger.db"), "") is None


def test_a_machine_that_tells_no_mounts_has_none_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)

    assert read_mounts() == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_ledger_on_a_network_file_system_is_refused(path: Path, kind: str) -> None:
    with pytest.raises(LedgerUnusableError, match=f"network file system \\({kind}\\)"):
        open_to_write(path, f"somewhere / {kind} rw 0 0\n")

    assert not path.exists()


# What SQLite's errors mean


@pytest.mark.parametrize(
    ("error", "meaning", "says"),
    [
        (apsw.FullError("database or disk is full"), LedgerFullError, "make room"),
        (apsw.IOError("disk I/O error"), LedgerUnusableError, "disk I/O error"),
        (apsw.CantOpenError("unable to open database file"), LedgerUnusableError, "volume"),
        (apsw.ReadOnlyError("attempt to write a readonly database"), LedgerUnusableError, "readonly"),
        (apsw.BusyError("database is locked"), LedgerUnusableError, "another program"),
        (apsw.LockedError("database table is locked"), LedgerUnusableError, "another program"),
        (apsw.ProtocolError("locking protocol"), LedgerUnusableError, "another program"),
        (apsw.CorruptError("database disk image is malformed"), LedgerDamagedError, "malformed"),
        (apsw.NotADBError("file is not a database"), LedgerDamagedError, "not a database"),
        (apsw.ConstraintError("UNIQUE constraint failed"), LedgerDamagedError, "UNIQUE"),
        (apsw.TooBigError("string or blob too big"), LedgerDamagedError, "too big"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), LedgerDamagedError, "invalid start byte"),
    ],
)
def test_errors_say_what_happened_to_which_file(error: Exception, meaning: type[LedgerError], says: str) -> None:
    with pytest.raises(meaning, match=says) as caught, translated_errors(Path("/data/ledger.db")):
        raise error

    assert "/data/ledger.db" in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_mistake_in_the_code_stays_one() -> None:
    with pytest.raises(apsw.SQLError), translated_errors(Path("/data/ledger.db")):
        apsw.Connection(":memory:").execute("SELECT typo")
