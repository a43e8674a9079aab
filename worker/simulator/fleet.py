"""The ground truth: accounts, zones, and what happened in any window of any zone.

Everything is a function of the seed, so a test or a benchmark computes what a worker must have seen without asking the
API that the worker asked. Knows no clock and no GraphQL.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from worker.simulator.settling import Settling
from worker.simulator.traffic import MINUTE_SECONDS, Profile, Rhythm, Tally, Traffic, add

Label = TypeVar("Label", str, int)

HOUR_SECONDS = 3_600

# An hour's tally is about 1.5 kB: at most 12 MB.
_REMEMBERED_HOURS = 8_192


class Plan(StrEnum):
    """What is paid for a zone; decides which datasets it has and how far they reach back."""

    FREE = "free"
    PRO = "pro"
    BUSINESS = "business"
    ENTERPRISE = "enterprise"


class ZoneStatus(StrEnum):
    """Whether Cloudflare serves the zone."""

    ACTIVE = "active"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Account:
    """An account; `tag` is its id, 32 hexadecimal digits."""

    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone as the API shows it; `tag` is its id, 32 hexadecimal digits."""

    tag: str
    name: str
    account: Account
    plan: Plan
    status: ZoneStatus
    rhythm: Rhythm


@dataclass(frozen=True, slots=True)
class BucketTruth:
    """What happened in one window of one zone; each field but the last is named like the metric that must show it.

    A map holds every label that had a request (page view, threat) in the window and no other; the three maps by country
    have the same keys, and so have the two by content type.

    edge_request_bytes: what the clients sent.
    clients:            the set of clients that came, one bit each; a longer window has the union.
    """

    requests: int
    response_bytes: int
    cached_requests: int
    cached_response_bytes: int
    encrypted_requests: int
    encrypted_response_bytes: int
    page_views: int
    threats: int
    country_requests: Mapping[str, int]
    country_response_bytes: Mapping[str, int]
    country_threats: Mapping[str, int]
    status_requests: Mapping[int, int]
    content_type_requests: Mapping[str, int]
    content_type_response_bytes: Mapping[str, int]
    browser_page_views: Mapping[str, int]
    http_version_requests: Mapping[str, int]
    tls_version_requests: Mapping[str, int]
    ip_class_requests: Mapping[str, int]
    threat_type_requests: Mapping[str, int]
    edge_request_bytes: int
    clients: int

    @property
    def unique_visitors(self) -> int:
        """How many different clients came; does not add up over windows."""
        return self.clients.bit_count()


class Fleet:
    """Zones over accounts, and their traffic for all time.

    seed:          everything follows from it.
    zones:         how many; they have the rhythms in turn, so five zones show all of them.
    accounts:      over how many accounts the zones are dealt out in turn.
    plans:         the plans that the zones have in turn.
    pending_zones: how many of the zones, the last ones, are not active yet.
    profiles:      how many kinds of visitors a zone has; a bucket has about four times as many series.
    """

    def __init__(
        self,
        seed: int = 1,
        *,
        zones: int = 5,
        accounts: int = 2,
        plans: Sequence[Plan] = (Plan.ENTERPRISE, Plan.PRO, Plan.BUSINESS),
        pending_zones: int = 0,
        profiles: int = 12,
    ) -> None:
        rhythms = tuple(Rhythm)
        self.seed = seed
        self.accounts = tuple(
            Account(_tag(seed, "account", index), f"Example Account {index + 1}") for index in range(accounts)
        )
        self.zones = tuple(
            Zone(
                tag=_tag(seed, "zone", index),
                name=f"zone{index + 1:05}.example",
                account=self.accounts[index % accounts],
                plan=plans[index % len(plans)],
                status=ZoneStatus.PENDING if index >= zones - pending_zones else ZoneStatus.ACTIVE,
                rhythm=rhythms[index % len(rhythms)],
            )
            for index in range(zones)
        )
        self._traffic = {
            zone.tag: Traffic(f"{seed}/{zone.tag}/".encode(), zone.rhythm, profiles) for zone in self.zones
        }
        # Hours and days are asked for again and again; a minute is cheaper made anew than kept.
        self._hour = lru_cache(_REMEMBERED_HOURS)(self._add_up_hour)

    def bucket(self, zone_tag: str, start: int, width_seconds: int) -> BucketTruth | None:
        """All that happened in the zone in [start, start + width), or None where nothing did.

        `start` is in unix seconds; both are multiples of 60. KeyError for a zone that is not in the fleet.
        """
        return self.truth_of(zone_tag, add(self._tallies(zone_tag, start, start + width_seconds)))

    def visible_bucket(
        self, zone_tag: str, start: int, width_seconds: int, *, now: float, settling: Settling
    ) -> BucketTruth | None:
        """What Cloudflare shows of it at `now`; None where it shows nothing yet."""
        return self.truth_of(zone_tag, self.visible_tally(zone_tag, start, width_seconds, now=now, settling=settling))

    def visible_tally(
        self, zone_tag: str, start: int, width_seconds: int, *, now: float, settling: Settling
    ) -> Tally | None:
        """The same, not summed up over the zone's profiles yet."""
        return add(self._visible_tallies(zone_tag, start, start + width_seconds, now, settling))

    def truth_of(self, zone_tag: str, tally: Tally | None) -> BucketTruth | None:
        """The totals and maps of a tally of the zone's profiles."""
        return None if tally is None else _truth(self._traffic[zone_tag].profiles, tally)

    def _tallies(self, zone_tag: str, start: int, end: int) -> Iterator[Tally]:
        traffic = self._traffic[zone_tag]
        for part, is_hour in _parts(start, end):
            tally = self._hour(zone_tag, part) if is_hour else traffic.minute(part)
            if tally is not None:
                yield tally

    def _visible_tallies(self, zone_tag: str, start: int, end: int, now: float, settling: Settling) -> Iterator[Tally]:
        traffic = self._traffic[zone_tag]
        for part, is_hour in _parts(start, end):
            part_end = part + (HOUR_SECONDS if is_hour else MINUTE_SECONDS)
            if settling.has_settled(zone_tag, part, part_end, now):
                yield from self._tallies(zone_tag, part, part_end)
                continue
            for minute in range(part, part_end, MINUTE_SECONDS):
                tally = traffic.minute(minute, settling.permille(zone_tag, minute, now))
                if tally is not None:
                    yield tally

    def _add_up_hour(self, zone_tag: str, start: int) -> Tally | None:
        traffic = self._traffic[zone_tag]
        minutes = (traffic.minute(minute) for minute in range(start, start + HOUR_SECONDS, MINUTE_SECONDS))
        return add(tally for tally in minutes if tally is not None)


def _tag(seed: int, kind: str, index: int) -> str:
    # 16 bytes are the 32 hexadecimal digits of a Cloudflare tag.
    return hashlib.blake2b(f"{seed}/{kind}/{index}".encode(), digest_size=16).hexdigest()


def _parts(start: int, end: int) -> Iterator[tuple[int, bool]]:
    """The full hours (True) and the single minutes (False) that make up [start, end)."""
    if start % MINUTE_SECONDS or end % MINUTE_SECONDS:
        message = f"[{start}, {end}) is not made of full minutes"
        raise ValueError(message)
    part = start
    while part < end:
        is_hour = part % HOUR_SECONDS == 0 and part + HOUR_SECONDS <= end
        yield part, is_hour
        part += HOUR_SECONDS if is_hour else MINUTE_SECONDS


def _truth(profiles: Sequence[Profile], tally: Tally) -> BucketTruth:
    seen = [
        (profile, requests, response_bytes)
        for profile, requests, response_bytes in zip(profiles, tally.requests, tally.response_bytes, strict=True)
        if requests
    ]
    return BucketTruth(
        requests=sum(tally.requests),
        response_bytes=sum(tally.response_bytes),
        cached_requests=sum(requests for profile, requests, _ in seen if profile.is_cached),
        cached_response_bytes=sum(size for profile, _, size in seen if profile.is_cached),
        encrypted_requests=sum(requests for profile, requests, _ in seen if profile.is_encrypted),
        encrypted_response_bytes=sum(size for profile, _, size in seen if profile.is_encrypted),
        page_views=sum(requests for profile, requests, _ in seen if profile.is_page),
        threats=sum(requests for profile, requests, _ in seen if profile.threat_type is not None),
        country_requests=_sums((profile.country, requests) for profile, requests, _ in seen),
        country_response_bytes=_sums((profile.country, size) for profile, _, size in seen),
        country_threats=_sums(
            (profile.country, requests if profile.threat_type is not None else 0) for profile, requests, _ in seen
        ),
        status_requests=_sums((profile.status, requests) for profile, requests, _ in seen),
        content_type_requests=_sums((profile.content_type, requests) for profile, requests, _ in seen),
        content_type_response_bytes=_sums((profile.content_type, size) for profile, _, size in seen),
        browser_page_views=_sums((profile.browser, requests) for profile, requests, _ in seen if profile.is_page),
        http_version_requests=_sums((profile.http_version, requests) for profile, requests, _ in seen),
        tls_version_requests=_sums((profile.tls_version, requests) for profile, requests, _ in seen),
        ip_class_requests=_sums((profile.ip_class, requests) for profile, requests, _ in seen),
        threat_type_requests=_sums(
            (profile.threat_type, requests) for profile, requests, _ in seen if profile.threat_type is not None
        ),
        edge_request_bytes=sum(requests * profile.request_bytes for profile, requests, _ in seen),
        clients=tally.clients,
    )


def _sums(parts: Iterable[tuple[Label, int]]) -> dict[Label, int]:
    sums: dict[Label, int] = {}
    for label, amount in parts:
        sums[label] = sums.get(label, 0) + amount
    return sums
