from pathlib import Path

import pytest

from worker.cloudflare.catalogue import (
    Breakdown,
    Dataset,
    Grain,
    Label,
    Metric,
    ScopeKind,
    TimeType,
    Top,
    Total,
    extended,
    load,
    shipped,
)
from worker.errors import ConfigError

LABELLED = """
kv_operations:
  help: Operations on namespaces.
  scope: account
  groups: [account, storage]
  node: kvOperationsAdaptiveGroups
  times: [datetimeMinute, datetimeHour, date]
  where: {actionType: read, responseStatusCode_in: [200, 404], isOld: true}
  labels: {namespace: namespaceId}
  top: {keep: 50, by: sum.requests}
  sampled: true
  delay_seconds: 900
  metrics:
    kv_requests: {field: sum.requests, unit: requests, help: Requests in the window.}
    kv_latency_seconds: {field: sum.latencyMs, scale: 0.001, unit: seconds, help: Time.}
"""

STATE = """
kv_storage:
  help: What is stored.
  scope: account
  node: kvStorageAdaptiveGroups
  times: [datetimeHour]
  time_filter: datetimeHour
  labels: {namespace: namespaceId}
  metrics:
    kv_stored_bytes: {field: max.byteCount, unit: bytes, additive: false, zero: false, help: Bytes.}
"""

WIDTHS = """
rollups:
  help: Rollups.
  scope: zone
  widths:
    3600: {node: hours, dimension: datetime, filter: datetime}
    86400: {node: days, filter: date, type: Date}
  metrics: {}
  maps:
    country: {field: sum.countryMap, key: country, metrics: {by_country: {field: n, unit: requests, help: Some.}}}
"""


def loaded(text: str) -> Dataset:
    found = load(text, "mine.yaml")
    assert not isinstance(found, tuple), found
    (dataset,) = found.values()
    return dataset


def mistakes(text: str) -> list[str]:
    found = load(text, "mine.yaml", beside=shipped())
    assert isinstance(found, tuple)
    return [str(mistake).removeprefix("mine.yaml:") for mistake in found]


def test_a_dataset_is_what_its_file_says() -> None:
    node, since, until = "kvOperationsAdaptiveGroups", "datetime_geq", "datetime_lt"
    assert loaded(LABELLED) == Dataset(
        name="kv_operations",
        help="Operations on namespaces.",
        grains=(
            Grain(60, node, "datetimeMinute", since, until, TimeType.TIME),
            Grain(300, node, None, since, until, TimeType.TIME),
            Grain(900, node, None, since, until, TimeType.TIME),
            Grain(1800, node, None, since, until, TimeType.TIME),
            Grain(3600, node, "datetimeHour", since, until, TimeType.TIME),
            Grain(86400, node, "date", "date_geq", "date_lt", TimeType.DATE),
        ),
        totals=(
            Total(("sum", "requests"), Metric("kv_requests", "Requests in the window.", "requests")),
            Total(("sum", "latencyMs"), Metric("kv_latency_seconds", "Time.", "seconds"), scale=0.001),
        ),
        scope=ScopeKind.ACCOUNT,
        groups=("account", "storage"),
        labels=(Label("namespace", "namespaceId"),),
        where=(("actionType", "read"), ("responseStatusCode_in", (200, 404)), ("isOld", True)),
        top=Top(50, ("sum", "requests")),
        delay_seconds=900,
        is_sampled=True,
    )


def test_a_state_has_no_zero_no_sum_and_no_window_narrower_than_its_filter_can_cut_out() -> None:
    dataset = loaded(STATE)
    assert dataset.widths_seconds == (3600, 86400)
    assert [grain.dimension for grain in dataset.grains] == ["datetimeHour", None]
    assert {(grain.since, grain.until) for grain in dataset.grains} == {("datetimeHour_geq", "datetimeHour_lt")}
    assert dataset.totals == (
        Total(("max", "byteCount"), Metric("kv_stored_bytes", "Bytes.", "bytes", additive=False), has_zero=False),
    )


def test_widths_name_a_node_each_and_maps_break_its_rows_down() -> None:
    dataset = loaded(WIDTHS)
    assert dataset.grains == (
        Grain(3600, "hours", "datetime", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(86400, "days", None, "date_geq", "date_lt", TimeType.DATE),
    )
    assert dataset.breakdowns == (
        Breakdown(("sum", "countryMap"), "country", "country", (("n", Metric("by_country", "Some.", "requests")),)),
    )


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("scope: account", "scope: acount", "4 (given: acount): scope must be one of zone, account (did you mean acc"),
        ("scope: account", "scope: [account]", "4: scope must be text on one line"),
        (
            "  help: Operations",
            "  halp: Operations",
            "3 (given: halp): is not a key of kv_operations (did you mean help",
        ),
        ("  scope: account\n", "", "3: kv_operations lacks scope"),
        ("  node: kvOperationsAdaptiveGroups\n", "", "2 (given: kv_operations): lacks node, or widths instead of both"),
        ("namespaces.", "namespaces", "3 (given: Operations on namespaces): help must be a sentence"),
        ("kv_operations:", "KV-Operations:", "2 (given: KV-Operations): a dataset's name has small letters"),
        ("kv_operations:", "all:", "2 (given: all): is the group of all datasets"),
        ("kv_operations:", "http:", "2 (given: http): is the name of a group, too"),
        ("kv_operations:", "facts:", "2 (given: facts): is the name of a group, too"),
        ("kv_operations:", "lb_pools:", "2 (given: lb_pools): is the name of facts, which come from the REST API"),
        ("storage]", "Storage]", "5 (given: Storage): a group's name has small letters"),
        ("storage]", "http_requests]", "2 (given: kv_operations): is in the group http_requests, which is the name of"),
        ("datetimeMinute", "datetimeMinutes", "7 (given: datetimeMinutes): is not a time dimension: datetimeMinute, "),
        ("datetimeMinute", "datetimeDay", "7 (given: date): is as wide as datetimeDay; give one of them"),
        ("datetimeMinute", "date", "7 (given: date): is given a second time in times"),
        ("  sampled: true", "  time_filter: time", "11 (given: time): time_filter must be one of datetime, datetimeM"),
        ("sampled: true", "sampled: 1", "11 (given: 1): sampled must be true or false"),
        ("delay_seconds: 900", "delay_seconds: -1", "12 (given: -1): delay_seconds must be a whole number from 0 to"),
        ("delay_seconds: 900", "delay_seconds: true", "12 (given: true): delay_seconds must be a whole number from 0"),
        ("actionType: read", "actionType: 1.5", "8 (given: 1.5): a condition must be text, a whole number, true"),
        ("[200, 404]", "[200, true]", "8: a condition must be a list of texts or whole numbers"),
        ("actionType:", "action type:", "8 (given: action type): a field of where must be a name of Cloudflare's"),
        ("namespace: namespaceId", "n-s: namespaceId", "9 (given: n-s): a label's name has letters, digits and"),
        ("namespace: namespaceId", "account_id: namespaceId", "9 (given: account_id): is the worker's own label"),
        ("namespace: namespaceId", "client: clientIP", "9 (given: clientIP): is personal data"),
        ("  labels: {namespace: namespaceId}\n", "", "9: top needs labels"),
        ("  top: {keep: 50, by: sum.requests}\n", "", "9: labels need a top, which bounds how many series there are"),
        ("keep: 50", "keep: 0", "10 (given: 0): keep must be a whole number from 1 to 10000"),
        ("by: sum.requests", "by: sum.request", "10: top is by sum.request, which no metric has (did you mean sum.r"),
        ("field: sum.latencyMs", "field: latencyMs", "15 (given: latencyMs): a field is `count`, or an object and a"),
        ("field: sum.latencyMs", "field: max.latencyMs", "15 (given: max.latencyMs): may not be summed over windows"),
        ("scale: 0.001", "additive: false", "10: the rest of a top is summed up, and kv_latency_seconds cannot be"),
        ("scale: 0.001", "scale: 0", "15 (given: 0): scale must be a number greater than 0"),
        ("scale: 0.001", "scale: .nan", "15 (given: .nan): scale must be a number greater than 0"),
        ("unit: seconds", "unit: second", "15 (given: second): unit must be one of bytes, seconds, "),
        (
            "kv_latency_seconds",
            "kv_latency",
            "15 (given: kv_latency): counts seconds, so its name must end in _seconds",
        ),
        ("kv_requests", "kv_requests_total", "14 (given: kv_requests_total): must not end in _total"),
        ("kv_requests", "kv-requests", "14 (given: kv-requests): a metric's name has letters, digits, underscores"),
        ("kv_requests", "cloudflare_zone_requests", "14 (given: cloudflare_zone_requests): is the name of another m"),
        ("kv_latency_seconds", "kv_requests", "15 (given: kv_requests): is given a second time in metrics; the first"),
        ("  metrics:", "  maps: {}\n  metrics:", "13: maps are for datasets without labels"),
        ("  metrics:", "  widths: {}\n  metrics:", "6 (given: kvOperationsAdaptiveGroups): node says what widths"),
        ("[account, storage]", "[account, storage", "6: is not YAML: while parsing a flow sequence"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_nearest_valid_name(old: str, new: str, mistake: str) -> None:
    assert old in LABELLED
    first, *rest = mistakes(LABELLED.replace(old, new, 1))
    assert first.startswith(mistake)
    assert rest == []


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("3600:", "3601:", "6 (given: 3601): a width must be one of 60, 300, 900, 1800, 3600, 86400"),
        ("type: Date", "type: Dat", "7 (given: Dat): type must be one of Time, Date (did you mean Date?)"),
        ("node: days, ", "", "7: a width lacks node"),
        ("key: country", "key: clientIP", "10 (given: clientIP): is personal data"),
        ("country: {field", "zone: {field", "10 (given: zone): is the worker's own label"),
    ],
)
def test_mistakes_in_widths_and_maps_are_told_as_well(old: str, new: str, mistake: str) -> None:
    assert [text[: len(mistake)] for text in mistakes(WIDTHS.replace(old, new, 1))] == [mistake]


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = (LABELLED + STATE).replace("scope: account", "scope: galaxy").replace("kv_stored_bytes", "kv_stored")
    assert [mistake.partition(" ")[0] for mistake in mistakes(text)] == ["4", "19", "25"]


@pytest.mark.parametrize(
    "text", ["- a list", "just text", "[}", "a: &a {b: *a}", "a: !!python/none x", "\x00", "a: [" * 3000]
)
def test_what_is_no_catalogue_is_a_mistake_and_no_crash(text: str) -> None:
    assert mistakes(text)


def test_an_empty_file_adds_nothing() -> None:
    assert load("# nothing yet\n", "mine.yaml") == {}


def test_a_users_file_adds_datasets_and_overrides_shipped_ones_with_their_metrics(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    metric = "cloudflare_zone_requests: {field: sum.requests, unit: requests, help: All.}"
    own.write_text(
        f"http_requests:\n  help: Mine.\n  scope: zone\n  node: httpRequests1mGroups\n  times: []\n"
        f"  metrics:\n    {metric}\n{STATE.replace('kv_', 'own_kv_')}"
    )
    catalogue = extended(own)
    assert catalogue["http_requests"].help == "Mine."
    assert [metric.name for metric, _ in catalogue["http_requests"].metrics()] == ["cloudflare_zone_requests"]
    assert catalogue.keys() - shipped().keys() == {"own_kv_storage"}
    assert shipped()["http_requests"].help != "Mine."


def test_a_users_file_that_is_wrong_or_unreadable_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("http: 1\n")
    with pytest.raises(ConfigError, match=r"own.yaml:1 \(given: 1\): http must be a mapping"):
        extended(own)
    own.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"own.yaml\): is not UTF-8 text"):
        extended(own)
    with pytest.raises(ConfigError, match=r"CF_CATALOGUE .*no\.yaml\): cannot be read: No such file"):
        extended(tmp_path / "no.yaml")
    assert extended(None) is shipped()
