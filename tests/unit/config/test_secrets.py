"""A secret is nowhere to be seen, however wrong the rest is."""

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from worker.config import describe, load_settings
from worker.errors import ConfigError

CANARY = "hunter2canary"
URL = "http://prometheus/api/v1/write"
ENTRY = f"remote_write:\n  - url: {URL}\n"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that hangs on it, shown by default or not."""
    yield error
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            yield from chain(linked)


def everything_about(error: ConfigError) -> str:
    texts = [*map(str, error.mistakes), *map(repr, error.mistakes), "".join(traceback.format_exception(error))]
    for linked in chain(error):
        texts += [str(linked), repr(linked)]
    return "\n".join(texts)


VARIABLES: list[dict[str, str]] = [
    {"CF_API_TOKEN": f"{CANARY} {CANARY}"},
    {"CF_API_TOKEN": f"Bearer {CANARY}"},
    {"CF_API_TOKEN": f"{CANARY}\x00"},
    {"CF_API_TOKEN": f"{CANARY}ü"},
    {"CF_API_TOKEN": CANARY, "CF_API_TOKEN_FILE": "/missing"},
    {"CF_API_TOKENS": CANARY},
    {"CF_APITOKEN": CANARY},
    {"CF_API_URL": f"https://user:{CANARY}@host"},
    {"CF_API_URL": f"https://host?token={CANARY}"},
    {"CF_API_URL": f"http://{CANARY}@host"},
    {"REMOTE_WRITE_URL": f"https://user:{CANARY}@host/x"},
    {"REMOTE_WRITE_URL": f"user:{CANARY}@host/x"},
    {"REMOTE_WRITE_URL": f"https://user:{CANARY}/@host/x"},
    {"REMOTE_WRITE_URL": f"ftp://host/x?key={CANARY}"},
    {"REMOTE_WRITE_URL": f"https://host/#{CANARY}"},
    {"REMOTE_WRITE_PASSWORD": CANARY},
    {"REMOTE_WRITE_PASSWORD": f"{CANARY}\n{CANARY}"},
    {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_PASSWORD": CANARY},
    {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_USERNAME": "a:b", "REMOTE_WRITE_PASSWORD": CANARY},
    {"REMOTE_WRITE_PASWORD": CANARY},
    {"REMOTE_WRITE_BEARER_TOKEN": f"Bearer {CANARY}"},
    {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_BEARER_TOKEN": CANARY, "REMOTE_WRITE_PASSWORD": CANARY},
    {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_BEARER_TOKEN_FILE": "secret-latin"},
    {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_PASSWORD_FILE": "secret-lines", "REMOTE_WRITE_USERNAME": "a"},
    {"REMOTE_WRITE_URL": URL, "CF_API_TOKEN_FILE": "secret-words"},
]
FILES = [
    f"cf_api_token: [{CANARY}]\n",
    f"cf_api_token: {{a: {CANARY}}}\n",
    f"cf_api_token: *{CANARY}\n",
    f"cf_api_token: !{CANARY}\n",
    f"cf_api_token: !!binary {CANARY}\n",
    f"cf_api_token: %{CANARY}\n",
    f"cf_api_token: @{CANARY}\n",
    f'cf_api_token: "{CANARY}\n',
    f"cf_api_token: '{CANARY}' '{CANARY}'\n",
    f'cf_api_token: "\\x{CANARY}"\n',
    f"cf_api_token: {CANARY}: {CANARY}\n",
    f"cf_api_token: ${{{CANARY}}}\n",
    f"cf_api_token: {CANARY}\ncf_api_token: {CANARY}\n",
    f"cf_api_tokn: {CANARY}\n",
    f"{ENTRY}    pasword: {CANARY}\n",
    f"{ENTRY}    basic_auth: {CANARY}\n",
    f"{ENTRY}    basic_auth: [{CANARY}]\n",
    f"{ENTRY}    basic_auth: {{password: {CANARY}, user: a}}\n",
    f"{ENTRY}    basic_auth: {{username: a, password: [{CANARY}]}}\n",
    f"{ENTRY}    basic_auth: {{username: a, password: {{a: {CANARY}}}}}\n",
    f'{ENTRY}    basic_auth: {{username: a, password: "{CANARY}\\n{CANARY}"}}\n',
    f"{ENTRY}    basic_auth: {{username: a, passwd: {CANARY}}}\n",
    f"{ENTRY}    basic_auth: {{username: a, password: {CANARY}, password_file: /missing}}\n",
    f"{ENTRY}    basic_auth: {{username: a, password_file: secret-lines}}\n",
    f"{ENTRY}    basic_auth: {{username: a, password: {CANARY}}}\n    bearer_token: {CANARY}\n",
    f"{ENTRY}    bearer_token: Bearer {CANARY}\n",
    f"{ENTRY}    bearer_token: [{CANARY}]\n",
    f"{ENTRY}    bearer_token_file: secret-latin\n",
    f"{ENTRY}    authorization: {CANARY}\n",
    f"{ENTRY}    authorization: {{credentials: two {CANARY}}}\n",
    f"{ENTRY}    authorization: {{type: Basic, credentials: {CANARY}}}\n",
    f"{ENTRY}    authorization: {{credential: {CANARY}}}\n",
    f"{ENTRY}    headers: [{CANARY}]\n",
    f"{ENTRY}    headers: {{X-A: [{CANARY}]}}\n",
    f"{ENTRY}    headers: {{Host: {CANARY}}}\n",
    f"{ENTRY}    headers: {{Authorization: {CANARY}}}\n    bearer_token: {CANARY}\n",
    f'{ENTRY}    headers: {{X-A: "{CANARY}\\r\\nX-B: c"}}\n',
    f"{ENTRY}    oauth2: {{client_secret: {CANARY}}}\n",
    f"{ENTRY}    sigv4: {{secret_key: {CANARY}}}\n",
    f"{ENTRY}    oauth2: {{client_id: a, token_url: https://b, client_secret: [{CANARY}]}}\n",
    f'{ENTRY}    oauth2: {{client_id: a, token_url: https://b, client_secret: "{CANARY}\\n{CANARY}"}}\n',
    f"{ENTRY}    oauth2: {{client_id: a, token_url: https://u:{CANARY}@b, client_secret: {CANARY}}}\n",
    f"{ENTRY}    oauth2: {{client_id: a, token_url: https://b, client_secret_file: secret-latin}}\n",
    f"{ENTRY}    oauth2: {{client_id: a, token_url: https://b, client_secret_file: secret-lines}}\n",
    f"{ENTRY}    oauth2: {{client_secret: {CANARY}, client_secret_file: secret-lines}}\n",
    f"{ENTRY}    oauth2: {{client_secrets: {CANARY}}}\n",
    f"{ENTRY}    oauth2: {CANARY}\n",
    f"{ENTRY}    oauth2: {{endpoint_params: [{CANARY}]}}\n",
    f"{ENTRY}    oauth2: {{endpoint_params: {{password: [{CANARY}]}}}}\n",
    f"{ENTRY}    oauth2: {{client_certificate_key: {CANARY}}}\n",
    f"{ENTRY}    oauth2: {{tls_config: {{key: {CANARY}}}}}\n",
    f"{ENTRY}    oauth2: {{proxy_url: http://user:{CANARY}@}}\n",
    f"{ENTRY}    sigv4: {{access_key: {CANARY}}}\n",
    f"{ENTRY}    sigv4: {{access_key: [{CANARY}], secret_key: [{CANARY}]}}\n",
    f"{ENTRY}    sigv4: {CANARY}\n",
    f"{ENTRY}    sigv4: {{secret_keys: {CANARY}}}\n",
    f"{ENTRY}    azuread: {{oauth: {{client_secret: {CANARY}}}}}\n",
    f"{ENTRY}    azuread: {{oauth: {{client_secret: [{CANARY}]}}}}\n",
    f"{ENTRY}    azuread: {{certificate: {{certificate_password: {CANARY}}}}}\n",
    f"{ENTRY}    azuread: {{oauth: {CANARY}}}\n",
    f"{ENTRY}    google_iam: {{credentials: {CANARY}}}\n",
    f"{ENTRY}    proxy_url: http://user:{CANARY}@proxy/path\n",
    f"{ENTRY}    proxy_url: socks5://user:{CANARY}@proxy\n",
    f"{ENTRY}    proxy_url: user:{CANARY}@proxy\n",
    f"{ENTRY}    proxy_url: http://user:{CANARY}@proxy\n    proxy_from_environment: true\n",
    f"{ENTRY}    proxy_connect_header: {{X-A: [{CANARY}]}}\n",
    f"{ENTRY}    proxy_url: http://a\n    proxy_connect_header: {{X-A: {CANARY}}}\n",
    f"{ENTRY}    proxy_url: http://a\n    proxy_connect_header: {{X-A: [[{CANARY}]]}}\n",
    f"{ENTRY}    http_headers: {{X-A: {CANARY}}}\n",
    f"{ENTRY}    http_headers: {{X-A: {{secrets: [{CANARY}, {CANARY}]}}}}\n",
    f"{ENTRY}    http_headers: {{X-A: {{secrets: [[{CANARY}]]}}}}\n",
    f"{ENTRY}    http_headers: {{X-A: {{files: [secret-latin]}}}}\n",
    f"{ENTRY}    http_headers: {{X-A: {{secret: {CANARY}}}}}\n",
    f"{ENTRY}    tls_config: {{key: {CANARY}}}\n",
    f"{ENTRY}    tls_config: {{cert: {CANARY}, key: {CANARY}}}\n",
    f'{ENTRY}    tls_config: {{cert: "-----BEGIN PRIVATE KEY-----{CANARY}-----END PRIVATE KEY-----"}}\n',
    f"{ENTRY}    query_url: http://user:{CANARY}@host\n",
    f"remote_write:\n  - url: https://user:{CANARY}@host/x\n",
    f"remote_write:\n  - https://user:{CANARY}@host/x\n",
    f"remote_write: https://user:{CANARY}@host/x\n",
    f"remote_write: {{url: x, bearer_token: {CANARY}}}\n",
    f"remote_write:\n  - url: {URL}?key={CANARY}\n    name: a\n  - url: {URL}?key={CANARY}\n    name: b\n",
]


@pytest.fixture(autouse=True)
def _files_that_hold_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret-latin").write_bytes(CANARY.encode() + b"\xff")
    (tmp_path / "secret-lines").write_text(f"{CANARY}\n{CANARY}\n")
    (tmp_path / "secret-words").write_text(f"{CANARY} {CANARY}\n")


@pytest.mark.parametrize("environ", VARIABLES)
def test_no_mistake_in_a_variable_shows_a_secret(environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, environ)
    assert CANARY not in everything_about(caught.value)


@pytest.mark.parametrize("text", FILES)
def test_no_mistake_in_the_file_shows_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {"CF_API_TOKEN": CANARY} if "cf_api_token" not in text else {})
    assert CANARY not in everything_about(caught.value)


def test_settings_in_force_show_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    key = f"-----BEGIN PRIVATE KEY-----{CANARY}-----END PRIVATE KEY-----"
    file.write_text(
        f"cf_api_token: {CANARY}\n{ENTRY}    headers: {{X-A: {CANARY}}}\n"
        f"    basic_auth: {{username: a, password: {CANARY}}}\n"
        f"    proxy_url: http://user:{CANARY}@proxy\n    proxy_connect_header: {{X-A: [{CANARY}]}}\n"
        f"  - url: {URL}?key={CANARY}\n    name: b\n    bearer_token: {CANARY}\n    query_url: {URL}?key={CANARY}\n"
        f"  - url: {URL}\n    name: c\n    authorization: {{type: Token, credentials: {CANARY}}}\n"
        f"    http_headers: {{X-A: {{secrets: [{CANARY}]}}}}\n"
        f"  - url: {URL}\n    name: d\n    sigv4: {{access_key: {CANARY}, secret_key: {CANARY}}}\n"
        f"  - url: {URL}\n    name: e\n    oauth2: {{client_id: a, token_url: 'https://b?c={CANARY}', "
        f"client_secret: {CANARY}, endpoint_params: {{password: {CANARY}}}, "
        f"tls_config: {{cert: '-----BEGIN CERTIFICATE-----', key: '{key}'}}, proxy_url: 'http://u:{CANARY}@p'}}\n"
        f"  - url: {URL}\n    name: f\n    azuread: {{oauth: {{client_id: 00000000-0000-0000-0000-00000000000a, "
        f"tenant_id: b, client_secret: {CANARY}}}}}\n"
    )
    loaded = load_settings(file, {})
    assert len(loaded.destinations) == 6
    assert CANARY not in f"{loaded} {loaded!r} {describe(loaded)}"
    assert not [destination for destination in loaded.destinations if CANARY in f"{destination} {destination!r}"]
