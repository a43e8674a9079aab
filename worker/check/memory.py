"""What the ledger remembers that a check is about, read in one go beside a running worker."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.cloudflare import Dataset
from worker.drift import NEWEST_READINGS
from worker.ledger import (
    Denial,
    Ledger,
    Reading,
    Room,
    Scope,
    covered,
    denials,
    logged_requests,
    newest_readings,
    present_scopes,
    room,
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is in a ledger.

    scopes:   the zones and accounts of the last listing.
    denials:  what they are not entitled to, by the last look at each.
    requests: when the last requests to each API of Cloudflare's ended, unix seconds, by the name of the token.
    readings: of captured windows that were read again, by dataset.
    covered:  the starts of the oldest and the newest captured window, unix seconds; None without any.
    """

    scopes: tuple[Scope, ...]
    denials: tuple[Denial, ...]
    requests: Mapping[str, Mapping[str, Sequence[float]]]
    readings: Mapping[str, tuple[Reading, ...]]
    room: Room
    covered: tuple[int, int] | None


async def read_memory(path: Path, datasets: Sequence[Dataset], tokens: Sequence[str]) -> Memory | None:
    """What it knows of these datasets and tokens, by their names.

    None where there is no ledger yet; raises what `Ledger.open_read_only` does, and what reading does.
    """
    if not await asyncio.to_thread(path.exists):
        return None
    ledger = Ledger.open_read_only(path)
    try:
        return Memory(
            scopes=await ledger.read(present_scopes),
            denials=await ledger.read(denials),
            requests={token: await ledger.read(logged_requests, token) for token in tokens},
            readings={
                each.name: await ledger.read(newest_readings, each.name, most=NEWEST_READINGS) for each in datasets
            },
            room=await ledger.read(room),
            covered=await ledger.read(covered),
        )
    finally:
        await ledger.close()
