"""The ledger and its volume: whether it lasts, whether it can be written, how fast, and how long there is room.

Looks from beside: the ledger is only read, and what is written is a file of its own that is gone afterwards.
"""

import asyncio
from collections.abc import Iterator
from math import ceil
from statistics import median

from worker.check.finding import Finding, failure, ok, skipped, warning
from worker.check.memory import Memory
from worker.clock import Clock
from worker.config import LedgerSettings
from worker.errors import LedgerError
from worker.ledger import Volume, commit_seconds, volume_of

SECTION = "ledger"

_HOUR, _DAY = 3600, 86_400
_GIB, _MIB = 2**30, 2**20

# On the slowest disk that is not told of as slow, 2 s.
_COMMITS = 20

# Every answer of Cloudflare's and every one of a receiver's is a commit. 1,000 zones with 8 datasets are 200 of the one
# and a few of the other for each window: at 100 ms 20 s, of the 300 that a narrow window lasts.
_SLOW_SECONDS = 0.1
_WORST_SECONDS = 2.0

# As the alert has it.
_FULL_SHARE = 0.8


async def look_at_volume(settings: LedgerSettings, memory: Memory | LedgerError | None, clock: Clock) -> list[Finding]:
    """What is to be said of the ledger.

    memory: what is in it, why it could not be read, or None where there is none yet.
    """
    try:
        volume = volume_of(settings.path)
    except OSError as error:
        return [failure(SECTION, f"{settings.path} cannot be looked at: {error.strerror}", "look at LEDGER_PATH")]
    findings = [*_place(settings, volume, memory), await _commits(volume, clock)]
    if isinstance(memory, Memory):
        findings += _room(settings, volume, memory)
    elif memory is None:
        findings += _room_to_come(settings, volume)
    return findings


def _place(settings: LedgerSettings, volume: Volume, memory: Memory | LedgerError | None) -> Iterator[Finding]:
    match memory:
        case LedgerError():
            yield failure(SECTION, str(memory))
        case None:
            yield ok(SECTION, f"{settings.path} does not exist yet: `cfrw run` makes it")
        case Memory():
            yield ok(SECTION, f"{settings.path} can be read")
    where = f"{volume.folder} is on {volume.file_system or 'a file system that the system does not name'}"
    if volume.is_network:
        yield failure(SECTION, f"{where}, over a network: the worker does not start", "put LEDGER_PATH on a local disk")
    elif volume.is_memory:
        yield failure(SECTION, f"{where}, in memory: it is empty after a restart", "put LEDGER_PATH on a disk")
    elif volume.is_container_layer:
        what = f"{where}, the container's own layer: it is gone with the container"
        yield warning(SECTION, what, "mount a volume and put LEDGER_PATH on it")
    else:
        yield ok(SECTION, f"{where}, which is local and lasts")


async def _commits(volume: Volume, clock: Clock) -> Finding:
    try:
        took = await asyncio.to_thread(commit_seconds, volume.folder, _COMMITS, clock.monotonic)
    except OSError as error:
        what = f"{volume.folder} cannot be written: {error.strerror}"
        return failure(SECTION, what, "let the user that runs the worker write there")
    except LedgerError as error:
        return failure(SECTION, str(error))
    what = f"a durable commit takes {_ms(median(took))}, the slowest of {len(took)} took {_ms(max(took))}"
    if median(took) > _SLOW_SECONDS or max(took) > _WORST_SECONDS:
        return warning(SECTION, what, "put the ledger on a faster disk where many zones are collected")
    return ok(SECTION, what)


def _room(settings: LedgerSettings, volume: Volume, memory: Memory) -> Iterator[Finding]:
    used, most = memory.room.used_bytes, settings.max_bytes
    what = f"{_size(used)} of {_size(most)} (LEDGER_MAX_BYTES) are used"
    if used >= most:
        yield failure(SECTION, f"{what}: collection pauses", "raise LEDGER_MAX_BYTES, or see what waits for delivery")
    elif used > _FULL_SHARE * most:
        yield warning(
            SECTION, f"{what}; at that collection pauses", "raise LEDGER_MAX_BYTES, or lower LEDGER_RETENTION_HOURS"
        )
    else:
        yield ok(SECTION, what)
    # Free pages of the file are filled before it grows.
    yield from _volume_room(settings, volume, max(0, most - memory.room.file_bytes))
    yield _retention(settings, memory)


def _room_to_come(settings: LedgerSettings, volume: Volume) -> Iterator[Finding]:
    yield from _volume_room(settings, volume, settings.max_bytes)


def _volume_room(settings: LedgerSettings, volume: Volume, may_grow_bytes: int) -> Iterator[Finding]:
    free = f"{_size(volume.free_bytes)} are free on the volume"
    if volume.free_bytes >= may_grow_bytes:
        yield ok(SECTION, f"{free}, and the ledger may grow by {_size(may_grow_bytes)}")
        return
    fitting = max(0, settings.max_bytes - may_grow_bytes + volume.free_bytes)
    to_do = "make room"
    if fitting >= _MIB:
        to_do += f", or set LEDGER_MAX_BYTES to {fitting // _MIB}MiB or less"
    yield warning(SECTION, f"{free}, but the ledger may grow by {_size(may_grow_bytes)}", to_do)


def _retention(settings: LedgerSettings, memory: Memory) -> Finding:
    """What the ledger takes when it holds all that it keeps, by what it takes now."""
    oldest, newest = memory.covered or (0, 0)
    seconds = newest - oldest
    if seconds < _DAY:
        return skipped(SECTION, "what LEDGER_RETENTION_HOURS takes is told when the ledger holds a day")
    kept = settings.retention_hours * _HOUR
    needed = ceil(memory.room.used_bytes * max(1.0, kept / seconds))
    what = (
        f"{settings.retention_hours} h (LEDGER_RETENTION_HOURS) take about {_size(needed)}, "
        f"by the {seconds // _HOUR} h that it holds"
    )
    if needed <= settings.max_bytes:
        return ok(SECTION, what)
    fitting = int(settings.max_bytes / needed * max(kept, seconds) / _HOUR)
    to_do = f"set LEDGER_RETENTION_HOURS={fitting} or less, or raise LEDGER_MAX_BYTES"
    return warning(SECTION, f"{what}, more than the {_size(settings.max_bytes)} of LEDGER_MAX_BYTES", to_do)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:,.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:,.1f} MiB"
