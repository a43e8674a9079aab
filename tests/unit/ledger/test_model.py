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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.ledger.fleet import DATASET, HOUR, NOW, T0, bucket, samples_of, scope, tag, window, zones_and_hours
from worker.ledger import (
    Captured,
    Hole,
    HoleReason,
    Ledger,
    Pending,
    Resend,
    acknowledge,
    ask_for_resend,
    backlogs,
    capture,
    carry_out_next,
    delivery_counts,
    drifted_buckets,
    expire,
    hole_counts,
    next_pending,
    outstanding_windows,
    plan_resend,
    prune,
    record_holes,
    record_scopes,
    refuse,
    register_destinations,
    scope_reports,
    set_aside,
)
from worker.ledger import delivery as delivery_verbs
from worker.ledger.session import Session

ZONES = (1, 2)
SEGMENT = delivery_verbs._SEGMENT_WINDOWS
EDGE = SEGMENT - T0 // HOUR % SEGMENT  # the first hour of a segment
HOURS = (EDGE - 3, EDGE - 2, EDGE - 1, EDGE, EDGE + 1, EDGE + SEGMENT)
SPAN = HOURS[-1] + 1
DESTINATIONS = ("prom", "mimir")

Key = tuple[int, int]
"""Zone and hour of a bucket."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Delivery:
    state: str = "pending"
    repaired: bool = False


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
            zone, hour = key
            start = T0 // HOUR + hour
            return (start if strict else start - start % SEGMENT, zone, hour)

        pending = [key for key, found in self.deliveries[destination].items() if found.state == "pending"]
        return sorted(pending, key=place)

    def enqueue(self, destination: str, keys: list[Key]) -> None:
        for key in keys:
            if self.captured[key][0]:
                self.deliveries[destination].setdefault(key, Delivery())


def volume() -> str | None:
    """A volume in memory, where there is one: this test is about logic, not about the disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


hours_of_capture = st.lists(st.sampled_from(HOURS), min_size=1, max_size=6)
bounds = st.sampled_from([hour + more for hour in HOURS for more in (0, 0.5, 1, 1.5)])


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
        return self.ledger._transact("IMMEDIATE", verb, *args, **kwargs)

    def read(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ledger._transact("DEFERRED", verb, *args, **kwargs)

    @initialize()
    def begin(self) -> None:
        self.write(record_scopes, [scope(zone) for zone in ZONES], NOW)
        self.write(
            outstanding_windows,
            dataset=DATASET,
            width_seconds=HOUR,
            tags=[tag(zone) for zone in ZONES],
            starts=range(T0, T0 + SPAN * HOUR, HOUR),
        )

    @rule(
        strict=st.dictionaries(st.sampled_from(DESTINATIONS), st.booleans(), min_size=1),
        replay_since=bounds,
    )
    def configure(self, strict: dict[str, bool], replay_since: float) -> None:
        self.write(register_destinations, strict, replay_since=T0 + replay_since * HOUR, now=NOW)

        model = self.model
        for name in strict.keys() - model.strict.keys():
            bound = int(T0 + replay_since * HOUR)
            model.enqueue(name, [key for key in model.captured if T0 + (key[1] + 1) * HOUR >= bound])
        model.strict = dict(strict)

    @rule(
        zone=st.sampled_from(ZONES),
        hours=hours_of_capture,
        samples=st.sampled_from([0, 1, 2, 2, 2]),
        wrong_by=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def capture(self, zone: int, hours: list[int], samples: int, wrong_by: float) -> None:
        wrong_by = wrong_by if samples else 0.0
        told = self.write(capture, [bucket(zone, hour, samples=samples, wrong_by=wrong_by) for hour in hours], NOW)

        model, expected = self.model, Counter[str]()
        for key in [(zone, hour) for hour in hours]:
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
        assert told == Captured(**{name: expected[name] for name in ("buckets", "samples", "unchanged", "drifted")})

    @rule(zone=st.sampled_from(ZONES), hours=hours_of_capture, reason=st.sampled_from(HoleReason))
    def record_holes(self, zone: int, hours: list[int], reason: HoleReason) -> None:
        self.write(record_holes, [Hole(DATASET, tag(zone), window(hour), reason, "") for hour in hours], NOW)

        for key in [(zone, hour) for hour in hours]:
            if key not in self.model.captured:
                self.model.holes[key] = reason

    @precondition(lambda self: self.model.strict)
    @rule(data=st.data(), max_samples=st.integers(1, 9), one_window=st.booleans())
    def read_a_page(self, data: st.DataObject, max_samples: int, one_window: bool) -> None:  # noqa: FBT001 - drawn by name
        name = data.draw(st.sampled_from(sorted(self.model.strict)))
        pending = self.read(next_pending, name, after=None, max_samples=max_samples, one_window_per_series=one_window)

        expected: list[Key] = []
        for key in self.model.queue(name, strict=self.model.strict[name]):
            samples = sum(self.model.captured[each][0] for each in [*expected, key])
            if expected and (samples > max_samples or (one_window and key[0] in {zone for zone, _ in expected})):
                break
            expected.append(key)
        assert ([] if pending is None else zones_and_hours(pending)) == expected
        self.page = None if pending is None else (name, pending)

    def decide(self, state: str, verb: Callable[[str, list[int]], None], count: int) -> None:
        assert self.page is not None
        name, pending = self.page
        verb(name, [stored.bucket_id for stored in pending.batch.buckets[:count]])
        for key in zones_and_hours(pending)[:count]:
            delivery = self.model.deliveries[name].get(key)
            if delivery is not None and (state == "acknowledged" or delivery.state != "acknowledged"):
                delivery.state = state
                if state == "acknowledged":
                    self.model.acknowledged.add((name, key))

    @precondition(lambda self: self.page)
    @rule(count=st.integers(1, 9))
    def acknowledge(self, count: int) -> None:
        self.decide("acknowledged", lambda name, ids: self.write(acknowledge, name, ids, NOW), count)

    @precondition(lambda self: self.page)
    @rule(count=st.integers(1, 9))
    def refuse(self, count: int) -> None:
        self.decide("refused", lambda name, ids: self.write(refuse, name, ids, status=400, reason="no", now=NOW), count)

    @precondition(lambda self: self.page)
    @rule(count=st.integers(1, 2))
    def set_aside(self, count: int) -> None:
        self.decide("damaged", lambda name, ids: self.write(set_aside, name, ids, NOW), count)

    @rule(hours=bounds)
    def expire(self, hours: float) -> None:
        told = self.write(expire, ended_before=T0 + hours * HOUR, now=NOW)

        bound = int(T0 + hours * HOUR)
        given_up = [
            delivery
            for name in self.model.strict
            for key, delivery in self.model.deliveries[name].items()
            if delivery.state == "pending" and not delivery.repaired and T0 + (key[1] + 1) * HOUR < bound
        ]
        for delivery in given_up:
            delivery.state = "expired"
        assert told == len(given_up)

    @rule(hours=bounds)
    def prune(self, hours: float) -> None:
        told = self.write(prune, ended_before=T0 + hours * HOUR)

        model, bound = self.model, int(T0 + hours * HOUR)
        waiting = {key for name in model.strict for key in model.queue(name, strict=False)}
        old = [key for key in model.captured if T0 + (key[1] + 1) * HOUR < bound and key not in waiting]
        for key in old:
            del model.captured[key]
            model.drifted.discard(key)
            for deliveries in model.deliveries.values():
                deliveries.pop(key, None)
        model.holes = {key: why for key, why in model.holes.items() if T0 + (key[1] + 1) * HOUR >= bound}
        assert told == len(old)
        self.page = None  # the ids on it may belong to nobody now

    @rule(
        since=st.sampled_from(HOURS),
        hours=st.sampled_from([1, 2, SPAN]),
        zones=st.sets(st.sampled_from(ZONES), max_size=1),
        destinations=st.sets(st.sampled_from(DESTINATIONS), max_size=1),
    )
    def resend(self, since: int, hours: int, zones: set[int], destinations: set[str]) -> None:
        wanted = Resend(
            since=T0 + since * HOUR,
            until=T0 + (since + hours) * HOUR,
            zones=tuple(tag(zone) for zone in zones),
            destinations=tuple(destinations),
        )
        plan = self.read(plan_resend, wanted)
        self.write(ask_for_resend, wanted, reason="", asked_by="", now=NOW)
        done = self.write(carry_out_next, NOW)

        model, expected = self.model, Counter[tuple[str, str]]()
        for name in model.strict:
            for (zone, hour), (samples, _) in model.captured.items():
                picked = (not zones or zone in zones) and (not destinations or name in destinations)
                if samples and picked and since <= hour < since + hours:
                    before = model.deliveries[name].get((zone, hour))
                    expected[name, before.state if before else "never queued"] += 1
                    model.deliveries[name][zone, hour] = Delivery(repaired=True)
        assert {(count.destination, count.state): count.buckets for count in plan} == expected
        assert done is not None
        assert done.queued == plan

    @rule(zone=st.sampled_from(ZONES), hours=hours_of_capture)
    def fail_halfway(self, zone: int, hours: list[int]) -> None:
        class Interrupted(Exception):  # noqa: N818 - not an error, the test's own way out
            pass

        def verb(session: Session) -> None:
            capture(session, [bucket(zone, hour, samples=7) for hour in hours], NOW)
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
            (name, (int(of, 16), (start - T0) // HOUR)): (state, bool(job)) for name, of, start, state, job in rows
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
                for zone, hour in self.model.queue(name, strict=strict)
                for samples, wrong_by in [self.model.captured[zone, hour]]
                for given in [bucket(zone, hour, samples=samples, wrong_by=wrong_by)]
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
            assert backlog.oldest_end == min((T0 + (hour + 1) * HOUR for _, hour in keys), default=None)
        assert sum(self.read(hole_counts, since=0).values()) == len(model.holes)
        assert sum(self.read(drifted_buckets).values()) == len(model.drifted)
        for report in self.read(scope_reports, since=T0, final_until=T0 + SPAN * HOUR, with_deliveries=True):
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
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
