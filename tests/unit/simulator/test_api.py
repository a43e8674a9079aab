import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.truth import expected_samples
from tests.unit.simulator.asking import text_of, told, whole
from tests.unit.simulator.entries import ENTRIES, HTTP, WORKERS
from tests.unit.simulator.worlds import ALL_FIELDS, NOW, enterprise, iso, query
from worker.simulator import inventory
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import (
    EntitlementChanged,
    FieldDenied,
    FieldRemoved,
    GraphqlError,
    HttpStatus,
    Incident,
    MalformedJson,
    Oddity,
    OddRows,
    Surface,
    TokenRevoked,
    ZoneChanged,
    ZoneMissing,
)
from worker.simulator.fleet import Plan, ZoneStatus
from worker.simulator.quota import QuotaLimits
from worker.simulator.refusals import Dialect, RefusalKind

FLEET = enterprise()
BUSY, STEADY, *_ = (zone.tag for zone in FLEET.zones)
ACCOUNT = FLEET.accounts[0].tag
HOURS = "httpRequests1hGroups"
MINUTES = "httpRequests1mGroups"
HOUR = NOW - 7_200


class Client:
    """A client of one simulated API, without a port between them."""

    def __init__(self, api: SimulatedApi, clock: ManualClock) -> None:
        self.api = api
        self.clock = clock
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(api),
            base_url="http://api",
            headers={"Authorization": f"Bearer {ACCEPTED_BEARER}"},
        )

    async def get(self, path: str, **parameters: str) -> httpx.Response:
        return await self.http.get(f"/client/v4{path}", params=parameters)

    async def post(self, text: str, **variables: Any) -> httpx.Response:
        return await self.http.post("/client/v4/graphql", json={"query": text, "variables": variables})

    async def hour(self, *tags: str, fields: str = "sum { requests }") -> httpx.Response:
        return await self.post(
            query(HOURS, fields=fields), tags=tags or [BUSY], since=iso(HOUR), until=iso(HOUR + 3600)
        )

    async def zone_names(self) -> list[str]:
        return [zone["name"] for zone in (await self.get("/zones")).json()["result"]]


def client_of(**options: Any) -> Client:
    clock = ManualClock(NOW)
    return Client(SimulatedApi(FLEET, clock, **options), clock)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = client_of()
    async with made.http:
        yield made


def zones_of(response: httpx.Response) -> dict[str, list[dict[str, Any]]]:
    body = response.json()
    assert body["errors"] is None
    return {zone["zoneTag"]: zone[HOURS] for zone in body["data"]["viewer"]["zones"]}


async def test_an_accepted_token_is_verified(client: Client) -> None:
    response = await client.get("/user/tokens/verify")
    assert response.status_code == 200
    assert response.json()["result"]["status"] == "active"
    assert ACCEPTED_BEARER not in response.text


@pytest.mark.parametrize(
    ("header", "path", "status", "code"),
    [
        (None, "/zones", 400, 9_106),
        (None, "/user/tokens/verify", 400, 9_106),
        ("Basic abc", "/zones", 400, 6_003),
        ("Bearer", "/zones", 400, 6_003),
        ("Bearer wrong", "/zones", 403, 10_000),
        ("Bearer wrong", "/accounts", 403, 10_000),
        ("Bearer wrong", "/user/tokens/verify", 401, 1_000),
    ],
)
async def test_a_token_that_is_missing_or_wrong_is_refused(
    client: Client, header: str | None, path: str, status: int, code: int
) -> None:
    del client.http.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    response = await client.http.get(f"/client/v4{path}", headers=headers)
    assert response.status_code == status
    assert response.json()["errors"][0]["code"] == code
    assert response.json()["success"] is False


async def test_a_query_without_a_good_token_is_refused_in_an_envelope(client: Client) -> None:
    response = await client.http.post(
        "/client/v4/graphql", json={"query": "{ cost }"}, headers={"Authorization": "Bearer wrong"}
    )
    assert response.status_code == 403
    assert response.json()["errors"] == [{"code": 10_000, "message": "Authentication error"}]


async def test_accounts_and_zones_are_listed(client: Client) -> None:
    accounts = (await client.get("/accounts", per_page="50")).json()["result"]
    assert [account["id"] for account in accounts] == [account.tag for account in FLEET.accounts]
    zones = (await client.get("/zones", **{"account.id": FLEET.accounts[0].tag})).json()["result"]
    assert [zone["id"] for zone in zones] == [zone.tag for zone in FLEET.zones[::2]]


async def test_an_answer_holds_the_truth_and_null_for_errors(client: Client) -> None:
    response = await client.hour(BUSY, STEADY)
    truth = FLEET.bucket(BUSY, HOUR, 3600)
    assert truth is not None
    assert zones_of(response)[BUSY] == [{"dimensions": {"datetime": iso(HOUR)}, "sum": {"requests": truth.requests}}]
    assert response.headers["Content-Type"] == "application/json"
    assert '"errors":null' in response.text


async def test_integers_past_two_to_the_53_are_written_out(client: Client) -> None:
    vast = FLEET.zones[4].tag
    truth = FLEET.bucket(vast, HOUR, 3600)
    assert truth is not None
    assert truth.response_bytes > 2**53
    assert f'"bytes":{truth.response_bytes}' in (await client.hour(vast, fields="sum { bytes }")).text


async def test_a_body_that_is_no_query_is_a_bad_request(client: Client) -> None:
    for body in (b"", b"{", b'{"variables": {}}', b'{"query": 1}'):
        response = await client.http.post("/client/v4/graphql", content=body)
        assert response.status_code == 400
        assert response.json()["success"] is False


async def test_the_query_after_the_quota_is_refused_for_five_minutes() -> None:
    client = client_of(quota=QuotaLimits(graphql_requests=3))
    assert [(await client.post("{ cost }")).status_code for _ in range(3)] == [200] * 3
    refused = await client.post("{ cost }")
    assert refused.status_code == 429
    assert refused.json() == {
        "data": None,
        "errors": [
            {
                "message": "rate limiter budget depleted, try again after 5 minutes",
                "path": None,
                "extensions": {"code": "budget", "timestamp": "2025-06-17T15:00:00.000000000Z"},
            }
        ],
    }
    assert (await client.get("/zones")).status_code == 200
    await client.clock.advance(299)
    assert (await client.post("{ cost }")).status_code == 429
    await client.clock.advance(1)
    assert (await client.post("{ cost }")).status_code == 200


async def test_in_the_earlier_dialect_a_depleted_budget_has_status_200() -> None:
    client = client_of(quota=QuotaLimits(graphql_requests=0), dialect=Dialect.EARLIER)
    refused = await client.post("{ cost }")
    assert refused.status_code == 200
    assert refused.json()["errors"][0]["message"] == "rate limiter budget depleted, please try again later"


async def test_the_request_after_the_general_quota_is_refused_everywhere() -> None:
    client = client_of(quota=QuotaLimits(all_requests=2))
    await client.get("/zones")
    await client.post("{ cost }")
    for refused in (await client.get("/zones"), await client.post("{ cost }")):
        assert refused.status_code == 429
        assert refused.json()["errors"][0]["code"] == 971
        assert refused.headers["Retry-After"] == "300"


ACCOUNT_BASED = {"X-Rate-Limit-Type": "account-based"}


async def test_where_accounts_are_counted_a_list_of_zones_is_refused_outside_of_an_account() -> None:
    client = client_of()
    client.http.headers.update(ACCOUNT_BASED)
    listed = 'zones(filter: {zoneTag_in: ["%s"]}) { zoneTag }' % BUSY  # noqa: UP031 - braces are GraphQL's
    for zones in (listed, "zones { zoneTag }", 'zones(filter: {zoneTag_gt: "0"}) { zoneTag }'):
        refused = await client.post(f"{{ viewer {{ {zones} }} }}")
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["path"] == ["viewer", "zones"]
        assert "nested in an accounts block" in refused.json()["errors"][0]["message"]
    owner = next(zone.account.tag for zone in FLEET.zones if zone.tag == BUSY)
    nested = await client.post(f'{{ viewer {{ accounts(filter: {{accountTag: "{owner}"}}) {{ {listed} }} }} }}')
    assert nested.json()["data"]["viewer"]["accounts"] == [{"zones": [{"zoneTag": BUSY}]}]
    single = await client.post(f'{{ viewer {{ zones(filter: {{zoneTag: "{BUSY}"}}) {{ zoneTag }} }} }}')
    assert single.json()["data"]["viewer"]["zones"] == [{"zoneTag": BUSY}]


async def test_where_accounts_are_counted_each_account_and_each_zone_has_its_own_quota() -> None:
    client = client_of(quota=QuotaLimits(graphql_requests=2))
    client.http.headers.update(ACCOUNT_BASED)

    async def budget(of: str) -> Any:
        answer = (await client.post(f"{{ viewer {{ budget {of} }} }}")).json()
        return answer["data"]["viewer"]["budget"] if answer["data"] else answer["errors"][0]

    def account(tag: str) -> str:
        return f'accounts(filter: {{accountTag: "{tag}"}}) {{ accountTag }}'

    one, other = (each.tag for each in FLEET.accounts)
    zone = f'zones(filter: {{zoneTag: "{BUSY}"}}) {{ zoneTag }}'
    assert [await budget(account(one)) for _ in range(2)] == [1, 0]
    refused = await budget(account(one))
    assert refused["message"] == f"Account {one} has exceeded its rate limit"
    assert refused["extensions"]["code"] == "budget"
    assert [await budget(account(other)), await budget(zone), await budget(zone)] == [1, 1, 0]
    assert (await budget(zone))["message"] == f"Zone {BUSY} has exceeded its rate limit"
    await client.clock.advance(300)
    assert await budget(account(one)) == 1
    # Without the header, the token is what is counted, and nothing of this was counted against it.
    del client.http.headers["X-Rate-Limit-Type"]
    assert await budget(account(one)) == 1


async def test_the_budget_that_is_left_can_be_asked_for(client: Client) -> None:
    await client.post("{ cost }")
    assert (await client.post("{ cost viewer { budget } }")).json()["data"] == {"cost": 1, "viewer": {"budget": 298}}


async def test_an_outage_answers_nothing_but_its_status(client: Client) -> None:
    client.api.faults.add(HttpStatus(status=503, retry_after_seconds=7))
    for response in (await client.get("/zones"), await client.hour()):
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "7"
    client.api.faults.clear()
    assert (await client.hour()).status_code == 200
    assert client.api.faults.hits == {"http_status": 2}
    assert client.api.stats.statuses == {503: 2, 200: 1}


async def test_a_fault_may_hit_only_queries_or_only_the_rest(client: Client) -> None:
    client.api.faults.add(HttpStatus(on=Surface.GRAPHQL))
    assert (await client.get("/zones")).status_code == 200
    assert (await client.hour()).status_code == 503
    client.api.faults.clear()
    client.api.faults.add(HttpStatus(on=Surface.REST))
    assert (await client.get("/zones")).status_code == 503
    assert (await client.hour()).status_code == 200


async def test_a_page_of_html_may_come_with_status_200(client: Client) -> None:
    client.api.faults.add(HttpStatus(status=200, is_html=True))
    response = await client.hour()
    assert response.status_code == 200
    assert response.text.startswith("<!DOCTYPE html>")


async def test_malformed_json_is_whole_for_http(client: Client) -> None:
    client.api.faults.add(MalformedJson())
    response = await client.hour()
    assert response.status_code == 200
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        response.json()


async def test_a_revoked_token_is_refused_until_it_is_restored(client: Client) -> None:
    client.api.faults.add(TokenRevoked(count=2))
    assert (await client.get("/user/tokens/verify")).status_code == 401
    assert (await client.hour()).status_code == 403
    assert (await client.hour()).status_code == 200


async def test_a_token_may_see_a_part_of_the_accounts_and_break_alone() -> None:
    one, other = FLEET.accounts
    client = client_of(tokens=[ACCEPTED_BEARER, "other"], seen_by={ACCEPTED_BEARER: [one.tag]})
    for fault in (TokenRevoked(token="other"), HttpStatus(token="other")):
        client.api.faults.add(fault)
    assert await client.zone_names() == [zone.name for zone in FLEET.zones if zone.account == one]
    assert [each["id"] for each in (await client.get("/accounts")).json()["result"]] == [one.tag]
    hidden, *_ = (zone.tag for zone in FLEET.zones if zone.account == other)
    own = [zone.tag for zone in FLEET.zones if zone.account == one]
    assert zones_of(await client.hour(hidden, *own)).keys() == {*own}
    client.http.headers["Authorization"] = "Bearer other"
    assert (await client.get("/zones")).status_code == 503
    client.api.faults.clear()
    client.api.faults.add(TokenRevoked(token="other"))
    assert (await client.get("/zones")).status_code == 403


@pytest.mark.parametrize("kind", list(RefusalKind))
async def test_every_kind_of_graphql_error_can_be_made_up(client: Client, kind: RefusalKind) -> None:
    client.api.faults.add(GraphqlError(error=kind, count=1))
    body = (await client.hour(BUSY, STEADY)).json()
    assert body["data"] is None
    (error,) = body["errors"]
    assert error["message"]
    assert len(zones_of(await client.hour(BUSY, STEADY))) == 2


async def test_a_made_up_error_may_be_about_one_zone_and_dataset(client: Client) -> None:
    client.api.faults.add(GraphqlError(error=RefusalKind.PATH_ACCESS, zone=STEADY, node=HOURS))
    assert (await client.hour(BUSY)).json()["errors"] is None
    response = await client.hour(BUSY, STEADY)
    assert response.status_code == 403
    assert response.json()["errors"][0]["message"] == f"zone '{STEADY}' does not have access to the path"
    assert response.json()["errors"][0]["path"] == ["viewer", "zones", "1", HOURS]
    assert client.api.faults.hits == {"graphql_error": 1}


async def test_a_made_up_error_may_have_any_status_and_text(client: Client) -> None:
    client.api.faults.add(GraphqlError(error=RefusalKind.UNABLE, status=502, message="who knows"))
    response = await client.hour()
    assert response.status_code == 502
    assert response.json()["errors"][0]["message"] == "who knows"


async def test_an_error_may_come_with_the_data_of_the_other_zones(client: Client) -> None:
    client.api.faults.add(GraphqlError(error=RefusalKind.UNABLE, zone=STEADY, is_partial=True))
    body = (await client.hour(BUSY, STEADY)).json()
    assert len(body["errors"]) == 1
    rows = {zone["zoneTag"]: zone[HOURS] for zone in body["data"]["viewer"]["zones"]}
    assert rows[STEADY] == []
    assert len(rows[BUSY]) == 1


async def test_a_query_that_fails_anyhow_does_not_use_up_a_fault(client: Client) -> None:
    client.api.faults.add(GraphqlError(error=RefusalKind.UNABLE, count=1))
    assert (await client.post("{ nothing }")).status_code == 400
    assert (await client.hour()).json()["errors"][0]["message"] == "unable to execute query"


async def test_a_zone_can_be_removed_and_added_again(client: Client) -> None:
    client.api.faults.add(ZoneMissing(zone=STEADY))
    assert FLEET.zones[1].name not in await client.zone_names()
    assert list(zones_of(await client.hour(BUSY, STEADY))) == [BUSY]
    client.api.faults.clear()
    assert FLEET.zones[1].name in await client.zone_names()


async def test_a_zone_can_be_dropped_from_answers_only(client: Client) -> None:
    client.api.faults.add(ZoneMissing(zone=STEADY, on=Surface.GRAPHQL))
    assert FLEET.zones[1].name in await client.zone_names()
    assert list(zones_of(await client.hour(BUSY, STEADY))) == [BUSY]


async def test_a_zone_can_change_its_name_plan_and_status(client: Client) -> None:
    client.api.faults.add(ZoneChanged(zone=BUSY, name="new.example", plan=Plan.FREE, status=ZoneStatus.PENDING))
    (zone,) = (await client.get("/zones", name="new.example")).json()["result"]
    assert (zone["id"], zone["plan"]["legacy_id"], zone["status"]) == (BUSY, "free", "pending")
    answer = await client.post(query(MINUTES), tags=[BUSY], since=iso(HOUR), until=iso(HOUR + 60))
    assert "does not have access to the path" in answer.json()["errors"][0]["message"]


async def test_a_field_can_be_denied(client: Client) -> None:
    client.api.faults.add(FieldDenied(zone=BUSY, node=HOURS, field="sum_countryMap"))
    answer = await client.hour(fields="sum { countryMap { requests } }")
    assert answer.json()["errors"][0]["message"] == f"zone '{BUSY}' does not have access to the field 'countrymap'"
    assert (await client.hour()).json()["errors"] is None


async def test_an_incident_hides_traffic_until_its_delay_is_over(client: Client) -> None:
    before = zones_of(await client.hour())[BUSY]
    client.api.faults.add(Incident(start=HOUR, end=HOUR + 3600, delay_seconds=4 * 3600))
    assert zones_of(await client.hour())[BUSY] == []
    await client.clock.advance(3 * 3600)
    assert zones_of(await client.hour())[BUSY] == before


async def test_a_part_of_the_traffic_may_come_late_so_that_a_bucket_drifts(client: Client) -> None:
    after = zones_of(await client.hour())[BUSY][0]["sum"]["requests"]
    client.api.faults.add(Incident(start=HOUR, end=HOUR + 3600, delay_seconds=4 * 3600, percent=10))
    first = zones_of(await client.hour())[BUSY][0]["sum"]["requests"]
    assert 0.88 < first / after < 0.91


async def test_the_admin_endpoint_puts_faults_up_shows_them_and_clears_them(client: Client) -> None:
    shown = await client.http.post("/admin/faults", json={"kind": "http_status", "status": 502, "count": 2})
    assert shown.status_code == 200
    assert (await client.hour()).status_code == 502
    (fault,) = (await client.http.get("/admin/faults")).json()
    assert (fault["kind"], fault["status"], fault["count"]) == ("http_status", 502, 1)
    more = await client.http.post("/admin/faults", json=[{"kind": "slow", "seconds": 1}, {"kind": "token_revoked"}])
    assert len(more.json()) == 3
    assert (await client.http.delete("/admin/faults")).json() == []
    assert (await client.hour()).status_code == 200


async def test_the_admin_endpoint_says_what_is_wrong_with_a_fault(client: Client) -> None:
    response = await client.http.post("/admin/faults", json={"kind": "http_status", "status": "bad"})
    assert response.status_code == 400
    assert "$.status" in response.text


async def test_requests_are_counted_by_kind_and_over_time(client: Client) -> None:
    await client.get("/zones")
    await client.hour()
    await client.clock.advance(400)
    await client.hour(BUSY, STEADY)
    client.api.faults.add(HttpStatus(on=Surface.GRAPHQL))
    await client.hour()
    assert (await client.http.get("/admin/stats")).json() == {
        "requests": {"zones": 1, "graphql": 3},
        "statuses": {"200": 3, "503": 1},
        "most_queries_in_5_minutes": 2,
        "faults": {"http_status": 1},
    }
    assert client.api.stats.query_times == [NOW, NOW + 400, NOW + 400]
    assert [record.asked[0].scope_tags for record in client.api.stats.queries] == [(BUSY,), (BUSY, STEADY)]


async def test_the_expected_samples_of_a_bucket_follow_from_its_truth(client: Client) -> None:
    (row,) = zones_of(await client.hour(fields=ALL_FIELDS))[BUSY]
    samples = expected_samples(FLEET.zones[0], FLEET.bucket(BUSY, HOUR, 3600))
    of_zone = {("zone", FLEET.zones[0].name), ("zone_id", BUSY), ("account", FLEET.accounts[0].name)}

    def sample(name: str, *labels: tuple[str, str]) -> float:
        return samples[frozenset(of_zone | {("__name__", f"cloudflare_zone_{name}"), *labels})]

    assert sample("requests") == row["sum"]["requests"]
    assert sample("unique_visitors") == row["uniq"]["uniques"]
    for element in row["sum"]["countryMap"]:
        assert sample("country_threats", ("country", element["clientCountryName"])) == element["threats"]
    empty = expected_samples(FLEET.zones[0], None)
    assert len(empty) == 9
    assert set(empty.values()) == {0.0}


async def test_the_date_of_an_answer_is_the_time_of_the_api_and_not_of_the_machine(client: Client) -> None:
    response = await client.get("/user/tokens/verify")
    assert parsedate_to_datetime(response.headers["date"]).timestamp() == NOW


def node_client() -> Client:
    clock = ManualClock(NOW)
    return Client(SimulatedApi(FLEET, clock, datasets=ENTRIES), clock)


async def workers(client: Client) -> httpx.Response:
    text = text_of(WORKERS, 3_600, HOUR, HOUR + 3_600)
    return await client.post(whole(WORKERS.scope, [ACCOUNT], text))


async def http(client: Client, *tags: str) -> httpx.Response:
    return await client.post(whole(HTTP.scope, tags, text_of(HTTP, 3_600, HOUR, HOUR + 3_600)))


def rows_by_tag(response: httpx.Response) -> dict[str, list[dict[str, Any]]]:
    body = response.json()
    assert body["errors"] is None
    ((name, scopes),) = body["data"]["viewer"].items()
    return {scope[f"{name.removesuffix('s')}Tag"]: scope["rows"] for scope in scopes}


async def test_datasets_of_zones_and_accounts_are_answered_with_their_truth() -> None:
    client = node_client()
    for tag, dataset, response in ((ACCOUNT, WORKERS, await workers(client)), (BUSY, HTTP, await http(client, BUSY))):
        truth = client.api.events.truth(tag, dataset, HOUR, 3_600)
        assert told(dataset, 3_600, rows_by_tag(response)[tag], HOUR) == {HOUR: truth}


async def test_entitlements_change_in_mid_run_and_the_latest_counts() -> None:
    client = node_client()
    node = "workersInvocationsAdaptive"
    client.api.faults.add(EntitlementChanged(scope=ACCOUNT, node=node, is_enabled=False))
    assert (await workers(client)).json()["errors"][0]["message"] == (
        f"account '{ACCOUNT}' does not have access to the path"
    )
    client.api.faults.add(EntitlementChanged(scope=ACCOUNT, node=node, is_enabled=True, denied_fields=("sum_errors",)))
    assert "'errors'" in (await workers(client)).json()["errors"][0]["message"]
    client.api.faults.clear()
    client.api.faults.add(EntitlementChanged(scope=ACCOUNT, node=node, max_duration_seconds=60))
    assert "wider than 1m" in (await workers(client)).json()["errors"][0]["message"]
    client.api.faults.clear()
    client.api.faults.add(FieldRemoved(node=node, field="sum_errors"))
    assert (await workers(client)).json()["errors"][0]["message"] == 'unknown field "errors"'
    client.api.faults.clear()
    assert rows_by_tag(await workers(client))[ACCOUNT]


async def test_a_made_up_error_may_be_about_an_account() -> None:
    client = node_client()
    client.api.faults.add(GraphqlError(error=RefusalKind.PATH_ACCESS, zone=ACCOUNT))
    assert (await http(client, BUSY)).json()["errors"] is None
    (error,) = (await workers(client)).json()["errors"]
    assert error["path"] == ["viewer", "accounts", "0", "rows"]
    assert error["message"] == f"account '{ACCOUNT}' does not have access to the path"


async def test_rows_may_come_twice_for_one_zone() -> None:
    client = node_client()
    client.api.faults.add(OddRows(how=Oddity.DUPLICATED, scope=BUSY, count=1))
    rows = rows_by_tag(await http(client, BUSY, STEADY))
    assert (len(rows[BUSY]), len(rows[STEADY])) == (2, 1)
    assert len(rows_by_tag(await http(client, BUSY, STEADY))[BUSY]) == 1
    assert client.api.faults.hits == {"odd_rows": 1}


@pytest.mark.parametrize(
    ("how", "written"),
    [
        (Oddity.NOT_A_NUMBER, "NaN"),
        (Oddity.ENDLESS, "1e999"),
        (Oddity.HUGE, "9007199254740993"),
        (Oddity.NEGATIVE, "-1"),
        (Oddity.EMPTY, "null"),
    ],
)
async def test_one_number_of_every_row_may_be_odd(how: Oddity, written: str) -> None:
    client = node_client()
    client.api.faults.add(OddRows(how=how, node="workersInvocationsAdaptive"))
    assert (await http(client, BUSY)).json()["errors"] is None
    right = (await client.post("{ cost }")).text
    assert written not in right.replace('"errors":null', "")
    rows = rows_of_text((await workers(client)).text)
    assert rows
    assert all(re.search(rf'"sum":({written}|{{"requests":{written},)', row) for row in rows)


def rows_of_text(text: str) -> list[str]:
    """The rows of an answer that need not be JSON."""
    return text.partition('"rows":[{')[2].split('"dimensions"')[1:]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/zones/{BUSY}/ssl/certificate_packs", inventory.certificate_packs(FLEET.zones[0], NOW)),
        (f"/zones/{BUSY}/load_balancers", inventory.load_balancers(FLEET.zones[0])),
        (f"/accounts/{FLEET.accounts[0].tag}/load_balancers/pools", inventory.pools(FLEET.accounts[0], NOW)),
        (f"/accounts/{FLEET.accounts[0].tag}/cfd_tunnel", inventory.tunnels(FLEET.accounts[0], NOW)),
    ],
)
async def test_what_zones_and_accounts_have_is_listed(client: Client, path: str, expected: list[Any]) -> None:
    listed = (await client.get(path, per_page="1")).json()
    # Pools have no pages.
    assert listed["result"] == (expected if path.endswith("pools") else expected[:1])
    assert (await client.get(path)).json()["result"] == expected
    assert client.api.stats.requests == {path.rpartition("/")[2]: 2}
    missing = await client.get(path.replace(path.split("/")[2], "0" * 32))
    assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, 7_003)
