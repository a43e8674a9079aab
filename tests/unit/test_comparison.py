import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.comparison import Claim, ExtraSample, Finding, compare
from worker.remote_write import Found, Labels

OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]


def labels(**more: str) -> Labels:
    return frozenset({"__name__": "requests", **more}.items())


def claim(value: float = 1.0, *, at: int = 1000, zone: str = "a", is_due: bool = True) -> Claim:
    return Claim(1, 1, labels(zone=zone), at, value, is_due)


def findings(claims: list[Claim], found: Found) -> list[Finding]:
    return [outcome.finding for outcome in compare(claims, found).outcomes]


@pytest.mark.parametrize(
    ("value", "there", "finding"),
    [
        (1.0, [1.0], Finding.EQUAL),
        (1.0, [1.0, 1.0], Finding.EQUAL),
        (1.0, [1.0, 2.0], Finding.DIFFERENT),
        (1.0, [math.nextafter(1.0, 2.0)], Finding.DIFFERENT),
        (0.0, [-0.0], Finding.DIFFERENT),
        (math.nan, [OTHER_NAN], Finding.EQUAL),
        (math.nan, [1.0], Finding.DIFFERENT),
        (math.inf, [math.inf], Finding.EQUAL),
        (1.0, [], Finding.MISSING),
    ],
)
def test_a_value_is_equal_to_the_bit_or_not(value: float, there: list[float], finding: Finding) -> None:
    found = Found({labels(zone="a"): [(1000, each) for each in there]})

    (outcome,) = compare([claim(value)], found).outcomes

    assert outcome.finding is finding
    assert outcome.is_duplicated == (len(there) > 1)


def test_what_a_receiver_of_decimals_rounds_is_equal() -> None:
    found = Found({labels(zone="a"): [(1000, 0.3), (2000, 1e17), (3000, 2.0)]}, relative_error=2e-12)
    claims = [claim(0.1 + 0.2), claim(1e17 + 16, at=2000), claim(2.00000001, at=3000)]
    # Beside a number of 10^17 the block has no digits left below 100.
    assert findings(claims, found) == [Finding.EQUAL] * 3
    assert findings([claims[0], claims[2]], found) == [Finding.EQUAL, Finding.DIFFERENT]
    assert findings(claims[:1], replace(found, relative_error=0.0)) == [Finding.DIFFERENT]


def test_what_nobody_says_is_there_is_no_loss() -> None:
    assert findings([claim(is_due=False)], Found({})) == [Finding.UNDELIVERED]
    assert findings([claim(is_due=False)], Found({labels(zone="a"): [(1000, 1.0)]})) == [Finding.EQUAL]


def test_labels_that_a_receiver_adds_by_itself_make_no_other_series() -> None:
    tenant = labels(zone="a", tenant_id="default-tenant")
    assert findings([claim()], Found({tenant: [(1000, 1.0)]})) == [Finding.EQUAL]
    # A label that the worker sends to others is one of its own.
    claims = [claim(), Claim(1, 2, tenant, 1000, 2.0, is_due=True)]
    assert findings(claims, Found({tenant: [(1000, 2.0)]})) == [Finding.MISSING, Finding.EQUAL]


def test_what_the_ledger_does_not_have_is_extra() -> None:
    found = Found({labels(zone="a"): [(1000, 1.0), (1500, 9.0)], labels(zone="b"): [(1000, 1.0)]})

    compared = compare([claim()], found)

    assert set(compared.extra) == {
        ExtraSample(labels(zone="a"), 1500, 9.0),
        ExtraSample(labels(zone="b"), 1000, 1.0),
    }


samples = st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), st.integers(0, 1), max_size=12)


@settings(max_examples=60)
@given(ledger=samples, there=samples)
def test_every_sample_of_either_side_is_told_once(
    ledger: dict[tuple[str, int], int], there: dict[tuple[str, int], int]
) -> None:
    claims = [claim(float(value), at=at, zone=zone) for (zone, at), value in ledger.items()]
    series: dict[Labels, list[tuple[int, float]]] = {}
    for (zone, at), value in there.items():
        series.setdefault(labels(zone=zone), []).append((at, float(value)))

    compared = compare(claims, Found(series))

    for outcome, (key, value) in zip(compared.outcomes, ledger.items(), strict=True):
        expected = Finding.MISSING if key not in there else Finding.EQUAL if there[key] == value else Finding.DIFFERENT
        assert outcome.finding is expected
    extra = {(dict(each.labels)["zone"], each.timestamp_ms) for each in compared.extra}
    assert extra == there.keys() - ledger.keys()
    assert len(compared.extra) == len(extra)
