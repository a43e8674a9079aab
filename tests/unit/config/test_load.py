import re
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.buckets import SampleTimestamp
from worker.config import (
    DESTINATION_KEYS,
    SETTINGS,
    Authorization,
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    LogSettings,
    SecretFile,
    Settings,
    load_settings,
)
from worker.config.values import shown
from worker.errors import ConfigError
from worker.shards import Shard

URL = "http://prometheus:9090/api/v1/write"
EVERYWHERE = str(IPv4Address(0))
OF_OTHER_PROGRAMS = """
    CF_ACCOUNT_ID CF_ZONE_ID CF_PAGES CF_BUCKET CF_API_KEY CF_API_EMAIL CLOUDFLARE_API_TOKEN LEDGER_PORT
    LEDGER_SERVICE_HOST REMOTE_WRITE_PORT_9090_TCP LOG_DIR LOGNAME PATH HOSTNAME
"""
ENOUGH = {"CF_API_TOKEN": "token", "REMOTE_WRITE_URL": URL}


def mistakes_in(environ: Mapping[str, str], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ)
    return [str(mistake) for mistake in caught.value.mistakes]


def config_file(folder: Path, text: str) -> Path:
    file = folder / "config.yml"
    file.write_text(text)
    return file


def test_a_token_and_a_url_are_enough() -> None:
    assert load_settings(None, ENOUGH) == Settings(
        cloudflare=CloudflareSettings(
            api_token=SecretStr("token"),
            api_url="https://api.cloudflare.com/client/v4",
            accounts=(),
            zones=(),
            exclude_zones=(),
            datasets=("http_requests",),
            catalogue=None,
            bucket_seconds=3600,
            delay_seconds=600,
            collection_interval_seconds=60,
            replay_hours=24,
            backfill_max_hours=72,
            sample_timestamp=SampleTimestamp.START,
            graphql_requests_per_5_minutes=300,
            requests_per_5_minutes=1200,
            shard=None,
            rate_limit_type="token",
            drift_sample_percent=1,
            drift_after_seconds=(900, 3600, 21600),
            verify_hours=0,
        ),
        destinations=(DestinationSettings(name="default", url=URL),),
        ledger=LedgerSettings(path=Path("data/ledger.db"), retention_hours=168, max_bytes=10 * 2**30),
        listen=ListenSettings(host=EVERYWHERE, port=9845),
        log=LogSettings(level="info", format="json"),
    )


def test_everything_can_be_set_by_variables() -> None:
    loaded = load_settings(
        None,
        ENOUGH
        | {
            "CF_API_URL": "http://127.0.0.1:8080/client/v4/",
            "CF_ACCOUNTS": "Jane's Account, 1234",
            "CF_ZONES": "a.example,b.example",
            "CF_EXCLUDE_ZONES": "c.example",
            "CF_DATASETS": "http_requests",
            "CF_BUCKET_SECONDS": "300",
            "CF_DELAY_SECONDS": "0",
            "CF_COLLECTION_INTERVAL_SECONDS": "1",
            "CF_REPLAY_HOURS": "168",
            "CF_BACKFILL_MAX_HOURS": "1",
            "CF_SAMPLE_TIMESTAMP": "END",
            "CF_GRAPHQL_REQUESTS_PER_5_MINUTES": "4500",
            "CF_REQUESTS_PER_5_MINUTES": "600",
            "CF_SHARD": "2/4",
            "CF_RATE_LIMIT_TYPE": "account",
            "CF_DRIFT_SAMPLE_PERCENT": "0.25",
            "CF_DRIFT_AFTER_SECONDS": "600, 1200",
            "LEDGER_PATH": "/data/ledger.db",
            "LEDGER_RETENTION_HOURS": "168",
            "LEDGER_MAX_BYTES": "1GiB",
            "LISTEN_ADDRESS": "[::]:9845",
            "LOG_LEVEL": "Debug",
            "LOG_FORMAT": "console",
        },
    )
    assert loaded.cloudflare == CloudflareSettings(
        api_token=SecretStr("token"),
        api_url="http://127.0.0.1:8080/client/v4",
        accounts=("Jane's Account", "1234"),
        zones=("a.example", "b.example"),
        exclude_zones=("c.example",),
        bucket_seconds=300,
        delay_seconds=0,
        collection_interval_seconds=1,
        replay_hours=168,
        backfill_max_hours=1,
        sample_timestamp=SampleTimestamp.END,
        graphql_requests_per_5_minutes=4500,
        requests_per_5_minutes=600,
        shard=Shard(2, 4),
        rate_limit_type="account",
        drift_sample_percent=0.25,
        drift_after_seconds=(600, 1200),
    )
    assert loaded.ledger == LedgerSettings(path=Path("/data/ledger.db"), retention_hours=168, max_bytes=2**30)
    assert loaded.listen == ListenSettings(host="::", port=9845)
    assert loaded.listen.address == "[::]:9845"
    assert loaded.log == LogSettings(level="debug", format="console")


def test_the_file_takes_the_same_names_in_lower_case(tmp_path: Path) -> None:
    text = f"""
        cf_api_token: token
        cf_zones: [a.example, 00000000000000000000000000000012]
        cf_accounts: one, two
        cf_bucket_seconds: 60
        listen_address: ":1"
        remote_write: [{{url: {URL}}}]
    """
    loaded = load_settings(config_file(tmp_path, text), {})
    assert loaded.cloudflare.zones == ("a.example", "00000000000000000000000000000012")
    assert loaded.cloudflare.accounts == ("one", "two")
    assert loaded.cloudflare.bucket_seconds == 60
    assert loaded.listen.port == 1


def test_every_setting_is_known_in_the_file(tmp_path: Path) -> None:
    lines = [f"{setting.name.lower()}: {setting.default}" for setting in SETTINGS if setting.default]
    assert load_settings(config_file(tmp_path, "\n".join(lines)), ENOUGH) == load_settings(None, ENOUGH)


def test_a_variable_wins_over_the_file_also_where_the_file_is_wrong(tmp_path: Path) -> None:
    file = config_file(tmp_path, "cf_bucket_seconds: 7\ncf_api_token_file: missing\ncf_replay_hours: 1\n")
    loaded = load_settings(file, ENOUGH | {"CF_BUCKET_SECONDS": "60"})
    assert (loaded.cloudflare.bucket_seconds, loaded.cloudflare.replay_hours) == (60, 1)


def test_an_empty_value_is_no_value(tmp_path: Path) -> None:
    file = config_file(tmp_path, "cf_replay_hours: 12\ncf_zones:\nlog_level: ''\nremote_write:\nexternal_labels: {}\n")
    environ = ENOUGH | {"CF_REPLAY_HOURS": "", "CF_ZONES": " ", "REMOTE_WRITE_USERNAME": "", "CF_ZONE": ""}
    loaded = load_settings(file, environ)
    assert loaded.cloudflare.replay_hours == 12
    assert loaded.cloudflare.zones == ()
    assert loaded.destinations == load_settings(None, ENOUGH).destinations


def test_nothing_at_all_lacks_a_token_and_a_destination() -> None:
    token, destination = mistakes_in({})
    assert token.startswith("CF_API_TOKEN: is required: Cloudflare API token")
    assert destination.startswith("REMOTE_WRITE_URL: is required: no destination is configured")


def test_an_empty_list_is_no_destination(tmp_path: Path) -> None:
    [mistake] = mistakes_in({"CF_API_TOKEN": "a"}, config_file(tmp_path, "remote_write: []\n"))
    assert "no destination is configured" in mistake


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CF_API_TOKEN", "two words", "must be one word"),
        ("CF_API_URL", "http://api.cloudflare.com", "must be https"),
        ("CF_ACCOUNTS", "a\nb", "must hold names only"),
        ("CF_ZONES", "a b", "must be separated by commas"),
        ("CF_EXCLUDE_ZONES", "a b", "must be separated by commas"),
        ("CF_DATASETS", ",", "must hold at least one name"),
        ("CF_CATALOGUE", "missing.yaml", "cannot be read: No such file or directory"),
        ("CF_BUCKET_SECONDS", "61", "must be one of 60, 300, 900, 1800, 3600, 86400 (seconds)"),
        ("CF_BUCKET_SECONDS", "1h", "must be one of 60, 300, 900, 1800, 3600, 86400 (seconds)"),
        ("CF_DELAY_SECONDS", "-1", "must be a whole number of seconds from 0 to 86400, without a unit"),
        ("CF_COLLECTION_INTERVAL_SECONDS", "0", "must be a whole number of seconds from 1 to 3600"),
        ("CF_REPLAY_HOURS", "1d", "must be a whole number of hours from 1 to 8760, without a unit"),
        ("CF_BACKFILL_MAX_HOURS", "0", "must be a whole number of hours from 1 to 8760"),
        ("CF_SAMPLE_TIMESTAMP", "middle", "must be start or end"),
        ("REMOTE_WRITE_URL", "prometheus:9090", "must be a URL with http:// or https://"),
        ("REMOTE_WRITE_TENANT", "a\nb", "must be visible ASCII"),
        ("LEDGER_PATH", "/", "is a directory"),
        ("LEDGER_RETENTION_HOURS", "week", "must be a whole number of hours from 1 to 87600"),
        ("LEDGER_MAX_BYTES", "lots", "must be a size"),
        ("LISTEN_ADDRESS", "9845", "must be host:port"),
        ("LOG_LEVEL", "verbose", "must be debug or info or warning or error"),
        ("LOG_FORMAT", "xml", "must be json or console"),
    ],
)
def test_each_wrong_value_is_told_with_what_was_given_and_what_is_allowed(
    tmp_path: Path, name: str, value: str, problem: str
) -> None:
    shown = "" if name == "CF_API_TOKEN" else f" (given: {value})".replace("\n", r"\n")
    [mistake] = mistakes_in(ENOUGH | {name: value})
    assert mistake.startswith(f"{name}{shown}: {problem}")

    rest = {other: text for other, text in ENOUGH.items() if other != name}
    [mistake] = mistakes_in(rest, config_file(tmp_path, yaml.safe_dump({name.lower(): value})))
    assert mistake.startswith(f"{name.lower()}{shown}: {problem}")


def test_all_mistakes_are_in_one_message_in_the_order_of_the_documents(tmp_path: Path) -> None:
    file = config_file(
        tmp_path,
        "cf_bucket_seconds: 1\ncf_bucket_seconds: 2\nlog_formt: json\nlog_level: loud\nremote_write: [{url: a}]\n",
    )
    environ = {"CF_REPLAY_HOURS": "200", "LISTEN_ADDRESS": "nowhere", "CF_ZONES": "a, b", "CF_EXCLUDE_ZONES": "B"}
    environ |= {"CF_API_TOKEN_FILE": "/missing", "CF_BUCKET_SECOND": "60"}
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ)
    assert (
        str(caught.value)
        == f"""The configuration has 10 mistakes:
  {file}:2: cf_bucket_seconds is given a second time; the first is on line 1
  CF_API_TOKEN_FILE (given: /missing): cannot be read: No such file or directory
  CF_EXCLUDE_ZONES (given: b): must not hold a zone that is also in CF_ZONES
  cf_bucket_seconds (given: 2): must be one of 60, 300, 900, 1800, 3600, 86400 (seconds)
  remote_write[0].url (given: a): must be a URL with http:// or https:// and a host, such as \
https://prometheus.example.org/api/v1/write
  LEDGER_RETENTION_HOURS: is 168 by default, but must be at least CF_REPLAY_HOURS (200), or buckets are fetched again \
once they are gone
  LISTEN_ADDRESS (given: nowhere): must be host:port, such as 0.0.0.0:9845, 127.0.0.1:9845, [::]:9845 or :9845
  log_level (given: loud): must be debug or info or warning or error
  CF_BUCKET_SECOND: is not a known variable (did you mean CF_BUCKET_SECONDS?)
  log_formt: is not a known key (did you mean log_format?)"""
    )


def test_a_broken_file_does_not_make_everything_in_it_missing(tmp_path: Path) -> None:
    [first, second] = mistakes_in({"CF_REPLAY_HOURS": "x"}, config_file(tmp_path, "a: [\n"))
    assert first.startswith(f"{tmp_path}/config.yml:2: is not YAML")
    assert second.startswith("CF_REPLAY_HOURS")
    [mistake] = mistakes_in({}, tmp_path / "missing.yml")
    assert mistake == f"{tmp_path}/missing.yml: cannot be read: No such file or directory"


def test_settings_that_contradict_each_other() -> None:
    assert mistakes_in(ENOUGH | {"CF_REPLAY_HOURS": "48", "LEDGER_RETENTION_HOURS": "47"}) == [
        (
            "LEDGER_RETENTION_HOURS (given: 47): must be at least CF_REPLAY_HOURS (48), or buckets are fetched again "
            "once they are gone"
        ),
    ]
    assert mistakes_in(ENOUGH | {"CF_REPLAY_HOURS": "1", "CF_DELAY_SECONDS": "3600"}) == [
        "CF_DELAY_SECONDS (given: 3600): must be less than CF_REPLAY_HOURS (1), or no window is fetched"
    ]
    load_settings(None, ENOUGH | {"CF_REPLAY_HOURS": "1", "CF_DELAY_SECONDS": "3599"})


def test_a_secret_can_be_given_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    for file, environ in (
        (None, {"CF_API_TOKEN_FILE": str(tmp_path / "token")}),
        (config_file(tmp_path, "cf_api_token_file: token\n"), {}),
    ):
        loaded = load_settings(file, {"REMOTE_WRITE_URL": URL} | environ)
        assert loaded.cloudflare.api_token == SecretStr("from-file")


def test_each_secret_variable_has_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    file = str(secret)
    variables = {"REMOTE_WRITE_URL": URL, "CF_API_TOKEN_FILE": file, "REMOTE_WRITE_BEARER_TOKEN_FILE": file}
    assert load_settings(None, variables).destinations[0].authorization == Authorization(credentials=SecretFile(secret))
    variables = ENOUGH | {"REMOTE_WRITE_USERNAME": "u", "REMOTE_WRITE_PASSWORD_FILE": file}
    basic_auth = load_settings(None, variables).destinations[0].basic_auth
    assert basic_auth is not None
    assert basic_auth.password == SecretFile(secret)


def test_a_secret_and_its_file_together_are_a_mistake() -> None:
    assert mistakes_in(ENOUGH | {"CF_API_TOKEN_FILE": "/x"}) == [
        "CF_API_TOKEN_FILE (given: /x): cannot be given together with CF_API_TOKEN; keep one of them"
    ]


def test_what_is_wrong_with_a_secret_in_a_file_is_told_under_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "words").write_text("two words\n")
    for name, problem in (
        ("empty", f" (given: {shown(f'{tmp_path}/empty')}): is empty"),
        ("words", ": must be one word of visible ASCII characters"),
        ("", f" (given: {shown(str(tmp_path))}): is a directory; give the path of a file in it"),
    ):
        environ = {"REMOTE_WRITE_URL": URL, "CF_API_TOKEN_FILE": str(tmp_path / name)}
        assert mistakes_in(environ) == [f"CF_API_TOKEN_FILE{problem}"]


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("CF_BUCKET_SECOND", "60", "CF_BUCKET_SECONDS"),
        ("CF_ZONE", "a", "CF_ZONES"),
        ("CF_APITOKEN", "a", "CF_API_TOKEN"),
        ("CF_DELAY", "60", "CF_DELAY_SECONDS"),
        ("LEDGER_RETENTION_DAYS", "7", "LEDGER_RETENTION_HOURS"),
        ("REMOTE_WRITE_BEARER_TOKENS", "a", "REMOTE_WRITE_BEARER_TOKEN"),
        ("REMOTE_WRITE_PASWORD_FILE", "a", "REMOTE_WRITE_PASSWORD_FILE"),
    ],
)
def test_a_misspelt_variable_is_not_ignored(name: str, value: str, meant: str) -> None:
    assert mistakes_in(ENOUGH | {name: value}) == [f"{name}: is not a known variable (did you mean {meant}?)"]


def test_only_secrets_can_be_given_as_files() -> None:
    assert mistakes_in(ENOUGH | {"CF_ZONES_FILE": "a"}) == [
        "CF_ZONES_FILE: does not exist: only a secret can be given as a file"
    ]


@pytest.mark.parametrize("name", OF_OTHER_PROGRAMS.split())
def test_variables_of_other_programs_are_left_alone(name: str) -> None:
    assert load_settings(None, ENOUGH | {name: "something"}) == load_settings(None, ENOUGH)


def test_keys_of_the_file_are_all_known(tmp_path: Path) -> None:
    file = config_file(tmp_path, "CF_ZONES: a\nremotewrite: []\n8: x\n")
    assert mistakes_in(ENOUGH, file) == [
        "CF_ZONES: is not a known key",
        "remotewrite: is not a known key (did you mean remote_write?)",
        "8: is not a known key",
    ]


def test_nothing_can_be_changed_later() -> None:
    loaded = load_settings(None, ENOUGH | {"REMOTE_WRITE_TENANT": "a"})
    for value, field in ((loaded, "log"), (loaded.cloudflare, "zones"), (loaded.destinations[0], "url")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(value, field, None)
    with pytest.raises(TypeError, match="does not support item assignment"):
        loaded.destinations[0].headers["X-A"] = SecretStr("b")  # type: ignore[index]  # that it cannot is the point


TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from([URL, "30s", "true", "1"])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            TEXT | st.sampled_from([part for key in DESTINATION_KEYS for part in key.name.split(".")]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
ENTRIES = st.dictionaries(
    st.sampled_from(sorted({key.name.partition(".")[0] for key in DESTINATION_KEYS} | {"oauth2", "bearer_token_file"})),
    TREES,
    max_size=5,
).map(lambda entry: {"url": URL} | entry)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    st.dictionaries(TEXT | st.sampled_from([setting.name.lower() for setting in SETTINGS]), TREES, max_size=4),
    st.lists(ENTRIES, max_size=3) | TREES,
)
def test_any_file_gives_settings_or_sentences(tmp_path: Path, tree: dict[str, object], entries: object) -> None:
    file = config_file(tmp_path, yaml.safe_dump(tree | {"remote_write": entries}, allow_unicode=True))
    problems = []
    try:
        load_settings(file, {"CF_API_TOKEN": "token"})
    except ConfigError as error:
        problems = [mistake.problem for mistake in error.mistakes]
    assert not re.search("pydantic|validat|Traceback|Error|NoneType|<class", "\n".join(problems))
