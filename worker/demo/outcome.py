"""What there is to tell at the end: windows per zone, and whether the receiver has what Cloudflare has. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.cloudflare import shipped
from worker.ledger import ScopeReport
from worker.remote_write.decode import Labels, shown
from worker.simulator.fleet import BucketTruth, Fleet, Zone
from worker.times import instant

Samples = Mapping[Labels, Mapping[int, float]]
"""Value by timestamp (unix milliseconds) by series."""

DATASET = "http_requests"
_METRIC_PREFIX = "cloudflare_zone_"


@dataclass(frozen=True, slots=True)
class ZoneCount:
    """What became of the windows of one zone."""

    zone: str
    expected: int
    captured: int
    acknowledged: int

    @property
    def missing(self) -> int:
        """Windows that the receiver has not acknowledged, captured or not."""
        return self.expected - self.acknowledged


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cloudflare's samples against the receiver's.

    compared:  how many Cloudflare has.
    absent:    how many of them the receiver has not.
    different: how many it has with another value.
    surplus:   how many it has that Cloudflare has not.
    example:   one of those that are not right.
    """

    compared: int
    absent: int = 0
    different: int = 0
    surplus: int = 0
    example: str | None = None

    @property
    def is_equal(self) -> bool:
        return not (self.absent or self.different or self.surplus)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the demo ended.

    receiver:      what the receiver is called.
    waiting_samples: how many waited when the receiver came back.
    drain_seconds: how long it then took until none did.
    """

    receiver: str
    zones: tuple[ZoneCount, ...]
    comparison: Comparison
    waiting_samples: int
    drain_seconds: float

    @property
    def missing(self) -> int:
        return sum(zone.missing for zone in self.zones)

    @property
    def is_good(self) -> bool:
        return self.missing == 0 and self.comparison.is_equal


def zone_counts(fleet: Fleet, expected: int, reports: Iterable[ScopeReport]) -> tuple[ZoneCount, ...]:
    """Of every zone of the fleet, whether the ledger knows it or not."""
    report_of = {report.tag: report for report in reports if report.dataset == DATASET}
    counts = []
    for zone in fleet.zones:
        report = report_of.get(zone.tag)
        captured, acknowledged = (report.captured, report.acknowledged or 0) if report else (0, 0)
        counts.append(ZoneCount(zone.name, expected, captured, acknowledged))
    return tuple(counts)


def true_samples(fleet: Fleet, starts: Sequence[int], width_seconds: int) -> Samples:
    """What the receiver must hold of these windows, from the simulated traffic itself: no API and no worker asked."""
    samples: dict[Labels, dict[int, float]] = {}
    for zone in fleet.zones:
        for start in starts:
            for labels, value in _true_window(zone, fleet.bucket(zone.tag, start, width_seconds)):
                samples.setdefault(labels, {})[start * 1000] = value
    return samples


def compare(true: Samples, stored: Samples) -> Comparison:
    absent: list[str] = []
    different: list[str] = []
    surplus: list[str] = []
    for labels in true.keys() | stored.keys():
        wanted, found = true.get(labels, {}), stored.get(labels, {})
        if wanted == found:
            continue
        for moment in wanted.keys() | found.keys():
            place = f"{shown(labels)} at {instant(moment / 1000)}"
            if moment not in found:
                absent.append(f"{place} is absent")
            elif moment not in wanted:
                surplus.append(f"{place} is not Cloudflare's")
            elif wanted[moment] != found[moment]:
                different.append(f"{place} is {found[moment]:.17g}, not {wanted[moment]:.17g}")
    return Comparison(
        compared=sum(map(len, true.values())),
        absent=len(absent),
        different=len(different),
        surplus=len(surplus),
        example=next(iter(sorted(different) + sorted(absent) + sorted(surplus)), None),
    )


def comparison_line(receiver: str, comparison: Comparison) -> str:
    """What the comparison has shown, in one line."""
    if comparison.is_equal:
        return f"Every sample in {receiver} equals Cloudflare's number: {comparison.compared:,} compared."
    return (
        f"What {receiver} holds is NOT what Cloudflare has: of {comparison.compared:,} samples {comparison.absent:,} "
        f"are absent and {comparison.different:,} differ; {comparison.surplus:,} are too many. "
        f"For example, {comparison.example}."
    )


def _true_window(zone: Zone, truth: BucketTruth | None) -> Iterable[tuple[Labels, float]]:
    """The samples of one window: the simulator names its numbers like the metrics that must show them."""
    common = {"zone": zone.name, "zone_id": zone.tag, "account": zone.account.name}
    for metric, labels in shipped()[DATASET].metrics():
        number: Any = 0 if truth is None else getattr(truth, metric.name.removeprefix(_METRIC_PREFIX))
        if not labels:
            yield _labels(metric.name, common), float(number)
        elif truth is not None:
            for value, part in number.items():
                yield _labels(metric.name, {**common, labels[0]: str(value)}), float(part)


def _labels(name: str, labels: Mapping[str, str]) -> Labels:
    return tuple(sorted({"__name__": name, **labels}.items()))
