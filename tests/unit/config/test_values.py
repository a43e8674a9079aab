import contextlib
import socket
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.config import values
from worker.config.values import InvalidValueError
from worker.shards import Shard

UNITS_MS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
TEN_YEARS = 315_360_000.0


def duration(text: object) -> float:
    return values.duration_seconds(text, minimum=0, maximum=TEN_YEARS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m", 60), ("1h30m", 5400), ("500ms", 0.5), ("0", 0), ("0s", 0), ("1d", 86400), ("1w", 604800)],
)
def test_durations_are_read_as_prometheus_writes_them(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["30", "", "s", "1.5s", "-1s", "1m1h", "1h1h", "1 h", "1H", "٣s", "1e3s", "9" * 41 + "s"]
)
def test_what_prometheus_does_not_take_for_a_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="must be a duration with its unit"):
        duration(text)


@given(st.integers(min_value=0, max_value=int(TEN_YEARS * 1000)))
def test_a_duration_written_by_us_is_read_back_to_the_millisecond(milliseconds: int) -> None:
    assert round(duration(values.duration_text(milliseconds / 1000)) * 1000) == milliseconds


@given(st.lists(st.integers(0, 10), min_size=7, max_size=7).filter(any))
def test_a_duration_is_the_sum_of_its_parts(counts: list[int]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in zip(counts, UNITS_MS, strict=True) if count)
    expected = sum(count * length for count, length in zip(counts, UNITS_MS.values(), strict=True))
    assert values.duration_seconds(text, minimum=0, maximum=float("inf")) == expected / 1000


def test_a_duration_out_of_bounds_says_the_bounds() -> None:
    with pytest.raises(InvalidValueError, match="must be from 1s to 1h"):
        values.duration_seconds("2h", minimum=1, maximum=3600)


def test_a_window_of_half_a_second_is_refused_where_seconds_are_whole() -> None:
    with pytest.raises(InvalidValueError, match="must be whole seconds"):
        values.whole_duration_seconds("1500ms", maximum=10)
    assert values.whole_duration_seconds("2h", maximum=7200) == 7200


@given(st.text())
def test_any_text_is_a_duration_or_a_mistake(text: str) -> None:
    with contextlib.suppress(InvalidValueError):
        assert 0 <= duration(text) <= TEN_YEARS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 2**20),
        ("10GiB", 10 * 2**30),
        ("10 gib", 10 * 2**30),
        ("10Gi", 10 * 2**30),
        ("10GB", 10**10),
        ("1.5GiB", 3 * 2**29),
        ("5000kb", 5_000_000),
        ("2TiB", 2 * 2**40),
        (7_000_000, 7_000_000),
    ],
)
def test_sizes_are_plain_or_have_a_unit(text: object, size: int) -> None:
    assert values.size_bytes(text, minimum=2**20) == size


@pytest.mark.parametrize("text", ["", "10 apples", "GiB", "-1GiB", "1e9", "10GiB x", "0x10", True, None, ["1"]])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(InvalidValueError, match="must be a size"):
        values.size_bytes(text, minimum=0)


def test_a_size_that_cannot_hold_anything_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least 1048576 bytes"):
        values.size_bytes("10", minimum=2**20)


@given(st.integers(min_value=0, max_value=2**62))
def test_a_size_written_by_us_is_read_back_exactly(size: int) -> None:
    assert values.size_bytes(values.size_text(size), minimum=0) == size


@given(st.decimals(min_value=0, max_value=1000, places=3), st.sampled_from([("KiB", 1024), ("GB", 10**9)]))
def test_a_fraction_of_a_unit_is_exact_to_the_byte(number: object, unit: tuple[str, int]) -> None:
    assert values.size_bytes(f"{number}{unit[0]}", minimum=0) == int(Fraction(str(number)) * unit[1])


@pytest.mark.parametrize("text", ["", "abc", "1.5", "-1", "+1", "1_000", "10m", "٣", True, None, "9" * 5000])
def test_a_whole_number_is_digits_and_nothing_else(text: object) -> None:
    with pytest.raises(InvalidValueError, match="must be a whole number of seconds from 1 to 60, without a unit"):
        values.whole_number(text, minimum=1, maximum=60, unit="seconds")


@given(st.integers(-10, 100))
def test_both_bounds_of_a_whole_number_are_allowed_and_nothing_beyond_them(number: int) -> None:
    try:
        assert values.whole_number(str(number), minimum=1, maximum=60, unit="seconds") == number
        assert 1 <= number <= 60
    except InvalidValueError:
        assert not 1 <= number <= 60


def test_names_are_split_at_commas_stripped_and_taken_once() -> None:
    assert values.name_list(" a , b,,a, ") == ("a", "b")
    assert values.name_list(["a, b", "c"]) == ("a, b", "c")


def test_zone_names_are_spelt_as_the_api_spells_them() -> None:
    assert values.zone_list("Example.COM., example.com, 023E105F4ECEF8AD9CA31A8372D0C353") == (
        "example.com",
        "023e105f4ecef8ad9ca31a8372d0c353",
    )


def test_zones_separated_by_blanks_are_a_mistake_and_not_one_strange_zone() -> None:
    with pytest.raises(InvalidValueError, match="separated by commas"):
        values.zone_list("a.example b.example")


def test_a_list_of_nothing_is_refused_where_something_is_needed() -> None:
    with pytest.raises(InvalidValueError, match="at least one name"):
        values.some_names(",")


@pytest.mark.parametrize("value", [3, None, {"a": 1}, [["a"]], [1], ["a\nb"]])
def test_a_list_holds_names_only(value: object) -> None:
    with pytest.raises(InvalidValueError):
        values.name_list(value)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Yes", True), ("off", False), ("false", False)])
def test_truth_is_written_as_in_yaml(text: str, value: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert values.truth(text) is value


@pytest.mark.parametrize("value", ["", "1", "truee", 1, None])
def test_anything_else_is_neither_true_nor_false(value: object) -> None:
    with pytest.raises(InvalidValueError, match="must be true or false"):
        values.truth(value)


def test_what_is_shown_is_short_and_on_one_line() -> None:
    assert values.shown("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert len(values.shown("x" * 1000)) < 100
    assert values.shown({"a": "b"}) == "a mapping of keys"
    assert values.shown(["a"]) == "a list"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="is a directory"):
        values.file_path(str(tmp_path))


def test_the_home_directory_can_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values.file_path("~/ledger.db") == tmp_path / "ledger.db"


@pytest.mark.parametrize("value", ["", " ", "a\0b", 3, None])
def test_what_cannot_be_a_path_is_refused(value: object) -> None:
    with pytest.raises(InvalidValueError, match="must be the path of a file"):
        values.file_path(value)


@pytest.mark.parametrize(
    ("text", "host", "shard"),
    [
        ("1/1", "", Shard(1, 1)),
        (" 4/4 ", "", Shard(4, 4)),
        ("auto/4", "cfrw-3", Shard(4, 4)),
        ("auto/4", "my-cfrw-0.cfrw.monitoring.svc", Shard(1, 4)),
        ("cfrw-2/4", "other-0", Shard(3, 4)),
        (Shard(2, 3), "", Shard(2, 3)),
    ],
)
def test_a_shard_is_a_number_or_the_ordinal_of_a_pod(
    text: object, host: str, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert values.shard(text) == shard
    assert values.shard(str(shard)) == shard


@pytest.mark.parametrize(
    ("text", "host", "problem"),
    [
        ("2", "", "must be i/n with n up to 1000, such as 2/4, or auto/n for the ordinal of this pod"),
        ("1/0", "", "must be i/n"),
        ("1/1001", "", "must be i/n"),
        (None, "", "must be i/n"),
        ("0/4", "", "must be from 1/4 to 4/4"),
        ("5/4", "", "must be from 1/4 to 4/4"),
        ("auto/4", "laptop", "needs the name of a pod that ends in its ordinal, such as cfrw-3, and not laptop"),
        ("auto/4", "cfrw-7d4b", "and not cfrw-7d4b"),
        ("cfrw-x/4", "", "and not cfrw-x"),
        ("auto/4", "cfrw-4", "is for the pods 0 to 3, and this is cfrw-4: there are more replicas than shards"),
    ],
)
def test_what_is_no_shard_is_refused(text: object, host: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    with pytest.raises(InvalidValueError) as caught:
        values.shard(text)
    assert problem in caught.value.problem


@pytest.mark.parametrize(("given", "percent"), [("1", 1), (" 0.25 ", 0.25), (0, 0), (100.0, 100), ("100", 100)])
def test_a_percentage_may_have_decimals(given: object, percent: float) -> None:
    assert values.percentage(given) == percent


@pytest.mark.parametrize("given", ["-1", "100.1", "1e2", "nan", "1%", "", True, None, [1]])
def test_what_is_no_percentage_is_refused(given: object) -> None:
    with pytest.raises(InvalidValueError, match="must be a number of percent from 0 to 100"):
        values.percentage(given)


@pytest.mark.parametrize("given", ["900, 3600,21600", [900, 3600, 21600], (900, "3600", 21600)])
def test_rising_seconds_are_a_list_or_separated_by_commas(given: object) -> None:
    assert values.rising_seconds(given) == (900, 3600, 21600)
    assert values.rising_seconds(900) == values.rising_seconds("900") == (900,)


@pytest.mark.parametrize("given", ["", "900,", "900;3600", "59", "86401", "900,900", "3600,900", None, [[900]]])
def test_seconds_that_do_not_rise_or_are_none_are_refused(given: object) -> None:
    with pytest.raises(InvalidValueError, match="seconds"):
        values.rising_seconds(given)


def test_so_many_rising_seconds_that_nobody_means_them_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="must be 8 numbers of seconds at most"):
        values.rising_seconds(",".join(str(seconds) for seconds in range(60, 69)))
