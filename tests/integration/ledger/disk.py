"""A disk that can lose power: a record of everything SQLite asks of its files, and the files that a power cut at any
point of that record may leave behind.

The method is that of SQLite's own crash tests: what was written since the last sync of a file may have arrived, may
not have arrived, or may have arrived in part and with garbage in it, sector by sector; what was synced is there.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import apsw

# What a disk writes as a whole at least.
SECTOR_BYTES = 512

_KEPT_FILES = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL


@dataclass(frozen=True, slots=True)
class Write:
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    file: str


@dataclass(frozen=True, slots=True)
class Delete:
    file: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The program was told that its n-th transaction is on the disk."""

    number: int


Event = Write | Truncate | Sync | Delete | Committed

Fault = Callable[[Literal["write", "sync"], str], None]
"""Told what is about to be done to which file; may raise in its place."""


def _no_fault(_what: Literal["write", "sync"], _file: str) -> None:
    pass


@dataclass
class Disk:
    """What was asked of the files, in order, by connections opened while `recording`."""

    events: list[Event] = field(default_factory=list)
    fault: Fault = _no_fault

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Make SQLite use this disk for every connection that is opened meanwhile."""
        real = apsw.vfs_names()[0]
        vfs = _RecordingVfs(self, real)
        apsw.set_default_vfs(_RecordingVfs.NAME)
        try:
            yield
        finally:
            apsw.set_default_vfs(real)
            vfs.unregister()


class _RecordingVfs(apsw.VFS):
    NAME = "recording"

    def __init__(self, disk: Disk, real: str) -> None:
        self._disk = disk
        self._real = real
        super().__init__(self.NAME, real)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        if name is None or not flags[0] & _KEPT_FILES:
            return apsw.VFSFile(self._real, name, flags)
        return _RecordingFile(self._disk, self._real, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802 - SQLite's name and arguments
        self._disk.events.append(Delete(Path(filename).name))
        super().xDelete(filename, syncdir)


class _RecordingFile(apsw.VFSFile):
    def __init__(self, disk: Disk, real: str, name: str | apsw.URIFilename, flags: list[int]) -> None:
        path = name if isinstance(name, str) else name.filename()
        self._disk = disk
        self._name = Path(path).name
        super().__init__(real, name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.fault("write", self._name)
        self._disk.events.append(Write(self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.events.append(Truncate(self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.fault("sync", self._name)
        self._disk.events.append(Sync(self._name))
        super().xSync(flags)


@dataclass(frozen=True, slots=True)
class Wreck:
    """What a power cut left behind.

    files:     content by name.
    committed: how many transactions the program had been told to be on the disk.
    """

    files: dict[str, bytes]
    committed: int


def power_cuts(events: list[Event], count: int, chance: random.Random, *, syncs_lie: bool = False) -> Iterator[Wreck]:
    """What `count` power cuts at random points leave behind; with `syncs_lie` the disk takes no sync seriously."""
    points = sorted(chance.randrange(1, len(events) + 1) for _ in range(count))
    synced: dict[str, bytes] = {}
    unsynced: dict[str, list[Write | Truncate]] = {}
    committed = done = 0
    for point in points:
        for event in events[done:point]:
            match event:
                case Write(file=file) | Truncate(file=file):
                    unsynced.setdefault(file, []).append(event)
                case Sync(file=file):
                    if not syncs_lie:
                        synced[file] = _apply(synced.get(file, b""), unsynced.pop(file, []), chance=None)
                case Delete(file=file):
                    synced.pop(file, None)
                    unsynced.pop(file, None)
                case Committed(number=number):
                    committed = number
        done = point
        yield Wreck(
            {
                file: _apply(synced.get(file, b""), unsynced.get(file, []), chance)
                for file in synced.keys() | unsynced.keys()
            },
            committed,
        )


def _apply(content: bytes, changes: list[Write | Truncate], chance: random.Random | None) -> bytes:
    """What becomes of a file: all changes without `chance`, with it each of them is kept, dropped or torn."""
    found = bytearray(content)
    for change in changes:
        fate = "kept" if chance is None else chance.choices(("kept", "dropped", "torn"), (4, 4, 2))[0]
        match change:
            case Truncate(size=size):
                if fate == "kept":
                    del found[size:]
                    found.extend(bytes(size - len(found)))
            case Write(offset=offset, data=data):
                if chance is not None and fate == "torn":
                    for start in range(0, len(data), SECTOR_BYTES):
                        sector = data[start : start + SECTOR_BYTES]
                        arrived = chance.choice((sector, None, chance.randbytes(len(sector))))
                        _put(found, offset + start, arrived)
                elif fate == "kept":
                    _put(found, offset, data)
    return bytes(found)


def _put(found: bytearray, offset: int, data: bytes | None) -> None:
    if data is not None:
        found.extend(bytes(max(0, offset - len(found))))
        found[offset : offset + len(data)] = data
