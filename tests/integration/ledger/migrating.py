"""A start of today's worker with a ledger of an older version, in a process of its own, which is killed within it.

    python -m tests.integration.ledger.migrating PATH STATEMENTS

kills itself with SIGKILL before the migration's statement of that number, counted from 0, and ends well where there are
fewer.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from types import MappingProxyType

import apsw

from tests.unit.ledger.version_1 import watch_migration
from worker.ledger import Ledger, file


def main(path: Path, statements: int) -> None:
    numbers = count()

    def kill(_: str) -> None:
        if next(numbers) == statements:
            os.kill(os.getpid(), signal.SIGKILL)

    apsw.connection_hooks = [*apsw.connection_hooks, lambda connection: watch_migration(connection, kill)]
    # Hardly any page: what is not committed yet is then in the file's log already, as it is with a ledger of gigabytes.
    file._PRAGMAS = MappingProxyType({**file._PRAGMAS, "cache_size": 10})
    Ledger.open(path)._close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
