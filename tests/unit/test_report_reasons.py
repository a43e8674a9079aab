"""What the status says of windows that are missing, and of a destination that did not answer as it should."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    bucket,
    pending_ids,
    refuse_whole,
    scope,
    tag,
    window,
)
from worker.cloudflare import shipped
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, Settings
from worker.health import TokenState, Verdict
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Refusal,
    capture,
    expire,
    note_failure,
    outstanding_windows,
    record_holes,
    record_scopes,
    refuse,
    register_destinations,
    set_aside,
)
from worker.report import Running, report_status
from worker.status import CloudflareStatus, DestinationStatus, GivenUp, ScopeStatus

END = T0 + 24 * HOUR + 600
"""When the 24 windows of the first day are final."""

HTTP = shipped()[DATASET]

RUNNING = Running(Verdict(ok=True, problems=()), CloudflareStatus(TokenState.UNKNOWN, {}, ()))


@dataclass
class Scene:
    """A ledger that expects the first day of one zone."""

    ledger: Ledger
    settings: Settings

    async def captured(self, *hours: int) -> None:
        await self.ledger.write(capture, [bucket(1, hour) for hour in hours], END)

    async def failed(self, reason: HoleReason, detail: str, *hours: int) -> None:
        holes = [Hole(DATASET, tag(1), window(hour), reason, detail) for hour in hours]
        await self.ledger.write(record_holes, holes, END)

    async def zone(self, now: float = END) -> ScopeStatus:
        (status,) = (await report_status(self.ledger, self.settings, now, RUNNING, datasets=[HTTP])).scopes
        return status

    async def destination(self, now: float = END) -> DestinationStatus:
        (status,) = (await report_status(self.ledger, self.settings, now, RUNNING, datasets=[HTTP])).destinations
        return status

    async def restart(self) -> None:
        await self.ledger.close()
        self.ledger = Ledger.open(self.ledger.path)
        await self.ledger.write(register_destinations, {"prom": False}, replay_since=0, now=END)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    path = tmp_path / "ledger.db"
    settings = Settings(
        cloudflare=CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=24),
        destinations=(DestinationSettings(name="prom", url="http://127.0.0.1:9/api/v1/write"),),
        ledger=LedgerSettings(path=path),
    )
    made = Scene(Ledger.open(path), settings)
    await made.ledger.write(record_scopes, [scope(1)], T0)
    await made.ledger.write(register_destinations, {"prom": False}, replay_since=0, now=T0)
    starts = range(T0, T0 + 24 * HOUR, HOUR)
    await made.ledger.write(outstanding_windows, dataset=DATASET, width_seconds=HOUR, tags=[tag(1)], starts=starts)
    yield made
    await made.ledger.close()


# ------------------------------------------------------------------------------------------ windows


async def test_where_nothing_is_missing_there_is_no_reason(scene: Scene) -> None:
    await scene.captured(*range(24))
    zone = await scene.zone()
    assert (zone.expected, zone.captured, zone.missing, zone.reason) == (24, 24, 0, None)


async def test_windows_that_nobody_asked_for_yet_wait_for_their_turn(scene: Scene) -> None:
    await scene.captured(*range(20))
    zone = await scene.zone()
    assert (zone.missing, zone.reason) == (4, "4 waiting for their turn")


async def test_windows_that_were_asked_for_in_vain_are_told_from_those_that_wait(scene: Scene) -> None:
    await scene.captured(*range(18))
    await scene.failed(HoleReason.FAILED, "HTTP status 500", 18, 19)
    zone = await scene.zone()
    assert (zone.missing, zone.reason) == (6, "4 waiting for their turn; 2 failed: HTTP status 500")


@pytest.mark.parametrize("reason", list(HoleReason))
async def test_where_none_waits_only_what_was_asked_for_in_vain_is_told(reason: HoleReason, scene: Scene) -> None:
    await scene.captured(*range(3, 24))
    await scene.failed(reason, "what Cloudflare says", 0, 1, 2)
    zone = await scene.zone()
    assert (zone.missing, zone.reason) == (3, f"3 {reason}: what Cloudflare says")


async def test_a_window_that_is_captured_after_all_has_no_reason_any_more(scene: Scene) -> None:
    await scene.failed(HoleReason.FAILED, "HTTP status 500", *range(24))
    await scene.captured(*range(24))
    assert (await scene.zone()).reason is None


async def test_a_failure_is_told_neither_of_windows_behind_the_replay_bound_nor_of_those_that_are_not_final(
    scene: Scene,
) -> None:
    await scene.captured(*range(2, 24))
    await scene.failed(HoleReason.EXPIRED, "too old", 0, 1)
    assert (await scene.zone(END + 2 * HOUR)).reason == "2 waiting for their turn", "of the new day's first hours"


async def test_a_ledger_at_its_budget_is_told_as_what_the_windows_wait_for(scene: Scene) -> None:
    await scene.captured(*range(18))
    await scene.failed(HoleReason.FAILED, "HTTP status 500", 18)
    full: Any = LedgerSettings.model_construct(path=scene.ledger.path, retention_hours=168, max_bytes=1)
    scene.settings = scene.settings.model_copy(update={"ledger": full})
    zone = await scene.zone()
    assert zone.reason == ("5 collection pauses, the ledger has reached LEDGER_MAX_BYTES; 1 failed: HTTP status 500")
    await scene.captured(*range(18, 24))
    assert (await scene.zone()).reason is None, "nothing is due: there is nothing to pause"


async def test_a_zone_that_has_disappeared_is_not_said_to_miss_what_was_not_final_then(scene: Scene) -> None:
    await scene.captured(*range(23))
    await scene.ledger.write(record_scopes, [], END - 1)
    later = await scene.zone(END + 12 * HOUR)
    assert (later.missing, later.reason) == (0, None)


async def test_a_zone_that_has_disappeared_still_misses_what_was_final_then(scene: Scene) -> None:
    await scene.captured(*range(23))
    await scene.ledger.write(record_scopes, [], END)
    assert (await scene.zone(END + 12 * HOUR)).missing == 1


# ------------------------------------------------------------------------------------------ destinations


async def test_a_destination_that_was_never_sent_anything_has_neither_success_nor_failure(scene: Scene) -> None:
    status = await scene.destination()
    assert (status.last_success_at, status.last_failure_at, status.last_failure) == (None, None, None)


async def test_the_last_success_and_the_last_failure_of_a_destination_outlive_the_worker(scene: Scene) -> None:
    await scene.captured(0, 1)
    await acknowledge_all(scene.ledger)
    await scene.ledger.write(note_failure, "prom", "HTTP 503: busy", END + 60)
    await scene.ledger.write(note_failure, "prom", "HTTP 500: broken", END + 120)
    before = await scene.destination()
    assert (before.last_success_at, before.last_failure_at) == (NOW, END + 120)
    assert before.last_failure == "HTTP 500: broken"
    await scene.restart()
    assert await scene.destination() == before


async def test_what_was_given_up_is_told_apart_from_a_failure_on_the_way(scene: Scene) -> None:
    await scene.captured(0)
    await scene.ledger.write(refuse_whole, "prom", await pending_ids(scene.ledger), reason="out of bounds", now=END)
    status = await scene.destination()
    assert (status.last_failure, status.last_failure_at) == (None, None)
    assert status.given_up == (GivenUp("refused", 1, END, 400, "out of bounds"),)


async def test_each_way_of_giving_up_has_its_own_reason(scene: Scene) -> None:
    await scene.captured(*range(5))
    some, every, damaged, *_ = await pending_ids(scene.ledger)
    told = [Refusal(some, b"\1\0\0\0", 422, "label too long")]
    await scene.ledger.write(refuse, "prom", told, partly={some}, now=END)
    await scene.ledger.write(refuse_whole, "prom", [every], reason="out of bounds", now=END)
    await scene.ledger.write(set_aside, "prom", [damaged], now=END)
    await scene.ledger.write(expire, ended_before=T0 + 4 * HOUR + 1, now=END)
    await scene.ledger.write(note_failure, "prom", "HTTP 503: busy", END)
    status = await scene.destination()
    assert status.last_failure == "HTTP 503: busy"
    assert [(each.state, each.buckets, each.status) for each in status.given_up] == [
        ("damaged", 1, None),
        ("expired", 1, None),
        ("partial", 1, 422),
        ("refused", 1, 400),
    ]
    reasons = [each.reason for each in status.given_up]
    assert "checksum" in reasons[0]
    assert "CF_REPLAY_HOURS" in reasons[1]
    assert reasons[2:] == ["label too long", "out of bounds"]


async def test_what_a_destination_says_is_kept_within_bounds(scene: Scene) -> None:
    await scene.ledger.write(note_failure, "prom", "x" * 100_000, END)
    assert len((await scene.destination()).last_failure or "") == 1024
