"""A life of a ledger in steps, each one transaction, and what it holds after each of them."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    ask_for_resend,
    bucket,
    carry_out_next,
    samples_of,
    scope,
    tag,
    true_value,
    window,
)
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Refusal,
    Resend,
    acknowledge,
    capture,
    expire,
    next_pending,
    outstanding_windows,
    prune,
    record_holes,
    record_scopes,
    refuse,
    register_destinations,
)
from worker.ledger.session import Session

ZONES = (1, 2, 3)

Verb = Callable[[Session], object]

T = TypeVar("T")


def write(ledger: Ledger, verb: Callable[[Session], T]) -> T:
    """What `Ledger.write` does, in the thread of the test."""
    return ledger._transact("IMMEDIATE", verb)


def close(ledger: Ledger) -> None:
    ledger._close()


def first_steps() -> list[Verb]:
    """A ledger learns its zones and destinations."""
    hours = range(T0, T0 + 24 * HOUR, HOUR)
    tags = [tag(zone) for zone in ZONES]
    return [
        lambda session: record_scopes(session, [scope(zone) for zone in ZONES], NOW),
        lambda session: register_destinations(session, {"prom": False, "mimir": True}, replay_since=0, now=NOW),
        lambda session: outstanding_windows(session, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=hours),
    ]


def later_steps(chance: random.Random) -> Iterator[Verb]:
    """Collection, delivery, upkeep and repairs for as long as one likes, in the mixture of a busy worker."""
    hour = 0
    while True:
        yield _capture(hour, 0.0)
        hour += 1
        others: list[Verb] = [
            _capture(hour - 1, 1.0),  # what Cloudflare answers later and differently
            _refuse,
            _hole(hour),
            _expire(hour - 12),
            _prune(hour - 24),
            _ask(hour),
            lambda session: carry_out_next(session, NOW),
        ]
        deliveries = [_acknowledge(destination, chance.randrange(1, 40)) for destination in ("prom", "mimir")]
        yield from chance.sample([*deliveries, chance.choice(others), chance.choice(others)], 3)


def _capture(hour: int, wrong_by: float) -> Verb:
    buckets = [bucket(zone, hour, samples=5, wrong_by=wrong_by) for zone in ZONES]
    return lambda session: capture(session, buckets, NOW)


def _acknowledge(destination: str, max_samples: int) -> Verb:
    def verb(session: Session) -> None:
        pending = next_pending(session, destination, after=None, max_samples=max_samples, one_window_per_series=False)
        if pending is not None:
            acknowledge(session, destination, [stored.bucket_id for stored in pending.batch.buckets], NOW)

    return verb


def _refuse(session: Session) -> None:
    pending = next_pending(session, "prom", after=None, max_samples=1, one_window_per_series=False)
    if pending is not None:
        stored = pending.batch.buckets
        refusals = [Refusal(each.bucket_id, each.series_ids[:4], 400, "out of bounds") for each in stored]
        partly = {each.bucket_id for each in stored if each.bucket_id % 2}
        refuse(session, "prom", refusals, partly=partly, now=NOW)


def _hole(hour: int) -> Verb:
    holes = [Hole(DATASET, tag(zone), window(hour), HoleReason.FAILED, "503 from Cloudflare") for zone in ZONES]
    return lambda session: record_holes(session, holes, NOW)


def _expire(hour: int) -> Verb:
    return lambda session: expire(session, ended_before=T0 + hour * HOUR, now=NOW)


def _prune(hour: int) -> Verb:
    return lambda session: prune(session, ended_before=T0 + hour * HOUR)


def _ask(hour: int) -> Verb:
    wanted = Resend(since=T0 + (hour - 3) * HOUR, until=T0 + hour * HOUR)
    return lambda session: ask_for_resend(session, wanted, reason="the volume was lost", asked_by="ann@host", now=NOW)


def content(ledger: Ledger) -> int:
    """A fingerprint of every row of every table."""
    connection = ledger._connection
    tables = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    ]
    return hash(tuple(row for table in tables for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")))  # noqa: S608 - names from the schema


def untrue_or_damaged(ledger: Ledger) -> list[object]:
    """Everything that any destination would be sent and that is not what was captured."""
    found: list[object] = []
    for destination in ("prom", "mimir"):
        pending = ledger._transact(
            "DEFERRED",
            partial(
                next_pending,
                destination=destination,
                after=None,
                max_samples=10**6,
                one_window_per_series=False,
            ),
        )
        if pending is not None:
            found += pending.damaged
            found += [each for each in samples_of(pending.batch) if true_value(each[0], each[1]) != each[2]]
    return found


def integrity(connection: apsw.Connection) -> str:
    """What SQLite itself finds wrong; "ok" where nothing is."""
    try:
        return "; ".join(str(line) for (line,) in connection.execute("PRAGMA integrity_check"))
    except apsw.CorruptError as error:
        return str(error)


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold exactly these files."""
    for old in folder.iterdir():
        if old.name not in files:
            old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
