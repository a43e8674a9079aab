from tests.clocks import ManualClock
from tests.unit.cloudflare.datasets import HTTP_CACHE, HTTP_REQUESTS, KV_STORED, WORKERS
from tests.unit.cloudflare.fake import zone
from worker.cloudflare import WINDOWS_PER_QUERY, ZONES_PER_QUERY, ApiFailure, Entitlement, ErrorKind, Narrowed
from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.limits import Limits
from worker.cloudflare.part import Part, pieces
from worker.cloudflare.query import Source

MINUTES, HALF_HOURS, HOURS = (Source(HTTP_REQUESTS, HTTP_REQUESTS.grain(width)) for width in (60, 1800, 3600))
CACHE, KV, WORKERS_MINUTES = (Source(dataset, dataset.grain(60)) for dataset in (HTTP_CACHE, KV_STORED, WORKERS))
A, B, C = zone(1), zone(2), zone(3)


def test_what_was_never_refused_has_the_documented_limits() -> None:
    limits = Limits(ManualClock())
    assert limits.scopes_per_query(ScopeKind.ZONE) == ZONES_PER_QUERY
    assert limits.windows_per_query(MINUTES, A) == WINDOWS_PER_QUERY
    assert limits.dropped_fields(MINUTES, A) == frozenset()
    assert limits.denial(MINUTES, A) is None


def test_a_span_holds_for_every_width_of_its_node_and_only_the_narrowest_counts() -> None:
    limits = Limits(ManualClock())
    for seconds in (7200, 3600, 54_000):
        limits.learn_span(MINUTES, A, seconds)
    assert limits.windows_per_query(MINUTES, A) == WINDOWS_PER_QUERY
    assert limits.windows_per_query(HALF_HOURS, A) == 2
    assert limits.windows_per_query(HOURS, A) == WINDOWS_PER_QUERY
    limits.learn_span(MINUTES, A, 59)
    assert limits.windows_per_query(MINUTES, A) == 1


def test_a_group_never_grows_by_learning_and_keeps_one_zone() -> None:
    limits = Limits(ManualClock())
    for zones, expected in ((5, 5), (8, 5), (0, 1)):
        limits.learn_zones_per_query(zones)
        assert limits.scopes_per_query(ScopeKind.ZONE) == expected


def test_a_field_that_is_unknown_or_already_dropped_teaches_nothing() -> None:
    limits = Limits(ManualClock())
    assert limits.learn_denied_field(MINUTES, A, "uniques")
    assert not limits.learn_denied_field(MINUTES, A, "uniques")
    assert not limits.learn_denied_field(MINUTES, A, "clientasn")
    assert limits.dropped_fields(MINUTES, A) == {"uniq_uniques"}
    assert limits.dropped_fields(MINUTES, B) == limits.dropped_fields(HOURS, A) == frozenset()


def test_the_last_field_is_not_dropped() -> None:
    limits = Limits(ManualClock())
    dataset = HTTP_REQUESTS.without(
        [item.field for item in HTTP_REQUESTS.totals[1:]] + [item.field for item in HTTP_REQUESTS.breakdowns]
    )
    assert not limits.learn_denied_field(Source(dataset, MINUTES.grain), A, "requests")
    assert limits.dropped_fields(MINUTES, A) == frozenset()


async def test_a_denial_lasts_as_long_as_its_kind_suggests() -> None:
    for failure, seconds in (
        (ApiFailure(ErrorKind.PLAN_DATASET, ""), 3600),
        (ApiFailure(ErrorKind.PLAN_FIELD, ""), 3600),
        (ApiFailure(ErrorKind.AUTH_SCOPE, ""), 300),
        (ApiFailure(ErrorKind.REFUSED, ""), 300),
        (ApiFailure(ErrorKind.RATE, ""), 300),
        (ApiFailure(ErrorKind.RATE, "", retry_after_seconds=20), 20),
        (ApiFailure(ErrorKind.SERVER, ""), 0),
        (ApiFailure(ErrorKind.RETENTION, ""), 0),
    ):
        clock = ManualClock()
        limits = Limits(clock)
        limits.learn_denial(MINUTES, A, failure)
        assert limits.denial(MINUTES, B) is None
        assert limits.denial(HOURS, A) is None
        if seconds:
            await clock.advance(seconds - 1)
            denial = limits.denial(MINUTES, A)
            assert denial is not None
            assert (denial.kind, denial.retry_after_seconds) == (failure.kind, 1)
            await clock.advance(1)
        assert limits.denial(MINUTES, A) is None


def test_a_query_for_accounts_asks_for_one() -> None:
    limits = Limits(ManualClock())
    limits.learn_zones_per_query(7)
    assert limits.scopes_per_query(ScopeKind.ACCOUNT) == 1


def test_the_ceiling_of_nodes_never_grows_by_learning_and_keeps_one() -> None:
    limits = Limits(ManualClock())
    assert limits.nodes_per_query() == 100
    for nodes, expected in ((25, 25), (30, 25), (0, 1)):
        limits.learn_nodes_per_query(nodes)
        assert limits.nodes_per_query() == expected


def test_a_page_of_a_labelled_dataset_is_to_be_half_full_at_most() -> None:
    limits = Limits(ManualClock())
    assert limits.windows_per_query(CACHE, A) == WINDOWS_PER_QUERY  # 3 are kept: 15 rows are expected
    assert limits.windows_per_query(KV, A) == 32  # 100 rows are expected
    for rows, windows in ((200, 16), (100, 16), (1500, 2), (20_000, 1)):
        limits.learn_rows_per_window(CACHE, rows)
        assert limits.windows_per_query(CACHE, A) == windows
    assert limits.windows_per_query(KV, A) == 32
    assert limits.windows_per_query(Source(HTTP_CACHE, HTTP_CACHE.grain(3600)), A) == WINDOWS_PER_QUERY


def test_rows_that_were_seen_count_for_a_day_and_are_then_expected_as_at_first() -> None:
    limits = Limits(ManualClock())
    limits.learn_rows_per_window(KV, 2)
    assert limits.rows_per_window(KV) == 2
    limits.learn_rows_per_window(KV, 0)
    assert limits.rows_per_window(KV) == 2, "an empty window tells nothing of others"


def test_a_smaller_page_is_for_all_datasets_of_the_node() -> None:
    limits = Limits(ManualClock())
    assert limits.learn_page_rows(KV, A, 400)
    assert not limits.learn_page_rows(KV, A, 400)
    assert not limits.learn_page_rows(KV, A, 0)
    assert limits.page_rows(KV, A) == 400
    assert limits.windows_per_query(KV, A) == 2
    assert limits.page_rows(CACHE, A) == 10_000
    assert limits.learn_page_rows(MINUTES, A, 10)
    assert limits.windows_per_query(MINUTES, A) == 9, "one row more than windows is asked for"


def test_what_a_plan_allows_makes_only_its_own_scopes_queries_smaller_and_only_where_they_would_be_too_large() -> None:
    limits = Limits(ManualClock())
    for scope, rows, seconds in ((A, 10_000, 31 * 86_400), (B, 500, 3600), (C, 10_000, 31 * 86_400)):
        plan = Entitlement(enabled=True, max_page_rows=rows, max_duration_seconds=seconds)
        for source in (HOURS, CACHE):
            limits.learn_entitlement(source, scope, plan, Narrowed(source.dataset))

    assert [limits.windows_per_query(HOURS, scope) for scope in (A, B, C)] == [WINDOWS_PER_QUERY, 1, WINDOWS_PER_QUERY]
    assert [limits.page_rows(CACHE, scope) for scope in (A, B, C)] == [10_000, 500, 10_000]
    one, three = range(0, 3600, 3600), range(0, 3 * 3600, 3600)
    assert pieces(Part((HOURS,), (A, B, C), one), limits) == [Part((HOURS,), (A, B, C), one)]
    assert pieces(Part((HOURS,), (A, B, C), three), limits) == [
        Part((HOURS,), (A, C), three),
        *(Part((HOURS,), (B,), three[start : start + 1]) for start in range(3)),
    ]
    minute = range(0, 60, 60)
    assert pieces(Part((CACHE,), (A, B, C), minute), limits) == [
        Part((CACHE,), (A, C), minute),
        Part((CACHE,), (B,), minute),
    ]


def test_what_an_error_teaches_of_a_size_is_believed_of_scopes_whose_plans_allow_as_much() -> None:
    limits = Limits(ManualClock())
    plan = Entitlement(enabled=True, max_page_rows=10_000, max_duration_seconds=86_400)
    for scope in (A, B):
        limits.learn_entitlement(HOURS, scope, plan, Narrowed(HOURS.dataset))
    limits.learn_span(HOURS, A, 7200)
    assert limits.learn_page_rows(HOURS, A, 2)

    assert [limits.windows_per_query(HOURS, scope) for scope in (A, B, C)] == [1, 1, WINDOWS_PER_QUERY]
    assert limits.page_rows(HOURS, C) == 10_000


def test_without_a_time_dimension_there_is_one_window_in_a_query() -> None:
    assert Limits(ManualClock()).windows_per_query(WORKERS_MINUTES, A) == 1


async def test_a_dataset_without_an_answer_is_remembered_until_it_has_one_or_for_half_an_hour() -> None:
    clock = ManualClock()
    limits = Limits(clock)
    limits.learn_unanswered(CACHE)
    assert limits.is_unanswered(CACHE)
    assert not limits.is_unanswered(KV)
    limits.learn_answered(CACHE)
    assert not limits.is_unanswered(CACHE)
    limits.learn_unanswered(CACHE)
    await clock.advance(1800)
    assert not limits.is_unanswered(CACHE)
