from dataclasses import replace

import pytest

from tests.reports import NOW, REPORT, SCOPE
from worker.status import part_of_scopes, worst_first


def test_the_scopes_that_need_attention_come_first() -> None:
    scopes = (
        replace(SCOPE, name="b"),
        replace(SCOPE, name="a"),
        replace(SCOPE, name="stale", newest_window_end=NOW - 9000),
        replace(SCOPE, name="never", newest_window_end=None),
        replace(SCOPE, name="two missing", missing=2),
        replace(SCOPE, name="ten missing", missing=10),
    )

    ordered = worst_first(replace(REPORT, scopes=scopes)).scopes

    assert [scope.name for scope in ordered] == ["ten missing", "two missing", "never", "stale", "a", "b"]


@pytest.mark.parametrize(
    ("offset", "limit", "names"),
    [(0, None, "abc"), (1, None, "bc"), (0, 2, "ab"), (1, 1, "b"), (0, 0, ""), (3, 5, ""), (0, 99, "abc")],
)
def test_a_part_of_the_scopes_can_be_had(offset: int, limit: int | None, names: str) -> None:
    report = replace(REPORT, scope_count=3, scopes=tuple(replace(SCOPE, name=name) for name in "abc"))

    part = part_of_scopes(report, offset, limit)

    assert "".join(scope.name for scope in part.scopes) == names
    assert part.scope_count == 3
