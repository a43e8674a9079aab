from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.config import (
    Authorization,
    AzureAdSettings,
    BasicAuth,
    DestinationSettings,
    OAuth2Settings,
    ProxySettings,
    SecretFile,
    SigV4Settings,
)
from worker.errors import ConfigError
from worker.remote_write import mask as mask_module
from worker.remote_write.mask import SecretMask, secrets_of

PASSWORD = "canary-password"
OAUTH2 = OAuth2Settings(
    client_id="me",
    client_secret=SecretStr("a/b"),
    token_url="https://auth.example/token?key=abc",
    endpoint_params={"audience": "canary"},
)
AZURE = {"client_id": "00000000-0000-0000-0000-000000000001", "client_secret": SecretStr("abc"), "tenant_id": "t"}


def destination(**more: object) -> DestinationSettings:
    given = {"name": "main", "url": "https://receiver.example/api/v1/write", **more}
    return DestinationSettings.model_validate(given)


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
        (destination(basic_auth=BasicAuth(username="u")), "u: Basic dTo=", "u: Basic ****"),
        (destination(authorization=Authorization(credentials=SecretStr("tok"))), "Bearer tok", "Bearer ***"),
        (
            destination(authorization=Authorization(type="Token", credentials=SecretStr("abc"))),
            "Token abc",
            "Token ***",
        ),
        (destination(headers={"X-Key": SecretStr("abc")}), "xabcx", "x***x"),
        (
            destination(headers={"Authorization": SecretStr("Token abc")}),
            "Token abc or abc",
            "********* or ***",
        ),
        (
            destination(headers={"X-Key": SecretStr("abc"), "X-Other": SecretStr("abcdef")}),
            "abcdef abc",
            "****** ***",
        ),
        (
            destination(url="https://r.example/write?key=a%20b&other=c"),
            "key=a%20b or 'a b'",
            "key=***** or '***'",
        ),
        (destination(oauth2=OAUTH2), "a/b a%2Fb me:a/b", "*** ***** ******"),
        (destination(oauth2=OAUTH2), "bWU6YSUyRmI= canary abc", "************ ****** ***"),
        (
            destination(sigv4=SigV4Settings(access_key=SecretStr("AKID"), secret_key=SecretStr("abc"))),
            "AKID abc",
            "AKID ***",
        ),
        (destination(azuread=AzureAdSettings.model_validate({"oauth": AZURE})), "secret abc", "secret ***"),
        (
            destination(proxy=ProxySettings(proxy_url="http://u:p%40w@proxy.example")),
            "p@w p%40w dTpwQHc=",
            "*** ***** ********",
        ),
        (
            destination(
                proxy=ProxySettings(
                    proxy_url="http://proxy.example", proxy_connect_header={"X-Key": (SecretStr("Token abc"),)}
                )
            ),
            "abc",
            "***",
        ),
    ],
)
def test_what_a_receiver_repeats_of_our_secrets_is_blotted_out(
    settings: DestinationSettings, said: str, shown: str
) -> None:
    assert SecretMask(settings)(said.encode()).decode() == shown


def test_the_name_of_a_tenant_is_no_secret() -> None:
    mask = SecretMask(destination(headers={"X-Scope-OrgID": SecretStr("1"), "THANOS-TENANT": SecretStr("team")}))
    assert mask(b"tenant 1 of team") == b"tenant 1 of team"


def test_a_proxy_of_the_environment_has_secrets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:abc@proxy.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    settings = destination(proxy=ProxySettings(proxy_from_environment=True))
    assert SecretMask(settings)(b"user:abc") == b"********"


def test_what_is_fetched_is_blotted_out_from_then_on_and_some_time_later_forgotten() -> None:
    mask = SecretMask(destination())
    assert mask(b"token-0") == b"token-0"
    for number in range(mask_module._REMEMBERED + 1):
        mask.remember(f"token-{number:03}")
    assert mask(f"token-{mask_module._REMEMBERED:03} token-001".encode()) == b"********* *********"
    assert mask(b"token-000") == b"token-000"


def test_a_secret_whose_last_character_is_cut_off_is_compared_in_one_way_only() -> None:
    # With two ways to match each character, this would take two to the power of 2,000 steps.
    token = "aB3-" * 500
    mask = SecretMask(destination(authorization=Authorization(credentials=SecretStr(token))))
    cut = token[:-1].encode() + b"!"
    assert mask(cut) == cut


def test_secrets_in_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pw\n")
    settings = destination(basic_auth=BasicAuth(username="u", password=SecretFile(path)))
    assert {"pw", "u:pw", "dTpwdw=="} <= set(secrets_of(settings))
    path.unlink()
    with pytest.raises(
        ConfigError, match=r"remote_write main: basic_auth\.password_file \(given: .*\): cannot be read"
    ):
        list(secrets_of(settings))
