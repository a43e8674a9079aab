"""When facts are read, and what stands in the ledger then."""

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from tests.clocks import JumpingClock
from worker.cloudflare import FACT_SETS, ApiFailure, CloudflareApi, ErrorKind, FactSet, Quota, Samples
from worker.cloudflare import Scope as ListedScope
from worker.config import CloudflareSettings
from worker.errors import LedgerFullError
from worker.facts import LOOP, FactReader
from worker.health import Health
from worker.ledger import (
    Ledger,
    Scope,
    denials,
    logged_requests,
    record_scopes,
    register_destinations,
    room,
    scope_reports,
)
from worker.observe import Metrics
from worker.series import label_block

MINUTE = 60
HOUR = 3600
NOW = 1_750_032_600.0  # ten minutes past an hour
ACCOUNT = "a" * 32
DENIED = ApiFailure(ErrorKind.AUTH_SCOPE, "not authorized")
BROKEN = ApiFailure(ErrorKind.SERVER, "HTTP status 503")
BAD_TOKEN = ApiFailure(ErrorKind.TOKEN, "Authentication error")


def zone(number: int) -> Scope:
    return Scope(f"{number:032x}", f"zone{number}.example", ACCOUNT, "Example", "pro")


ACCOUNT_SCOPE = Scope(ACCOUNT, "Example", ACCOUNT, "Example", "")


class WallClock(JumpingClock):
    """A clock that somebody may set; durations do not notice."""

    ahead_seconds = 0.0

    def step(self, seconds: float) -> None:
        self._now += seconds
        self._origin += seconds
        self.ahead_seconds += seconds


@dataclass
class FakeCloudflare:
    """Answers every read with one sample, or with what `fault` says; a read takes so many seconds."""

    clock: WallClock
    fault: Callable[[str, str], ApiFailure | None] = lambda _name, _tag: None
    read_seconds: float = 0.0
    samples: int = 1
    reads: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.quota = Quota(self.clock)

    @property
    def ahead_seconds(self) -> float:
        return self.clock.ahead_seconds

    async def read_facts(self, fact_set: FactSet, scope: ListedScope) -> Samples | ApiFailure:
        self.reads.append((self.clock.now(), fact_set.name, scope.tag))
        self.clock.set(self.clock.now() + self.read_seconds)
        blocks = [label_block("cloudflare_a_fact", {"id": scope.tag, "n": str(n)}) for n in range(self.samples)]
        return self.fault(fact_set.name, scope.tag) or Samples(tuple(blocks), array("d", [1.0] * self.samples))


@dataclass
class Scene:
    clock: WallClock
    api: FakeCloudflare
    ledger: Ledger
    health: Health
    metrics: Metrics
    settings: CloudflareSettings
    reader: FactReader
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_pass(self, seconds: float = 0.0) -> bool:
        self.clock.set(self.clock.now() + seconds)
        return await self.reader.read_due(self.stopping)

    def restarted(self, **changes: Any) -> "Scene":
        settings = self.settings.model_copy(update=changes)
        self.reader = a_reader(self, settings)
        return self

    async def captured(self) -> list[tuple[str, str, int, int, int]]:
        """Dataset, tag, width, start and timestamp of every bucket, in the order of their capture."""
        return await self.ledger.read(all_buckets)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics._registry.get_sample_value(name, labels) or 0.0


def all_buckets(session: Any) -> list[tuple[str, str, int, int, int]]:
    return list(
        session._connection.execute(
            "SELECT dataset.name, tag, width_seconds, start, timestamp_ms FROM bucket"
            " JOIN dataset ON dataset.id = dataset_id JOIN scope ON scope.id = scope_id ORDER BY bucket.id"
        )
    )


def a_reader(scene: Scene, settings: CloudflareSettings, **changes: Any) -> FactReader:
    given: dict[str, Any] = {"fact_sets": list(FACT_SETS.values()), "max_ledger_bytes": 2**30}
    return FactReader(
        settings,
        **given | changes,
        api=cast("CloudflareApi", scene.api),
        ledger=scene.ledger,
        clock=scene.clock,
        health=scene.health,
        metrics=scene.metrics,
    )


@asynccontextmanager
async def a_scene(folder: Path, *, zones: int = 2, **settings: Any) -> AsyncIterator[Scene]:
    clock = WallClock(NOW)
    ledger = Ledger.open(folder / "ledger.db")
    await ledger.write(record_scopes, [ACCOUNT_SCOPE, *map(zone, range(zones))], NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=900, liveness_seconds=900)
    scene = Scene(
        clock=clock,
        api=FakeCloudflare(clock),
        ledger=ledger,
        health=health,
        metrics=Metrics(clock, health, version="1", sqlite_version="3", fact_sets=list(FACT_SETS)),
        settings=CloudflareSettings.model_validate({"api_token": SecretStr("t"), "bucket_seconds": MINUTE} | settings),
        reader=cast("FactReader", None),
    ).restarted()
    try:
        yield scene
    finally:
        await ledger.close()


async def test_every_scope_is_read_once_in_a_window_with_the_time_of_the_read(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        scene.api.read_seconds = 1.5
        for _ in range(3):
            assert await scene.next_pass(20)
        minutes = [
            (name, tag, width, start) for name, tag, width, start, _ in await scene.captured() if width == MINUTE
        ]
        assert sorted(minutes) == [
            (name, ACCOUNT, MINUTE, NOW + start) for name in ("lb_pools", "tunnel_status") for start in (0, MINUTE)
        ]
        hours = [(name, tag, width, start) for name, tag, width, start, _ in await scene.captured() if width == HOUR]
        assert sorted(hours) == [("certificates", zone(n).tag, HOUR, NOW - 10 * MINUTE) for n in (0, 1)]
        stamps = {stamp for *_, stamp in await scene.captured()}
        assert stamps == {int(1000 * (at + 1.5)) for at, _, _ in scene.api.reads}
        # Nothing is expected of the past, so nothing is missing and no window is a hole.
        assert await scene.ledger.read(scope_reports, since=0, final_until=NOW + HOUR) == ()


async def test_a_restart_reads_nothing_again_and_a_change_of_width_keeps_times_ascending(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        await scene.next_pass()
        for width in (MINUTE, HOUR, 300, 86_400):
            assert await scene.restarted(bucket_seconds=width).next_pass()
        assert len(scene.api.reads) == 4
        for width in (HOUR, MINUTE, 300, 86_400, 60):
            await scene.restarted(bucket_seconds=width).next_pass(200)
        by_series: dict[tuple[str, str], list[int]] = {}
        for name, tag, *_, stamp in await scene.captured():
            by_series.setdefault((name, tag), []).append(stamp)
        assert all(stamps == sorted(set(stamps)) for stamps in by_series.values())
        assert len(by_series["lb_pools", ACCOUNT]) == 4


async def test_a_window_without_a_read_is_counted_and_never_made_up_for(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        await scene.next_pass()
        await scene.restarted().next_pass(5 * MINUTE)
        starts = [start for name, *_, start, _ in await scene.captured() if name == "lb_pools"]
        assert starts == [NOW, NOW + 5 * MINUTE]
        assert scene.count("cfrw_facts_missed_windows_total", dataset="lb_pools") == 4
        assert scene.count("cfrw_facts_missed_windows_total", dataset="certificates") == 0
        assert scene.count("cfrw_facts_reads_total", dataset="lb_pools", outcome="captured") == 2


async def test_a_read_that_took_long_belongs_to_the_window_in_which_it_was_answered(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=0) as scene:
        scene.api.read_seconds = 90
        await scene.next_pass()
        assert [(start, stamp) for *_, start, stamp in await scene.captured()] == [
            (NOW + MINUTE, (NOW + 90) * 1000),
            (NOW + 3 * MINUTE, (NOW + 180) * 1000),
        ]


@pytest.mark.parametrize("failure", [DENIED, BAD_TOKEN])
async def test_a_missing_permission_is_told_once_by_its_name_and_asked_for_again_after_an_hour(
    failure: ApiFailure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_scene(tmp_path, bucket_seconds=HOUR) as scene:
        scene.health.token_accepted()
        scene.api.fault = lambda name, _tag: failure if name == "certificates" else None
        for _ in range(59):
            assert await scene.next_pass(MINUTE)
        assert scene.count("cfrw_facts_reads_total", dataset="certificates", outcome="denied") == 2
        reads = Counter(name for _, name, _ in scene.api.reads)
        assert reads == {"certificates": 2, "lb_pools": 2, "tunnel_status": 2}
        await scene.next_pass(2 * MINUTE)
        assert scene.count("cfrw_facts_reads_total", dataset="certificates", outcome="denied") == 4
        output = capsys.readouterr().out
        assert output.count("Facts could not be read") == 1
        assert "Zone > SSL and Certificates > Read" in output
        assert [(each.dataset, each.name) for each in await scene.ledger.read(denials)] == [
            ("certificates", "zone0.example"),
            ("certificates", "zone1.example"),
        ]
        scene.api.fault = lambda _name, _tag: None
        await scene.restarted().next_pass(HOUR)
        assert await scene.ledger.read(denials) == ()
        assert "certificates" in {name for name, *_ in await scene.captured()}


async def test_a_refused_token_is_no_missing_permission(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        scene.health.token_refused("Invalid API Token")
        scene.api.fault = lambda _name, _tag: BAD_TOKEN
        assert not await scene.next_pass()
        assert await scene.ledger.read(denials) == ()
        assert scene.count("cfrw_facts_reads_total", dataset="lb_pools", outcome="failed") == 1


async def test_an_outage_costs_a_few_requests_a_pass_and_ends_by_itself(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=30) as scene:
        scene.api.fault = lambda _name, _tag: BROKEN
        assert not await scene.next_pass()
        assert len(scene.api.reads) == 4
        scene.api.fault = lambda _name, _tag: None
        assert not await scene.next_pass(10)
        assert await scene.next_pass(HOUR)
        assert len({tag for _, tag, *_ in await scene.captured()}) == 31


async def test_what_cannot_be_read_costs_nothing_else_and_is_tried_less_and_less_often(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=6) as scene:
        bad = {zone(number).tag for number in range(5)}
        scene.api.fault = lambda _name, tag: ApiFailure(ErrorKind.MALFORMED, "?") if tag in bad else None
        for _ in range(60):
            assert not await scene.next_pass(MINUTE)
        assert {tag for _, tag, *_ in await scene.captured()} == {ACCOUNT, zone(5).tag}
        assert max(Counter(tag for _, _, tag in scene.api.reads if tag in bad).values()) <= 7
        assert len([name for name, *_ in await scene.captured() if name == "lb_pools"]) == 60


async def test_facts_of_short_windows_are_not_kept_waiting_by_those_of_many_zones(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=120) as scene:
        scene.api.read_seconds = 1
        assert await scene.next_pass()
        stamps = [stamp for name, *_, stamp in await scene.captured() if name == "lb_pools"]
        assert len(stamps) >= 2
        assert max(later - before for before, later in pairwise(stamps)) < 120_000


async def test_nobody_is_starved_where_not_all_can_be_read_in_a_window(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=20) as scene:
        scene.reader = a_reader(scene, scene.settings, fact_sets=[FACT_SETS["certificates"]])
        scene.api.read_seconds = 400
        await asyncio.wait_for(stopped_after(scene, 60), 5)
        assert set(Counter(tag for _, tag, *_ in await scene.captured()).values()) == {3}


async def stopped_after(scene: Scene, reads: int) -> None:
    def fault(_name: str, _tag: str) -> None:
        if len(scene.api.reads) == reads:
            scene.stopping.set()

    scene.api.fault = fault
    while not scene.stopping.is_set():
        await scene.next_pass()


async def test_a_clock_that_is_set_brings_no_time_twice_and_none_of_the_future(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=1) as scene:
        await scene.next_pass()
        scene.clock.step(2 * HOUR)  # ahead of Cloudflare's now, which its answers show
        await scene.next_pass(MINUTE)
        scene.clock.step(-2 * HOUR - 30)
        await scene.next_pass()
        await scene.next_pass(MINUTE)
        stamps = [stamp for name, *_, stamp in await scene.captured() if name == "lb_pools"]
        assert stamps == sorted(set(stamps))
        assert max(stamps) <= 1000 * (NOW + 3 * MINUTE)


async def test_the_settings_say_which_of_the_known_zones_are_read(tmp_path: Path) -> None:
    async with a_scene(tmp_path, zones=3) as scene:
        await scene.restarted(zones=("zone1.example",)).next_pass()
        assert {tag for _, _, tag in scene.api.reads} == {ACCOUNT, zone(1).tag}


async def test_a_full_ledger_stops_reading_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_scene(tmp_path) as scene:
        used = (await scene.ledger.read(room)).used_bytes
        scene.reader = a_reader(scene, scene.settings, max_ledger_bytes=used)
        assert not await scene.next_pass()
        assert scene.api.reads == []
        scene.restarted()

        async def full(*_: Any, **__: Any) -> None:
            raise LedgerFullError("no space left")  # noqa: EM101

        with monkeypatch.context() as patched:
            patched.setattr(scene.ledger, "write", full)
            assert not await scene.next_pass()
        assert await scene.next_pass()
        assert len(await scene.captured()) == 4


async def test_a_scope_without_facts_is_read_once_too_and_requests_are_remembered(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:
        scene.api.samples = 0
        for _ in range(2):
            assert await scene.next_pass()
        assert len(scene.api.reads) == 4
        assert set(await scene.ledger.read(logged_requests, "default")) == {"graphql", "rest"}


async def test_the_loop_begins_after_the_listing_and_stops_when_it_is_told(tmp_path: Path) -> None:
    async with a_scene(tmp_path) as scene:

        def fault(_name: str, _tag: str) -> None:
            scene.stopping.set()

        scene.api.fault = fault
        await asyncio.wait_for(scene.reader.run(scene.stopping), 5)
        assert [at for at, _, _ in scene.api.reads] == [NOW + scene.settings.collection_interval_seconds]
        assert scene.health.loops()[LOOP].completed_at is not None
