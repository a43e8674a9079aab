import io
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.openmetrics import END, Sample, family_head, number_text, read, series_text, timestamp_text
from worker.series import MetricMetadata, label_block, parse_label_block

label_names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,5}", fullmatch=True)
label_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(
    ["\\", '"', "\n", '\\n"', "} 1 2", "a,b", "\\\\", "\r"]
)
blocks = st.builds(
    label_block, st.sampled_from(["cloudflare_zone_bytes", "a:b_c"]), st.dictionaries(label_names, label_texts)
)
moments = st.integers(1 << 35, (1 << 42) - 1)
values = st.floats() | st.integers(-(2**60), 2**60).map(float) | st.sampled_from([-0.0, 5e-324, 2.0**53, 1e22])


def text_of(*samples: Sample) -> bytes:
    lines = []
    for sample in samples:
        metric, labels = series_text(sample.block)
        lines.append(f"{metric}{{{labels}}} {number_text(sample.value)} {timestamp_text(sample.timestamp_ms)}\n")
    return "".join(lines).encode() + END


def bits(value: float) -> bytes:
    return struct.pack("<d", math.nan if math.isnan(value) else value)


@settings(max_examples=200)
@given(st.lists(st.builds(Sample, blocks, values, moments), max_size=4))
def test_what_was_written_is_read_as_the_same_labels_values_and_times(samples: list[Sample]) -> None:
    read_back = [found for _, found in read(io.BytesIO(text_of(*samples)))]
    for before, after in zip(samples, read_back, strict=True):
        assert isinstance(after, Sample), after
        assert (after.block, after.timestamp_ms) == (before.block, before.timestamp_ms)
        assert bits(after.value) == bits(before.value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e15, "1000000000000000"),
        (0.1, "0.1"),
        (-0.0, "-0"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers_are_written_as_short_as_they_can_be(value: float, written: str) -> None:
    assert number_text(value) == written


def test_a_family_is_told_with_its_type_its_help_and_a_unit_where_the_name_ends_in_it() -> None:
    assert family_head("a_bytes", MetricMetadata('Say "so"\\ and\nso.', "bytes")) == (
        '# TYPE a_bytes gauge\n# UNIT a_bytes bytes\n# HELP a_bytes Say \\"so\\"\\\\ and\\nso.\n'
    )
    assert family_head("page_views", MetricMetadata("Views.", "page views")) == (
        "# TYPE page_views gauge\n# HELP page_views Views.\n"
    )
    assert family_head("unknown", None) == "# TYPE unknown gauge\n"


def test_what_other_programs_write_is_read_too() -> None:
    lines = b'# TYPE up gauge\n# HELP up\nup 1e0 1.7e9\nup{a="b",} .5 1700000000.250\n# EOF\n'
    first, second = (found for _, found in read(io.BytesIO(lines)))
    assert first == Sample(label_block("up", {}), 1.0, 1_700_000_000_000)
    assert second == Sample(label_block("up", {"a": "b"}), 0.5, 1_700_000_000_250)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"up 1\n", "no sample with a timestamp"),
        (b"up  1 1700000000\n", "no series"),
        (b"up 1_0 1700000000\n", "no sample with a timestamp"),
        (b"up 0x10 1700000000\n", "no sample with a timestamp"),
        (b"up 1 1700000000000\n", "unix seconds are meant"),
        (b"up 1 1700000000.0001\n", "no part of a millisecond"),
        (b"up 1 -5\n", "between 1971 and 2109"),
        (b'up{a="b",a="c"} 1 1700000000\n', "'a' is there twice"),
        (b'up{a="\\t"} 1 1700000000\n', "is no label"),
        (b"up{a=b} 1 1700000000\n", "is no label"),
        (b'up{__a="b"} 1 1700000000\n', "is not a label name"),
        (b"9up 1 1700000000\n", "no series"),
        (b"\n", "no sample"),
        (b"# a remark\n", "TYPE, HELP, UNIT or EOF"),
        (b'up{a="\xff"} 1 1700000000\n', "UTF-8"),
        (b"up 1 1700000000\r\n", "no sample"),
    ],
)
def test_a_line_that_is_wrong_is_told_by_its_number_and_the_others_are_read(line: bytes, told: str) -> None:
    (number, wrong), (last, good) = read(io.BytesIO(b"# TYPE up gauge\n" + line + b"up 1 1700000000\n# EOF\n"))
    assert (number, last) == (2, 3)
    assert isinstance(wrong, str)
    assert told in wrong
    assert isinstance(good, Sample)


@pytest.mark.parametrize(
    ("text", "number", "told"),
    [
        (b"", 0, "# EOF"),
        (b"# TYPE up gauge\n", 1, "cut off"),
        (b"up 1 17000", 1, "has no end"),
        (b"# EOF\n# EOF\n", 2, "line 1"),
        (b"\x1f\x8b\x08 and so on", 1, "gzip -dc"),
        (b"x" * 2**21, 1, "too long"),
    ],
)
def test_a_text_that_is_no_whole_openmetrics_is_told(text: bytes, number: int, told: str) -> None:
    at, wrong = next(read(io.BytesIO(text)))
    assert at == number
    assert isinstance(wrong, str)
    assert told in wrong


def test_a_label_block_survives_its_text() -> None:
    block = label_block("a", {"b": 'x"\\\n', "c": "ü"})
    metric, labels = series_text(block)
    assert (metric, labels) == ("a", 'b="x\\"\\\\\\n",c="ü"')
    assert parse_label_block(block)["b"] == 'x"\\\n'
