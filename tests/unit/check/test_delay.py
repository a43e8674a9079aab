from typing import Any

from tests.unit.cloudflare.datasets import HTTP_OVERVIEW, HTTP_REQUESTS, KV_STORED
from worker.check.delay import look_at_delays
from worker.check.finding import Finding, State
from worker.check.memory import Memory
from worker.config import CloudflareSettings
from worker.lateness import FEWEST_WINDOWS
from worker.ledger import Reading, Room

DELAY, AFTER = 600, 900


def looked(readings: dict[str, tuple[Reading, ...]] | None, **changes: Any) -> list[Finding]:
    settings = CloudflareSettings.model_validate({"api_token": "t", "delay_seconds": DELAY} | changes)
    memory = None if readings is None else Memory((), (), {}, readings, Room(0, 0), None)
    return list(look_at_delays(settings, [HTTP_REQUESTS, KV_STORED, HTTP_OVERVIEW], memory))


def windows(*differing: int) -> tuple[Reading, ...]:
    return tuple(
        Reading(number, DELAY, AFTER, samples, samples / 100) for number, samples in enumerate(differing, start=1)
    )


def test_without_a_ledger_nothing_is_measured_of_any_dataset() -> None:
    (finding,) = looked(None)
    assert finding.state is State.SKIPPED
    assert finding.what.startswith(f"{HTTP_REQUESTS.name}, {KV_STORED.name}, {HTTP_OVERVIEW.name}: not measured yet")
    assert finding.to_do == ""


def test_where_nothing_is_measured_at_all_the_setting_is_named() -> None:
    (finding,) = looked(None, drift_sample_percent=0)
    assert "CF_DRIFT_SAMPLE_PERCENT" in finding.to_do


def test_every_dataset_is_judged_by_its_own_readings() -> None:
    enough, short, estimated = looked(
        {
            HTTP_REQUESTS.name: windows(*[0] * FEWEST_WINDOWS),
            KV_STORED.name: windows(*[3] * FEWEST_WINDOWS),
            HTTP_OVERVIEW.name: windows(*[3] * FEWEST_WINDOWS),
        }
    )
    assert (enough.state, short.state, estimated.state) == (State.OK, State.WARNING, State.SKIPPED)
    assert "none of 20 windows" in enough.what
    assert "the delay of 600 s is too short" in short.what
    assert short.to_do == f"set CF_DELAY_SECONDS={DELAY + AFTER}"
    assert "estimates" in estimated.what


def test_too_few_readings_say_nothing() -> None:
    few, *_ = looked({HTTP_REQUESTS.name: windows(0, 0)})
    assert few.state is State.SKIPPED
    assert "2 windows were read again so far" in few.what
