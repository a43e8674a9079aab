"""Verbs that only look: what the status, the metrics and the commands show."""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from worker.ledger.jobs import Undelivered
from worker.ledger.packing import SERIES_ID_TYPE
from worker.ledger.session import Session


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending at one destination.

    oldest_end: end of the oldest pending window, unix seconds; None when nothing is pending.
    """

    destination: str
    buckets: int
    samples: int
    oldest_end: int | None


@dataclass(frozen=True, slots=True)
class DestinationReport:
    """When a configured destination last took something, and what it last failed with; unix seconds, None for never."""

    name: str
    last_success_at: int | None
    last_failure_at: int | None
    last_failure: str | None


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many buckets of a destination are in one state; `gone`: the configuration does not name it any more."""

    destination: str
    state: str
    buckets: int
    gone: bool


class ScopeReport(msgspec.Struct, frozen=True, gc=False):
    """One dataset of one scope over a stretch of time. Starts and ends are unix seconds.

    A large fleet has hundreds of thousands.

    expected:     windows that were final in that stretch.
    captured:     of those, how many have a bucket.
    acknowledged: of those, how many every configured destination has acknowledged; None where that was not asked for.
    newest_end:   end of the newest captured window, None without any.
    holes:        windows in that stretch that were asked for and have no bucket.
    reason:       why the newest of them has none; None without holes.
    detail:       what Cloudflare said to it.
    denied:       why the dataset is not asked for any more; None while it is.
    """

    dataset: str
    tag: str
    name: str
    account_name: str
    width_seconds: int
    gone: bool
    expected: int
    captured: int
    acknowledged: int | None
    newest_end: int | None
    holes: int
    reason: str | None
    detail: str | None
    denied: str | None = None

    @property
    def missing(self) -> int:
        """Expected windows without a bucket."""
        return max(0, self.expected - self.captured)


@dataclass(frozen=True, slots=True)
class RefusedSamples:
    """How many samples a destination has refused, and of how many buckets."""

    destination: str
    buckets: int
    samples: int


@dataclass(frozen=True, slots=True)
class RefusedSample:
    """Samples of one bucket that a receiver refused for one reason.

    timestamp_ms: what they carry.
    series:       their label blocks (`worker.series`); empty where one cannot be read.
    refused_at:   unix seconds.
    """

    destination: str
    bucket_id: int
    timestamp_ms: int
    series: tuple[bytes, ...]
    status: int | None
    reason: str
    refused_at: int


def backlogs(session: Session) -> tuple[Backlog, ...]:
    """The backlog of every configured destination, by name."""
    return tuple(Backlog(*row) for row in session.rows("backlogs"))


def destination_reports(session: Session) -> tuple[DestinationReport, ...]:
    """How every configured destination last answered, by name."""
    return tuple(DestinationReport(*row) for row in session.rows("destination_reports"))


def delivery_counts(session: Session) -> tuple[DeliveryCount, ...]:
    """How many buckets are in which state at which destination."""
    return tuple(
        DeliveryCount(destination, state, buckets, bool(gone))
        for destination, state, buckets, gone in session.rows("delivery_counts")
    )


def undelivered(session: Session) -> tuple[Undelivered, ...]:
    """What was refused in part or as a whole, expired or damaged, per destination and state."""
    return tuple(Undelivered(*row) for row in session.rows("undelivered"))


def refused_samples(session: Session) -> tuple[RefusedSamples, ...]:
    """What each destination has refused, sample by sample; those without refusals are left out."""
    return tuple(RefusedSamples(*row) for row in session.rows("refused_samples"))


def refusals(session: Session, destination: str, *, newest: int) -> tuple[RefusedSample, ...]:
    """The newest refusals of a destination, newest first, each with the series that it names."""
    found = []
    for name, bucket_id, series_ids, timestamp_ms, status, reason, refused_at in session.rows(
        "newest_refusals", destination=destination, most=newest
    ):
        # A flipped bit may have cut the last number off.
        numbers = array(SERIES_ID_TYPE, series_ids[: len(series_ids) // 4 * 4])
        blocks = tuple((session.series.blocks([number]) or {}).get(number, b"") for number in numbers)
        found.append(RefusedSample(name, bucket_id, timestamp_ms, blocks, status, reason, refused_at))
    return tuple(found)


def scope_reports(
    session: Session,
    *,
    since: float,
    final_until: float,
    delay_seconds: float = 0.0,
    further_delays: Mapping[str, float] = MappingProxyType({}),
    with_deliveries: bool = False,
) -> tuple[ScopeReport, ...]:
    """Every dataset of every scope over the windows that ended after `since` and by `final_until`.

    delay_seconds:   how long after its end a window is final, for scopes that have gone: what was not final then is
                     not expected of them.
    further_delays:  by how much longer the windows of some datasets take than that, in seconds, by the dataset's name.
    with_deliveries: look at every bucket's deliveries, too: for a fleet with minute windows that takes seconds.
    """
    return tuple(
        ScopeReport(dataset, tag, name, account, width, bool(gone), *rest)
        for dataset, tag, name, account, width, gone, *rest in session.rows(
            "scope_reports",
            since=int(since),
            final_until=int(final_until),
            delay_seconds=int(delay_seconds),
            # Looked through for every row.
            further_delays=json.dumps({name: int(seconds) for name, seconds in further_delays.items() if seconds}),
            with_deliveries=int(with_deliveries),
        )
    )


def newest_captured(session: Session) -> dict[str, int]:
    """The end of the newest captured window of every dataset, unix seconds."""
    return dict(session.rows("newest_captured"))


def hole_counts(session: Session, *, since: float) -> dict[tuple[str, str], int]:
    """How many windows that ended after `since` have no bucket although they were asked for, by (dataset, reason)."""
    return {(dataset, reason): count for dataset, reason, count in session.rows("hole_counts", since=int(since))}


def drifted_buckets(session: Session) -> dict[str, int]:
    """How many captured buckets of each dataset Cloudflare later answered differently for."""
    return dict(session.rows("drifted_buckets"))
