"""A walk through what was captured, with a receiver that says what a test wants."""

import asyncio
import random
from array import array
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.ledger.fleet import HOUR, NOW, T0, acknowledge_all, bucket, pending_ids, tag
from tests.unit.reading_back import EVERYTHING, HOURS, Scene, reading_back, stored
from worker.comparison import ExtraSample
from worker.findings import with_looked
from worker.ledger import (
    DeliveryCount,
    NotRead,
    Refusal,
    Resend,
    ResendCount,
    ResendResult,
    Undelivered,
    Verify,
    VerifyCount,
    VerifyResult,
    ask,
    ask_to_cancel,
    capture,
    delivery_counts,
    expire,
    job,
    next_pending,
    refusals,
    refuse,
    register_destinations,
)
from worker.remote_write import Fate, Found, Later, Selector
from worker.series import label_block, parse_label_block
from worker.verification import END, Looked


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with reading_back(tmp_path, monkeypatch) as made:
        yield made


async def test_what_is_asked_for_is_the_zone_and_its_time_and_no_more(scene: Scene) -> None:
    scene.answers = [lambda: Found(stored())]

    result = await scene.verified()

    zone = dict(next(iter(stored())))["zone_id"]
    selector = Selector(("cloudflare_zone_requests",), {"zone_id": (zone,)})
    assert scene.asked == [(selector, T0 * 1000, (T0 + 3 * HOUR) * 1000)]
    assert result.totals == (VerifyCount("prom", equal=12),)
    assert result.is_good


async def test_what_is_shown_late_is_waited_for(scene: Scene) -> None:
    scene.answers = [lambda: Found({}), lambda: Found(stored(range(2))), lambda: Found(stored())]
    assert (await scene.verified()).is_good
    assert scene.clock.slept == [5.0, 5.0]


async def test_what_is_not_shown_half_a_minute_after_it_was_acknowledged_is_missing(scene: Scene) -> None:
    scene.answers = [lambda: Found(stored(range(3)))]

    result = await scene.verified()

    assert result.totals == (VerifyCount("prom", equal=9, missing=3),)
    assert not result.is_good
    assert sum(scene.clock.slept) == 30
    assert {each.timestamp_ms for each in result.examples} == {(T0 + 3 * HOUR) * 1000}
    (count,) = result.unequal
    assert (count.metric, count.zone, count.missing) == ("cloudflare_zone_requests", "zone-1.example", 3)


async def test_a_receiver_that_fails_for_a_while_is_asked_again(scene: Scene) -> None:
    busy = Later("busy", Fate.RATE_LIMITED, 429, 7.0)
    scene.answers = [lambda: Later("down"), lambda: busy, lambda: Found(stored())]
    assert (await scene.verified()).is_good
    assert scene.clock.slept == [1.0, 7.0]


@pytest.mark.parametrize(("fate", "attempts"), [(Fate.RETRY, 5), (Fate.PARK, 1)])
async def test_one_that_cannot_be_read_is_never_taken_for_empty(scene: Scene, fate: Fate, attempts: int) -> None:
    scene.answers = [lambda: Later("out of order", fate, 503)]
    await scene.ledger.write(register_destinations, {"prom": False, "thanos": False}, replay_since=0, now=NOW)

    result = await scene.verified()

    assert result.totals == ()
    assert len(scene.asked) == attempts
    assert result.not_read[0] == NotRead("prom", "out of order")
    assert result.not_read[1].destination == "thanos"
    assert "query_url: is required" in result.not_read[1].reason
    assert not result.is_good
    healing = (await scene.carried_out(Resend(T0, T0 + HOUR, destinations=("prom",), only_missing=True))).result
    assert isinstance(healing, ResendResult)
    assert healing.outcome == (ResendCount("prom", "not read back", 0, 0),)
    assert healing.reasons == (Undelivered("prom", "not read back", 0, int(scene.clock.now()), 503, "out of order"),)


async def test_a_large_walk_goes_on_where_the_record_says(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.remote_write.read_back._MOST_SAMPLES", 5)
    scene.answers = [lambda: Found(stored())]
    number = await scene.ledger.write(ask, EVERYTHING, reason="", asked_by="", now=NOW, total=4)
    for done in (1, 2):
        await scene.repairer.step_all()
        found = await scene.ledger.read(job, number)
        assert found is not None
        assert (found.progress.done, found.progress.total) == (done, 4)
    await scene.ledger.write(ask_to_cancel, number, NOW)
    await scene.repairer.step_all()
    found = await scene.ledger.read(job, number)
    assert found is not None
    assert found.state == "cancelled"
    assert isinstance(found.result, VerifyResult)
    assert found.result.totals[0].equal == 6
    assert [at for _, at, _ in scene.asked] == [T0 * 1000, (T0 + HOUR) * 1000]


async def test_a_walk_that_is_cut_off_anywhere_finds_and_queues_everything_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.remote_write.read_back._MOST_SAMPLES", 3)
    scene.answers = [lambda: Found(stored(range(2)))]
    wanted = Resend(T0, T0 + 9 * HOUR, only_missing=True)
    number = await scene.ledger.write(ask, wanted, reason="", asked_by="", now=NOW)
    dice = random.Random(5)
    found = await scene.ledger.read(job, number)
    lives = 0
    while found is not None and found.progress.after != END:
        lives += 1
        working = asyncio.create_task(scene.repairer.step_all())
        # Longer and longer ones: the ledger's thread is as fast as the machine.
        for _ in range(dice.randint(0, 300 * lives)):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        found = await scene.ledger.read(job, number)

    assert found is not None
    assert found.result == ResendResult(
        queued=(ResendCount("prom", "acknowledged", 2, 6),), read_back=(ResendCount("prom", "already there", 2, 6),)
    )
    assert len(await pending_ids(scene.ledger)) == 2
    assert lives > HOURS + 1, "nothing was cut off"


async def test_what_waits_or_was_refused_is_no_loss_and_what_waits_is_left_alone(scene: Scene) -> None:
    await scene.ledger.write(capture, [bucket(1, hour) for hour in (HOURS, HOURS + 1)], NOW)
    waiting, partial = await pending_ids(scene.ledger)
    refused = Refusal(partial, array("I", [2]).tobytes(), 400, "no")
    await scene.ledger.write(refuse, "prom", [refused], partly=[partial], now=NOW - 60)
    scene.answers = [lambda: Found(stored(range(HOURS)))]

    assert (await scene.verified()).totals == (VerifyCount("prom", equal=12, missing=2, undelivered=4),)
    number = await scene.ledger.write(
        ask, Resend(T0, T0 + 9 * HOUR, only_missing=True), reason="", asked_by="", now=NOW
    )
    await scene.repairer.step_all()
    found = await scene.ledger.read(job, number)
    assert found is not None
    assert isinstance(found.result, ResendResult)
    assert found.result.queued == (ResendCount("prom", "partial", 1, 3),)
    assert set(await pending_ids(scene.ledger)) == {waiting, partial}

    await acknowledge_all(scene.ledger, "prom", [partial])
    while await scene.repairer.step_all():
        pass
    found = await scene.ledger.read(job, number)
    assert found is not None
    assert isinstance(found.result, ResendResult)
    assert found.state == "done"
    assert ResendCount("prom", "pending", 1, 3) in found.result.outcome, "what waits is not there yet"


async def test_series_that_relabelling_makes_one_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [{"regex": "country", "action": "labeldrop"}]
    async with reading_back(tmp_path, monkeypatch, write_relabel_configs=rules) as scene:
        await scene.ledger.write(capture, [bucket(1, HOURS)], NOW)
        (partial,) = await pending_ids(scene.ledger)
        twice = Refusal(partial, array("I", [2, 3]).tobytes(), None, "the same labels as another series")
        await scene.ledger.write(refuse, "prom", [twice], partly=[partial], now=NOW)
        there = stored(range(HOURS + 1))
        first = next(labels for labels in there if ("country", "C0") in labels)
        scene.answers = [lambda: Found({first - {("country", "C0")}: there[first]})]
        assert (await scene.verified()).totals == (VerifyCount("prom", equal=5),)
        sent = (await scene.carried_out(Resend(T0, T0 + 9 * HOUR, only_missing=True))).result
        assert isinstance(sent, ResendResult)
        assert sent.queued == ()
        # What cannot be sent is not proven by what can.
        assert {count.state: count.buckets for count in await scene.ledger.read(delivery_counts)}["partial"] == 1


async def test_a_metric_that_is_not_picked_is_not_looked_at(scene: Scene) -> None:
    scene.answers = [lambda: Found(stored())]
    assert (await scene.verified(Verify(T0, T0 + 9 * HOUR, metrics=("cloudflare_other",)))).totals == (
        VerifyCount("prom"),
    )
    assert scene.asked == []


async def test_a_result_has_a_bound_whatever_was_found() -> None:
    result = VerifyResult()
    labels = [frozenset({"__name__": f"metric_{number}", "zone": "z"}.items()) for number in range(1000)]
    seen = Looked((), tuple(ExtraSample(each, 0, 1.0) for each in labels), (), 0, {}, {})
    for _ in range(2):
        result = with_looked(result, "prom", seen)
    assert result.totals == (VerifyCount("prom", extra=2000),)
    assert (len(result.unequal), len(result.examples)) == (200, 20)
    assert result.unlisted >= 800


def states_of(counts: Iterable[DeliveryCount]) -> dict[str, int]:
    return {count.state: count.buckets for count in counts}


@pytest.mark.parametrize("state", ["partial", "refused", "expired"])
async def test_what_is_not_there_and_is_not_sent_is_not_acknowledged_with_the_rest(scene: Scene, state: str) -> None:
    await scene.ledger.write(capture, [bucket(1, HOURS)], NOW)
    (number,) = await pending_ids(scene.ledger)
    series = [1] if state == "partial" else [1, 2, 3]
    refused = Refusal(number, array("I", series).tobytes(), 400, "duplicate sample for timestamp")
    if state == "expired":
        await scene.ledger.write(expire, ended_before=NOW, now=NOW)
    else:
        await scene.ledger.write(refuse, "prom", [refused], partly=[number] * (state == "partial"), now=NOW)
    # Of its three samples one has another value there, one is as it should be, and one is not there.
    there = stored(range(HOURS + 1))
    other, _, missing = (frozenset(parse_label_block(block).items()) for block in bucket(1, HOURS).series)
    at, value = there[other][-1]
    there[other][-1] = at, value + 1
    del there[missing][-1]
    scene.answers = [lambda: Found(there)]

    await scene.ledger.write(ask, Resend(T0, T0 + 9 * HOUR, only_missing=True), reason="", asked_by="", now=NOW)
    await scene.repairer.step_all()
    pending = await scene.ledger.read(next_pending, "prom", after=None, max_samples=9, one_window_per_series=False)
    assert pending is not None
    assert [array("I", each.series_ids).tolist() for each in pending.batch.buckets] == [[3]]
    await acknowledge_all(scene.ledger)

    assert states_of(await scene.ledger.read(delivery_counts)) == {"acknowledged": HOURS, "partial": 1}
    (left,) = await scene.ledger.read(refusals, "prom", newest=9)
    assert left.series == bucket(1, HOURS).series[:1]
    assert ("duplicate" in left.reason) == (state != "expired")


async def test_what_was_refused_of_another_metric_stays_refused_when_one_is_sent_again(scene: Scene) -> None:
    others = bucket(1, HOURS)
    series = (label_block("cloudflare_other", {"zone_id": tag(1)}), *others.series)
    await scene.ledger.write(capture, [replace(others, series=series, values=array("d", [9.0, *others.values]))], NOW)
    (number,) = await pending_ids(scene.ledger)
    refused = Refusal(number, array("I", [4]).tobytes(), 400, "no")
    await scene.ledger.write(refuse, "prom", [refused], partly=[number], now=NOW - 60)
    scene.answers = [lambda: Found(stored(range(HOURS)))]

    wanted = Resend(T0, T0 + 9 * HOUR, metrics=("cloudflare_zone_requests",), only_missing=True)
    await scene.ledger.write(ask, wanted, reason="", asked_by="", now=NOW)
    await scene.repairer.step_all()
    await acknowledge_all(scene.ledger)

    assert states_of(await scene.ledger.read(delivery_counts)) == {"acknowledged": HOURS, "partial": 1}


async def test_a_destination_that_whoever_holds_the_ledger_does_not_know_is_told_and_not_taken_for_whole(
    scene: Scene,
) -> None:
    verified = await scene.verified(replace(EVERYTHING, destinations=("added_today",)))
    assert not verified.is_good
    assert [each.destination for each in verified.not_read] == ["added_today"]
    resent = (await scene.carried_out(Resend(T0, T0 + 9 * HOUR, destinations=("added_today",)))).result
    assert isinstance(resent, ResendResult)
    assert resent.outcome == (ResendCount("added_today", "not configured", 0, 0),)
