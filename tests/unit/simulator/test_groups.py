from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.simulator.asking import rows_of, whole
from tests.unit.simulator.entries import ENTRIES
from tests.unit.simulator.worlds import NOW, changed, enterprise, iso, world_of
from worker.cloudflare.catalogue import ScopeKind
from worker.simulator.execution import execute

FLEET = enterprise(zones=2)
WORLD = world_of(FLEET, datasets=ENTRIES)
ZONE = FLEET.zones[0].tag
HOUR = NOW - 7_200
DIMENSIONS = (
    "cacheStatus",
    "clientRequestHTTPHost",
    "date",
    "datetimeFiveMinutes",
    "datetimeHour",
    "edgeResponseStatus",
    "requestSource",
)
STATUSES = st.sampled_from([200, 404, 500])
CONDITIONS = st.one_of(
    st.builds("{{edgeResponseStatus_{}: {}}}".format, st.sampled_from(["geq", "gt", "leq", "lt", "neq"]), STATUSES),
    st.builds("{{edgeResponseStatus: {}}}".format, STATUSES),
    st.builds("{{edgeResponseStatus_{}: {}}}".format, st.sampled_from(["in", "notin"]), st.lists(STATUSES)),
    st.builds(
        '{{cacheStatus_{}: "{}"}}'.format, st.sampled_from(["geq", "lt", "like", "notlike"]), st.sampled_from("hm%")
    ),
)


def ask(dimensions: str, more: str = "{}", arguments: str = "limit: 10000", salt: str = "") -> list[dict[str, Any]]:
    grouped = f"dimensions {{ {dimensions} }}" if dimensions else ""
    fields = (
        f'rows: httpRequestsAdaptiveGroups({arguments}, filter: {{datetime_geq: "{iso(HOUR)}", '
        f'datetime_lt: "{iso(HOUR + 3_600)}", AND: [{more}]}}) {{ {grouped} count sum {{ edgeResponseBytes }} }}'
    )
    answer = execute(whole(ScopeKind.ZONE, [ZONE], fields), {}, None, changed(WORLD, salt=salt))
    return rows_of(answer)[ZONE]


def totals(rows: list[dict[str, Any]]) -> tuple[int, int]:
    return sum(row["count"] for row in rows), sum(row["sum"]["edgeResponseBytes"] for row in rows)


@settings(max_examples=40, deadline=None)
@given(dimensions=st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=4), condition=CONDITIONS)
def test_groups_by_whatever_dimensions_are_distinct_and_add_up_to_the_same(
    dimensions: list[str], condition: str
) -> None:
    rows = ask(" ".join(dimensions), condition)
    assert totals(rows) == totals(ask("", condition))
    values = [tuple(row["dimensions"].values()) for row in rows] if dimensions else []
    assert len(set(values)) == len(values)


@settings(max_examples=30, deadline=None)
@given(some=CONDITIONS, other=CONDITIONS)
def test_conditions_join_as_logic_has_it(some: str, other: str) -> None:
    requests = {
        name: totals(ask("", condition))[0]
        for name, condition in {
            "some": some,
            "other": other,
            "both": f"{{AND: [{some}, {other}]}}",
            "either": f"{{OR: [{some}, {other}]}}",
        }.items()
    }
    assert requests["either"] == requests["some"] + requests["other"] - requests["both"]


def test_rows_are_cut_at_the_limit_after_they_are_ordered() -> None:
    everything = ask("host: clientRequestHTTPHost")
    top = ask("host: clientRequestHTTPHost", arguments="limit: 5, orderBy: [count_DESC, clientRequestHTTPHost_ASC]")
    by_count = sorted(everything, key=lambda row: (-row["count"], row["dimensions"]["host"]))
    assert len(everything) > 5
    assert top == by_count[:5]


def test_rows_can_be_ordered_by_what_is_not_shown() -> None:
    rows = ask("", arguments="limit: 10000, orderBy: [datetimeFiveMinutes_ASC]")
    shown = ask("datetimeFiveMinutes", arguments="limit: 10000, orderBy: [datetimeFiveMinutes_ASC]")
    assert [row["count"] for row in rows] == [row["count"] for row in shown]
    assert len(rows) == 12


def test_rows_come_in_no_order_unless_one_is_asked_for() -> None:
    some, others = (ask("datetimeFiveMinutes", salt=salt) for salt in "ab")
    assert some != others
    equals = "limit: 10000, orderBy: [datetimeHour_ASC]"
    assert len({str(ask("datetimeFiveMinutes", arguments=equals, salt=salt)) for salt in "abcd"}) > 1
    assert len(some) == len(others)
    assert all(row in others for row in some)
