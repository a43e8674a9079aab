import sys
from pathlib import Path

import pytest

from worker.cloudflare.catalogue import Catalogue, load
from worker.cloudflare.schema_check import Refusal, SchemaCheck, check_catalogue
from worker.errors import UsageError

SCHEMA = """
type Query { viewer: Viewer }
type Viewer { zones(filter: ZoneFilter): [Zone!] }
input ZoneFilter { zoneTag_in: [string!] }
type Zone { zoneTag: string!, hits(filter: HitsFilter!, limit: uint64!, orderBy: [Order!]): [Row!] }
input HitsFilter { datetime_geq: Time, datetime_lt: Time, date_geq: Date, date_lt: Date, kind: string }
enum Order { datetimeMinute_ASC, date_ASC, colo_ASC }
type Row { count: uint64!, sum: Sum, dimensions: Dimensions }
type Sum { bytes: uint64 }
type Dimensions { datetimeMinute: Time!, date: Date!, colo: string! }
scalar string
scalar uint64
scalar Time
scalar Date
"""

HITS = """
hits:
  help: Hits.
  scope: zone
  node: hits
  times: [datetimeMinute, date]
  where: {kind: real}
  labels: {colo: colo}
  top: {keep: 5, by: count}
  metrics:
    hits: {field: count, unit: requests, help: Hits.}
    hit_bytes: {field: sum.bytes, unit: bytes, help: Bytes.}
"""

EVERY = (60, 300, 900, 1800, 3600, 86400)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.graphql"
    file.write_text(SCHEMA)
    return file


def catalogue(text: str = HITS) -> Catalogue:
    found = load(text, "f")
    assert not isinstance(found, tuple)
    return found


def test_each_width_is_asked_for_whole_and_without_each_field(schema: Path) -> None:
    assert check_catalogue(catalogue(), schema) == SchemaCheck(datasets=1, queries=6 * 3, refusals=())


@pytest.mark.parametrize(
    ("old", "new", "widths", "reason"),
    [
        ("sum.bytes", "sum.bits", EVERY, "Cannot query field 'bits' on type 'Sum'."),
        ("colo: colo", "colo: coloCode", EVERY, "Cannot query field 'coloCode' on type 'Dimensions'."),
        (
            "kind: real",
            "kin: real",
            EVERY[:-1],
            "Expected value of type 'HitsFilter' not to include unknown field 'kin'",
        ),
        ("[datetimeMinute, ", "[datetimeHour, ", (3600,), "Cannot query field 'datetimeHour' on type 'Dimensions'."),
        ("node: hits", "node: hit", EVERY, "Cannot query field 'hit' on type 'Zone'."),
    ],
)
def test_what_the_schema_does_not_have_is_told_with_the_widths_that_ask_for_it(
    old: str, new: str, widths: tuple[int, ...], reason: str, schema: Path
) -> None:
    refusals = check_catalogue(catalogue(HITS.replace(old, new, 1)), schema).refusals
    found, *_ = [refusal for refusal in refusals if refusal.reason.startswith(reason)]
    assert found == Refusal("hits", widths, found.reason)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "is not a schema in GraphQL's language: Syntax Error"),
        (b"type Zone { a: Nothing }", "is not a schema in GraphQL's language: Zone fields cannot be resolved"),
        (b"scalar Time", "is a schema without queries"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_schema_is_a_mistake(content: bytes, problem: str, schema: Path) -> None:
    schema.write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        check_catalogue(catalogue(), schema)


def test_a_missing_file_or_library_is_told_in_a_line(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        check_catalogue(catalogue(), schema.with_name("none"))
    monkeypatch.setitem(sys.modules, "graphql", None)
    with pytest.raises(UsageError, match=r"needs graphql-core: install .* with the extra `simulator`"):
        check_catalogue(catalogue(), schema)
