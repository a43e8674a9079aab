from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import load_one, mistakes_in_one
from worker.config import Authorization, AzureOAuth, BasicAuth, OAuth2Settings, SecretFile
from worker.config.values import shown

CLIENT = "00000000-0000-0000-0000-00000000000a"
OAUTH2 = {"client_id": "a", "client_secret": "b", "token_url": "https://issuer/token"}
AZURE_OAUTH = {"client_id": CLIENT, "client_secret": "b", "tenant_id": "t"}


def test_both_halves_of_basic_authentication_can_be_files(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("me\n")
    (tmp_path / "password").write_text("b\n")
    destination = load_one(tmp_path, basic_auth={"username_file": "user", "password_file": "password"})
    assert destination.basic_auth == BasicAuth(
        username=SecretFile(tmp_path / "user"), password=SecretFile(tmp_path / "password")
    )


def test_another_scheme_than_bearer_is_an_authorization(tmp_path: Path) -> None:
    destination = load_one(tmp_path, authorization={"type": "Token", "credentials": "abc"})
    assert destination.authorization == Authorization(type="Token", credentials=SecretStr("abc"))


WAYS: dict[str, Any] = {
    "basic_auth": {"username": "a", "password": "b"},
    "authorization": {"credentials": "c"},
    "bearer_token": "c",
    "oauth2": OAUTH2,
    "sigv4": {},
    "azuread": {"sdk": {}},
    "headers": {"authorization": "Basic abc"},
    "http_headers": {"Authorization": {"secrets": ["Basic abc"]}},
}


@pytest.mark.parametrize(
    ("first", "second"), [(first, second) for at, first in enumerate(WAYS) for second in list(WAYS)[at + 1 :]]
)
def test_a_request_is_authenticated_in_one_way(tmp_path: Path, first: str, second: str) -> None:
    if {first, second} == {"headers", "http_headers"}:
        expected = "http_headers.Authorization: is also given under headers; keep one of them"
    else:
        name = {"headers": "headers.authorization", "http_headers": "http_headers.Authorization"}
        problem = f"cannot be combined with {name.get(first, first)}: a request has one Authorization header"
        expected = f"{name.get(second, second)}: {problem}"
    assert mistakes_in_one(tmp_path, **{first: WAYS[first], second: WAYS[second]}) == [expected]


def test_a_file_counts_as_much_as_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("c")
    [mistake] = mistakes_in_one(tmp_path, bearer_token_file="token", sigv4={})
    assert mistake.startswith("sigv4: cannot be combined with bearer_token")


# ------------------------------------------------------------------------------------------------------ OAuth 2.0


def test_oauth2_needs_three_things(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, oauth2={"scopes": ["a"]}) == [
        "oauth2.client_id: is required",
        "oauth2.client_secret: is required",
        "oauth2.token_url: is required",
    ]


def test_mistakes_are_found_below_the_second_level_and_all_at_once(tmp_path: Path) -> None:
    oauth2 = {
        "client_id": "a",
        "client_secret_file": "missing",
        "token_url": "https://me:secret@issuer/token",
        "client_secrets": "b",
        "scopes": {"a": "b"},
        "endpoint_params": ["a"],
        "tls_config": {"ca_fil": "x", "ca_file": "missing.pem", "min_version": "1.2"},
        "proxy_url": "socks5://proxy",
        "proxy_from_environment": "maybe",
    }
    assert sorted(mistakes_in_one(tmp_path, oauth2=oauth2)) == [
        f"oauth2.client_secret_file (given: {shown(f'{tmp_path}/missing')}): cannot be read: No such file or directory",
        "oauth2.client_secrets: is not a known key (did you mean client_secret?)",
        "oauth2.endpoint_params: must be a mapping of names to texts",
        "oauth2.proxy_from_environment (given: maybe): must be true or false",
        "oauth2.proxy_url (given: socks5://proxy): must be a proxy with http:// or https://; SOCKS is not spoken",
        "oauth2.scopes (given: a mapping of keys): must be names separated by commas, or a list of names",
        "oauth2.tls_config.ca_fil: is not a known key (did you mean ca_file?)",
        (
            f"oauth2.tls_config.ca_file (given: {shown(f'{tmp_path}/missing.pem')}): cannot be read: "
            "No such file or directory"
        ),
        "oauth2.tls_config.min_version (given: 1.2): must be one of TLS10, TLS11, TLS12, TLS13",
        (
            "oauth2.token_url (given: https://***@issuer/token): must not hold a user or password; give them as "
            "client_id and client_secret"
        ),
    ]


def test_a_key_of_an_inner_section_is_unknown_outside_of_it(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, proxy={"proxy_url": "http://proxy"}, tls={}) == [
        "proxy: is not a known key (did you mean no_proxy?)",
        "tls: is not a known key",
    ]


def test_parameters_of_the_token_are_told_by_name_only() -> None:
    settings = OAuth2Settings(
        client_id="a",
        client_secret=SecretStr("canary"),
        token_url="https://issuer/?key=canary",
        endpoint_params={"password": "canary"},
    )
    assert "canary" not in repr(settings)


# --------------------------------------------------------------------------------------------------------- SigV4


@pytest.mark.parametrize(
    ("sigv4", "mistakes"),
    [
        ({"access_key": "a"}, ["sigv4.secret_key: is required with access_key"]),
        ({"secret_key": "a"}, ["sigv4.access_key: is required with secret_key"]),
        ({"external_id": "a"}, ["sigv4.role_arn: is required with external_id"]),
        ({"regoin": "a"}, ["sigv4.regoin: is not a known key (did you mean region?)"]),
        ({"use_fips_sts_endpoint": "1"}, ["sigv4.use_fips_sts_endpoint (given: 1): must be true or false"]),
        ("eu-central-1", ["sigv4: must be a mapping of keys to values"]),
    ],
)
def test_mistakes_of_sigv4(tmp_path: Path, sigv4: object, mistakes: list[str]) -> None:
    assert mistakes_in_one(tmp_path, sigv4=sigv4) == mistakes


# ------------------------------------------------------------------------------------------------------- Azure AD


def test_the_secret_of_an_application_can_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("b")
    azuread = load_one(
        tmp_path, azuread={"oauth": {"client_id": CLIENT, "client_secret_file": "secret", "tenant_id": "t"}}
    ).azuread
    assert azuread is not None
    assert azuread.oauth == AzureOAuth(client_id=CLIENT, client_secret=SecretFile(tmp_path / "secret"), tenant_id="t")


ONE_OF = "managed_identity, workload_identity, oauth, certificate, sdk"


@pytest.mark.parametrize(
    ("azuread", "mistakes"),
    [
        ({}, [f"azuread: must have one of {ONE_OF}; an empty one is written as `sdk: {{}}`"]),
        (
            {"sdk": {}, "managed_identity": {}, "oauth": AZURE_OAUTH},
            [
                "azuread.oauth: cannot be combined with managed_identity: a request comes from one identity",
                "azuread.sdk: cannot be combined with managed_identity: a request comes from one identity",
            ],
        ),
        (
            {"sdk": {}, "cloud": "azurepublic"},
            ["azuread.cloud (given: azurepublic): must be one of AzurePublic, AzureChina, AzureGovernment"],
        ),
        (
            {"managed_identity": {"client_id": "me"}},
            [
                (
                    "azuread.managed_identity.client_id (given: me): must be an id such as "
                    "00000000-0000-0000-0000-000000000000"
                )
            ],
        ),
        (
            {"oauth": {"client_id": CLIENT}},
            ["azuread.oauth.client_secret: is required", "azuread.oauth.tenant_id: is required"],
        ),
        (
            {"workload_identity": {"client_id": CLIENT}},
            ["azuread.workload_identity.tenant_id: is required"],
        ),
        (
            {"certificate": {"client_id": CLIENT, "tenant_id": "t"}},
            ["azuread.certificate.certificate_path: is required"],
        ),
        ({"sdk": {}, "scopes": "a"}, ["azuread.scopes: is not a known key (did you mean scope?)"]),
    ],
)
def test_mistakes_of_azuread(tmp_path: Path, azuread: object, mistakes: list[str]) -> None:
    assert mistakes_in_one(tmp_path, azuread=azuread) == mistakes
