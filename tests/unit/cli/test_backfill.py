import json

import pytest

from tests.truth import SAME, difference, expected_content
from tests.unit.cli.scene import HOUR, Scene


def test_a_backfill_fetches_what_is_missing_and_a_second_one_nothing(scene: Scene) -> None:
    scene.collected()
    before = sum(report.captured for report in scene.reports())
    dry = json.loads(scene.cfrw("backfill", "--from", "12h", "--dry-run", "--json").stdout)
    assert (dry["windows"], dry["requests"], dry["out_of_reach"]) == (dry["missing"][0]["windows"], 1, [])
    assert sum(report.captured for report in scene.reports()) == before

    result = scene.cfrw("backfill", "--from", "12h", "--reason", "the worker was away")
    assert result.exit_code == 0, result.output
    assert f"Captured {dry['windows']} buckets" in result.stdout
    captured = {start for _, _, _, _, start, *_ in scene.content()["bucket"]}
    starts = range(min(captured), max(captured) + HOUR, HOUR)
    assert captured == set(starts)
    assert len(starts) in {10, 11}
    wanted = expected_content(scene.world.fleet, scene.world.fleet.zones, starts)
    received = {frozenset(labels): samples for labels, samples in scene.world.receiver.samples.items()}
    assert difference(wanted, received) == SAME
    requests = scene.world.receiver.answers.total()

    again = scene.cfrw("backfill", "--from", "12h")
    # In the first minutes of an hour the newest window is told of, as it is not final.
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "Nothing is missing that can be fetched")
    assert scene.world.receiver.answers.total() == requests
    (entry,) = scene.journal()
    assert (entry["reason"], entry["state"]) == ("the worker was away", "done")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "73h"], "is further back than CF_BACKFILL_MAX_HOURS (72 h) allows; --max-hours 73 goes that far"),
        (
            ["--from", "7h", "--max-hours", "6"],
            "is further back than --max-hours 6 allows; --max-hours 7 goes that far",
        ),
        (["--from", "169h", "--max-hours", "200"], "(LEDGER_RETENTION_HOURS=168): they would be deleted"),
        (["--from", "1h", "--to", "2h"], "nothing lies between --from"),
        (["--from", "2999-01-01"], "is in the future"),
        (["--from", "2h", "--zone", "no-such-zone"], "--zone no-such-zone is not known"),
        (["--from", "2h", "--dataset", "http_request"], "did you mean http_requests"),
        (["--from", "2h", "--dataset", "certificates"], "facts have no past"),
    ],
)
def test_what_cannot_be_fetched_is_told_with_exit_code_2_and_not_put_on_record(
    arguments: list[str], told: str, scene: Scene
) -> None:
    scene.collected()
    result = scene.cfrw("backfill", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert scene.journal() == []
