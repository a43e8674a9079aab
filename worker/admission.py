"""Whether what is to be collected fits into Cloudflare's quota: reckoned from what zones and accounts are entitled to.

Pure but for the one line that it logs. `worker.cloudflare.planning` has the arithmetic.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from worker.cloudflare import NODES_PER_QUERY, Dataset, RateLimitType, Scope, ScopeKind, counted_by
from worker.cloudflare.planning import Group, Plan, limit_of, verdict
from worker.config import BUCKET_SECONDS, DEFAULT_TOKEN, CloudflareSettings
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
    rate_limit_type = RateLimitType(settings.rate_limit_type)
    alike: dict[tuple[ScopeKind, tuple[Dataset, ...]], Counter[str]] = {}
    for scope in scopes:
        asked = tuple(each for each in datasets if each.scope is scope.kind and not is_denied(each, scope.tag))
        if asked:
            alike.setdefault((scope.kind, asked), Counter())[counted_by(scope)] += 1
    requests: Counter[str] = Counter()
    is_apart = rate_limit_type is RateLimitType.ACCOUNT
    groups = []
    for (kind, asked), by_account in alike.items():
        groups.append(Group(kind, by_account.total(), asked, tuple(by_account.values()) if is_apart else ()))
        for account, count in by_account.items():
            requests[account] += Group(kind, count, asked).requests(settings.bucket_seconds, 1)
    return Plan(
        groups=tuple(groups),
        width_seconds=settings.bucket_seconds,
        interval_seconds=settings.collection_interval_seconds,
        limit=limit_of(
            settings.graphql_requests_per_5_minutes,
            settings.requests_per_5_minutes,
            rate_limit_type,
            requests.values(),
        ),
    )


def admit(plan: Plan, *, token: str = DEFAULT_TOKEN) -> None:
    """Say what it costs; ConfigError with the numbers, and with what would fit, where it is too much in any case."""
    at_best = best_case(plan)
    if plan.fits:
        log.info(
            "What is collected fits into Cloudflare's quota",
            token=token,
            requests=told(plan),
            share=round(plan.share, 3),
        )
    elif at_best.fits:
        log.warning(
            "What is collected may not fit into Cloudflare's quota; windows that do not are collected later",
            token=token,
            requests=told(plan),
            share=round(plan.share, 3),
            share_at_best=round(at_best.share, 3),
        )
    else:
        whom = "" if token == DEFAULT_TOKEN else f" the token {token}"
        problem = f"cost more requests than Cloudflare allows{whom}: {told(at_best)}"
        raise ConfigError([Mistake("CF_DATASETS", None, problem)])


def best_case(plan: Plan) -> Plan:
    """The same where Cloudflare answers as many datasets in a query as are tried first."""
    return replace(plan, nodes_per_query=NODES_PER_QUERY)


def told(plan: Plan) -> str:
    """The arithmetic for people; where it does not fit, with what would."""
    return verdict(plan, BUCKET_SECONDS)
