import base64
from collections.abc import Mapping

import httpx
import pytest
from pydantic import SecretStr

from worker.config import BasicAuth, DestinationSettings
from worker.remote_write.auth import SecretMask, authentication

PASSWORD = "canary-password"
TOKEN = "canary-token"


def destination(
    *,
    url: str = "https://receiver.example/api/v1/write",
    headers: Mapping[str, str] | None = None,
    basic_auth: BasicAuth | None = None,
    bearer_token: SecretStr | None = None,
) -> DestinationSettings:
    wrapped = {name: SecretStr(value) for name, value in (headers or {}).items()}
    return DestinationSettings(name="main", url=url, headers=wrapped, basic_auth=basic_auth, bearer_token=bearer_token)


def authorization(auth: httpx.Auth) -> str:
    request = next(auth.auth_flow(httpx.Request("POST", "https://receiver.example")))
    return request.headers["Authorization"]


def test_basic_auth_is_sent_as_rfc_7617_says() -> None:
    auth = authentication(destination(basic_auth=BasicAuth(username="42", password=SecretStr(PASSWORD))))
    assert auth is not None
    assert authorization(auth) == "Basic " + base64.b64encode(f"42:{PASSWORD}".encode()).decode()


def test_a_bearer_token_is_sent_as_rfc_6750_says() -> None:
    auth = authentication(destination(bearer_token=SecretStr(TOKEN)))
    assert auth is not None
    assert authorization(auth) == f"Bearer {TOKEN}"


def test_a_destination_without_credentials_gets_none() -> None:
    assert authentication(destination(headers={"X-Scope-OrgID": "7"})) is None


def test_no_representation_shows_a_secret() -> None:
    for settings in (
        destination(basic_auth=BasicAuth(username="42", password=SecretStr(PASSWORD))),
        destination(bearer_token=SecretStr(TOKEN), headers={"X-Key": "canary-header"}),
    ):
        auth = authentication(settings)
        assert "canary" not in f"{settings!r} {auth!r} {SecretMask(settings)!r}"


@pytest.mark.parametrize(
    ("settings", "said", "shown"),
    [
        (
            destination(basic_auth=BasicAuth(username="42", password=SecretStr(PASSWORD))),
            f"wrong password {PASSWORD} for 42",
            f"wrong password {'*' * len(PASSWORD)} for 42",
        ),
        (
            destination(basic_auth=BasicAuth(username="u", password=SecretStr("pw"))),
            "Authorization: Basic dTpwdw==, twice dTpwdw==",
            "Authorization: Basic ********, twice ********",
        ),
        (destination(bearer_token=SecretStr(TOKEN)), f"Bearer {TOKEN}", f"Bearer {'*' * len(TOKEN)}"),
        (destination(headers={"X-Key": "abc"}), "xabcx", "x***x"),
        (destination(headers={"Authorization": "Token abc"}), "Token abc or abc", "********* or ***"),
        (destination(headers={"X-Key": "abc", "X-Other": "abcdef"}), "abcdef abc", "****** ***"),
        (destination(url="https://r.example/write?key=a%20b&other=c"), "key=a%20b or 'a b'", "key=***** or '***'"),
    ],
)
def test_what_a_receiver_repeats_of_our_secrets_is_blotted_out(
    settings: DestinationSettings, said: str, shown: str
) -> None:
    assert SecretMask(settings)(said.encode()).decode() == shown


def test_the_name_of_a_tenant_is_no_secret() -> None:
    mask = SecretMask(destination(headers={"X-Scope-OrgID": "1", "THANOS-TENANT": "team"}))
    assert mask(b"tenant 1 of team") == b"tenant 1 of team"
