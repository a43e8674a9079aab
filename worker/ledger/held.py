"""Verbs of reading back: what is on record of the captured buckets at a destination, a piece after the other.

A piece is of one dataset, and of whole scopes or of a part of the time of one: so whatever a destination has of the
same dataset, scopes and time, and the piece has not, is not in the ledger.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter

import msgspec

from worker.buckets import StoredBucket
from worker.ledger.packing import SERIES_ID_TYPE, is_intact
from worker.ledger.session import Session

Place = tuple[int, int, int]
"""Where a walk goes on: number of the dataset, number of the scope, and the start of its next window, unix seconds."""

# Combinations of dataset and scope in one transaction. One with nothing to read takes 80 us where the
# dataset has a day of minutes in the time that is meant, which are 23 chapters, and 300 us with a month of them.
_MOST_PAIRS = 1_000

# So many values of a label are a short query still: 30 ids of 32 characters are a kilobyte.
_MOST_SCOPES = 30


@dataclass(frozen=True, slots=True)
class Held:
    """A captured bucket, and what is on record of it at a destination.

    scope:      the name of its zone or account.
    state:      of its delivery; `never queued` where it was never to get there.
    decided_at: unix seconds of the decision; None while there is none.
    refused:    numbers of the series that the destination has refused.
    """

    bucket: StoredBucket
    scope: str
    state: str
    decided_at: int | None
    refused: frozenset[int]

    @property
    def has_some(self) -> bool:
        """Whether the destination is on record as having samples of it."""
        return self.state in {"acknowledged", "partial"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the captured buckets.

    series:  label block of every series id that occurs in them.
    damaged: how many buckets of the piece cannot be read.
    place:   where the walk goes on; None behind the last piece.
    """

    held: tuple[Held, ...]
    series: Mapping[int, bytes]
    damaged: int
    place: Place | None


def destination_numbers(session: Session) -> dict[str, int]:
    """The numbers of the destinations that are configured, by name."""
    return {name: number for number, name, _, gone_at in session.rows("all_destinations") if gone_at is None}


def next_piece(
    session: Session,
    destination: str,
    *,
    since: int,
    until: int,
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
    place: Place | None = None,
    most_samples: int,
) -> Piece:
    """The buckets with samples whose windows start in [since, until), behind `place`; perhaps none.

    At least one window, and otherwise at most `most_samples` samples together.
    """
    wanted_scopes = {row[0] for row in session.rows("scopes_named", names=_json(zones))} if zones else None
    wanted_datasets = {row[0] for row in session.rows("datasets_named", names=_json(datasets))} if datasets else None
    dataset_id, scope_id, start = place or (0, 0, until)
    # The rest of a scope, whose beginning was in the piece before: nothing else may be in one piece with it.
    is_rest = since < start < until
    chosen: list[int] = []
    samples = scopes = 0
    for _ in range(_MOST_PAIRS):
        if start >= until:
            pair = next(session.rows("next_pair", dataset_id=dataset_id, scope_id=scope_id), None)
            if pair is None:
                return _piece(session, destination, chosen, None)
            if chosen and pair[0] != dataset_id:
                break
            (dataset_id, scope_id), start = pair, since
        if (wanted_scopes is not None and scope_id not in wanted_scopes) or (
            wanted_datasets is not None and dataset_id not in wanted_datasets
        ):
            start = until
            continue
        numbers, count, after = _windows(session, (dataset_id, scope_id, start), until, most_samples)
        if chosen and (samples + count > most_samples or after < until):
            break
        chosen += numbers
        samples += count
        scopes += bool(numbers)
        start = after
        if start < until or samples >= most_samples or scopes == _MOST_SCOPES or is_rest:
            break
    return _piece(session, destination, chosen, (dataset_id, scope_id, start))


def _windows(session: Session, place: Place, until: int, most_samples: int) -> tuple[list[int], int, int]:
    """The next buckets of a dataset and scope, how many samples they have, and from which start on others follow."""
    dataset_id, scope_id, since = place
    pair = {"dataset_id": dataset_id, "scope_id": scope_id}
    widths: list[int] = []
    while width_seconds := session.number(
        "next_width", dataset_id=dataset_id, width_seconds=widths[-1] if widths else 0
    ):
        widths.append(width_seconds)
    windows = (
        session.rows("windows_of_pair", **pair, width_seconds=width_seconds, since=since, until=until)
        for width_seconds in widths
    )
    numbers: list[int] = []
    samples = 0
    last = since
    for number, start, count in merge(*windows, key=itemgetter(1)):
        if numbers and start != last and samples + count > most_samples:
            return numbers, samples, start
        numbers.append(number)
        samples += count
        last = start
    return numbers, samples, until


def _piece(session: Session, destination: str, bucket_ids: Sequence[int], place: Place | None) -> Piece:
    destination_id = session.number_of("destination_id", destination)
    refused: dict[int, set[int]] = {}
    for bucket_id, _, series_ids, *_ in session.rows(
        "refused_of", pairs=_json([(bucket_id, destination_id) for bucket_id in bucket_ids])
    ):
        refused.setdefault(bucket_id, set()).update(array(SERIES_ID_TYPE, series_ids))
    held: list[Held] = []
    series: dict[int, bytes] = {}
    damaged = 0
    for bucket_id, scope, state, decided_at, dataset_id, scope_id, width_seconds, *rest in session.rows(
        "held", destination_id=destination_id, bucket_ids=_json(bucket_ids)
    ):
        start, timestamp_ms, series_ids, values, seal = rest
        intact = is_intact(
            seal,
            dataset_id=dataset_id,
            scope_id=scope_id,
            width_seconds=width_seconds,
            start=start,
            timestamp_ms=timestamp_ms,
            series_ids=series_ids,
            values=values,
        )
        blocks = session.series.blocks(set(array(SERIES_ID_TYPE, series_ids)).difference(series)) if intact else None
        if blocks is None:
            damaged += 1
            continue
        series |= blocks
        stored = StoredBucket(bucket_id, timestamp_ms, series_ids, values)
        held.append(Held(stored, scope, state, decided_at, frozenset(refused.get(bucket_id, ()))))
    return Piece(tuple(held), series, damaged, place)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
