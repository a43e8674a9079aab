"""What a receiver must hold in the end, computed from the simulated fleet alone and never from what the worker did."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields

from worker.simulator.fleet import BucketTruth, Fleet, Zone

Labels = frozenset[tuple[str, str]]
Content = dict[Labels, dict[int, float]]

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


def expected_samples(zone: Zone, truth: BucketTruth | None) -> dict[Labels, float]:
    """The samples of one bucket, said independently of the worker's catalogue.

    Every field of `BucketTruth` is named like its metric. Without traffic every total is 0 and no label exists.
    """
    totals = [field.name for field in fields(BucketTruth) if field.name not in LABELS.keys() | _NO_METRIC]
    values: dict[str, Mapping[object, int]] = {
        name: {None: getattr(truth, name) if truth else 0} for name in (*totals, "unique_visitors")
    }
    if truth is not None:
        values |= {name: getattr(truth, name) for name in LABELS}
    of_zone = {"zone": zone.name, "zone_id": zone.tag, "account": zone.account.name}
    return {
        frozenset(
            {
                "__name__": f"cloudflare_zone_{name}",
                **of_zone,
                **({LABELS[name]: str(key) or "unknown"} if name in LABELS else {}),
            }.items()
        ): float(value)
        for name, by_key in values.items()
        for key, value in by_key.items()
    }


def expected_content(fleet: Fleet, zones: Iterable[Zone], starts: range, *, stamp_end: bool = False) -> Content:
    """Every sample of these windows, by series and unix milliseconds; the step of `starts` is the windows' width."""
    content: defaultdict[Labels, dict[int, float]] = defaultdict(dict)
    for zone in zones:
        for start in starts:
            timestamp_ms = (start + starts.step) * 1000 - 1 if stamp_end else start * 1000
            for labels, value in expected_samples(zone, fleet.bucket(zone.tag, start, starts.step)).items():
                content[labels][timestamp_ms] = value
    return dict(content)


def difference(expected: Content, actual: Mapping[Labels, Mapping[int, float]]) -> dict[str, int]:
    """How many samples are missing, extra and different; all 0 where both are the same. Prints some of each."""
    wanted = {(labels, at): value for labels, samples in expected.items() for at, value in samples.items()}
    stored = {(labels, at): value for labels, samples in actual.items() for at, value in samples.items()}
    missing = wanted.keys() - stored.keys()
    extra = stored.keys() - wanted.keys()
    different = {key for key in wanted.keys() & stored.keys() if wanted[key] != stored[key]}
    for kind, keys in (("missing", missing), ("extra", extra), ("different", different)):
        for labels, at in sorted(keys, key=lambda key: (key[1], sorted(key[0])))[:5]:
            print(kind, at, dict(sorted(labels)), wanted.get((labels, at)), stored.get((labels, at)))  # noqa: T201 - shown when the test fails
    return {"missing": len(missing), "extra": len(extra), "different": len(different)}


SAME = {"missing": 0, "extra": 0, "different": 0}
