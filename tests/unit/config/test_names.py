import re
from pathlib import Path

from pydantic import SecretStr

from worker.config import (
    DESTINATION_KEYS,
    SECRET_FILE_KEYS,
    SETTINGS,
    Authorization,
    DestinationSettings,
    TlsSettings,
    describe,
    load_settings,
)

NAMES = """
    CF_API_TOKEN CF_ACCOUNTS CF_ZONES CF_EXCLUDE_ZONES CF_GRAPHQL_REQUESTS_PER_5_MINUTES CF_REQUESTS_PER_5_MINUTES
    CF_RATE_LIMIT_TYPE CF_API_URL CF_DATASETS CF_CATALOGUE CF_BUCKET_SECONDS CF_DELAY_SECONDS
    CF_COLLECTION_INTERVAL_SECONDS CF_REPLAY_HOURS CF_BACKFILL_MAX_HOURS CF_SAMPLE_TIMESTAMP CF_SHARD
    CF_DRIFT_SAMPLE_PERCENT CF_DRIFT_AFTER_SECONDS CF_VERIFY_HOURS REMOTE_WRITE_URL REMOTE_WRITE_USERNAME
    REMOTE_WRITE_PASSWORD REMOTE_WRITE_BEARER_TOKEN REMOTE_WRITE_TENANT LEDGER_PATH LEDGER_RETENTION_HOURS
    LEDGER_MAX_BYTES LISTEN_ADDRESS LOG_LEVEL LOG_FORMAT
"""
ENVIRON = {
    "CF_API_TOKEN": "canary-token",
    "CF_ZONES": "a.example,b.example",
    "REMOTE_WRITE_URL": "https://host/x?key=canary-key",
    "REMOTE_WRITE_USERNAME": "user",
    "REMOTE_WRITE_PASSWORD": "canary-password",
    "REMOTE_WRITE_TENANT": "canary-tenant",
}


SECRETS_WITH_FILES = """
    basic_auth.password bearer_token authorization.credentials oauth2.client_secret azuread.oauth.client_secret
    azuread.certificate.certificate_password
"""
# Headers name files in a way of their own, and AWS' and TLS' keys have files that are no settings of a secret.
SECRETS_WITHOUT_FILES = """
    headers http_headers sigv4.access_key sigv4.secret_key tls_config.key oauth2.tls_config.key proxy_connect_header
    oauth2.proxy_connect_header
"""


def test_the_settings_are_those_that_users_were_promised() -> None:
    assert [setting.name for setting in SETTINGS] == NAMES.split()


def test_every_setting_and_key_says_what_it_means_in_one_line() -> None:
    for setting in (*SETTINGS, *DESTINATION_KEYS):
        assert re.fullmatch(r"[A-Z`].*\.", setting.meaning), setting.name


def test_secrets_are_known_for_secrets() -> None:
    assert {setting.name for setting in SETTINGS if setting.secret} == {
        "CF_API_TOKEN",
        "REMOTE_WRITE_PASSWORD",
        "REMOTE_WRITE_BEARER_TOKEN",
    }
    assert {key.name for key in DESTINATION_KEYS if key.secret} == {
        *SECRETS_WITH_FILES.split(),
        *SECRETS_WITHOUT_FILES.split(),
    }
    assert set(SECRET_FILE_KEYS) == {*SECRETS_WITH_FILES.split(), "basic_auth.username"}


def test_only_the_token_has_no_default() -> None:
    assert [setting.name for setting in SETTINGS if setting.required] == ["CF_API_TOKEN"]


def test_defaults_are_written_as_users_would_write_them() -> None:
    defaults = {setting.name: setting.default for setting in (*SETTINGS, *DESTINATION_KEYS)}
    assert defaults["CF_BUCKET_SECONDS"] == "3600"
    assert defaults["CF_SAMPLE_TIMESTAMP"] == "start"
    assert defaults["CF_ZONES"] == ""
    assert defaults["LEDGER_PATH"] == "./data/ledger.db"
    assert defaults["LEDGER_MAX_BYTES"] == "10GiB"
    assert defaults["LISTEN_ADDRESS"] == "0.0.0.0:9845"
    assert defaults["remote_timeout"] == "30s"
    assert defaults["queue_config.min_backoff"] == "1s"
    assert defaults["tls_config.insecure_skip_verify"] == "false"


def test_what_is_in_force_is_told_without_secrets() -> None:
    lines = dict(describe(load_settings(None, ENVIRON)))
    assert lines["CF_API_TOKEN"] == "**********"
    assert lines["CF_ZONES"] == "a.example,b.example"
    assert lines["remote_write[0].name"] == "default"
    assert lines["remote_write[0].url"] == "https://host/x?***"
    assert lines["remote_write[0].basic_auth.username"] == "user"
    assert lines["remote_write[0].basic_auth.password"] == "**********"
    assert lines["remote_write[0].headers"] == "X-Scope-OrgID: **********"
    assert lines["remote_write[0].queue_config.max_backoff"] == "1m"
    assert "CF_ACCOUNTS" not in lines
    assert "remote_write[0].bearer_token" not in lines
    assert "canary" not in str(lines)


def test_what_stands_under_a_destination_is_told_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("canary")
    (tmp_path / "cfrw.yaml").write_text(
        """
external_labels: {region: eu, site: a}
remote_write:
  - url: http://host/x
    basic_auth: {username: a, password_file: password}
    proxy_url: http://user:canary@proxy
    tls_config: {ca: "-----BEGIN CERTIFICATE-----\\ncanary\\n-----END CERTIFICATE-----"}
    write_relabel_configs: [{action: labeldrop, regex: zone_id}, {action: labeldrop, regex: account}]
    protobuf_message: prometheus.WriteRequest
    metadata_config: {send: false}
  - url: http://other/x
    oauth2: {client_id: a, client_secret: canary, token_url: http://b, scopes: [c, d], endpoint_params: {e: canary}}
    write_relabel_configs: [{action: labeldrop, regex: zone_id}]
"""
    )
    lines = dict(describe(load_settings(tmp_path / "cfrw.yaml", {"CF_API_TOKEN": "canary"})))
    told = {
        "remote_write[0].basic_auth.password_file": f"{tmp_path}/password",
        "remote_write[0].proxy_url": "http://***@proxy",
        "remote_write[0].tls_config.ca": "-----BEGIN CERTIFICATE-----...",
        "remote_write[0].write_relabel_configs": "2 rules",
        "remote_write[0].protobuf_message": "prometheus.WriteRequest",
        "remote_write[0].metadata_config.send": "false",
        "remote_write[1].oauth2.client_secret": "**********",
        "remote_write[1].oauth2.scopes": "c,d",
        "remote_write[1].oauth2.endpoint_params": "e: **********",
        "remote_write[1].write_relabel_configs": "1 rule",
        "external_labels": "region: eu, site: a",
    }
    assert {name: lines.get(name) for name in told} == told
    assert "canary" not in str(lines)


def test_a_destination_in_code_shows_no_secret_either() -> None:
    destination = DestinationSettings(
        name="a",
        url="https://host/x?key=canary",
        authorization=Authorization(credentials=SecretStr("canary")),
        tls=TlsSettings(server_name="b"),
    )
    assert "canary" not in f"{destination!r} {destination} {destination.shown_url}"
