"""What the benchmarks move: zones, their series, and one sample of each series for every minute.

The natural shape of Cloudflare's numbers is few zones with many series each, so 2,000 series are 20 zones of 100. Names
and labels are the catalogue's. Values are integers below 65,536 without a pattern that a compressor could find. All of
it follows from the load's own fields, so every process makes the same samples by itself.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from worker.buckets import Batch, Bucket, StoredBucket, Window
from worker.cloudflare.catalogue import shipped
from worker.cloudflare.scope import Zone
from worker.ledger import Scope
from worker.series import MetricMetadata, label_block

DATASET = shipped()["http_requests"]

_METRICS = (
    *(total.metric for total in DATASET.totals),
    *(metric for breakdown in DATASET.breakdowns for _, metric in breakdown.values),
)

METRIC_NAMES = tuple(metric.name for metric in _METRICS)

METADATA = {metric.name: MetricMetadata(help=metric.help, unit=metric.unit) for metric in _METRICS}
"""What requests of remote write 2.0 say about every metric."""

WIDTH_SECONDS = 60

# Every value is made of 2 random bytes.
_VALUE_TYPE, _VALUE_BYTES = "H", 2


@dataclass(frozen=True)
class Load:
    """Samples of `minutes` windows of every series.

    zones, series_per_zone, minutes: how many.
    first_start:                     start of the first window, unix seconds, a multiple of 60.
    """

    zones: int
    series_per_zone: int
    minutes: int
    first_start: int

    @cached_property
    def scopes(self) -> tuple[Scope, ...]:
        """The zones as the ledger knows them."""
        return tuple(
            Scope(zone.tag, zone.name, zone.account_tag, zone.account_name, zone.plan)
            for zone in map(_zone, range(self.zones))
        )

    @cached_property
    def series(self) -> tuple[tuple[bytes, ...], ...]:
        """The label blocks of every zone, always in the same order."""
        return tuple(tuple(islice(_label_blocks(_zone(number)), self.series_per_zone)) for number in range(self.zones))

    def bucket(self, zone: int, minute: int) -> Bucket:
        """What Cloudflare would have answered for one zone and minute, as the collector hands it to the ledger."""
        window = Window(self.first_start + minute * WIDTH_SECONDS, WIDTH_SECONDS)
        chance = random.Random(zone * self.minutes + minute)
        values = array("d", array(_VALUE_TYPE, chance.randbytes(_VALUE_BYTES * self.series_per_zone)))
        return Bucket(DATASET.name, self.scopes[zone].tag, window, window.start * 1000, self.series[zone], values)

    def batch(self, zones: Sequence[int], minutes: Sequence[int]) -> Batch:
        """The same for some zones and minutes, as the ledger hands it out; minute by minute."""
        numbers = self._series_numbers
        buckets = [self.bucket(zone, minute) for minute in minutes for zone in zones]
        stored = tuple(
            StoredBucket(
                bucket_id=index + 1,
                timestamp_ms=bucket.timestamp_ms,
                series_ids=array("I", [numbers[block] for block in bucket.series]).tobytes(),
                values=bucket.values.tobytes(),
            )
            for index, bucket in enumerate(buckets)
        )
        return Batch(stored, {number: block for block, number in numbers.items()})

    def truth(self, zone: int) -> tuple[int, float]:
        """How many samples a zone has, and their sum, which a float64 holds exactly."""
        buckets = [self.bucket(zone, minute) for minute in range(self.minutes)]
        return sum(len(bucket.values) for bucket in buckets), sum(sum(bucket.values) for bucket in buckets)

    @property
    def samples(self) -> int:
        """How many there are where no window lacks any."""
        return self.zones * self.series_per_zone * self.minutes

    @cached_property
    def _series_numbers(self) -> dict[bytes, int]:
        return {block: number for number, block in enumerate((block for zone in self.series for block in zone), 1)}


def _zone(number: int) -> Zone:
    return Zone(f"{number + 1:032x}", f"zone{number + 1:05}.example", "a" * 32, "Example Account", "enterprise")


def _label_blocks(zone: Zone) -> Iterator[bytes]:
    """The totals of a zone, then its breakdowns, one more label value each time around."""
    labels = zone.labels()
    for total in DATASET.totals:
        yield label_block(total.metric.name, labels)
    number = 0
    while True:
        number += 1
        for breakdown in DATASET.breakdowns:
            for _, metric in breakdown.values:
                yield label_block(metric.name, {**labels, breakdown.label: f"{breakdown.label}-{number}"})
