from typing import Any

import pytest

from worker.simulator import directory
from worker.simulator.fleet import Fleet, Plan

FLEET = Fleet(zones=120, accounts=60, pending_zones=3, plans=(Plan.FREE, Plan.PRO))


def page(parameters: dict[str, str]) -> dict[str, Any]:
    envelope = directory.zone_list(FLEET.zones, parameters)
    assert envelope.status == 200
    return envelope.body


def test_pages_hold_every_zone_once() -> None:
    pages = [page({"page": str(number), "per_page": "50"}) for number in range(1, 4)]
    assert [body["result_info"]["count"] for body in pages] == [50, 50, 20]
    assert pages[0]["result_info"] == {"page": 1, "per_page": 50, "count": 50, "total_count": 120, "total_pages": 3}
    tags = [zone["id"] for body in pages for zone in body["result"]]
    assert sorted(tags) == sorted(zone.tag for zone in FLEET.zones)


def test_a_page_is_never_larger_than_fifty() -> None:
    body = page({"per_page": "100"})
    assert len(body["result"]) == body["result_info"]["per_page"] == 50


def test_a_page_after_the_last_is_empty() -> None:
    body = page({"page": "4", "per_page": "50"})
    assert body["result"] == []
    assert body["success"] is True
    assert body["result_info"]["total_pages"] == 3


def test_zones_are_found_by_account_status_and_name() -> None:
    account = FLEET.accounts[0]
    assert {zone["account"]["id"] for zone in page({"account.id": account.tag})["result"]} == {account.tag}
    assert page({"status": "pending"})["result_info"]["total_count"] == 3
    assert page({"status": "active"})["result_info"]["total_count"] == 117
    (zone,) = page({"name": FLEET.zones[7].name})["result"]
    assert zone["id"] == FLEET.zones[7].tag


def test_a_zone_names_its_account_and_its_plan() -> None:
    (zone,) = page({"name": FLEET.zones[0].name})["result"]
    assert zone["account"] == {"id": FLEET.accounts[0].tag, "name": FLEET.accounts[0].name}
    assert zone["plan"]["legacy_id"] == "free"
    assert zone["plan"]["id"] == "0feeeeeeeeeeeeeeeeeeeeeeeeeeeeee"


def test_accounts_have_pages_too() -> None:
    body = directory.account_list(FLEET.accounts, {"page": "2", "per_page": "50"}).body
    assert [account["id"] for account in body["result"]] == [account.tag for account in FLEET.accounts[50:]]


def test_a_page_that_is_no_number_is_a_bad_request() -> None:
    envelope = directory.zone_list(FLEET.zones, {"page": "one"})
    assert envelope.status == 400
    assert envelope.body["success"] is False


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        (directory.AUTHENTICATION_ERROR, 10_000, "Authentication error"),
        (directory.MISSING_HEADERS, 9_106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers"),
    ],
)
def test_failures_are_the_recorded_ones(what: tuple[int, int, str], code: int, message: str) -> None:
    assert directory.failure(what).body == {
        "success": False,
        "errors": [{"code": code, "message": message}],
        "messages": [],
        "result": None,
    }
