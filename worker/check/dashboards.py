"""Whether the metrics that the shipped dashboards show are where a destination's query API says they are.

Reads two things back: the worker's own metrics of the last minutes, which a receiver has if it scrapes the worker, and
those of one zone's last windows. Which metrics there are depends on what has happened: a counter is there when
something was counted, a plan may lack a field. So it is a warning where there is none of them, and else told.
"""

from collections.abc import AsyncIterator, Collection
from typing import Protocol, assert_never

from worker.check.finding import Finding, first_of, ok, skipped, warning
from worker.check.memory import Memory
from worker.clock import Clock
from worker.config import DestinationSettings
from worker.datasets import Chosen
from worker.errors import ConfigError
from worker.remote_write import Found, Later, Selector

SECTION = "dashboards"

OWN = (
    "cfrw_cloudflare_budget_limit_requests",
    "cfrw_cloudflare_budget_remaining_requests",
    "cfrw_cloudflare_requests_total",
    "cfrw_collect_drifted_buckets_total",
    "cfrw_denied_scopes",
    "cfrw_drift_current_delay_seconds",
    "cfrw_drift_differing_readings_total",
    "cfrw_drift_readings_total",
    "cfrw_drift_recommended_delay_seconds",
    "cfrw_ledger_buckets",
    "cfrw_ledger_max_bytes",
    "cfrw_ledger_size_bytes",
    "cfrw_loop_last_completed_timestamp_seconds",
    "cfrw_missing_windows",
    "cfrw_newest_captured_window_end_timestamp_seconds",
    "cfrw_push_max_bytes_per_send",
    "cfrw_push_message_version",
    "cfrw_push_oldest_pending_age_seconds",
    "cfrw_push_parked",
    "cfrw_push_samples_failed_total",
    "cfrw_push_samples_pending",
    "cfrw_push_samples_total",
    "cfrw_push_sent_batch_duration_seconds_bucket",
    "cfrw_push_split_requests_total",
    "cfrw_push_unwritten_samples_total",
    "cfrw_ready",
    "cfrw_token_accepted",
    "cfrw_verify_last_success_timestamp_seconds",
    "cfrw_verify_samples",
    "cfrw_zones_failing",
)
"""Of the worker, by their names in deploy/grafana."""

TRAFFIC = (
    "cloudflare_zone_cached_requests",
    "cloudflare_zone_content_type_response_bytes",
    "cloudflare_zone_country_requests",
    "cloudflare_zone_encrypted_requests",
    "cloudflare_zone_page_views",
    "cloudflare_zone_requests",
    "cloudflare_zone_response_bytes",
    "cloudflare_zone_status_requests",
    "cloudflare_zone_threat_type_requests",
    "cloudflare_zone_threats",
    "cloudflare_zone_unique_visitors",
)
"""Of what is collected."""

# Three times the longest interval at which somebody scrapes.
_OWN_SECONDS = 900


class Reader(Protocol):
    """What reads samples back from the destination."""

    async def read(self, selector: Selector, first_ms: int, last_ms: int) -> Found | Later:
        """Every sample of the selected series between two instants, unix milliseconds, both included."""


async def look_at_dashboards(
    destination: DestinationSettings,
    reader: Reader | ConfigError,
    collected: Chosen,
    memory: Memory | None,
    clock: Clock,
    *,
    first_seconds: int,
    width_seconds: int,
) -> AsyncIterator[Finding]:
    """What is to be said of one destination.

    reader:        or why there is none.
    first_seconds: how old the newest sample of the traffic is at most when it arrives.
    """
    if isinstance(reader, ConfigError):
        yield skipped(SECTION, f"{destination.name}: not looked for: {reader.mistakes[0]}")
        return
    if memory is None:
        yield skipped(SECTION, f"{destination.name}: not looked for, as no worker has run yet")
        return
    now_ms = int(clock.now() * 1000)
    own = await reader.read(Selector(OWN, {}), now_ms - _OWN_SECONDS * 1000, now_ms)
    scrape = "have /metrics of the worker scraped there, or by a Prometheus that writes there"
    yield _finding(destination, "of the worker itself", OWN, own, scrape)
    if isinstance(own, Later):
        return
    described = [metrics for dataset in collected.datasets for metrics in dataset.metrics()]
    names = tuple(metric.name for metric, labels in described if not labels and metric.name in TRAFFIC)
    zone = next((scope for scope in memory.scopes if not scope.is_account), None)
    if not names or zone is None or memory.covered is None:
        yield skipped(SECTION, f"{destination.name}: nothing that a dashboard shows was captured yet")
        return
    selector = Selector(names, {"zone_id": (zone.tag,)})
    found = await reader.read(selector, now_ms - (first_seconds + 2 * width_seconds) * 1000, now_ms)
    resend = "see `cfrw status`, and whether write_relabel_configs let them pass"
    yield _finding(destination, f"of the last windows of {zone.name}", names, found, resend)


def _finding(
    destination: DestinationSettings, whose: str, names: Collection[str], found: Found | Later, to_do: str
) -> Finding:
    match found:
        case Found(series=series):
            there = {dict(labels).get("__name__") for labels in series}
            missing = [name for name in names if name not in there]
            what = f"{destination.name}: {len(names) - len(missing)} of {len(names)} metrics {whose} are there"
            if len(missing) == len(names):
                return warning(SECTION, what, to_do)
            return ok(SECTION, f"{what}, without {first_of(missing)}" if missing else what)
        case Later(reason=reason):
            what = f"{destination.name}: could not be asked for its metrics: {reason}"
            # Where it is only derived, nobody has said that there is a query API.
            return warning(SECTION, what, "correct query_url") if destination.query_url else skipped(SECTION, what)
        case never:
            assert_never(never)
