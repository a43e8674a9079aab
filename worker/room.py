"""Whether the ledger may grow, for loops that capture: pending rows are never dropped, so at its budget they pause."""

from worker.ledger import Ledger, room
from worker.observe import get_logger

log = get_logger()


async def has_room(ledger: Ledger, max_bytes: int, loop: str) -> bool:
    """Whether the ledger is within its budget; where it is not, the log says that the loop pauses."""
    used = (await ledger.read(room)).used_bytes
    if used < max_bytes:
        return True
    log.error(
        "Collection pauses: the ledger has reached LEDGER_MAX_BYTES, and what waits for delivery is never dropped",
        loop=loop,
        used_bytes=used,
        max_bytes=max_bytes,
    )
    return False
