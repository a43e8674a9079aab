"""`cfrw verify`, with repairs that end as a test wants."""

from pathlib import Path
from typing import Any

import pytest

from tests.exporting import Scene
from tests.unit.ledger.fleet import NOW
from worker.cli import verify as command
from worker.ledger import Arguments, Job, JobState, Progress, Verify, VerifyCount, VerifyResult

MISSING = VerifyResult(totals=(VerifyCount("prom", equal=1, missing=1),))


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
    done = Scene(tmp_path).captured().cfrw("verify", "--since", "1h", "--repair")
    assert done.exit_code == (0 if state is JobState.DONE else 3)
    assert len(asked) == repairs
