from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    NOW,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    buckets,
    carry_out_next,
    content,
    pending_ids,
    queue,
    refuse_whole,
    tag,
    window,
)
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    Refusal,
    RefusedSamples,
    Resend,
    acknowledge,
    capture,
    covered,
    delivery_counts,
    drifted_buckets,
    expire,
    hole_counts,
    newest_captured,
    prove_writable,
    prune,
    record_holes,
    refusals,
    refuse,
    refused_samples,
    register_destinations,
    retention,
    room,
    scope_reports,
)


async def captured(ledger: Ledger) -> int:
    return sum(report.captured for report in await ledger.read(scope_reports, since=T0, final_until=NOW))


async def test_what_is_covered_reaches_from_the_oldest_window_to_the_newest(ledger: Ledger) -> None:
    assert await ledger.read(covered) is None
    await ledger.write(capture, buckets([1, 2], [5, 2, 9]), NOW)
    assert await ledger.read(covered) == (T0 + 2 * HOUR, T0 + 9 * HOUR)


async def test_what_every_destination_has_acknowledged_is_deleted_when_it_is_old_enough(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1, 2], range(4)), NOW)
    await acknowledge_all(ledger)

    assert await ledger.write(prune, ended_before=T0 + 2.5 * HOUR) == 4
    assert await ledger.write(prune, ended_before=T0 + 2.5 * HOUR) == 0

    assert await captured(ledger) == 4
    (count,) = await ledger.read(delivery_counts)
    assert count.buckets == 4


async def test_a_window_that_ends_at_the_bound_is_kept(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await acknowledge_all(ledger)

    assert await ledger.write(prune, ended_before=T0 + HOUR) == 0
    assert await ledger.write(prune, ended_before=T0 + HOUR + 1) == 1


async def test_what_is_pending_is_never_deleted(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(2)), NOW)
    await acknowledge_all(ledger, "prom")

    assert await ledger.write(prune, ended_before=NOW) == 0
    await ledger.write(acknowledge, "mimir", (await pending_ids(ledger, "mimir"))[:1], NOW)
    assert await ledger.write(prune, ended_before=NOW) == 1
    assert await queue(ledger, "mimir") == [(1, 1)]


async def test_what_a_repair_asked_for_is_kept_until_it_is_decided(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await acknowledge_all(ledger)
    await ledger.write(ask_for_resend, Resend(T0, T0 + HOUR), reason="", asked_by="", now=NOW)
    await ledger.write(carry_out_next, NOW)

    assert await ledger.write(prune, ended_before=NOW) == 0
    await acknowledge_all(ledger)
    assert await ledger.write(prune, ended_before=NOW) == 1


async def test_what_was_decided_against_is_deleted_too(ledger: Ledger) -> None:
    await ledger.write(capture, buckets([1], range(2)), NOW)
    await ledger.write(refuse_whole, "prom", (await pending_ids(ledger))[:1])
    await ledger.write(expire, ended_before=NOW, now=NOW)

    assert await ledger.write(prune, ended_before=NOW) == 2
    assert await ledger.read(delivery_counts) == ()


async def test_refusals_are_deleted_with_their_buckets_and_no_others(ledger: Ledger) -> None:
    await ledger.write(register_destinations, {"prom": False, "mimir": False}, replay_since=0, now=NOW)
    await ledger.write(capture, buckets([1], range(3)), NOW)
    for name in ("prom", "mimir"):
        told = [Refusal(number, b"\1\0\0\0", 400, "no") for number in await pending_ids(ledger, name)]
        await ledger.write(refuse, name, told, partly=(), now=NOW)

    assert await ledger.write(prune, ended_before=T0 + HOUR + 1) == 1

    assert await ledger.read(refused_samples) == (RefusedSamples("mimir", 2, 2), RefusedSamples("prom", 2, 2))
    kept = await ledger.read(refusals, "prom", newest=5)
    assert [each.timestamp_ms for each in kept] == [(T0 + 2 * HOUR) * 1000, (T0 + HOUR) * 1000]


async def test_what_was_refused_in_part_is_deleted_too(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    ids = await pending_ids(ledger)
    await ledger.write(refuse, "prom", [Refusal(ids[0], b"\1\0\0\0", 400, "no")], partly=ids, now=NOW)

    assert await ledger.write(prune, ended_before=NOW) == 1
    assert await ledger.read(refused_samples) == ()


async def test_what_waits_for_a_destination_that_is_gone_is_deleted(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(register_destinations, {"mimir": False}, replay_since=NOW, now=NOW)

    assert await ledger.write(prune, ended_before=NOW) == 1


async def test_a_bucket_without_samples_is_deleted_when_it_is_old_enough(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0, samples=0)], NOW)

    assert await ledger.write(prune, ended_before=NOW) == 1


async def test_drift_and_holes_go_with_their_windows(ledger: Ledger) -> None:
    await ledger.write(capture, [bucket(1, 0)], NOW)
    await ledger.write(capture, [bucket(1, 0, wrong_by=1.0)], NOW)
    await ledger.write(
        record_holes, [Hole(DATASET, tag(1), window(hour), HoleReason.FAILED, "") for hour in (1, 2)], NOW
    )
    await acknowledge_all(ledger)

    await ledger.write(prune, ended_before=T0 + 2 * HOUR + 1)

    assert await ledger.read(drifted_buckets) == {}
    assert await ledger.read(hole_counts, since=0) == {(DATASET, "failed"): 1}


async def test_old_windows_are_deleted_in_steps_the_oldest_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PRUNE_BATCH", 3)
    await ledger.write(capture, buckets([1, 2], range(4)), NOW)
    await acknowledge_all(ledger)

    steps = []
    while deleted := await ledger.write(prune, ended_before=NOW):
        steps.append((deleted, (await ledger.read(newest_captured))))

    assert [deleted for deleted, _ in steps] == [3, 3, 2]
    assert steps[0][1] == {DATASET: T0 + 4 * HOUR}


async def test_pruning_does_not_get_stuck_behind_what_is_pending(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PRUNE_BATCH", 3)
    await ledger.write(capture, buckets([1], range(8), samples=1), NOW)
    ids = await pending_ids(ledger)
    await ledger.write(acknowledge, "prom", ids[5:], NOW)

    assert await ledger.write(prune, ended_before=NOW) == 3


async def test_the_file_shrinks_when_much_was_deleted(ledger: Ledger, path: Path) -> None:
    await ledger.write(capture, buckets([1, 2, 3], range(300), samples=50), NOW)
    await acknowledge_all(ledger)
    before = await ledger.read(room)

    while await ledger.write(prune, ended_before=NOW):
        pass

    after = await ledger.read(room)
    assert before.file_bytes > 800_000
    assert after.file_bytes < before.file_bytes / 2
    await ledger.close()
    assert len(content(path)) == after.file_bytes


async def test_the_room_counts_what_is_used_and_what_the_file_takes(ledger: Ledger, path: Path) -> None:
    empty = await ledger.read(room)
    await ledger.write(capture, buckets([1], range(300), samples=100), NOW)

    full = await ledger.read(room)

    # 300 buckets of 100 samples at 12 bytes, and a little for their rows.
    assert 360_000 < full.used_bytes - empty.used_bytes < 500_000
    assert full.used_bytes <= full.file_bytes
    assert ledger.log_bytes() > 0
    await ledger.close()
    assert len(content(path)) == full.file_bytes
    assert ledger.log_bytes() == 0


async def test_proving_that_the_ledger_is_writable_writes_and_changes_nothing(ledger: Ledger) -> None:
    await ledger.write(capture, [replace(bucket(1, 0))], NOW)
    before = (await ledger.read(delivery_counts), ledger.log_bytes())

    await ledger.write(prove_writable)

    assert await ledger.read(delivery_counts) == before[0]
    assert ledger.log_bytes() > before[1]
