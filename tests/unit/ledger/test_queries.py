import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import worker.ledger
from worker.cloudflare import DATASETS
from worker.ledger.migrations import MIGRATIONS
from worker.ledger.session import QUERIES

FOLDER = Path(worker.ledger.__file__).parent

# Tables that grow with every window; the others have a row per zone, dataset, destination or repair.
GROWING = {"bucket", "delivery", "series", "hole"}

# Which statements an index is there for.
PURPOSE = {
    "bucket_by_start": {"enqueue_ended_since", "prune_buckets", "resend_plan", "enqueue_again"},
    "delivery_queue": {"pending", "reorder_queue", "expire", "backlogs", "delivery_counts"},
    "delivery_acknowledged": {"delivery_counts"},
    "delivery_undelivered": {"delivery_counts", "undelivered"},
    "delivery_by_job": {"resent"},
    "hole_by_start": {"prune_holes", "hole_counts"},
    "job_asked": {"oldest_asked_job"},
}

# These count what is in an index, or look at what there is little of.
WHOLE_INDEX = {"delivery_counts", "undelivered"}


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    with apsw.Connection(":memory:") as made:
        for step in MIGRATIONS:
            step(made)
        yield made


def plan(connection: apsw.Connection, name: str) -> list[str]:
    statement = QUERIES[name]
    named = dict.fromkeys(re.findall(r":(\w+)", statement), 0)
    bindings = named or (0,) * statement.count("?")
    return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)]


@pytest.mark.parametrize("name", QUERIES)
def test_every_statement_fits_the_schema(connection: apsw.Connection, name: str) -> None:
    plan(connection, name)


def test_no_two_statements_have_the_same_name() -> None:
    names = re.findall(r"-- name: (\w+)\n", (FOLDER / "queries.sql").read_text())

    assert sorted(names) == sorted(QUERIES)


def test_every_statement_is_used_and_every_one_used_exists() -> None:
    code = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    used = set(re.findall(r'(?:rows|value|number|many|change)\(\s*"(\w+)"|QUERIES\["(\w+)"\]', code))

    assert {first or second for first, second in used} == set(QUERIES)


def test_the_queue_is_read_as_a_range_of_its_index_and_never_sorted(connection: apsw.Connection) -> None:
    first, *rest = plan(connection, "pending")

    assert first == (
        "SEARCH queued USING COVERING INDEX delivery_queue"
        " (destination_id=? AND (segment,scope_id,start,bucket_id)>(?,?,?,?))"
    )
    assert "SEARCH delivery USING PRIMARY KEY (bucket_id=? AND destination_id=?)" in rest
    assert "SEARCH bucket USING INTEGER PRIMARY KEY (rowid=?)" in rest
    assert not any("TEMP B-TREE" in line or line.startswith("SCAN") for line in rest)


def test_every_index_serves_the_statements_it_was_made_for(connection: apsw.Connection) -> None:
    indexes = {
        name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql != ''")
    }
    plans = {name: plan(connection, name) for name in QUERIES}

    assert {
        index: {name for name, lines in plans.items() if any(re.search(rf"\b{index}\b", line) for line in lines)}
        for index in indexes
    } == PURPOSE


@pytest.mark.parametrize("name", sorted(set(QUERIES) - WHOLE_INDEX))
def test_no_statement_goes_through_a_table_that_grows(connection: apsw.Connection, name: str) -> None:
    scanned = {line.split()[1] for line in plan(connection, name) if line.startswith("SCAN")}

    assert not scanned & GROWING


@pytest.mark.parametrize("name", sorted(WHOLE_INDEX))
def test_what_counts_goes_through_an_index_at_most(connection: apsw.Connection, name: str) -> None:
    scans = [line for line in plan(connection, name) if line.startswith("SCAN") and line.split()[1] in GROWING]

    assert scans
    assert all("INDEX" in line for line in scans)


def test_no_dataset_has_longer_windows_than_the_statements_rely_on() -> None:
    assert max(width for dataset in DATASETS.values() for width in dataset.widths_seconds) <= 86_400


@pytest.mark.parametrize("name", ["acknowledge", "decide_against"])
def test_a_decision_seeks_the_rows_it_is_about(connection: apsw.Connection, name: str) -> None:
    assert "SEARCH delivery USING PRIMARY KEY (bucket_id=? AND destination_id=?)" in plan(connection, name)
