import pytest

from worker.buckets import final_window_starts
from worker.demo.timetable import DELAY_SECONDS, REPLAY_HOURS, WIDTH_SECONDS, timetable

NOW = 1_750_172_459.5


def due(now: float) -> range:
    reach_seconds = REPLAY_HOURS * 3600
    return final_window_starts(
        now, width_seconds=WIDTH_SECONDS, delay_seconds=DELAY_SECONDS, reach_seconds=reach_seconds
    )


def test_the_expected_windows_are_those_that_a_worker_finds_due_between_start_and_end() -> None:
    times = timetable(NOW)
    moments = range(times.starts_at, times.ends_at + 1)
    assert sorted(times.windows) == sorted({start for now in moments for start in due(now)})


@pytest.mark.parametrize("seconds", [0, 59, 60, 61, 1800, 3600])
def test_final_windows_are_counted_as_a_worker_finds_them_due(seconds: int) -> None:
    times = timetable(NOW)
    now = times.starts_at + seconds
    assert times.final_windows(now) == len(range(times.windows.start, due(now).stop, WIDTH_SECONDS))


def test_all_windows_are_final_at_the_end() -> None:
    times = timetable(NOW)
    assert times.final_windows(times.ends_at) == len(times.windows)


def test_nothing_lies_in_the_future_of_a_real_receiver() -> None:
    assert timetable(NOW).ends_at <= NOW


def test_the_outage_is_shorter_than_what_the_worker_waits_before_it_gives_windows_up() -> None:
    times = timetable(NOW)
    assert times.starts_at < times.outage_begins_at < times.outage_ends_at < times.ends_at
    assert times.outage_ends_at - times.outage_begins_at + DELAY_SECONDS + WIDTH_SECONDS < REPLAY_HOURS * 3600
