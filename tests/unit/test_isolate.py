import asyncio
import gc
import itertools
import math
import random
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import ManualClock
from tests.unit.remote_write.batches import batch, bucket
from worker.buckets import Batch
from worker.deliver import Interrupted, Request
from worker.isolate import TRIED_OF_A_WINDOW, Declined, Isolation, Taken
from worker.remote_write import Accepted, Fate, Later, Refused, spread

NOW = 1_760_000_000.0
NOW_MS = int(NOW) * 1000
MINUTE_MS = 60_000

Sample = tuple[int, int]
"""Timestamp in milliseconds and series id."""

ACCEPTED = Accepted(204)


BUSY = Later("HTTP 429: busy", Fate.RATE_LIMITED, 429)


def as_verdict(status: int, text: str) -> Refused | Later:
    """What the status means, as `worker.remote_write.judge` has it."""
    if status in {429, 529}:
        return Later(text, Fate.RATE_LIMITED, status)
    return Refused(status, text) if status < 500 else Later(text, Fate.RETRY, status)


def samples_of(part: Batch) -> list[Sample]:
    return [(stored.timestamp_ms, number) for stored in part.buckets for number in array("I", stored.series_ids)]


def windows(count: int, series: int, *, newest_ms: int = NOW_MS) -> Batch:
    """So many windows of a minute with the same series each, the newest one last."""
    stamps = [newest_ms - MINUTE_MS * age for age in reversed(range(count))]
    return batch(*(bucket(n, at, range(1, series + 1), [1.0] * series) for n, at in enumerate(stamps)))


@dataclass
class Receiver:
    """Refuses what it must with one status, all of it or only the bad part; may be down for a while.

    is_bad:       which samples it will never take.
    status:       what it answers to them; 500 is a failure like any other.
    keeps_good:   whether it stores the good part of what it refuses.
    most_samples: in one request; more is answered with 413.
    down:         how many of the next requests fail, whatever is in them.
    sheds:        whether the next one does.
    limits:       whether a request of so many samples is one too many now: a 429, whatever is in it.
    """

    is_bad: Callable[[Sample], bool]
    status: int = 400
    keeps_good: bool = False
    most_samples: int = 10**9
    down: int = 0
    sheds: Callable[[], bool] = lambda: False
    limits: Callable[[int], bool] = lambda _samples: False
    stored: Counter[Sample] = field(default_factory=Counter)
    requests: int = 0
    accepted: int = 0
    elsewhere: int = 0
    interrupt_at: int | None = None

    async def send(self, request: Request, failures_allowed: int) -> Accepted | Refused | Later | Interrupted:
        assert failures_allowed == 1
        if self.requests == self.interrupt_at:
            return Interrupted.STOPPING
        self.requests += 1
        await asyncio.sleep(0)
        if self.down or self.sheds():
            self.down = max(0, self.down - 1)
            return Later("HTTP 500: down", Fate.RETRY, 500)
        sent = samples_of(request.batch)
        if self.limits(len(sent)):
            return BUSY
        if len(sent) > self.most_samples:
            return Refused(413, "too large")
        bad = [sample for sample in sent if self.is_bad(sample)]
        if not bad or self.keeps_good:
            self.stored.update(set(sent) - set(bad))
        if not bad:
            self.accepted += 1
            return ACCEPTED
        text = f"sample {bad[0]} is bad"
        return as_verdict(self.status, text)


@dataclass
class Search:
    """A search in a batch, carried to its end, and what came of every sample."""

    receiver: Receiver
    strict: bool = False
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    paused: list[int] = field(default_factory=list)
    rested: list[float] = field(default_factory=list)
    blame_after_seconds: float = 0.0
    most_pauses: int = 10_000
    taken_before: Batch | None = None
    taken: Counter[Sample] = field(default_factory=Counter)
    parts: int = 0  # in which they were
    declined: dict[Sample, tuple[int | None, str]] = field(default_factory=dict)
    isolation: Isolation | None = None

    async def run(self, searched: Batch, verdict: Refused | Later) -> "Search":
        self.isolation = Isolation(
            send=self.receiver.send,
            request=sized_request,
            accepted_requests=lambda: self.receiver.accepted + self.receiver.elsewhere,
            taken_before=lambda: self.taken_before,
            pause=self.pause,
            rest=self.rest,
            blame_after_seconds=self.blame_after_seconds,
            strict=self.strict,
            clock=self.clock,
        )
        decisions = self.isolation.decisions(sized_request(searched), verdict)
        del searched
        async for decision in decisions:
            match decision:
                case Taken(batch=part):
                    self.parts += 1
                    self.taken.update(samples_of(part))
                case Declined(batch=part, status=status, text=text):
                    for sample in samples_of(part):
                        assert sample not in self.declined
                        self.declined[sample] = (status, text)
        return self

    async def pause(self, failures: int) -> bool:
        self.paused.append(failures)
        return len(self.paused) > self.most_pauses

    async def rest(self, seconds: float) -> bool:
        self.rested.append(seconds)
        self.clock.set(self.clock.now() + seconds)
        return False


def sized_request(part: Batch) -> Any:
    request = Request(part, {})
    request.size_bytes = 100 * part.sample_count
    return request


async def isolated(
    searched: Batch, bad: Collection[Sample] | Callable[[Sample], bool], *, strict: bool = False, **receiver: Any
) -> Search:
    """Search in a batch that the receiver has just refused as a whole, or has failed to take often enough."""
    model = Receiver(bad if callable(bad) else frozenset(bad).__contains__, **receiver)
    return await Search(model, strict).run(searched, as_verdict(model.status, "whole"))


def bound(samples: int, bad: int) -> int:
    """What finding so many bad ones may cost, with the request that was refused first."""
    return 2 * bad * math.ceil(math.log2(samples / bad)) + 1


def assert_all_is_decided(search: Search, searched: Batch, bad: Iterable[Sample]) -> None:
    assert_is_decided(search, searched, bad)
    assert set(search.receiver.stored) == set(samples_of(searched)) - set(bad)


def assert_is_decided(search: Search, searched: Batch, bad: Iterable[Sample]) -> None:
    """The same where something else was stored as well, to see whether the receiver works."""
    everything, wrong = set(samples_of(searched)), set(bad)
    assert set(search.declined) == wrong
    assert set(search.taken) == everything - wrong
    assert max(search.taken.values(), default=1) == 1
    assert set(search.receiver.stored) >= everything - wrong
    assert search.isolation is not None
    assert search.isolation.interrupted is None


@pytest.mark.parametrize("keeps_good", [False, True], ids=["keeps nothing", "keeps the good part"])
@pytest.mark.parametrize("bad_count", [1, 3, 200])
async def test_one_bad_sample_costs_one_sample_and_few_requests(*, bad_count: int, keeps_good: bool) -> None:
    searched = windows(32, 313)
    everything = samples_of(searched)
    bad = everything[7 :: len(everything) // bad_count][:bad_count]
    search = await isolated(searched, bad, keeps_good=keeps_good)
    assert_all_is_decided(search, searched, bad)
    assert search.receiver.requests + 1 <= bound(len(everything), bad_count)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 24)),
    chosen=st.sets(st.integers(0, 287), min_size=1),
    keeps_good=st.booleans(),
    status=st.sampled_from([400, 409, 413, 422]),
    newest_ms=st.sampled_from([NOW_MS, NOW_MS - 7_200_000]),
)
async def test_whatever_is_refused_the_rest_arrives(
    *, shape: tuple[int, int], chosen: set[int], keeps_good: bool, status: int, newest_ms: int
) -> None:
    searched = windows(*shape, newest_ms=newest_ms)
    everything = samples_of(searched)
    bad = {everything[index % len(everything)] for index in chosen}
    search = await isolated(searched, bad, keeps_good=keeps_good, status=status)
    assert_all_is_decided(search, searched, bad)
    assert all(answer[0] == status for answer in search.declined.values())


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(st.integers(1, 8), st.integers(2, 16)), chosen=st.sets(st.integers(0, 127)))
async def test_poison_that_answers_500_is_found_in_the_same_way(shape: tuple[int, int], chosen: set[int]) -> None:
    searched = windows(*shape)
    everything = samples_of(searched)
    bad = {everything[index % len(everything)] for index in chosen} - {everything[-1]}
    search = await isolated(searched, bad, status=500)
    assert_all_is_decided_but_repeated(search, searched, bad)


def assert_all_is_decided_but_repeated(search: Search, searched: Batch, bad: Collection[Sample]) -> None:
    everything = set(samples_of(searched))
    assert set(search.declined) == set(bad)
    assert set(search.taken) == everything - set(bad)


async def test_an_outage_blames_nothing() -> None:
    searched = windows(8, 50)
    receiver = Receiver(lambda _sample: False, status=500, down=100)
    search = await Search(receiver).run(searched, Later("HTTP 503: down", Fate.RETRY, 503))
    assert_all_is_decided(search, searched, [])
    assert search.paused[:12] == list(range(1, 13))
    assert receiver.requests < 100 + 40, "after the outage the batch went out in few parts"


async def test_an_outage_of_old_windows_blames_nothing_and_cuts_them_no_finer() -> None:
    searched = windows(8, 500, newest_ms=NOW_MS - 7_200_000)
    receiver = Receiver(lambda _sample: False, status=500, down=300)
    search = await Search(receiver).run(searched, Later("HTTP 503: down", Fate.RETRY, 503))
    assert_all_is_decided(search, searched, [])
    assert receiver.requests < 300 + 40


async def test_where_nothing_is_taken_at_all_nothing_is_blamed_for_a_failure() -> None:
    search = Search(Receiver(lambda _sample: True, status=500), most_pauses=500)
    await search.run(windows(2, 8), Later("whole", Fate.RETRY, 500))
    assert not search.declined
    assert search.isolation is not None
    assert search.isolation.interrupted is Interrupted.STOPPING


async def test_rows_of_another_lane_prove_that_the_receiver_works() -> None:
    receiver = Receiver(lambda _sample: True, status=500)
    search = Search(receiver)

    async def pause(_failures: int) -> bool:
        receiver.elsewhere += 1
        return False

    search.pause = pause  # type: ignore[method-assign,assignment]  # the other lane has been served meanwhile
    searched = windows(1, 3)
    await search.run(searched, Later("whole", Fate.RETRY, 500))
    assert set(search.declined) == set(samples_of(searched))
    assert {answer[0] for answer in search.declined.values()} == {500}


async def test_a_sample_that_failed_and_is_taken_later_is_not_blamed() -> None:
    searched = windows(1, 4)
    flaky = samples_of(searched)[2]
    failures = Counter[Sample]()

    def is_bad(sample: Sample) -> bool:
        failures[sample] += sample == flaky
        return sample == flaky and failures[sample] <= 3

    search = await isolated(searched, is_bad, status=500)
    assert_all_is_decided_but_repeated(search, searched, [])


async def test_a_window_that_is_too_old_for_a_strict_receiver_is_not_tried_sample_by_sample() -> None:
    old = NOW_MS - 7_200_000
    searched = windows(4, 2_000, newest_ms=old)
    search = await isolated(searched, lambda sample: sample[0] < old, strict=True)
    assert_all_is_decided(search, searched, [s for s in samples_of(searched) if s[0] < old])
    assert search.receiver.requests < 60


async def test_a_strict_receiver_that_takes_one_of_those_that_are_tried_is_asked_about_all() -> None:
    old = NOW_MS - 7_200_000
    searched = windows(1, 2_000, newest_ms=old)
    bad = [sample for sample in samples_of(searched) if sample[1] % 2]
    search = await isolated(searched, bad, strict=True)
    assert_all_is_decided(search, searched, bad)


async def test_once_a_sample_of_an_old_window_is_taken_none_of_it_is_refused_unasked() -> None:
    searched = windows(1, 100, newest_ms=NOW_MS - 7_200_000)
    tried, _ = spread(searched, TRIED_OF_A_WINDOW)
    for other in samples_of(searched)[::10]:
        good = {*samples_of(tried[0]), other}
        bad = [sample for sample in samples_of(searched) if sample not in good]
        assert_all_is_decided(await isolated(searched, bad, strict=True), searched, bad)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("samples", [100, 1])
async def test_a_receiver_that_sheds_load_loses_nothing(share: float, samples: int) -> None:
    chance = random.Random(5)
    for _ in range(100 // samples):
        searched = windows(1, samples)
        receiver = Receiver(lambda _sample: False, status=500, sheds=lambda: chance.random() < share)
        search = Search(receiver, blame_after_seconds=3600.0, taken_before=windows(1, 1, newest_ms=NOW_MS - 1))

        async def rest(seconds: float, search: Search = search) -> bool:
            search.receiver.elsewhere += 1  # other requests are accepted all the time
            return await Search.rest(search, seconds)

        search.rest = rest  # type: ignore[method-assign]
        search.pause = lambda _failures, rest=rest: rest(1.0)  # type: ignore[method-assign,misc]
        await search.run(searched, Later("HTTP 500: busy", Fate.RETRY, 500))
        assert not search.declined
        assert set(search.taken) == set(samples_of(searched))


@pytest.mark.parametrize("first_fails", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
async def test_a_receiver_that_fails_every_other_time_loses_nothing(*, samples: int, first_fails: bool) -> None:
    searched = windows(1, samples)
    fails = itertools.cycle([first_fails, not first_fails])
    receiver = Receiver(lambda _sample: False, status=500, sheds=lambda: next(fails))
    search = Search(receiver, taken_before=windows(1, 1, newest_ms=NOW_MS - 1))
    await search.run(searched, Later("HTTP 500: busy", Fate.RETRY, 500))
    assert not search.declined
    assert set(search.taken) == set(samples_of(searched))


# ------------------------------------------------------------------------------------------ what a limit holds back


CONTROL = windows(1, 1, newest_ms=NOW_MS - 1)


@dataclass
class LimitedSearch(Search):
    """A search at a receiver that takes other requests all the time, if it takes any."""

    async def rest(self, seconds: float) -> bool:
        self.receiver.elsewhere += not self.receiver.limits(1)
        return await super().rest(seconds)

    async def pause(self, failures: int) -> bool:
        await super().pause(failures)
        return await self.rest(1.0)


def limited_search(receiver: Receiver, *, control: bool = True, seconds: float = 3600.0) -> LimitedSearch:
    return LimitedSearch(receiver, blame_after_seconds=seconds, taken_before=CONTROL if control else None)


@pytest.mark.parametrize("control", [True, False], ids=["a control", "no control"])
async def test_a_sample_over_a_limit_that_lasts_costs_itself_after_the_time_and_few_requests(*, control: bool) -> None:
    searched = windows(10, 100)
    bad = samples_of(searched)[531]
    receiver = Receiver({bad}.__contains__, 429)
    search = await limited_search(receiver, control=control).run(searched, BUSY)
    assert_is_decided(search, searched, [bad])
    assert search.declined[bad] == (429, f"sample {bad} is bad")
    assert search.clock.now() - NOW > 3600
    # Ten halvings, for each four failures, every other one of them twice, with a control behind; then an hour alone.
    assert receiver.requests < 10 * (2 + 6 + 4 + 1) + 2.5 * 20


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("samples", [100, 1])
async def test_a_limit_that_passes_loses_nothing_and_hardly_ever_leads_to_more_requests(
    share: float, samples: int
) -> None:
    chance = random.Random(5)
    for _ in range(50):
        receiver = Receiver(lambda _sample: False, limits=lambda _samples: chance.random() < share)
        searched = windows(1, samples)
        search = await limited_search(receiver).run(searched, BUSY)
        assert_is_decided(search, searched, [])
        assert search.parts == 1


@pytest.mark.parametrize("free_every_seconds", [5.0, 20.0, 200.0])
async def test_a_limit_on_the_number_of_requests_is_not_taken_for_one_on_what_is_in_them(
    free_every_seconds: float,
) -> None:
    searched = windows(1, 50)
    receiver = Receiver(lambda _sample: False)
    search = limited_search(receiver)
    free_at = NOW + 1000.0

    def limits(_samples: int) -> bool:
        nonlocal free_at
        if search.clock.now() < free_at:
            return True
        free_at = search.clock.now() + free_every_seconds
        return False

    receiver.limits = limits
    await search.run(searched, BUSY)
    assert_is_decided(search, searched, [])
    assert search.parts == 1
    assert receiver.requests < 60


@pytest.mark.parametrize("first_is_limited", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
async def test_a_receiver_that_limits_every_other_request_loses_nothing(
    *, samples: int, first_is_limited: bool
) -> None:
    limited = itertools.cycle([first_is_limited, not first_is_limited])
    receiver = Receiver(lambda _sample: False, limits=lambda _samples: next(limited))
    search = Search(receiver, taken_before=CONTROL)
    searched = windows(1, samples)
    await search.run(searched, BUSY)
    assert_is_decided(search, searched, [])
    assert receiver.requests <= 4


async def test_a_limit_on_everything_is_met_with_two_requests_at_a_time_and_no_smaller_ones() -> None:
    searched = windows(10, 100)
    receiver = Receiver(lambda _sample: False, limits=lambda _samples: True)
    search = limited_search(receiver)
    receiver.interrupt_at = 200
    await search.run(searched, BUSY)
    assert not search.taken
    assert not search.declined
    assert search.clock.now() - NOW > 100 * 250


async def test_a_limit_on_the_samples_of_a_request_is_met_with_smaller_ones_at_no_loss() -> None:
    searched = windows(10, 100)
    receiver = Receiver(lambda _sample: False, limits=lambda samples: samples > 130)
    search = await limited_search(receiver).run(searched, BUSY)
    assert_is_decided(search, searched, [])
    assert search.parts == 10
    assert receiver.requests < 9 * (1 + 6 + 4) + 10


async def test_a_limit_that_once_passed_by_itself_is_believed_later_to_be_one_on_what_is_in_a_part() -> None:
    searched = windows(1, 4)
    first, _, third, _ = samples_of(searched)
    # How often each is still held back: six times as a whole, then one half once and the other six times.
    left = Counter({first: 6 + 1, third: 6 + 6})

    def is_bad(sample: Sample) -> bool:
        left[sample] -= 1
        return left[sample] >= 0

    search = await limited_search(Receiver(is_bad, 429)).run(searched, BUSY)
    assert_is_decided(search, searched, [])
    assert search.parts == 2


async def test_a_limit_on_everything_is_met_with_as_few_requests_where_many_parts_are_held_back_already() -> None:
    searched = windows(10, 100)
    receiver = Receiver(lambda _sample: False, interrupt_at=300)
    receiver.limits = lambda samples: samples > 130 or receiver.requests >= 60
    search = limited_search(receiver)
    at: list[float] = []

    def asked() -> bool:
        at.append(search.clock.now())
        return False

    receiver.sheds = asked
    await search.run(searched, BUSY)
    assert set(search.declined) | set(search.taken) < set(samples_of(searched))
    # In each round, five minutes after the one before, one part, perhaps twice, and the control.
    assert at[-1] - at[100] > (len(at) - 100) / 3 * 295


async def test_a_529_is_never_blamed_on_a_sample() -> None:
    searched = windows(2, 2)
    bad = samples_of(searched)[1]
    receiver = Receiver({bad}.__contains__, 529, interrupt_at=500)
    search = await limited_search(receiver, seconds=0.0).run(searched, as_verdict(529, "whole"))
    assert set(search.taken) == set(samples_of(searched)) - {bad}
    assert not search.declined


async def test_a_part_that_a_limit_holds_back_while_another_is_refused_is_tried_again_as_a_whole() -> None:
    searched = windows(1, 64)
    refused = samples_of(searched)[3]
    busy = iter([True, False])
    receiver = Receiver({refused}.__contains__, limits=lambda samples: samples == 32 and next(busy, False))
    search = await limited_search(receiver).run(searched, Refused(400, "whole"))
    assert_is_decided(search, searched, [refused])


@pytest.mark.parametrize("age_ms", [0, 7_200_000])
async def test_where_out_of_order_is_taken_every_sample_of_a_refused_window_is_tried(age_ms: int) -> None:
    searched = windows(1, 100, newest_ms=NOW_MS - age_ms)
    everything = samples_of(searched)
    search = await isolated(searched, everything[:-1])
    assert_all_is_decided(search, searched, everything[:-1])


async def test_a_recent_window_of_a_strict_receiver_is_tried_sample_by_sample() -> None:
    searched = windows(1, 100)
    everything = samples_of(searched)
    search = await isolated(searched, everything[:-1], strict=True)
    assert_all_is_decided(search, searched, everything[:-1])


async def test_windows_that_all_answer_500_are_told_from_an_outage() -> None:
    old = NOW_MS - 7_200_000
    searched = windows(4, 200, newest_ms=old)
    bad = [sample for sample in samples_of(searched) if sample[0] < old]
    search = await isolated(searched, bad, status=500)
    assert_all_is_decided_but_repeated(search, searched, bad)


async def test_the_largest_part_that_was_taken_is_known_after_a_refusal_for_size() -> None:
    search = await isolated(windows(8, 100), [], most_samples=250, status=413)
    assert search.isolation is not None
    assert search.isolation.largest_taken_bytes == 100 * 200
    assert search.isolation.declined_samples == 0


@pytest.mark.parametrize("at", [0, 1, 5, 9])
@pytest.mark.parametrize("status", [400, 500])
async def test_an_interrupted_search_decides_on_nothing_more(at: int, status: int) -> None:
    searched = windows(4, 50)
    bad = samples_of(searched)[3::40]
    search = await isolated(searched, bad, status=status, interrupt_at=at)
    assert search.isolation is not None
    assert search.isolation.interrupted is Interrupted.STOPPING
    assert set(search.declined) <= set(bad)
    assert set(search.taken) <= set(search.receiver.stored)


async def test_a_search_keeps_of_its_batch_only_what_is_in_doubt() -> None:
    class Series(dict[int, bytes]):
        """To see whether somebody has it."""

    made = windows(4, 50)
    labels = Series(made.series)
    bad, kept = samples_of(made)[7], weakref.ref(labels)
    searched = [Batch(made.buckets, labels)]
    del labels
    search = Search(Receiver(frozenset([bad]).__contains__, status=500))
    is_kept: list[bool] = []

    async def rest(_seconds: float) -> bool:
        gc.collect()
        is_kept.append(kept() is not None)
        return True

    search.rest = rest  # type: ignore[method-assign,assignment]
    await search.run(searched.pop(), Later("whole", Fate.RETRY, 500))
    assert is_kept == [False]
