import asyncio
import tempfile
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.clocks import JumpingClock
from worker.buckets import final_window_starts
from worker.cloudflare import (
    Answered,
    Api,
    ApiFailure,
    CloudflareApi,
    Dataset,
    Denied,
    ErrorKind,
    Failed,
    Narrowed,
    Priority,
    Quota,
    RateLimitType,
    Samples,
    Scope,
    ScopeAnswer,
    TokenAccepted,
    TokenCheck,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    Zone,
    ZoneList,
    shipped,
)
from worker.cloudflare.quota import Lease
from worker.collect import LOOP, Collector
from worker.config import CloudflareSettings
from worker.errors import LedgerFullError
from worker.health import Health, TokenState
from worker.ledger import (
    HoleReason,
    Ledger,
    drifted_buckets,
    present_scopes,
    prune,
    record_answer,
    record_scopes,
    room,
)
from worker.listing import REFRESH_SECONDS
from worker.observe import Metrics
from worker.series import label_block

HOUR = 3600
DAY = 24 * HOUR
NOW = 1_750_032_600.0  # a quarter of an hour past 2025-06-16T00:00:00Z plus 10 minutes: the hour before is final
DELAY = 600
TOKEN = "canary-token-c0113c7"

Fault = Callable[[Zone, range], ApiFailure | None]


def zone(number: int, name: str | None = None) -> Zone:
    return Zone(f"{number:032x}", name or f"zone{number:02}.example", "a" * 32, "Example", "pro")


def failure(kind: ErrorKind, **details: Any) -> ApiFailure:
    return ApiFailure(kind, f"what Cloudflare says about {kind}", **details)


class WallClock(JumpingClock):
    """A clock that somebody may set; durations do not notice.

    ahead_seconds: how far it is ahead of the right time.
    """

    ahead_seconds = 0.0

    def step(self, seconds: float) -> None:
        self._now += seconds
        self._origin += seconds
        self.ahead_seconds += seconds


@dataclass(frozen=True)
class Asked:
    at: float
    tags: tuple[str, ...]
    starts: range


@dataclass
class FakeCloudflare:
    """Cloudflare as the collector knows it. A query fails for every zone for which `fault` has a failure; the failures
    that say nothing of a zone fail it as a whole, as they do with the real client."""

    clock: WallClock
    zones: list[Zone] = field(default_factory=lambda: [zone(1), zone(2), zone(3)])
    listing: ZoneList | ApiFailure | None = None
    token: TokenCheck = field(default_factory=TokenAccepted)
    fault: Fault = lambda _zone, _starts: None
    offset: float = 0.0
    query_seconds: float = 0.0
    samples_per_window: int = 1
    tells_the_time: bool = False
    bad_windows: set[tuple[Zone, int]] = field(default_factory=set)
    bad_window_kind: ErrorKind = ErrorKind.COST
    asked: list[Asked] = field(default_factory=list)
    priorities: list[Priority] = field(default_factory=list)
    listed: int = 0
    before_answer: Callable[[], Any] = lambda: asyncio.sleep(0)

    @cached_property
    def quota(self) -> Quota:
        return Quota(self.clock)

    @property
    def ahead_seconds(self) -> float | None:
        return self.clock.ahead_seconds if self.tells_the_time else None

    async def verify_token(self) -> TokenCheck:
        return self.token

    async def list_zones(self, **_selection: Sequence[str]) -> ZoneList | ApiFailure:
        self.listed += 1
        return self.listing or ZoneList(tuple(self.zones))

    async def discover(
        self, datasets: Sequence[Dataset], _width: int, scopes: Sequence[Scope], *, priority: Priority
    ) -> dict[tuple[str, str], Narrowed | Denied]:
        assert priority in {Priority.LIVE, Priority.DISCOVERY}
        return {(dataset.name, scope.tag): Narrowed(dataset) for dataset in datasets for scope in scopes}

    async def fetch(
        self,
        _datasets: Sequence[Dataset],
        _width: int,
        zones: Sequence[Zone],
        starts: range,
        *,
        priority: Priority,
    ) -> list[ScopeAnswer]:
        self.priorities.append(priority)
        self.asked.append(Asked(self.clock.now(), tuple(each.tag for each in zones), starts))
        await self.before_answer()
        self.clock.set(self.clock.now() + self.query_seconds)
        found = {each: self.fault(each, starts) for each in zones}
        general = {ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT}
        for fault in found.values():
            if fault is not None and fault.kind in general and not fault.zone_tags:
                found = dict.fromkeys(zones, fault)
                break
        return [answer for each in zones for answer in self._answers(each, starts, found[each])]

    def _answers(self, each: Zone, starts: range, fault: ApiFailure | None) -> list[ScopeAnswer]:
        if fault is None:
            bad = [start for start in starts if (each, start) in self.bad_windows]
            good = {start: self.samples(each, start) for start in starts if start not in bad}
            failed = [
                Failed(shipped()["http_requests"], each, range(start, start + 1), failure(self.bad_window_kind))
                for start in bad
            ]
            return [Answered(shipped()["http_requests"], each, good), *failed] if good else list(failed)
        if fault.kind is ErrorKind.RETENTION and fault.bound_seconds is not None:
            lost = sum(start < self.clock.now() - fault.bound_seconds for start in starts)
            if 0 < lost < len(starts):
                return [
                    *self._answers(each, starts[lost:], None),
                    Failed(shipped()["http_requests"], each, starts[:lost], fault),
                ]
        return [Failed(shipped()["http_requests"], each, starts, fault)]

    def samples(self, each: Zone, start: int) -> Samples:
        numbers = range(self.samples_per_window)
        series = tuple(label_block("cloudflare_zone_requests", {**each.labels(), "n": f"{n}"}) for n in numbers)
        return Samples(series, array("d", [self.offset + start % 9973 + number for number in numbers]))

    def asked_of(self, each: Zone) -> list[int]:
        return [start for asked in self.asked if each.tag in asked.tags for start in asked.starts]


@dataclass
class Scene:
    """A collector between a Cloudflare that a test makes up and a real ledger."""

    clock: WallClock
    api: FakeCloudflare
    ledger: Ledger
    health: Health
    metrics: Metrics
    collector: Collector
    settings: CloudflareSettings
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def collect(self) -> bool:
        return await self.collector.collect_due(self.stopping)

    async def next_pass(self) -> bool:
        """The pass after the usual pause."""
        self.clock.set(self.clock.now() + self.settings.collection_interval_seconds)
        return await self.collect()

    async def captured(self) -> dict[str, list[int]]:
        """The starts of the captured windows by zone."""
        return await self.ledger.read(captured_starts)

    async def holes(self) -> Counter[tuple[str, str, str]]:
        """How many of the windows that are due have no bucket: of which zone, for which reason, in whose words."""
        return await self.ledger.read(hole_reasons, due(self)[0])

    def restarted(self, **changes: Any) -> "Scene":
        """The same with another collector, as after a restart of the worker."""
        settings = self.settings.model_copy(update=changes)
        return replace(self, collector=new_collector(self, settings), settings=settings)

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics._registry.get_sample_value(name, labels)
        assert found is not None
        return found


def captured_starts(session: Any) -> dict[str, list[int]]:
    rows = session._connection.execute(
        "SELECT tag, start FROM bucket JOIN scope ON scope.id = bucket.scope_id ORDER BY start"
    )
    starts: dict[str, list[int]] = {}
    for tag, start in rows:
        starts.setdefault(tag, []).append(start)
    return starts


def hole_reasons(session: Any, since: int) -> Counter[tuple[str, str, str]]:
    query = "SELECT name, reason, detail FROM hole JOIN scope ON scope.id = hole.scope_id WHERE hole.start >= ?"
    return Counter(session._connection.execute(query, (since,)))


def new_collector(scene: Scene, settings: CloudflareSettings, max_ledger_bytes: int = 2**30) -> Collector:
    return Collector(
        settings,
        datasets=[shipped()["http_requests"]],
        max_ledger_bytes=max_ledger_bytes,
        api=cast(CloudflareApi, scene.api),
        ledger=scene.ledger,
        clock=scene.clock,
        health=scene.health,
        metrics=scene.metrics,
    )


@asynccontextmanager
async def a_scene(path: Path, **changes: Any) -> AsyncIterator[Scene]:
    clock = WallClock(NOW)
    health = Health(clock)
    health.expect(LOOP, allowance_seconds=1860, liveness_seconds=960)
    given_settings = {"api_token": SecretStr(TOKEN), "bucket_seconds": HOUR, "delay_seconds": DELAY, "replay_hours": 6}
    scene = Scene(
        clock=clock,
        api=FakeCloudflare(clock),
        ledger=Ledger.open(path / "ledger.db"),
        health=health,
        metrics=Metrics(clock, health, version="1", sqlite_version="3", datasets=["http_requests"]),
        collector=cast(Collector, None),
        settings=CloudflareSettings.model_validate(given_settings | changes),
    )
    scene.collector = new_collector(scene, scene.settings)
    try:
        yield scene
    finally:
        await scene.ledger.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_scene(tmp_path) as made:
        yield made


def due(scene: Scene) -> list[int]:
    """The starts of the windows that are final and within the replay bound at this moment."""
    return list(
        final_window_starts(
            scene.clock.now(),
            width_seconds=scene.settings.bucket_seconds,
            delay_seconds=scene.settings.delay_seconds,
            reach_seconds=scene.settings.replay_hours * HOUR,
        )
    )


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def sees(condition: Callable[[], bool], *running: "asyncio.Task[None]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in running:
            assert not task.done(), task
        await asyncio.sleep(0)


# --------------------------------------------------------------------------------------------- what is asked for, when


async def test_the_first_pass_fetches_everything_that_is_final_back_to_the_replay_bound(scene: Scene) -> None:
    assert await scene.collect()
    windows = due(scene)
    assert len(windows) == 6
    assert await scene.captured() == {each.tag: windows for each in scene.api.zones}


async def test_a_window_is_fetched_once_its_delay_has_passed_and_not_a_second_before(scene: Scene) -> None:
    await scene.collect()
    end = due(scene)[-1] + 2 * HOUR
    scene.clock.set(end + DELAY - 1)
    scene.api.asked.clear()
    assert await scene.collect()
    assert scene.api.asked == []
    scene.clock.set(end + DELAY)
    assert await scene.collect()
    assert [asked.starts for asked in scene.api.asked] == [range(end - HOUR, end, HOUR)]


async def test_what_is_captured_is_not_asked_for_again_nor_by_the_next_worker(scene: Scene) -> None:
    await scene.collect()
    scene.api.asked.clear()
    await scene.next_pass()
    await scene.restarted().collect()
    assert scene.api.asked == []


async def test_many_windows_and_ten_zones_travel_in_one_query(scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(23)]
    await scene.collect()
    assert [len(asked.tags) for asked in scene.api.asked] == [10, 10, 3]
    assert {tuple(asked.starts) for asked in scene.api.asked} == {tuple(due(scene))}


async def test_an_account_whose_quota_is_used_up_holds_up_no_other(scene: Scene) -> None:
    quota = Quota(scene.clock, graphql=1, rate_limit_type=RateLimitType.ACCOUNT)
    scene.api.quota = quota
    first, second = (Zone(f"{number:032x}", f"zone{number}", owner * 32) for number, owner in ((1, "a"), (2, "b")))
    scene.api.zones = [first, second]
    assert isinstance(await quota.acquire(Api.GRAPHQL, account=first.account_tag), Lease)
    await scene.collect()
    assert [asked.tags for asked in scene.api.asked[:2]] == [(second.tag,), (first.tag,)]


async def test_a_query_asks_for_no_more_windows_than_it_may(tmp_path: Path) -> None:
    async with a_scene(tmp_path, bucket_seconds=60, replay_hours=3) as scene:
        scene.api.zones = [zone(1)]
        assert await scene.collect()
        assert [len(asked.starts) for asked in scene.api.asked] == [60, 60, len(due(scene)) - 120]
        assert scene.api.asked_of(zone(1)) == due(scene)


async def test_after_a_pause_what_was_missed_comes_oldest_first_and_no_further_back_than_the_bound(
    scene: Scene,
) -> None:
    await scene.collect()
    scene.api.asked.clear()
    scene.clock.set(scene.clock.now() + 2 * DAY)
    assert await scene.collect()
    assert scene.api.asked_of(zone(1)) == due(scene)
    assert len(due(scene)) == 6


async def test_the_oldest_windows_of_all_zones_come_before_newer_ones(scene: Scene) -> None:
    scene.api.zones = [zone(1)]
    await scene.collect()
    scene.api.zones = [zone(1), zone(2)]
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.asked.clear()
    await scene.restarted().collect()
    assert [asked.tags for asked in scene.api.asked] == [(zone(2).tag,), (zone(1).tag,)]


async def test_zones_that_lack_other_windows_are_asked_for_what_they_lack_alone(scene: Scene) -> None:
    windows = due(scene)
    scene.api.zones = [zone(2)]
    scene.api.bad_windows = {(zone(2), windows[0]), (zone(2), windows[3])}
    await scene.collect()
    scene.api.zones = [zone(1), zone(2)]
    scene.api.bad_windows = set()
    scene.api.asked.clear()
    await scene.restarted().next_pass()
    assert sorted(scene.api.asked_of(zone(2))) == [windows[0], windows[3]]
    assert sorted(scene.api.asked_of(zone(1))) == windows
    assert await scene.captured() == {each.tag: windows for each in scene.api.zones}


@pytest.mark.parametrize("kind", [ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE])
async def test_a_window_does_not_overtake_an_older_one_that_cloudflare_failed_to_answer(
    kind: ErrorKind, scene: Scene
) -> None:
    windows = due(scene)
    scene.api.bad_windows = {(zone(2), windows[2])}
    scene.api.bad_window_kind = kind
    assert not await scene.collect()
    captured = await scene.captured()
    assert captured[zone(1).tag] == windows
    assert captured[zone(2).tag] == windows[:2]
    scene.api.bad_windows = set()
    assert await scene.next_pass()
    assert (await scene.captured())[zone(2).tag] == windows


async def test_a_window_that_cannot_be_had_does_not_hold_up_those_behind_it(scene: Scene) -> None:
    windows = due(scene)
    scene.api.bad_windows = {(zone(2), windows[2])}
    assert not await scene.collect()
    assert (await scene.captured())[zone(2).tag] == [*windows[:2], *windows[3:]]


@pytest.mark.parametrize("width", [60, 300, 900, 1800, 3600, 86_400])
async def test_every_width_is_collected(width: int, tmp_path: Path) -> None:
    async with a_scene(tmp_path, bucket_seconds=width, replay_hours=48) as scene:
        assert await scene.collect()
        assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}


def failing(bad: Zone, kind: ErrorKind | None) -> Fault:
    return lambda each, _starts: failure(kind) if kind is not None and each == bad else None


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2 * HOUR),
        # Somebody sets the clock.
        st.sampled_from([0, 0, 0, -30 * DAY, -DAY, -HOUR, -1, 1, HOUR, DAY, 30 * DAY]),
        st.sampled_from([None, ErrorKind.SERVER, ErrorKind.MALFORMED, ErrorKind.RATE]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(width=st.sampled_from([1800, 3600]), delay=st.integers(0, 2 * HOUR), hours=st.integers(3, 5), steps=STEPS)
def test_whatever_the_clock_does_no_window_is_asked_for_before_it_is_final_and_none_is_skipped(
    width: int, delay: int, hours: int, steps: list[tuple[int, int, ErrorKind | None]]
) -> None:
    async def play(scene: Scene) -> None:
        scene.api.tells_the_time = True
        for seconds, jump, kind in steps:
            scene.clock.set(scene.clock.now() + seconds)
            scene.clock.step(jump)
            scene.api.fault = failing(zone(2), kind)
            scene.api.asked.clear()
            await scene.collect()
            for asked in scene.api.asked:
                # As far as the clock is taken to be right.
                right = asked.at - (scene.clock.ahead_seconds if scene.clock.ahead_seconds > 30 else 0)
                assert all(start + width + delay <= right < start + width + hours * HOUR for start in asked.starts)
        scene.clock.step(-scene.clock.ahead_seconds)
        scene.api.fault = lambda _zone, _starts: None
        scene.clock.set(scene.clock.now() + HOUR)
        assert await scene.collect()
        for starts in (await scene.captured()).values():
            assert set(starts) >= set(due(scene))

    async def within_a_scene() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with a_scene(Path(folder), bucket_seconds=width, delay_seconds=delay, replay_hours=hours) as scene:
                await play(scene)

    asyncio.run(within_a_scene())


async def test_a_clock_set_back_makes_no_window_due_that_is_not(scene: Scene) -> None:
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.SERVER)
    await scene.collect()
    scene.clock.step(-3 * HOUR)
    scene.api.asked.clear()
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.collect()
    assert scene.api.asked_of(zone(1)) == due(scene)[3:], "from the first window that was ever expected on"


async def test_windows_that_a_clock_in_the_future_took_for_too_old_are_fetched_when_it_is_right_again(
    scene: Scene,
) -> None:
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.SERVER)
    await scene.collect()
    scene.clock.step(30 * DAY)
    await scene.collect()
    scene.clock.step(HOUR - 30 * DAY)
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.collect()
    assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}


async def test_windows_captured_while_the_clock_ran_ahead_are_not_asked_for_again(scene: Scene) -> None:
    scene.clock.step(2 * HOUR)
    await scene.collect()
    scene.clock.step(-2 * HOUR)
    await scene.collect()
    scene.api.asked.clear()
    scene.clock.set(scene.clock.now() + 2 * HOUR)
    assert await scene.collect()
    assert scene.api.asked == []


@pytest.mark.parametrize("ahead_seconds", [31, HOUR, DAY])
async def test_windows_are_final_by_cloudflare_s_clock_where_this_machine_s_runs_ahead(
    ahead_seconds: int, scene: Scene
) -> None:
    windows = due(scene)
    scene.clock.step(ahead_seconds)
    scene.api.tells_the_time = True
    assert await scene.collect()
    assert scene.api.asked_of(zone(1)) == windows


async def test_an_answer_whose_date_shows_that_the_clock_ran_ahead_is_not_taken(scene: Scene) -> None:
    await scene.collect()
    windows = due(scene)
    scene.clock.step(2 * HOUR)
    scene.clock.set(scene.clock.now() + 60)

    async def tell_the_time() -> None:
        scene.api.tells_the_time = True

    scene.api.before_answer = tell_the_time
    assert not await scene.collect()
    assert (await scene.captured())[zone(1).tag] == windows
    assert await scene.holes() == {}
    scene.clock.set(scene.clock.now() + HOUR)
    assert await scene.collect()
    assert (await scene.captured())[zone(1).tag] == [*windows, windows[-1] + HOUR]


@pytest.mark.parametrize("ahead_seconds", [-DAY, 0, 30])
async def test_a_clock_that_runs_late_or_is_about_right_is_believed(ahead_seconds: int, scene: Scene) -> None:
    scene.clock.step(ahead_seconds)
    scene.api.tells_the_time = True
    await scene.collect()
    assert scene.api.asked_of(zone(1)) == due(scene)


async def test_the_first_capture_wins_and_another_answer_is_counted_as_drift(scene: Scene) -> None:
    first = scene.restarted()
    values: list[tuple[int, bytes]] = []

    async def overtake() -> None:
        scene.api.before_answer = lambda: asyncio.sleep(0)
        await first.collect()
        values.extend(await scene.ledger.read(all_values))
        scene.api.offset = 0.5

    scene.api.before_answer = overtake
    assert await scene.collect()
    assert await scene.ledger.read(all_values) == values
    assert await scene.ledger.read(drifted_buckets) == {"http_requests": 18}
    assert scene.value("cfrw_collect_drifted_buckets_total", dataset="http_requests") == 18


def all_values(session: Any) -> list[tuple[int, bytes]]:
    return list(session._connection.execute("SELECT id, sample_values FROM bucket ORDER BY id"))


@pytest.mark.parametrize("widths", [(3600, 300), (300, 3600), (3600, 300, 3600), (300, 86_400, 900)])
async def test_windows_of_two_widths_never_overlap_when_the_setting_is_changed(
    widths: tuple[int, ...], scene: Scene
) -> None:
    scene = scene.restarted(replay_hours=30)
    for width in widths:
        scene = scene.restarted(bucket_seconds=width)
        for _ in range(3):
            await scene.collect()
            scene.clock.set(scene.clock.now() + 26 * HOUR)
    spans = await scene.ledger.read(spans_of, zone(1).tag)
    assert {width for _, width in spans} == set(widths)
    for (start, width), (later, _) in pairwise(spans):
        assert start + width <= later


def spans_of(session: Any, tag: str) -> list[tuple[int, int]]:
    return list(
        session._connection.execute(
            "SELECT start, width_seconds FROM bucket JOIN scope ON scope.id = scope_id WHERE tag = ? ORDER BY start",
            (tag,),
        )
    )


# ----------------------------------------------------------------------------------------------------- when zones fail


DENIALS = [ErrorKind.PLAN_DATASET, ErrorKind.PLAN_FIELD, ErrorKind.AUTH_SCOPE]


@pytest.mark.parametrize("kind", DENIALS)
async def test_a_denied_zone_is_left_alone_for_an_hour_and_costs_nobody_else_anything(
    kind: ErrorKind, scene: Scene
) -> None:
    scene.api.fault = lambda each, _starts: failure(kind) if each == zone(2) else None
    assert not await scene.collect()
    assert await scene.captured() == {zone(1).tag: due(scene), zone(3).tag: due(scene)}
    reason = ("zone02.example", HoleReason.DENIED, f"what Cloudflare says about {kind}")
    assert await scene.holes() == {reason: len(due(scene))}
    scene.api.asked.clear()
    for _ in range(59):
        await scene.next_pass()
    assert scene.api.asked_of(zone(2)) == []
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert (await scene.captured())[zone(2).tag] == due(scene)
    assert await scene.holes() == {}


async def test_a_zone_that_cloudflare_asks_to_leave_alone_is_left_alone_for_that_long(scene: Scene) -> None:
    limited = failure(ErrorKind.RATE, zone_tags=(zone(2).tag,), retry_after_seconds=300.0)
    scene.api.fault = lambda each, _starts: limited if each == zone(2) else None
    await scene.collect()
    assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == NOW
    scene.api.asked.clear()
    scene.api.fault = lambda _zone, _starts: None
    for _ in range(4):
        await scene.next_pass()
    assert scene.api.asked == []
    assert await scene.next_pass()


async def test_a_zone_that_fails_is_tried_again_at_the_next_pass(scene: Scene) -> None:
    scene.api.fault = lambda each, _starts: failure(ErrorKind.MALFORMED) if each == zone(2) else None
    assert not await scene.collect()
    reason = ("zone02.example", HoleReason.FAILED, "what Cloudflare says about malformed")
    assert await scene.holes() == {reason: len(due(scene))}
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert await scene.holes() == {}


async def test_within_a_pass_a_failing_zone_is_asked_once(tmp_path: Path) -> None:
    async with a_scene(tmp_path, bucket_seconds=60) as scene:
        scene.api.fault = lambda each, _starts: failure(ErrorKind.MALFORMED) if each == zone(2) else None
        await scene.collect()
        assert len([asked for asked in scene.api.asked if zone(2).tag in asked.tags]) == 1
        assert (await scene.captured())[zone(1).tag] == due(scene)


async def test_windows_past_cloudflare_s_retention_are_given_up_and_never_asked_for_again(scene: Scene) -> None:
    bound = 3 * HOUR
    kept_for_three_hours = failure(ErrorKind.RETENTION, bound_seconds=bound)

    def fault(each: Zone, starts: range) -> ApiFailure | None:
        return kept_for_three_hours if each == zone(2) and starts[0] < scene.clock.now() - bound else None

    scene.api.fault = fault
    assert await scene.collect()
    windows = due(scene)
    kept = [start for start in windows if start >= scene.clock.now() - bound]
    assert 0 < len(kept) < len(windows)
    assert (await scene.captured())[zone(2).tag] == kept
    reason = ("zone02.example", HoleReason.EXPIRED, kept_for_three_hours.message)
    assert await scene.holes() == {reason: len(windows) - len(kept)}
    scene.api.asked.clear()
    assert await scene.next_pass()
    assert await scene.restarted().collect()
    assert scene.api.asked == []


async def test_a_zone_all_of_whose_windows_have_expired_does_not_hold_up_its_next_ones(scene: Scene) -> None:
    scene.api.zones = [zone(1)]
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.RETENTION, bound_seconds=60)
    assert await scene.collect()
    assert await scene.captured() == {}
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.collect()
    assert await scene.captured() == {zone(1).tag: due(scene)[-1:]}


async def test_windows_behind_those_that_have_expired_are_fetched_in_the_same_pass(tmp_path: Path) -> None:
    async with a_scene(tmp_path, bucket_seconds=60) as scene:
        scene.api.fault = lambda _zone, starts: (
            failure(ErrorKind.RETENTION, bound_seconds=2 * HOUR) if starts[0] < NOW - 2 * HOUR else None
        )
        assert await scene.collect()
        assert await scene.captured() == {
            each.tag: [start for start in due(scene) if start >= NOW - 2 * HOUR] for each in scene.api.zones
        }


async def test_only_windows_that_are_older_than_the_bound_are_given_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.api.zones = [zone(1)]
    bound = failure(ErrorKind.RETENTION, bound_seconds=3 * HOUR)
    fetch = scene.api.fetch

    async def failing_as_a_whole(*asked: Any, **options: Any) -> list[ScopeAnswer]:
        await fetch(*asked, **options)
        return [Failed(shipped()["http_requests"], zone(1), asked[-1], bound)]

    monkeypatch.setattr(scene.api, "fetch", failing_as_a_whole)
    assert not await scene.collect()
    kept = [start for start in due(scene) if start >= NOW - 3 * HOUR]
    of_zone = (
        ("zone01.example", HoleReason.EXPIRED, bound.message),
        ("zone01.example", HoleReason.FAILED, bound.message),
    )
    assert await scene.holes() == {of_zone[0]: len(due(scene)) - len(kept), of_zone[1]: len(kept)}


async def test_a_retention_without_a_bound_gives_nothing_up(scene: Scene) -> None:
    scene.api.fault = lambda each, _starts: failure(ErrorKind.RETENTION) if each == zone(2) else None
    assert not await scene.collect()
    assert {reason for _, reason, _ in await scene.holes()} == {HoleReason.FAILED}
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()


# ---------------------------------------------------------------------------------------- when Cloudflare is not there

OUTAGES = [ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE, ErrorKind.TOKEN, ErrorKind.ENDPOINT]


async def test_a_token_is_refused_although_what_it_brought_before_is_written_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.api.zones = [zone(number) for number in range(20)]
    scene.api.fault = lambda each, _starts: failure(ErrorKind.TOKEN) if each in scene.api.zones[10:] else None
    write_soon = scene.ledger.write_soon
    refused = asyncio.Event()

    async def in_the_end(*args: Any, **kwargs: Any) -> Any:
        if kwargs["buckets"]:
            await refused.wait()
        refused.set()
        return await write_soon(*args, **kwargs)

    monkeypatch.setattr(scene.ledger, "write_soon", in_the_end)
    assert not await scene.collect()
    assert len(await scene.captured()) == 10
    assert scene.health.tokens["default"] is TokenState.REFUSED


@pytest.mark.parametrize("kind", OUTAGES)
async def test_an_outage_ends_the_pass_after_a_few_queries_and_loses_nothing(kind: ErrorKind, scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(200)]
    scene.api.fault = lambda _zone, _starts: failure(kind)
    assert not await scene.collect()
    assert len(scene.api.asked) <= 7
    assert not await scene.next_pass()
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}
    assert await scene.holes() == {}


async def test_an_outage_that_begins_during_a_pass_keeps_what_was_answered(scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(200)]
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.NETWORK) if len(scene.api.asked) > 10 else None
    assert not await scene.collect()
    assert len(await scene.captured()) >= 70
    assert len(scene.api.asked) <= 10 + 2 * 7
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}


async def test_windows_missed_in_an_outage_are_fetched_before_newer_ones(scene: Scene) -> None:
    await scene.collect()
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.SERVER)
    for _ in range(4):
        scene.clock.set(scene.clock.now() + HOUR)
        await scene.collect()
    scene.api.fault = lambda _zone, _starts: None
    scene.api.asked.clear()
    assert await scene.next_pass()
    assert scene.api.asked_of(zone(1)) == due(scene)[-4:]


@pytest.mark.parametrize("kind", [ErrorKind.SERVER, ErrorKind.NETWORK])
async def test_a_zone_that_cloudflare_cannot_answer_for_does_not_cost_its_neighbours_their_windows(
    kind: ErrorKind, scene: Scene
) -> None:
    scene.api.zones = [zone(number) for number in range(30)]
    # Cloudflare does not say which zone it is, and refuses every query with it.
    scene.api.fault = lambda each, _starts: failure(kind) if each == zone(4) else None
    for _ in range(4):
        await scene.next_pass()
    captured = await scene.captured()
    assert captured == {each.tag: due(scene) for each in scene.api.zones if each != zone(4)}
    scene.api.asked.clear()
    scene.clock.set(scene.clock.now() + HOUR)
    await scene.collect()
    assert len(scene.api.asked) <= 4, "the bad zone is asked alone from now on"
    scene.api.fault = lambda _zone, _starts: None
    scene.clock.set(scene.clock.now() + HOUR / 2)
    assert await scene.collect()
    assert (await scene.captured())[zone(4).tag] == due(scene)


@pytest.mark.parametrize("zones", [2, 5, 60])
async def test_bad_zones_in_every_query_do_not_cost_their_neighbours_their_windows(zones: int, scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(zones)]
    bad = scene.api.zones[::6]
    scene.api.fault = lambda each, _starts: failure(ErrorKind.SERVER) if each in bad else None
    for _ in range(4):
        await scene.next_pass()
    assert set(await scene.captured()) == {each.tag for each in scene.api.zones if each not in bad}
    scene.clock.set(scene.clock.now() + HOUR)
    await scene.collect()
    captured = await scene.captured()
    assert all(due(scene)[-1] in captured[each.tag] for each in scene.api.zones if each not in bad)


async def test_only_a_zone_that_fails_alone_is_asked_less_often(scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(50)]
    bad = scene.api.zones[:40:10]
    scene.api.fault = lambda each, _starts: failure(ErrorKind.SERVER) if each in bad else None
    for _ in range(3):
        await scene.next_pass()
    assert set(await scene.captured()) == {each.tag for each in scene.api.zones if each not in bad}


async def test_a_zone_without_an_answer_is_asked_less_and_less_often_but_not_forgotten(scene: Scene) -> None:
    scene.api.fault = lambda each, _starts: failure(ErrorKind.SERVER) if each == zone(2) else None
    scene = scene.restarted(bucket_seconds=300)
    asked_at = []
    for _ in range(6 * 60):
        scene.api.asked.clear()
        await scene.next_pass()
        asked_at += [asked.at for asked in scene.api.asked if zone(2).tag in asked.tags]
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert 8 <= len(pauses) < 30
    assert max(pauses) <= 1860
    assert pauses[-1] > pauses[0]


async def test_after_a_long_outage_zones_travel_together_again(scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(500)]
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.NETWORK)
    for _ in range(60):
        await scene.next_pass()
    scene.api.fault = lambda _zone, _starts: None
    scene.api.asked.clear()
    assert await scene.next_pass()
    assert len(scene.api.asked) < 50 + 30 + 10
    scene.api.asked.clear()
    scene.clock.set(scene.clock.now() + HOUR)
    assert await scene.collect()
    assert len(scene.api.asked) == 50


async def test_a_refused_token_is_told_and_forgotten_with_the_first_answer(scene: Scene) -> None:
    await scene.collect()
    states = [scene.health.token]
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.TOKEN)
    scene.clock.set(scene.clock.now() + HOUR)
    await scene.collect()
    states.append(scene.health.token)
    scene.api.fault = lambda _zone, _starts: None
    await scene.next_pass()
    states.append(scene.health.token)
    assert states == [TokenState.ACCEPTED, TokenState.REFUSED, TokenState.ACCEPTED]


async def test_a_token_that_is_refused_from_the_start_makes_the_worker_not_ready(scene: Scene) -> None:
    scene.api.token = TokenRefused("Invalid API Token")
    scene.api.listing = failure(ErrorKind.TOKEN)
    assert not await scene.collect()
    assert scene.health.token is TokenState.REFUSED
    assert any("Invalid API Token" in problem.text for problem in scene.health.readiness().problems)


async def test_a_token_that_could_not_be_verified_stays_what_it_was(scene: Scene) -> None:
    await scene.collect()
    scene.api.token = TokenUnknown(failure(ErrorKind.NETWORK))
    scene.api.listing = failure(ErrorKind.NETWORK)
    scene.clock.set(scene.clock.now() + REFRESH_SECONDS)
    await scene.collect()
    assert scene.health.token is TokenState.ACCEPTED


# ----------------------------------------------------------------------------------------------------------- the zones


async def test_zones_are_listed_every_half_hour(scene: Scene) -> None:
    for minute in range(61):
        scene.clock.set(NOW + 60 * minute)
        await scene.collect()
    assert scene.api.listed == 3


async def test_the_zones_that_the_settings_name_are_asked_for(tmp_path: Path) -> None:
    selections: list[Mapping[str, Sequence[str]]] = []

    class Selecting(FakeCloudflare):
        async def list_zones(self, **selection: Sequence[str]) -> ZoneList | ApiFailure:
            selections.append(selection)
            unmatched = Unmatched("CF_ZONES", "exmaple.com", "example.com")
            return ZoneList(tuple(self.zones), (unmatched,))

    async with a_scene(tmp_path, accounts=("a",), zones=("z",), exclude_zones=("x",)) as scene:
        scene.api = Selecting(scene.clock)
        await scene.restarted().collect()
    assert selections == [{"accounts": ("a",), "zones": ("z",), "exclude_zones": ("x",)}]


async def test_a_zone_that_disappears_is_asked_for_no_more_and_keeps_its_history(scene: Scene) -> None:
    await scene.collect()
    before = (await scene.captured())[zone(2).tag]
    scene.api.zones = [zone(1), zone(3)]
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.asked.clear()
    assert await scene.collect()
    assert scene.api.asked_of(zone(2)) == []
    assert (await scene.captured())[zone(2).tag] == before
    assert [scope.tag for scope in await scene.ledger.read(present_scopes)] == [zone(1).tag, zone(3).tag]
    assert scene.value("cfrw_zones", token="default") == 2


async def test_a_zone_that_comes_back_gets_the_windows_of_its_absence(scene: Scene) -> None:
    await scene.collect()
    scene.api.zones = [zone(1)]
    scene.clock.set(scene.clock.now() + HOUR)
    await scene.collect()
    scene.api.zones = [zone(1), zone(2)]
    scene.clock.set(scene.clock.now() + HOUR)
    assert await scene.collect()
    assert set((await scene.captured())[zone(2).tag]) >= set(due(scene))


async def test_a_zone_that_is_renamed_keeps_its_windows_and_is_asked_for_no_window_twice(scene: Scene) -> None:
    await scene.collect()
    scene.api.zones = [zone(1), zone(2, "renamed.example"), zone(3)]
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.asked.clear()
    assert await scene.collect()
    assert scene.api.asked_of(zone(2)) == due(scene)[-1:]
    assert "renamed.example" in {scope.name for scope in await scene.ledger.read(present_scopes)}


async def test_a_zone_that_is_new_gets_its_windows_back_to_the_replay_bound(scene: Scene) -> None:
    await scene.collect()
    scene.api.zones.append(zone(4))
    scene.clock.set(scene.clock.now() + REFRESH_SECONDS)
    assert await scene.collect()
    assert (await scene.captured())[zone(4).tag] == due(scene)


@pytest.mark.parametrize("listing", [ZoneList(()), failure(ErrorKind.SERVER)], ids=["empty", "failed"])
async def test_a_listing_that_shows_no_zones_leaves_the_last_one_in_force(
    listing: ZoneList | ApiFailure, scene: Scene
) -> None:
    await scene.collect()
    scene.api.listing = listing
    scene.clock.set(scene.clock.now() + HOUR)
    await scene.collect()
    assert await scene.captured() == {each.tag: [due(scene)[0] - HOUR, *due(scene)] for each in scene.api.zones}
    assert len(await scene.ledger.read(present_scopes)) == 3


async def test_without_a_listing_the_zones_of_the_last_life_are_collected_and_the_pass_is_not_complete(
    scene: Scene,
) -> None:
    await scene.collect()
    scene.api.listing = failure(ErrorKind.NETWORK)
    scene.clock.set(scene.clock.now() + HOUR)
    restarted = scene.restarted()
    assert not await restarted.collect()
    assert (await scene.captured())[zone(1).tag][-1] == due(scene)[-1]
    scene.api.listing = None
    assert await restarted.next_pass()


async def test_without_any_zone_nothing_is_asked_and_nothing_is_complete(scene: Scene) -> None:
    scene.api.listing = ZoneList(())
    assert not await scene.collect()
    assert scene.api.asked == []


# ----------------------------------------------------------------------------------------------- when there is no room


async def test_a_ledger_at_its_budget_pauses_collection_until_retention_has_made_room(scene: Scene) -> None:
    scene.api.samples_per_window = 1000
    await scene.collect()
    used = (await scene.ledger.read(room)).used_bytes
    scene.collector = new_collector(scene, scene.settings, max_ledger_bytes=used)
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.asked.clear()
    assert not await scene.collect()
    assert scene.api.asked == []
    await scene.ledger.write(prune, ended_before=scene.clock.now() - 3 * HOUR)
    assert (await scene.ledger.read(room)).used_bytes < used
    assert await scene.next_pass()
    assert all(starts[-1] == due(scene)[-1] for starts in (await scene.captured()).values())


async def test_the_budget_is_looked_at_all_along_a_long_pass(tmp_path: Path) -> None:
    async with a_scene(tmp_path, bucket_seconds=60, replay_hours=24) as scene:
        scene.api.zones = [zone(number) for number in range(10)]
        scene.collector = new_collector(scene, scene.settings, max_ledger_bytes=2**20)
        assert not await scene.collect()
        assert 0 < len((await scene.captured())[zone(1).tag]) < len(due(scene))


def has_no_room_for(verb: object, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    write = scene.ledger.write

    async def full(given: Any, *args: Any, **kwargs: Any) -> Any:
        if given is verb:
            message = "no room is left"
            raise LedgerFullError(message)
        return await write(given, *args, **kwargs)

    monkeypatch.setattr(scene.ledger, "write", full)
    monkeypatch.setattr(scene.ledger, "write_soon", full)


@pytest.mark.parametrize("verb", [record_answer, record_scopes])
async def test_a_full_volume_pauses_collection_and_loses_nothing(
    verb: object, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.api.fault = lambda each, _starts: failure(ErrorKind.MALFORMED) if each == zone(3) else None
    has_no_room_for(verb, scene, monkeypatch)
    assert not await scene.collect()
    assert await scene.captured() == {}
    assert scene.health.loops()[LOOP].completed_at is not None
    monkeypatch.undo()
    # After a listing that could not be written down, Cloudflare may be gone as well.
    if verb is record_scopes:
        scene.api.listing = failure(ErrorKind.NETWORK)
        assert not await scene.next_pass()
    scene.api.listing = None
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}


async def test_windows_past_retention_are_given_up_once_a_full_volume_has_room_for_their_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = failure(ErrorKind.RETENTION, bound_seconds=60)
    scene.api.fault = lambda each, _starts: expired if each == zone(2) else None
    has_no_room_for(record_answer, scene, monkeypatch)
    assert not await scene.collect()
    monkeypatch.undo()

    assert await scene.next_pass()
    assert await scene.holes() == {("zone02.example", HoleReason.EXPIRED, expired.message): len(due(scene))}


# ----------------------------------------------------------------------------------------------- stopping and going on


async def test_after_stopping_no_further_query_is_sent(scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(100)]

    async def stop() -> None:
        scene.stopping.set()

    scene.api.before_answer = stop
    assert not await scene.collect()
    assert len(scene.api.asked) <= 4
    assert len(await scene.captured()) == 10 * len(scene.api.asked), "what was answered is kept"


@pytest.mark.parametrize("moment", range(0, 40, 3))
async def test_a_pass_that_is_cut_off_anywhere_loses_nothing(moment: int, scene: Scene) -> None:
    scene.api.zones = [zone(number) for number in range(25)]
    cut = asyncio.create_task(scene.collect())
    for _ in range(moment):
        await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait([cut])
    # Whatever was being written is written.
    assert await scene.restarted().collect()
    assert await scene.captured() == {each.tag: due(scene) for each in scene.api.zones}
    assert await scene.ledger.read(drifted_buckets) == {}


async def test_passes_follow_each_other_at_the_interval_until_the_worker_stops(tmp_path: Path) -> None:
    async with a_scene(tmp_path, collection_interval_seconds=30) as scene:
        running = asyncio.create_task(scene.collector.run(scene.stopping))
        await sees(lambda: len(scene.clock.slept) > 3, running)
        scene.stopping.set()
        await running
        assert set(scene.clock.slept) == {30}
        assert set((await scene.captured())[zone(1).tag]) >= set(due(scene))


async def test_deliveries_are_told_of_what_was_captured(scene: Scene) -> None:
    news = scene.ledger.listen()
    await scene.collect()
    assert news.is_set()
    news.clear()
    await scene.next_pass()
    assert not news.is_set()


# -------------------------------------------------------------------------------------------------- what is told of it


async def test_a_pass_without_an_outage_is_a_success_even_where_a_zone_is_denied(scene: Scene) -> None:
    scene.api.fault = lambda each, _starts: failure(ErrorKind.PLAN_DATASET) if each == zone(2) else None
    await scene.collect()
    assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == NOW
    assert scene.value("cfrw_zones", token="default") == 3
    assert scene.value("cfrw_zones_failing", token="default") == 1
    scene.api.fault = lambda _zone, _starts: None
    scene.clock.set(NOW + HOUR)
    await scene.collect()
    assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == NOW + HOUR
    assert scene.value("cfrw_zones_failing", token="default") == 0


@pytest.mark.parametrize("retry_after", [None, 300.0])
async def test_a_pass_in_an_outage_is_no_success(retry_after: float | None, scene: Scene) -> None:
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.RATE, retry_after_seconds=retry_after)
    for _ in range(4):
        await scene.next_pass()
    assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == 0
    assert scene.value("cfrw_zones_failing", token="default") == 3


async def test_captures_are_counted(scene: Scene) -> None:
    await scene.collect()
    of_dataset = {"dataset": "http_requests"}
    assert scene.value("cfrw_collect_captured_buckets_total", **of_dataset) == 18
    assert scene.value("cfrw_collect_captured_samples_total", **of_dataset) == 18
    assert scene.value("cfrw_collect_pass_duration_seconds_count") == 1


async def test_hours_of_catching_up_neither_look_like_a_hang_nor_make_the_worker_unready(tmp_path: Path) -> None:
    verdicts: list[bool] = []
    async with a_scene(tmp_path, bucket_seconds=60, replay_hours=24) as scene:
        scene.health.ledger_writable()
        await scene.collect()
        scene.clock.set(scene.clock.now() + 7 * HOUR)
        scene.health.completed(LOOP)
        # Ten minutes a query: the quota is shared with others.
        scene.api.query_seconds = 600.0

        async def look() -> None:
            verdicts.append(scene.health.readiness().ok and scene.health.liveness().ok)
            if len(verdicts) == 20:
                scene.stopping.set()

        scene.api.before_answer = look
        await scene.collect()
        assert verdicts == [True] * 20


async def test_no_log_line_names_the_token(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.TOKEN)
    await scene.collect()
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err


async def test_the_queries_of_the_process_before_count_after_a_restart(scene: Scene) -> None:
    async def take_a_place() -> None:
        granted = await scene.api.quota.acquire(Api.GRAPHQL)
        assert isinstance(granted, Lease)
        with granted:
            pass

    scene.api.before_answer = take_a_place
    await scene.collect()
    sent = len(scene.api.asked)
    del scene.api.quota

    await scene.restarted().collect()
    # Four more: as many may have been under way when the process ended.
    assert scene.api.quota.remaining(Api.GRAPHQL) == 300 - sent - 4
    assert scene.api.quota.remaining(Api.REST) == 1200 - sent - 4
