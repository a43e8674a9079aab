from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.unit.config.loading import URL
from worker.config import (
    DEFAULT_TOKEN,
    TOKEN_KEYS,
    TOKEN_SETTINGS,
    CloudflareSettings,
    Settings,
    TokenSettings,
    describe,
    load_settings,
    load_some,
)
from worker.errors import ConfigError

TWO = [
    {"name": "one", "api_token": "canary-1", "zones": "A.example, b.example", "exclude_zones": ["c.example"]},
    {
        "name": "two",
        "api_token": "canary-2",
        "accounts": ["Example"],
        "graphql_requests_per_5_minutes": 100,
        "requests_per_5_minutes": 500,
        "rate_limit_type": "account",
    },
]


def load(folder: Path, entries: object, environ: Mapping[str, str] | None = None, **keys: object) -> Settings:
    file = folder / "cfrw.yaml"
    file.write_text(yaml.safe_dump({"cloudflare": entries, "remote_write": [{"url": URL}], **keys}))
    return load_settings(file, environ or {})


def mistakes(folder: Path, entries: object, environ: Mapping[str, str] | None = None, **keys: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, entries, environ, **keys)
    assert "canary" not in str(caught.value)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_each_token_has_what_it_selects_and_its_budget_and_all_else_in_common(tmp_path: Path) -> None:
    one, two = load(tmp_path, TWO, cf_bucket_seconds=300).cloudflare.by_token()

    assert (one.name, one.api_token.get_secret_value(), one.zones) == ("one", "canary-1", ("a.example", "b.example"))
    assert (one.accounts, one.exclude_zones, one.graphql_requests_per_5_minutes) == ((), ("c.example",), 300)
    assert (two.name, two.api_token.get_secret_value(), two.zones) == ("two", "canary-2", ())
    assert (two.accounts, two.graphql_requests_per_5_minutes, two.requests_per_5_minutes) == (("Example",), 100, 500)
    assert (one.rate_limit_type, two.rate_limit_type) == ("token", "account")
    assert one.bucket_seconds == two.bucket_seconds == 300
    assert one.further_tokens == two.further_tokens == ()


def test_the_single_token_of_the_variables_is_called_default_and_its_defaults_are_those_of_an_entry() -> None:
    single = load_settings(None, {"CF_API_TOKEN": "t", "REMOTE_WRITE_URL": URL}).cloudflare

    assert single.by_token() == (single,)
    assert single.name == DEFAULT_TOKEN
    assert set(TOKEN_SETTINGS.values()) == {key.name for key in TOKEN_KEYS} - {"name"}
    for key in TOKEN_SETTINGS.values():
        assert TokenSettings.model_fields[key].default == CloudflareSettings.model_fields[key].default


def test_a_token_can_be_given_as_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("canary-token\n")
    entries = [{"name": "one", "api_token_file": "token"}]

    assert load(tmp_path, entries).cloudflare.api_token.get_secret_value() == "canary-token"


def test_one_token_and_the_list_together_are_one_mistake(tmp_path: Path) -> None:
    for environ, keys, named in (
        ({"CF_API_TOKEN": "canary", "CF_ZONES": "a.example"}, {}, "CF_API_TOKEN, CF_ZONES"),
        ({}, {"cf_api_token": "canary", "cf_rate_limit_type": "token"}, "cf_api_token, cf_rate_limit_type"),
    ):
        assert mistakes(tmp_path, TWO, environ, **keys) == [
            f"cloudflare: cannot be given together with {named}: with this list, each token has its own there"
        ]


@pytest.mark.parametrize("entries", [None, []])
def test_an_empty_list_is_none(tmp_path: Path, entries: object) -> None:
    assert load(tmp_path, entries, {"CF_API_TOKEN": "t"}).cloudflare.name == DEFAULT_TOKEN
    assert mistakes(tmp_path, entries)[0].startswith("CF_API_TOKEN: is required")


def test_every_mistake_in_the_list_is_told_with_its_place_and_the_nearest_name(tmp_path: Path) -> None:
    assert mistakes(tmp_path, {"name": "one"}) == ["cloudflare: must be a list: every token starts with `- name: ...`"]
    found = mistakes(
        tmp_path,
        [
            {"name": "one", "api_token": "canary-1", "zones": ["a.example"], "exclude_zones": ["a.example"]},
            {"name": "one", "api_token": "canary-2", "acounts": "x"},
            {"name": 'a"b', "api_token": "canary-3", "graphql_requests_per_5_minutes": "0"},
            {"api_token": "canary 4"},
            "five",
            {"name": "x" * 41, "api_token_file": "absent"},
        ],
    )

    expected = [
        "cloudflare[0].exclude_zones (given: a.example): must not hold a zone that is also in zones",
        "cloudflare[1].acounts: is not a known key (did you mean accounts?)",
        'cloudflare[2].name (given: a"b): must be 1 to 40 letters',
        "cloudflare[2].graphql_requests_per_5_minutes (given: 0): must be a whole number of requests from 1 to 100000",
        "cloudflare[3].name: is required",
        "cloudflare[3].api_token: must be one word",
        "cloudflare[4]: must be a mapping of keys to values, such as `- name: ...`",
        f"cloudflare[5].name (given: {'x' * 41}): must be 1 to 40 letters",
        f"cloudflare[5].api_token_file (given: {tmp_path}/absent): cannot be read: No such file or directory",
    ]
    assert [told.startswith(start) for told, start in zip(found, expected, strict=True)] == [True] * len(expected)


def test_no_two_entries_have_one_name_or_are_one_token(tmp_path: Path) -> None:
    twins = [{"name": "one", "api_token": "canary"}, {"name": "one", "api_token": "canary"}]

    name, token = mistakes(tmp_path, twins)
    assert name == "cloudflare[1].name (given: one): is also the name of cloudflare[0]"
    assert token.startswith("cloudflare[1].api_token: is the same token as that of cloudflare[0]")


def test_a_misspelt_list_is_recognised(tmp_path: Path) -> None:
    assert "cloudflair: is not a known key (did you mean cloudflare?)" in mistakes(tmp_path, TWO, cloudflair=[])


def test_no_token_is_in_a_repr_or_in_what_is_in_force(tmp_path: Path) -> None:
    settings = load(tmp_path, TWO)
    lines = dict(describe(settings))

    assert lines["cloudflare[0].name"] == "one"
    assert lines["cloudflare[0].api_token"] == "**********"
    assert lines["cloudflare[0].zones"] == "a.example,b.example"
    assert lines["cloudflare[1].graphql_requests_per_5_minutes"] == "100"
    assert not lines.keys() & TOKEN_SETTINGS.keys()
    assert "canary" not in f"{settings!r} {settings} {lines} {settings.cloudflare.by_token()}"


def test_other_settings_can_be_read_without_the_list(tmp_path: Path) -> None:
    file = tmp_path / "cfrw.yaml"
    file.write_text(yaml.safe_dump({"cloudflare": TWO, "ledger_path": "x.db"}))

    assert load_some(["LEDGER_PATH"], file, {}) == {"LEDGER_PATH": Path("x.db")}
