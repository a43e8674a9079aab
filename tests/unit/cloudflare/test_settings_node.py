from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from graphql import build_schema, parse, validate
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import API_URL, TOKEN, Network, error, refusal, tag
from worker.cloudflare import ApiFailure, ErrorKind
from worker.cloudflare.catalogue import ScopeKind, shipped
from worker.cloudflare.client import CloudflareClient
from worker.cloudflare.entitlements import Entitlement, Entitlements, Narrowed, entitled
from worker.cloudflare.quota import Api, Quota, RateLimitType
from worker.cloudflare.scope import Account, Scope, Zone
from worker.cloudflare.settings_node import RETRIES_PER_GROUP, SettingsQuery, read_entitlements
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet

SCHEMA = Path(__file__).parents[3].parent / "shared" / "cloudflare" / "schema.graphql"
NODES = [f"node{number}" for number in range(30)]
OPEN = {
    "enabled": True,
    "availableFields": ["sum_requests"],
    "maxDuration": 54_000,
    "maxNumberOfFields": 70,
    "maxPageSize": 10_000,
    "notOlderThan": 86_400,
}
ENTITLED = Entitlement(
    enabled=True,
    fields=frozenset({"sum_requests"}),
    max_duration_seconds=54_000,
    max_fields=70,
    max_page_rows=10_000,
    retention_seconds=86_400,
)


def account_of(zone_tag: str) -> str:
    """Of the zones with an odd number one account's, of those with an even one another's."""
    return tag(0xACC0 + int(zone_tag, 16) % 2)


class Cloudflare:
    """Answers settings queries; `refuse` says which of them it does not answer, by their zones or account and nodes."""

    def __init__(self, refuse: Callable[[Sequence[str], Sequence[str]], httpx.Response | None] | None = None) -> None:
        self.asked: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.accounts: list[str] = []
        self.settings: Any = OPEN
        self.quota = Quota(ManualClock(), graphql=10_000, total=10_000)
        self._refuse = refuse or (lambda _tags, _nodes: None)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = msgspec.json.decode(request.content)
        account = body["variables"].get("account")
        kind = "zone" if "zones" in body["variables"] else "account"
        tags = body["variables"].get("zones", [account])
        nodes = [word for word in body["query"].split() if word.startswith("node")]
        self.asked.append((tuple(tags), tuple(nodes)))
        scopes = [{f"{kind}Tag": each, "settings": dict.fromkeys(nodes, self.settings)} for each in reversed(tags)]
        viewer: dict[str, Any] = {f"{kind}s": scopes}
        if kind == "zone" and account:
            self.accounts.append(account)
            owned = [each for each in scopes if account_of(each["zoneTag"]) == account]
            viewer = {"accounts": [{"zones": owned}]}
        answer = {"data": {"cost": 2, "viewer": {"budget": 9_000, **viewer}}, "errors": None}
        return self._refuse(tags, nodes) or httpx.Response(200, json=answer)

    async def read(
        self, tags: Sequence[str], nodes: Sequence[str], kind: ScopeKind = ScopeKind.ZONE
    ) -> dict[str, Entitlements]:
        client = CloudflareClient(
            api_url=API_URL, token=TOKEN, clock=ManualClock(), quota=self.quota, transport=Network(self)
        )
        scopes = [Account(each) if kind is ScopeKind.ACCOUNT else Zone(each, each, account_of(each)) for each in tags]
        found = await read_entitlements(client, scopes, nodes)
        assert list(found) == list(tags)
        assert all(list(each) == list(nodes) or set(each) == set(nodes) for each in found.values())
        return found


def test_queries_for_all_nodes_of_the_catalogue_are_valid_for_cloudflares_schema() -> None:
    if not SCHEMA.exists():
        pytest.skip("Cloudflare's schema is not here")
    # Only the types around `settings`: the whole schema takes seconds to build.
    wanted = ("Query", "viewer", "zone", "account", "ZoneSettings", "AccountSettings", "Settings")
    text = SCHEMA.read_text().replace('  """"""\n', "") + "\n"
    ends = {name: text.index("\n}\n", text.index(f"\ntype {name} {{\n")) for name in wanted}
    types = {name: text[text.index(f"\ntype {name} {{\n") : end] + "\n}\n" for name, end in ends.items()}
    kept = {"zone": ("zoneTag", "settings"), "account": ("accountTag", "settings", "zones(")}
    for name, fields in kept.items():
        lines = [line for line in types[name].splitlines() if line.strip().startswith(fields)]
        types[name] = f"\ntype {name} {{\n" + "\n".join(lines) + "\n}\n"
    types["viewer"] = "\n".join(line for line in types["viewer"].splitlines() if "organizations" not in line)
    inputs = [
        text[(start := text.index(f"\ninput {name}_InputObject {{\n")) : text.index("\n}\n", start)] + "\n}\n"
        for name in ("ZoneFilter", "AccountFilter")
    ]
    schema = build_schema(
        "\n".join((*types.values(), *inputs, "scalar uint64 scalar int64 scalar bool scalar string")), assume_valid=True
    )
    for kind in ScopeKind:
        nodes = {grain.node for dataset in shipped().values() if dataset.scope is kind for grain in dataset.grains}
        text = SettingsQuery(kind, (tag(1),), tuple(nodes)).text
        assert validate(schema, parse(text)) == []
        assert validate(schema, parse(SettingsQuery(kind, (tag(1),), tuple(nodes), tag(2)).text)) == []
        assert validate(schema, parse(text.replace(min(nodes), "noSuchNode"))) != []


async def test_zones_are_asked_for_in_tens_and_accounts_one_by_one() -> None:
    cloudflare = Cloudflare()
    zones = [tag(number) for number in range(11)]
    assert await cloudflare.read(zones, NODES) == dict.fromkeys(zones, dict.fromkeys(NODES, ENTITLED))
    assert [(len(tags), len(nodes)) for tags, nodes in cloudflare.asked] == [(10, 25), (10, 5), (1, 25), (1, 5)]
    assert (cloudflare.quota.cost_per_request, cloudflare.quota.budget_left) == (2, 9_000)
    assert await cloudflare.read(zones[:2], NODES[:1], ScopeKind.ACCOUNT) == {
        zone: {"node0": ENTITLED} for zone in zones[:2]
    }
    assert cloudflare.asked[4:] == [((tag(0),), ("node0",)), ((tag(1),), ("node0",))]
    assert cloudflare.quota.remaining(Api.GRAPHQL) == 4_495  # five were sent after the first answer


@settings(max_examples=20)
@given(
    st.sets(st.integers(0, 9), max_size=2),
    st.sets(st.integers(0, 24), max_size=2),
    st.sampled_from(["named", "path", "not named"]),
)
async def test_a_zone_or_a_node_that_is_refused_costs_no_other_one_its_entitlement(
    bad_zones: set[int], bad_nodes: set[int], how: str
) -> None:
    def refuse(tags: Sequence[str], nodes: Sequence[str]) -> httpx.Response | None:
        for index, each in enumerate(tags):
            if int(each, 16) in bad_zones:
                text = f"zones [{each}] are not authorized" if how == "named" else "requested zone is not authorized"
                path = ["viewer", "zones", str(index)] if how == "path" else None
                return refusal(error(text, code="authz", path=path))
        if any(f"node{number}" in nodes for number in bad_nodes):
            return refusal(error("unknown field"), status=400)
        return None

    cloudflare = Cloudflare(refuse)
    found = await cloudflare.read([tag(number) for number in range(10)], NODES[:25])
    assert len(cloudflare.asked) <= 1 + RETRIES_PER_GROUP
    for number in range(10):
        for node in range(25):
            known = found[tag(number)][f"node{node}"]
            if number in bad_zones or node in bad_nodes:
                assert isinstance(known, ApiFailure)
            elif not bad_zones or not bad_nodes:
                assert known == ENTITLED


@pytest.mark.parametrize(
    ("response", "kind", "queries"),
    [
        (httpx.Response(401, json={"success": False, "errors": [{"code": 1000, "message": "x"}]}), ErrorKind.TOKEN, 1),
        (refusal(error("rate limiter budget depleted", code="budget")), ErrorKind.RATE, 1),
        (httpx.Response(502, content=b"<html>"), ErrorKind.SERVER, 3),
    ],
)
async def test_what_concerns_everything_is_not_asked_again_for_each_zone(
    response: httpx.Response, kind: ErrorKind, queries: int
) -> None:
    cloudflare = Cloudflare(lambda _tags, _nodes: response)
    found = await cloudflare.read([tag(number) for number in range(100)], NODES)
    assert {known.kind for each in found.values() for known in each.values() if isinstance(known, ApiFailure)} == {kind}
    assert len(cloudflare.asked) == queries


async def test_a_zone_that_an_error_names_costs_two_queries_more() -> None:
    def refuse(tags: Sequence[str], _nodes: Sequence[str]) -> httpx.Response | None:
        return refusal(error(f"zones [{tag(3)}] are not authorized")) if tag(3) in tags else None

    cloudflare = Cloudflare(refuse)
    await cloudflare.read([tag(number) for number in range(10)], NODES[:5])
    assert [len(tags) for tags, _ in cloudflare.asked] == [10, 9, 1]


async def test_where_accounts_are_counted_zones_are_asked_for_through_their_own() -> None:
    cloudflare = Cloudflare()
    cloudflare.quota = Quota(ManualClock(), graphql=100, rate_limit_type=RateLimitType.ACCOUNT)
    zones = [tag(number) for number in range(24)]
    assert await cloudflare.read(zones, NODES[:1]) == {each: {"node0": ENTITLED} for each in zones}
    assert [(account, len(tags)) for account, (tags, _) in zip(cloudflare.accounts, cloudflare.asked, strict=True)] == [
        (tag(0xACC0), 10),
        (tag(0xACC0), 2),
        (tag(0xACC1), 10),
        (tag(0xACC1), 2),
    ]
    assert cloudflare.quota.remaining(Api.GRAPHQL) == 98


@pytest.mark.parametrize(
    ("text", "path"),
    [(f"account {tag(0xACC0)} is not authorized", None), ("not authorized for that account", ["viewer", "accounts"])],
)
async def test_an_account_that_may_not_be_read_is_not_looked_for_among_its_zones(
    text: str, path: list[str] | None
) -> None:
    def refuse(tags: Sequence[str], _nodes: Sequence[str]) -> httpx.Response | None:
        return refusal(error(text, code="authz", path=path)) if account_of(tags[0]) == tag(0xACC0) else None

    cloudflare = Cloudflare(refuse)
    cloudflare.quota = Quota(ManualClock(), rate_limit_type=RateLimitType.ACCOUNT)
    found = await cloudflare.read([tag(number) for number in range(20)], NODES)
    assert len(cloudflare.asked) == 4
    assert [isinstance(each["node0"], ApiFailure) for each in found.values()] == [True, False] * 10


async def test_single_queries_without_an_answer_are_no_reason_to_stop() -> None:
    cloudflare = Cloudflare(lambda tags, _nodes: httpx.Response(502) if int(tags[0], 16) % 20 else None)
    found = await cloudflare.read([tag(number) for number in range(100)], NODES[:1])
    assert sum(each == {"node0": ENTITLED} for each in found.values()) == 50
    assert len(cloudflare.asked) == 10


async def test_a_zone_that_is_missing_from_the_answer_is_noticed() -> None:
    answer = {"data": {"viewer": {"zones": [{"zoneTag": tag(1), "settings": {"node0": OPEN}}]}}}
    found = await Cloudflare(lambda _tags, _nodes: httpx.Response(200, json=answer)).read([tag(0), tag(1)], NODES[:1])
    assert found[tag(1)] == {"node0": ENTITLED}
    missing = found[tag(0)]["node0"]
    assert isinstance(missing, ApiFailure)
    assert missing.kind is ErrorKind.MISSING_ZONE
    assert tag(0) in missing.message


@pytest.mark.parametrize(
    ("settings_of_node", "expected"),
    [
        (OPEN | {"availableFields": None, "maxDuration": -1}, Entitlement(True, frozenset(), None, 70, 10_000, 86_400)),
        (
            OPEN
            | {"availableFields": ["a", 1, None], "maxNumberOfFields": 0, "maxPageSize": True, "notOlderThan": 1.5},
            Entitlement(True, frozenset("a"), 54_000),
        ),
        ({"enabled": False}, Entitlement(enabled=False)),
        (
            OPEN | {"notOlderThan": 10**15, "maxPageSize": 10**30},
            Entitlement(True, frozenset({"sum_requests"}), 54_000, 70, None, 3153600000),
        ),
        (None, None),
        ([], None),
        ({"enabled": "true"}, None),
    ],
)
async def test_what_settings_do_not_say_is_not_known(settings_of_node: Any, expected: Entitlement | None) -> None:
    cloudflare = Cloudflare()
    cloudflare.settings = settings_of_node
    known = (await cloudflare.read([tag(1)], NODES[:1]))[tag(1)]["node0"]
    assert known == expected if expected else isinstance(known, ApiFailure) and known.kind is ErrorKind.MALFORMED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["data", "viewer", "zones", "zoneTag", "settings", "node0", "cost"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=15)
@given(JSON)
async def test_no_answer_whatsoever_leaves_a_zone_without_an_outcome(answer: Any) -> None:
    def with_a_viewer(tags: Sequence[str], _nodes: Sequence[str]) -> httpx.Response:
        zones = [answer, {"zoneTag": tags[0], "settings": answer}, {"zoneTag": answer}]
        return httpx.Response(200, json={"data": {"cost": answer, "viewer": {"budget": answer, "zones": zones}}})

    for refuse in (with_a_viewer, lambda _tags, _nodes: httpx.Response(200, json=answer)):
        await Cloudflare(refuse).read([tag(1), tag(2)], NODES[:2])
    of_account = {"data": {"viewer": {"accounts": [answer, {"zones": answer}, {"zones": [answer]}]}}}
    cloudflare = Cloudflare(lambda _tags, _nodes: httpx.Response(200, json=of_account))
    cloudflare.quota = Quota(ManualClock(), rate_limit_type=RateLimitType.ACCOUNT)
    await cloudflare.read([tag(1), tag(2)], NODES[:2])


@pytest.mark.parametrize("rate_limit_type", RateLimitType)
async def test_the_simulated_api_says_what_its_zones_and_accounts_are_entitled_to(
    rate_limit_type: RateLimitType,
) -> None:
    clock = ManualClock()
    fleet = Fleet(1, zones=3)
    client = CloudflareClient(
        api_url="http://api.test/client/v4",
        token=ACCEPTED_BEARER,
        clock=clock,
        quota=Quota(clock, rate_limit_type=rate_limit_type),
        transport=httpx.ASGITransport(SimulatedApi(fleet, clock)),
    )
    scopes_of: dict[ScopeKind, list[Scope]] = {
        ScopeKind.ZONE: [Zone(zone.tag, zone.name, zone.account.tag) for zone in fleet.zones],
        ScopeKind.ACCOUNT: [Account(account.tag) for account in fleet.accounts],
    }
    enabled = set()
    for kind, scopes in scopes_of.items():
        datasets = [dataset for dataset in shipped().values() if dataset.scope is kind]
        nodes = {dataset.grain(3600).node for dataset in datasets}
        found = await read_entitlements(client, scopes, sorted(nodes))
        for scope, dataset in product(scopes, datasets):
            known = found[scope.tag][dataset.grain(3600).node]
            assert isinstance(known, Entitlement)
            enabled.add(known.enabled)
            # Its lists name everything that it has, so that only the plan denies a dataset.
            assert isinstance(entitled(dataset, 3600, known), Narrowed) == known.enabled
    assert enabled == {True, False}
