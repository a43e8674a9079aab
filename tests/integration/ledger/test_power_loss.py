import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import apsw
import pytest

from tests.integration.ledger.disk import Committed, Disk, Fault, power_cuts
from tests.integration.ledger.history import (
    Verb,
    close,
    content,
    first_steps,
    integrity,
    later_steps,
    put,
    untrue_or_damaged,
    write,
)
from worker.errors import LedgerError, LedgerUnusableError
from worker.ledger import Ledger, file

# Long enough for several checkpoints, for pruned pages that are used again, and for a file that shrinks.
STEPS = 120

RESTART_EVERY = 37


def steps_of_a_life(seed: int, count: int = STEPS) -> list[Verb]:
    return [*first_steps(), *islice(later_steps(random.Random(seed)), count)]


def live(volume: Path, seed: int) -> tuple[Disk, list[int]]:
    """A ledger's life on a recording disk, and its content after each transaction."""
    folder = volume / "life"
    folder.mkdir()
    disk = Disk()
    contents: list[int] = []
    with disk.recording():
        ledger = Ledger.open(folder / "ledger.db")
        contents.append(content(ledger))
        disk.events.append(Committed(0))
        for number, step in enumerate(steps_of_a_life(seed), start=1):
            write(ledger, step)
            contents.append(content(ledger))
            disk.events.append(Committed(number))
            if number % RESTART_EVERY == 0:
                close(ledger)
                ledger = Ledger.open(folder / "ledger.db")
        close(ledger)
    return disk, contents


def verdicts(
    volume: Path, disk: Disk, contents: list[int], count: int, *, seed: int, syncs_lie: bool = False
) -> Counter[str]:
    """What becomes of the ledger after each of `count` power cuts."""
    folder = volume / "wreck"
    folder.mkdir()
    found: Counter[str] = Counter()
    for wreck in power_cuts(disk.events, count, random.Random(seed), syncs_lie=syncs_lie):
        put(folder, wreck.files)
        try:
            ledger = Ledger.open(folder / "ledger.db")
        except LedgerError:
            found["cannot be opened"] += 1
            continue
        try:
            if integrity(ledger._connection) != "ok":
                found["corrupt"] += 1
            elif content(ledger) not in contents[wreck.committed : wreck.committed + 2]:
                found["lost"] += 1
            elif untrue_or_damaged(ledger):
                found["wrong"] += 1
            else:
                found["fine"] += 1
        except LedgerError:
            found["corrupt"] += 1
        finally:
            close(ledger)
    return found


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(each, marks=pytest.mark.soak) for each in range(2, 12))])
def test_a_power_cut_loses_nothing_that_was_committed_and_invents_nothing(volume: Path, seed: int) -> None:
    disk, contents = live(volume, seed)

    assert verdicts(volume, disk, contents, 500, seed=seed) == {"fine": 500}


def test_a_ledger_that_survived_a_power_cut_goes_on(volume: Path) -> None:
    disk, contents = live(volume, 5)
    folder = volume / "wreck"
    folder.mkdir()
    chance = random.Random(5)
    for wreck in power_cuts(disk.events, 60, chance):
        put(folder, wreck.files)
        ledger = Ledger.open(folder / "ledger.db")
        for step in [*first_steps(), *islice(later_steps(chance), 10)]:
            write(ledger, step)
        expected = content(ledger)
        close(ledger)

        again = Ledger.open(folder / "ledger.db")
        assert content(again) == expected != contents[wreck.committed]
        assert untrue_or_damaged(again) == []
        close(again)


def test_these_power_cuts_would_show_a_ledger_that_does_not_sync_its_commits(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_PRAGMAS", {**file._PRAGMAS, "synchronous": 1})
    disk, contents = live(volume, 1)

    found = verdicts(volume, disk, contents, 120, seed=1)

    assert found["lost"] > 40
    assert found["corrupt"] == found["wrong"] == 0


def test_these_power_cuts_would_show_a_disk_that_lies_about_its_syncs(volume: Path) -> None:
    disk, contents = live(volume, 1)

    found = verdicts(volume, disk, contents, 120, seed=1, syncs_lie=True)

    assert found["fine"] < 40
    assert found["cannot be opened"] + found["corrupt"] > 40


def test_these_power_cuts_meet_everything_that_a_ledger_does(volume: Path) -> None:
    disk, contents = live(volume, 1)
    kinds = Counter((type(event).__name__, getattr(event, "file", "")) for event in disk.events)

    assert kinds["Sync", "ledger.db"] > 3  # checkpoints
    assert kinds["Sync", "ledger.db-wal"] > STEPS  # commits
    assert kinds["Delete", "ledger.db-wal"] > 2  # restarts
    assert kinds["Truncate", "ledger.db"] > 0  # pages given back to the volume
    assert len(set(contents)) > 0.8 * len(contents)


def failing(what: str, number: int, *, once: bool) -> Fault:
    """The `number`-th write or sync fails, and unless `once` all behind it."""
    calls = itertools.count(1)

    def fault(called: str, _file: str) -> None:
        if called == what and ((call := next(calls)) == number or (call > number and not once)):
            raise apsw.IOError

    return fault


def live_until_told(ledger: Ledger, steps: Sequence[Verb]) -> int:
    """Go on until the ledger cannot; how many steps were done."""
    for done, step in enumerate(steps):
        try:
            write(ledger, step)
        except LedgerUnusableError:
            return done
    return len(steps)


@pytest.mark.parametrize("what", ["write", "sync"])
@pytest.mark.parametrize("once", [True, False])
def test_a_disk_that_fails_is_told_and_what_was_committed_is_there_afterwards(
    volume: Path, what: str, *, once: bool
) -> None:
    steps = steps_of_a_life(3, 30)
    _, contents = live(volume, 3)
    ends: list[int] = []
    for number in range(1, 20):
        folder = volume / f"{number}"
        folder.mkdir()
        disk = Disk()
        with disk.recording():
            ledger = Ledger.open(folder / "ledger.db")
            disk.fault = failing(what, number, once=once)
            ends.append(live_until_told(ledger, steps))
            with contextlib.suppress(LedgerUnusableError):
                close(ledger)

        again = Ledger.open(folder / "ledger.db")
        assert integrity(again._connection) == "ok"
        # The transaction that failed may be there: all of it was written when the sync behind it failed.
        assert content(again) in contents[ends[-1] : ends[-1] + 2]
        close(again)
    assert len(set(ends)) > 3
    assert max(ends) < len(steps)
