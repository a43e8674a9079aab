import math

import pytest

from tests.truth import expected_content
from worker.demo.outcome import (
    Comparison,
    Outcome,
    ZoneCount,
    compare,
    comparison_line,
    true_samples,
    zone_counts,
)
from worker.ledger import ScopeReport
from worker.remote_write.decode import Labels
from worker.simulator.fleet import Fleet

# Tuesday 2025-06-17T15:00:00Z, and the Sunday before it.
WORKDAY = 1_750_172_400
SUNDAY = 1_749_999_600

UP: Labels = (("__name__", "cloudflare_zone_requests"), ("zone", "a"))
DOWN: Labels = (("__name__", "cloudflare_zone_threats"), ("zone", "a"))


def report(fleet: Fleet, place: int, **changes: int) -> ScopeReport:
    zone = fleet.zones[place]
    return ScopeReport(
        dataset="http_requests",
        tag=zone.tag,
        name=zone.name,
        account_name=zone.account.name,
        width_seconds=60,
        gone=False,
        expected=10,
        captured=changes.get("captured", 10),
        acknowledged=changes.get("acknowledged", 10),
        newest_end=None,
        holes=0,
        reason=None,
        detail=None,
    )


def outcome(*, missing: int = 0, comparison: Comparison | None = None) -> Outcome:
    return Outcome(
        receiver="Prometheus 3.5.3",
        zones=(ZoneCount("a.example", 10, 10, 10), ZoneCount("b.example", 10, 10, 10 - missing)),
        comparison=comparison or Comparison(compared=100),
        waiting_samples=40,
        drain_seconds=0.5,
    )


def test_a_window_that_was_captured_and_never_acknowledged_is_missing() -> None:
    fleet = Fleet(zones=1)
    (count,) = zone_counts(fleet, 10, [report(fleet, 0, captured=9, acknowledged=7)])
    assert count == ZoneCount("zone00001.example", 10, 9, 7)
    assert count.missing == 3


def test_every_window_of_a_zone_that_the_ledger_does_not_know_is_missing() -> None:
    fleet = Fleet(zones=2)
    counts = zone_counts(fleet, 10, [report(fleet, 1)])
    assert [count.missing for count in counts] == [10, 0]


def test_all_is_good_only_if_nothing_is_missing_and_everything_is_equal() -> None:
    assert outcome().is_good
    assert not outcome(missing=1).is_good
    assert not outcome(comparison=Comparison(compared=100, surplus=1)).is_good


def test_what_is_the_same_is_equal() -> None:
    samples = {UP: {0: 1.0, 60_000: 2.0}, DOWN: {0: 0.0}}
    assert compare(samples, samples) == Comparison(compared=3)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (
            {UP: {0: 1.0}, DOWN: {0: 0.0}},
            Comparison(
                compared=3,
                absent=1,
                example='cloudflare_zone_requests{zone="a"} at 1970-01-01T00:01:00Z is absent',
            ),
        ),
        (
            {UP: {0: 1.0, 60_000: math.nextafter(2.0, 3.0)}, DOWN: {0: 0.0}},
            Comparison(
                compared=3,
                different=1,
                example='cloudflare_zone_requests{zone="a"} at 1970-01-01T00:01:00Z is 2.0000000000000004, not 2',
            ),
        ),
        (
            {UP: {0: 1.0, 60_000: 2.0}, DOWN: {0: 0.0, 1: 0.0}},
            Comparison(
                compared=3,
                surplus=1,
                example='cloudflare_zone_threats{zone="a"} at 1970-01-01T00:00:00Z is not Cloudflare\'s',
            ),
        ),
    ],
    ids=["absent", "different", "surplus"],
)
def test_whatever_is_not_the_same_is_counted_and_named(
    stored: dict[Labels, dict[int, float]], found: Comparison
) -> None:
    assert compare({UP: {0: 1.0, 60_000: 2.0}, DOWN: {0: 0.0}}, stored) == found


def test_a_receiver_that_holds_nothing_lacks_everything() -> None:
    comparison = compare({UP: {0: 1.0, 60_000: 2.0}}, {})
    assert (comparison.compared, comparison.absent, comparison.is_equal) == (2, 2, False)


def test_one_line_says_how_many_were_compared() -> None:
    line = comparison_line("Prometheus 3.5.3", Comparison(compared=41_234))
    assert line == "Every sample in Prometheus 3.5.3 equals Cloudflare's number: 41,234 compared."


def test_one_line_says_what_is_not_equal() -> None:
    line = comparison_line("Prometheus 3.5.3", Comparison(10, absent=1, different=2, surplus=3, example="x is absent"))
    assert line == (
        "What Prometheus 3.5.3 holds is NOT what Cloudflare has: of 10 samples 1 are absent and 2 differ; "
        "3 are too many. For example, x is absent."
    )


@pytest.mark.parametrize("first", [WORKDAY, SUNDAY])
def test_the_truth_is_the_one_that_end_to_end_tests_expect(first: int) -> None:
    fleet = Fleet(zones=5)
    starts = range(first, first + 600, 60)
    expected = {
        tuple(sorted(labels)): by_time for labels, by_time in expected_content(fleet, fleet.zones, starts).items()
    }
    assert true_samples(fleet, starts, 60) == expected
