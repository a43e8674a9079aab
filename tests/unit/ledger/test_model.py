"""The verbs of the ledger against a model of dictionaries: whatever happens in whatever order, both agree."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.ledger.fleet import (
    DATASET,
    NOW,
    T0,
    ask_for_resend,
    bucket_of,
    carry_out_next,
    queued_by,
    samples_of,
    scope,
    tag,
    zones_and_minutes,
)
from worker.buckets import Bucket, StoredBucket, Window
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    Pending,
    Refusal,
    RefusedSamples,
    Resend,
    Stretch,
    acknowledge,
    backlogs,
    capture,
    delivery_counts,
    drifted_buckets,
    expire,
    expire_too_old,
    hole_counts,
    next_pending,
    outstanding_windows,
    plan_resend,
    prune,
    record_holes,
    record_scopes,
    refuse,
    refused_samples,
    register_destinations,
    scope_reports,
    set_aside,
)
from worker.ledger.session import Session

ZONES = (1, 2)
MINUTE = 60
SEGMENT = 32  # minutes; T0 is where one begins
MINUTES = (SEGMENT - 3, SEGMENT - 2, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT)
SPAN = MINUTES[-1] + 1
DESTINATIONS = ("prom", "mimir")

Key = tuple[int, int]
"""Zone of a bucket, and the minute after T0 that is its window."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Delivery:
    state: str = "pending"
    repaired: bool = False
    refused_samples: int = 0


@dataclass
class Model:
    """What the ledger should hold."""

    strict: dict[str, bool] = field(default_factory=dict)  # of the destinations that are configured
    captured: dict[Key, tuple[int, float]] = field(default_factory=dict)  # samples, and how far the first is off
    deliveries: dict[str, dict[Key, Delivery]] = field(default_factory=lambda: {name: {} for name in DESTINATIONS})
    holes: dict[Key, HoleReason] = field(default_factory=dict)
    drifted: set[Key] = field(default_factory=set)
    acknowledged: set[tuple[str, Key]] = field(default_factory=set)  # what was ever told to be

    def queue(self, destination: str, *, strict: bool) -> list[Key]:
        def place(key: Key) -> tuple[int, int, int]:
            zone, minute = key
            return (minute if strict else minute - minute % SEGMENT, zone, minute)

        pending = [key for key, found in self.deliveries[destination].items() if found.state == "pending"]
        return sorted(pending, key=place)

    def is_held_back(self, key: Key, waited_for_since: float | None) -> bool:
        return waited_for_since is not None and any(
            zone == key[0] and minute < key[1] and why is HoleReason.FAILED and minute + 1 > waited_for_since
            for (zone, minute), why in self.holes.items()
        )

    def enqueue(self, destination: str, keys: list[Key]) -> None:
        for key in keys:
            if self.captured[key][0]:
                self.deliveries[destination].setdefault(key, Delivery())


def window(minute: int) -> Window:
    return Window(T0 + minute * MINUTE, MINUTE)


def bucket(zone: int, minute: int, *, samples: int, wrong_by: float = 0.0) -> Bucket:
    return bucket_of(zone, window(minute), samples=samples, wrong_by=wrong_by)


def volume() -> str | None:
    """A volume in memory, where there is one: this test is about logic, not about the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


minutes_of_capture = st.lists(st.sampled_from(MINUTES), min_size=1, max_size=6)
bounds = st.sampled_from([minute + more for minute in MINUTES for more in (0, 0.5, 1, 1.5)])


class Verbs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=volume()))
        self.path = self.folder / "ledger.db"
        self.model = Model()
        self.page: tuple[str, Pending] | None = None
        self.runner = asyncio.Runner()
        self.ledger = Ledger.open(self.path)

    def teardown(self) -> None:
        self.runner.run(self.ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def write(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ledger._transact("IMMEDIATE", lambda session: verb(session, *args, **kwargs))

    def read(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ledger._transact("DEFERRED", lambda session: verb(session, *args, **kwargs))

    @initialize(are_strict=st.tuples(st.booleans(), st.booleans()))
    def begin(self, are_strict: tuple[bool, bool]) -> None:
        self.write(record_scopes, [scope(zone) for zone in ZONES], NOW)
        self.write(
            outstanding_windows,
            dataset=DATASET,
            width_seconds=MINUTE,
            tags=[tag(zone) for zone in ZONES],
            starts=range(T0, T0 + SPAN * MINUTE, MINUTE),
        )
        self.configure(dict(zip(DESTINATIONS, are_strict, strict=True)), 0.0)
        self.capture(ZONES[0], list(MINUTES[::2]), 2, 0.0)

    @rule(
        strict=st.dictionaries(st.sampled_from(DESTINATIONS), st.booleans(), min_size=1),
        replay_since=bounds,
    )
    def configure(self, strict: dict[str, bool], replay_since: float) -> None:
        self.write(register_destinations, strict, replay_since=T0 + replay_since * MINUTE, now=NOW)

        model = self.model
        for name in strict.keys() - model.strict.keys():
            bound = int(T0 + replay_since * MINUTE)
            model.enqueue(name, [key for key in model.captured if T0 + (key[1] + 1) * MINUTE >= bound])
        model.strict = dict(strict)

    @rule(
        zone=st.sampled_from(ZONES),
        minutes=minutes_of_capture,
        samples=st.sampled_from([0, 1, 2, 2, 2]),
        wrong_by=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def capture(self, zone: int, minutes: list[int], samples: int, wrong_by: float) -> None:
        wrong_by = wrong_by if samples else 0.0
        told = self.write(
            capture, [bucket(zone, minute, samples=samples, wrong_by=wrong_by) for minute in minutes], NOW
        )

        model, expected = self.model, Counter[str]()
        for key in [(zone, minute) for minute in minutes]:
            if key not in model.captured:
                model.captured[key] = (samples, wrong_by)
                model.holes.pop(key, None)
                for name in model.strict:
                    model.enqueue(name, [key])
                expected.update(buckets=1, samples=samples)
            elif model.captured[key] == (samples, wrong_by):
                expected.update(unchanged=1)
            else:
                model.drifted.add(key)
                expected.update(drifted=1)
        assert told == Captured(
            expected["buckets"], expected["samples"], expected["unchanged"], expected["drifted"], by_dataset={}
        )

    @rule(zone=st.sampled_from(ZONES), minutes=minutes_of_capture, reason=st.sampled_from(HoleReason))
    def record_holes(self, zone: int, minutes: list[int], reason: HoleReason) -> None:
        self.write(record_holes, [Hole(DATASET, tag(zone), window(minute), reason, "") for minute in minutes], NOW)

        for key in [(zone, minute) for minute in minutes]:
            if key not in self.model.captured:
                self.model.holes[key] = reason

    @rule(
        data=st.data(),
        max_samples=st.integers(1, 9),
        one_window=st.booleans(),
        live=st.booleans(),
        cut=st.none() | st.sampled_from(MINUTES),
        waited_for_since=st.none() | bounds,
        most_in_hand=st.integers(0, 2),
    )
    def read_a_page(
        self,
        *,
        data: st.DataObject,
        max_samples: int,
        one_window: bool,
        live: bool,
        cut: int | None,
        waited_for_since: float | None,
        most_in_hand: int,
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.strict)))
        strict = self.model.strict[name]
        edge = None if cut is None else T0 + cut * MINUTE
        stretch = Stretch() if edge is None else Stretch(from_segment=edge) if live else Stretch(before_segment=edge)
        in_hand = [] if self.page is None else self.page[1].batch.buckets[:most_in_hand]
        pending = self.read(
            next_pending,
            name,
            after=None,
            max_samples=max_samples,
            one_window_per_series=one_window,
            stretch=stretch,
            without={stored.bucket_id for stored in in_hand},
            waited_for_since=None if waited_for_since is None else T0 + waited_for_since * MINUTE,
        )

        passed_over = set() if self.page is None else set(zones_and_minutes(self.page[1])[:most_in_hand])
        expected: list[Key] = []
        for key in self.model.queue(name, strict=strict):
            segment = key[1] if strict else key[1] - key[1] % SEGMENT
            is_in = cut is None or (segment >= cut) == live
            if not is_in or key in passed_over or self.model.is_held_back(key, waited_for_since):
                continue
            samples = sum(self.model.captured[each][0] for each in [*expected, key])
            if expected and (samples > max_samples or (one_window and key[0] in {zone for zone, _ in expected})):
                break
            expected.append(key)
        assert ([] if pending is None else zones_and_minutes(pending)) == expected
        self.page = None if pending is None else (name, pending)

    def page_at_hand(self, data: st.DataObject) -> tuple[str, list[tuple[StoredBucket, Key, Delivery]]]:
        """A page and what the model holds of its buckets: read just now, or before and decided on meanwhile."""
        if self.page is None or data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(self.model.strict)))
            read = self.read(next_pending, name, after=None, max_samples=9, one_window_per_series=False)
            self.page = None if read is None else (name, read)
        if self.page is None:
            return DESTINATIONS[0], []
        name, pending = self.page
        rows = zip(pending.batch.buckets, zones_and_minutes(pending), strict=True)
        return name, [(stored, key, self.model.deliveries[name][key]) for stored, key in rows]

    @rule(data=st.data(), count=st.integers(1, 9))
    def acknowledge(self, data: st.DataObject, count: int) -> None:
        name, rows = self.page_at_hand(data)
        self.write(acknowledge, name, [stored.bucket_id for stored, _, _ in rows[:count]], NOW)

        for _, key, delivery in rows[:count]:
            if delivery.state not in {"partial", "refused"}:
                delivery.state = "acknowledged"
                self.model.acknowledged.add((name, key))

    @rule(data=st.data(), are_partly=st.lists(st.booleans(), min_size=1, max_size=9))
    def refuse(self, data: st.DataObject, are_partly: list[bool]) -> None:
        name, rows = self.page_at_hand(data)
        refusals, partly = [], set()
        for (stored, _, delivery), is_partly in zip(rows, are_partly, strict=False):
            if is_partly:
                partly.add(stored.bucket_id)
                pieces = [stored.series_ids[:4]]
            else:
                pieces = [stored.series_ids[:4], stored.series_ids[4:]][: stored.sample_count]
            refusals += [Refusal(stored.bucket_id, piece, 400, "no") for piece in pieces]
            if delivery.state in {"pending", "expired"}:
                delivery.state = "partial" if is_partly else "refused"
            if delivery.state in {"partial", "refused"}:
                delivery.refused_samples += 1 if is_partly else stored.sample_count
        self.write(refuse, name, refusals, partly=partly, now=NOW)

    @rule(data=st.data(), count=st.integers(1, 2))
    def set_aside(self, data: st.DataObject, count: int) -> None:
        name, rows = self.page_at_hand(data)
        self.write(set_aside, name, [stored.bucket_id for stored, _, _ in rows[:count]], NOW)

        for _, _, delivery in rows[:count]:
            if delivery.state in {"pending", "expired"}:
                delivery.state = "damaged"

    @rule(data=st.data(), minutes=bounds)
    def expire_too_old(self, data: st.DataObject, minutes: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.strict)))
        told = self.write(expire_too_old, name, stamped_before=T0 + minutes * MINUTE, window_seconds=60, now=NOW)

        too_old = [
            delivery
            for key, delivery in self.model.deliveries[name].items()
            if delivery.state == "pending" and T0 + key[1] * MINUTE < int(T0 + minutes * MINUTE)
        ]
        for delivery in too_old:
            delivery.state = "expired"
        assert told == len(too_old)

    @rule(minutes=bounds)
    def expire(self, minutes: float) -> None:
        told = self.write(expire, ended_before=T0 + minutes * MINUTE, now=NOW)

        bound = int(T0 + minutes * MINUTE)
        given_up = [
            delivery
            for name in self.model.strict
            for key, delivery in self.model.deliveries[name].items()
            if delivery.state == "pending" and not delivery.repaired and T0 + (key[1] + 1) * MINUTE < bound
        ]
        for delivery in given_up:
            delivery.state = "expired"
        assert told == len(given_up)

    @rule(minutes=bounds)
    def prune(self, minutes: float) -> None:
        told = self.write(prune, ended_before=T0 + minutes * MINUTE)

        model, bound = self.model, int(T0 + minutes * MINUTE)
        waiting = {key for name in model.strict for key in model.queue(name, strict=False)}
        old = [key for key in model.captured if T0 + (key[1] + 1) * MINUTE < bound and key not in waiting]
        for key in old:
            del model.captured[key]
            model.drifted.discard(key)
            for deliveries in model.deliveries.values():
                deliveries.pop(key, None)
        model.holes = {key: why for key, why in model.holes.items() if T0 + (key[1] + 1) * MINUTE >= bound}
        assert told == len(old)
        self.page = None  # the ids on it may belong to nobody now

    @rule(
        since=st.sampled_from(MINUTES),
        minutes=st.sampled_from([1, 2, SPAN]),
        zones=st.sets(st.sampled_from(ZONES), max_size=1),
        destinations=st.sets(st.sampled_from(DESTINATIONS), max_size=1),
    )
    def resend(self, since: int, minutes: int, zones: set[int], destinations: set[str]) -> None:
        wanted = Resend(
            since=T0 + since * MINUTE,
            until=T0 + (since + minutes) * MINUTE,
            zones=tuple(tag(zone) for zone in zones),
            destinations=tuple(destinations),
        )
        plan = self.read(plan_resend, wanted)
        self.write(ask_for_resend, wanted, reason="", asked_by="", now=NOW)
        done = self.write(carry_out_next, NOW)

        model, expected = self.model, Counter[tuple[str, str]]()
        for name in model.strict:
            for (zone, minute), (samples, _) in model.captured.items():
                picked = (not zones or zone in zones) and (not destinations or name in destinations)
                if samples and picked and since <= minute < since + minutes:
                    before = model.deliveries[name].get((zone, minute))
                    expected[name, before.state if before else "never queued"] += 1
                    model.deliveries[name][zone, minute] = Delivery(repaired=True)
        assert {(count.destination, count.state): count.buckets for count in plan} == expected
        assert queued_by(done) == plan

    @rule(zone=st.sampled_from(ZONES), minutes=minutes_of_capture)
    def fail_halfway(self, zone: int, minutes: list[int]) -> None:
        class Interrupted(Exception):  # noqa: N818 - not an error, the test's own way out
            pass

        def verb(session: Session) -> None:
            capture(session, [bucket(zone, minute, samples=7) for minute in minutes], NOW)
            expire(session, ended_before=NOW, now=NOW)
            prune(session, ended_before=NOW)
            raise Interrupted

        try:
            self.write(verb)
        except Interrupted:
            return
        raise AssertionError

    @rule()
    def restart(self) -> None:
        self.runner.run(self.ledger.close())
        self.ledger = Ledger.open(self.path)

    @invariant()
    def both_hold_the_same_deliveries(self) -> None:
        rows = self.ledger._connection.execute(
            "SELECT destination.name, scope.tag, bucket.start, state, job_id IS NOT NULL FROM delivery"
            " JOIN bucket ON bucket.id = bucket_id JOIN scope ON scope.id = bucket.scope_id"
            " JOIN destination ON destination.id = destination_id"
        )
        found = {
            (name, (int(of, 16), (start - T0) // MINUTE)): (state, bool(job)) for name, of, start, state, job in rows
        }
        assert found == {
            (name, key): (delivery.state, delivery.repaired)
            for name, deliveries in self.model.deliveries.items()
            for key, delivery in deliveries.items()
        }
        acknowledged = {which for which, (state, _) in found.items() if state == "acknowledged"}
        assert acknowledged <= self.model.acknowledged

    @invariant()
    def both_hold_the_same_samples(self) -> None:
        for name, strict in self.model.strict.items():
            pending = self.read(next_pending, name, after=None, max_samples=10**6, one_window_per_series=False)
            expected = [
                sample
                for zone, minute in self.model.queue(name, strict=strict)
                for samples, wrong_by in [self.model.captured[zone, minute]]
                for given in [bucket(zone, minute, samples=samples, wrong_by=wrong_by)]
                for sample in zip(given.series, [given.timestamp_ms] * samples, given.values, strict=True)
            ]
            assert ([] if pending is None else samples_of(pending.batch)) == expected
            assert pending is None or pending.damaged == ()

    @invariant()
    def both_report_the_same(self) -> None:
        model = self.model
        states = Counter(
            (name, delivery.state) for name, deliveries in model.deliveries.items() for delivery in deliveries.values()
        )
        counts = self.read(delivery_counts)
        assert {(count.destination, count.state): count.buckets for count in counts} == states
        assert all(count.gone == (count.destination not in model.strict) for count in counts)
        for backlog in self.read(backlogs):
            keys = model.queue(backlog.destination, strict=False)
            assert backlog.buckets == len(keys)
            assert backlog.samples == sum(model.captured[key][0] for key in keys)
            assert backlog.oldest_end == min((T0 + (minute + 1) * MINUTE for _, minute in keys), default=None)
        refused: Counter[str] = Counter()
        buckets: Counter[str] = Counter()
        for name, deliveries in model.deliveries.items():
            refused[name] = sum(delivery.refused_samples for delivery in deliveries.values())
            buckets[name] = sum(delivery.refused_samples > 0 for delivery in deliveries.values())
        assert self.read(refused_samples) == tuple(
            RefusedSamples(name, buckets[name], refused[name]) for name in sorted(DESTINATIONS) if refused[name]
        )
        assert sum(self.read(hole_counts, since=0).values()) == len(model.holes)
        assert sum(self.read(drifted_buckets).values()) == len(model.drifted)
        for report in self.read(scope_reports, since=T0, final_until=T0 + SPAN * MINUTE, with_deliveries=True):
            of_zone = [key for key in model.captured if tag(key[0]) == report.tag]
            assert report.captured == len(of_zone)
            assert report.missing == SPAN - len(of_zone)
            assert report.acknowledged == sum(
                all(
                    not model.captured[key][0]
                    or (key in model.deliveries[name] and model.deliveries[name][key].state == "acknowledged")
                    for name in model.strict
                )
                for key in of_zone
            )


TestVerbs = Verbs.TestCase
TestVerbs.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
