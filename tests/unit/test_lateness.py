import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.lateness import FEWEST_WINDOWS, Advice, Comparison, compare, recommended_delay
from worker.ledger import Reading
from worker.series import label_block

DELAY = 600
AFTERS = (900, 3600, 21_600)


def series(name: str, **labels: str) -> bytes:
    return label_block(name, {"zone": "example.com", **labels})


REQUESTS = series("requests")
BYTES = {country: series("bytes", country=country) for country in ("DE", "FR", "JP")}
VISITORS = series("visitors")


# -------------------------------------------------------------------------------------------------------- comparing


def test_equal_answers_do_not_differ_whatever_their_order() -> None:
    captured = {REQUESTS: 10.0, BYTES["DE"]: 0.1, BYTES["FR"]: 0.2, BYTES["JP"]: 0.3}
    later = dict(reversed(captured.items()))
    assert compare(captured, later, ["requests", "bytes"]) == Comparison(0, {"requests": 0.0, "bytes": 0.0})


def test_a_total_is_compared_over_all_series_of_its_metric() -> None:
    captured = {REQUESTS: 10.0, BYTES["DE"]: 40.0, BYTES["FR"]: 60.0}
    later = {REQUESTS: 10.0, BYTES["DE"]: 50.0, BYTES["FR"]: 50.0, BYTES["JP"]: 25.0}
    assert compare(captured, later, ["requests", "bytes"]) == Comparison(3, {"requests": 0.0, "bytes": 0.25})


def test_a_sample_that_has_gone_differs_too() -> None:
    assert compare({REQUESTS: 10.0, BYTES["DE"]: 5.0}, {REQUESTS: 10.0}, ["bytes"]) == Comparison(1, {"bytes": -1.0})


def test_what_cannot_be_summed_differs_without_a_total() -> None:
    assert compare({VISITORS: 3.0}, {VISITORS: 4.0}, []) == Comparison(1, {})


@pytest.mark.parametrize(("captured", "later"), [({REQUESTS: 0.0}, {REQUESTS: 7.0}), ({}, {REQUESTS: 7.0})])
def test_something_where_nothing_was_captured_is_all_of_it(
    captured: dict[bytes, float], later: dict[bytes, float]
) -> None:
    assert compare(captured, later, ["requests"]) == Comparison(1, {"requests": 1.0})


# --------------------------------------------------------------------------------------------------------- advising


def readings(window: int, *differing: int, age_seconds: int = DELAY) -> list[Reading]:
    """A window's readings: how many samples differed at each of AFTERS, as far as it was read."""
    return [
        Reading(window, age_seconds, after, samples, samples / 100)
        for after, samples in zip(AFTERS, differing, strict=False)
    ]


def advice(windows: Sequence[tuple[int, ...]], *, is_sampled: bool = False) -> Advice:
    found = [each for number, differing in enumerate(windows) for each in readings(number, *differing)]
    return recommended_delay(found, delay_seconds=DELAY, is_sampled=is_sampled)


SAME = (0, 0, 0)


def test_a_delay_after_which_nothing_changed_is_enough() -> None:
    assert advice([SAME] * FEWEST_WINDOWS) == Advice(
        DELAY, f"it is enough: none of {FEWEST_WINDOWS} windows that were read again had changed"
    )


def test_too_few_windows_tell_nothing() -> None:
    found = advice([(1, 1, 1)] * (FEWEST_WINDOWS - 1))
    assert found == Advice(None, "19 windows were read again so far, and at least 20 are needed to tell")


@pytest.mark.parametrize(
    ("differing", "settled"),
    [
        ((5, 5, 5), 900),
        ((4, 5, 5), 3600),
        ((0, 5, 5), 3600),
        ((3, 4, 5), 21_600),
        ((5,), 900),
        ((0, 0, 5), 21_600),
        ((5, 6, 5), 21_600),
        ((0, 5, 0), 21_600),
    ],
)
def test_a_longer_delay_is_the_age_at_which_the_late_windows_said_what_they_still_say(
    differing: tuple[int, ...], settled: int
) -> None:
    found = advice([SAME] * 97 + [differing] * 3)
    assert found.delay_seconds == DELAY + settled
    assert found.reason.startswith("3 of 100 windows that were read again had changed; ")
    assert found.reason.endswith(f"so the delay should be {DELAY + settled} s")


def test_one_late_window_in_a_hundred_does_not_make_all_of_them_late() -> None:
    assert advice([SAME] * 99 + [(5, 5, 5)]) == Advice(
        DELAY, "it is enough: 1 of 100 windows that were read again had changed, fewer than one in a hundred"
    )


def test_a_delay_is_advised_in_whole_minutes() -> None:
    found = [each for number in range(FEWEST_WINDOWS) for each in readings(number, 1, age_seconds=DELAY + 7)]
    assert recommended_delay(found, delay_seconds=DELAY, is_sampled=False).delay_seconds == DELAY + 900 + 60


def test_a_window_that_was_captured_late_and_did_not_change_asks_for_no_longer_delay() -> None:
    found = [each for number in range(FEWEST_WINDOWS) for each in readings(number, *SAME, age_seconds=2 * DELAY)]
    assert recommended_delay(found, delay_seconds=DELAY, is_sampled=False).delay_seconds == DELAY


def test_numbers_of_a_sampled_dataset_tell_nothing_of_the_delay() -> None:
    found = advice([(5, 6, 7)] * 100, is_sampled=True)
    assert found.delay_seconds is None
    assert "estimates from a sample" in found.reason


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=FEWEST_WINDOWS, max_size=150))
def test_after_the_advised_delay_99_of_100_windows_say_what_they_still_say(windows: list[tuple[int, ...]]) -> None:
    delay = advice(windows).delay_seconds
    assert delay is not None
    # What was captured says nothing differs: a reading at the time of the capture.
    settled = [
        all(
            samples == differing[-1]
            for after, samples in zip((0, *AFTERS), (0, *differing), strict=True)
            if DELAY + after >= delay
        )
        for differing in windows
    ]
    assert sum(settled) >= math.floor(len(windows) * 0.99)
