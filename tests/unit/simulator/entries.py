"""Entries of a catalogue on nodes of every kind: labels and none, accounts, no count, states, no datetime filter."""

from worker.cloudflare.catalogue import Dataset, Grain, Label, Metric, ScopeKind, TimeType, Top, Total
from worker.simulator.nodes import shipped_datasets

HTTP_REQUESTS = next(dataset for dataset in shipped_datasets() if dataset.name == "http_requests")

_DIMENSIONS = {
    60: "datetimeMinute",
    300: "datetimeFiveMinutes",
    900: "datetimeFifteenMinutes",
    3600: "datetimeHour",
    86_400: "date",
}


def grains(node: str, *, lacks: tuple[int, ...] = (), by: str = "datetime") -> tuple[Grain, ...]:
    """The grains of a node that has a dimension of every width but some."""
    return tuple(
        Grain(width, node, None if width in lacks else dimension, f"{by}_geq", f"{by}_lt", TimeType.TIME)
        if dimension != "date" or width in lacks
        else Grain(width, node, dimension, "date_geq", "date_lt", TimeType.DATE)
        for width, dimension in _DIMENSIONS.items()
    )


def total(*path: str, additive: bool = True) -> Total:
    name = f"cloudflare_{'_'.join(path).lower()}"
    return Total(path, Metric(name, "A number.", "things", additive=additive), has_zero=additive)


HTTP = Dataset(
    name="http_eyeball",
    help="Requests by visitors.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=(total("count"), total("sum", "edgeResponseBytes"), total("sum", "visits")),
    where=(("requestSource", "eyeball"),),
    is_sampled=True,
)
HTTP_CACHE = Dataset(
    name="http_cache",
    help="Requests by cache status.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=HTTP.totals,
    labels=(Label("cache_status", "cacheStatus"), Label("status", "edgeResponseStatus")),
    where=HTTP.where,
    top=Top(5, ("count",)),
    is_sampled=True,
)
HTTP_ERRORS = Dataset(
    name="http_errors",
    help="Errors by host.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=(total("count"),),
    labels=(Label("host", "clientRequestHTTPHost"),),
    where=(("edgeResponseStatus_geq", 400), ("cacheStatus_notin", ("hit", "stale")), ("requestSource", "eyeball")),
    top=Top(5, ("count",)),
)
FIREWALL = Dataset(
    name="firewall",
    help="Firewall events.",
    grains=grains("firewallEventsAdaptiveGroups"),
    totals=(total("count"),),
    labels=(Label("action", "action"), Label("source", "source")),
    top=Top(5, ("count",)),
)
WORKERS = Dataset(
    name="workers",
    help="Invocations of Workers.",
    grains=grains("workersInvocationsAdaptive"),
    totals=(total("sum", "requests"), total("sum", "errors"), total("sum", "duration")),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("script", "scriptName"), Label("status", "status")),
    top=Top(5, ("sum", "requests")),
    is_sampled=True,
)
KV_STORAGE = Dataset(
    name="kv_storage",
    help="What KV stores.",
    grains=grains("kvStorageAdaptiveGroups", lacks=(300, 900)),
    totals=(total("max", "byteCount", additive=False), total("max", "keyCount", additive=False)),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("namespace", "namespaceId"),),
)
D1 = Dataset(
    name="d1",
    help="Queries of D1.",
    grains=grains("d1AnalyticsAdaptiveGroups", by="datetimeMinute"),
    totals=(total("sum", "readQueries"), total("sum", "queryBatchResponseBytes")),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("database", "databaseId"),),
    top=Top(5, ("sum", "readQueries")),
)
QUEUES = Dataset(
    name="queues",
    help="How long queues are.",
    grains=grains("queueBacklogAdaptiveGroups"),
    totals=(total("avg", "messages", additive=False),),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("queue", "queueId"),),
)
ACCOUNT_HTTP = Dataset(
    name="account_http",
    help="Requests of all zones of an account.",
    grains=grains("httpRequestsAdaptiveGroups"),
    totals=HTTP.totals,
    scope=ScopeKind.ACCOUNT,
    labels=(Label("zone_tag", "zoneTag"), Label("cache_status", "cacheStatus")),
    where=HTTP.where,
    top=Top(5, ("count",)),
)
ACCOUNT_ROLLUP = Dataset(
    name="account_rollup",
    help="HTTP traffic of an account.",
    grains=HTTP_REQUESTS.grains,
    totals=HTTP_REQUESTS.totals[:2],
    breakdowns=HTTP_REQUESTS.breakdowns[:2],
    scope=ScopeKind.ACCOUNT,
)
BUILDS = Dataset(
    name="builds",
    help="Builds of Workers, by no dimension at all.",
    grains=grains("workersBuildsBuildMinutesAdaptiveGroups", lacks=(60, 300, 900, 3_600, 86_400)),
    totals=(total("sum", "buildMinutes"),),
    scope=ScopeKind.ACCOUNT,
)
PAGE_LOADS = Dataset(
    name="page_loads",
    help="Page loads, on a node that can filter by the second and not group by it.",
    grains=grains("rumPageloadEventsAdaptiveGroups"),
    totals=(total("count"), total("sum", "visits")),
    scope=ScopeKind.ACCOUNT,
    labels=(Label("device", "deviceType"),),
    top=Top(5, ("count",)),
)

ENTRIES = (
    HTTP_REQUESTS,
    HTTP,
    HTTP_CACHE,
    HTTP_ERRORS,
    FIREWALL,
    WORKERS,
    KV_STORAGE,
    D1,
    QUEUES,
    ACCOUNT_HTTP,
    ACCOUNT_ROLLUP,
    BUILDS,
    PAGE_LOADS,
)
