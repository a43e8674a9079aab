from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import TOKEN, URL, load_list, load_one, mistakes_in, mistakes_in_one
from worker.config import (
    Authorization,
    BasicAuth,
    DestinationSettings,
    Message,
    MetadataSettings,
    QueueSettings,
    SecretFile,
    TlsSettings,
    load_settings,
)
from worker.config.values import shown
from worker.errors import ConfigError


def mistakes_in_variables(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, TOKEN | variables)
    return [str(mistake) for mistake in caught.value.mistakes]


# What somebody has in their prometheus.yml, with comments and types as people write them.
PASTED = """
remote_write:
  - url: https://mimir.example.org/api/v1/push
    name: mimir
    remote_timeout: 15s
    headers:
      X-Scope-OrgID: 1
    basic_auth:
      username: 12345
      password_file: secrets/password
    tls_config:
      ca_file: ca.pem
      server_name: mimir.internal
      insecure_skip_verify: false
      min_version: TLS12
    queue_config:
      capacity: 10000
      min_shards: 1
      max_shards: 50
      max_samples_per_send: 2000
      batch_send_deadline: 5s
      min_backoff: 30ms
      max_backoff: 5s
      retry_on_http_429: true
    metadata_config:
      send: false
    write_relabel_configs: []
    send_exemplars: false
    out_of_order_time_window: 2h
    query_url: https://mimir.example.org/prometheus
"""


def test_a_block_of_prometheus_yml_works_when_pasted(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "password").write_text("s3cret\n")
    (tmp_path / "ca.pem").write_text("certificate")
    assert load_list(tmp_path, PASTED) == (
        DestinationSettings(
            name="mimir",
            url="https://mimir.example.org/api/v1/push",
            timeout_seconds=15,
            headers={"X-Scope-OrgID": SecretStr("1")},
            basic_auth=BasicAuth(username="12345", password=SecretFile(tmp_path / "secrets" / "password")),
            tls=TlsSettings(ca_file=tmp_path / "ca.pem", server_name="mimir.internal", min_version="TLS12"),
            metadata=MetadataSettings(send=False),
            queue=QueueSettings(max_samples_per_send=2000, min_backoff_seconds=0.03, max_backoff_seconds=5),
            out_of_order_time_window_seconds=7200,
            query_url="https://mimir.example.org/prometheus",
        ),
    )


def test_a_url_is_all_that_is_needed(tmp_path: Path) -> None:
    assert load_one(tmp_path) == DestinationSettings(name="prometheus:9090", url=URL)


def test_a_bearer_token_can_be_given_in_four_ways(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    token, file = SecretStr("abc"), SecretFile(tmp_path / "token")
    for credentials, entry in (
        (token, {"bearer_token": "abc"}),
        (file, {"bearer_token_file": "token"}),
        (token, {"authorization": {"credentials": "abc"}}),
        (file, {"authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")}}),
    ):
        assert load_one(tmp_path, **entry).authorization == Authorization(credentials=credentials)


def test_a_secret_is_given_itself_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("b")
    both = {"username": "a", "password": "b", "password_file": "pw"}
    assert mistakes_in_one(tmp_path, basic_auth=both) == [
        (
            "basic_auth.password_file (given: pw): cannot be given together with remote_write[0].basic_auth.password; "
            "keep one of them"
        ),
    ]


def test_what_is_wrong_with_a_file_is_told_under_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two-lines").write_text("a\nb\n")
    (tmp_path / "latin").write_bytes(b"\xe4")
    for name, problem in (
        ("missing", f" (given: {shown(f'{tmp_path}/missing')}): cannot be read: No such file or directory"),
        ("empty", f" (given: {shown(f'{tmp_path}/empty')}): is empty"),
        ("latin", f" (given: {shown(f'{tmp_path}/latin')}): is not UTF-8 text"),
        (
            "two-lines",
            f" (given: {shown(str(tmp_path / 'two-lines'))}): must hold text of one line, without control characters",
        ),
    ):
        entry = {"username": "a", "password_file": name}
        assert mistakes_in_one(tmp_path, basic_auth=entry) == [f"basic_auth.password_file{problem}"]


def test_each_half_of_basic_auth_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("b")
    for entry, meant in (
        ({"username": "a"}, BasicAuth(username="a")),
        ({"username": "a", "password": ""}, BasicAuth(username="a")),
        ({"password": "b"}, BasicAuth(password=SecretStr("b"))),
        ({"password_file": "pw"}, BasicAuth(password=SecretFile(tmp_path / "pw"))),
        ({}, BasicAuth()),
        (None, None),
    ):
        assert load_one(tmp_path, basic_auth=entry).basic_auth == meant


def test_a_certificate_needs_its_key_and_both_must_be_there(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, tls_config={"cert_file": "c.pem"}) == [
        "tls_config.key_file: is required with cert_file",
        f"tls_config.cert_file (given: {shown(f'{tmp_path}/c.pem')}): cannot be read: No such file or directory",
    ]


def test_backoff_grows(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, queue_config={"min_backoff": "2m"}) == [
        "queue_config: min_backoff (2m) must not be more than max_backoff (1m)"
    ]


def test_a_longest_pause_below_the_usual_shortest_one_holds_for_all(tmp_path: Path) -> None:
    queue = load_one(tmp_path, queue_config={"max_backoff": "100ms"}).queue
    assert queue.max_backoff_seconds == 0.1
    assert mistakes_in_one(tmp_path, queue_config={"max_backoff": "100ms", "min_backoff": "1s"}) == [
        "queue_config: min_backoff (1s) must not be more than max_backoff (100ms)"
    ]


def test_unknown_keys_come_with_the_nearest_known_one_at_every_level(tmp_path: Path) -> None:
    assert mistakes_in_one(
        tmp_path,
        remote_timeot="1s",
        timeout_seconds="1",
        queue_config={"max_sample_per_send": 1},
        basic_auth={"username": "a", "password": "b", "pasword_file": "c"},
        tls_config={"insecure_skip": True},
        authorisation={},
    ) == [
        "authorisation: is not a known key (did you mean authorization?)",
        "basic_auth.pasword_file: is not a known key (did you mean password_file?)",
        "queue_config.max_sample_per_send: is not a known key (did you mean max_samples_per_send?)",
        "remote_timeot: is not a known key (did you mean remote_timeout?)",
        "timeout_seconds: is not a known key",
        "tls_config.insecure_skip: is not a known key (did you mean insecure_skip_verify?)",
    ]


def test_no_least_is_above_its_most(tmp_path: Path) -> None:
    queue = {"min_backoff": "2m", "min_shards": 60}
    assert mistakes_in_one(tmp_path, queue_config=queue) == [
        (
            "queue_config: min_backoff (2m) must not be more than max_backoff (1m); min_shards (60) must not be more "
            "than max_shards (50)"
        )
    ]


def test_every_number_of_the_delivery_can_be_set(tmp_path: Path) -> None:
    queue = {
        "max_samples_per_send": 1,
        "max_bytes_per_send": "1MB",
        "min_backoff": "2s",
        "max_backoff": "3s",
        "min_shards": 4,
        "max_shards": 5,
        "retry_on_http_429": False,
        "sample_age_limit": "6h",
        "max_retry_after": "7s",
        "parked_probe_interval": "8s",
        "split_after_failures": 9,
        "blame_after": "9m",
        "max_split_requests_per_minute": 10,
        "max_wait_for_missing_window": "11s",
        "live_window": "12s",
        "protocol_retry_interval": "13m",
    }
    assert load_one(tmp_path, queue_config=queue).queue == QueueSettings(
        max_samples_per_send=1,
        max_bytes_per_send=1_000_000,
        min_backoff_seconds=2,
        max_backoff_seconds=3,
        min_shards=4,
        max_shards=5,
        retry_on_http_429=False,
        sample_age_limit_seconds=6 * 3600,
        max_retry_after_seconds=7,
        parked_probe_interval_seconds=8,
        split_after_failures=9,
        blame_after_seconds=9 * 60,
        max_split_requests_per_minute=10,
        max_wait_for_missing_window_seconds=11,
        live_window_seconds=12,
        protocol_retry_interval_seconds=13 * 60,
    )


def test_what_is_not_set_is_as_it_was_promised() -> None:
    queue = QueueSettings()
    assert (queue.min_shards, queue.max_shards) == (1, 50)
    assert queue.retry_on_http_429
    assert queue.sample_age_limit_seconds == 0
    assert queue.max_retry_after_seconds == 300
    assert queue.parked_probe_interval_seconds == 60
    assert queue.split_after_failures == 5
    assert queue.blame_after_seconds == 3600
    assert queue.max_split_requests_per_minute == 600
    assert queue.max_wait_for_missing_window_seconds == 2400
    assert queue.live_window_seconds == 7200
    assert queue.protocol_retry_interval_seconds == 86_400


@pytest.mark.parametrize("message", Message)
def test_the_message_has_prometheus_name(tmp_path: Path, message: Message) -> None:
    assert load_one(tmp_path, protobuf_message=message.value).protobuf_message is message


def test_another_message_is_a_mistake(tmp_path: Path) -> None:
    assert load_one(tmp_path).protobuf_message is None
    assert mistakes_in_one(tmp_path, protobuf_message="2.0") == [
        "protobuf_message (given: 2.0): must be one of prometheus.WriteRequest, io.prometheus.write.v2.Request"
    ]


def test_unknown_keys_of_rules_are_found_with_their_place(tmp_path: Path) -> None:
    rules = [{"action": "keep", "source_labels": ["a"]}, {"action": "drop", "sourc_labels": ["b"]}]
    assert mistakes_in_one(tmp_path, write_relabel_configs=rules) == [
        "write_relabel_configs[1].sourc_labels: is not a known key (did you mean source_labels?)"
    ]


@pytest.mark.parametrize("rules", ["hunter2", {"action": "hunter2"}])
def test_rules_are_a_list(tmp_path: Path, rules: object) -> None:
    assert mistakes_in_one(tmp_path, write_relabel_configs=rules) == [
        "write_relabel_configs: must be a list: every item starts with `- `"
    ]


def test_a_rule_that_is_no_mapping_is_told_with_its_place(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, write_relabel_configs=[{"action": "keep"}, "drop"]) == [
        "write_relabel_configs[1]: must be a mapping of keys to values"
    ]


def test_rules_that_hold_themselves_are_a_mistake_and_no_crash(tmp_path: Path) -> None:
    text = f"remote_write: [{{url: {URL}, write_relabel_configs: &a [*a]}}]\n"
    assert mistakes_in(tmp_path, text) == [f"{tmp_path}/config.yml: is nested too deeply"]


def test_a_url_with_a_password_is_refused_and_hidden(tmp_path: Path) -> None:
    [mistake] = mistakes_in(tmp_path, [{"url": "https://user:hunter2@host/x"}])
    assert mistake.startswith("remote_write[0].url (given: https://***@host/x): must not hold a user or password")


@pytest.mark.parametrize("entries", [{"url": URL}, "remote_write: http://host\n", "remote_write: {url: x}\n"])
def test_a_single_destination_is_still_a_list(tmp_path: Path, entries: object) -> None:
    assert mistakes_in(tmp_path, entries) == [
        "remote_write: must be a list: every destination starts with `- url: ...`"
    ]


def test_an_entry_is_a_mapping(tmp_path: Path) -> None:
    assert mistakes_in(tmp_path, ["http://host", [], None, {}]) == [
        "remote_write[0]: must be a mapping of keys to values, such as `- url: ...`",
        "remote_write[1]: must be a mapping of keys to values, such as `- url: ...`",
        "remote_write[2]: must be a mapping of keys to values, such as `- url: ...`",
        "remote_write[3].url: is required",
    ]


@pytest.mark.parametrize("key", ["basic_auth", "tls_config", "queue_config", "authorization", "headers"])
def test_a_block_that_is_no_block_is_refused_without_being_shown(tmp_path: Path, key: str) -> None:
    for value in ("hunter2", ["hunter2"]):
        [mistake] = mistakes_in_one(tmp_path, **{key: value})
        assert mistake.startswith(f"{key}: must be a mapping of")
        assert "hunter2" not in mistake


def test_mistakes_of_several_entries_are_told_in_their_order(tmp_path: Path) -> None:
    entries = [{"url": "x"}, {"url": URL, "remote_timeout": "1"}, {"url": URL + "${A}"}, {"nmae": "x"}]
    assert [text.partition(" ")[0].rstrip(":") for text in mistakes_in(tmp_path, entries)] == [
        "remote_write[0].url",
        "remote_write[1].remote_timeout",
        "remote_write[2].url",
        "remote_write[3].nmae",
        "remote_write[3].url",
    ]


def test_destinations_differ_in_name(tmp_path: Path) -> None:
    entries = [{"url": URL, "name": "a"}, {"url": URL + "2", "name": "a"}, {"url": URL + "3"}, {"url": URL + "4"}]
    assert mistakes_in(tmp_path, entries) == [
        "remote_write[1].name (given: a): is also the name of remote_write[0]",
        (
            "remote_write[3].name: is required: remote_write[2] is called prometheus:9090, too, and deliveries are "
            "recorded by name"
        ),
    ]


def test_the_same_destination_twice_would_send_everything_twice(tmp_path: Path) -> None:
    entries = [{"url": URL, "name": "a"}, {"url": URL, "name": "b"}]
    assert mistakes_in(tmp_path, entries) == [
        f"remote_write[1].url (given: {URL}): is the same destination as remote_write[0]"
    ]


def test_the_same_place_may_get_different_series_twice(tmp_path: Path) -> None:
    entries = [
        {"url": URL, "name": "a", "write_relabel_configs": [{"action": "labeldrop", "regex": "zone_id"}]},
        {"url": URL, "name": "b"},
    ]
    assert [destination.name for destination in load_list(tmp_path, entries)] == ["a", "b"]


def test_two_tenants_at_one_url_are_two_destinations(tmp_path: Path) -> None:
    entries = [
        {"url": URL, "name": "a", "headers": {"X-Scope-OrgID": "1"}},
        {"url": URL, "name": "b", "headers": {"X-Scope-OrgID": "2"}},
    ]
    assert [destination.name for destination in load_list(tmp_path, entries)] == ["a", "b"]


def test_variables_define_one_destination_called_default() -> None:
    settings = load_settings(
        None,
        TOKEN
        | {
            "REMOTE_WRITE_URL": URL,
            "REMOTE_WRITE_USERNAME": "user",
            "REMOTE_WRITE_PASSWORD": "pass",
            "REMOTE_WRITE_TENANT": "team-a",
        },
    )
    assert settings.destinations == (
        DestinationSettings(
            name="default",
            url=URL,
            headers={"X-Scope-OrgID": SecretStr("team-a")},
            basic_auth=BasicAuth(username="user", password=SecretStr("pass")),
        ),
    )


def test_variables_take_the_place_of_the_list_in_the_file(tmp_path: Path) -> None:
    environ = TOKEN | {"REMOTE_WRITE_URL": "http://other/x", "REMOTE_WRITE_BEARER_TOKEN": "abc"}
    [destination] = load_list(tmp_path, [{"url": URL}], environ)
    assert (destination.name, destination.url) == ("default", "http://other/x")
    assert destination.authorization == Authorization(credentials=SecretStr("abc"))


def test_a_url_in_the_file_and_a_password_in_the_environment_are_one_destination(tmp_path: Path) -> None:
    file = f"remote_write_url: {URL}\nremote_write_username: user\n"
    [destination] = load_list(tmp_path, file, TOKEN | {"REMOTE_WRITE_PASSWORD": "pass"})
    assert destination.basic_auth == BasicAuth(username="user", password=SecretStr("pass"))


def test_a_file_has_a_list_or_the_keys_of_one_destination(tmp_path: Path) -> None:
    file = f"remote_write_url: {URL}\nremote_write: [{{url: {URL}}}]\n"
    assert mistakes_in(tmp_path, file) == [
        "remote_write: cannot be given together with remote_write_... keys; use the list alone"
    ]


def test_half_a_destination_is_a_mistake() -> None:
    assert mistakes_in_variables(REMOTE_WRITE_URL=URL, REMOTE_WRITE_USERNAME="a") == [
        "REMOTE_WRITE_PASSWORD: is required with REMOTE_WRITE_USERNAME"
    ]
    assert mistakes_in_variables(REMOTE_WRITE_URL=URL, REMOTE_WRITE_PASSWORD="a") == [
        "REMOTE_WRITE_USERNAME: is required with REMOTE_WRITE_PASSWORD"
    ]
    assert mistakes_in_variables(REMOTE_WRITE_TENANT="a") == ["REMOTE_WRITE_URL: is required with REMOTE_WRITE_TENANT"]
    assert mistakes_in_variables(
        REMOTE_WRITE_URL=URL,
        REMOTE_WRITE_USERNAME="a",
        REMOTE_WRITE_PASSWORD="b",
        REMOTE_WRITE_BEARER_TOKEN="c",
    ) == [
        (
            "REMOTE_WRITE_BEARER_TOKEN: cannot be combined with a user name and password: a request has one "
            "Authorization header"
        ),
    ]
