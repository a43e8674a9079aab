"""What a worker must have delivered for a bucket, said independently of its catalogue.

Every field of `BucketTruth` is named like its metric, so the expectation is the truth's own fields.
"""

from collections.abc import Mapping
from dataclasses import fields

from worker.simulator.fleet import BucketTruth, Zone

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Value by metric name and labels."""

LABELS = {
    "country_requests": "country",
    "country_response_bytes": "country",
    "country_threats": "country",
    "status_requests": "status",
    "content_type_requests": "content_type",
    "content_type_response_bytes": "content_type",
    "browser_page_views": "browser",
    "http_version_requests": "http_version",
    "tls_version_requests": "tls_version",
    "ip_class_requests": "ip_class",
    "threat_type_requests": "threat_type",
}
_NO_METRIC = {"edge_request_bytes", "clients"}


def expected_samples(zone: Zone, truth: BucketTruth | None) -> Samples:
    """The samples of one bucket: without traffic every total is 0 and no label exists."""
    common = {("zone", zone.name), ("zone_id", zone.tag), ("account", zone.account.name)}
    samples: Samples = {
        ("cloudflare_zone_unique_visitors", frozenset(common)): float(truth.unique_visitors if truth else 0)
    }
    for field in fields(BucketTruth):
        if field.name in _NO_METRIC:
            continue
        metric = f"cloudflare_zone_{field.name}"
        if field.name not in LABELS:
            samples[metric, frozenset(common)] = float(getattr(truth, field.name) if truth else 0)
        elif truth is not None:
            by_label: Mapping[object, int] = getattr(truth, field.name)
            for label, amount in by_label.items():
                samples[metric, frozenset(common | {(LABELS[field.name], str(label))})] = float(amount)
    return samples
