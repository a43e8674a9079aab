import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import worker.ledger
from worker.cloudflare import shipped
from worker.ledger.migrations import create
from worker.ledger.session import QUERIES

FOLDER = Path(worker.ledger.__file__).parent

# Tables that grow with every window; the others have a row per zone, dataset, destination or repair.
GROWING = {"bucket", "delivery", "series", "hole", "refusal", "reading", "part"}

# Which statements look for the buckets of a scope.
OF_A_SCOPE = {
    "end_of_other_widths",
    "settled_starts",
    "captured_between",
    "newest_timestamp",
    "windows_of_pair",
    "scope_reports",
    "newest_captured",
    "captured_scopes",
    "captured_buckets",
    "overlapping_widths",
}

# Those of them that have another order than by time.
SORTED = {"scope_reports", "captured_buckets"}

# Which statements an index is there for.
PURPOSE = {
    "bucket_by_start": {
        "covered",
        "newest_acknowledged",
        "enqueue_ended_since",
        "prune_buckets",
        "resend_plan",
        "resend_stamped_before",
        "captured_from",
    },
    "bucket_key": {
        *OF_A_SCOPE,
        "captured_content",
        "record_hole",
        "prune_chapters",
    },
    "delivery_queue": {
        "pending",
        "pending_between",
        "reorder_queue",
        "expire",
        "expire_too_old",
        "backlogs",
        "delivery_counts",
    },
    "delivery_acknowledged": {"delivery_counts", "newest_acknowledged"},
    "delivery_undelivered": {"delivery_counts", "undelivered", "not_delivered_between"},
    "delivery_by_job": {"resent", "pending_of_job", "not_delivered_of_job"},
    "staged_by_job": {"delete_unstaged", "give_up_staging", "staged"},
    "refusal_by_delivery": {"acknowledge", "captured_buckets", "forget_refusals", "refused_of"},
    "refusal_by_destination": {"newest_refusals", "refused_samples"},
    "hole_by_start": {"has_holes", "prune_holes", "hole_counts"},
    "job_open": {"open_jobs"},
    "reading_by_dataset": {"newest_readings"},
}

# These count what is in an index, or look at what there is little of.
WHOLE_INDEX = {"delivery_counts", "undelivered"}


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    with apsw.Connection(":memory:") as made:
        create(made)
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
    used = set(re.findall(r'(?:rows|row|value|number|number_of|many|change)\(\s*"(\w+)"|QUERIES\["(\w+)"\]', code))

    assert {first or second for first, second in used} == set(QUERIES)


def test_the_queue_is_read_as_a_range_of_its_index_and_never_sorted(connection: apsw.Connection) -> None:
    first, *rest = plan(connection, "pending")

    assert first == (
        "SEARCH queued USING COVERING INDEX delivery_queue"
        " (destination_id=? AND (segment,scope_id,start,bucket_id)>(?,?,?,?) AND segment<?)"
    )
    assert "SEARCH delivery USING PRIMARY KEY (bucket_id=? AND destination_id=?)" in rest
    assert "SEARCH bucket USING INTEGER PRIMARY KEY (rowid=?)" in rest
    assert (
        "SEARCH hole USING PRIMARY KEY (dataset_id=? AND scope_id=? AND width_seconds=? AND start>? AND start<?)"
        in rest
    )
    scanned = [line for line in rest if line.startswith("SCAN") and "json_each" not in line]
    assert not scanned
    assert not any("TEMP B-TREE" in line for line in rest)


@pytest.mark.parametrize("name", sorted(OF_A_SCOPE))
def test_the_buckets_of_a_scope_are_one_look_into_each_chapter(connection: apsw.Connection, name: str) -> None:
    lines = plan(connection, name)
    looks = [line for line in lines if " bucket_key " in line]

    assert looks
    assert all("(dataset_id=? AND width_seconds=? AND <expr>=? AND scope_id=?" in line for line in looks)
    assert any(line.startswith("SEARCH chapter USING PRIMARY KEY (dataset_id=?") for line in lines)
    # The newest one is found without reading the others.
    assert name in SORTED or not any("TEMP B-TREE FOR ORDER BY" in line for line in lines)


@pytest.mark.parametrize("name", ["settled_starts", "captured_between", "windows_of_pair", "captured_buckets"])
def test_chapters_of_another_time_are_not_looked_into(connection: apsw.Connection, name: str) -> None:
    assert any(re.search(r"SEARCH chapter .*width_seconds=\? AND number>\?", line) for line in plan(connection, name))


def test_the_widths_of_a_dataset_are_found_without_a_look_at_any_bucket(connection: apsw.Connection) -> None:
    # It is asked for every scope, also those without buckets, and of the time that is meant it knows nothing.
    assert plan(connection, "next_width") == ["SEARCH chapter USING PRIMARY KEY (dataset_id=? AND width_seconds>?)"]


def test_what_nobody_asked_to_be_passed_over_or_waited_for_costs_the_queue_nothing() -> None:
    # SQLite looks at the left side of an OR first: with NULL there it neither looks for holes nor makes a list.
    for parameter in (":without", ":waited_for_since"):
        assert f"({parameter} IS NULL OR " in QUERIES["pending"]


@pytest.mark.parametrize("name", ["expire", "expire_too_old"])
def test_what_is_given_up_for_its_age_is_a_range_of_the_queue(connection: apsw.Connection, name: str) -> None:
    assert any("INDEX delivery_queue (destination_id=? AND segment<?)" in line for line in plan(connection, name))


def test_until_when_windows_of_a_scope_are_expected_is_reckoned_once(connection: apsw.Connection) -> None:
    lines = plan(connection, "scope_reports")

    assert "MATERIALIZE bounds" in lines
    assert len([line for line in lines if "json_each" in line]) == 1


def test_the_newest_refusals_of_a_destination_are_found_without_sorting(connection: apsw.Connection) -> None:
    lines = plan(connection, "newest_refusals")

    assert "SEARCH refusal USING INDEX refusal_by_destination (destination_id=?)" in lines
    assert not any("TEMP B-TREE" in line for line in lines)


def test_no_state_is_forgotten_where_states_are_listed(connection: apsw.Connection) -> None:
    table, index = (
        connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).get
        for name in ("delivery", "delivery_undelivered")
    )
    (known,) = re.findall(r"CHECK \(([^)]*)\)", table)
    states = re.findall(r"state = '(\w+)'", known)
    decided = [state for state in states if state != "pending"]
    against = [state for state in decided if state != "acknowledged"]

    def compared(prefix: str) -> str:
        return " OR ".join(f"{prefix}state = '{state}'" for state in against)

    assert set(states) == {"pending", "acknowledged", "partial", "refused", "expired", "damaged"}
    assert "delivery.state NOT IN ({})".format(", ".join(f"'{state}'" for state in decided)) in QUERIES["pending"]
    assert index.endswith(f"WHERE {compared('')}")
    assert f"WHERE {compared('')}\n" in QUERIES["delivery_counts"]
    assert f"WHERE {compared('delivery.')}\n" in QUERIES["undelivered"]
    assert f"AND ({compared('delivery.')})\n" in QUERIES["not_delivered_between"]


def test_no_list_is_made_anew_for_every_bucket_that_is_acknowledged(connection: apsw.Connection) -> None:
    bindings = dict.fromkeys(("destination_id", "bucket_ids", "parts", "now"))
    operations = [row[1] for row in connection.execute(f"EXPLAIN {QUERIES['acknowledge']}", bindings)]

    # The ids that are given, and the rows that they find.
    assert operations.count("OpenEphemeral") == 2


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
    assert max(width for dataset in shipped().values() for width in dataset.widths_seconds) <= 86_400


@pytest.mark.parametrize("name", ["acknowledge", "decide_against"])
def test_a_decision_seeks_the_rows_it_is_about(connection: apsw.Connection, name: str) -> None:
    assert "SEARCH delivery USING PRIMARY KEY (bucket_id=? AND destination_id=?)" in plan(connection, name)
