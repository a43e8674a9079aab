"""A ledger as version 1 wrote it, made of one that today's code has written.

The rows are the same, so whatever a migration makes of them can be compared with the ledger they came from.
"""

from collections.abc import Callable
from pathlib import Path

import apsw

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    buckets,
    carry_out_next,
    minutes,
    pending_ids,
    refuse_whole,
    scope,
    tag,
    window,
)
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Resend,
    capture,
    expire,
    log_requests,
    note_failure,
    outstanding_windows,
    record_holes,
    record_scopes,
    register_destinations,
    set_aside,
)
from worker.ledger.migrations import APPLICATION_ID, pragma

# The text of worker/ledger/schema.sql at version 1.
SCHEMA_1 = Path(__file__).with_name("schema_1.sql")

DAY = 86_400


async def write_everything(path: Path) -> None:
    """A ledger of today with rows in every table and state that version 1 knew.

    `prom` takes windows in any order, `mimir` is strict, `old` was configured once. Minutes, hours and days wait at all
    of them.
    """
    ledger = Ledger.open(path)
    zones = (1, 2, 3)
    await ledger.write(record_scopes, [scope(zone) for zone in zones], NOW)
    destinations = {"prom": False, "mimir": True, "old": False}
    await ledger.write(register_destinations, destinations, replay_since=0, now=NOW)
    await ledger.write(
        outstanding_windows,
        dataset=DATASET,
        width_seconds=HOUR,
        tags=[tag(zone) for zone in zones],
        starts=range(T0, T0 + DAY, HOUR),
    )
    await ledger.write(capture, buckets(zones, range(-10, 0)), NOW)
    await ledger.write(expire, ended_before=T0 - 7 * HOUR, now=NOW)
    for destination in destinations:
        ids = await pending_ids(ledger, destination)
        await acknowledge_all(ledger, destination, ids[:6])
        await ledger.write(refuse_whole, destination, ids[6:8], status=400, reason="out of bounds")
        await ledger.write(set_aside, destination, ids[8:10], NOW)
        await ledger.write(note_failure, destination, "503", NOW)
    await ledger.write(capture, [bucket(zone, day * 24, width_seconds=DAY) for zone in zones for day in (-3, -2)], NOW)
    await ledger.write(capture, minutes(zones, range(100)), NOW)
    await ledger.write(capture, [bucket(zone, hour) for hour in range(2, 40) for zone in zones], NOW)
    await ledger.write(capture, [bucket(1, 2, wrong_by=1.0)], NOW)
    await ledger.write(record_holes, [Hole(DATASET, tag(1), window(90), HoleReason.FAILED, "503")], NOW)
    await ledger.write(log_requests, "default", {"graphql": [int(NOW)]})
    wanted = Resend(since=T0 - 8 * HOUR, until=T0 - 7 * HOUR)
    for _ in range(2):
        await ledger.write(ask_for_resend, wanted, reason="the volume was lost", asked_by="ann@host", now=NOW)
    await ledger.write(carry_out_next, NOW)
    await ledger.write(register_destinations, {"prom": False, "mimir": True}, replay_since=0, now=NOW)
    await ledger.close()


def turn_into_version_1(written: Path, path: Path) -> None:
    """Write the rows of a ledger of today as version 1 had them."""
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", 16_384)
    connection.pragma("auto_vacuum", 2)
    connection.pragma("journal_mode", "wal")
    connection.execute("ATTACH ? AS today", (str(written),))
    with connection:
        connection.execute(SCHEMA_1.read_text())
        connection.execute(f"PRAGMA user_version = 1; PRAGMA application_id = {APPLICATION_ID}")
        kept = connection.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in sorted(kept, key=lambda row: row == ("sqlite_sequence",)):
            connection.execute(f"DELETE FROM main.{table}")  # noqa: S608 - of the schema
            if table not in ("destination", "delivery", "job", "request_log"):
                connection.execute(f"INSERT INTO main.{table} SELECT * FROM today.{table}")  # noqa: S608 - of the schema
        connection.execute("""
            INSERT INTO main.request_log SELECT api, ended_at FROM today.request_log;
            INSERT INTO main.destination
            SELECT id, name, iif(segment_seconds = 1, 1, 32), gone_at, last_success_at, last_failure_at, last_failure
            FROM today.destination;
            INSERT INTO main.delivery
            SELECT
                bucket_id, destination_id, state, start - start % ((window_end - start) * segment_windows), scope_id,
                start, window_end, sample_count, job_id, decided_at, status, reason
            FROM today.delivery JOIN main.destination ON destination.id = delivery.destination_id;
            INSERT INTO main.job
            SELECT
                id, kind, json_remove(arguments, '$.metrics', '$.only_missing'), reason, asked_by, asked_at, state,
                finished_at, json_extract(result, '$.queued')
            FROM today.job
        """)
    connection.close()


def version(path: Path) -> int:
    """The version of the schema that a file says it has."""
    connection = apsw.Connection(str(path))
    found = pragma(connection, "user_version")
    connection.close()
    return found


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    connection = apsw.Connection(str(path))
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    found = {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}  # noqa: S608 - of the schema
    connection.close()
    return found


def watch_migration(connection: apsw.Connection, before: Callable[[str], None]) -> None:
    """Call `before` with every statement of a migration, before it is executed."""

    def tracer(_: object, statement: str, __: object) -> bool:
        if connection.in_transaction:
            before(statement)
        return True

    connection.exec_trace = tracer
