"""Verbs about what is missing: windows without a bucket, and buckets that a destination will not get."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from worker.ledger.capture import HoleReason
from worker.ledger.session import Session


@dataclass(frozen=True, slots=True)
class KnownHole:
    """Why a window has no bucket; `start` in unix seconds."""

    start: int
    reason: HoleReason
    detail: str


@dataclass(frozen=True, slots=True)
class NotDelivered:
    """Buckets of one dataset and scope that were decided against at one destination, for one reason.

    since, until: from the first window's start to the last one's end, unix seconds; others may lie between.
    """

    destination: str
    dataset: str
    tag: str
    scope: str
    width_seconds: int
    state: str
    status: int | None
    reason: str
    since: int
    until: int
    buckets: int


def holes_between(
    session: Session, *, dataset: str, tags: Iterable[str], width_seconds: int, since: int, until: int
) -> dict[str, tuple[KnownHole, ...]]:
    """By scope, the windows that were asked for and have no bucket; of those that start in [since, until), by start."""
    found: dict[str, list[KnownHole]] = {tag: [] for tag in tags}
    for tag, start, reason, detail in session.rows(
        "holes_between",
        dataset_id=session.number_of("dataset_id", dataset),
        tags=json.dumps(list(found)),
        width_seconds=width_seconds,
        since=since,
        until=until,
    ):
        found[tag].append(KnownHole(start, HoleReason(reason), detail))
    return {tag: tuple(sorted(holes, key=lambda each: each.start)) for tag, holes in found.items()}


def not_delivered_between(session: Session, *, since: int, until: int) -> tuple[NotDelivered, ...]:
    """What configured destinations refused, in part at least, got too late, or cannot get, of windows in that time."""
    return tuple(NotDelivered(*row) for row in session.rows("not_delivered_between", since=since, until=until))
