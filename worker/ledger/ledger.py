"""The ledger as the rest of the worker sees it: verbs run one after the other, each all or nothing.

All of SQLite happens in one thread, so that a slow disk never stops the event loop and no two statements race.
`write` returns after what the verb wrote is durable on disk; `read` gives it a consistent view, with all that was asked
to be written before it. Verbs are the functions that `worker.ledger` exports; they return values and know nothing of
the event loop.

Writes that wait at the same time share one transaction, since what a transaction costs is mostly its sync to disk. None
of them returns before that. Where one of them fails, none of it has happened, and each is tried in a transaction of its
own: a verb may run more than once, and counts once. Where the volume fails or the file is damaged, all of them fail:
nobody goes on after that.

Cancelling the caller does not cancel a verb that was asked for: what it commits stays true.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar

import apsw

from worker.errors import LedgerError, LedgerFullError
from worker.ledger.file import LedgerLock, open_to_ask, open_to_read, open_to_write, read_mounts, translated_errors
from worker.ledger.session import Session

P = ParamSpec("P")
T = TypeVar("T")

GATHER_SECONDS = 0.25
"""How long `write_soon` waits for company in a worker that runs: queries that were sent together are answered within
about that of each other, and the windows that they bring are minutes old."""


class _Asked(Generic[T]):
    """A verb that was asked for, and whoever waits for its outcome."""

    def __init__(self, verb: Callable[[Session], T], answer: "asyncio.Future[T]") -> None:
        self._verb = verb
        self._answer = answer
        self._tell: Callable[[], object] = answer.cancel

    def run(self, session: Session) -> None:
        """Run it; what it returns is told later."""
        self._tell = partial(self._answer.set_result, self._verb(session))

    def fail(self, error: BaseException) -> None:
        """It has not happened; why is told later."""
        if isinstance(error, StopIteration):
            # No future takes one.
            error = RuntimeError(f"a verb of the ledger raised {error!r}")
        self._tell = partial(self._answer.set_exception, error)

    def tell(self) -> None:
        """Let whoever waits know, in the event loop's thread."""
        if not self._answer.done():
            self._tell()


class Ledger:
    """One open ledger. Make it with `open`; close it to checkpoint and to let another worker have it."""

    def __init__(
        self, path: Path, connection: apsw.Connection, lock: LedgerLock | None, *, gather_seconds: float = 0.0
    ) -> None:
        self.path = path
        self._connection = connection
        self._session = Session(connection)
        self._log_path = Path(connection.filename_wal)
        self._lock = lock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        # Appended to by the event loop, taken from by the thread.
        self._writes: deque[_Asked[Any]] = deque()
        self._reads: deque[_Asked[Any]] = deque()
        self._is_called = False
        self._gather_seconds = gather_seconds
        self._gathering: asyncio.TimerHandle | None = None
        self._listeners: set[asyncio.Event] = set()
        self._closed = False
        opened = path.stat()
        self._identity = (opened.st_dev, opened.st_ino)

    @classmethod
    def open(cls, path: Path, *, gather_seconds: float = 0.0) -> Self:
        """Hold the ledger at `path` to write, making or migrating the file.

        gather_seconds: how long `write_soon` waits for company.

        Raises LedgerHeldError, LedgerUnusableError or LedgerDamagedError.
        """
        lock = LedgerLock(path)
        try:
            return cls(path, open_to_write(path, read_mounts()), lock, gather_seconds=gather_seconds)
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
        """Run a verb, all or nothing; when this returns, what it wrote is on disk."""
        answer = self._ask(self._writes, lambda session: verb(session, *args, **kwargs))
        self._call()
        return await answer

    async def write_soon(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for what can wait a moment: until there is other work, and for `gather_seconds` at most."""
        answer = self._ask(self._writes, lambda session: verb(session, *args, **kwargs))
        if not self._gather_seconds:
            self._call()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(self._gather_seconds, self._call)
        return await answer

    async def read(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb that only reads, on one consistent state of the file."""
        answer = self._ask(self._reads, lambda session: verb(session, *args, **kwargs))
        self._call()
        return await answer

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
            loop = asyncio.get_running_loop()
            try:
                self._call()
                await asyncio.shield(loop.run_in_executor(self._thread, self._close))
            finally:
                self._thread.shutdown(wait=False)

    def _ask(self, queue: "deque[_Asked[Any]]", verb: Callable[[Session], T]) -> "asyncio.Future[T]":
        """Put a verb in a queue, where it stays whatever becomes of the caller."""
        if self._closed:
            message = f"the ledger {self.path} is closed"
            raise RuntimeError(message)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        queue.append(_Asked(verb, answer))
        return answer

    def _call(self) -> None:
        """Have the thread do what waits, unless it is about to."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._is_called:
            self._is_called = True
            self._thread.submit(self._work, asyncio.get_running_loop())

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what waits, in the ledger's thread: all writes together, then one read, and again until nothing waits.

        One callback brings the outcomes of all writes back: the way to the event loop and back costs as much as a verb.
        """
        # Before anything is taken: what is asked for from now on is taken too, or the thread is called again.
        self._is_called = False
        while self._writes or self._reads:
            # Before the writes are: what was to be written when it was asked for is then among them, and it sees that.
            read = self._reads.popleft() if self._reads else None
            if writes := [self._writes.popleft() for _ in range(len(self._writes))]:
                self._commit(writes)
                # Not with the read that follows, which may take seconds.
                loop.call_soon_threadsafe(_tell, writes)
            if read is not None:
                self._look(read)
                loop.call_soon_threadsafe(read.tell)

    def _commit(self, asked: Sequence[_Asked[Any]]) -> None:
        """Run verbs in one transaction; where that fails, each in one of its own."""
        try:
            self._transact("IMMEDIATE", partial(_run, asked))
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            # Nothing is tried again on a volume that failed to sync, or on a file that makes no sense; on one that is
            # full, something small may find room.
            may_go_on = isinstance(error, LedgerFullError) or not isinstance(error, LedgerError)
            if len(asked) > 1 and may_go_on:
                for each in asked:
                    self._commit([each])
            else:
                for each in asked:
                    each.fail(error)

    def _look(self, asked: _Asked[Any]) -> None:
        try:
            self._transact("DEFERRED", asked.run)
        except BaseException as error:  # noqa: BLE001 - for whoever waits
            asked.fail(error)

    def _transact(self, kind: Literal["IMMEDIATE", "DEFERRED"], verb: Callable[[Session], T]) -> T:
        with translated_errors(self.path):
            self._connection.execute(f"BEGIN {kind}")
            try:
                result = verb(self._session)
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


def _run(asked: Sequence[_Asked[Any]], session: Session) -> None:
    for each in asked:
        each.run(session)


def _tell(done: Sequence[_Asked[Any]]) -> None:
    for each in done:
        each.tell()
