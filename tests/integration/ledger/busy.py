"""A worker's ledger in a process of its own, made to be killed: goes through a history and says when it begins a step
and when the step is committed.

    python -m tests.integration.ledger.busy PATH SEED
"""

import asyncio
import random
import sys
from itertools import chain
from pathlib import Path

from tests.integration.ledger.history import first_steps, later_steps
from worker.ledger import Ledger

BEGUN = "begun"
COMMITTED = "committed"


async def main(path: Path, seed: int) -> None:
    ledger = Ledger.open(path)
    for step in chain(first_steps(), later_steps(random.Random(seed))):
        print(BEGUN, flush=True)  # noqa: T201 - this is what the process is for
        await ledger.write(step)
        print(COMMITTED, flush=True)  # noqa: T201 - this is what the process is for


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
