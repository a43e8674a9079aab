from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.buckets import Batch, Bucket, SampleTimestamp, StoredBucket, Window, final_window_starts

WIDTHS = st.sampled_from([60, 300, 900, 1800, 3600, 86_400])
MOMENTS = st.integers(10**9, 4 * 10**9) | st.floats(10**9, 4 * 10**9)
DELAYS = st.integers(0, 86_400)


def test_a_window_is_half_open() -> None:
    window = Window(7200, 3600)
    assert window.end == 10_800
    assert window.timestamp_ms(SampleTimestamp.START) == 7_200_000
    assert window.timestamp_ms(SampleTimestamp.END) == 10_799_999


@pytest.mark.parametrize(("start", "width"), [(1, 60), (3599, 3600), (1800, 3600), (0, 0), (60, -60)])
def test_a_window_that_is_not_aligned_cannot_be_made(start: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{start} is not the start of a window of {width} s"):
        Window(start, width)


def test_a_window_is_final_once_the_delay_has_passed_and_not_a_moment_before() -> None:
    window = Window(7200, 3600)
    assert not window.is_final(10_800 + 599.999, delay_seconds=600)
    assert window.is_final(10_800 + 600, delay_seconds=600)


@given(WIDTHS, st.integers(0, 10**6), st.sampled_from(SampleTimestamp))
def test_every_timestamp_lies_inside_its_window(width: int, number: int, which: SampleTimestamp) -> None:
    window = Window(number * width, width)
    assert window.start * 1000 <= window.timestamp_ms(which) < window.end * 1000


@given(MOMENTS, WIDTHS, DELAYS, st.integers(1, 96).map(lambda hours: hours * 3600))
@example(now=1_750_000_200.0, width=3600, delay=600, reach=86_400)
def test_the_final_windows_are_those_that_are_final_and_ended_within_the_reach(
    now: float, width: int, delay: int, reach: int
) -> None:
    starts = final_window_starts(now, width_seconds=width, delay_seconds=delay, reach_seconds=reach)
    windows = [Window(start, width) for start in starts]
    assert all(window.is_final(now, delay) for window in windows)
    assert all(window.end > now - reach for window in windows)
    # None is left out, neither at the one end nor at the other.
    assert not Window(starts.stop, width).is_final(now, delay)
    if windows:
        assert starts.start <= now - reach


def test_nothing_is_final_while_the_delay_is_longer_than_the_reach() -> None:
    assert not final_window_starts(1_750_000_000, width_seconds=60, delay_seconds=7200, reach_seconds=3600)


def test_a_day_is_within_a_day_s_reach_when_it_becomes_final() -> None:
    midnight = 20_000 * 86_400
    starts = final_window_starts(midnight + 600, width_seconds=86_400, delay_seconds=600, reach_seconds=86_400)
    assert list(starts) == [midnight - 86_400]


def test_a_bucket_has_one_value_per_series() -> None:
    with pytest.raises(ValueError, match="1 series but 2 values"):
        Bucket("http_requests", "a" * 32, Window(0, 60), 0, (b"x",), array("d", [1.0, 2.0]))


def test_samples_are_counted_by_their_values() -> None:
    stored = StoredBucket(1, 0, series_ids=b"\0" * 12, values=b"\0" * 24)
    assert stored.sample_count == 3
    assert Batch((stored, stored), {0: b""}).sample_count == 6
