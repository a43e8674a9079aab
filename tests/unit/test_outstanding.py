import itertools
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloudflare.datasets import KV_STORED
from tests.unit.cloudflare.fake import tag, zone
from worker.cloudflare import WINDOWS_PER_QUERY, Account, Dataset, Scope, Zone, shipped
from worker.outstanding import Outstanding, Query, Runs, Worklist, next_round

HOUR = 3600
ROLLUPS = shipped()["http_requests"]


def flat(runs: Runs) -> list[int]:
    """Every start, through the runs' own front door."""
    starts: list[int] = []
    while run := runs.first_run:
        starts += run
        runs.discard(run)
    return starts


@given(
    present=st.sets(st.integers(0, 40)),
    gone=st.lists(st.integers(-3, 45)),
    first=st.none() | st.integers(0, 41 * 60),
)
def test_runs_hold_what_a_set_of_starts_would_hold(present: set[int], gone: list[int], first: int | None) -> None:
    runs = Runs(range(60 * number, 60 * number + 60, 60) for number in sorted(present))
    expected = {60 * number for number in present} - {60 * number for number in gone}
    runs.discard(60 * number for number in gone)
    if first is not None:
        runs.discard_before(first)
        expected = {start for start in expected if start >= first}
    assert len(runs) == len(expected)
    assert flat(runs) == sorted(expected)


def test_windows_without_a_gap_are_one_run_however_they_came() -> None:
    runs = Runs([range(0, 120, 60), range(120, 600, 60)])
    runs.append(range(600, 660, 60))
    assert runs.first_run == range(0, 660, 60)


def worklist(dataset: Dataset, scopes: Mapping[Scope, Sequence[int]]) -> Worklist:
    made = Worklist(dataset, HOUR, 600)
    for scope, hours in scopes.items():
        windows = Runs(range(HOUR * hour, HOUR * hour + HOUR, HOUR) for hour in hours)
        made.outstanding[scope.tag] = Outstanding(windows)
    return made


def asked(queries: list[Query]) -> list[tuple[tuple[str, ...], tuple[str, ...], range]]:
    return [
        (tuple(worklist.dataset.name for worklist in query.worklists), tuple(s.tag for s in query.scopes), query.starts)
        for query in queries
    ]


def scopes_of(*worklists: Worklist, known: list[Scope]) -> dict[str, Scope]:
    return {scope.tag: scope for scope in known if any(scope.tag in each.outstanding for each in worklists)}


def test_where_accounts_are_counted_a_query_asks_for_zones_of_one() -> None:
    zones: list[Scope] = [Zone(tag(number), f"z{number}", tag(0xA00 + number % 2)) for number in range(24)]
    made = worklist(ROLLUPS, dict.fromkeys(zones, (5,)))
    found = next_round([made], {each.tag: each for each in zones}, 0.0, are_accounts_apart=True)
    assert [len(query.scopes) for query in found] == [10, 2, 10, 2]
    assert all(len({scope.account_tag for scope in query.scopes}) == 1 for query in found)


def test_datasets_and_zones_that_lack_the_same_windows_travel_together() -> None:
    other = Dataset("other", "Another.", ROLLUPS.grains, ROLLUPS.totals)
    zones: list[Scope] = [zone(number) for number in range(12)]
    lists = [worklist(each, dict.fromkeys(zones, (5, 6, 7))) for each in (ROLLUPS, other)]
    run = range(5 * HOUR, 8 * HOUR, HOUR)
    names = ("http_requests", "other")
    assert asked(next_round(lists, scopes_of(*lists, known=zones), 0.0)) == [
        (names, tuple(each.tag for each in zones[:10]), run),
        (names, tuple(each.tag for each in zones[10:]), run),
    ]


def test_a_dataset_that_lacks_older_windows_goes_first_and_alone() -> None:
    other = Dataset("other", "Another.", ROLLUPS.grains, ROLLUPS.totals)
    lists = [worklist(ROLLUPS, {zone(1): [5]}), worklist(other, {zone(1): [3, 5]})]
    assert asked(next_round(lists, scopes_of(*lists, known=[zone(1)]), 0.0)) == [
        (("other",), (zone(1).tag,), range(3 * HOUR, 4 * HOUR, HOUR)),
        (("http_requests",), (zone(1).tag,), range(5 * HOUR, 6 * HOUR, HOUR)),
    ]


def test_accounts_are_asked_one_by_one_and_never_with_zones() -> None:
    accounts: list[Scope] = [Account(f"{number:032x}", f"Account {number}") for number in (101, 102)]
    lists = [worklist(ROLLUPS, {zone(1): [5]}), worklist(KV_STORED, dict.fromkeys(accounts, (5,)))]
    found = asked(next_round(lists, scopes_of(*lists, known=[zone(1), *accounts]), 0.0))
    assert sorted(tags for _, tags, _ in found) == sorted([(zone(1).tag,), (accounts[0].tag,), (accounts[1].tag,)])


def test_what_is_held_is_left_out_and_what_had_no_answer_comes_last_and_alone() -> None:
    zones = [zone(number) for number in range(5)]
    made = worklist(ROLLUPS, dict.fromkeys(zones, (5,)))
    made.outstanding[zones[0].tag].held_until = 10.0
    for unanswered in zones[1:3]:
        made.outstanding[unanswered.tag].unanswered = 1
    found = next_round([made], {each.tag: each for each in zones}, 9.0)
    assert [(query.is_retry, [each.name for each in query.scopes]) for query in found] == [
        (False, [zones[3].name, zones[4].name]),
        (True, [zones[1].name]),
        (True, [zones[2].name]),
    ]


@given(
    st.dictionaries(st.integers(0, 14), st.sets(st.integers(0, 150), min_size=1), min_size=1),
    st.lists(st.integers(0, 14)),
)
def test_every_scope_is_asked_once_for_its_oldest_windows_and_for_nothing_else(
    hours_of: dict[int, set[int]], unanswered: list[int]
) -> None:
    zones: dict[Scope, list[int]] = {zone(number): sorted(hours) for number, hours in hours_of.items()}
    made = worklist(ROLLUPS, zones)
    for number in set(unanswered) & set(hours_of):
        made.outstanding[zone(number).tag].unanswered = 1
    queries = next_round([made], {each.tag: each for each in zones}, 0.0)
    once = [scope for query in queries for scope in query.scopes]
    assert sorted(once, key=lambda each: each.tag) == sorted(zones, key=lambda each: each.tag)
    for query in queries:
        assert 1 <= len(query.starts) <= WINDOWS_PER_QUERY
        for scope in query.scopes:
            assert isinstance(scope, Zone)
            assert query.starts.start == HOUR * zones[scope][0]
            assert {start // HOUR for start in query.starts} <= set(zones[scope])
    firsts = [(query.is_retry, query.starts.start) for query in queries]
    assert all(before <= after for before, after in itertools.pairwise(firsts))
