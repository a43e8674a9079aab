from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.ledger.fleet import acknowledge_all, pending_ids, refuse_whole
from tests.unit.test_backfill import HOUR, HTTP, NOW, T0, hours, tag
from worker.buckets import Bucket, Window
from worker.config import CloudflareSettings
from worker.gaps import Cause, Gap, Gaps, find_gaps
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Scope,
    capture,
    prune,
    record_denials,
    record_holes,
    record_scopes,
    register_destinations,
)
from worker.series import label_block
from worker.times import instant

SETTINGS = CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=4, backfill_max_hours=10)
"""What ended before a quarter past eight is older than automatic replay."""


@dataclass
class Scene:
    ledger: Ledger

    async def captured(self, zone: int, starts: Sequence[int]) -> None:
        series = (label_block("cloudflare_zone_requests", {"zone_id": tag(zone)}),)
        await self.ledger.write(
            capture,
            [
                Bucket("http_requests", tag(zone), Window(start, HOUR), start * 1000, series, array("d", [1.0]))
                for start in starts
            ],
            NOW,
        )

    async def hole(self, zone: int, starts: Sequence[int], reason: HoleReason, detail: str) -> None:
        holes = [Hole("http_requests", tag(zone), Window(start, HOUR), reason, detail) for start in starts]
        await self.ledger.write(record_holes, holes, NOW)

    async def gaps(self, *, until: int = int(NOW), now: float = NOW, retention_hours: int = 24, **more: Any) -> Gaps:
        return await find_gaps(
            self.ledger, SETTINGS, [HTTP], since=T0, until=until, retention_hours=retention_hours, now=now, **more
        )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    zones = [Scope(tag(number), f"zone{number}.example", "a" * 32, "Example", "pro") for number in (1, 2)]
    await ledger.write(record_scopes, zones, NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    yield Scene(ledger)
    await ledger.close()


def told(gaps: Gaps) -> list[tuple[Cause, tuple[str, ...], int, int, int, str]]:
    return [
        (gap.cause, gap.scopes, (gap.since - T0) // HOUR, (gap.until - T0) // HOUR, gap.windows, gap.detail)
        for gap in gaps.gaps
    ]


BOTH = ("zone1.example", "zone2.example")


async def test_nothing_is_missing_where_everything_was_captured_and_delivered(scene: Scene) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 12))
    await acknowledge_all(scene.ledger)
    assert await scene.gaps() == Gaps((), 2, T0), "the windows of this hour are not over yet"


async def test_windows_of_zones_that_lack_the_same_are_one_gap_by_what_became_of_them(scene: Scene) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 3))
    await acknowledge_all(scene.ledger)
    await scene.hole(1, hours(4, 6), HoleReason.FAILED, "HTTP 503")
    await scene.hole(2, hours(4, 6), HoleReason.FAILED, "HTTP 503")
    await scene.hole(2, hours(10, 11), HoleReason.FAILED, "HTTP 429")
    found = await scene.gaps()
    assert told(found) == [
        (Cause.GIVEN_UP, BOTH, 4, 6, 4, "HTTP 503"),
        (Cause.NEVER_ASKED, BOTH, 3, 4, 2, ""),
        (Cause.NEVER_ASKED, BOTH, 6, 8, 4, ""),
        (Cause.FAILED, ("zone2.example",), 10, 11, 1, "HTTP 429"),
        (Cause.WAITING, ("zone1.example",), 8, 12, 4, ""),
        (Cause.WAITING, ("zone2.example",), 8, 10, 2, ""),
        (Cause.WAITING, ("zone2.example",), 11, 12, 1, ""),
    ]
    # One command fetches what nobody would otherwise, and another one what a running worker is at.
    commands = [
        "cfrw backfill --from 2025-06-16T03:00:00Z --to 2025-06-16T08:00:00Z --max-hours 11",
        "cfrw backfill --from 2025-06-16T08:00:00Z --to 2025-06-16T12:00:00Z",
    ]
    assert [gap.command for gap in found.gaps] == [commands[0]] * 3 + [commands[1]] * 4


async def test_a_command_names_what_it_fills_where_that_is_not_all_of_what_was_asked_about(scene: Scene) -> None:
    await scene.captured(1, hours(0, 12))
    await scene.captured(2, hours(0, 11))
    await acknowledge_all(scene.ledger)
    backfill = "cfrw backfill --config 'the settings.yaml' --from 2025-06-16T11:00:00Z --to 2025-06-16T12:00:00Z"
    options = ["--config", "the settings.yaml"]

    async def command(**asked: Any) -> str | None:
        (gap,) = (await scene.gaps(options=options, **asked)).gaps
        return gap.command

    assert await command() == f"{backfill} --zone zone2.example"
    assert await command(zones=[tag(2)]) == f"{backfill} --zone {tag(2)}", "what was not asked about is not fetched"
    assert await command(datasets=["http_requests"]) == f"{backfill} --dataset http_requests --zone zone2.example"


async def test_one_command_sends_again_all_that_a_destination_lacks_of_a_stretch_of_time(scene: Scene) -> None:
    zones = [Scope(tag(number), f"zone{number}.example", "a" * 32, "Example", "pro") for number in range(1, 22)]
    await scene.ledger.write(record_scopes, zones, NOW)
    for zone in range(1, 22):
        await scene.captured(zone, hours(0, 4))
    # Of one zone nothing is refused in the first hour, and of another one something of an hour that is by itself.
    by_zone = [(await pending_ids(scene.ledger))[number::21] for number in range(21)]
    for ids in by_zone[:20]:
        await scene.ledger.write(refuse_whole, "prom", ids[:2], status=400, reason="no")
    await scene.ledger.write(refuse_whole, "prom", [by_zone[20][1]], status=400, reason="no")
    await scene.ledger.write(refuse_whole, "prom", [by_zone[0][3]], status=400, reason="not this one either")

    def resend(first: int, last: int) -> str:
        until = f"--until 2025-06-16T0{last}:00:00Z --destination prom --dataset http_requests"
        return f"cfrw resend --since 2025-06-16T0{first}:00:00Z {until}"

    commands = {gap.command: gap for gap in (await scene.gaps(until=T0 + 4 * HOUR)).gaps}
    assert list(commands) == [resend(0, 2), f"{resend(3, 4)} --zone zone1.example"]


async def test_a_gap_further_back_than_a_backfill_reaches_is_filled_by_one_that_is_told_to_go_further(
    scene: Scene,
) -> None:
    oldest = next(gap for gap in (await scene.gaps()).gaps if gap.since == T0)
    assert oldest.command is not None
    assert oldest.command.endswith("--max-hours 14")


async def test_what_is_denied_or_expired_has_no_command(scene: Scene) -> None:
    await scene.ledger.write(record_denials, {("http_requests", tag(1)): "not in the plan"}, NOW)
    await scene.captured(2, hours(4, 12))
    await acknowledge_all(scene.ledger)
    await scene.hole(2, hours(0, 4), HoleReason.EXPIRED, "cannot request data older than 8h")
    found = await scene.gaps()
    assert told(found) == [
        (Cause.EXPIRED, ("zone2.example",), 0, 4, 4, "cannot request data older than 8h"),
        (Cause.DENIED, ("zone1.example",), 0, 12, 12, "not in the plan"),
    ]
    assert [gap.command for gap in found.gaps] == [None, None]


async def test_what_a_destination_decided_against_is_a_gap_of_what_was_captured(scene: Scene) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 12))
    first, other, second, *others = await pending_ids(scene.ledger)  # the other one is of the second zone
    await scene.ledger.write(refuse_whole, "prom", [first, second], status=400, reason="too old sample")
    await acknowledge_all(scene.ledger, "prom", [other, *others])
    (gap,) = (await scene.gaps()).gaps
    assert gap == Gap(
        Cause.NOT_DELIVERED,
        "http_requests",
        ("zone1.example",),
        HOUR,
        T0,
        T0 + 2 * HOUR,
        2,
        "prom",
        "refused: HTTP 400: too old sample",
        "cfrw resend --since 2025-06-16T00:00:00Z --until 2025-06-16T02:00:00Z --destination prom"
        " --dataset http_requests --zone zone1.example",
    )
    assert (await scene.gaps(zones=["zone2.example"])).gaps == ()


async def test_windows_that_are_not_final_are_not_due(scene: Scene) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 11))
    await acknowledge_all(scene.ledger)
    assert await scene.gaps(until=T0 + 12 * HOUR, now=NOW - 600) == Gaps((), 2, T0)


async def test_a_window_is_due_once_its_delay_has_passed_and_not_a_second_before(scene: Scene) -> None:
    assert (await scene.gaps(until=T0 + HOUR, now=T0 + HOUR + 599)).not_final == 2
    found = await scene.gaps(until=T0 + HOUR, now=T0 + HOUR + 600)
    assert found.not_final == 0
    assert told(found) == [(Cause.WAITING, BOTH, 0, 1, 2, "")]


async def test_what_the_ledger_deletes_when_it_is_delivered_is_not_called_missing(scene: Scene) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 12))
    await acknowledge_all(scene.ledger)
    await scene.ledger.write(prune, ended_before=NOW - 6 * HOUR)
    found = await scene.gaps(retention_hours=6)
    assert (found.gaps, found.since) == ((), int(NOW) - 6 * HOUR)


async def test_what_was_not_delivered_of_zones_and_datasets_that_are_not_collected_any_more_is_a_gap(
    scene: Scene,
) -> None:
    for zone in (1, 2):
        await scene.captured(zone, hours(0, 12))
    fact = Bucket("certificates", tag(2), Window(T0 + 12 * HOUR, HOUR), int(NOW) * 1000, (b"",), array("d", [1.0]))
    await scene.ledger.write(capture, [fact], NOW)
    await scene.ledger.write(record_scopes, [], NOW)
    first, *others, last = await pending_ids(scene.ledger)
    await scene.ledger.write(refuse_whole, "prom", [first, last], status=400, reason="no")
    await acknowledge_all(scene.ledger, "prom", others)

    found = (await scene.gaps(until=int(NOW))).gaps

    assert [(gap.dataset, gap.scopes) for gap in found] == [
        ("http_requests", ("zone1.example",)),
        ("certificates", ("zone2.example",)),
    ]
    assert found[1].command is not None
    assert f"--until {instant(NOW)}" in found[1].command, "not a time to come"
    assert [gap.dataset for gap in (await scene.gaps(until=int(NOW), datasets=["certificates"])).gaps] == [
        "certificates"
    ]


async def test_the_ledger_is_asked_as_often_for_many_zones_as_for_few(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read = scene.ledger.read

    async def count(verb: Any, *arguments: Any, **more: Any) -> Any:
        asked.append(verb.__name__)
        return await read(verb, *arguments, **more)

    monkeypatch.setattr(scene.ledger, "read", count)
    await scene.gaps()
    of_two = len(asked)
    zones = [Scope(tag(number), f"zone{number}.example", "a" * 32, "Example", "pro") for number in range(1, 50)]
    await scene.ledger.write(record_scopes, zones, NOW)
    found = await scene.gaps()
    assert [len(gap.scopes) for gap in found.gaps] == [49, 49]
    assert len(asked) == 2 * of_two
