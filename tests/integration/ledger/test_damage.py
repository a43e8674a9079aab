import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ledger.history import close, put, write
from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    ask_for_resend,
    bucket,
    carry_out_next,
    refuse_whole,
    scope,
    tag,
    untrue_samples,
    window,
)
from worker.buckets import Batch
from worker.errors import LedgerDamagedError, LedgerUnusableError
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    Resend,
    acknowledge,
    backlogs,
    capture,
    delivery_counts,
    destination_reports,
    drifted_buckets,
    expire,
    hole_counts,
    jobs,
    log_requests,
    logged_requests,
    newest_captured,
    next_pending,
    note_failure,
    outstanding_windows,
    present_scopes,
    prune,
    record_holes,
    record_scopes,
    refusals,
    refused_samples,
    register_destinations,
    room,
    scope_reports,
    set_aside,
    undelivered,
)
from worker.ledger.session import Session

ZONES = (1, 2, 3)
HOURS = 30
DESTINATIONS = {"prom": False, "mimir": True}


def fill(session: Session) -> None:
    start(session)
    capture(session, [bucket(zone, hour, samples=20) for zone in ZONES for hour in range(HOURS)], NOW)
    capture(session, [bucket(1, 3, samples=20, wrong_by=1.0)], NOW)
    record_holes(session, [Hole(DATASET, tag(2), window(HOURS + 1), HoleReason.FAILED, "503 from Cloudflare")], NOW)
    acknowledge(session, "prom", range(1, 20), NOW)
    refuse_whole(session, "prom", [25, 26], reason="out of bounds")
    log_requests(session, "default", {"graphql": [NOW - second for second in range(50)]})
    note_failure(session, "mimir", "503 Service Unavailable", NOW)
    ask_for_resend(session, Resend(T0, T0 + 2 * HOUR), reason="the volume was lost", asked_by="ann@host", now=NOW)


def start(session: Session) -> None:
    """What a worker does first."""
    record_scopes(session, [scope(zone) for zone in ZONES], NOW)
    register_destinations(session, DESTINATIONS, replay_since=0, now=NOW)
    starts = range(T0, T0 + (HOURS + 2) * HOUR, HOUR)
    tags = [tag(zone) for zone in ZONES]
    outstanding_windows(session, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=starts)


@pytest.fixture
def healthy(volume: Path) -> dict[str, bytes]:
    """The file of a ledger in the middle of its work."""
    ledger = Ledger.open(volume / "ledger.db")
    write(ledger, fill)
    close(ledger)
    return {"ledger.db": (volume / "ledger.db").read_bytes()}


class EndlessError(Exception):
    """A queue hands out for ever what was decided on."""


def sent(session: Session, destination: str) -> Iterator[Batch]:
    """Deliver a queue as a pusher does."""
    for _ in range(2 * len(ZONES) * HOURS):
        pending = next_pending(session, destination, after=None, max_samples=200, one_window_per_series=False)
        if pending is None:
            return
        set_aside(session, destination, pending.damaged, NOW)
        yield pending.batch
        acknowledge(session, destination, [stored.bucket_id for stored in pending.batch.buckets], NOW)
    raise EndlessError


def work(session: Session) -> int:
    """Everything that a worker does with its ledger in a day; what is sent must be true. How much was set aside."""
    for look in (
        backlogs,
        delivery_counts,
        destination_reports,
        undelivered,
        refused_samples,
        newest_captured,
        drifted_buckets,
        room,
        present_scopes,
    ):
        look(session)
    start(session)
    hole_counts(session, since=T0)
    logged_requests(session, "default")
    jobs(session, newest=10)
    refusals(session, "prom", newest=10)
    for report in scope_reports(session, since=T0, final_until=NOW, with_deliveries=True):
        assert report.missing >= 0
    told = capture(session, [bucket(zone, hour, samples=20) for zone in ZONES for hour in (5, HOURS)], NOW)
    assert isinstance(told, Captured)
    carry_out_next(session, NOW)
    for destination in DESTINATIONS:
        for batch in sent(session, destination):
            assert untrue_samples(batch) == []
    aside = sum(report.buckets for report in undelivered(session) if report.state == "damaged")
    expire(session, ended_before=NOW, now=NOW)
    prune(session, ended_before=NOW)
    return aside


def verdict(folder: Path, files: dict[str, bytes]) -> str:
    """How a worker gets along with these files; what it sends is true in any case."""
    put(folder, files)
    try:
        ledger = Ledger.open(folder / "ledger.db")
    except (LedgerDamagedError, LedgerUnusableError):
        return "told when opened"
    try:
        aside = write(ledger, work)
    except (LedgerDamagedError, LedgerUnusableError):
        return "told at work"
    except EndlessError:
        return "endless"
    finally:
        close(ledger)
    return "set aside" if aside else "unnoticed"


def flipped(content: bytes, chance: random.Random) -> bytes:
    """One bit is not what it was. Not in the zeros between the rows of a page, where it would do no harm."""
    while not content[place := chance.randrange(len(content))]:
        pass
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_makes_the_ledger_send_what_is_not_true(
    volume: Path, healthy: dict[str, bytes], seed: int
) -> None:
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(150):
        found[verdict(volume, {"ledger.db": flipped(healthy["ledger.db"], chance)})] += 1

    assert found["set aside"] > 5
    assert found["told at work"] + found["told when opened"] > 5
    # One bit in ten thousand is in the key of a delivery and keeps SQLite from finding the row that it is to change.
    assert found["endless"] <= 1


def test_no_page_that_was_lost_makes_the_ledger_send_what_is_not_true(volume: Path, healthy: dict[str, bytes]) -> None:
    content = healthy["ledger.db"]
    page = int.from_bytes(content[16:18], "big")  # the size of a page, at its place in SQLite's header
    found = Counter(
        verdict(volume, {"ledger.db": content[:start] + bytes(page) + content[start + page :]})
        for start in range(0, len(content), page)
    )

    assert found["told when opened"] + found["told at work"] > len(content) / page / 2


def test_no_file_that_was_cut_off_makes_the_ledger_send_what_is_not_true(
    volume: Path, healthy: dict[str, bytes]
) -> None:
    chance = random.Random(1)
    content = healthy["ledger.db"]
    sizes = [len(content) * part // 10 for part in range(1, 10)] + [
        chance.randrange(1, len(content)) for _ in range(20)
    ]

    found = Counter(verdict(volume, {"ledger.db": content[:size]}) for size in sizes)

    assert found["told when opened"] + found["told at work"] == len(sizes)


@pytest.fixture
def interrupted(volume: Path) -> dict[str, bytes]:
    """The files of a ledger whose newest transactions are in its write-ahead log only."""
    path = volume / "ledger.db"
    ledger = Ledger.open(path)
    write(ledger, start)
    close(ledger)
    ledger = Ledger.open(path)
    write(ledger, fill)
    files = {name: (volume / name).read_bytes() for name in ("ledger.db", "ledger.db-wal")}
    close(ledger)
    return files


def test_a_write_ahead_log_that_is_damaged_ends_where_the_damage_begins(
    volume: Path, interrupted: dict[str, bytes]
) -> None:
    assert verdict(volume, interrupted) == "unnoticed"
    chance = random.Random(1)
    log = interrupted["ledger.db-wal"]
    damaged = [flipped(log, chance) for _ in range(80)]
    damaged += [log[: chance.randrange(len(log))] for _ in range(20)]

    found = Counter(verdict(volume, {**interrupted, "ledger.db-wal": each}) for each in damaged)

    # SQLite takes the transactions before the damage and none behind it.
    assert found == {"unnoticed": len(damaged)}


def test_a_write_ahead_log_that_was_deleted_takes_the_newest_transactions_with_it(
    volume: Path, interrupted: dict[str, bytes]
) -> None:
    put(volume, {"ledger.db": interrupted["ledger.db"]})
    ledger = Ledger.open(volume / "ledger.db")

    assert write(ledger, delivery_counts) == ()
    assert write(ledger, work) == 0
    close(ledger)


def test_the_damaged_file_is_left_for_whoever_looks_into_it(volume: Path, healthy: dict[str, bytes]) -> None:
    damaged = bytes(20_000) + healthy["ledger.db"][20_000:]

    assert verdict(volume, {"ledger.db": damaged}) == "told when opened"

    assert (volume / "ledger.db").read_bytes() == damaged
