"""Verbs that keep the ledger within its bounds."""

from dataclasses import dataclass

from worker.ledger.session import Session

# Buckets deleted in one transaction: at 100 samples and 1.3 kB a bucket this rewrites about 3 MB, a few
# milliseconds in which nothing else gets at the ledger.
PRUNE_BATCH = 2_000

# Pages given back to the volume at a time: 8 MiB at 16 KiB a page.
_VACUUM_PAGES = 512


@dataclass(frozen=True, slots=True)
class Room:
    """How much of its budget the ledger uses.

    used_bytes: pages that hold something.
    file_bytes: the size of the database file, free pages included, without the write-ahead log.
    """

    used_bytes: int
    file_bytes: int


def prune(session: Session, *, ended_before: float) -> int:
    """Delete at most PRUNE_BATCH of the oldest buckets whose window ended before this time; return how many.

    What is pending at a destination that is still configured is never deleted. Holes of that age go too.
    """
    deleted = session.change("prune_buckets", ended_before=int(ended_before), most=PRUNE_BATCH)
    session.change("prune_holes", ended_before=int(ended_before))
    # Some are deleted with their last bucket; and a year of them would be a lot to remember.
    session.chapters.clear()
    if deleted:
        session.change("prune_chapters", ended_before=int(ended_before))
        session.pragma("incremental_vacuum", _VACUUM_PAGES)
    return deleted


def room(session: Session) -> Room:
    """What the ledger takes of its volume."""
    page_bytes = session.pragma("page_size")
    pages = session.pragma("page_count")
    free_pages = session.pragma("freelist_count")
    return Room(used_bytes=(pages - free_pages) * page_bytes, file_bytes=pages * page_bytes)


def covered(session: Session) -> tuple[int, int] | None:
    """The starts of the oldest and of the newest captured window, unix seconds; None without any."""
    ((oldest, newest),) = session.rows("covered")
    return None if oldest is None else (oldest, newest)


def prove_writable(session: Session) -> None:
    """Do nothing, in a transaction that has to write: raises where the ledger cannot be written."""
    session.change("prove_writable")
