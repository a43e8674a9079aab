"""The ledger as the rest of the worker sees it: verbs run one after the other, each in one transaction.

All of SQLite happens in one thread, so that a slow disk never stops the event loop and no two statements race.
`write` gives a verb a transaction of its own and returns after it is durable on disk; `read` gives it a consistent
view. Verbs are the functions that `worker.ledger` exports; they return values and know nothing of the event loop.

Cancelling the caller does not cancel a verb that has begun: what it commits stays true.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, Self, TypeVar

import apsw

from worker.ledger.file import LedgerLock, open_to_ask, open_to_read, open_to_write, read_mounts, translated_errors
from worker.ledger.session import Session

P = ParamSpec("P")
T = TypeVar("T")


class Ledger:
    """One open ledger. Make it with `open`; close it to checkpoint and to let another worker have it."""

    def __init__(self, path: Path, connection: apsw.Connection, lock: LedgerLock | None) -> None:
        self.path = path
        self._connection = connection
        self._session = Session(connection)
        self._log_path = Path(connection.filename_wal)
        self._lock = lock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._listeners: set[asyncio.Event] = set()
        self._closed = False
        opened = path.stat()
        self._identity = (opened.st_dev, opened.st_ino)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Hold the ledger at `path` to write, making or migrating the file.

        Raises LedgerHeldError, LedgerUnusableError or LedgerDamagedError.
        """
        lock = LedgerLock(path)
        try:
            return cls(path, open_to_write(path, read_mounts()), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open_read_only(cls, path: Path) -> Self:
        """Read the ledger at `path`, also while a worker holds it. `write` is refused by SQLite."""
        return cls(path, open_to_read(path), None)

    @classmethod
    def open_to_ask(cls, path: Path) -> Self:
        """Add to the journal of a ledger that a running worker holds, or to an import, and watch what becomes of it."""
        return cls(path, open_to_ask(path), None)

    async def write(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb in a transaction; when this returns, what it wrote is on disk."""
        return await self._in_thread(lambda: self._transact("IMMEDIATE", verb, *args, **kwargs))

    async def read(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb that only reads, on one consistent state of the file."""
        return await self._in_thread(lambda: self._transact("DEFERRED", verb, *args, **kwargs))

    def listen(self) -> asyncio.Event:
        """An event that is set whenever there is something new to deliver; the listener clears it."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def announce(self) -> None:
        """Wake everybody who listens."""
        for event in self._listeners:
            event.set()

    def is_in_place(self) -> bool:
        """Whether the file at the ledger's path is still the one that is open."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def log_bytes(self) -> int:
        """The size of the write-ahead log, which is not yet part of the database file."""
        try:
            return self._log_path.stat().st_size
        except FileNotFoundError:
            return 0

    async def close(self) -> None:
        """Move the write-ahead log into the file, close it and release the lock. Closing twice is allowed.

        While somebody else still reads, the log stays beside the file for whoever opens it next; nothing is lost.
        """
        if not self._closed:
            self._closed = True
            try:
                await self._in_thread(self._close)
            finally:
                self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run it in the ledger's thread, whatever becomes of the caller.

        One callback brings the outcome back: the chain of `run_in_executor` and `shield` costs as much as the work.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                tell = partial(answer.set_result, work())
            except BaseException as error:  # noqa: BLE001 - for whoever waits
                tell = partial(answer.set_exception, error)
            loop.call_soon_threadsafe(lambda: answer.cancelled() or tell())

        self._thread.submit(run)
        return await answer

    def _transact(
        self,
        kind: Literal["IMMEDIATE", "DEFERRED"],
        verb: Callable[Concatenate[Session, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with translated_errors(self.path):
            self._connection.execute(f"BEGIN {kind}")
            try:
                result = verb(self._session, *args, **kwargs)
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors (a full disk, an I/O error).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._session.forget()
                raise
            return result

    def _close(self) -> None:
        try:
            with translated_errors(self.path):
                # SQLite moves the log into the file when its last connection is closed, without waiting for others.
                self._connection.close()
        finally:
            if self._lock is not None:
                self._lock.release()
