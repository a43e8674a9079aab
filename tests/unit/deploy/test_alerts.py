"""The alert rules of the manual, fed with what /metrics says when something is wrong."""

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboard import queries
from tests.dockerfile import REPOSITORY

MANUAL = REPOSITORY / "docs" / "operations.md"

WRONG = {
    "CfrwDown": ('up{job="cloudflare-remote-write"}', "0x720"),
    "CfrwNotReady": ("cfrw_ready", "1x60 0x660"),
    "CfrwTokenRefused": ('cfrw_token_accepted{token="a"}', "1x60 0x660"),
    "CfrwCollectionBehind": ('cfrw_newest_captured_window_end_timestamp_seconds{dataset="http_requests"}', "60x720"),
    "CfrwWindowsMissing": ('cfrw_missing_windows{dataset="http_requests",reason="failed"}', "0x60 3x660"),
    "CfrwDenied": ('cfrw_denied_scopes{dataset="http_requests"}', "1x600 2x120"),
    "CfrwDeliveryBehind": ('cfrw_push_oldest_pending_age_seconds{destination="a"}', "0+60x720"),
    "CfrwParked": ('cfrw_push_parked{destination="a"}', "0x600 1x120"),
    # Never seen before, in the last hour.
    "CfrwRefused": ('cfrw_push_samples_failed_total{destination="a",status="400"}', "_x690 7x30"),
    "CfrwUnwritten": ('cfrw_push_unwritten_samples_total{destination="a"}', "0x690 5x30"),
    "CfrwGivenUp": ('cfrw_ledger_buckets{destination="a",state="expired"}', "0x690 1x30"),
    "CfrwDelayTooShort": ('cfrw_drift_recommended_delay_seconds{dataset="http_requests"}', "600x300 1500x420"),
    "CfrwNotAsInTheLedger": ('cfrw_verify_samples{destination="a",finding="missing"}', "0x690 1x30"),
    "CfrwNotVerified": ('cfrw_verify_last_success_timestamp_seconds{destination="a"}', "0x720"),
    "CfrwLedgerFillsUp": ("cfrw_ledger_size_bytes", "70x300 81x420"),
}
"""What makes each alert fire after twelve hours: a series and its numbers, one a minute, as promtool writes them."""

RIGHT = (
    ('up{job="cloudflare-remote-write"}', "1x720"),
    ("cfrw_ready", "1x720"),
    ('cfrw_token_accepted{token="a"}', "1x720"),
    # A window of an hour that ended ten minutes to seventy minutes ago.
    ('cfrw_newest_captured_window_end_timestamp_seconds{dataset="http_requests"}', "-4200+60x720"),
    ('cfrw_missing_windows{dataset="http_requests",reason="waiting"}', "3x720"),
    ('cfrw_denied_scopes{dataset="http_requests"}', "1x720"),
    ('cfrw_push_oldest_pending_age_seconds{destination="a"}', "600x720"),
    ('cfrw_push_parked{destination="a"}', "0x715 1x5"),
    # Refused yesterday.
    ('cfrw_push_samples_failed_total{destination="a",status="400"}', "7x720"),
    ('cfrw_push_unwritten_samples_total{destination="a"}', "5x720"),
    ('cfrw_ledger_buckets{destination="a",state="refused"}', "1x720"),
    ('cfrw_drift_recommended_delay_seconds{dataset="http_requests"}', "600x720"),
    ('cfrw_drift_current_delay_seconds{dataset="http_requests"}', "600x720"),
    ('cfrw_verify_samples{destination="a",finding="missing"}', "0x720"),
    ('cfrw_verify_samples{destination="a",finding="undelivered"}', "7x720"),
    # Read back an hour ago.
    ('cfrw_verify_last_success_timestamp_seconds{destination="a"}', "-3600+60x720"),
    ("cfrw_ledger_size_bytes", "79x720"),
    ("cfrw_ledger_max_bytes", "100x720"),
)


def _rules() -> Mapping[str, Any]:
    (text,) = re.findall(r"^```yaml\n(# rules\.yml\n.*?)^```$", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    rules: Mapping[str, Any] = yaml.safe_load(text)
    return rules


def _alerts() -> dict[str, str]:
    """The expression of each alert."""
    return {rule["alert"]: rule["expr"] for group in _rules()["groups"] for rule in group["rules"]}


def _firing(promtool: Path, folder: Path, series: Mapping[str, str], expected: set[str]) -> str:
    """What promtool has against exactly these alerts firing after twelve hours; nothing where they do."""
    (folder / "rules.yml").write_text(yaml.safe_dump(_rules()))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        # One number for each alert: whether any of it fires.
        "promql_expr_test": [
            {
                "expr": f'max by (alertname) (ALERTS{{alertstate="firing",alertname="{name}"}})',
                "eval_time": "12h",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name in expected else [],
            }
            for name in _alerts()
        ],
    }
    file = folder / "test.yml"
    # Half of the shortest `for`. Every minute, it shows the same and takes five times as long.
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "5m", "tests": [test]}
    file.write_text(yaml.safe_dump(tests))
    answer = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    return "" if answer.returncode == 0 else answer.stdout + answer.stderr


def test_no_alert_fires_while_all_is_well(required_program: Callable[[str], Path], tmp_path: Path) -> None:
    assert not _firing(required_program("promtool"), tmp_path, dict(RIGHT), set())


@pytest.mark.parametrize("alert", WRONG)
def test_each_alert_fires_alone_for_what_it_is_about(
    required_program: Callable[[str], Path], tmp_path: Path, alert: str
) -> None:
    name, values = WRONG[alert]
    assert not _firing(required_program("promtool"), tmp_path, {**dict(RIGHT), name: values}, {alert})


@pytest.mark.parametrize(("missing", "fires"), [("0x720", set()), ("2x720", {"CfrwCollectionBehind"})])
def test_a_dataset_that_was_never_captured_is_behind_unless_it_is_denied_and_nothing_is_missing(
    required_program: Callable[[str], Path], tmp_path: Path, missing: str, fires: set[str]
) -> None:
    never = {
        'cfrw_newest_captured_window_end_timestamp_seconds{dataset="waiting_rooms"}': "0x720",
        'cfrw_denied_scopes{dataset="waiting_rooms"}': "5x720",
        'cfrw_missing_windows{dataset="waiting_rooms",reason="waiting"}': missing,
    }
    assert not _firing(required_program("promtool"), tmp_path, {**dict(RIGHT), **never}, fires)


def test_every_alert_is_tried() -> None:
    assert WRONG.keys() == _alerts().keys()


def test_the_dashboard_shows_what_every_alert_is_about() -> None:
    shown = {name for query in queries() for name in query.metrics}
    asked = {name for expression in _alerts().values() for name in re.findall(r"\bcfrw_\w+", expression)}
    assert asked <= shown
