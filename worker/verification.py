"""Reading back: the ledger's samples beside those that a destination shows, a piece after the other.

Owns the connections to the query APIs and the order of a walk through destinations and pieces; whoever walks keeps the
place and says what becomes of what was found. Promises: a sample is missing only when it was not there half a minute
after the ledger had it on record as delivered, since some receivers show late what they have taken; what a receiver
cannot tell now is asked for a few times more, and is unread after that, and never missing. A piece bounds the memory.

Changes nothing, neither here nor there.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from worker.clock import Clock
from worker.comparison import Claim, Comparison, ExtraSample, Finding, Outcome, compare
from worker.config import DestinationSettings
from worker.errors import ConfigError
from worker.ledger import Held, Ledger, Piece, Place, ReadBucket, Resend, Verify, destination_numbers, next_piece
from worker.remote_write import Fate, Found, Labels, Later, Outbox, ReadBack, Relabelled, Selector, Unsendable
from worker.series import metric_name, parse_label_block

END = (2**62,)
"""The place behind the last piece of the last destination."""

# VictoriaMetrics shows within a few seconds what it has taken; half a minute is what its authors advise to wait.
_SETTLE_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 5.0

# With waits of 1, 2, 4 and 8 s: a receiver that restarts is back by then.
_ATTEMPTS = 5

# An attempt is not put off for longer, whatever a receiver asks for: the walk is somebody's who waits.
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Looked:
    """A piece that was read back.

    outcomes:  what was found of each sample.
    extra:     what the destination has beside them.
    buckets:   the same by bucket; what waits to be delivered lacks nothing.
    damaged:   buckets that cannot be read here.
    metric_of: names of metrics in the ledger, by series id.
    scope_of:  names of zones and accounts, by bucket id.
    """

    outcomes: tuple[Outcome, ...]
    extra: tuple[ExtraSample, ...]
    buckets: tuple[ReadBucket, ...]
    damaged: int
    metric_of: Mapping[int, str]
    scope_of: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Look:
    """A step of a walk: what was found at a destination, or why nothing could be; and where the walk goes on."""

    destination: str
    seen: Looked | Later
    after: tuple[int, ...]


class Verification:
    """Reads back from the destinations of one worker."""

    def __init__(self, destinations: Sequence[DestinationSettings], *, ledger: Ledger, clock: Clock) -> None:
        self._settings = {destination.name: destination for destination in destinations}
        self._ledger = ledger
        self._clock = clock
        self._readers: dict[str, ReadBack] = {}
        self._outboxes = {destination.name: Outbox(destination) for destination in destinations}

    async def aclose(self) -> None:
        """Close the connections. No look may be under way."""
        for reader in self._readers.values():
            await reader.aclose()

    async def look(self, wanted: Verify | Resend, after: tuple[int, ...]) -> Look | None:
        """The next piece behind `after`, which is empty at the beginning; None at the end.

        Of a metric that is picked, a resend takes all of what a destination never acknowledged, as it is sent.
        """
        numbers = await self._ledger.read(destination_numbers)
        names = {
            number: name
            for name, number in sorted(numbers.items(), key=lambda item: item[1])
            if name in self._settings and (not wanted.destinations or name in wanted.destinations)
        }
        match after:
            case (number, dataset_id, scope_id, start) if number in names:
                place: Place | None = (dataset_id, scope_id, start)
            case _:
                begun = after[0] if after else 0
                number, place = next((each for each in names if each > begun), 0), None
        if not number:
            return None
        name = names[number]
        following = next(((each, 0, 0, wanted.until) for each in names if each > number), END)
        try:
            reader = self._reader(name)
        except ConfigError as error:
            return Look(name, Later(str(error.mistakes[0]), Fate.PARK), following)
        piece, seen = await self._settled(wanted, name, reader, place)
        if isinstance(seen, Later) or piece.place is None:
            return Look(name, seen, following)
        return Look(name, seen, (number, *piece.place))

    def _reader(self, name: str) -> ReadBack:
        if name not in self._readers:
            self._readers[name] = ReadBack(self._settings[name], self._clock)
        return self._readers[name]

    async def _settled(
        self, wanted: Verify | Resend, name: str, reader: ReadBack, place: Place | None
    ) -> tuple[Piece, Looked | Later]:
        """Look until what is missing was on record as delivered for long enough, or a look fails for good."""
        failures = 0
        waited_seconds = 0.0
        while True:
            piece = await self._ledger.read(
                next_piece,
                name,
                since=wanted.since,
                until=wanted.until,
                zones=wanted.zones,
                datasets=wanted.datasets,
                place=place,
                most_samples=reader.most_samples,
            )
            seen = await self._seen(wanted, name, reader, piece)
            if isinstance(seen, Later):
                failures += 1
                if seen.fate is Fate.PARK or failures == _ATTEMPTS:
                    return piece, seen
                wait_seconds = max(2.0 ** (failures - 1), seen.retry_after_seconds or 0.0)
                await self._clock.sleep(min(wait_seconds, _LONGEST_WAIT_SECONDS))
            elif waited_seconds >= _SETTLE_SECONDS or self._is_settled(piece, seen):
                return piece, seen
            else:
                waited_seconds += _LOOK_AGAIN_SECONDS
                await self._clock.sleep(_LOOK_AGAIN_SECONDS)

    def _is_settled(self, piece: Piece, seen: Looked) -> bool:
        missing = {outcome.claim.bucket_id for outcome in seen.outcomes if outcome.finding is Finding.MISSING}
        newest = max((held.decided_at or 0 for held in piece.held if held.bucket.bucket_id in missing), default=0)
        return newest <= self._clock.now() - _SETTLE_SECONDS

    async def _seen(self, wanted: Verify | Resend, name: str, reader: ReadBack, piece: Piece) -> Looked | Later:
        metric_of = {number: metric_name(block) for number, block in piece.series.items()}
        view = _View(self._outboxes[name].names(piece.series), metric_of, wanted)
        claims = [claim for held in piece.held for claim in view.claims(held)]
        found: Found | Later = Found({})
        if claims:
            times = [claim.timestamp_ms for claim in claims]
            found = await reader.read(_selector(claims), min(times), max(times))
        if isinstance(found, Later):
            return found
        compared = compare(claims, found)
        return Looked(
            compared.outcomes,
            compared.extra,
            tuple(view.read_buckets(piece.held, compared)),
            piece.damaged,
            metric_of,
            {held.bucket.bucket_id: held.scope for held in piece.held},
        )


class _View:
    """The samples of a piece as they are at a destination."""

    def __init__(self, names: Mapping[int, Relabelled], metric_of: Mapping[int, str], wanted: Verify | Resend) -> None:
        """`names`: what becomes of each series at the destination, by its id."""
        self._labels = {
            number: frozenset(parse_label_block(name).items())
            for number, name in names.items()
            if isinstance(name, bytes)
        }
        self._unsendable = {number for number, name in names.items() if isinstance(name, Unsendable)}
        self._metric_of = metric_of
        self._wanted = wanted
        self._taken: set[tuple[Labels, int]] = set()
        self._partly: set[int] = set()  # buckets of which reading back does not tell all

    def claims(self, held: Held) -> Iterator[Claim]:
        """The samples of a bucket that are looked for."""
        bucket = held.bucket
        numbers = array("I", bucket.series_ids)
        metrics = self._wanted.metrics
        meant = {number for number in numbers if not metrics or self._metric_of[number] in metrics}
        if meant and isinstance(self._wanted, Resend) and not held.has_some:
            meant = set(numbers)
        if len(meant) < len(numbers) or not self._unsendable.isdisjoint(numbers):
            self._partly.add(bucket.bucket_id)
        for number, value in zip(numbers, array("d", bucket.values), strict=True):
            labels = self._labels.get(number)
            if number not in meant or labels is None:
                continue
            if (labels, bucket.timestamp_ms) in self._taken:
                # Another series got the same labels: a receiver takes one of them only, and the first one is sent.
                self._partly.add(bucket.bucket_id)
                continue
            self._taken.add((labels, bucket.timestamp_ms))
            is_due = held.has_some and number not in held.refused
            yield Claim(bucket.bucket_id, number, labels, bucket.timestamp_ms, value, is_due)

    def read_buckets(self, held: Iterable[Held], compared: Comparison) -> Iterator[ReadBucket]:
        missing: defaultdict[int, list[int]] = defaultdict(list)
        there: defaultdict[int, set[int]] = defaultdict(set)
        looked_for: Counter[int] = Counter()
        for outcome in compared.outcomes:
            bucket_id = outcome.claim.bucket_id
            looked_for[bucket_id] += 1
            if outcome.finding is Finding.EQUAL:
                there[bucket_id].add(outcome.claim.series_id)
            if outcome.finding in {Finding.MISSING, Finding.UNDELIVERED}:
                missing[bucket_id].append(outcome.claim.series_id)
        for each in held:
            number = each.bucket.bucket_id
            if each.state == "pending" or not looked_for[number]:
                yield ReadBucket(number, each.state, b"", 0, is_there=False)
                continue
            found = there[number]
            is_there = len(found) == looked_for[number] and number not in self._partly
            unproven = array("I", self._not_on_record(each) - found - set(missing[number])).tobytes()
            packed = array("I", missing[number]).tobytes()
            yield ReadBucket(number, each.state, packed, len(found), is_there=is_there, unproven=unproven)

    def _not_on_record(self, held: Held) -> AbstractSet[int]:
        """What the destination is to have of a bucket, and is not on record as having; a rule may drop some of it."""
        if held.has_some:
            return held.refused
        return set(array("I", held.bucket.series_ids)) & (self._labels.keys() | self._unsendable)


def _selector(claims: Iterable[Claim]) -> Selector:
    """Selects the series of all claims, and of others only those of the same metrics and the same zones or accounts.

    What all samples of a bucket have in common are the labels of its zone or account, and those that a destination's
    settings add. They narrow the selection wherever every bucket has them.
    """
    common: dict[int, Labels] = {}
    metrics: set[str] = set()
    for claim in claims:
        before = common.get(claim.bucket_id)
        common[claim.bucket_id] = claim.labels if before is None else before & claim.labels
        metrics.update(value for name, value in claim.labels if name == "__name__")
    values: dict[str, set[str]] = {}
    in_all = Counter(name for labels in common.values() for name, _ in labels)
    for labels in common.values():
        for name, value in labels:
            if name != "__name__" and in_all[name] == len(common):
                values.setdefault(name, set()).add(value)
    return Selector(tuple(sorted(metrics)), {name: tuple(sorted(some)) for name, some in values.items()})
