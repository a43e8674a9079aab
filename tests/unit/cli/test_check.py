import asyncio
import json

import pytest

from tests.unit.cli.scene import BEARER, HOUR, REPLAY_HOURS, Scene
from worker.ledger import (
    Job,
    JobState,
    Ledger,
    NotRead,
    Progress,
    Resend,
    ResendCount,
    ResendResult,
    Verify,
    VerifyCount,
    VerifyResult,
)
from worker.remote_write.receiver import Failure
from worker.simulator.api import ACCEPTED_BEARER
from worker.times import instant


def test_a_sound_configuration_is_shown_without_its_secrets(scene: Scene) -> None:
    for option in ([], ["--json"]):
        result = scene.cfrw("check", "--config-only", *option)
        assert result.exit_code == 0
        assert scene.world.api_url in result.stdout
        assert ACCEPTED_BEARER not in result.output
        assert BEARER not in result.output
    shown = json.loads(scene.cfrw("check", "--config-only", "--json").stdout)
    assert shown["CF_REPLAY_HOURS"] == str(REPLAY_HOURS)


def test_a_check_looks_at_everything_beside_a_running_worker_and_changes_nothing(scene: Scene) -> None:
    scene.collected()
    before, held = scene.content(), dict(scene.world.receiver.samples)
    running = Ledger.open(scene.ledger)
    try:
        result = scene.cfrw("check", "--no-probe")
    finally:
        asyncio.run(running.close())
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    sections = ["config", "token", "clock", "zones", "token", "datasets", "API budget", "delay", *["ledger"] * 6]
    assert [line[9:21].strip() for line in lines[:-1]] == [*sections, "destination", "age window", "dashboards"]
    assert "takes requests of this worker, in remote write 2.0" in result.stdout
    assert lines[-1] == "0 failures, 0 warnings"
    assert (scene.content(), dict(scene.world.receiver.samples)) == (before, held)


def test_a_check_sends_samples_of_a_name_of_their_own_and_works_without_a_ledger(scene: Scene) -> None:
    for _ in range(2):
        result = scene.cfrw("check", "--json")
        assert result.exit_code == 0, result.output
        findings = json.loads(result.stdout)["findings"]
        assert {finding["state"] for finding in findings} <= {"ok", "skipped"}
        assert [finding["section"] for finding in findings[-2:]] == ["age window", "dashboards"]
    assert not scene.ledger.exists()
    assert {dict(labels)["__name__"] for labels in scene.world.receiver.samples} == {"cfrw_check_probe"}


def test_a_failure_has_an_exit_code_and_what_to_do_and_no_secret_is_told(scene: Scene) -> None:
    scene.world.receiver.failure = Failure(status=401, text="no")
    for option in ([], ["--json"]):
        result = scene.cfrw("check", *option, CF_API_TOKEN="canary-of-another-token")
        assert result.exit_code == 3
        assert "Cloudflare refuses it: " in result.stdout
        assert "the receiver does not accept the credentials" in result.stdout
        assert "canary-of-another-token" not in result.output
        assert BEARER not in result.output
        assert "set CF_API_TOKEN to a token that is active" in result.stdout


def test_the_newest_bucket_is_sent_again_where_that_is_asked_for(scene: Scene) -> None:
    scene.collected()
    before = {labels: dict(samples) for labels, samples in scene.world.receiver.samples.items()}
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ok       repair")]
    newest = max(report.newest_end or 0 for report in scene.reports()) - HOUR
    assert f"samples of http_requests from {instant(newest)} went out again as repair 1, and were acknowledged" in line
    assert scene.world.receiver.repeated_samples == int(line.split()[3]) > 0
    assert scene.world.receiver.samples == before
    sent, read = scene.journal()
    assert (sent["state"], sent["arguments"]["since"]) == ("done", newest)
    assert read["arguments"]["since"] == newest
    # This receiver has no query API, and nobody said so.
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped  repair")]
    assert "could not be read back: HTTP 404" in line


@pytest.mark.parametrize(
    ("read", "state", "told"),
    [
        (VerifyResult((VerifyCount("default", equal=7),)), "ok", "all 7 were found there, as repair 2 read back"),
        (VerifyResult((VerifyCount("default", equal=5, missing=2),)), "failure", "2 were acknowledged and are not"),
        (VerifyResult((VerifyCount("default", equal=5, different=1),)), "failure", "1 were acknowledged and are not"),
        (VerifyResult(), "failure", "0 were acknowledged and are not there, 0 are"),
        (VerifyResult(not_read=(NotRead("default", "HTTP 403"),)), "skipped", "could not be read back: HTTP 403"),
    ],
)
def test_a_repair_ends_with_what_is_there_afterwards(
    *, scene: Scene, monkeypatch: pytest.MonkeyPatch, read: VerifyResult, state: str, told: str
) -> None:
    def carried_out(_settings: object, _redactor: object, arguments: Resend | Verify, **_options: object) -> Job:
        sent = ResendResult(outcome=(ResendCount("default", "acknowledged", 1, 7),))
        number, result = (1, sent) if isinstance(arguments, Resend) else (2, read)
        return Job(number, "", arguments, "", "", 0, JobState.DONE, Progress(), False, None, result)

    monkeypatch.setattr("worker.cli.check.carry_out", carried_out)
    result = scene.collected().cfrw("check", "--no-probe", "--repair-test")
    *_, line = [line for line in result.stdout.splitlines() if line[9:].startswith("repair")]
    assert line.startswith(f"{state:8} repair       default: ")
    assert told in line


def test_a_repair_that_is_refused_is_a_failure_in_the_receiver_s_words(scene: Scene) -> None:
    scene.collected()
    scene.world.receiver.failure = Failure(status=400, text="not again")
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    assert result.exit_code == 3
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("failure  repair")]
    assert "refused: not again" in line
    assert "`cfrw journal 1`" in line
    assert BEARER not in result.output


@pytest.mark.parametrize(
    ("failing", "told"), [(None, "it has acknowledged nothing"), (Failure(status=401), "while a destination")]
)
def test_a_repair_is_not_tried_without_a_bucket_or_a_receiver(scene: Scene, failing: Failure | None, told: str) -> None:
    scene.world.receiver.failure = failing
    result = scene.cfrw("check", "--no-probe", "--repair-test")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("skipped  repair")]
    assert told in line
    assert not scene.ledger.exists()


def test_not_probing_is_no_option_of_what_sends_no_request(scene: Scene) -> None:
    result = scene.cfrw("check", "--config-only", "--no-probe")
    assert result.exit_code == 2
    assert "--no-probe" in result.stderr
