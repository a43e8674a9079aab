import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.clocks import JumpingClock
from worker.buckets import Bucket, Window
from worker.cloudflare import (
    Account,
    Answered,
    Api,
    ApiFailure,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    Priority,
    Quota,
    Samples,
    Scope,
    ScopeAnswer,
    Zone,
    shipped,
)
from worker.config import CloudflareSettings
from worker.drift import INTERVAL_SECONDS, DriftMeter
from worker.errors import LedgerFullError
from worker.health import Health
from worker.lateness import FEWEST_WINDOWS
from worker.ledger import Ledger, capture, logged_requests, newest_readings, present_scopes, record_scopes
from worker.ledger import Scope as KnownScope
from worker.observe import Metrics
from worker.series import label_block

HOUR = 3600
DELAY = 600
START = 1_750_032_000 // HOUR * HOUR - HOUR
NOW = START + HOUR + DELAY  # the window from START on has just become final
ROLLUP = shipped()["http_requests"]
SAMPLED = next(each for each in shipped().values() if each.is_sampled and each.scope == "zone")
OF_ACCOUNTS = next(each for each in shipped().values() if each.scope == "account" and HOUR in each.widths_seconds)
QUARTER, FULL, SIX = 900, HOUR, 6 * HOUR


def zone(number: int, name: str | None = None) -> Zone:
    return Zone(f"{number:032x}", name or f"zone{number:02}.example", "a" * 32, "Example", "pro")


ACCOUNT = Account("a" * 32, "Example")


def known(scope: Scope) -> KnownScope:
    match scope:
        case Zone():
            return KnownScope(scope.tag, scope.name, scope.account_tag, scope.account_name, scope.plan)
        case Account():
            return KnownScope(scope.tag, scope.name, scope.tag, scope.name, "")


@dataclass(frozen=True)
class Asked:
    dataset: str
    tags: tuple[str, ...]
    starts: tuple[int, ...]
    priority: Priority


@dataclass
class FakeCloudflare:
    """Cloudflare as the meter knows it: every window has 100 requests at first, and what `late` adds."""

    clock: JumpingClock
    late: dict[tuple[str, int], float] = field(default_factory=dict)
    fault: ApiFailure | None = None
    then: Callable[[], None] = lambda: None
    asked: list[Asked] = field(default_factory=list)
    quota: Quota = field(init=False)

    def __post_init__(self) -> None:
        self.quota = Quota(self.clock)

    async def fetch(
        self, datasets: Sequence[Dataset], width: int, scopes: Sequence[Scope], starts: Sequence[int], **how: Any
    ) -> list[ScopeAnswer]:
        (dataset,) = datasets
        self.asked.append(Asked(dataset.name, tuple(each.tag for each in scopes), tuple(starts), how["priority"]))
        self.quota.remember(Api.GRAPHQL, [0.0])
        self.then()
        run = range(starts[0], starts[-1] + width, width)
        if self.fault:
            return [Failed(dataset, each, run, self.fault) for each in scopes]
        return [
            Answered(dataset, each, {start: self.samples(dataset, each, start) for start in run}) for each in scopes
        ]

    def samples(self, dataset: Dataset, scope: Scope, start: int) -> Samples:
        (metric, _), *_ = dataset.metrics()
        late = self.late.get((scope.tag, start), 0.0)
        series = tuple(label_block(metric.name, scope.labels() | {"n": str(number)}) for number in range(2))
        return Samples(series, array("d", [60.0, 40.0 + late]))


@dataclass
class Scene:
    """A meter between a Cloudflare that a test makes up and a real ledger."""

    clock: JumpingClock
    api: FakeCloudflare
    ledger: Ledger
    metrics: Metrics
    settings: CloudflareSettings
    datasets: list[Dataset]
    meter: DriftMeter
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def restarted(self, **changes: Any) -> "Scene":
        """The same with another meter, as after a restart of the worker."""
        settings = self.settings.model_copy(update=changes)
        return replace(self, meter=new_meter(self, settings, self.datasets), settings=settings)

    async def listed(self, *scopes: Scope) -> None:
        await self.ledger.write(record_scopes, [known(scope) for scope in scopes], self.clock.now())

    async def captured(
        self, *scopes: Scope, start: int = START, dataset: Dataset = ROLLUP, late_by: float = 0.0
    ) -> None:
        """Capture a window as Cloudflare shows it now."""
        window = Window(start, HOUR)
        buckets = []
        for scope in scopes:
            samples = self.api.samples(dataset, scope, start)
            buckets.append(Bucket(dataset.name, scope.tag, window, start * 1000, samples.series, samples.values))
        await self.ledger.write(capture, buckets, window.end + DELAY + late_by)

    async def pass_at(self, moment: float) -> list[Asked]:
        """What a pass at this moment asks for."""
        self.clock.set(moment)
        before = len(self.api.asked)
        await self.meter.read_due(self.stopping)
        return self.api.asked[before:]

    async def readings(self, dataset: Dataset = ROLLUP) -> list[tuple[int, int, int, float | None]]:
        """Bucket, delay, differing samples and relative difference of every reading."""
        return sorted(
            (each.bucket_id, each.after_seconds, each.samples_differing, each.relative_difference)
            for each in await self.ledger.read(newest_readings, dataset.name, most=1000)
        )

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics._registry.get_sample_value(f"cfrw_drift_{name}", labels)


def new_meter(scene: Scene, settings: CloudflareSettings, datasets: Sequence[Dataset]) -> DriftMeter:
    return DriftMeter(
        settings,
        datasets=datasets,
        api=cast(CloudflareApi, scene.api),
        ledger=scene.ledger,
        clock=scene.clock,
        metrics=scene.metrics,
    )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = JumpingClock(NOW)
    datasets = [ROLLUP, SAMPLED, OF_ACCOUNTS]
    made = Scene(
        clock=clock,
        api=FakeCloudflare(clock),
        ledger=Ledger.open(tmp_path / "ledger.db"),
        metrics=Metrics(clock, Health(clock), version="1", sqlite_version="3"),
        settings=CloudflareSettings(api_token=SecretStr("t"), delay_seconds=DELAY, drift_sample_percent=100),
        datasets=datasets,
        meter=cast(DriftMeter, None),
    )
    made.meter = new_meter(made, made.settings, datasets)
    await made.listed(zone(1), zone(2), zone(3), ACCOUNT)
    yield made
    await made.ledger.close()


def everything_but_readings(session: Any) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: session._connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - names of this file
        for table in ("bucket", "delivery", "series", "hole", "drift")
    }


# ----------------------------------------------------------------------------------------------- what is read, when


async def test_a_window_is_read_again_after_each_delay_and_not_a_second_before(scene: Scene) -> None:
    await scene.captured(zone(1))
    for after in (QUARTER, FULL, SIX):
        assert await scene.pass_at(NOW + after - 1) == []
        assert await scene.pass_at(NOW + after) == [Asked(ROLLUP.name, (zone(1).tag,), (START,), Priority.DRIFT)]
    assert await scene.pass_at(NOW + 2 * SIX) == []
    assert await scene.readings() == [(1, QUARTER, 0, 0.0), (1, FULL, 0, 0.0), (1, SIX, 0, 0.0)]


async def test_windows_of_a_dataset_that_start_together_travel_together_ten_at_a_time(scene: Scene) -> None:
    zones = [zone(number) for number in range(1, 13)]
    await scene.listed(*zones, ACCOUNT)
    await scene.captured(*zones)
    await scene.captured(zone(1), dataset=SAMPLED)
    await scene.captured(ACCOUNT, dataset=OF_ACCOUNTS)
    await scene.captured(zone(1), start=START + HOUR)
    asked = await scene.pass_at(NOW + QUARTER)
    assert sorted((each.dataset, len(each.tags)) for each in asked) == sorted(
        [(ROLLUP.name, 10), (ROLLUP.name, 2), (SAMPLED.name, 1), (OF_ACCOUNTS.name, 1)]
    )
    assert {each.priority for each in asked} == {Priority.DRIFT}
    found = [await scene.readings(dataset) for dataset in (ROLLUP, SAMPLED, OF_ACCOUNTS)]
    assert [len(readings) for readings in found] == [12, 1, 1]


async def test_a_restart_reads_what_the_process_before_it_had_not_read_and_nothing_twice(scene: Scene) -> None:
    await scene.captured(zone(1), zone(2))
    await scene.pass_at(NOW + QUARTER)
    again = scene.restarted()
    assert await again.pass_at(NOW + QUARTER + 60) == []
    (asked,) = await again.pass_at(NOW + FULL)
    assert asked.tags == (zone(1).tag, zone(2).tag)
    assert len(await again.readings()) == 4


async def test_only_the_sample_is_read_again(scene: Scene) -> None:
    zones = [zone(number) for number in range(1, 201)]
    await scene.listed(*zones)
    await scene.captured(*zones)
    few = scene.restarted(drift_sample_percent=5.0)
    first = {tag for asked in await few.pass_at(NOW + QUARTER) for tag in asked.tags}
    assert 0 < len(first) < 30
    assert {tag for asked in await few.pass_at(NOW + FULL) for tag in asked.tags} == first


async def test_a_reading_that_would_come_much_too_late_is_left_out(scene: Scene) -> None:
    await scene.captured(zone(1))
    (asked,) = await scene.pass_at(NOW + FULL)
    assert asked.tags == (zone(1).tag,)
    assert [after for _, after, _, _ in await scene.readings()] == [FULL]
    again = scene.restarted()
    assert await again.pass_at(NOW + 2 * SIX) == []


async def test_what_was_captured_long_after_it_was_final_is_not_read_again(scene: Scene) -> None:
    await scene.captured(zone(1), late_by=2 * HOUR)
    await scene.captured(zone(2), late_by=HOUR / 2)
    asked = [
        tag
        for after in (QUARTER, FULL, SIX)
        for each in await scene.pass_at(NOW + HOUR / 2 + after)
        for tag in each.tags
    ]
    assert set(asked) == {zone(2).tag}


async def test_windows_of_datasets_and_zones_that_are_not_collected_any_more_are_left_alone(scene: Scene) -> None:
    await scene.captured(zone(1), zone(2))
    await scene.captured(zone(1), dataset=replace(ROLLUP, name="gone"))
    await scene.listed(zone(2))
    (asked,) = await scene.pass_at(NOW + QUARTER)
    assert asked == Asked(ROLLUP.name, (zone(2).tag,), (START,), Priority.DRIFT)


async def test_what_cloudflare_does_not_answer_is_not_asked_again(scene: Scene) -> None:
    await scene.captured(zone(1))
    scene.api.fault = ApiFailure(ErrorKind.SERVER, "HTTP status 503")
    assert len(await scene.pass_at(NOW + QUARTER)) == 1
    scene.api.fault = None
    assert await scene.pass_at(NOW + QUARTER + 60) == []
    assert await scene.readings() == []
    assert len(await scene.pass_at(NOW + FULL)) == 1


async def test_a_stop_ends_a_pass_between_two_queries(scene: Scene) -> None:
    zones = [zone(number) for number in range(1, 31)]
    await scene.listed(*zones)
    await scene.captured(*zones)
    scene.api.then = scene.stopping.set
    assert len(await scene.pass_at(NOW + QUARTER)) == 1
    assert len(await scene.readings()) == 10


async def test_the_requests_are_kept_for_the_next_process(scene: Scene) -> None:
    await scene.captured(zone(1))
    await scene.pass_at(NOW + QUARTER)
    assert await scene.ledger.read(logged_requests, "default") == {"graphql": [NOW + QUARTER], "rest": []}


async def test_the_loop_waits_before_its_first_pass_and_reads_at_every_further_one(scene: Scene) -> None:
    await scene.captured(zone(1))
    scene.clock.set(NOW + QUARTER)
    scene.api.then = scene.stopping.set
    await scene.meter.run(scene.stopping)
    assert scene.clock.slept[0] == INTERVAL_SECONDS
    assert len(await scene.readings()) == 1


# ---------------------------------------------------------------------------------------------- what is found


async def test_a_later_number_is_only_measured(scene: Scene) -> None:
    await scene.captured(zone(1), zone(2))
    before = await scene.ledger.read(everything_but_readings)
    scene.api.late[zone(1).tag, START] = 25.0
    await scene.pass_at(NOW + QUARTER)
    assert await scene.readings() == [(1, QUARTER, 1, 0.25), (2, QUARTER, 0, 0.0)]
    assert await scene.ledger.read(everything_but_readings) == before


async def test_the_drift_is_on_the_metrics_by_dataset_and_delay(scene: Scene) -> None:
    await scene.captured(zone(1), zone(2), zone(3))
    scene.api.late.update({(zone(1).tag, START): 25.0, (zone(2).tag, START): -0.05})
    await scene.pass_at(NOW + QUARTER)
    labels = {"dataset": ROLLUP.name, "after": "900"}
    assert scene.value("readings_total", **labels) == 3
    assert scene.value("differing_readings_total", **labels) == 2
    counts = [scene.value("relative_difference_bucket", **labels, le=le) for le in ("0.0", "0.001", "0.1", "1.0")]
    assert counts == [1, 2, 2, 3]
    assert scene.value("recommended_delay_seconds", dataset=ROLLUP.name) == 0


async def test_the_recommended_delay_follows_the_readings_and_survives_a_restart(scene: Scene) -> None:
    zones = [zone(number) for number in range(1, FEWEST_WINDOWS + 1)]
    await scene.listed(*zones)
    await scene.captured(*zones)
    scene.api.late = {(each.tag, START): 1.0 for each in zones}
    await scene.pass_at(NOW + QUARTER)
    assert scene.value("recommended_delay_seconds", dataset=ROLLUP.name) == DELAY + QUARTER
    scene.metrics.drift_recommended_delay_seconds.clear()
    again = scene.restarted()
    again.stopping.set()
    await again.meter.run(again.stopping)
    assert scene.value("recommended_delay_seconds", dataset=ROLLUP.name) == DELAY + QUARTER
    assert scene.value("current_delay_seconds", dataset=ROLLUP.name) == DELAY
    assert scene.value("readings_total", dataset=ROLLUP.name, after="3600") == 0


async def test_what_changed_is_told_with_what_it_says_about_the_delay_but_not_of_estimates(scene: Scene) -> None:
    for dataset in (ROLLUP, SAMPLED):
        await scene.captured(zone(1), zone(2), dataset=dataset)
    with capture_logs() as lines:
        await scene.pass_at(NOW + QUARTER)
        assert lines == []
        scene.api.late[zone(1).tag, START] = 1.0
        await scene.pass_at(NOW + FULL)
    (line,) = lines
    assert (line["log_level"], line["dataset"], line["windows"]) == ("warning", ROLLUP.name, 1)
    assert line["delay"] == "2 windows were read again so far, and at least 20 are needed to tell"
    assert [differing for _, after, differing, _ in await scene.readings(SAMPLED) if after == FULL] == [1, 0]


async def test_a_zone_that_was_renamed_meanwhile_is_not_taken_for_drift(scene: Scene) -> None:
    await scene.captured(zone(1), zone(2))
    await scene.listed(zone(1, "renamed.example"), zone(2))
    await scene.pass_at(NOW + QUARTER)
    assert await scene.readings() == [(2, QUARTER, 0, 0.0)]


async def test_a_full_volume_costs_the_readings_and_nothing_else(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> None:
        message = "database or disk is full"
        raise LedgerFullError(message)

    await scene.captured(zone(1))
    with monkeypatch.context() as patched:
        patched.setattr(scene.ledger, "write", full)
        await scene.pass_at(NOW + QUARTER)
    assert await scene.readings() == []
    assert len(await scene.pass_at(NOW + FULL)) == 1
    assert await scene.ledger.read(present_scopes)
