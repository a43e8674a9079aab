"""The traffic of one zone in one minute, invented from a seed.

Owns the invention: which kinds of visitors a zone has (`Profile`), and how much of each comes in a minute (`Tally`).
Promises that the same seed gives the same traffic in every process and on every Python: only SHAKE and integers, no
`random`, no `hash`, no floats. Because a tally counts requests per profile, and every total and every map is a sum over
profiles, all of them agree with each other by construction. Knows no clock.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, repeat

MINUTE_SECONDS = 60
_HOUR_SECONDS = 3_600
_DAY_SECONDS = 86_400

# Of one profile's part of a minute's draw: whether it occurs (1 byte), how many requests (2), how big they are (1), how
# many clients (1), which of them (1).
_DRAW_BYTES = 6

_COUNTRIES = ("US", "DE", "BR", "IN", "JP", "FR", "GB", "NL", "PL", "CN", "ZA", "AU", "T1", "XX")
_CONTENT_TYPES = ("html", "js", "css", "json", "png", "jpeg", "webp", "woff2", "empty", "unknown")
_BROWSERS = ("Chrome", "ChromeMobile", "Firefox", "Safari", "MobileSafari", "Edge", "Curl", "GoogleBot", "Unknown")
_GOOD_STATUSES = (200, 200, 200, 204, 206, 301, 304)
_BAD_STATUSES = (400, 401, 403, 404, 429, 499, 500, 502, 503, 522, 530)
_HTTP_VERSIONS = ("HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3")
_TLS_VERSIONS = ("none", "TLSv1.2", "TLSv1.3", "TLSv1.3")
_IP_CLASSES = ("clean", "noRecord", "searchEngine", "badHost", "monitoringService", "tor", "unknown")
_THREAT_TYPES = ("bic.ban.unknown", "hot.ban.unknown", "macro.chl.jschal", "user.ban.ctry", "user.ban.ip")

_UNENCRYPTED = "none"


class Rhythm(StrEnum):
    """When a zone has traffic, and how much."""

    BUSY = "busy"
    """Always, thousands of requests a minute."""

    STEADY = "steady"
    """Always, hundreds of requests a minute."""

    SPARSE = "sparse"
    """A few requests in about one minute of three; nothing in the others."""

    OFFICE = "office"
    """Monday to Friday, 07:00 to 18:00 UTC; whole hours and whole days have nothing."""

    VAST = "vast"
    """So much that the bytes of a quarter of an hour pass 2^53, the last integer that a float64 counts exactly."""


_MOST_REQUESTS = {
    Rhythm.BUSY: 4_000,
    Rhythm.STEADY: 300,
    Rhythm.SPARSE: 3,
    Rhythm.OFFICE: 120,
    # 2e8 requests x 5 MB = 1e15 bytes a minute: 1.5e16 in 15 minutes, past 2^53 = 9.0e15, and 1.4e18 a day, which a
    # uint64 (1.8e19) still holds.
    Rhythm.VAST: 200_000_000,
}
_VAST_RESPONSE_BYTES = 5_000_003
# 85 of 256 minutes.
_SPARSE_PRESENCE = 85
_OFFICE_HOURS = range(7, 18)
_WORKING_DAYS = 5
# 1970-01-01 was a Thursday, three days after a Monday.
_EPOCH_WEEKDAY = 3


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of visitor to a zone; all about it is fixed except how much of it comes.

    threat_type:    None where the requests are no threat.
    is_page:        whether a request counts as a page view.
    presence:       in how many of 256 minutes it occurs.
    most_requests:  the most that one minute has.
    response_bytes: about how many bytes a response has.
    request_bytes:  exactly how many bytes a request has.
    clients:        how many different clients there are.
    """

    country: str
    status: int
    content_type: str
    browser: str
    http_version: str
    tls_version: str
    ip_class: str
    threat_type: str | None
    is_cached: bool
    is_page: bool
    presence: int
    most_requests: int
    response_bytes: int
    request_bytes: int
    clients: int

    @property
    def is_encrypted(self) -> bool:
        return self.tls_version != _UNENCRYPTED


@dataclass(frozen=True, slots=True)
class Tally:
    """How much of each of a zone's profiles came in some span of time.

    requests:       per profile.
    response_bytes: per profile.
    clients:        the set of clients seen, one bit each.
    """

    requests: tuple[int, ...]
    response_bytes: tuple[int, ...]
    clients: int


def add(tallies: Iterable[Tally]) -> Tally | None:
    """The tally of all the spans together, or None where there are none: counts add up, sets of clients unite."""
    parts = tuple(tallies)
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    clients = 0
    for part in parts:
        clients |= part.clients
    return Tally(
        requests=tuple(map(sum, zip(*(part.requests for part in parts), strict=True))),
        response_bytes=tuple(map(sum, zip(*(part.response_bytes for part in parts), strict=True))),
        clients=clients,
    )


class Traffic:
    """All the traffic that one zone ever has."""

    def __init__(self, key: bytes, rhythm: Rhythm, profile_count: int) -> None:
        self.profiles = tuple(_profile(key, rhythm, index) for index in range(profile_count))
        self._key = key
        self._rhythm = rhythm
        # Where each profile's clients begin in the bit set.
        offsets = [0]
        for profile in self.profiles:
            offsets.append(offsets[-1] + profile.clients)
        self._profiles_with_offsets = tuple(zip(self.profiles, offsets, strict=False))

    def minute(self, start: int, arrived_permille: int = 1000) -> Tally | None:
        """What came in the minute that starts at `start` (unix seconds), or None where nothing did.

        With `arrived_permille` below 1000, the part of it that has arrived at Cloudflare's analytics: no number in
        it is larger than in a later, larger part, and every client in it is in the larger part too.
        """
        if arrived_permille <= 0 or not has_hours(self._rhythm, start):
            return None
        draw = hashlib.shake_128(self._key + start.to_bytes(8)).digest(1 + _DRAW_BYTES * len(self.profiles))
        if self._rhythm is Rhythm.SPARSE and draw[0] >= _SPARSE_PRESENCE:
            return None
        requests: list[int] = []
        response_bytes: list[int] = []
        clients = 0
        at = 1
        for profile, offset in self._profiles_with_offsets:
            occurs, high, low, size, crowd, first = draw[at : at + _DRAW_BYTES]
            at += _DRAW_BYTES
            of_profile = (high << 8 | low) * (profile.most_requests + 1) >> 16 if occurs < profile.presence else 0
            arrived = of_profile * arrived_permille // 1000
            requests.append(arrived)
            if not arrived:
                response_bytes.append(0)
                continue
            # Three quarters to seven quarters of the usual size.
            of_bytes = of_profile * (profile.response_bytes * (192 + size) >> 8) + first
            response_bytes.append(of_bytes * arrived_permille // 1000)
            of_crowd = 1 + ((profile.clients - 1) * crowd >> 8)
            count = min(arrived, -(-of_crowd * arrived_permille // 1000))
            clients |= _ring(profile.clients, first * profile.clients >> 8, count) << offset
        if not any(requests):
            return None
        return Tally(tuple(requests), tuple(response_bytes), clients)


def has_hours(rhythm: Rhythm, start: int) -> bool:
    """Whether anything happens at this hour (unix seconds) of this weekday at all."""
    if rhythm is not Rhythm.OFFICE:
        return True
    weekday = (start // _DAY_SECONDS + _EPOCH_WEEKDAY) % 7
    return weekday < _WORKING_DAYS and start % _DAY_SECONDS // _HOUR_SECONDS in _OFFICE_HOURS


def _ring(size: int, first: int, count: int) -> int:
    """The bits of `count` neighbours on a ring of `size`, from `first` on."""
    bits = ((1 << count) - 1) << first
    return (bits | bits >> size) & ((1 << size) - 1)


def _profile(key: bytes, rhythm: Rhythm, index: int) -> Profile:
    draw = hashlib.shake_128(b"profile" + key + index.to_bytes(4)).digest(16)
    # Every fourth kind of visitor is a threat, every third gets pages.
    is_threat = index % 4 == 3
    is_page = index % 3 == 0 and not is_threat
    http_version = _HTTP_VERSIONS[draw[4] % len(_HTTP_VERSIONS)]
    return Profile(
        country=_COUNTRIES[draw[0] % len(_COUNTRIES)],
        status=200 if is_page else _pick_status(draw[1], is_threat=is_threat),
        content_type="html" if is_page else _CONTENT_TYPES[draw[2] % len(_CONTENT_TYPES)],
        browser=_BROWSERS[draw[3] % len(_BROWSERS)],
        http_version=http_version,
        tls_version="QUIC" if http_version == "HTTP/3" else _TLS_VERSIONS[draw[5] % len(_TLS_VERSIONS)],
        ip_class=_IP_CLASSES[draw[6] % len(_IP_CLASSES)],
        threat_type=_THREAT_TYPES[draw[7] % len(_THREAT_TYPES)] if is_threat else None,
        is_cached=not is_threat and draw[8] < 128,
        is_page=is_page,
        # The first kinds are nearly always there, the last ones rarely: labels come and go.
        presence=max(16, 252 - 20 * index),
        most_requests=max(1, _MOST_REQUESTS[rhythm] // (index + 1)),
        response_bytes=_VAST_RESPONSE_BYTES if rhythm is Rhythm.VAST else 200 + 97 * draw[9],
        request_bytes=300 + 3 * draw[10],
        clients=4 + draw[11] // 2,
    )


def _pick_status(draw: int, *, is_threat: bool) -> int:
    statuses = _BAD_STATUSES if is_threat else tuple(chain.from_iterable(repeat(_GOOD_STATUSES, 3))) + _BAD_STATUSES
    return statuses[draw % len(statuses)]
