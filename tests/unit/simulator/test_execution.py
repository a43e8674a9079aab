import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.unit.simulator.worlds import ALL_FIELDS, NOW, ask, changed, enterprise, iso, query, rows_by_zone, world_of
from worker.simulator.entitlements import ENTITLEMENTS, Entitlement
from worker.simulator.execution import Answer, Asked, execute
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.refusals import Dialect

FLEET = enterprise(zones=10)
TAGS = [zone.tag for zone in FLEET.zones]
BUSY = TAGS[0]
MINUTES = "httpRequests1mGroups"
HOURS = "httpRequests1hGroups"
DAYS = "httpRequests1dGroups"
DAY = NOW - NOW % 86_400
# The hour before the last has settled.
HOUR = NOW - 7_200


def refused(answer: Answer) -> dict[str, Any]:
    """The one error of an answer that has nothing else."""
    assert answer.data is None
    (refusal,) = answer.refusals
    error = refusal.as_json(NOW)
    return {
        "status": answer.status,
        "message": error["message"],
        "path": error["path"],
        "code": error["extensions"].get("code"),
    }


def test_a_row_shows_the_whole_truth_of_its_window() -> None:
    answer = ask(world_of(FLEET), query(HOURS, fields=ALL_FIELDS), [BUSY], HOUR, HOUR + 3600)
    (row,) = rows_by_zone(answer, HOURS)[BUSY]
    truth = FLEET.bucket(BUSY, HOUR, 3600)
    assert truth is not None
    total = row["sum"]
    assert row["dimensions"] == {"datetime": iso(HOUR)}
    assert row["uniq"] == {"uniques": truth.unique_visitors}
    assert row["avg"]["bytes"] == truth.response_bytes / truth.requests
    assert row["avg"]["sampleInterval"] == 1.0
    assert {name: value for name, value in total.items() if isinstance(value, int)} == {
        "requests": truth.requests,
        "bytes": truth.response_bytes,
        "cachedRequests": truth.cached_requests,
        "cachedBytes": truth.cached_response_bytes,
        "encryptedRequests": truth.encrypted_requests,
        "encryptedBytes": truth.encrypted_response_bytes,
        "edgeRequestBytes": truth.edge_request_bytes,
        "pageViews": truth.page_views,
        "threats": truth.threats,
    }
    assert {
        element["clientCountryName"]: (element["requests"], element["bytes"], element["threats"])
        for element in total["countryMap"]
    } == {
        country: (requests, truth.country_response_bytes[country], truth.country_threats[country])
        for country, requests in truth.country_requests.items()
    }
    assert {
        element["edgeResponseContentTypeName"]: (element["requests"], element["bytes"])
        for element in total["contentTypeMap"]
    } == {
        name: (requests, truth.content_type_response_bytes[name])
        for name, requests in truth.content_type_requests.items()
    }
    for map_name, label, amount, expected in (
        ("responseStatusMap", "edgeResponseStatus", "requests", truth.status_requests),
        ("browserMap", "uaBrowserFamily", "pageViews", truth.browser_page_views),
        ("clientHTTPVersionMap", "clientHTTPProtocol", "requests", truth.http_version_requests),
        ("clientSSLMap", "clientSSLProtocol", "requests", truth.tls_version_requests),
        ("ipClassMap", "ipType", "requests", truth.ip_class_requests),
        ("threatPathingMap", "threatPathingName", "requests", truth.threat_type_requests),
    ):
        assert {element[label]: element[amount] for element in total[map_name]} == expected


@pytest.mark.parametrize(
    ("node", "dimension", "width"),
    [
        (MINUTES, "datetime", 60),
        (MINUTES, "datetimeMinute", 60),
        (MINUTES, "datetimeFiveMinutes", 300),
        (MINUTES, "datetimeFifteenMinutes", 900),
        (MINUTES, "datetimeHalfOfHour", 1_800),
        (MINUTES, "datetimeHour", 3_600),
        (HOURS, "datetime", 3_600),
    ],
)
def test_rows_are_grouped_by_the_dimension_asked_for(node: str, dimension: str, width: int) -> None:
    text = query(node, dimensions=dimension, order=f"orderBy: [{dimension}_ASC]")
    rows = rows_by_zone(ask(world_of(FLEET), text, [BUSY], HOUR, HOUR + 3600), node)[BUSY]
    expected = [FLEET.bucket(BUSY, start, width) for start in range(HOUR, HOUR + 3600, width)]
    assert [row["dimensions"][dimension] for row in rows] == [iso(start) for start in range(HOUR, HOUR + 3600, width)]
    assert [row["sum"]["requests"] for row in rows] == [truth.requests for truth in expected if truth]


def test_days_are_dates() -> None:
    text = query(DAYS, dimensions="date", order="orderBy: [date_DESC]")
    rows = rows_by_zone(ask(world_of(FLEET), text, [BUSY], DAY - 2 * 86_400, DAY), DAYS)[BUSY]
    assert [row["dimensions"]["date"] for row in rows] == ["2025-06-16", "2025-06-15"]
    truth = FLEET.bucket(BUSY, DAY - 86_400, 86_400)
    assert truth is not None
    assert rows[0]["sum"]["requests"] == truth.requests


def test_without_dimensions_the_whole_range_is_one_row() -> None:
    answer = ask(world_of(FLEET), query(MINUTES, dimensions=""), [BUSY], HOUR, HOUR + 600)
    truth = FLEET.bucket(BUSY, HOUR, 600)
    assert truth is not None
    assert rows_by_zone(answer, MINUTES)[BUSY] == [{"sum": {"requests": truth.requests}}]


def test_a_window_without_traffic_has_no_row() -> None:
    office = TAGS[3]
    sunday = DAY - 2 * 86_400
    answer = ask(world_of(FLEET), query(HOURS), [office], sunday, sunday + 86_400)
    assert rows_by_zone(answer, HOURS)[office] == []


def test_a_recent_window_shows_only_what_has_arrived() -> None:
    answer = ask(world_of(FLEET, NOW + 60), query(MINUTES), [BUSY], NOW - 60, NOW)
    (row,) = rows_by_zone(answer, MINUTES)[BUSY]
    truth = FLEET.bucket(BUSY, NOW - 60, 60)
    assert truth is not None
    assert 0.4 < row["sum"]["requests"] / truth.requests < 0.5


def test_a_page_ends_at_the_limit_without_a_word() -> None:
    text = query(MINUTES, limit=7, order="orderBy: [datetime_ASC]")
    rows = rows_by_zone(ask(world_of(FLEET), text, [BUSY], HOUR, HOUR + 3600), MINUTES)[BUSY]
    assert [row["dimensions"]["datetime"] for row in rows] == [iso(HOUR + 60 * minute) for minute in range(7)]


def test_rows_come_in_no_order_unless_one_is_asked_for() -> None:
    def times(order: str, salt: str) -> list[str]:
        answer = ask(changed(world_of(FLEET), salt=salt), query(MINUTES, order=order), [BUSY], HOUR, HOUR + 3600)
        return [row["dimensions"]["datetime"] for row in rows_by_zone(answer, MINUTES)[BUSY]]

    assert times("", "one") != times("", "other")
    assert sorted(times("", "one")) == times("orderBy: [datetime_ASC]", "one")
    assert times("orderBy: [datetime_DESC]", "one") == times("orderBy: [datetime_ASC]", "other")[::-1]


def test_rows_are_ordered_by_sums_and_by_several_fields() -> None:
    text = query(MINUTES, order="orderBy: [sum_requests_DESC, datetime_ASC]")
    rows = rows_by_zone(ask(world_of(FLEET), text, [TAGS[2]], HOUR, HOUR + 3600), MINUTES)[TAGS[2]]
    keys = [(-row["sum"]["requests"], row["dimensions"]["datetime"]) for row in rows]
    assert len(keys) > 5
    assert keys == sorted(keys)


def test_zones_come_back_in_another_order() -> None:
    orders = {
        tuple(rows_by_zone(ask(changed(world_of(FLEET), salt=salt), query(HOURS), TAGS, HOUR, HOUR + 3600), HOURS))
        for salt in "abc"
    }
    assert len(orders) == 3
    assert all(set(order) == set(TAGS) for order in orders)


def test_a_zone_that_the_token_cannot_see_is_missing_without_a_word() -> None:
    answer = ask(world_of(FLEET), query(HOURS), [BUSY, "0" * 32], HOUR, HOUR + 3600)
    assert list(rows_by_zone(answer, HOURS)) == [BUSY]


def test_an_answer_tells_what_was_asked() -> None:
    answer = ask(world_of(FLEET), query(HOURS), [BUSY, "0" * 32], HOUR, HOUR + 3600)
    assert answer.asked == (Asked(HOURS, HOURS, (BUSY, "0" * 32), HOUR, HOUR + 3600),)


def test_eleven_zones_are_too_many() -> None:
    answer = ask(world_of(FLEET), query(HOURS), [*TAGS, "0" * 32], HOUR, HOUR + 3600)
    assert refused(answer) == {
        "status": 200,
        "message": "too many zones requested",
        "path": ["viewer", "zones"],
        "code": "quota",
    }


def test_too_many_datasets_for_so_many_zones_are_refused() -> None:
    some = "{ sum { requests } }"
    time_filter = f'{{datetime_geq: "{iso(HOUR)}", datetime_lt: "{iso(NOW)}"}}'
    windows = " ".join(f"w{place}: {HOURS}(limit: 9, filter: {time_filter}) {some}" for place in range(6))
    text = f"query ($tags: [string!]) {{ viewer {{ zones(filter: {{zoneTag_in: $tags}}) {{ {windows} }} }} }}"
    too_many = execute(text, {"tags": TAGS}, None, world_of(FLEET))
    assert refused(too_many)["message"] == "in combination, your request queries too many nodes, zones and accounts"
    assert refused(too_many)["status"] == 429
    assert execute(text, {"tags": TAGS[:8]}, None, world_of(FLEET)).refusals == ()


def test_a_dataset_that_the_plan_does_not_have_is_denied() -> None:
    fleet = Fleet(zones=2, plans=(Plan.ENTERPRISE, Plan.FREE))
    tags = [zone.tag for zone in fleet.zones]
    assert refused(ask(world_of(fleet), query(MINUTES), tags, HOUR, HOUR + 60)) == {
        "status": 403,
        "message": f"zone '{tags[1]}' does not have access to the path",
        "path": ["viewer", "zones", "1", MINUTES],
        "code": "authz",
    }


def test_a_field_that_the_zone_does_not_have_is_denied() -> None:
    world = changed(world_of(FLEET), denied_fields=frozenset({(BUSY, HOURS, "sum_cachedBytes")}))
    text = query(HOURS, fields="sum { requests cachedBytes }")
    assert refused(ask(world, text, [BUSY], HOUR, HOUR + 3600)) == {
        "status": 403,
        "message": f"zone '{BUSY}' does not have access to the field 'cachedbytes'",
        "path": ["viewer", "zones", "0", HOURS],
        "code": "authz",
    }
    assert ask(world, query(HOURS), [BUSY], HOUR, HOUR + 3600).refusals == ()


def test_a_range_that_is_too_wide_is_refused() -> None:
    recent = ask(world_of(FLEET), query(MINUTES), [BUSY], NOW - 86_400, NOW)
    assert refused(recent) == {
        "status": 400,
        "message": "cannot request a time range wider than 15h, but your query time range spans 1d",
        "path": ["viewer", "zones", "0", MINUTES],
        "code": "quota",
    }
    earlier = ask(changed(world_of(FLEET), dialect=Dialect.EARLIER), query(MINUTES), [BUSY], NOW - 86_400, NOW)
    assert refused(earlier) == {
        "status": 200,
        "message": f"query time range is too large for zone {BUSY}. "
        "Time range can't be wider than 54000s, but it's 86400s",
        "path": [MINUTES, "viewer", "zones", "0", MINUTES],
        "code": "quota",
    }


def test_a_range_that_begins_too_long_ago_is_refused() -> None:
    since = NOW - 8 * 86_400 - 3_660
    recent = ask(world_of(FLEET), query(MINUTES), [BUSY], since, since + 60)
    assert refused(recent) == {
        "status": 400,
        "message": "cannot request data older than 1w, but your query requests data from 1w1d1h1m ago",
        "path": ["viewer", "zones", "0", MINUTES],
        "code": "quota",
    }
    earlier = ask(changed(world_of(FLEET), dialect=Dialect.EARLIER), query(MINUTES), [BUSY], since, since + 60)
    assert refused(earlier)["message"] == "cannot request data older than 604800s"


def test_the_oldest_range_that_is_allowed_is_answered() -> None:
    answer = ask(world_of(FLEET), query(MINUTES), [BUSY], NOW - 7 * 86_400, NOW - 7 * 86_400 + 60)
    assert len(rows_by_zone(answer, MINUTES)[BUSY]) == 1


def test_a_range_without_an_end_reaches_to_now() -> None:
    text = f"""{{ viewer {{ zones(filter: {{zoneTag: "{BUSY}"}}) {{
        zoneTag {HOURS}(limit: 10, filter: {{datetime_geq: "{iso(HOUR)}"}}) {{ dimensions {{ datetime }} }} }} }} }}"""
    answer = execute(text, {}, None, world_of(FLEET, NOW + 1800))
    assert len(rows_by_zone(answer, HOURS)[BUSY]) == 3
    assert answer.asked[0].end == NOW + 1800


def test_a_range_without_a_beginning_asks_for_what_is_too_old() -> None:
    text = query(HOURS).replace("datetime_geq: $since, ", "").replace("$since: Time!, ", "")
    answer = execute(text, {"tags": [BUSY], "until": iso(NOW)}, None, world_of(FLEET))
    assert refused(answer)["message"].startswith("cannot request data older than 12w6d")


@pytest.mark.parametrize("limit", [0, 10_001])
def test_a_limit_outside_the_page_size_is_refused(limit: int) -> None:
    error = refused(ask(world_of(FLEET), query(HOURS, limit=limit), [BUSY], HOUR, HOUR + 3600))
    assert error["message"] == "limit must be positive number and not greater than 10000"
    assert error["status"] == 400


def test_too_many_fields_are_refused() -> None:
    tight = {
        plan: {node: replace(each, max_fields=2) for node, each in nodes.items()}
        for plan, nodes in ENTITLEMENTS.items()
    }
    world = changed(world_of(FLEET), entitlements=tight)
    assert ask(world, query(HOURS), [BUSY], HOUR, HOUR + 3600).refusals == ()
    error = refused(ask(world, query(HOURS, fields="sum { requests bytes }"), [BUSY], HOUR, HOUR + 3600))
    assert error["message"] == "number of fields can't be more than 2"


def test_one_bad_zone_refuses_the_whole_query() -> None:
    fleet = Fleet(zones=10, plans=(Plan.ENTERPRISE,) * 9 + (Plan.FREE,))
    answer = ask(world_of(fleet), query(MINUTES), [zone.tag for zone in fleet.zones], HOUR, HOUR + 60)
    assert answer.data is None
    assert refused(answer)["path"] == ["viewer", "zones", "9", MINUTES]


def test_settings_tell_what_the_plan_allows() -> None:
    fleet = Fleet(zones=2, plans=(Plan.PRO, Plan.FREE))
    pro, free = (zone.tag for zone in fleet.zones)
    text = """{ viewer { zones { zoneTag settings { httpRequests1mGroups {
        enabled availableFields maxDuration maxNumberOfFields maxPageSize notOlderThan } } } } }"""
    world = changed(world_of(fleet), denied_fields=frozenset({(pro, MINUTES, "sum_threats")}))
    answer = execute(text, {}, None, world)
    assert answer.data is not None
    settings = {zone["zoneTag"]: zone["settings"][MINUTES] for zone in answer.data["viewer"]["zones"]}
    fields = settings[pro].pop("availableFields")
    assert {"sum_requests", "sum_countryMap", "uniq_uniques", "dimensions_datetimeFiveMinutes"} < set(fields)
    assert "sum_threats" not in fields
    assert settings == {
        pro: {
            "enabled": True,
            "maxDuration": 54_000,
            "maxNumberOfFields": 70,
            "maxPageSize": 10_000,
            "notOlderThan": 86_400,
        },
        free: {
            "enabled": False,
            "availableFields": [],
            "maxDuration": 0,
            "maxNumberOfFields": 0,
            "maxPageSize": 0,
            "notOlderThan": 0,
        },
    }


def test_entitlements_can_be_overridden() -> None:
    generous = Entitlement(is_enabled=True, max_duration_seconds=10**9, not_older_than_seconds=10**9)
    world = changed(world_of(FLEET), entitlements={Plan.ENTERPRISE: {MINUTES: generous}})
    since = NOW - 400 * 86_400
    assert len(rows_by_zone(ask(world, query(MINUTES), [BUSY], since, since + 60), MINUTES)[BUSY]) == 1


def test_cost_and_budget_are_numbers() -> None:
    answer = execute("{ cost viewer { budget } }", {}, None, changed(world_of(FLEET), budget_left=17))
    assert answer.data == {"cost": 1, "viewer": {"budget": 17}}


def test_zones_can_be_walked_by_tag() -> None:
    text = "query ($after: string!) { viewer { zones(filter: {zoneTag_gt: $after}, limit: 4) { zoneTag } } }"
    seen: list[str] = []
    while True:
        answer = execute(text, {"after": max(seen, default="")}, None, world_of(FLEET))
        assert answer.data is not None
        page = [zone["zoneTag"] for zone in answer.data["viewer"]["zones"]]
        if not page:
            break
        seen += page
    assert sorted(seen) == sorted(TAGS)
    assert len(seen) == len(TAGS)


def test_zones_can_be_asked_for_below_their_account() -> None:
    account = FLEET.accounts[0].tag
    text = """query ($account: string!) { viewer { accounts(filter: {accountTag: $account}) {
        accountTag zones { zoneTag } } } }"""
    answer = execute(text, {"account": account}, None, world_of(FLEET))
    assert answer.data is not None
    (found,) = answer.data["viewer"]["accounts"]
    assert found["accountTag"] == account
    assert {zone["zoneTag"] for zone in found["zones"]} == set(TAGS[::2])


def test_an_account_that_the_token_cannot_see_is_an_error() -> None:
    text = '{ viewer { accounts(filter: {accountTag: "0"}) { accountTag } } }'
    assert refused(execute(text, {}, None, world_of(FLEET))) == {
        "status": 403,
        "message": "not authorized for that account",
        "path": ["viewer", "accounts"],
        "code": "authz",
    }


def test_aliases_fragments_and_conditions_mean_what_they_mean_in_graphql() -> None:
    text = f"""
      query Named($tag: string!, $no: Boolean!) {{
        viewer {{ mine: zones(filter: {{zoneTag: $tag}}) {{ ...rows zoneTag @include(if: $no) }} }}
      }}
      fragment rows on zone {{
        hourly: {HOURS}(limit: 1, filter: {{datetime: "{iso(HOUR)}"}}) {{
          ... on ZoneHttpRequests1hGroups {{ sum {{ count: requests }} }}
          sum {{ bytes }}
          uniq @skip(if: true) {{ uniques }}
        }}
      }}
      query Other {{ cost }}
    """
    truth = FLEET.bucket(BUSY, HOUR, 3600)
    assert truth is not None
    answer = execute(text, {"tag": BUSY, "no": False}, "Named", world_of(FLEET))
    assert answer.data == {
        "viewer": {"mine": [{"hourly": [{"sum": {"count": truth.requests, "bytes": truth.response_bytes}}]}]}
    }


@pytest.mark.parametrize(
    ("text", "variables", "complaint"),
    [
        ("{ viewer { zones", {}, "Syntax Error"),
        ("{ nothing }", {}, "nothing"),
        ("{ __schema { types { name } } }", {}, "not simulated"),
        ("query ($limit: uint64!) { viewer { zones(limit: $limit) { zoneTag } } }", {"limit": "10"}, "uint64"),
        ("query ($limit: uint64!) { viewer { zones(limit: $limit) { zoneTag } } }", {}, "limit"),
        ("query A { cost } query B { cost }", {}, "operationName"),
    ],
)
def test_a_query_that_is_wrong_is_refused_as_a_bad_request(
    text: str, variables: dict[str, Any], complaint: str
) -> None:
    error = refused(execute(text, variables, None, world_of(FLEET)))
    assert error["status"] == 400
    assert error["path"] is None
    assert complaint in error["message"]


def shape(value: Any) -> Any:
    """What is left of a JSON value without its data: names and types."""
    match value:
        case dict():
            return {name: shape(below) for name, below in value.items()}
        case list():
            return [shape(below) for below in value[:1]]
        case _:
            return type(value)


def test_an_answer_is_shaped_like_a_recorded_one() -> None:
    path = Path(__file__).parents[4] / "shared" / "cloudflare" / "responses" / "zone_httpRequests1hGroups.json"
    if not path.exists():
        pytest.skip(f"no recorded answer at {path}")
    (recorded,) = json.loads(path.read_text())["data"]["viewer"]["zones"]
    answer = ask(world_of(FLEET), query(HOURS, fields=ALL_FIELDS), [BUSY], HOUR, HOUR + 3600)
    (row,) = rows_by_zone(answer, HOURS)[BUSY]
    for part, expected in shape(recorded[HOURS][0]).items():
        for name, kind in expected.items():
            # An empty map has no shape.
            assert shape(row[part])[name] == kind or kind == []


def test_a_boundary_between_days_is_midnight_utc() -> None:
    text = query(MINUTES, dimensions="date datetime", order="orderBy: [datetime_ASC]")
    rows = rows_by_zone(ask(world_of(FLEET), text, [BUSY], DAY - 60, DAY + 60), MINUTES)[BUSY]
    midnight = datetime.fromtimestamp(DAY, UTC)
    assert midnight.hour == 0
    assert [row["dimensions"]["date"] for row in rows] == ["2025-06-16", "2025-06-17"]
