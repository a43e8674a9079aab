"""Whatever a receiver does and how often the worker starts anew: each sample is stored, or recorded as refused."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import NOW
from tests.unit.pushing import BUSY, DOWN, HOUR_NOW, TOO_LARGE, ZONES, Sample, Scene, Sent, Window, a_scene, samples_of
from worker.config import Message
from worker.remote_write import Accepted, Fate, Later, Refused, Verdict

LOST = Later("the answer was lost", Fate.RETRY)
PARKED = Later("HTTP 401: wrong password", Fate.PARK, 401)

UNKNOWN: list[Verdict] = [
    Later("HTTP 415", Fate.OLDER_MESSAGE, 415),
    Later("HTTP 204, in silence", Fate.OLDER_MESSAGE, 204),
    Refused(400, "cannot be parsed"),
]
"""What a receiver may answer that does not know remote write 2.0."""


@dataclass(frozen=True)
class Nature:
    """What a receiver is like.

    strict:       it takes no sample that is older than the newest of its series.
    bad:          what it never takes.
    status:       what it answers to that; 500 as to any failure.
    keeps_good:   it stores the good part of what it refuses.
    most_samples: in one request; more is too large.
    to_2:         what it answers to 2.0; None where it knows it.
    faults:       what it answers to some requests, by their number, whatever is in them.
    """

    strict: bool
    bad: frozenset[Sample]
    status: int
    keeps_good: bool
    most_samples: int
    to_2: Verdict | None
    faults: Mapping[int, Verdict]


@dataclass
class ModelReceiver:
    """Stores samples as such a receiver does."""

    nature: Nature
    stored: Counter[Sample] = field(default_factory=Counter)
    newest: dict[tuple[int, str], int] = field(default_factory=dict)
    requests: int = 0

    def answer(self, sent: Sent) -> Verdict:
        fault = self.nature.faults.get(self.requests)
        self.requests += 1
        if fault is not None and fault is not LOST:
            return fault
        verdict = self._answer(sent)
        return verdict if fault is None else fault

    def _answer(self, sent: Sent) -> Verdict:
        if sent.message is Message.V2 and self.nature.to_2 is not None:
            return self.nature.to_2
        if len(sent.samples) > self.nature.most_samples:
            return TOO_LARGE
        wrong = {sample: self._what_is_wrong(sample) for sample in sent.samples}
        good = [sample for sample in sent.samples if wrong[sample] is None]
        if len(good) < len(sent.samples):
            if self.nature.keeps_good:
                self._store(good)
            text = next(text for text in wrong.values() if text)
            if self.nature.status >= 500:
                return Later(text, Fate.RETRY, self.nature.status)
            return Refused(self.nature.status, text, speaks_2=sent.message is Message.V2)
        self._store(good)
        return Accepted(204, len(good) if sent.message is Message.V2 else None)

    def _what_is_wrong(self, sample: Sample) -> str | None:
        zone, hour, country = sample
        if sample in self.nature.bad:
            return "bad"
        if self.nature.strict and hour < self.newest.get((zone, country), hour):
            return "out of order"
        return None

    def _store(self, samples: Collection[Sample]) -> None:
        self.stored.update(samples)
        for zone, hour, country in samples:
            self.newest[zone, country] = max(hour, self.newest.get((zone, country), hour))


@dataclass(frozen=True)
class Life:
    """What happens to a worker.

    windows:  what is in the ledger when it starts: how many samples each window has.
    later:    what is captured when so many requests have been sent.
    restarts: when so many requests have been sent, it is stopped (True) or killed, and started again.
    """

    windows: Mapping[Window, int]
    later: Mapping[int, Window]
    restarts: Mapping[int, bool]
    shards: int
    most: int
    message: Message | None


async def live(life: Life, nature: Nature, scene: Scene) -> ModelReceiver:
    """Deliver through all of it until nothing is pending."""
    model = ModelReceiver(nature)
    for (zone, hour), count in life.windows.items():
        await scene.captured([zone], [hour], samples=count)

    async def answer(sent: Sent) -> Verdict:
        assert model.requests < 2_000, "it goes on for ever"
        if model.requests in life.later:
            zone, hour = life.later[model.requests]
            await scene.captured([zone], [hour])
        if nature.status >= 500 and model.requests % 10 == 9:
            # Something has to go through, or else nobody can tell poison from an outage.
            await scene.captured([1], [HOUR_NOW + 1000 + model.requests])
        return model.answer(sent)

    scene.receiver.answer = answer
    for requests, stops in sorted(life.restarts.items()):
        await deliver(life, nature, scene, until=lambda: model.requests >= requests, stops=stops)  # noqa: B023 - awaited
    await deliver(life, nature, scene, until=lambda: False, stops=True)
    return model


async def deliver(life: Life, nature: Nature, scene: Scene, *, until: Callable[[], bool], stops: bool) -> None:
    """Deliver until then, or until nothing is pending; end by being stopped or killed."""
    pusher = scene.pusher(
        window_seconds=0 if nature.strict else 300_000_000,
        message=life.message,
        max_shards=life.shards,
        max_samples_per_send=life.most,
        split_after_failures=2,
    )
    stopping = asyncio.Event()
    running = asyncio.create_task(pusher.run(stopping))
    while not until() and "pending" in (await scene.states()).values():
        if running.done():
            break
    if stops:
        stopping.set()
    else:
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


HOURS = st.integers(0, 5) | st.integers(HOUR_NOW - 2, HOUR_NOW - 1)
WINDOWS = st.tuples(st.sampled_from(ZONES), HOURS)
REQUESTS = st.integers(0, 25)


@st.composite
def lives(draw: st.DrawFn) -> tuple[Life, Nature]:
    strict = draw(st.booleans())
    windows = draw(st.dictionaries(WINDOWS, st.integers(1, 4), min_size=1, max_size=14))
    # A strict receiver takes no window that is captured behind a later one.
    later = {} if strict else draw(st.dictionaries(REQUESTS, WINDOWS.filter(lambda window: window not in windows)))
    everything = sorted(set().union(*(samples_of([zone], [hour], n) for (zone, hour), n in windows.items())))
    nature = Nature(
        strict=strict,
        bad=frozenset(draw(st.sets(st.sampled_from(everything), max_size=6))),
        status=draw(st.sampled_from([400, 409, 413, 422] if strict else [400, 409, 413, 422, 500])),
        keeps_good=draw(st.booleans()),
        most_samples=draw(st.sampled_from([1, 5, 10_000])),
        to_2=draw(st.sampled_from([None, *UNKNOWN])),
        faults=draw(st.dictionaries(REQUESTS, st.sampled_from([DOWN, BUSY, LOST, PARKED]), max_size=8)),
    )
    life = Life(
        windows=windows,
        later=later,
        restarts=draw(st.dictionaries(st.integers(1, 30), st.booleans(), max_size=3)),
        shards=draw(st.integers(1, 4)),
        most=draw(st.sampled_from([2, 7, 10_000])),
        message=draw(st.sampled_from([None, Message.V1])),
    )
    return life, nature


@settings(max_examples=25)
@given(lives())
def test_every_sample_is_stored_or_recorded_as_refused(drawn: tuple[Life, Nature]) -> None:
    life, nature = drawn

    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with a_scene(Path(folder), JumpingClock(NOW), strict=nature.strict) as scene:
                model = await live(life, nature, scene)
                states, refused = await scene.states(), await scene.refused()
                counts = {window: life.windows.get(window, 3) for window in states}
        everything = set().union(*(samples_of([zone], [hour], n) for (zone, hour), n in counts.items()))
        assert set(model.stored) == everything - nature.bad, "each is stored that can be, and nothing else"
        assert refused.keys() == nature.bad
        assert all(status == nature.status and text == "bad" for status, text in refused.values())
        for window, state in states.items():
            bad = sum(sample[:2] == window for sample in nature.bad)
            assert state == ("acknowledged" if not bad else "refused" if bad == counts[window] else "partial")

    asyncio.run(play())
