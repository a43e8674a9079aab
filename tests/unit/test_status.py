from dataclasses import replace

import pytest
from msgspec import structs

from tests.reports import DATASET, DENIED, NOW, REPORT, SCOPE
from worker.status import part_of_scopes, worst_first, worth_a_row


def test_the_scopes_that_need_attention_come_first() -> None:
    scopes = (
        structs.replace(SCOPE, name="b"),
        structs.replace(SCOPE, name="a"),
        structs.replace(SCOPE, name="stale", newest_window_end=NOW - 9000),
        structs.replace(SCOPE, name="never", newest_window_end=None),
        structs.replace(SCOPE, name="two missing", missing=2),
        structs.replace(SCOPE, name="ten missing", missing=10),
    )

    ordered = worst_first(replace(REPORT, scopes=scopes)).scopes

    assert [scope.name for scope in ordered] == ["ten missing", "two missing", "never", "stale", "a", "b"]


def test_the_datasets_and_the_denials_that_matter_come_first() -> None:
    names = {"fine": (0, 0), "a fine one": (0, 0), "denied": (0, 5), "missing": (1, 0)}
    datasets = tuple(
        replace(DATASET, dataset=name, missing=missing, scopes_denied=denied)
        for name, (missing, denied) in names.items()
    )
    denied = (replace(DENIED, dataset="a"), replace(DENIED, dataset="c", scope_count=7), replace(DENIED, dataset="b"))

    ordered = worst_first(replace(REPORT, datasets=datasets, denied=denied))

    assert [each.dataset for each in ordered.datasets] == ["missing", "denied", "a fine one", "fine"]
    assert [each.dataset for each in ordered.denied] == ["c", "a", "b"]


def test_of_several_datasets_only_what_is_missing_is_worth_a_row() -> None:
    scopes = (SCOPE, structs.replace(SCOPE, name="lacking", missing=1))

    assert worth_a_row(replace(REPORT, scopes=scopes)) == scopes
    assert worth_a_row(replace(REPORT, scopes=scopes, datasets=(DATASET, DATASET))) == scopes[1:]


@pytest.mark.parametrize(
    ("offset", "limit", "names"),
    [(0, None, "abc"), (1, None, "bc"), (0, 2, "ab"), (1, 1, "b"), (0, 0, ""), (3, 5, ""), (0, 99, "abc")],
)
def test_a_part_of_the_scopes_can_be_had(offset: int, limit: int | None, names: str) -> None:
    denied = replace(
        DENIED, scope_count=3, scopes=tuple(structs.replace(DENIED.scopes[0], name=name) for name in "abc")
    )
    scopes = tuple(structs.replace(SCOPE, name=name) for name in "abc")
    report = replace(REPORT, scope_count=3, scopes=scopes, denied=(denied, denied))

    part = part_of_scopes(report, offset, limit)

    assert "".join(scope.name for scope in part.scopes) == names
    assert part.scope_count == 3
    assert ["".join(scope.name for scope in each.scopes) for each in part.denied] == [names, names]
    assert [each.scope_count for each in part.denied] == [3, 3]


def test_a_report_of_a_large_fleet_is_not_spelt_out_by_whoever_runs_what_makes_it() -> None:
    many = structs.replace(SCOPE, name="one-of-many.example")
    assert many.name not in repr(replace(REPORT, scopes=(many,)))
    assert DENIED.reason not in repr(replace(REPORT, denied=(DENIED,)))
