"""Queries: the GraphQL text and the variables that ask for a run of windows of some zones.

Answers look alike for every dataset and width, by aliases: `viewer.zones[].rows[].dimensions.start`. Rows are ordered
by their window, and the limit is one row more than windows are asked, so a full page is always noticed. Pure.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import assert_never

import msgspec

from worker.cloudflare.catalogue import Dataset, Grain, TimeType
from worker.cloudflare.zone import Zone

# Cloudflare refuses a query over more zones ("too many zones requested").
ZONES_PER_QUERY = 10

# One row per zone and window. A row of a busy zone has 250 countries (75 bytes each), 30 statuses, 30 content types and
# 40 browsers (50 bytes each) and is 24 kB of JSON: at most 10 zones x 60 windows x 24 kB = 14 MB decoded, 2 MB where a
# row has the usual 60 samples. 60 windows are an hour of minutes or two and a half days of hours.
WINDOWS_PER_QUERY = 60


@dataclass(frozen=True, slots=True)
class WindowsQuery:
    """One query.

    dataset: what to ask for, already without the fields that these zones' plans deny; not empty.
    grain:   one of its grains.
    zones:   at most ZONES_PER_QUERY.
    starts:  the windows' starts in unix seconds, contiguous: the step is the grain's width.
    """

    dataset: Dataset
    grain: Grain
    zones: tuple[Zone, ...]
    starts: range

    @property
    def limit(self) -> int:
        """How many rows Cloudflare may answer per zone; as many rows mean that more may have been cut off."""
        return len(self.starts) + 1

    @property
    def text(self) -> str:
        """The GraphQL document."""
        return _text(self.dataset, self.grain)

    @property
    def variables(self) -> dict[str, object]:
        """The values of the document's variables."""
        return {
            "zones": [zone.tag for zone in self.zones],
            "since": _instant(self.starts.start, self.grain.time),
            "until": _instant(self.starts.stop, self.grain.time),
            "limit": self.limit,
        }

    def payload(self) -> bytes:
        """The body of the POST request."""
        return msgspec.json.encode({"query": self.text, "variables": self.variables})


@lru_cache(maxsize=256)
def _text(dataset: Dataset, grain: Grain) -> str:
    objects: dict[str, list[str]] = {}
    for total in dataset.totals:
        objects.setdefault(total.path[0], []).append(total.path[1])
    for breakdown in dataset.breakdowns:
        leaves = " ".join((breakdown.key, *(leaf for leaf, _ in breakdown.values)))
        objects.setdefault(breakdown.path[0], []).append(f"{breakdown.path[1]} {{ {leaves} }}")
    selection = " ".join(f"{name} {{ {' '.join(fields)} }}" for name, fields in objects.items())
    return (
        f"query Windows($zones: [string!], $since: {grain.time}!, $until: {grain.time}!, $limit: uint64!) {{"
        " viewer { zones(filter: { zoneTag_in: $zones }) { zoneTag"
        f" rows: {grain.node}(filter: {{ {grain.since}: $since, {grain.until}: $until }},"
        f" limit: $limit, orderBy: [{grain.dimension}_ASC])"
        f" {{ dimensions {{ start: {grain.dimension} }} {selection} }} }} }} }}"
    )


def _instant(seconds: int, time: TimeType) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    match time:
        case TimeType.TIME:
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        case TimeType.DATE:
            return moment.strftime("%Y-%m-%d")
        case _:
            assert_never(time)
