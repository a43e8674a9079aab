"""What a step of a repair came to, and who can take one."""

from enum import Enum, auto
from typing import Protocol

from worker.ledger import Job

NOT_CONFIGURED = (
    "the worker that holds the ledger has no destination of this name in its settings, which it reads at its start"
)
"""Why a destination that a repair names gets nothing, and is not read back."""


class Step(Enum):
    """What came of one step."""

    WENT_ON = auto()
    """Something was done, and there may be more."""

    WAITS = auto()
    """Nothing can be done until something else has happened."""

    ENDED = auto()
    """The repair is on record as finished."""


class Carrier(Protocol):
    """Knows how one kind of repair is carried out."""

    async def step(self, job: Job) -> Step:
        """Carry out a part of the repair, as it stands in the journal, and write down how far it is."""
