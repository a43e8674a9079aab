"""The volume that a ledger is on, looked at from beside it: nothing here touches the ledger or its lock."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.ledger.file import NETWORK_FILE_SYSTEMS, file_system_of, open_to_write, read_mounts, translated_errors

# A bucket's row with its index entries changes about a page.
_WRITTEN_BYTES = 16 * 1024

# Their content is gone with the machine's memory.
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})

# Where containers write what is on none of their volumes.
_LAYERED = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})


@dataclass(frozen=True, slots=True)
class Volume:
    """Where a ledger is, or will be.

    folder:      the one that holds it; where that does not exist yet, the nearest above that does.
    file_system: its type; None where the system does not tell.
    free_bytes:  what this user can still write.
    """

    folder: Path
    file_system: str | None
    free_bytes: int

    @property
    def is_network(self) -> bool:
        """Whether it is on another machine: a ledger refuses to be there."""
        return self.file_system in NETWORK_FILE_SYSTEMS

    @property
    def is_memory(self) -> bool:
        """Whether a restart of the machine empties it."""
        return self.file_system in _IN_MEMORY

    @property
    def is_container_layer(self) -> bool:
        """Whether it is the writable layer of a container, which goes with that."""
        return self.file_system in _LAYERED


def volume_of(path: Path, mounts: str | None = None) -> Volume:
    """The volume of the ledger at `path`, which need not exist. `mounts` stands in for the system's own, in tests."""
    folder = Path(os.path.realpath(path)).parent
    while not folder.is_dir():
        folder = folder.parent
    file_system = file_system_of(folder, read_mounts() if mounts is None else mounts)
    return Volume(folder, file_system, shutil.disk_usage(folder).free)


def commit_seconds(folder: Path, commits: int, monotonic: Callable[[], float]) -> tuple[float, ...]:
    """How long each of so many durable commits took, in a throw-away ledger in that folder, with a ledger's settings.

    Raises OSError or LedgerUnusableError where none can be made there.
    """
    with TemporaryDirectory(prefix=".cfrw-check-", dir=folder) as temporary:
        path = Path(temporary) / "ledger.db"
        with translated_errors(path):
            connection = open_to_write(path, "")
            try:
                connection.execute("CREATE TABLE written (content BLOB)")
                took = []
                for _ in range(commits):
                    begun = monotonic()
                    with connection:
                        connection.execute("INSERT INTO written VALUES (randomblob(?))", (_WRITTEN_BYTES,))
                    took.append(monotonic() - begun)
            finally:
                connection.close()
    return tuple(took)
