import pytest

from worker.times import instant, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1_767_668_400, "2026-01-06T03:00:00Z"), (1_767_668_400.999, "2026-01-06T03:00:00Z")],
)
def test_an_instant_is_written_in_utc_to_the_second(seconds: float, text: str) -> None:
    assert instant(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3_600, "1h"),
        (3_605, "1h"),
        (11_520, "3h 12m"),
        (86_399, "23h 59m"),
        (2 * 86_400 + 3_600, "2d 1h"),
        (400 * 86_400 + 59, "400d"),
    ],
)
def test_a_span_is_written_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text
