from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import zone
from worker.cloudflare import WINDOWS_PER_QUERY, ZONES_PER_QUERY, ApiFailure, ErrorKind
from worker.cloudflare.catalogue import HTTP_REQUESTS
from worker.cloudflare.limits import Limits

MINUTES, HALF_HOURS, HOURS = (HTTP_REQUESTS.grain(width) for width in (60, 1800, 3600))
A, B = zone(1), zone(2)


def test_what_was_never_refused_has_the_documented_limits() -> None:
    limits = Limits(ManualClock())
    assert limits.zones_per_query(MINUTES) == ZONES_PER_QUERY
    assert limits.windows_per_query(MINUTES) == WINDOWS_PER_QUERY
    assert limits.dropped_fields(MINUTES, A) == frozenset()
    assert limits.denial(MINUTES, A) is None


def test_a_span_holds_for_every_width_of_its_node_and_only_the_narrowest_counts() -> None:
    limits = Limits(ManualClock())
    for seconds in (7200, 3600, 54_000):
        limits.learn_span(MINUTES, seconds)
    assert limits.windows_per_query(MINUTES) == WINDOWS_PER_QUERY
    assert limits.windows_per_query(HALF_HOURS) == 2
    assert limits.windows_per_query(HOURS) == WINDOWS_PER_QUERY
    limits.learn_span(MINUTES, 59)
    assert limits.windows_per_query(MINUTES) == 1


def test_a_group_never_grows_by_learning_and_keeps_one_zone() -> None:
    limits = Limits(ManualClock())
    for zones, expected in ((5, 5), (8, 5), (0, 1)):
        limits.learn_zones_per_query(MINUTES, zones)
        assert limits.zones_per_query(MINUTES) == expected


def test_a_field_that_is_unknown_or_already_dropped_teaches_nothing() -> None:
    limits = Limits(ManualClock())
    assert limits.learn_denied_field(HTTP_REQUESTS, MINUTES, A, "uniques")
    assert not limits.learn_denied_field(HTTP_REQUESTS, MINUTES, A, "uniques")
    assert not limits.learn_denied_field(HTTP_REQUESTS, MINUTES, A, "clientasn")
    assert limits.dropped_fields(MINUTES, A) == {"uniq_uniques"}
    assert limits.dropped_fields(MINUTES, B) == limits.dropped_fields(HOURS, A) == frozenset()


def test_the_last_field_is_not_dropped() -> None:
    limits = Limits(ManualClock())
    dataset = HTTP_REQUESTS.without(
        [item.field for item in HTTP_REQUESTS.totals[1:]] + [item.field for item in HTTP_REQUESTS.breakdowns]
    )
    assert not limits.learn_denied_field(dataset, MINUTES, A, "requests")
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
