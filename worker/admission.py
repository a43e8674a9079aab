"""Whether what is to be collected fits into Cloudflare's quota: reckoned from what zones and accounts are entitled to.

Pure but for the one line that it logs. `worker.cloudflare.planning` has the arithmetic.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from worker.cloudflare import NODES_PER_QUERY, Dataset, RateLimitType, Scope, ScopeKind
from worker.cloudflare.planning import Group, Plan, limit_of, verdict
from worker.config import BUCKET_SECONDS, CloudflareSettings
from worker.errors import ConfigError, Mistake
from worker.observe import get_logger

log = get_logger()


def plan_of(
    settings: CloudflareSettings,
    datasets: Sequence[Dataset],
    scopes: Iterable[Scope],
    is_denied: Callable[[Dataset, str], bool],
) -> Plan:
    """What collecting these datasets of these scopes costs; scopes that may be asked for the same are one group."""
    alike: Counter[tuple[ScopeKind, tuple[Dataset, ...]]] = Counter()
    accounts = 0
    for scope in scopes:
        asked = tuple(each for each in datasets if each.scope is scope.kind and not is_denied(each, scope.tag))
        accounts += scope.kind is ScopeKind.ACCOUNT
        if asked:
            alike[scope.kind, asked] += 1
    return Plan(
        groups=tuple(Group(kind, count, asked) for (kind, asked), count in alike.items()),
        width_seconds=settings.bucket_seconds,
        interval_seconds=settings.collection_interval_seconds,
        limit=limit_of(
            settings.graphql_requests_per_5_minutes,
            settings.requests_per_5_minutes,
            RateLimitType(settings.rate_limit_type),
            accounts,
        ),
    )


def admit(plan: Plan) -> None:
    """Say what it costs; ConfigError with the numbers, and with what would fit, where it is too much in any case."""
    at_best = replace(plan, nodes_per_query=NODES_PER_QUERY)
    if plan.fits:
        log.info("What is collected fits into Cloudflare's quota", requests=_told(plan), share=round(plan.share, 3))
    elif at_best.fits:
        log.warning(
            "What is collected may not fit into Cloudflare's quota; windows that do not are collected later",
            requests=_told(plan),
            share=round(plan.share, 3),
            share_at_best=round(at_best.share, 3),
        )
    else:
        problem = f"cost more requests than Cloudflare allows: {_told(at_best)}"
        raise ConfigError([Mistake("CF_DATASETS", None, problem)])


def _told(plan: Plan) -> str:
    return verdict(plan, BUCKET_SECONDS)
