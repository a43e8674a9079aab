import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from tests.unit.ledger.fleet import scope, tag
from worker.cli import main
from worker.cloudflare import FACT_SETS, shipped
from worker.cloudflare.catalogue import load
from worker.config import CloudflareSettings
from worker.datasets import catalogue_of, chosen
from worker.errors import ConfigError
from worker.ledger import Ledger, Scope, record_denials, record_scopes

OWN = """
own_requests:
  help: Requests of mine.
  scope: zone
  groups: [own]
  node: httpRequestsAdaptiveGroups
  times: [datetimeMinute]
  time_filter: datetimeMinute
  metrics:
    own_requests: {field: count, unit: requests, help: Requests in the window.}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    return file


def cfrw(*arguments: str, **environ: str | None) -> Result:
    names = ("CF_CATALOGUE", "CF_DATASETS", "CF_BUCKET_SECONDS", "CF_DELAY_SECONDS")
    nowhere = {"LEDGER_PATH": "/nowhere/ledger.db"}
    return CliRunner().invoke(main, ["datasets", *arguments], env=dict.fromkeys(names) | nowhere | environ)


def listed(*arguments: str, **environ: str) -> dict[str, dict[str, Any]]:
    result = cfrw("--json", *arguments, **environ)
    assert result.exit_code == 0, result.output
    return {each["name"]: each for each in json.loads(result.stdout)}


def test_the_list_has_every_dataset_once_and_marks_what_is_collected() -> None:
    lines = [line.rstrip() for line in cfrw().stdout.splitlines()]
    names = [line.split()[0] for line in lines if line.endswith(("m", "h", "0s"))]
    assert sorted(name.removesuffix("*") for name in names) == sorted([*shipped(), *FACT_SETS])
    assert [name for name in names if name.endswith("*")] == ["http_requests*"]
    [row] = [line.split() for line in lines if line.startswith("http_cache_status ")]
    assert row == ["http_cache_status", "http", "cache_status", "6", "all", "10m"]
    [row] = [line.split() for line in lines if line.startswith("durable_objects_storage ")]
    assert row[-4:] == ["1", "1h,", "1d", "10m"]


def test_the_json_tells_all_of_a_dataset_and_the_delay_that_is_in_force() -> None:
    found = listed(CF_DATASETS="ai,http_methods", CF_DELAY_SECONDS="900")
    assert {name for name, each in found.items() if each["is_collected"]} == {
        *("ai_gateway_requests", "ai_gateway_statuses", "workers_ai", "workers_ai_errors", "http_methods")
    }
    assert found["http_methods"] == {
        "name": "http_methods",
        "help": "Requests by HTTP method.",
        "scope": "zone",
        "groups": ["zone", "http"],
        "labels": ["method"],
        "keep": 50,
        "widths_seconds": [60, 300, 900, 1800, 3600, 86400],
        "delay_seconds": 900,
        "is_sampled": True,
        "is_collected": True,
        "scope_count": None,
        "denied": {},
        "metrics": found["http_methods"]["metrics"],
    }
    assert found["http_methods"]["metrics"][0] == {
        "name": "cloudflare_zone_method_requests",
        "labels": ["method"],
        "unit": "requests",
        "additive": True,
        "help": "Requests of visitors in the window, by HTTP method.",
    }
    assert found["ai_gateway_requests"]["delay_seconds"] == 3600
    assert found["http_requests"]["labels"][:2] == ["country", "status"]


def test_a_file_of_ones_own_is_listed_and_can_be_chosen(own: Path, tmp_path: Path) -> None:
    config = tmp_path / "cfrw.yaml"
    config.write_text(f"cf_catalogue: {own}\ncf_datasets: [own]\n")
    found = listed("--config", str(config))
    assert [name for name, each in found.items() if each["is_collected"]] == ["own_requests"]
    assert len(found) == len(shipped()) + len(FACT_SETS) + 1


def test_what_is_wrong_is_told_with_exit_code_2(own: Path, tmp_path: Path) -> None:
    own.write_text(OWN.replace("scope: zone", "scope: zoen"))
    result = cfrw(CF_CATALOGUE=str(own))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{own}:4 (given: zoen): scope must be one of zone, account (did you mean zone?)" in result.stderr
    assert "unknown: https (did you mean http?)" in cfrw(CF_DATASETS="https").stderr
    assert "CF_BUCKET_SECONDS (given: 61)" in cfrw(CF_BUCKET_SECONDS="61").stderr
    assert "cannot be read: No such file" in cfrw("--config", str(tmp_path / "missing.yaml")).stderr


def test_a_check_tells_what_the_schema_does_not_have_and_ends_with_code_2(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.datasets.extended", lambda file: load(file.read_text(), str(file)))
    schema = tmp_path / "schema.graphql"
    schema.write_text("type Query { viewer: string } scalar string")
    result = cfrw("--check", str(schema), CF_CATALOGUE=str(own))
    assert result.exit_code == 2
    assert (
        "own_requests, windows of 1m, 5m, 15m, 30m, 1h, 1d: Field 'viewer' must not have a selection" in result.stdout
    )
    assert result.stdout.splitlines()[-1] == "6 queries of 1 datasets: some are not valid, see above"
    found = json.loads(cfrw("--json", "--check", str(schema), CF_CATALOGUE=str(own)).stdout)
    assert (found["datasets"], found["queries"], found["refusals"][0]["dataset"]) == (1, 6, "own_requests")


REASON = "the plan does not include firewallEventsAdaptiveGroups"


@pytest.fixture
async def ledger(tmp_path: Path) -> str:
    """Two zones of an account, of which one is denied the firewall's events."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    account = Scope("a" * 32, "Example", "a" * 32, "Example", "")
    await ledger.write(record_scopes, [scope(1), scope(2), account], 0)
    await ledger.write(record_denials, {("firewall_events", tag(2)): REASON}, 1_750_032_600)
    await ledger.close()
    return str(ledger.path)


def test_what_the_ledger_knows_to_be_denied_is_listed_with_its_reason(ledger: str) -> None:
    given = {"CF_DATASETS": "http_requests,firewall_events,r2_storage", "LEDGER_PATH": ledger}
    lines = [" ".join(line.split()) for line in cfrw(**given).stdout.splitlines()]
    ends = {line.split()[0]: line for line in lines if line}
    assert ends["firewall_events*"].endswith(" 10m 1/2")
    assert ends["http_requests*"].endswith(" 10m 0/2")
    assert ends["r2_storage*"].endswith(" 10m 0/1")
    assert ends["http_methods"].endswith(" 10m"), "it was never looked at"
    assert f"firewall_events: denied to 1 zone: {REASON}" in lines
    found = listed(**given)
    assert (found["firewall_events"]["scope_count"], found["firewall_events"]["denied"]) == (2, {REASON: 1})
    assert (found["r2_storage"]["scope_count"], found["r2_storage"]["denied"]) == (1, {})


def test_one_zone_or_account_has_a_list_of_its_own(ledger: str) -> None:
    given = {"CF_DATASETS": "http_requests,firewall_events", "LEDGER_PATH": ledger}
    result = cfrw("--zone", "zone-2.example", **given)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == f"zone zone-2.example ({tag(2)}); * is collected, and was looked at"
    assert f"firewall_events* 2025-06-16T00:10:00Z {REASON}" in lines
    assert {"http_requests*", "http_methods"} <= {*lines}
    assert not any(line.startswith("r2_storage") for line in lines)
    (found,) = json.loads(cfrw("--json", "--zone", tag(2), **given).stdout)
    assert (found["name"], found["kind"]) == ("zone-2.example", "zone")
    assert {each["dataset"]: each for each in found["datasets"]}["firewall_events"] == {
        "dataset": "firewall_events",
        "is_collected": True,
        "denied_since": 1_750_032_600,
        "reason": REASON,
    }
    (account,) = json.loads(cfrw("--json", "--zone", "Example", **given).stdout)
    assert "r2_storage" in {each["dataset"] for each in account["datasets"]}


def test_a_zone_that_is_not_known_is_told_with_the_nearest_name_and_exit_code_2(ledger: str) -> None:
    result = cfrw("--zone", "zone-2.exmaple", LEDGER_PATH=ledger)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--zone zone-2.exmaple is not known; did you mean zone-2.example" in result.stderr
    assert cfrw("--zone", "zone-2.example").exit_code == 5, "there is no ledger to look into"
    both = cfrw("--zone", "zone-2.example", "--check", "schema.graphql", LEDGER_PATH=ledger)
    assert (both.exit_code, "give one of them" in both.stderr) == (2, True)


def test_a_ledger_that_cannot_be_read_does_not_cost_the_list(tmp_path: Path) -> None:
    broken = tmp_path / "ledger.db"
    broken.write_text("no ledger " * 1000)
    result = cfrw(LEDGER_PATH=str(broken))
    assert result.exit_code == 0
    assert "http_requests*" in result.stdout
    assert "what zones and accounts are denied is not known: " in result.stderr


def settings(**given: object) -> CloudflareSettings:
    return CloudflareSettings.model_validate({"api_token": SecretStr("a"), **given})


def test_the_chosen_datasets_are_those_of_the_settings(own: Path) -> None:
    of_own = settings(catalogue=str(own), datasets=["own", "http_requests"], bucket_seconds=60)
    catalogue = catalogue_of(of_own)
    assert [each.name for each in chosen(of_own, catalogue).datasets] == ["own_requests", "http_requests"]
    with pytest.raises(ConfigError, match=r"own_requestz \(did you mean own_requests\?\)"):
        chosen(settings(datasets=["own_requestz"]), catalogue)


def test_without_a_choice_the_default_is_collected() -> None:
    assert [each.name for each in chosen(settings(), shipped()).datasets] == ["http_requests"]


def test_facts_are_chosen_and_listed_like_datasets_whatever_the_width() -> None:
    for width in (60, 86_400):
        both = chosen(settings(datasets=["zone", "tunnel_status"], bucket_seconds=width), shipped())
        assert [each.name for each in both.fact_sets] == ["certificates", "tunnel_status"]
        assert "http_requests" in {each.name for each in both.datasets}
    assert {each.name for each in chosen(settings(datasets=["facts"]), shipped()).fact_sets} == {*FACT_SETS}
    found = listed(CF_DATASETS="facts", CF_BUCKET_SECONDS="60")
    assert {name for name, each in found.items() if each["is_collected"]} == {*FACT_SETS}
    certificates = found["certificates"]
    assert (certificates["widths_seconds"], certificates["delay_seconds"]) == ([3600, 86_400], 0)
    assert certificates["labels"] == ["certificate_id", "type", "issuer"]
    assert {each["name"] for each in certificates["metrics"]} == {
        "cloudflare_zone_certificate_expiry_timestamp_seconds",
        "cloudflare_zone_certificate_active",
    }
