"""Cloudflare's REST answers: the token, the accounts, the zones and what they have, in Cloudflare's envelope.

Pure functions from what is known to an `Envelope`; knows no faults and no quotas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from worker.simulator.fleet import Account, Plan, Zone

# What a client gets at most in one page, whatever it asks for; and what it gets when it does not ask.
_MOST_PER_PAGE = 50
_PER_PAGE = 20

# Cloudflare's identifier of its free plan is the same everywhere; the others are made up.
_PLAN_IDS = {
    Plan.FREE: "0feeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    Plan.PRO: "10000000000000000000000000000001",
    Plan.BUSINESS: "20000000000000000000000000000002",
    Plan.ENTERPRISE: "30000000000000000000000000000003",
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """An answer: HTTP status, JSON body, and how many seconds to wait where that is said."""

    status: int
    body: dict[str, Any]
    retry_after_seconds: int | None = None


AUTHENTICATION_ERROR = (HTTPStatus.FORBIDDEN, 10_000, "Authentication error")
MISSING_HEADERS = (HTTPStatus.BAD_REQUEST, 9_106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
INVALID_HEADERS = (HTTPStatus.BAD_REQUEST, 6_003, "Invalid request headers")
INVALID_TOKEN = (HTTPStatus.UNAUTHORIZED, 1_000, "Invalid API Token")
BAD_BODY = (HTTPStatus.BAD_REQUEST, 6_007, "Malformed JSON in request body")
NO_SUCH_OBJECT = (
    HTTPStatus.NOT_FOUND,
    7_003,
    "Could not route to this path, perhaps your object identifier is invalid?",
)
THROTTLED = (HTTPStatus.TOO_MANY_REQUESTS, 971, "Please wait and consider throttling your request speed")


def failure(what: tuple[int, int, str], retry_after_seconds: int | None = None) -> Envelope:
    """An envelope that says no."""
    status, code, message = what
    errors: list[dict[str, Any]] = [{"code": code, "message": message}]
    body = {"success": False, "errors": errors, "messages": [], "result": None}
    return Envelope(status, body, retry_after_seconds)


def verified_token(token_id: str) -> Envelope:
    """The answer about a token that is accepted."""
    body = _success({"id": token_id, "status": "active"})
    body["messages"] = [{"code": 10_000, "message": "This API Token is valid and active", "type": None}]
    return Envelope(HTTPStatus.OK, body)


def account_list(accounts: Sequence[Account], parameters: Mapping[str, str]) -> Envelope:
    """One page of accounts."""
    return page_of([_account(account) for account in accounts], parameters)


def zone_list(zones: Sequence[Zone], parameters: Mapping[str, str]) -> Envelope:
    """One page of the zones that fit `account.id`, `status` and `name`, in order of name."""
    account_tag, status, name = (parameters.get(parameter) for parameter in ("account.id", "status", "name"))
    fitting = [
        zone
        for zone in sorted(zones, key=lambda zone: (zone.name, zone.tag))
        if account_tag in {None, zone.account.tag} and status in {None, zone.status} and name in {None, zone.name}
    ]
    return page_of([_zone(zone) for zone in fitting], parameters)


def whole(items: Sequence[dict[str, Any]]) -> Envelope:
    """All of what Cloudflare lists without pages, like pools."""
    return Envelope(HTTPStatus.OK, _success(list(items)))


def page_of(items: Sequence[dict[str, Any]], parameters: Mapping[str, str]) -> Envelope:
    """One page of what Cloudflare lists by pages."""
    try:
        page = int(parameters.get("page", "1"))
        per_page = int(parameters.get("per_page", _PER_PAGE))
    except ValueError:
        return failure((HTTPStatus.BAD_REQUEST, 1_001, "page and per_page must be integers"))
    page, per_page = max(1, page), min(max(1, per_page), _MOST_PER_PAGE)
    result = list(items[(page - 1) * per_page : page * per_page])
    body = _success(result)
    body["result_info"] = {
        "page": page,
        "per_page": per_page,
        "count": len(result),
        "total_count": len(items),
        # Rounded up.
        "total_pages": -(-len(items) // per_page),
    }
    return Envelope(HTTPStatus.OK, body)


def _success(result: Any) -> dict[str, Any]:
    return {"success": True, "errors": [], "messages": [], "result": result}


def _account(account: Account) -> dict[str, Any]:
    return {"id": account.tag, "name": account.name, "type": "standard", "settings": {"enforce_twofactor": False}}


def _zone(zone: Zone) -> dict[str, Any]:
    return {
        "id": zone.tag,
        "name": zone.name,
        "status": zone.status.value,
        "paused": False,
        "type": "full",
        "development_mode": 0,
        "name_servers": ["ada.ns.cloudflare.com", "bob.ns.cloudflare.com"],
        "account": {"id": zone.account.tag, "name": zone.account.name},
        "owner": {"id": None, "type": "user", "email": None},
        "plan": {
            "id": _PLAN_IDS[zone.plan],
            "name": f"{zone.plan.capitalize()} Website",
            "legacy_id": zone.plan.value,
            "price": 0,
            "currency": "USD",
            "is_subscribed": zone.plan is not Plan.FREE,
        },
    }
