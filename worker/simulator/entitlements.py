"""What a zone or an account may ask of a node, by its plan, and what any query may ask at all.

An account has what the best of its zones has.

The numbers are the simulator's own: Cloudflare changes its own and documents them in contradicting tables, which is why
a client must read `settings` and believe nothing else. They are close to what was seen on the real API.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.simulator.fleet import Plan

_HOUR_SECONDS = 3_600
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one zone or account may ask of one node.

    is_enabled:             whether it may ask at all.
    max_duration_seconds:   the longest range of time in one query.
    not_older_than_seconds: how far back the range may begin.
    max_page_size:          the largest `limit`.
    max_fields:             how many fields of the node one query may select.
    denied_fields:          fields that it may not select, written as `settings` lists them: `sum_requests`.
    """

    is_enabled: bool
    max_duration_seconds: int
    not_older_than_seconds: int
    max_page_size: int = 10_000
    max_fields: int = 70
    denied_fields: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may ask, whatever the plan.

    max_zones: zones in one list.
    max_nodes: zones and accounts times datasets. The real ceiling is not published; 50 is known to work.
    """

    max_zones: int = 10
    max_nodes: int = 50


Entitlements = Mapping[Plan, Mapping[str, Entitlement]]
"""By plan and by node; what is not in it is as `entitlement` says."""

NOTHING = Entitlement(is_enabled=False, max_duration_seconds=0, not_older_than_seconds=0, max_page_size=0, max_fields=0)


def _minutes(days: int) -> Entitlement:
    # 15 hours is the widest range of minutes that was ever seen to be allowed, whatever the plan.
    return Entitlement(
        is_enabled=True, max_duration_seconds=15 * _HOUR_SECONDS, not_older_than_seconds=days * _DAY_SECONDS
    )


def _hours(days: int, *, window_days: int) -> Entitlement:
    return Entitlement(
        is_enabled=True, max_duration_seconds=window_days * _DAY_SECONDS, not_older_than_seconds=days * _DAY_SECONDS
    )


# 52 weeks, a day and an hour, as the real API words it; a day of grace more in the past.
_DAYS = Entitlement(
    is_enabled=True,
    max_duration_seconds=365 * _DAY_SECONDS + _HOUR_SECONDS,
    not_older_than_seconds=366 * _DAY_SECONDS,
)

ENTITLEMENTS: Entitlements = {
    Plan.FREE: {
        "httpRequests1mGroups": NOTHING,
        "httpRequests1hGroups": _hours(3, window_days=3),
        "httpRequests1dGroups": _DAYS,
    },
    Plan.PRO: {
        "httpRequests1mGroups": _minutes(1),
        "httpRequests1hGroups": _hours(7, window_days=7),
        "httpRequests1dGroups": _DAYS,
    },
    Plan.BUSINESS: {
        "httpRequests1mGroups": _minutes(3),
        "httpRequests1hGroups": _hours(30, window_days=30),
        "httpRequests1dGroups": _DAYS,
    },
    Plan.ENTERPRISE: {
        "httpRequests1mGroups": _minutes(7),
        "httpRequests1hGroups": _hours(90, window_days=30),
        "httpRequests1dGroups": _DAYS,
    },
}

# How far back adaptive nodes reach, and how wide a range may be; on Free and Pro 31 and 30 days were seen.
_ADAPTIVE = {
    Plan.FREE: _hours(31, window_days=1),
    Plan.PRO: _hours(31, window_days=30),
    Plan.BUSINESS: _hours(31, window_days=31),
    Plan.ENTERPRISE: _hours(90, window_days=31),
}
_FREE_LACKS = frozenset(
    {
        "dimensions_botManagementDecision",
        "dimensions_botScoreBucketBy10",
        "dimensions_upperTierColoName",
        "sum_edgeTimeToFirstByteMs",
        "sum_originResponseDurationMs",
    }
)
# The least plan that has a node; where the names of several begin alike, this beginning.
_LEAST_PLANS = {
    "firewallEventsAdaptiveGroups": Plan.PRO,
    "healthCheckEvents": Plan.PRO,
    "loadBalancingRequests": Plan.PRO,
    "waitingRoom": Plan.BUSINESS,
    "cacheReserve": Plan.ENTERPRISE,
    "logpushHealth": Plan.ENTERPRISE,
    "magic": Plan.ENTERPRISE,
    "spectrum": Plan.ENTERPRISE,
}
PLAN_ORDER = tuple(Plan)
"""From the least plan to the best."""


def entitlement(table: Entitlements, plan: Plan, node: str) -> Entitlement:
    """What a plan allows: what the table says, else the usual of an adaptive node."""
    own = table.get(plan, {}).get(node)
    if own is not None:
        return own
    least = next((least for begin, least in _LEAST_PLANS.items() if node.startswith(begin)), Plan.FREE)
    if PLAN_ORDER.index(plan) < PLAN_ORDER.index(least):
        return NOTHING
    usual = _ADAPTIVE[plan]
    return replace(usual, denied_fields=_FREE_LACKS) if plan is Plan.FREE else usual
