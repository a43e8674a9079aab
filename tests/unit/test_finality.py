"""No window is captured before Cloudflare's own clock says that it is final, nor before an older one of its zone."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.truth import expected_content
from tests.unit.ledger.fleet import samples_of, whole_queue
from tests.unit.test_collect import DELAY, HOUR, NOW, TOKEN, Scene, WallClock, a_scene, due, failure, scene, zone
from worker.cloudflare import (
    Answered,
    CloudflareApi,
    Dataset,
    ErrorKind,
    Failed,
    ScopeAnswer,
    TokenRefused,
    Zone,
    shipped,
)
from worker.ledger import HoleReason, drifted_buckets, present_scopes, register_destinations, scope_reports
from worker.listing import REFRESH_SECONDS
from worker.series import label_block
from worker.simulator.api import SimulatedApi
from worker.simulator.fleet import Fleet, Plan

__all__ = ["scene"]  # a fixture

AHEAD_SECONDS = 3 * HOUR

FLEET = Fleet(7, zones=3, plans=(Plan.ENTERPRISE,))

WIDTH_SECONDS = 300


class RightClock(ManualClock):
    """Cloudflare's clock: the worker's, without what somebody set that one ahead by."""

    def __init__(self, clock: WallClock) -> None:
        super().__init__()
        self._wall = clock

    def now(self) -> float:
        return self._wall.now() - self._wall.ahead_seconds


@pytest.fixture
async def simulated(tmp_path: Path) -> AsyncIterator[Scene]:
    """A collector before the simulated API, which knows the right time and shows of young windows only a part."""
    async with a_scene(tmp_path, bucket_seconds=WIDTH_SECONDS) as made:
        simulator = SimulatedApi(FLEET, RightClock(made.clock), tokens=(TOKEN,))
        api: Any = CloudflareApi(
            api_url="http://127.0.0.1/client/v4",
            token=TOKEN,
            clock=made.clock,
            transport=httpx.ASGITransport(simulator),
        )
        await made.ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
        replaced = replace(made, api=api)
        yield replaced.restarted()
        await api.aclose()


async def captured_samples(scene: Scene) -> dict[tuple[bytes, int], float]:
    """Every sample that was captured, by label block and timestamp."""
    return {
        (block, timestamp_ms): value
        for page in await whole_queue(scene.ledger, "prom")
        for block, timestamp_ms, value in samples_of(page.batch)
    }


def true_samples(starts: range) -> dict[tuple[bytes, int], float]:
    content = {}
    for labels, values in expected_content(FLEET, FLEET.zones, starts).items():
        others = dict(labels)
        block = label_block(others.pop("__name__"), others)
        content.update({(block, timestamp_ms): value for timestamp_ms, value in values.items()})
    return content


def final(first: int, right_now: float) -> range:
    """The windows from `first` on that are final at this moment of the right time."""
    end = int(right_now - DELAY) // WIDTH_SECONDS * WIDTH_SECONDS
    return range(first, end, WIDTH_SECONDS)


# ------------------------------------------------------------------------------------------ a clock that was set


@pytest.mark.parametrize("passes_ahead", [1, 4])
async def test_windows_that_only_a_clock_set_ahead_takes_for_final_are_not_captured_before_they_are(
    passes_ahead: int, simulated: Scene
) -> None:
    assert await simulated.collect()
    first = due(simulated)[0]
    simulated.clock.step(AHEAD_SECONDS)
    assert not await simulated.next_pass(), "the answer shows that the clock is wrong"
    for _ in range(passes_ahead - 1):
        await simulated.next_pass()
    right_now = simulated.clock.now() - AHEAD_SECONDS
    assert await captured_samples(simulated) == true_samples(final(first, right_now))
    simulated.clock.step(-AHEAD_SECONDS)
    simulated.clock.set(simulated.clock.now() + REFRESH_SECONDS)
    assert await simulated.collect()
    assert await simulated.next_pass()
    assert await captured_samples(simulated) == true_samples(final(first, simulated.clock.now()))
    assert await simulated.ledger.read(drifted_buckets) == {}


async def test_while_the_clock_stays_ahead_windows_are_captured_when_they_are_final_by_cloudflare_s(
    simulated: Scene,
) -> None:
    assert await simulated.collect()
    first = due(simulated)[0]
    simulated.clock.step(AHEAD_SECONDS)
    for _ in range(60):
        await simulated.next_pass()
    right_now = simulated.clock.now() - AHEAD_SECONDS
    assert await captured_samples(simulated) == true_samples(final(first, right_now))
    assert len(final(first, right_now)) > len(final(first, NOW))


async def test_a_clock_set_ahead_does_not_give_up_what_cloudflare_still_has(scene: Scene) -> None:
    bound = failure(ErrorKind.RETENTION, bound_seconds=4 * HOUR)
    scene.api.tells_the_time = True
    scene.clock.step(2 * HOUR)

    def right_now() -> float:
        return scene.clock.now() - scene.clock.ahead_seconds

    async def fetch(
        _datasets: Sequence[Dataset], _width: int, zones: list[Zone], starts: range, **_options: Any
    ) -> list[ScopeAnswer]:
        lost = [start for start in starts if start < right_now() - 4 * HOUR]
        if lost:
            return [Failed(shipped()["http_requests"], each, starts, bound) for each in zones]
        return [
            Answered(shipped()["http_requests"], each, {start: scene.api.samples(each, start) for start in starts})
            for each in zones
        ]

    api: Any = scene.api
    api.fetch = fetch
    await scene.collect()
    await scene.next_pass()
    last = int(right_now() - DELAY) // HOUR * HOUR - HOUR
    assert await scene.captured() == {each.tag: [last - 2 * HOUR, last - HOUR, last] for each in scene.api.zones}


# ------------------------------------------------------------------------------------------ order within a zone


def split(scene: Scene, bad: Zone, kind: ErrorKind, lost: slice) -> None:
    """From now on Cloudflare fails some of the windows of one zone, and answers those around them."""

    async def fetch(
        _datasets: Sequence[Dataset], _width: int, zones: list[Zone], starts: range, **_options: Any
    ) -> list[ScopeAnswer]:
        answers: list[ScopeAnswer] = []
        for each in zones:
            failed = starts[lost] if each == bad else starts[:0]
            good = {start: scene.api.samples(each, start) for start in starts if start not in failed}
            answers += [Answered(shipped()["http_requests"], each, good)] if good else []
            answers += (
                [Failed(shipped()["http_requests"], each, failed, failure(kind, bound_seconds=60))] if failed else []
            )
        return answers

    api: Any = scene.api
    api.fetch = fetch


async def capture_order(scene: Scene, each: Zone) -> list[int]:
    return await scene.ledger.read(starts_as_captured, each.tag)


def starts_as_captured(session: Any, tag: str) -> list[int]:
    rows = session._connection.execute(
        "SELECT start FROM bucket JOIN scope ON scope.id = scope_id WHERE tag = ? ORDER BY bucket.id", (tag,)
    )
    return [start for (start,) in rows]


@pytest.mark.parametrize("kind", [ErrorKind.SERVER, ErrorKind.NETWORK, ErrorKind.RATE])
@pytest.mark.parametrize("lost", [slice(0, 2), slice(2, 3), slice(5, 6)], ids=["first", "middle", "last"])
async def test_a_window_waits_for_the_older_one_of_its_zone_that_had_no_answer_and_both_come_in_order(
    kind: ErrorKind, lost: slice, scene: Scene
) -> None:
    windows = due(scene)
    fetch = scene.api.fetch
    split(scene, zone(2), kind, lost)
    assert not await scene.collect()
    assert await capture_order(scene, zone(2)) == windows[: lost.start]
    assert await capture_order(scene, zone(1)) == windows, "another zone waits for nothing"
    holes = await scene.holes()
    assert {(name, reason) for name, reason, _ in holes} == {("zone02.example", HoleReason.FAILED)}
    api: Any = scene.api
    api.fetch = fetch
    assert await scene.next_pass()
    assert await capture_order(scene, zone(2)) == windows
    assert await scene.ledger.read(drifted_buckets) == {}


async def test_windows_that_cloudflare_has_no_more_hold_up_none_behind_them(scene: Scene) -> None:
    windows = due(scene)
    split(scene, zone(2), ErrorKind.RETENTION, slice(0, 2))
    assert await scene.collect()
    assert await capture_order(scene, zone(2)) == windows[2:]
    reason = ("zone02.example", HoleReason.EXPIRED, "what Cloudflare says about retention")
    assert await scene.holes() == {reason: 2}


# ------------------------------------------------------------------------------------------ which zones


CHANGES: list[tuple[Mapping[str, tuple[str, ...]], list[int]]] = [
    ({"exclude_zones": ("zone02.example",)}, [1, 3]),
    ({"exclude_zones": (zone(2).tag,)}, [1, 3]),
    ({"exclude_zones": ("ZONE02.example", zone(3).tag)}, [1]),
    ({"zones": ("zone02.example",)}, [2]),
    ({"zones": (zone(1).tag, "zone02.example"), "exclude_zones": ("zone01.example",)}, [2]),
    ({"accounts": ("Example",)}, [1, 2, 3]),
    ({"accounts": ("another",)}, []),
]


@pytest.mark.parametrize(("change", "left"), CHANGES)
async def test_zones_that_the_settings_exclude_now_are_not_collected_while_the_listing_fails(
    change: Mapping[str, tuple[str, ...]], left: list[int], scene: Scene
) -> None:
    await scene.collect()
    scene.clock.set(scene.clock.now() + HOUR)
    scene.api.listing = failure(ErrorKind.SERVER)
    scene.api.asked.clear()
    restarted = scene.restarted(**change)
    assert not await restarted.collect()
    assert {tag for asked in scene.api.asked for tag in asked.tags} == {zone(number).tag for number in left}
    assert scene.value("cfrw_zones", token="default") == len(left)
    assert len(await scene.ledger.read(present_scopes)) == 3, "what was listed before is not forgotten for that"


# ------------------------------------------------------------------------------------------ a listing that fails


async def test_a_listing_that_fails_is_tried_once_in_a_collection_interval_however_many_rounds_there_are(
    tmp_path: Path,
) -> None:
    async with a_scene(tmp_path, bucket_seconds=60, replay_hours=6) as scene:
        scene.api.zones = [zone(1)]
        await scene.collect()
        scene.api.listing = failure(ErrorKind.SERVER)
        scene.api.query_seconds = 5.0
        scene.clock.set(scene.clock.now() + 5 * HOUR)
        scene.api.asked.clear()
        before = scene.api.listed
        restarted = scene.restarted()
        assert not await restarted.collect()
        assert len(scene.api.asked) >= 5, "several rounds"
        assert scene.api.listed == before + 1
        for tried in range(2, 5):
            await restarted.next_pass()
            assert scene.api.listed == before + tried
        scene.api.listing = None
        assert await restarted.next_pass()
        assert await restarted.next_pass()
        assert scene.api.listed == before + 5, "a listing that worked is good for half an hour"


async def test_a_pass_is_no_success_while_the_token_is_refused(scene: Scene) -> None:
    await scene.collect()
    scene.api.token = TokenRefused("Invalid API Token")
    scene.api.listing = failure(ErrorKind.TOKEN)
    scene.api.fault = lambda _zone, _starts: failure(ErrorKind.TOKEN)
    for _ in range(3):
        # With something to ask for and without.
        scene.clock.set(scene.clock.now() + REFRESH_SECONDS)
        assert not await scene.collect()
        assert not await scene.next_pass()
        assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == NOW
    scene.api.listing = None
    scene.api.fault = lambda _zone, _starts: None
    assert await scene.next_pass()
    assert scene.value("cfrw_collect_last_success_timestamp_seconds", token="default") == scene.clock.now()


# ------------------------------------------------------------------------------------------ zones that disappear


@pytest.mark.parametrize("gone_after_seconds", [0, REFRESH_SECONDS, HOUR])
async def test_a_zone_that_disappears_leaves_no_window_missing_that_was_not_final_then(
    gone_after_seconds: int, tmp_path: Path
) -> None:
    async with a_scene(tmp_path, bucket_seconds=60) as scene:
        for _ in range(int(gone_after_seconds) // 60):
            await scene.next_pass()
        await scene.collect()
        scene.api.zones = [zone(1), zone(3)]
        await scene.restarted().collect()
        scene.clock.set(scene.clock.now() + 2 * HOUR)
        await scene.restarted().collect()
        now = scene.clock.now()
        reports = await scene.ledger.read(
            scope_reports, since=now - 6 * HOUR, final_until=now - DELAY, delay_seconds=DELAY
        )
        assert {report.tag: report.missing for report in reports} == {zone(number).tag: 0 for number in (1, 2, 3)}


async def test_a_zone_that_disappears_during_an_outage_leaves_missing_what_was_final_then(scene: Scene) -> None:
    await scene.collect()
    scene.api.fault = lambda each, _starts: failure(ErrorKind.MALFORMED) if each == zone(2) else None
    scene.clock.set(scene.clock.now() + 2 * HOUR)
    assert not await scene.collect()
    scene.api.zones = [zone(1), zone(3)]
    await scene.restarted().collect()
    scene.clock.set(scene.clock.now() + HOUR)
    now = scene.clock.now()
    reports = await scene.ledger.read(scope_reports, since=now - 6 * HOUR, final_until=now - DELAY, delay_seconds=DELAY)
    missing = {report.name: report.missing for report in reports}
    assert missing["zone02.example"] == 2
