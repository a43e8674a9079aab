import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.simulator.worlds import NOW
from worker.simulator.refusals import Details, Dialect, RefusalKind, duration, refusal, usual_path

RECORDED = Path(__file__).parents[4] / "shared" / "cloudflare" / "responses"


def recorded_error(name: str) -> dict[str, Any]:
    path = RECORDED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"the recorded answers of Cloudflare are not at {RECORDED}")
    (error,) = json.loads(path.read_text())["errors"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(
    ("name", "kind", "node", "details"),
    [
        ("rateLimiting", RefusalKind.BUDGET, None, Details()),
        ("notAuthorized", RefusalKind.ACCOUNT_UNAUTHORIZED, None, Details()),
        ("zoneNotAuthorized", RefusalKind.ZONE_UNAUTHORIZED, "httpRequests1hGroups", Details()),
        (
            "timeRangeTooLarge",
            RefusalKind.WINDOW,
            "httpRequests1mGroups",
            Details(zone_tag="adc2ae237a1e542b43cb726eb3c43d42", limit_seconds=54_000, asked_seconds=86_400),
        ),
    ],
)
def test_the_earlier_dialect_is_the_recorded_one(
    name: str, kind: RefusalKind, node: str | None, details: Details
) -> None:
    recorded = recorded_error(name)
    made = refusal(kind, Dialect.EARLIER, usual_path(kind, 0, node or ""), node=node, details=details).as_json(NOW)
    assert made["message"] == recorded["message"]
    assert made["path"] == recorded["path"]
    assert made["extensions"].keys() >= recorded["extensions"].keys()
    assert made["extensions"].get("code") == recorded["extensions"].get("code", made["extensions"].get("code"))


@pytest.mark.parametrize("kind", list(RefusalKind))
@pytest.mark.parametrize("dialect", list(Dialect))
def test_every_kind_of_error_has_a_message_and_a_status_in_either_dialect(kind: RefusalKind, dialect: Dialect) -> None:
    made = refusal(kind, dialect)
    assert made.message
    assert "{" not in made.message
    assert made.status == 200 or dialect is Dialect.RECENT


def test_an_error_carries_the_time_at_which_it_occurred() -> None:
    made = refusal(RefusalKind.INTERNAL, Dialect.RECENT)
    assert made.as_json(NOW + 0.25) == {
        "message": "Internal server error",
        "path": None,
        "extensions": {"timestamp": "2025-06-17T15:00:00.250000000Z"},
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (54_000, "15h"), (31_539_600, "52w1d1h"), (2_592_000, "4w2d"), (90_061, "1d1h1m1s")],
)
def test_durations_are_written_as_cloudflare_writes_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text
