"""Datasets of every shape that the model has, on nodes that Cloudflare's schema has."""

from worker.cloudflare.catalogue import Dataset, Grain, Label, Metric, ScopeKind, TimeType, Top, Total, shipped

HTTP_REQUESTS = shipped()["http_requests"]

NAMES = {60: "datetimeMinute", 300: "datetimeFiveMinutes", 3600: "datetimeHour"}


def grains(node: str, *, filtered_by: str | None = "datetime", untimed: tuple[int, ...] = ()) -> tuple[Grain, ...]:
    """The widths of NAMES and a day; `filtered_by` None for the dimension itself."""

    def grain(width: int, dimension: str) -> Grain:
        field = filtered_by or dimension
        grouped_by = None if width in untimed else dimension
        return Grain(width, node, grouped_by, f"{field}_geq", f"{field}_lt", TimeType.TIME)

    day = Grain(86400, node, None if 86400 in untimed else "date", "date_geq", "date_lt", TimeType.DATE)
    return (*(grain(width, dimension) for width, dimension in NAMES.items()), day)


def metric(name: str, unit: str = "requests", *, additive: bool = True) -> Metric:
    return Metric(name, "For tests.", unit, additive)


HTTP_CACHE = Dataset(
    name="http_cache",
    help="A label, a top, a condition, a scale, sampled.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=(
        Total(("count",), metric("cloudflare_zone_cache_requests")),
        Total(("sum", "edgeResponseBytes"), metric("cloudflare_zone_cache_response_bytes", "bytes")),
        Total(("sum", "originResponseDurationMs"), metric("cloudflare_zone_cache_seconds", "seconds"), scale=0.001),
    ),
    labels=(Label("cache_status", "cacheStatus"),),
    where=(("requestSource", "eyeball"), ("edgeResponseStatus_in", (200, 404))),
    top=Top(3, ("count",)),
    is_sampled=True,
)

HTTP_STATUS = Dataset(
    name="http_status",
    help="Two labels, one of them a number.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=(Total(("count",), metric("cloudflare_zone_status_class_requests")),),
    labels=(Label("host", "clientRequestHTTPHost"), Label("status", "edgeResponseStatus")),
    top=Top(2, ("count",)),
    is_sampled=True,
)

HTTP_OVERVIEW = Dataset(
    name="http_overview",
    help="No labels, sampled.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=(Total(("count",), metric("cloudflare_zone_overview_requests")),),
    where=(("requestSource", 'eye"ball\u2028ü'),),
    is_sampled=True,
)

KV_STORED = Dataset(
    name="kv_stored",
    help="An account's state, which has no zero and no sum.",
    grains=grains("kvStorageAdaptiveGroups", untimed=(300,)),
    totals=(
        Total(
            ("max", "byteCount"),
            metric("cloudflare_account_kv_stored_bytes", "bytes", additive=False),
            has_zero=False,
        ),
        Total(("max", "keyCount"), metric("cloudflare_account_kv_keys", "keys", additive=False), has_zero=False),
    ),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("namespace_id", "namespaceId"),),
)

D1_QUERIES = Dataset(
    name="d1_queries",
    help="No filter on datetime; floats.",
    grains=grains("d1AnalyticsAdaptiveGroups", filtered_by=None),
    totals=(
        Total(("sum", "readQueries"), metric("cloudflare_account_d1_read_queries", "queries")),
        Total(("sum", "queryBatchResponseBytes"), metric("cloudflare_account_d1_response_bytes", "bytes")),
    ),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("database_id", "databaseId"),),
    top=Top(2, ("sum", "queryBatchResponseBytes")),
    is_sampled=True,
)

WORKERS = Dataset(
    name="workers",
    help="No time dimension, no `count`.",
    grains=grains("workersInvocationsAdaptive", untimed=(60, 300, 3600, 86400)),
    totals=(
        Total(("sum", "requests"), metric("cloudflare_account_worker_requests")),
        Total(("sum", "cpuTimeUs"), metric("cloudflare_account_worker_cpu_seconds", "seconds"), scale=1e-6),
    ),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("script", "scriptName"), Label("status", "status")),
    top=Top(50, ("sum", "requests")),
    is_sampled=True,
)

WORKERS_TOTAL = Dataset(
    name="workers_total",
    help="Neither labels nor a time dimension.",
    grains=grains("workersInvocationsAdaptive", untimed=(60, 300, 3600, 86400)),
    totals=(Total(("sum", "requests"), metric("cloudflare_account_workers_requests")),),
    scope=ScopeKind.ACCOUNT,
)

ZONE_DATASETS = (HTTP_CACHE, HTTP_STATUS, HTTP_OVERVIEW)
ACCOUNT_DATASETS = (KV_STORED, D1_QUERIES, WORKERS, WORKERS_TOTAL)
