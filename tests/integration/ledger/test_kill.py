import random
import signal
import subprocess
import sys
import time
from itertools import chain, islice
from pathlib import Path

from tests.integration.ledger.busy import BEGUN, COMMITTED
from tests.integration.ledger.history import (
    close,
    content,
    first_steps,
    integrity,
    later_steps,
    untrue_or_damaged,
    write,
)
from worker.ledger import Ledger

ROUNDS = 20

REPOSITORY = Path(__file__).parents[3]


def run_and_kill(path: Path, seed: int, chance: random.Random) -> list[str]:
    """Let a process work on the ledger and kill it at a random moment; what it said before."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ledger.busy", str(path), str(seed)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = list(islice(process.stdout, chance.randrange(60)))
        # A step takes 1 to 5 ms: somewhere in it.
        time.sleep(chance.uniform(0, 0.005))
        process.kill()
        said += process.stdout
    assert process.returncode == -signal.SIGKILL
    return [line.strip() for line in said if line.endswith("\n")]


def test_a_ledger_whose_process_is_killed_holds_what_was_committed(tmp_path: Path) -> None:
    chance = random.Random(9)
    path = tmp_path / "ledger.db"
    undisturbed = Ledger.open(tmp_path / "undisturbed.db")
    killed_at_work = 0
    for seed in range(ROUNDS):
        said = run_and_kill(path, seed, chance)
        killed_at_work += said[-1:] == [BEGUN]

        steps = chain(first_steps(), later_steps(random.Random(seed)))
        for step in islice(steps, said.count(COMMITTED)):
            write(undisturbed, step)
        survivor = Ledger.open(path)
        if content(survivor) != content(undisturbed):
            # The step under way was committed, and the process had no time to say so.
            write(undisturbed, next(steps))
        assert content(survivor) == content(undisturbed)
        assert integrity(survivor._connection) == "ok"
        assert untrue_or_damaged(survivor) == []
        close(survivor)
    close(undisturbed)
    # All of this would be in vain if the process had never been killed at work.
    assert killed_at_work > ROUNDS / 4
