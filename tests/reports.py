"""Status reports for tests: a worker with one destination, one zone and nothing wrong, from which a test departs."""

from worker.health import TokenState, Verdict
from worker.status import (
    ApiBudget,
    CloudflareStatus,
    DatasetStatus,
    DeniedScope,
    DeniedStatus,
    DestinationStatus,
    JournalEntry,
    LedgerStatus,
    RefusedStatus,
    ScopeStatus,
    StatusReport,
    TokenStatus,
)

NOW = 1_767_668_400.0  # 2026-01-06T03:00:00Z

DESTINATION = DestinationStatus(
    name="prod",
    url="https://mimir.example.com/api/v1/push",
    message=None,
    parked=None,
    pending_buckets=0,
    pending_samples=0,
    oldest_pending_end=None,
    last_success_at=NOW - 30,
    last_failure_at=None,
    last_failure=None,
    acknowledged_buckets=1234,
    partial_buckets=0,
    refused_buckets=0,
    expired_buckets=0,
    damaged_buckets=0,
    refused_samples=0,
    given_up=(),
    refusals=(),
)

REFUSAL = RefusedStatus(
    refused_at=NOW - 120,
    timestamp=NOW - 10_800,
    samples=1,
    series=('cloudflare_zone_requests{zone="example.com"}',),
    status=400,
    reason="out of bounds",
)

SCOPE = ScopeStatus(
    dataset="http_requests",
    scope="0da42c8d2132a9ddaf714f9e7c920711",
    name="example.com",
    width_seconds=3600,
    newest_window_end=NOW - 900,
    expected=24,
    captured=24,
    missing=0,
    reason=None,
)

DATASET = DatasetStatus(
    dataset="http_requests",
    kind="zone",
    delay_seconds=600,
    scope_count=1,
    scopes_missing=0,
    scopes_denied=0,
    newest_window_end=NOW - 900,
    expected=24,
    captured=24,
    missing=0,
)

DENIED = DeniedStatus(
    dataset="http_requests",
    kind="zone",
    reason="the plan does not include httpRequests1hGroups",
    scope_count=1,
    scopes=(DeniedScope("5a2b0e1c", "free.example", NOW - 7200),),
)

REPORT = StatusReport(
    version="0.1.0",
    now=NOW,
    readiness=Verdict(ok=True, problems=()),
    destinations=(DESTINATION,),
    cloudflare=CloudflareStatus(
        TokenState.ACCEPTED,
        {"default": TokenState.ACCEPTED},
        (ApiBudget("default", "graphql", 280, 300), ApiBudget("default", "rest", 1100, 1200)),
    ),
    tokens=(TokenStatus("default", 1, 0, 20, 300, 100, 1200),),
    ledger=LedgerStatus(path="/data/ledger.db", size_bytes=5 * 2**20, max_bytes=10 * 2**30, buckets=1234),
    journal=(JournalEntry(NOW - 3600, "resend since 2026-01-05", "ops@bastion", "disk swap", "120 buckets"),),
    datasets=(DATASET,),
    denied=(),
    scope_count=1,
    scopes=(SCOPE,),
)
