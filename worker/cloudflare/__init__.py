"""Cloudflare's side of the worker: which analytics exist, how they are asked for, and what the answers mean.

`CloudflareApi` is the way in. Everything that a caller has to do with is listed here; whatever goes wrong on the way is
a value (`Failed`, `ApiFailure`, `TokenRefused`, ...), never an exception.
"""

from worker.cloudflare.api import CloudflareApi
from worker.cloudflare.catalogue import (
    FACT_SETS,
    Breakdown,
    Catalogue,
    Dataset,
    FactSet,
    Grain,
    Metric,
    ScopeKind,
    Total,
    dataset_groups,
    extended,
    further_delays,
    select_datasets,
    shipped,
)
from worker.cloudflare.client import OnRequest, unobserved
from worker.cloudflare.discovery import (
    AccountList,
    TokenAccepted,
    TokenCheck,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    ZoneList,
    selects,
)
from worker.cloudflare.entitlements import Denied, Entitlement, Entitlements, Narrowed, entitled, signature
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.fetch import Answered, Failed, ScopeAnswer
from worker.cloudflare.query import NODES_PER_QUERY, WINDOWS_PER_QUERY, ZONES_PER_QUERY
from worker.cloudflare.quota import Api, Priority, Quota, RateLimitType
from worker.cloudflare.rows import Samples
from worker.cloudflare.schema_check import SchemaCheck, check_catalogue
from worker.cloudflare.scope import Account, Scope, Zone, counted_by

__all__ = [
    "FACT_SETS",
    "NODES_PER_QUERY",
    "WINDOWS_PER_QUERY",
    "ZONES_PER_QUERY",
    "Account",
    "AccountList",
    "Answered",
    "Api",
    "ApiFailure",
    "Breakdown",
    "Catalogue",
    "CloudflareApi",
    "Dataset",
    "Denied",
    "Entitlement",
    "Entitlements",
    "ErrorKind",
    "FactSet",
    "Failed",
    "Grain",
    "Metric",
    "Narrowed",
    "OnRequest",
    "Priority",
    "Quota",
    "RateLimitType",
    "Samples",
    "SchemaCheck",
    "Scope",
    "ScopeAnswer",
    "ScopeKind",
    "TokenAccepted",
    "TokenCheck",
    "TokenRefused",
    "TokenUnknown",
    "Total",
    "Unmatched",
    "Zone",
    "ZoneList",
    "check_catalogue",
    "counted_by",
    "dataset_groups",
    "entitled",
    "extended",
    "further_delays",
    "select_datasets",
    "selects",
    "shipped",
    "signature",
    "unobserved",
]
