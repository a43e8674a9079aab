"""Where an export goes: a folder that appears when it is complete, or one stream.

Promises that nothing that exists is overwritten, and that what is named by its final name is whole and on disk.
"""

import hashlib
import os
import shutil
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from worker.errors import UsageError


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that was written.

    stretch: what it is called without its number: files of the same stretch of time have parts of the same buckets.
    series:  how many have samples in it, a metric of a zone or account by another.
    """

    name: str
    stretch: str
    size_bytes: int
    sha256: str
    series: int
    samples: int


@dataclass(slots=True)
class _Open:
    name: str
    stretch: str
    stream: BinaryIO
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size_bytes: int = 0
    series: int = 0
    samples: int = 0

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.size_bytes += len(data)


class Stream:
    """All of an export in one text, for a pipe."""

    def __init__(self, stream: BinaryIO) -> None:
        self.spool_folder: Path | None = None
        """Where what is not sorted yet may lie; None for the system's own place."""
        self._stream = stream

    def open(self, name: str) -> BinaryIO:
        """A file to write into."""
        del name
        return self._stream

    def close(self, stream: BinaryIO) -> None:
        """It is complete."""
        stream.flush()


class Folder:
    """A folder of files, under another name until `complete`; without that, leaving the block removes it."""

    def __init__(self, path: Path) -> None:
        """Make it under its other name; UsageError where something has the name that it is to get."""
        if path.exists() or path.is_symlink():
            msg = f"--output {path} is there already, and nothing is overwritten; name a folder that does not exist"
            raise UsageError(msg)
        self.path = path
        self.spool_folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=".partial"))
        """Where it is until then; what is not sorted yet may lie there, too."""
        self._open: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._open is not None:
            # What a full volume does not take any more is removed in any case.
            with suppress(OSError):
                self._open.close()
        # After `complete` it is not there any more.
        shutil.rmtree(self.spool_folder, ignore_errors=True)

    def open(self, name: str) -> BinaryIO:
        """A new file to write into; the one before is complete."""
        self._open = (self.spool_folder / name).open("xb")
        return self._open

    def close(self, stream: BinaryIO) -> None:
        """It is complete; after this it is on disk."""
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()

    def write(self, name: str, data: bytes) -> None:
        """A whole file at once."""
        stream = self.open(name)
        stream.write(data)
        self.close(stream)

    def complete(self) -> None:
        """Give the folder its name."""
        # Only its owner could look into what `mkdtemp` makes; `promtool` often runs as somebody else.
        self.spool_folder.chmod(0o755)
        descriptor = os.open(self.spool_folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.spool_folder.rename(self.path)


class Files:
    """One file after the other, each with an end; a new one begins where the one before has grown large enough."""

    def __init__(self, place: Folder | Stream, *, suffix: str, end: bytes, max_bytes: int | None) -> None:
        self.written: list[ExportedFile] = []
        self._place = place
        self._suffix = suffix
        self._end = end
        self._max_bytes = max_bytes
        self._open: _Open | None = None

    def put(self, name: str, head: bytes, data: bytes, *, is_first: bool, series: int, samples: int) -> None:
        """Write samples of one family into the file of this name, with its head where the file has none of it.

        is_first: whether nothing of the family was written before.
        """
        size_bytes = len(data) + (len(head) if is_first else 0) + len(self._end)
        if self._open is not None and self._max_bytes and self._open.size_bytes + size_bytes > self._max_bytes:
            self.end()
        if self._open is None:
            parts = sum(each.stretch == name for each in self.written)
            file = f"{name}{f'-{parts + 1}' if parts else ''}{self._suffix}"
            self._open = _Open(file, name, self._place.open(file))
            is_first = True
        if is_first:
            self._open.write(head)
        self._open.write(data)
        self._open.series += series
        self._open.samples += samples

    def end(self) -> None:
        """The file that is open is complete."""
        if self._open is not None:
            done, self._open = self._open, None
            done.write(self._end)
            self._place.close(done.stream)
            self.written.append(
                ExportedFile(
                    done.name, done.stretch, done.size_bytes, done.digest.hexdigest(), done.series, done.samples
                )
            )


class Spool:
    """Pieces of text in the order in which they are found, given back family by family; on disk, not in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `__exit__`
        # Of each piece where it begins, its length, how many series and how many samples: 32 bytes, so that 10,000
        # zones with eighty metrics each take 26 MB.
        self._pieces: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def add(self, family: str, lines: Sequence[bytes], *, samples: int) -> None:
        """Keep a piece behind those that the family has; `lines`: of one series each."""
        data = b"".join(lines)
        self._pieces[family].extend((self._file.tell(), len(data), len(lines), samples))
        self._file.write(data)

    def families(self) -> Iterator[tuple[str, Iterator[tuple[bytes, int, int]]]]:
        """Every family with its pieces: the text, how many series and how many samples."""
        for family, pieces in self._pieces.items():
            places = zip(pieces[::4], pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
            yield family, ((self._read(start, length), series, samples) for start, length, series, samples in places)

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return self._file.read(length)
