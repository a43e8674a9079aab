import json
from pathlib import Path
from typing import Any

import pytest

from tests import exporting
from tests.unit.cli.scene import Scene, World, config_file
from tests.unit.ledger.fleet import NOW
from worker import verification
from worker.cli import verify as command
from worker.ledger import (
    Arguments,
    Job,
    JobState,
    Progress,
    Verify,
    VerifyCount,
    VerifyResult,
)
from worker.remote_write import Found, ReadBack, Selector

MISSING = VerifyResult(totals=(VerifyCount("prom", equal=1, missing=1),))


@pytest.fixture
def can_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver tells what it has stored, as far as it is asked for."""

    async def read(_: ReadBack, selector: Selector, first_ms: int, last_ms: int) -> Found:
        return Found(
            {
                frozenset(labels): [sample for sample in samples.items() if first_ms <= sample[0] <= last_ms]
                for labels, samples in world.receiver.samples.items()
                if dict(labels)["__name__"] in selector.metrics
                and dict(labels)["zone_id"] in selector.labels["zone_id"]
            }
        )

    monkeypatch.setattr(ReadBack, "read", read)
    monkeypatch.setattr(verification, "_SETTLE_SECONDS", 0.0)


@pytest.mark.usefixtures("can_be_read")
def test_verify_tells_what_was_lost_and_sends_it_again_when_asked_to(scene: Scene) -> None:
    scene.collected()
    stored = scene.world.receiver.samples
    samples = sum(map(len, stored.values()))
    plan = scene.cfrw("verify", "--since", "10h", "--dry-run").stdout
    assert f"would be read back from {scene.world.write_url.removesuffix('/api/v1/write')}" in plan
    assert scene.journal() == []
    assert scene.cfrw("verify", "--since", "10h").exit_code == 0

    labels, lost = next((labels, samples) for labels, samples in stored.items() if len(samples) > 1)
    moment, value = lost.popitem()
    result = scene.cfrw("verify", "--since", "10h")
    assert result.exit_code == 3
    assert f"ledger {value!r}, not there" in result.stdout
    assert dict(labels)["zone"] in result.stdout
    assert result.stdout in scene.cfrw("journal", "2").stdout
    assert moment not in lost

    healed = scene.cfrw("verify", "--since", "10h", "--repair", "--json")
    assert healed.exit_code == 0
    found, repair = json.loads(healed.stdout)
    assert found["result"]["totals"][0]["missing"] == 1
    assert [(count["state"], count["samples"]) for count in repair["result"]["outcome"]] == [
        ("acknowledged", 1),
        ("already there", samples - 1),
    ]
    assert lost[moment] == value

    again = scene.cfrw("verify", "--since", "10h", "--repair")
    assert again.exit_code == 0
    assert scene.world.receiver.repeated_samples == 0
    only_missing = scene.cfrw("resend", "--since", "10h", "--only-missing")
    assert only_missing.exit_code == 0
    assert "already there" in only_missing.stdout
    assert scene.world.receiver.repeated_samples == 0
    # Two reads, one of them healed, another read that found nothing to heal, and a resend of its own.
    is_resend = ["only_missing" in entry["arguments"] for entry in scene.journal()]
    assert is_resend == [False, False, False, True, False, True]


def test_what_cannot_be_read_is_not_called_lost(scene: Scene, tmp_path: Path) -> None:
    scene.collected()
    result = scene.cfrw("verify", "--since", "10h")
    assert result.exit_code == 3
    assert "was not read to the end: HTTP 404" in result.stdout
    assert "check query_url" in result.stdout
    elsewhere = config_file(tmp_path, scene)
    url = "http://127.0.0.1:1/api/v1/receive?key=canary"
    elsewhere.write_text(elsewhere.read_text().replace(scene.world.write_url, url))
    scene.environment = dict.fromkeys(scene.environment)
    for arguments in (["verify", "--since", "10h"], ["resend", "--since", "10h", "--only-missing"]):
        result = scene.cfrw(*arguments, "--config", str(elsewhere))
        assert result.exit_code == 2
        assert "query_url: is required to read back" in result.stderr
        assert "canary" not in result.stderr


@pytest.mark.parametrize(("state", "repairs"), [(JobState.DONE, 2), (JobState.CANCELLED, 1), (JobState.RUNNING, 1)])
def test_what_is_missing_is_sent_again_only_when_all_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: JobState, repairs: int
) -> None:
    asked: list[Arguments] = []

    def carry_out(_settings: object, _redactor: object, arguments: Arguments, **_more: Any) -> Job:
        asked.append(arguments)
        return Job(
            job_id=1,
            kind="verify",
            arguments=arguments,
            reason="",
            asked_by="",
            asked_at=int(NOW),
            state=state,
            progress=Progress(),
            cancel_asked=state is JobState.CANCELLED,
            finished_at=None,
            result=MISSING if isinstance(arguments, Verify) else None,
        )

    monkeypatch.setattr(command, "carry_out", carry_out)
    done = exporting.Scene(tmp_path).captured().cfrw("verify", "--since", "1h", "--repair")
    assert done.exit_code == (0 if state is JobState.DONE else 3)
    assert len(asked) == repairs
