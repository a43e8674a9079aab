"""Backfilling: what there is to fetch, and how it is fetched, delivered and ended."""

from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import acknowledge_all
from worker.backfill import BackfillPlan, plan_backfill, seconds_for
from worker.buckets import Bucket, Window
from worker.cloudflare import (
    Answered,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    ErrorKind,
    Failed,
    Narrowed,
    Priority,
    Quota,
    Samples,
    Scope,
    ScopeAnswer,
    shipped,
)
from worker.config import DEFAULT_TOKEN, CloudflareSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import (
    Backfill,
    BackfillResult,
    HoleReason,
    Job,
    Ledger,
    OutOfReach,
    ResendCount,
    ask,
    ask_to_cancel,
    capture,
    hole_counts,
    job,
    record_scopes,
    register_destinations,
)
from worker.ledger import Scope as KnownScope
from worker.repair import LOOP, Backfiller, Repairer, backfill
from worker.series import label_block

MINUTE = 60
HOUR = 3600
T0 = 1_750_032_000  # 2025-06-16T00:00:00Z
NOW = T0 + 12 * HOUR + 900.0
HTTP = shipped()["http_requests"]
LINE = f"what Cloudflare says: {ErrorKind.SERVER}"

Verdict = Narrowed | Denied | ApiFailure


def tag(number: int) -> str:
    return f"{number:032x}"


@dataclass
class FakeCloudflare:
    """Cloudflare as a backfill knows it; `failure` is the answer to every query while it is there."""

    clock: JumpingClock
    verdicts: dict[tuple[str, int], Verdict] = field(default_factory=dict)
    failure: ApiFailure | None = None
    asked: list[tuple[int, str, int]] = field(default_factory=list)
    ahead_seconds: float | None = None

    @cached_property
    def quota(self) -> Quota:
        return Quota(self.clock)

    async def discover(
        self, datasets: Sequence[Dataset], width_seconds: int, scopes: Sequence[Scope], *, priority: Priority
    ) -> Mapping[tuple[str, str], Verdict]:
        assert priority is Priority.BACKFILL
        return {
            (dataset.name, scope.tag): self.verdicts.get((scope.tag, width_seconds), Narrowed(dataset))
            for dataset in datasets
            for scope in scopes
        }

    async def fetch(
        self, datasets: Sequence[Dataset], width: int, scopes: Sequence[Scope], starts: range, *, priority: Priority
    ) -> list[ScopeAnswer]:
        assert priority is Priority.BACKFILL
        answers: list[ScopeAnswer] = []
        for dataset in datasets:
            for scope in scopes:
                self.asked += [(width, scope.tag, start) for start in starts]
                if self.failure is not None:
                    answers.append(Failed(dataset, scope, starts, self.failure))
                    continue
                series = (label_block("cloudflare_zone_requests", {"zone_id": scope.tag}),)
                windows = {start: Samples(series, array("d", [float(start)])) for start in starts}
                answers.append(Answered(dataset, scope, windows))
        return answers


@dataclass
class Scene:
    clock: JumpingClock
    api: FakeCloudflare
    ledger: Ledger
    settings: CloudflareSettings

    async def plan(self, wanted: Backfill, settings: CloudflareSettings | None = None) -> BackfillPlan:
        return await plan_backfill(
            wanted,
            [HTTP],
            settings=settings or self.settings,
            ledger=self.ledger,
            api=cast(CloudflareApi, self.api),
            now=self.clock.now(),
        )

    async def captured(self, zone: int, starts: Sequence[int], width_seconds: int = HOUR) -> None:
        series = (label_block("cloudflare_zone_requests", {"zone_id": tag(zone)}),)
        buckets = [
            Bucket("http_requests", tag(zone), Window(start, width_seconds), start * 1000, series, array("d", [1.0]))
            for start in starts
        ]
        await self.ledger.write(capture, buckets, self.clock.now())
        await acknowledge_all(self.ledger)

    def repairer(self, *, max_ledger_bytes: int = 2**30) -> Repairer:
        backfiller = Backfiller(
            self.settings,
            catalogue=shipped(),
            collected=[HTTP],
            max_ledger_bytes=max_ledger_bytes,
            apis={DEFAULT_TOKEN: cast(CloudflareApi, self.api)},
            ledger=self.ledger,
            clock=self.clock,
        )
        health = Health(self.clock)
        health.expect(LOOP, allowance_seconds=120, liveness_seconds=120)
        return Repairer(ledger=self.ledger, clock=self.clock, health=health, carriers={Backfill: backfiller})

    async def ask(self, wanted: Backfill) -> int:
        return await self.ledger.write(ask, wanted, reason="", asked_by="", now=self.clock.now())

    async def found(self, number: int) -> Job:
        found = await self.ledger.read(job, number)
        assert found is not None
        return found

    async def result(self, number: int) -> BackfillResult:
        result = (await self.found(number)).result
        assert isinstance(result, BackfillResult)
        return result


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Two zones of which nothing is captured."""
    clock = JumpingClock(NOW)
    ledger = Ledger.open(tmp_path / "ledger.db")
    zones = [KnownScope(tag(number), f"zone{number}.example", "a" * 32, "Example", "pro") for number in (1, 2)]
    await ledger.write(record_scopes, zones, NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    settings = CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=2)
    yield Scene(clock, FakeCloudflare(clock), ledger, settings)
    await ledger.close()


def missing(plan: BackfillPlan) -> dict[tuple[int, int], list[range]]:
    """What a plan would fetch, by width and zone."""
    return {
        (each.width_seconds, int(zone, 16)): list(found.windows)
        for each in plan.worklists
        for zone, found in each.outstanding.items()
    }


def hours(first: int, last: int) -> range:
    return range(T0 + first * HOUR, T0 + last * HOUR, HOUR)


TODAY = Backfill(T0, int(NOW))

# ------------------------------------------------------------------------------------------------------------ plan


async def test_what_has_no_bucket_is_missing_whether_it_was_expected_or_not(scene: Scene) -> None:
    await scene.captured(1, [*hours(3, 5), *hours(8, 9)])
    plan = await scene.plan(TODAY)
    assert missing(plan) == {(HOUR, 1): [hours(0, 3), hours(5, 8), hours(9, 12)], (HOUR, 2): [hours(0, 12)]}
    assert (plan.windows, plan.requests(), plan.out_of_reach, plan.not_final) == (21, 4, (), 0)


async def test_windows_that_are_not_final_are_left_to_the_worker(scene: Scene) -> None:
    scene.clock.set(NOW - 600)
    plan = await scene.plan(replace(TODAY, until=int(T0 + 12 * HOUR)))
    assert missing(plan) == {(HOUR, zone): [hours(0, 11)] for zone in (1, 2)}
    assert plan.not_final == 2


async def test_only_whole_windows_and_only_the_zones_that_are_named(scene: Scene) -> None:
    plan = await scene.plan(Backfill(T0 + 1, T0 + 3 * HOUR - 1, zones=("zone2.example",)))
    assert missing(plan) == {(HOUR, 2): [hours(1, 2)]}


async def test_what_a_plan_denies_and_what_is_too_old_is_out_of_reach(scene: Scene) -> None:
    scene.api.verdicts = {
        (tag(1), HOUR): Denied("the plan does not include it"),
        (tag(2), HOUR): Narrowed(HTTP, retention_seconds=6 * HOUR),
    }
    plan = await scene.plan(TODAY)
    # Six hours before a quarter past twelve is a quarter past six: that hour has begun by then.
    assert missing(plan) == {(HOUR, 2): [hours(7, 12)]}
    assert set(plan.out_of_reach) == {
        OutOfReach("http_requests", 12, HoleReason.DENIED, "the plan does not include it"),
        OutOfReach("http_requests", 7, HoleReason.EXPIRED, "Cloudflare keeps windows of 1h for 6h"),
    }


async def test_what_is_not_known_of_a_zone_is_asked_for(scene: Scene) -> None:
    scene.api.verdicts = {(tag(1), HOUR): ApiFailure(ErrorKind.SERVER, "503")}
    assert (await scene.plan(TODAY)).windows == 24


async def test_wider_windows_are_taken_only_when_told_to_and_where_no_narrow_one_was_captured(scene: Scene) -> None:
    minutes = scene.settings.model_copy(update={"bucket_seconds": MINUTE})
    await scene.captured(1, [T0 + 2 * HOUR + 5 * MINUTE], MINUTE)
    scene.api.verdicts = {
        (tag(number), width): Narrowed(HTTP, retention_seconds=8 * HOUR)
        for number in (1, 2)
        for width in HTTP.widths_seconds
        if width < HOUR
    }
    wanted = Backfill(T0 + 30 * MINUTE, T0 + 5 * HOUR)
    kept = int(NOW) - 8 * HOUR  # a quarter past four

    plan = await scene.plan(wanted, minutes)
    assert missing(plan) == {(MINUTE, zone): [range(kept, T0 + 5 * HOUR, MINUTE)] for zone in (1, 2)}
    (lost,) = plan.out_of_reach
    assert lost.windows == 2 * 225 - 1

    plan = await scene.plan(replace(wanted, coarser=True), minutes)
    assert missing(plan) == {
        (MINUTE, 1): [range(kept, T0 + 5 * HOUR, MINUTE)],
        (MINUTE, 2): [range(kept, T0 + 5 * HOUR, MINUTE)],
        (HOUR, 1): [hours(1, 2), hours(3, 4)],
        (HOUR, 2): [hours(1, 4)],
    }
    # Half an hour before, a quarter after, and of the first zone the hour of which it has a minute.
    (lost,) = plan.out_of_reach
    assert (lost.windows, lost.reason) == (2 * 45 + 59, HoleReason.EXPIRED)


async def test_narrow_windows_are_not_fetched_where_a_wider_one_was_captured(scene: Scene) -> None:
    minutes = scene.settings.model_copy(update={"bucket_seconds": MINUTE})
    await scene.captured(1, [T0 + HOUR])
    await scene.captured(2, [T0 + HOUR])
    plan = await scene.plan(Backfill(T0 + HOUR - 2 * MINUTE, T0 + 2 * HOUR + MINUTE), minutes)
    before, after = (
        range(T0 + HOUR - 2 * MINUTE, T0 + HOUR, MINUTE),
        range(T0 + 2 * HOUR, T0 + 2 * HOUR + MINUTE, MINUTE),
    )
    assert missing(plan) == {(MINUTE, zone): [before, after] for zone in (1, 2)}


def test_a_backfill_takes_the_pace_of_what_a_person_asked_for() -> None:
    # 16 % of 300 requests are 48 a minute.
    assert seconds_for(96, 300) == 120
    assert seconds_for(0, 300) == 0


# ----------------------------------------------------------------------------------------------------- carrying out


async def test_what_is_missing_is_fetched_delivered_and_on_record(scene: Scene) -> None:
    await scene.captured(1, hours(3, 12))
    repairer = scene.repairer()
    number = await scene.ask(replace(TODAY, zones=(tag(1),)))

    while await repairer.step_all():
        pass
    assert scene.api.asked == [(HOUR, tag(1), start) for start in hours(0, 3)]
    waiting = await scene.found(number)
    assert (waiting.state, waiting.progress.done, waiting.progress.total) == ("running", 3, 3)
    await acknowledge_all(scene.ledger)
    assert await repairer.step_all()

    assert (await scene.found(number)).state == "done"
    assert await scene.result(number) == BackfillResult(3, 3, (), (ResendCount("prom", "acknowledged", 3, 3),))
    assert (await scene.plan(replace(TODAY, zones=(tag(1),)))).windows == 0


async def test_whoever_goes_on_after_a_kill_asks_only_for_what_is_missing_still(scene: Scene) -> None:
    number = await scene.ask(Backfill(T0, T0 + 2 * HOUR))
    await scene.repairer().step_all()
    asked = list(scene.api.asked)
    assert len(asked) == 4
    await acknowledge_all(scene.ledger)

    repairer = scene.repairer()
    while await repairer.step_all():
        pass
    assert scene.api.asked == asked
    assert (await scene.found(number)).state == "done"
    assert (await scene.result(number)).buckets == 4


async def test_while_cloudflare_does_not_answer_it_waits_longer_and_longer_and_then_goes_on(scene: Scene) -> None:
    scene.api.failure = ApiFailure(ErrorKind.SERVER, LINE)
    repairer = scene.repairer()
    number = await scene.ask(Backfill(T0, T0 + HOUR))
    assert await repairer.step_all()
    assert not await repairer.step_all()
    assert (await scene.found(number)).progress.note == f"waits for Cloudflare: {LINE}"
    asked = len(scene.api.asked)
    for seconds in (30, 60):
        scene.clock.set(scene.clock.now() + seconds - 1)
        assert not await repairer.step_all()
        scene.clock.set(scene.clock.now() + 1)
        assert await repairer.step_all()
        assert len(scene.api.asked) > asked
        asked = len(scene.api.asked)

    scene.api.failure = None
    scene.clock.set(scene.clock.now() + 1800)
    while await repairer.step_all():
        await acknowledge_all(scene.ledger)
    assert (await scene.found(number)).state == "done"
    assert (await scene.result(number)).buckets == 2


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ApiFailure(ErrorKind.RETENTION, "too old", bound_seconds=3600), HoleReason.EXPIRED),
        (ApiFailure(ErrorKind.RETENTION, "too old"), HoleReason.EXPIRED),
        (ApiFailure(ErrorKind.PLAN_DATASET, "no access"), HoleReason.DENIED),
        (ApiFailure(ErrorKind.REFUSED, "unknown field"), HoleReason.FAILED),
    ],
)
async def test_what_cloudflare_does_not_give_is_given_up_with_its_reason(
    scene: Scene, failure: ApiFailure, reason: HoleReason
) -> None:
    scene.api.failure = failure
    repairer = scene.repairer()
    number = await scene.ask(Backfill(T0, T0 + 2 * HOUR))
    while await repairer.step_all():
        pass
    done = await scene.found(number)
    assert (done.state, done.progress.done, done.progress.total) == ("done", 4, 4)
    assert (await scene.result(number)).out_of_reach == (OutOfReach("http_requests", 4, reason, failure.message),)
    assert await scene.ledger.read(hole_counts, since=0) == {("http_requests", reason): 4}


async def test_a_ledger_that_has_reached_its_size_makes_it_wait(scene: Scene) -> None:
    repairer = scene.repairer(max_ledger_bytes=1)
    number = await scene.ask(TODAY)
    assert not await repairer.step_all()
    assert not scene.api.asked
    assert (await scene.found(number)).progress.note == "the ledger has reached LEDGER_MAX_BYTES"


async def test_what_was_fetched_before_is_delivered_first(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "STEP_BUCKETS", 3)
    monkeypatch.setattr(backfill, "_QUERIES_AT_ONCE", 1)
    monkeypatch.setattr("worker.outstanding.WINDOWS_PER_QUERY", 2)
    repairer = scene.repairer()
    await scene.ask(TODAY)
    assert await repairer.step_all()
    assert not await repairer.step_all()
    assert len(scene.api.asked) == 4
    await acknowledge_all(scene.ledger)
    assert await repairer.step_all()


async def test_one_that_is_cancelled_fetches_nothing_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "_QUERIES_AT_ONCE", 1)
    monkeypatch.setattr("worker.outstanding.WINDOWS_PER_QUERY", 2)
    repairer = scene.repairer()
    number = await scene.ask(TODAY)
    await repairer.step_all()
    await scene.ledger.write(ask_to_cancel, number, NOW)
    assert not await repairer.step_all(), "what was fetched is delivered first"
    await acknowledge_all(scene.ledger)
    assert await repairer.step_all()
    assert len(scene.api.asked) == 4
    assert (await scene.found(number)).state == "cancelled"
    assert (await scene.result(number)).buckets == 4


async def test_a_dataset_that_is_in_the_catalogue_no_more_is_not_taken_for_all(scene: Scene) -> None:
    number = await scene.ask(replace(TODAY, datasets=("gone", "http_requests")))
    assert await scene.repairer().step_all()
    assert scene.api.asked
    scene.api.asked.clear()
    await scene.ledger.write(ask_to_cancel, number, NOW)
    await acknowledge_all(scene.ledger)

    number = await scene.ask(replace(TODAY, datasets=("gone",)))
    repairer = scene.repairer()
    while await repairer.step_all():
        pass
    assert scene.api.asked == []
    assert (await scene.found(number)).state == "done"


async def test_a_volume_that_is_full_makes_it_wait_and_takes_nothing_along(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await scene.ask(TODAY)
    repairer = scene.repairer()

    def full(*_args: object, **_words: object) -> None:
        message = "no room is left"
        raise LedgerFullError(message)

    with monkeypatch.context() as patch:
        patch.setattr(backfill, "capture_for", full)
        assert not await repairer.step_all()
        scene.api.asked.clear()
        patch.setattr(backfill, "prove_writable", full)
        assert not await repairer.step_all()
        assert not scene.api.asked, "in vain"
    assert (await scene.found(number)).is_open
    assert await repairer.step_all()
    assert (await scene.found(number)).progress.done == 24


async def test_a_repair_that_meets_a_defect_is_given_up_and_takes_nothing_along(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await scene.ask(TODAY)
    monkeypatch.setattr(FakeCloudflare, "discover", lambda *_args, **_words: 1 / 0)
    assert await scene.repairer().step_all()
    found = await scene.found(number)
    assert found.state == "failed"
    assert found.progress.note.startswith("ZeroDivisionError")
