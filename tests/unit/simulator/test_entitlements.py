from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.simulator.asking import ask_windows, text_of, whole
from tests.unit.simulator.entries import ENTRIES, FIREWALL, HTTP_CACHE, KV_STORAGE, WORKERS
from tests.unit.simulator.worlds import NOW, changed, world_of
from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.simulator.entitlements import ENTITLEMENTS, NOTHING, Entitlement, QueryLimits, entitlement
from worker.simulator.execution import World, execute
from worker.simulator.fleet import Fleet, Plan

FLEET = Fleet(zones=4, accounts=2, plans=(Plan.FREE, Plan.PRO, Plan.FREE, Plan.ENTERPRISE))
WORLD = world_of(FLEET, datasets=ENTRIES)
FREE, PRO = (zone.tag for zone in FLEET.zones[:2])
ACCOUNTS = [account.tag for account in FLEET.accounts]
HOUR = NOW - 7_200


def message(world: World, dataset: Dataset, tags: Sequence[str]) -> str:
    """What the refusal of an hour of a dataset says, or nothing."""
    answer = ask_windows(world, dataset, 3_600, tags, HOUR, HOUR + 3_600)
    return answer.refusals[0].message if answer.refusals else ""


def settings(world: World, kind: ScopeKind, tag: str, node: str) -> dict[str, Any]:
    fields = (
        f"settings {{ {node} {{ enabled availableFields maxDuration maxNumberOfFields notOlderThan maxPageSize }} }}"
    )
    answer = execute(whole(kind, [tag], fields), {}, None, world)
    assert answer.data is not None
    ((scope,),) = answer.data["viewer"].values()
    found: dict[str, Any] = scope["settings"][node]
    return found


def test_what_the_plan_lacks_is_refused_and_not_enabled() -> None:
    assert message(WORLD, FIREWALL, [FREE]) == f"zone '{FREE}' does not have access to the path"
    assert message(WORLD, FIREWALL, [PRO]) == ""
    node = "firewallEventsAdaptiveGroups"
    assert settings(WORLD, ScopeKind.ZONE, FREE, node)["enabled"] is False
    assert settings(WORLD, ScopeKind.ZONE, PRO, node)["enabled"] is True


@pytest.mark.parametrize("plan", list(Plan))
def test_a_better_plan_has_whatever_a_lesser_one_has(plan: Plan) -> None:
    for node in ("httpRequestsAdaptiveGroups", "waitingRoomAnalyticsAdaptiveGroups", "magicTransitTunnelTraffic"):
        own, best = entitlement(ENTITLEMENTS, plan, node), entitlement(ENTITLEMENTS, Plan.ENTERPRISE, node)
        assert best.is_enabled
        assert own.not_older_than_seconds <= best.not_older_than_seconds
        assert own.max_duration_seconds <= best.max_duration_seconds
        assert own.denied_fields >= best.denied_fields
        assert bool(own.denied_fields) == (own.is_enabled and plan is Plan.FREE)


def test_settings_of_an_account_list_the_fields_of_its_nodes() -> None:
    found = settings(WORLD, ScopeKind.ACCOUNT, ACCOUNTS[0], "workersInvocationsAdaptive")
    assert {"sum_requests", "dimensions_scriptName", "dimensions_datetimeFiveMinutes"} < set(found["availableFields"])
    assert "count" not in found["availableFields"]
    assert "count" in settings(WORLD, ScopeKind.ZONE, PRO, "firewallEventsAdaptiveGroups")["availableFields"]


def test_an_account_has_what_the_best_of_its_zones_has() -> None:
    plain, best = (
        settings(WORLD, ScopeKind.ACCOUNT, tag, "kvStorageAdaptiveGroups")["notOlderThan"] for tag in ACCOUNTS
    )
    assert plain < best


def test_a_single_scope_may_have_less() -> None:
    less = Entitlement(
        is_enabled=True,
        max_duration_seconds=60,
        not_older_than_seconds=86_400,
        denied_fields=frozenset({"max_keyCount"}),
    )
    key = (ACCOUNTS[0], "kvStorageAdaptiveGroups")
    world = changed(WORLD, changes={key: lambda _: less})
    refused = f"account '{ACCOUNTS[0]}' does not have access to the field 'keycount'"
    assert message(world, KV_STORAGE, ACCOUNTS[:1]) == refused
    assert message(world, KV_STORAGE, ACCOUNTS[1:]) == ""
    assert "max_keyCount" not in settings(world, ScopeKind.ACCOUNT, *key)["availableFields"]
    closed = changed(WORLD, changes={key: lambda _: NOTHING})
    refused = f"account '{ACCOUNTS[0]}' does not have access to the path"
    assert message(closed, KV_STORAGE, ACCOUNTS[:1]) == refused


def test_a_table_may_say_something_else_of_any_node() -> None:
    narrow = Entitlement(is_enabled=True, max_duration_seconds=60, not_older_than_seconds=86_400)
    world = changed(WORLD, entitlements={Plan.FREE: {"httpRequestsAdaptiveGroups": narrow}})
    assert message(world, HTTP_CACHE, [FREE]).startswith("cannot request a time range wider than 1m")
    assert message(world, HTTP_CACHE, [PRO]) == ""


def test_a_field_that_is_removed_is_unknown_to_everybody() -> None:
    world = changed(WORLD, removed_fields=frozenset({("workersInvocationsAdaptive", "sum_errors")}))
    answer = ask_windows(world, WORKERS, 3_600, ACCOUNTS[:1], HOUR, HOUR + 3_600)
    assert (answer.status, answer.refusals[0].message) == (400, 'unknown field "errors"')
    fields = settings(world, ScopeKind.ACCOUNT, ACCOUNTS[0], "workersInvocationsAdaptive")["availableFields"]
    assert "sum_errors" not in fields
    assert message(world, KV_STORAGE, ACCOUNTS[:1]) == ""


def test_a_node_that_is_removed_is_unknown_to_everybody() -> None:
    world = changed(WORLD, removed_fields=frozenset({("firewallEventsAdaptiveGroups", "")}))
    assert message(world, FIREWALL, [PRO]) == 'unknown field "firewallEventsAdaptiveGroups"'
    text = whole(ScopeKind.ZONE, [PRO], "settings { firewallEventsAdaptiveGroups { enabled } }")
    assert execute(text, {}, None, world).refusals[0].message == 'unknown field "firewallEventsAdaptiveGroups"'
    assert message(world, HTTP_CACHE, [PRO]) == ""


def test_nodes_of_accounts_and_of_their_zones_count_together() -> None:
    of_account, of_zones = (text_of(dataset, 3_600, HOUR, HOUR + 3_600) for dataset in (WORKERS, HTTP_CACHE))
    text = whole(ScopeKind.ACCOUNT, ACCOUNTS[:1], f"{of_account} zones {{ zoneTag {of_zones} }}")
    few, enough = (execute(text, {}, None, changed(WORLD, limits=QueryLimits(max_nodes=count))) for count in (2, 3))
    assert "too many nodes" in few.refusals[0].message
    assert enough.refusals == ()
