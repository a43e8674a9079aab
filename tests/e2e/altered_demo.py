"""`cfrw demo --receiver builtin` with another speed of time, and with something wrong in it where that is named.

python tests/e2e/altered_demo.py SPEED [BREAKAGE]
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest.mock import patch

from worker.cli import main
from worker.collect import Collector
from worker.demo import show
from worker.demo.timetable import timetable
from worker.errors import LedgerDamagedError
from worker.remote_write.decode import ReceivedSeries
from worker.remote_write.receiver import MemoryReceiver

store = MemoryReceiver._store


def store_wrongly(receiver: MemoryReceiver, received: list[ReceivedSeries]) -> None:
    """Keep the very first sample with another value than it had."""
    was_empty = not receiver.samples
    store(receiver, received)
    if was_empty:
        first = received[0]
        moment, value = first.samples[0]
        receiver.samples[first.labels][moment] = value + 1.0


BREAKAGES: dict[str, AbstractContextManager[object]] = {
    "receiver-lies": patch.object(MemoryReceiver, "_store", store_wrongly),
    "worker-fails": patch.object(Collector, "collect_due", side_effect=LedgerDamagedError("The ledger is damaged.")),
    "time-is-short": patch.object(show, "DEADLINE_SECONDS", 1.0),
}

if __name__ == "__main__":
    speed, *breakage = sys.argv[1:]
    faster = patch.object(show, "timetable", partial(timetable, speed=float(speed)))
    with faster, BREAKAGES[breakage[0]] if breakage else nullcontext():
        main(["demo", "--receiver", "builtin"])
