import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cloudflare.datasets import HTTP_REQUESTS
from tests.unit.cloudflare.fake import answer, decode, instant, row, zone
from worker.cloudflare import ApiFailure, ErrorKind, Samples, Zone
from worker.cloudflare.catalogue import Dataset
from worker.cloudflare.decode import Decoder
from worker.cloudflare.query import Source, WindowsQuery
from worker.series import parse_label_block

RESPONSES = Path(__file__).parents[3].parent / "shared" / "cloudflare" / "responses"
HOUR = 1_749_999_600
A, B = zone(1), zone(2)
NAME = HTTP_REQUESTS.name


def query(
    *zones: Zone, width_seconds: int = 3600, windows: int = 2, dataset: Dataset = HTTP_REQUESTS, since: int = HOUR
) -> WindowsQuery:
    starts = range(since, since + windows * width_seconds, width_seconds)
    return WindowsQuery((Source(dataset, dataset.grain(width_seconds)),), zones or (A,), starts)


def windows_of(body: bytes, asked: WindowsQuery, decoder: Decoder | None = None) -> dict[int, dict[str, float]]:
    """What became of the only zone asked: value by series, written as Prometheus would, per window."""
    (decoded,) = decode(body, asked, decoder).values()
    assert not isinstance(decoded, ApiFailure), decoded
    assert list(decoded) == list(asked.starts)
    return {start: readable(samples) for start, samples in decoded.items()}


def readable(samples: Samples) -> dict[str, float]:
    """Value by metric and the one label that breaks it down; the zone's own labels are left out."""
    found: dict[str, float] = {}
    for block, value in zip(samples.series, samples.values, strict=True):
        labels = parse_label_block(block)
        name = labels.pop("__name__").removeprefix("cloudflare_zone_")
        own = [f"{key}={labels[key]}" for key in labels if key not in ("zone", "zone_id", "account")]
        found[name + "".join(f"{{{each}}}" for each in own)] = value
    assert len(found) == len(samples.series)
    return found


def failure(body: bytes, asked: WindowsQuery | None = None) -> ApiFailure:
    (decoded,) = decode(body, asked or query()).values()
    assert isinstance(decoded, ApiFailure), decoded
    return decoded


FIRST, SECOND = instant(HOUR), instant(HOUR + 3600)


def test_a_row_becomes_a_sample_for_every_total_and_every_value_of_a_map() -> None:
    countries = [
        {"clientCountryName": "CN", "requests": 6, "bytes": 10797, "threats": 6},
        {"clientCountryName": "T1", "requests": 1, "bytes": 98224, "threats": 0},
    ]
    statuses = [{"edgeResponseStatus": 200, "requests": 4}, {"edgeResponseStatus": 403, "requests": 11}]
    threats = [{"threatPathingName": "user.ban.ctry", "requests": 6}]
    changed = {"countryMap": countries, "responseStatusMap": statuses, "threatPathingMap": threats}
    found = windows_of(answer({A.tag: [row(FIRST, 15, pageViews=3, **changed)]}), query(windows=1))
    assert found == {
        HOUR: {
            "requests": 15,
            "unique_visitors": 1,
            "response_bytes": 150,
            "cached_requests": 0,
            "cached_response_bytes": 0,
            "encrypted_requests": 15,
            "encrypted_response_bytes": 150,
            "page_views": 3,
            "threats": 0,
            "country_requests{country=CN}": 6,
            "country_response_bytes{country=CN}": 10797,
            "country_threats{country=CN}": 6,
            "country_requests{country=T1}": 1,
            "country_response_bytes{country=T1}": 98224,
            "country_threats{country=T1}": 0,
            "status_requests{status=200}": 4,
            "status_requests{status=403}": 11,
            "content_type_requests{content_type=html}": 15,
            "content_type_response_bytes{content_type=html}": 150,
            "browser_page_views{browser=Firefox}": 0,
            "http_version_requests{http_version=HTTP/2}": 15,
            "tls_version_requests{tls_version=TLSv1.3}": 15,
            "ip_class_requests{ip_class=noRecord}": 15,
            "threat_type_requests{threat_type=user.ban.ctry}": 6,
        }
    }


def test_every_series_carries_the_zone_and_the_account_where_it_has_a_name() -> None:
    for asked, expected in ((zone(1), "Example Inc"), (zone(1, account=""), None)):
        decoded = decode(answer({asked.tag: []}), query(asked))[asked.tag, NAME]
        assert not isinstance(decoded, ApiFailure)
        for block in decoded[HOUR].series:
            labels = parse_label_block(block)
            assert (labels["zone"], labels["zone_id"]) == ("zone1.example", asked.tag)
            assert labels.get("account") == expected


def test_a_window_without_a_row_is_all_zero_and_has_no_breakdowns() -> None:
    found = windows_of(answer({A.tag: [row(SECOND, 3)]}), query(windows=3))
    assert len(found[HOUR]) == len(HTTP_REQUESTS.totals) == 9
    assert set(found[HOUR].values()) == {0.0}
    assert found[HOUR + 3600]["requests"] == 3
    assert found[HOUR + 7200] == found[HOUR]


def test_an_object_that_is_null_has_zeros_and_no_breakdowns() -> None:
    (found,) = windows_of(
        answer({A.tag: [{"dimensions": {"start": FIRST}, "sum": None, "uniq": None}]}), query(windows=1)
    ).values()
    assert len(found) == 9
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(("width", "spelling"), [(60, instant(HOUR)), (1800, instant(HOUR)), (86400, "2025-06-15")])
def test_every_width_reads_its_own_spelling_of_time(width: int, spelling: str) -> None:
    since = HOUR - HOUR % width
    body = answer({A.tag: [row(spelling, 5)]})
    assert windows_of(body, query(width_seconds=width, windows=1, since=since))[since]["requests"] == 5


def test_unknown_fields_are_no_obstacle() -> None:
    body = msgspec.json.decode(answer({A.tag: [row(FIRST, 2) | {"avg": {"sampleInterval": 1.0}}]}))
    body["data"]["viewer"]["budget"] = 99
    body["data"]["viewer"]["zones"][0]["settings"] = {}
    body["data"]["cost"] = 1
    assert windows_of(json.dumps(body).encode(), query())[HOUR]["requests"] == 2


def test_a_field_that_was_not_asked_for_is_not_a_zero_but_absent() -> None:
    narrowed = HTTP_REQUESTS.without({"uniq_uniques", "sum_threats", "sum_countryMap_bytes", "sum_browserMap"})
    whole = row(FIRST, 2)
    del whole["uniq"]
    found = windows_of(answer({A.tag: [whole]}), query(dataset=narrowed))
    for start in found:
        assert not {"unique_visitors", "threats"} & set(found[start])
    assert not any("browser" in name or name.startswith("country_response") for name in found[HOUR])
    assert "country_requests{country=DE}" in found[HOUR]


def test_two_elements_with_one_value_are_summed() -> None:
    countries = [
        {"clientCountryName": "DE", "requests": 6, "bytes": 60, "threats": 1},
        {"clientCountryName": "FR", "requests": 2, "bytes": 20, "threats": 0},
        {"clientCountryName": "DE", "requests": 1, "bytes": 10, "threats": 0},
    ]
    found = windows_of(answer({A.tag: [row(FIRST, 9, countryMap=countries)]}), query())[HOUR]
    assert found["country_requests{country=DE}"] == 7
    assert found["country_response_bytes{country=DE}"] == 70
    assert found["country_requests{country=FR}"] == 2
    assert found["requests"] == 9


def test_an_empty_value_is_spelt_unknown_and_joins_those_that_are_called_so() -> None:
    classes = [{"ipType": "", "requests": 6}, {"ipType": "unknown", "requests": 2}]
    statuses = [{"edgeResponseStatus": 0, "requests": 1}]
    found = windows_of(answer({A.tag: [row(FIRST, 8, ipClassMap=classes, responseStatusMap=statuses)]}), query())[HOUR]
    assert found["ip_class_requests{ip_class=unknown}"] == 8
    assert found["status_requests{status=0}"] == 1


def test_a_status_is_one_series_whether_it_comes_as_a_number_or_as_text() -> None:
    statuses = [{"edgeResponseStatus": 200, "requests": 6}, {"edgeResponseStatus": "200", "requests": 2}]
    found = windows_of(answer({A.tag: [row(FIRST, 8, responseStatusMap=statuses)]}), query())[HOUR]
    assert found["status_requests{status=200}"] == 8


def test_integers_over_two_to_the_53_become_the_nearest_float() -> None:
    found = windows_of(answer({A.tag: [row(FIRST, bytes=2**53 + 1, cachedBytes=2**64 - 1)]}), query())[HOUR]
    assert found["response_bytes"] == 2.0**53
    assert found["cached_response_bytes"] == 2.0**64


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([row(FIRST), row(FIRST)], ErrorKind.MALFORMED),  # one window twice
        ([row(instant(HOUR - 3600))], ErrorKind.MALFORMED),  # before the span
        ([row(instant(HOUR + 7200))], ErrorKind.MALFORMED),  # after it
        ([row(instant(HOUR + 60))], ErrorKind.MALFORMED),  # not aligned
        ([row("2025-06-15T15:00:00.5Z")], ErrorKind.MALFORMED),
        ([row("2025-06-15T15:00:00")], ErrorKind.MALFORMED),  # no time zone
        ([row("2025-06-15")], ErrorKind.MALFORMED),
        ([row("yesterday")], ErrorKind.MALFORMED),
        ([row("")], ErrorKind.MALFORMED),
        ([row(FIRST, -1)], ErrorKind.MALFORMED),
        ([row(FIRST, bytes=None)], ErrorKind.MALFORMED),
        ([row(FIRST, bytes="12")], ErrorKind.MALFORMED),
        ([row(FIRST, bytes=True)], ErrorKind.MALFORMED),
        ([row(FIRST, bytes=[1])], ErrorKind.MALFORMED),
        ([row(FIRST, countryMap=None)], ErrorKind.MALFORMED),
        ([row(FIRST, countryMap=[{"clientCountryName": "DE"}])], ErrorKind.MALFORMED),
        ([row(FIRST, countryMap=[{"clientCountryName": None, "requests": 1}])], ErrorKind.MALFORMED),
        ([row(FIRST, responseStatusMap=[{"edgeResponseStatus": -1, "requests": 1}])], ErrorKind.MALFORMED),
        ([row(FIRST, responseStatusMap=[{"edgeResponseStatus": 200, "requests": -1}])], ErrorKind.MALFORMED),
        ([row(FIRST) | {"dimensions": None}], ErrorKind.MALFORMED),
        ([{"dimensions": {"start": FIRST}, "uniq": {"uniques": 1}}], ErrorKind.MALFORMED),  # `sum` is missing, not null
        ([None], ErrorKind.MALFORMED),
        ([row(FIRST), row(SECOND), row(SECOND)], ErrorKind.TRUNCATED),
        ([row(FIRST)] * 1000, ErrorKind.TRUNCATED),
    ],
)
def test_rows_that_are_not_what_was_asked_for_never_become_a_bucket(rows: list[Any], kind: ErrorKind) -> None:
    assert failure(answer({A.tag: rows})).kind is kind


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "0x10", "01"])
def test_what_is_no_number_never_becomes_a_sample(number: str) -> None:
    body = answer({A.tag: [row(FIRST, bytes=123456789)]}).replace(b"123456789", number.encode())
    assert failure(body).kind is ErrorKind.MALFORMED


def test_a_full_page_is_never_taken_for_complete() -> None:
    asked = query(windows=2)
    complete = answer({A.tag: [row(FIRST), row(SECOND)]})
    full = answer({A.tag: [row(FIRST), row(SECOND), row(instant(HOUR + 7200))]})
    assert windows_of(complete, asked)
    found = failure(full, asked)
    assert found.kind is ErrorKind.TRUNCATED
    assert "3 rows for 2 windows" in found.message


def test_one_zones_mistake_does_not_cost_the_others() -> None:
    zones = [zone(number) for number in range(1, 6)]
    asked = query(*zones)
    rows: dict[str, list[Any]] = {
        zones[0].tag: [row(FIRST, 1)],
        zones[1].tag: [row(FIRST, -1)],
        zones[3].tag: [],
        zones[4].tag: [{}],
    }
    decoded = decode(answer(rows), asked)
    assert list(decoded) == [(each.tag, NAME) for each in zones]
    kinds = [found.kind if isinstance(found, ApiFailure) else "answered" for found in decoded.values()]
    assert kinds == ["answered", "malformed", "missing_zone", "answered", "malformed"]


def test_zones_may_come_in_any_order_and_uninvited() -> None:
    decoded = decode(answer({zone(9).tag: [], B.tag: [row(FIRST, 2)], A.tag: [row(FIRST, 1)]}), query(A, B))
    assert set(decoded) == {(A.tag, NAME), (B.tag, NAME)}
    for asked, requests in ((A, 1), (B, 2)):
        found = decoded[asked.tag, NAME]
        assert not isinstance(found, ApiFailure)
        assert readable(found[HOUR])["requests"] == requests


def test_a_zone_that_comes_twice_is_not_believed() -> None:
    body = answer({A.tag: [row(FIRST, 1)]})
    entry = msgspec.json.decode(body)["data"]["viewer"]["zones"][0]
    twice = json.dumps({"data": {"viewer": {"zones": [entry, entry]}}, "errors": None}).encode()
    assert failure(twice).kind is ErrorKind.MALFORMED


def test_an_entry_without_a_tag_may_be_the_missing_zones() -> None:
    body = json.dumps({"data": {"viewer": {"zones": [{"rows": []}]}}}).encode()
    assert failure(body).kind is ErrorKind.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'{"data": null, "errors": null}',
        b'{"data": {"viewer": null}}',
        b'{"data": {"viewer": {"zones": null}}}',
        b'{"data": {"viewer": {"zones": {}}}}',
        b'{"data": {"viewer": {"zones": [[]]}}}',
        b'{"data": {"viewer": {"zones": [{"zoneTag": null, "rows": []}]}}}',
        b'{"data": {"viewer": {"zones": [{"zoneTag": "x", "rows": "\\ud800"}]}}}',
        b'{"data": {"viewer": {"zones": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}}}",
    ],
)
def test_a_body_of_another_shape_fails_every_zone(body: bytes) -> None:
    decoded = decode(body, query(A, B))
    kinds = {found.kind for found in decoded.values() if isinstance(found, ApiFailure)}
    assert len(decoded) == 2
    assert kinds == {ErrorKind.MALFORMED}


def test_rows_nested_without_end_fail_their_zone() -> None:
    body = answer({A.tag: []}).replace(b"[]", b"[" * 100_000 + b"]" * 100_000, 1)
    assert failure(body).kind is ErrorKind.MALFORMED


@given(st.binary())
def test_any_bytes_are_an_outcome(body: bytes) -> None:
    assert failure(body).kind is ErrorKind.MALFORMED


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just(FIRST),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["start", "dimensions", "sum", "uniq", "requests", "countryMap"]), inner)
    ),
    max_leaves=20,
)


@given(_JSON, st.dictionaries(st.sampled_from(sorted(row(FIRST)["sum"])), _JSON, max_size=3))
def test_any_rows_are_an_outcome_and_what_is_answered_is_finite_and_distinct(
    rows: Any, changed: dict[str, Any]
) -> None:
    whole = row(FIRST)
    for content in (rows, [whole | {"sum": whole["sum"] | changed}]):
        entry = {"zoneTag": A.tag, "rows": content}
        decoded = decode(json.dumps({"data": {"viewer": {"zones": [entry]}}}).encode(), query())[A.tag, NAME]
        if isinstance(decoded, ApiFailure):
            assert decoded.kind in (ErrorKind.MALFORMED, ErrorKind.TRUNCATED)
            continue
        for samples in decoded.values():
            assert all(math.isfinite(value) and value >= 0 for value in samples.values)
            assert len(set(samples.series)) == len(samples.series) == len(samples.values)


def test_a_decoder_that_remembers_and_one_that_does_not_agree() -> None:
    random_rows = random.Random(3)
    small, large, fresh = Decoder(max_cached_blocks=30), Decoder(), Decoder(max_cached_blocks=0)
    zones = [zone(number) for number in range(6)]
    for _ in range(60):
        asked = query(*random_rows.sample(zones, 3), dataset=random_rows.choice([HTTP_REQUESTS, NARROWED]))
        body = answer({each.tag: [random_row(random_rows)] for each in asked.scopes})
        assert decode(body, asked, small) == decode(body, asked, large) == decode(body, asked, fresh)
        assert small._cached <= 30
        assert sum(blocks.count for blocks in small._blocks.values()) == small._cached
    assert fresh._blocks == {}


def test_a_renamed_zone_gets_new_labels_at_once() -> None:
    decoder = Decoder()
    for name in ("old.example", "new.example"):
        asked = zone(1, name)
        decoded = decode(answer({asked.tag: []}), query(asked), decoder)[asked.tag, NAME]
        assert not isinstance(decoded, ApiFailure)
        assert parse_label_block(decoded[HOUR].series[0])["zone"] == name


NARROWED = HTTP_REQUESTS.without({"sum_threats", "sum_countryMap"})


def random_row(source: random.Random) -> dict[str, Any]:
    countries = [
        {"clientCountryName": source.choice("ABCDEFGH"), "requests": source.randrange(9), "bytes": 1, "threats": 0}
        for _ in range(source.randrange(5))
    ]
    return row(source.choice([FIRST, SECOND]), source.randrange(9), countryMap=countries)


def test_decoding_a_large_answer_does_not_serialize_a_series_per_window(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counting(name: str, labels: dict[str, str]) -> bytes:
        nonlocal made
        made += 1
        return f"{name}{sorted(labels.items())}".encode()

    monkeypatch.setattr("worker.cloudflare.rows.label_block", counting)
    asked = query(width_seconds=60, windows=60)
    rows = [row(instant(start), 1) for start in asked.starts]
    decoder = Decoder()
    for _ in range(3):
        decoder.decode(answer({A.tag: rows}), asked)
    assert made == 1 + 9 + 10


def test_the_recorded_answer_decodes() -> None:
    path = RESPONSES / "zone_httpRequests1hGroups.json"
    if not path.exists():
        pytest.skip("the recorded answers are not here")
    # It answers another client's query: no aliases, no TLS versions, one zone that is not named, rows in no order.
    (recorded,) = json.loads(path.read_text())["data"]["viewer"]["zones"]
    rows = [
        each | {"dimensions": {"start": each["dimensions"]["datetime"]}} for each in recorded["httpRequests1hGroups"]
    ]
    asked = HTTP_REQUESTS.without({"sum_clientSSLMap"})
    since = 1_582_387_200  # 2020-02-22T16:00:00Z, the oldest of its rows
    found = windows_of(answer({A.tag: rows}), query(windows=11, since=since, dataset=asked))
    assert sum(window["requests"] for window in found.values()) == len(rows)
    busy = found[since + 4 * 3600]
    assert busy["country_response_bytes{country=DE}"] == busy["response_bytes"] == 501
    assert busy["status_requests{status=530}"] == busy["ip_class_requests{ip_class=unknown}"] == 1
    assert sum(window["requests"] == 0 for window in found.values()) == 11 - len(rows)
