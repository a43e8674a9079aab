import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.cli.scene import BEARER, Scene, config_file
from worker.cli.options import secrets_in
from worker.config import CloudflareSettings, Settings, TokenSettings, load_settings
from worker.observe import Redactor
from worker.remote_write.receiver import Failure
from worker.simulator.api import ACCEPTED_BEARER


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--once"],
        ["status"],
        ["status", "--json"],
        ["resend", "--since", "1h"],
        ["--resend-since", "1h"],
        ["verify", "--since", "1h"],
        ["check", "--config-only"],
    ],
)
def test_mistakes_of_the_configuration_are_told_all_at_once_with_exit_code_2(
    arguments: list[str], scene: Scene
) -> None:
    result = scene.cfrw(*arguments, CF_BUCKET_SECONDS="7", REMOTE_WRITE_URL=None, LOG_LEVEL="loud")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: The configuration has 3 mistakes:\n")
    assert not scene.ledger.exists()


def test_a_file_that_is_not_there_is_a_mistake_of_the_configuration(scene: Scene, tmp_path: Path) -> None:
    result = scene.cfrw("status", "--config", str(tmp_path / "missing.yaml"))
    assert result.exit_code == 2
    assert "missing.yaml" in result.stderr


@pytest.mark.parametrize("arguments", [["status"], ["gaps", "--since", "4h"]])
def test_what_only_reads_the_ledger_needs_no_token(scene: Scene, arguments: list[str]) -> None:
    scene.collected()
    result = scene.cfrw(*arguments, CF_API_TOKEN=None)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == scene.cfrw(*arguments).stdout
    wrong = scene.cfrw(*arguments, CF_API_TOKEN="Bearer x")
    assert wrong.exit_code == 2


def test_every_token_is_a_secret() -> None:
    further = TokenSettings(name="b", api_token=SecretStr("canary-b"))
    cloudflare = CloudflareSettings(api_token=SecretStr("canary-a"), further_tokens=(further,))
    assert list(secrets_in(Settings(cloudflare=cloudflare, destinations=()))) == ["canary-a", "canary-b"]


CANARIES = {
    "header": "canary-header-31aa",
    "basic": "canary-password-88ce",
    "query": "canary-query-04b2",
    "bare": "canary-bare-token-9e77",
    "token": "canary-token-6a0d",
}


@pytest.mark.parametrize("failure", [None, 400, 401, 503])
def test_no_secret_comes_out_of_any_command_at_debug_or_stands_in_the_ledger(
    failure: int | None, scene: Scene, tmp_path: Path
) -> None:
    key = f"?key={CANARIES['query']}"
    scene.world.receiver.failure = None if failure is None else Failure(failure)
    scene.world.api._tokens = frozenset({ACCEPTED_BEARER, CANARIES["token"]})
    scene.environment["CF_API_TOKEN"] = CANARIES["token"]
    file = config_file(tmp_path, scene)
    quick = {"min_backoff": "1ms", "max_backoff": "1ms"}
    destinations: list[dict[str, Any]] = [
        {"name": "basic", "url": scene.world.write_url, "basic_auth": {"username": "u", "password": CANARIES["basic"]}},
        {"name": "header", "url": scene.world.write_url, "headers": {"X-Key": CANARIES["header"]}},
        {"name": "bare", "url": scene.world.write_url, "headers": {"Authorization": f"Token {CANARIES['bare']}"}},
        {"name": "query", "url": scene.world.write_url + key, "bearer_token": BEARER},
    ]
    head = file.read_text().split("remote_write:")[0]
    entries = [{**destination, "queue_config": quick} for destination in destinations]
    file.write_text(f"{head}log_level: debug\nremote_write: {json.dumps(entries)}\n")
    scene.environment = dict.fromkeys(scene.environment)
    said = ""
    for arguments in (
        ["check", "--config-only"],
        ["run", "--once"],
        ["status"],
        ["status", "--json"],
        ["resend", "--since", "10h", "--reason", f"with {CANARIES['header']}"],
        ["resend", "--since", "later"],
        ["--resend-since", "3h"],
        ["verify", "--since", "10h"],
        ["check"],
    ):
        said += scene.cfrw(*arguments, "--config", str(file)).output
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    for secret in (*CANARIES.values(), BEARER):
        assert secret not in said
        assert secret.encode() not in kept
    # What a receiver repeated was shown, as far as it is no secret.
    assert failure is None or "x-prometheus-remote-write-version" in said


def test_the_name_of_a_tenant_is_no_secret_and_the_log_stays_readable(scene: Scene, tmp_path: Path) -> None:
    headers = {"X-Scope-OrgID": "1", "THANOS-TENANT": "team-a", "X-Mode": "on", "Authorization": "Bearer tok-93fd"}
    settings = load_settings(config_file(tmp_path, scene, headers=headers), {})
    line = "tenant 1 team-a turns on 1 of 11 with Bearer tok-93fd, and tok-93fd alone"
    assert Redactor(secrets_in(settings)).text(line) == "tenant 1 team-a turns on 1 of 11 with ***, and *** alone"


def test_every_secret_of_the_configuration_is_known_to_the_log(scene: Scene, tmp_path: Path) -> None:
    basic = {"username": "ops", "password": "s3cret-pass"}
    settings = load_settings(config_file(tmp_path, scene, basic_auth=basic), {})
    redactor = Redactor(secrets_in(settings))
    for text in (ACCEPTED_BEARER, "s3cret-pass", "b3BzOnMzY3JldC1wYXNz", "ops:s3cret-pass"):
        assert "***" in redactor.text(text)
        assert text not in redactor.text(text)
