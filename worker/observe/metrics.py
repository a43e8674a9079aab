"""The worker's own metrics, behind /metrics.

Owns the registry and every metric in it. Promises that names start with `cfrw_`, that labels are bounded (names from
the configuration and words of our own, never texts of remote sides), and that ages are true when they are read and not
when a loop last passed. Knows nothing of Cloudflare, of the ledger or of remote write: the loops set what they know.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from worker.clock import Clock
from worker.health import Health, TokenState

# What can come of reading the facts of a zone or account.
FACT_OUTCOMES = ("captured", "denied", "failed")

# What can become of a request, and of the samples in it, at a destination.
PUSH_OUTCOMES = ("accepted", "refused", "later")

# Of answers that refuse samples, and of samples that were never sent; any other starts to count when it comes.
REFUSAL_STATUSES = ("400", "409", "413", "422", "none")

# A request to Cloudflare or to a receiver takes 50 ms to a minute; its own deadline is about the last one.
REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# A collection pass takes from nothing to do (ms) over one query (1 s) to waiting for the API budget (300 s).
PASS_SECONDS = (0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)

# What settles late is mostly per mille of a window; 0 are those that are the same.
RELATIVE_DIFFERENCES = (0, 0.001, 0.01, 0.1, 1)

MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """What the documentation has to say about a metric.

    name:   as it is scraped; of a histogram without `_bucket`, `_sum`, `_count`.
    kind:   `counter`, `gauge` or `histogram`.
    help:   one sentence.
    labels: the names of its labels.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


VERIFY_FINDINGS = ("equal", "missing", "different", "extra", "duplicated", "undelivered")
"""What reading back may find of a sample."""


class Metrics:
    """Every metric of the worker. An attribute is called as its metric is, without `cfrw_`.

    A timestamp of zero means never.

    health:         tells of the loops and of readiness, at the moment of a scrape.
    version:        of the worker; a label of `cfrw_build_info`, as is sqlite_version.
    destinations:   names of those whose series exist from the start, at zero, so that the first failure is an increase
                    and not a birth.
    datasets:       the same for datasets.
    fact_sets:      the same for facts.
    """

    def __init__(  # noqa: PLR0915 - a list of what there is
        self,
        clock: Clock,
        health: Health,
        *,
        version: str,
        sqlite_version: str,
        destinations: Sequence[str] = (),
        datasets: Sequence[str] = (),
        fact_sets: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        self._registry = _Registry()
        self._descriptions: list[MetricDescription] = []
        self._oldest_pending_end: dict[str, float] = {}
        self._highest_sent: dict[str, float] = {}

        self.build_info = self._new(
            Gauge,
            "cfrw_build_info",
            "Always 1; the labels say what runs.",
            ("version", "python_version", "sqlite_version"),
        )
        python_version = ".".join(str(part) for part in sys.version_info[:3])
        self.build_info.labels(version, python_version, sqlite_version).set(1)

        token = ("token",)
        self.collect_last_success_timestamp_seconds = self._new(
            Gauge,
            "cfrw_collect_last_success_timestamp_seconds",
            "When a collection pass last ended without a failure of the Cloudflare API as a whole.",
            token,
        )
        self.collect_pass_duration_seconds = self._new(
            Histogram, "cfrw_collect_pass_duration_seconds", "How long collection passes took.", buckets=PASS_SECONDS
        )
        self.collect_captured_buckets_total = self._new(
            Counter, "cfrw_collect_captured_buckets_total", "Buckets captured into the ledger.", ("dataset",)
        )
        self.collect_captured_samples_total = self._new(
            Counter, "cfrw_collect_captured_samples_total", "Samples in the captured buckets.", ("dataset",)
        )
        self.collect_drifted_buckets_total = self._new(
            Counter,
            "cfrw_collect_drifted_buckets_total",
            "Captured buckets that Cloudflare answered differently for when it was asked again; they stay as captured.",
            ("dataset",),
        )
        self.collect_folded_rows_total = self._new(
            Counter,
            "cfrw_collect_folded_rows_total",
            "Combinations of label values beyond a dataset's top that were summed up in the labels `other`.",
            ("dataset",),
        )
        drift = ("dataset", "after")
        self.drift_readings_total = self._new(
            Counter,
            "cfrw_drift_readings_total",
            "Captured windows that were read again, by the seconds after their capture.",
            drift,
        )
        self.drift_differing_readings_total = self._new(
            Counter,
            "cfrw_drift_differing_readings_total",
            "Those of them for which Cloudflare answered differently; they stay as captured.",
            drift,
        )
        self.drift_relative_difference = self._new(
            Histogram,
            "cfrw_drift_relative_difference",
            "By how much the total of the dataset's first metric had changed, in either direction, as a share of what "
            "was captured.",
            drift,
            buckets=RELATIVE_DIFFERENCES,
        )
        self.drift_recommended_delay_seconds = self._new(
            Gauge,
            "cfrw_drift_recommended_delay_seconds",
            "The delay that the readings in the ledger recommend; 0 while they do not tell.",
            ("dataset",),
        )
        self.drift_current_delay_seconds = self._new(
            Gauge,
            "cfrw_drift_current_delay_seconds",
            "The delay that is in force, to compare with that.",
            ("dataset",),
        )
        self.facts_reads_total = self._new(
            Counter, "cfrw_facts_reads_total", "Reads of facts of a zone or account.", ("dataset", "outcome")
        )
        self.facts_missed_windows_total = self._new(
            Counter,
            "cfrw_facts_missed_windows_total",
            "Windows between two reads of the facts of a zone or account in which there was none.",
            ("dataset",),
        )
        self.newest_captured_window_end_timestamp_seconds = self._new(
            Gauge,
            "cfrw_newest_captured_window_end_timestamp_seconds",
            "End of the newest window that was captured, of any zone or account.",
            ("dataset",),
        )
        self.missing_windows = self._new(
            Gauge,
            "cfrw_missing_windows",
            "Windows that should have been captured by now and are not, by the reason.",
            ("dataset", "reason"),
        )
        self.repairs_open = self._new(Gauge, "cfrw_repairs_open", "Repairs that were asked for and have not ended.")
        self.zones = self._new(Gauge, "cfrw_zones", "Zones that are collected, failing ones included.", token)
        self.zones_failing = self._new(
            Gauge, "cfrw_zones_failing", "Zones that Cloudflare answered the last query with an error for.", token
        )
        self.accounts = self._new(
            Gauge, "cfrw_accounts", "Accounts that are collected; 0 where nothing of accounts is.", token
        )
        self.denied_scopes = self._new(
            Gauge,
            "cfrw_denied_scopes",
            "Zones or accounts that the dataset is not collected of, because their plan or the token denies it.",
            ("dataset",),
        )

        self.cloudflare_requests_total = self._new(
            Counter, "cfrw_cloudflare_requests_total", "Requests to Cloudflare.", ("token", "api", "outcome")
        )
        self.cloudflare_request_duration_seconds = self._new(
            Histogram,
            "cfrw_cloudflare_request_duration_seconds",
            "How long requests to Cloudflare took, failed ones included.",
            ("api",),
            buckets=REQUEST_SECONDS,
        )
        self.cloudflare_budget_remaining_requests = self._new(
            Gauge,
            "cfrw_cloudflare_budget_remaining_requests",
            "Requests that may be sent at once without passing Cloudflare's limit per five minutes.",
            ("token", "api"),
        )
        self.cloudflare_budget_limit_requests = self._new(
            Gauge,
            "cfrw_cloudflare_budget_limit_requests",
            "Requests that the worker allows itself per five minutes.",
            ("token", "api"),
        )
        self.cloudflare_query_cost = self._new(
            Gauge,
            "cfrw_cloudflare_query_cost",
            "What a GraphQL query costs by Cloudflare's own reckoning, averaged over the last ones; NaN while unknown.",
            token,
        )
        self.cloudflare_budget_left = self._new(
            Gauge,
            "cfrw_cloudflare_budget_left",
            "What is left of Cloudflare's own budget for GraphQL queries, in the unit of the cost; NaN while unknown.",
            token,
        )

        # Where Prometheus' own sender has the same metric, it is prometheus_remote_storage_* with the same ending.
        destination = ("destination",)
        self.push_last_success_timestamp_seconds = self._new(
            Gauge,
            "cfrw_push_last_success_timestamp_seconds",
            "When the destination last accepted a request.",
            destination,
        )
        self.push_sent_batch_duration_seconds = self._new(
            Histogram,
            "cfrw_push_sent_batch_duration_seconds",
            "How long requests to the destination took, failed ones included.",
            destination,
            buckets=REQUEST_SECONDS,
        )
        self.push_requests_total = self._new(
            Counter,
            "cfrw_push_requests_total",
            "Requests to the destination: accepted, refused for good, or to be sent again later.",
            ("destination", "outcome"),
        )
        self.push_samples_total = self._new(
            Counter, "cfrw_push_samples_total", "Samples in these requests.", ("destination", "outcome")
        )
        self.push_samples_retried_total = self._new(
            Counter,
            "cfrw_push_samples_retried_total",
            "Samples in requests that were not the first attempt to send them.",
            destination,
        )
        self.push_samples_failed_total = self._new(
            Counter,
            "cfrw_push_samples_failed_total",
            "Samples that the destination refused for good, by the HTTP status of its answer; `none` without one.",
            ("destination", "status"),
        )
        self.push_samples_dropped_total = self._new(
            Counter,
            "cfrw_push_samples_dropped_total",
            "Samples that write_relabel_configs kept from being sent; they count as delivered.",
            destination,
        )
        self.push_unwritten_samples_total = self._new(
            Counter,
            "cfrw_push_unwritten_samples_total",
            "Samples in accepted requests of remote write 2.0 that the receiver says it has not written.",
            destination,
        )
        self.push_splits_total = self._new(
            Counter,
            "cfrw_push_splits_total",
            "Requests that were refused, or failed too often, and were sent in smaller parts.",
            destination,
        )
        self.push_split_requests_total = self._new(
            Counter, "cfrw_push_split_requests_total", "Requests with such smaller parts.", destination
        )
        self.push_bytes_total = self._new(
            Counter, "cfrw_push_bytes_total", "Bytes sent to the destination, after compression.", destination
        )
        self.push_queue_highest_sent_timestamp_seconds = self._new(
            Gauge,
            "cfrw_push_queue_highest_sent_timestamp_seconds",
            "Newest timestamp of any sample that the destination has accepted.",
            destination,
        )
        self.push_shards = self._new(
            Gauge, "cfrw_push_shards", "How many requests may go to the destination at a time.", destination
        )
        self.push_max_bytes_per_send = self._new(
            Gauge,
            "cfrw_push_max_bytes_per_send",
            "Most bytes in one request before compression: max_bytes_per_send, or less after the destination refused "
            "larger ones.",
            destination,
        )
        self.push_parked = self._new(
            Gauge,
            "cfrw_push_parked",
            "1 while the destination is parked: somebody has to correct its set-up, and only probes are sent.",
            destination,
        )
        self.push_message_version = self._new(
            Gauge, "cfrw_push_message_version", "Version of remote write that is sent: 1 or 2.", destination
        )
        self.push_fallen_back = self._new(
            Gauge,
            "cfrw_push_fallen_back",
            "1 while remote write 1.0 is sent because the destination did not take 2.0.",
            destination,
        )
        self.push_samples_pending = self._new(
            Gauge, "cfrw_push_samples_pending", "Samples in the ledger that wait to be accepted.", destination
        )
        self.push_buckets_pending = self._new(
            Gauge, "cfrw_push_buckets_pending", "Buckets in the ledger that wait to be accepted.", destination
        )
        self._push_oldest_pending_age_seconds = self._new(
            Gauge,
            "cfrw_push_oldest_pending_age_seconds",
            "Time since the end of the oldest window that waits to be accepted; 0 when none waits.",
            destination,
        )

        self.verify_samples = self._new(
            Gauge,
            "cfrw_verify_samples",
            "Samples of the last CF_VERIFY_HOURS by what reading back from the destination has found of them.",
            ("destination", "finding"),
        )
        self.verify_last_success_timestamp_seconds = self._new(
            Gauge,
            "cfrw_verify_last_success_timestamp_seconds",
            "When all of the last CF_VERIFY_HOURS was last read back from the destination.",
            destination,
        )
        self.ledger_buckets = self._new(
            Gauge,
            "cfrw_ledger_buckets",
            "Buckets in the ledger by the state of their delivery.",
            ("destination", "state"),
        )
        self.ledger_size_bytes = self._new(
            Gauge, "cfrw_ledger_size_bytes", "What the ledger takes on disk, its write-ahead log included."
        )
        self.ledger_max_bytes = self._new(
            Gauge, "cfrw_ledger_max_bytes", "What the ledger may take on disk; beyond it collection pauses."
        )
        self.ledger_last_prune_timestamp_seconds = self._new(
            Gauge,
            "cfrw_ledger_last_prune_timestamp_seconds",
            "When buckets past their retention were last looked for and deleted.",
        )

        told_by_health = _ToldByHealth(health)
        self._registry.register(told_by_health)
        self._descriptions.extend(told_by_health.descriptions)

        for name in health.tokens:
            self._start_token(name)
        for dataset in datasets:
            self._start_dataset(dataset)
        for fact_set in fact_sets:
            self._start_fact_set(fact_set)
        for name in destinations:
            self._start_destination(name)

    def set_oldest_pending(self, destination: str, window_end: float | None) -> None:
        """Tell the end of the oldest window that waits (unix seconds), or None when none waits; the age follows."""
        if window_end is None:
            self._oldest_pending_end.pop(destination, None)
        else:
            self._oldest_pending_end[destination] = window_end

    def sent(
        self, destination: str, outcome: str, *, samples: int, sent_bytes: int, seconds: float, again: bool
    ) -> None:
        """A request went to a destination: its outcome, what was in it, and whether it had been sent before."""
        self.push_requests_total.labels(destination, outcome).inc()
        self.push_samples_total.labels(destination, outcome).inc(samples)
        self.push_bytes_total.labels(destination).inc(sent_bytes)
        self.push_sent_batch_duration_seconds.labels(destination).observe(seconds)
        if again:
            self.push_samples_retried_total.labels(destination).inc(samples)

    def took(self, destination: str, *, now: float, newest_seconds: float) -> None:
        """A destination has accepted a request whose newest sample has this timestamp; unix seconds."""
        self.push_last_success_timestamp_seconds.labels(destination).set(now)
        newest = max(newest_seconds, self._highest_sent.get(destination, 0.0))
        self._highest_sent[destination] = newest
        self.push_queue_highest_sent_timestamp_seconds.labels(destination).set(newest)

    def start_verify(self, destination: str) -> None:
        """What this destination has stored will be read back."""
        self.verify_last_success_timestamp_seconds.labels(destination)
        for finding in VERIFY_FINDINGS:
            self.verify_samples.labels(destination, finding)

    def verified(self, destination: str, samples_by_finding: Mapping[str, int]) -> None:
        """All of it was read back just now, and so many samples were found to be what."""
        for finding in VERIFY_FINDINGS:
            self.verify_samples.labels(destination, finding).set(samples_by_finding[finding])
        self.verify_last_success_timestamp_seconds.labels(destination).set(self._clock.now())

    def start_drift(self, dataset: str, *, delay_seconds: int, after_seconds: Iterable[int]) -> None:
        """Windows of this dataset, final after `delay_seconds`, will be read again so long after their capture."""
        self.drift_current_delay_seconds.labels(dataset).set(delay_seconds)
        self.drift_recommended_delay_seconds.labels(dataset)
        for after in after_seconds:
            self.drift_readings_total.labels(dataset, after)
            self.drift_differing_readings_total.labels(dataset, after)
            self.drift_relative_difference.labels(dataset, after)

    def drift_read(self, dataset: str, after_seconds: int, *, differs: bool, relative_difference: float | None) -> None:
        """A captured window was read again; `relative_difference` is None where the dataset has no total."""
        self.drift_readings_total.labels(dataset, after_seconds).inc()
        self.drift_differing_readings_total.labels(dataset, after_seconds).inc(differs)
        if relative_difference is not None:
            self.drift_relative_difference.labels(dataset, after_seconds).observe(abs(relative_difference))

    def refused(self, destination: str, status: int | None, samples: int) -> None:
        """A destination will never take so many samples."""
        self.push_samples_failed_total.labels(destination, "none" if status is None else str(status)).inc(samples)

    def descriptions(self) -> tuple[MetricDescription, ...]:
        """Every metric, in the order in which the documentation should list them."""
        return tuple(self._descriptions)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics as they are now and their content type: OpenMetrics where `accept`, the header, prefers it, else
        the Prometheus text format 0.0.4.
        """
        # The library is not given the header itself: it ignores weights and fails on a version that is no number.
        encode, content_type = choose_encoder("application/openmetrics-text" if _prefers_openmetrics(accept) else "")
        return encode(self._registry), content_type

    def _new(self, kind: type[MetricT], name: str, text: str, labels: tuple[str, ...] = (), **options: Any) -> MetricT:
        self._descriptions.append(MetricDescription(name, kind.__name__.lower(), text, labels))
        return kind(name, text, labels, registry=self._registry, **options)

    def _start_token(self, name: str) -> None:
        self.collect_last_success_timestamp_seconds.labels(name)
        for count in (self.zones, self.zones_failing, self.accounts):
            count.labels(name)
        for unknown in (self.cloudflare_query_cost, self.cloudflare_budget_left):
            unknown.labels(name).set(math.nan)

    def _start_dataset(self, dataset: str) -> None:
        self.collect_captured_buckets_total.labels(dataset)
        self.collect_captured_samples_total.labels(dataset)
        self.collect_drifted_buckets_total.labels(dataset)
        self.collect_folded_rows_total.labels(dataset)
        self.newest_captured_window_end_timestamp_seconds.labels(dataset)
        self.denied_scopes.labels(dataset)

    def _start_fact_set(self, name: str) -> None:
        self.collect_captured_buckets_total.labels(name)
        self.collect_captured_samples_total.labels(name)
        self.facts_missed_windows_total.labels(name)
        self.denied_scopes.labels(name)
        for outcome in FACT_OUTCOMES:
            self.facts_reads_total.labels(name, outcome)

    def _start_destination(self, name: str) -> None:
        for outcome in PUSH_OUTCOMES:
            self.push_requests_total.labels(name, outcome)
            self.push_samples_total.labels(name, outcome)
        for status in REFUSAL_STATUSES:
            self.push_samples_failed_total.labels(name, status)
        self.push_last_success_timestamp_seconds.labels(name)
        self.push_sent_batch_duration_seconds.labels(name)
        self.push_samples_retried_total.labels(name)
        self.push_samples_dropped_total.labels(name)
        self.push_unwritten_samples_total.labels(name)
        self.push_splits_total.labels(name)
        self.push_split_requests_total.labels(name)
        self.push_queue_highest_sent_timestamp_seconds.labels(name)
        self.push_shards.labels(name)
        self.push_max_bytes_per_send.labels(name)
        self.push_parked.labels(name)
        self.push_message_version.labels(name)
        self.push_fallen_back.labels(name)
        self.push_bytes_total.labels(name)
        self.push_samples_pending.labels(name)
        self.push_buckets_pending.labels(name)
        self._push_oldest_pending_age_seconds.labels(name).set_function(lambda: self._oldest_pending_age(name))

    def _oldest_pending_age(self, destination: str) -> float:
        end = self._oldest_pending_end.get(destination)
        return 0.0 if end is None else max(0.0, self._clock.now() - end)


def replace_values(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """Make `values`, by the label values in their order, all that the gauge says.

    A series that is not among them any more goes to 0 and stays, so that an alert sees it end.
    """
    for metric in gauge.collect():
        for sample in metric.samples:
            gauge.labels(**sample.labels).set(0)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)


class _Registry(CollectorRegistry):
    """A registry without the `_created` series, which would double the number of series to tell what nobody asks."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _ToldByHealth(Collector):
    """What the worker's health says at the moment of a scrape."""

    descriptions = (
        MetricDescription("cfrw_ready", "gauge", "1 while /-/ready answers 200, else 0.", ()),
        MetricDescription(
            "cfrw_token_accepted", "gauge", "1 while Cloudflare accepts the API token, else 0.", ("token",)
        ),
        MetricDescription(
            "cfrw_loop_last_completed_timestamp_seconds", "gauge", "When the loop last completed a pass.", ("loop",)
        ),
        MetricDescription(
            "cfrw_loop_allowance_seconds",
            "gauge",
            "How long the loop may take from one completed pass to the next before the worker is not ready.",
            ("loop",),
        ),
    )

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        ready, accepted, completed, allowance = (
            GaugeMetricFamily(description.name, description.help, labels=description.labels)
            for description in self.descriptions
        )
        ready.add_metric([], float(self._health.readiness().ok))
        for name, state in self._health.tokens.items():
            accepted.add_metric([name], float(state is TokenState.ACCEPTED))
        for name, loop in self._health.loops().items():
            completed.add_metric([name], loop.completed_at or 0.0)
            allowance.add_metric([name], loop.allowance_seconds)
        yield from (ready, accepted, completed, allowance)


def _prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header (RFC 9110, 12.5.1) gives OpenMetrics more weight than plain text."""
    weights: dict[str, float] = {}
    for item in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter.removeprefix("q="))
                except ValueError:
                    weight = 0.0
        weights[media_type] = max(weight, weights.get(media_type, 0.0))
    wanted = weights.get("application/openmetrics-text", 0.0)
    # Named beside plain text with the same weight, the format that says more wins.
    return wanted > 0 and wanted >= weights.get("text/plain", 0.0)
