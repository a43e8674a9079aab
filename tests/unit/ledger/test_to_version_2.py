import re
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from tests.unit.ledger.fleet import NOW, acknowledge_all, content, pending_ids, whole_queue
from tests.unit.ledger.version_1 import SCHEMA_1, rows, turn_into_version_1, version, watch_migration, write_everything
from worker.errors import LedgerDamagedError, LedgerFullError, LedgerUnusableError
from worker.ledger import Ledger, delivery, migrations, register_destinations
from worker.ledger.migrations import CURRENT_VERSION

SEGMENT = 3  # of the columns of delivery
STATE = 2

ROWS = 100_000


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    """A ledger of today with rows of every kind."""
    path = tmp_path / "written.db"
    await write_everything(path)
    return path


@pytest.fixture
def old(written: Path, path: Path) -> Path:
    """The same ledger as version 1 wrote it."""
    turn_into_version_1(written, path)
    return path


@pytest.fixture
def hooks() -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Watches the migration of every ledger that is opened from then on."""
    before = list(apsw.connection_hooks)

    def watch(observe: Callable[[str], None]) -> None:
        apsw.connection_hooks = [*before, lambda connection: watch_migration(connection, observe)]

    yield watch
    apsw.connection_hooks = before


def copy_of(path: Path, untouched: bytes) -> None:
    path.write_bytes(untouched)


def schema(path: Path) -> set[tuple[object, ...]]:
    connection = apsw.Connection(str(path))
    found = set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))
    connection.close()
    return found


def found_wrong(connection: apsw.Connection) -> list[tuple[object, ...]]:
    return [*connection.execute("PRAGMA foreign_key_check"), *connection.execute("PRAGMA integrity_check")]


def without_segment(row: tuple[object, ...]) -> tuple[object, ...]:
    return (*row[:SEGMENT], *row[SEGMENT + 1 :])


def of_state(deliveries: list[tuple[object, ...]], *, pending: bool) -> list[tuple[object, ...]]:
    return [row for row in deliveries if (row[STATE] == "pending") is pending]


def test_the_old_ledger_has_a_row_of_every_kind(old: Path) -> None:
    found = rows(old)

    assert version(old) == 1
    assert all(found.values())
    states = re.findall(r"state IN \(([^)]*)\)\),\n    segment", SCHEMA_1.read_text())
    assert {f"'{row[STATE]}'" for row in found["delivery"]} == set(states[0].split(", "))
    assert {row[1] for row in found["destination"]} == {"prom", "mimir", "old"}


async def test_its_schema_is_that_of_a_new_ledger_to_the_letter(old: Path, tmp_path: Path) -> None:
    await Ledger.open(old).close()
    await Ledger.open(tmp_path / "new.db").close()

    assert version(old) == version(tmp_path / "new.db") == CURRENT_VERSION
    assert schema(old) == schema(tmp_path / "new.db")


async def test_every_row_is_kept(old: Path, written: Path) -> None:
    before = rows(old)
    await Ledger.open(old).close()

    after, today = rows(old), rows(written)
    assert after.pop("refusal") == []
    del today["refusal"]
    jobs_before, jobs_after = before["job"], after.pop("job")
    del today["job"]
    # A job got its progress and whether it was to be cancelled before its last two columns.
    assert [row[:7] for row in jobs_after] == [row[:7] for row in jobs_before]
    assert {row[7:9] for row in jobs_after} == {("{}", None)}
    assert [(row[9], row[10]) for row in jobs_after] == [
        (at, None if queued is None else f'{{"queued":{queued}}}') for *_, at, queued in jobs_before
    ]
    deliveries, deliveries_today = after.pop("delivery"), today.pop("delivery")
    assert after == today
    assert [without_segment(row) for row in deliveries] == [without_segment(row) for row in before["delivery"]]
    assert of_state(deliveries, pending=True) == of_state(deliveries_today, pending=True)
    assert of_state(deliveries, pending=False) == of_state(before["delivery"], pending=False)


async def test_nothing_points_nowhere_and_the_foreign_keys_are_enforced_again(old: Path) -> None:
    ledger = Ledger.open(old)

    assert found_wrong(ledger._connection) == [("ok",)]
    with pytest.raises(apsw.ConstraintError):
        ledger._connection.execute("UPDATE delivery SET destination_id = 99")
    deleted = ledger._connection.execute("DELETE FROM bucket RETURNING id").fetchall()
    assert deleted
    assert ledger._connection.execute("SELECT count(*) FROM delivery").get == 0
    await ledger.close()


@pytest.mark.parametrize("destination", ["prom", "mimir", "old"])
async def test_its_queues_hold_the_same_buckets_in_the_order_of_today(
    old: Path, written: Path, destination: str
) -> None:
    connection = apsw.Connection(str(old))
    before = connection.execute(
        "SELECT bucket_id FROM delivery WHERE destination_id = (SELECT id FROM destination WHERE name = ?) "
        "AND state = 'pending' ORDER BY segment, scope_id, start, bucket_id",
        (destination,),
    )
    ids_before = [number for (number,) in before]
    connection.close()
    migrated, today = Ledger.open(old), Ledger.open(written)

    ids = await pending_ids(migrated, destination)

    assert await whole_queue(migrated, destination) == await whole_queue(today, destination)
    assert set(ids) == set(ids_before)
    assert (ids == ids_before) is (destination == "mimir")
    for ledger in (migrated, today):
        await ledger.close()


async def test_the_destinations_have_the_segments_of_today(old: Path) -> None:
    ledger = Ledger.open(old)
    before = ledger._connection.execute("SELECT name, segment_seconds FROM destination ORDER BY name").fetchall()

    await ledger.write(register_destinations, {"prom": False, "mimir": True, "old": False}, replay_since=NOW, now=NOW)

    assert before == [("mimir", 1), ("old", delivery._SEGMENT_SECONDS), ("prom", delivery._SEGMENT_SECONDS)]
    assert (
        ledger._connection.execute("SELECT name, segment_seconds FROM destination ORDER BY name").fetchall() == before
    )
    await ledger.close()


async def test_what_waited_can_be_delivered(old: Path) -> None:
    ledger = Ledger.open(old)

    for destination in ("prom", "mimir"):
        assert await pending_ids(ledger, destination)
        await acknowledge_all(ledger, destination)
        assert await pending_ids(ledger, destination) == []
    await ledger.close()


def statements_of_a_migration(copy: Path, hooks: Callable[[Callable[[str], None]], None]) -> list[str]:
    seen: list[str] = []
    hooks(seen.append)
    Ledger.open(copy)._close()
    return seen


async def test_an_error_at_any_statement_leaves_the_version_before_and_the_next_start_migrates_it(
    old: Path, tmp_path: Path, hooks: Callable[[Callable[[str], None]], None]
) -> None:
    before, schema_before, untouched = rows(old), schema(old), content(old)
    copy = tmp_path / "copy.db"
    copy.write_bytes(content(old))
    statements = statements_of_a_migration(copy, hooks)
    assert len(statements) > 10
    assert "DROP TABLE destination_1" in "".join(statements)

    for last in range(1, len(statements) + 1):
        seen = iter(range(1, last))

        def fail(_: str, seen: Iterator[int] = seen) -> None:
            if next(seen, None) is None:
                raise apsw.FullError

        hooks(fail)
        with pytest.raises(LedgerFullError):
            Ledger.open(old)
        hooks(lambda _: None)
        if version(old) == 1:
            assert schema(old) == schema_before
            assert rows(old) == before
        else:  # some steps were taken, and the next one was not begun
            assert version(old) < CURRENT_VERSION
            assert "job_2" not in rows(old)
            assert "bucket_key_3" not in {name for _, name, *_ in schema(old)}
            await Ledger.open(old).close()
            assert rows(old) == rows(copy)
            copy_of(old, untouched)

    await Ledger.open(old).close()
    assert version(old) == CURRENT_VERSION
    assert rows(old) == rows(copy)


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE delivery",
        "DROP INDEX delivery_queue",
        "ALTER TABLE delivery RENAME COLUMN start TO stark",
        "ALTER TABLE destination RENAME COLUMN segment_windows TO segment_seconds",
    ],
)
def test_tables_that_are_not_those_of_version_1_are_damage_and_stay_as_they_are(old: Path, damage: str) -> None:
    connection = apsw.Connection(str(old))
    connection.execute(damage)
    connection.close()
    before = schema(old)

    with pytest.raises(LedgerDamagedError, match=f"{old} is damaged: it cannot be brought to schema version 2"):
        Ledger.open(old)

    assert version(old) == 1
    assert schema(old) == before


@pytest.mark.parametrize("damage", ["DROP COLUMN captured_at", "ADD COLUMN colour TEXT"])
def test_a_table_of_buckets_that_is_not_that_of_version_1_is_damage(old: Path, damage: str) -> None:
    connection = apsw.Connection(str(old))
    connection.execute(f"ALTER TABLE bucket {damage}")
    connection.close()

    # A step gives it another text, which must not become that of a sound one.
    with pytest.raises(LedgerDamagedError, match=f"{old} is damaged: its schema lacks or has changed bucket"):
        Ledger.open(old)

    assert version(old) < CURRENT_VERSION


@pytest.mark.parametrize("opening", [Ledger.open_read_only, Ledger.open_to_ask])
def test_whoever_only_reads_or_asks_waits_for_the_worker(old: Path, opening: Callable[[Path], Ledger]) -> None:
    with pytest.raises(LedgerUnusableError, match=f"schema version 1; `cfrw run` brings it to {CURRENT_VERSION}"):
        opening(old)

    assert version(old) == 1


async def test_a_big_ledger_keeps_its_rows_and_is_read_once_in_order(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(SCHEMA_1.read_text())
    with connection:
        connection.execute(
            """
            PRAGMA user_version = 1;
            INSERT INTO dataset VALUES (1, 'http_requests');
            INSERT INTO scope VALUES (1, 'a', 'a', 'a', 'a', 'pro', 0, NULL);
            INSERT INTO destination (id, name, segment_windows) VALUES (1, 'prom', 32), (2, 'mimir', 1);
            WITH RECURSIVE minute (number) AS (
                SELECT 1 UNION ALL SELECT number + 1 FROM minute WHERE number < :rows / 2
            )
            INSERT INTO bucket
            SELECT number, 1, 1, 60, number * 60, 0, 0, x'', x'', 0 FROM minute;
            INSERT INTO delivery (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count)
            SELECT
                bucket.id, destination.id, iif(bucket.id % 2, 'pending', 'acknowledged'),
                start - start % (60 * segment_windows), 1, start, start + 60, 0
            FROM bucket CROSS JOIN destination
            """,
            {"rows": ROWS},
        )
        connection.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
    connection.close()

    ledger = Ledger.open(path)

    counted = "SELECT state, count(*) FROM delivery GROUP BY state ORDER BY state"
    assert ledger._connection.execute(counted).fetchall() == [("acknowledged", ROWS / 2), ("pending", ROWS / 2)]
    assert found_wrong(ledger._connection) == [("ok",)]
    await ledger.close()


def test_the_rows_are_copied_in_the_order_in_which_they_lie() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA_1.read_text())
    plans: list[str] = []

    def plan(statement: str) -> None:
        if statement.lstrip().startswith("INSERT INTO delivery"):
            connection.exec_trace = None
            plans.extend(str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))

    with connection:
        watch_migration(connection, plan)
        migrations.MIGRATIONS[0](connection)

    assert plans == ["SCAN old", "SEARCH destination USING INTEGER PRIMARY KEY (rowid=?)"]
