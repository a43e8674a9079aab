import json
import logging
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.integration.remote_write.forward_proxy import proxying
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    ScriptedServer,
    SeenRequest,
    client_of,
    destination,
    echo,
    replying,
    response,
    saying,
    serving,
)
from tests.integration.remote_write.test_tls import server_context
from worker.config import AzureAdSettings, DestinationSettings, ProxySettings, SecretFile
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient, auth_azure

CLIENT = "00000000-0000-0000-0000-000000000001"
OAUTH = {"client_id": CLIENT, "client_secret": SecretStr("canary-secret"), "tenant_id": "tenant"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def _this_machine_is_not_in_azure(monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path) -> None:
    for name in ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    # The server of tokens is reached as the public one is: by the machine's authorities.
    authority.cert_pem.write_to_path(tmp_path / "public.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))


def settings_for(server: ScriptedServer, *, proxy: ProxySettings | None = None, **azuread: Any) -> DestinationSettings:
    return destination(server.url, azuread=AzureAdSettings.model_validate(azuread), proxy=proxy or ProxySettings())


def entra(tokens: ScriptedServer, monkeypatch: pytest.MonkeyPatch, cloud: str) -> None:
    """Let this server be the authority of a cloud."""
    monkeypatch.setitem(auth_azure._AUTHORITIES, cloud, f"https://127.0.0.1:{tokens.port}")


def give(_: SeenRequest) -> bytes:
    granted = {"token_type": "Bearer", "expires_in": 3600, "access_token": "canary-token"}
    return response(200, json.dumps(granted), "Content-Type: application/json\r\n")


@pytest.mark.parametrize(
    ("cloud", "scope", "asked"),
    [
        ("AzurePublic", None, "https://monitor.azure.com//.default"),
        ("AzureChina", None, "https://monitor.azure.cn//.default"),
        ("AzureGovernment", None, "https://monitor.azure.us//.default"),
        ("AzurePublic", "https://other.example/.default", "https://other.example/.default"),
    ],
)
async def test_an_application_gets_its_token_from_the_authority_of_its_cloud(
    cloud: str, scope: str | None, asked: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as tokens, serving(saying(NO_CONTENT, then_close=False)) as server:
        entra(tokens, monkeypatch, cloud)
        async with client_of(settings_for(server, cloud=cloud, oauth=OAUTH, scope=scope)) as client:
            for _ in range(3):
                assert await client.send(b"body", 0) == Accepted(204)
    (request,) = tokens.requests
    assert request.line == "POST /tenant/oauth2/v2.0/token HTTP/1.1"
    form = parse_qs(request.body.decode())
    assert form["client_id"] == [CLIENT]
    assert form["client_secret"] == ["canary-secret"]
    assert form["scope"] == [asked]
    assert [request.header("Authorization") for request in server.requests] == ["Bearer canary-token"] * 3


def test_every_cloud_has_the_authority_that_microsoft_names() -> None:
    assert auth_azure._AUTHORITIES == {
        "AzurePublic": "login.microsoftonline.com",
        "AzureChina": "login.chinacloudapi.cn",
        "AzureGovernment": "login.microsoftonline.us",
    }


async def test_a_managed_identity_asks_the_machine_that_it_runs_on_and_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def imds(request: SeenRequest) -> bytes:
        assert request.line.startswith("GET /metadata/identity/oauth2/token?")
        assert f"client_id={CLIENT}" in request.line
        assert "resource=https://monitor.azure.com/" in unquote(request.line)
        assert request.header("Metadata") == "true"
        granted = {
            "access_token": "canary-token",
            "expires_on": str(int(time.time()) + 3600),
            "resource": "https://monitor.azure.com/",
            "token_type": "Bearer",
        }
        return response(200, json.dumps(granted), "Content-Type: application/json\r\n")

    async with (
        serving(replying(imds)) as machine,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        proxying() as proxy,
    ):
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{machine.port}")
        settings = settings_for(
            server, managed_identity={"client_id": CLIENT}, proxy=ProxySettings(proxy_url=proxy.url)
        )
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    assert len(machine.requests) == 1
    assert [head.partition(" ")[0] for head in proxy.heads] == ["POST"]
    assert server.requests[0].header("Authorization") == "Bearer canary-token"


async def test_a_workload_identity_shows_the_token_that_kubernetes_has_put_in_its_file(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("canary-kubernetes-1")
    workload = {"client_id": CLIENT, "tenant_id": "tenant", "token_file_path": str(token_file)}
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as tokens, serving(saying(NO_CONTENT, then_close=False)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, workload_identity=workload)) as client:
            assert await client.send(b"body", 0) == Accepted(204)
            token_file.write_text("canary-kubernetes-newer")
            assert await client.send(b"body", 0) == Accepted(204)
            token_file.unlink()
            verdict = await client.send(b"body", 0)
    shown = [parse_qs(request.body.decode())["client_assertion"] for request in tokens.requests]
    assert shown == [["canary-kubernetes-1"], ["canary-kubernetes-newer"]]
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert str(token_file) in verdict.reason


async def test_a_certificate_signs_for_the_application_and_is_read_again(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(path: Path) -> None:
        leaf = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert("app.example", key_type=trustme.KeyType.RSA)
        key = load_pem_private_key(leaf.private_key_pem.bytes(), password=None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem + leaf.cert_chain_pems[0].bytes())

    path = tmp_path / "app.pem"
    write(path)
    certificate = {"client_id": CLIENT, "tenant_id": "tenant", "certificate_path": str(path)}
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as tokens, serving(saying(NO_CONTENT, then_close=False)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, certificate=certificate)) as client:
            assert await client.send(b"body", 0) == Accepted(204)
            write(tmp_path / "new")
            (tmp_path / "new").replace(path)
            assert await client.send(b"body", 0) == Accepted(204)
            path.write_text("no certificate")
            verdict = await client.send(b"body", 0)
    one, other = (parse_qs(request.body.decode())["client_assertion"][0] for request in tokens.requests)
    assert one.partition(".")[0] != other.partition(".")[0]
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert verdict.reason.startswith("remote_write main: azuread: cannot be used: ")


async def test_the_sdk_finds_an_identity_in_the_environment(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as tokens, serving(saying(NO_CONTENT)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
        monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
        monkeypatch.setenv("AZURE_CLIENT_SECRET", "canary-secret")
        async with client_of(settings_for(server, sdk={})) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    assert parse_qs(tokens.requests[0].body.decode())["client_secret"] == ["canary-secret"]


async def test_a_token_goes_through_the_proxy_and_a_rotated_secret_is_used(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-old")
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with (
        serving(replying(give), context) as tokens,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        proxying() as proxy,
    ):
        entra(tokens, monkeypatch, "AzurePublic")
        settings = settings_for(
            server, oauth={**OAUTH, "client_secret": SecretFile(secret)}, proxy=ProxySettings(proxy_url=proxy.url)
        )
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Accepted(204)
            secret.write_text("canary-newer")
            assert await client.send(b"body", 0) == Accepted(204)
    sent = [parse_qs(request.body.decode())["client_secret"] for request in tokens.requests]
    assert sent == [["canary-old"], ["canary-newer"]]
    assert [head.split(" ")[0] for head in proxy.heads] == ["CONNECT", "POST", "CONNECT", "POST"]


async def test_a_401_gets_a_token_that_is_really_new(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(_: SeenRequest) -> bytes:
        granted = {"expires_in": 3600, "access_token": f"canary-{len(tokens.requests)}"}
        return response(200, json.dumps(granted), "Content-Type: application/json\r\n")

    def judge(request: SeenRequest) -> bytes:
        return NO_CONTENT if request.header("Authorization") == "Bearer canary-2" else response(401)

    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(numbered), context) as tokens, serving(replying(judge)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, oauth=OAUTH)) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    assert len(tokens.requests) == 2


@pytest.mark.parametrize("said", ["{}", "[]", "null", "<html>", '{"access_token": 7, "expires_in": "soon"}', ""])
async def test_what_is_no_answer_of_entra_parks(
    said: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue_cert("127.0.0.1"))
    answer = response(200, said, "Content-Type: application/json\r\n")
    async with serving(saying(answer), context) as tokens, serving(saying(NO_CONTENT)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, oauth=OAUTH)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no token from Azure (azuread): ")
    assert verdict.fate is Fate.PARK
    assert not server.requests


async def test_a_machine_that_has_no_identity_to_give_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(saying(NO_CONTENT)) as gone, serving(saying(NO_CONTENT)) as server:
        pass
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{gone.port}")
    async with client_of(settings_for(server, managed_identity={})) as client:
        assert await client.send(b"body", 0) == Later(
            "no token from Azure (azuread): the connection failed: Connection refused"
        )


@pytest.mark.parametrize(
    ("status", "said", "fate"),
    [
        (401, {"error": "invalid_client", "error_description": "AADSTS7000215: not canary-secret"}, Fate.PARK),
        (503, {"error": "temporarily_unavailable"}, Fate.RETRY),
        (200, {"error": "neither a token nor an error"}, Fate.PARK),
    ],
)
async def test_what_entra_refuses_is_told_in_its_words_without_the_secret(
    status: int, said: dict[str, str], fate: Fate, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue_cert("127.0.0.1"))
    answer = response(status, json.dumps(said), "Content-Type: application/json\r\n")
    async with serving(saying(answer), context) as tokens, serving(saying(NO_CONTENT)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, oauth=OAUTH)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no token from Azure (azuread): ")
    assert said["error"] in verdict.reason
    assert "canary" not in verdict.reason
    assert verdict.fate is fate
    # The worker itself tries again, and nobody else.
    assert len(tokens.requests) == 1
    assert not server.requests


async def test_an_authority_that_cannot_be_trusted_parks_and_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    context = server_context(trustme.CA().issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as tokens, serving(saying(NO_CONTENT)) as server:
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, oauth=OAUTH)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no token from Azure (azuread): 127.0.0.1's certificate cannot be trusted: ")
    assert verdict.fate is Fate.PARK
    assert not tokens.requests


async def test_a_redirect_of_the_authority_is_not_followed(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with serving(replying(give), context) as other, serving(saying(NO_CONTENT)) as server:
        redirect = response(307, headers=f"Location: {other.url}\r\nContent-Type: application/json\r\n")
        async with serving(saying(redirect), context) as tokens:
            entra(tokens, monkeypatch, "AzurePublic")
            async with client_of(settings_for(server, oauth=OAUTH)) as client:
                verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert not other.requests


async def test_no_token_is_in_a_verdict_a_repr_or_the_log(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    context = server_context(authority.issue_cert("127.0.0.1"))
    async with (
        serving(replying(give), context) as tokens,
        serving(replying(lambda request: response(400, echo(request)))) as server,
    ):
        entra(tokens, monkeypatch, "AzurePublic")
        async with client_of(settings_for(server, oauth=OAUTH)) as client:
            verdict = await client.send(b"body", 0)
            assert "canary" not in f"{client!r} {client._setup!r} {client._setup.credentials!r}"
    assert isinstance(verdict, Refused)
    assert "authorization: Bearer ************" in verdict.text
    assert "canary" not in verdict.text
    assert "canary" not in caplog.text


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worker.remote_write.auth_azure", raising=False)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    settings = destination("http://receiver.example", azuread=AzureAdSettings.model_validate({"oauth": OAUTH}))
    with pytest.raises(ConfigError, match=r"\(azure\): pip install '\.\[azure\]' in the folder"):
        RemoteWriteClient(settings, ManualClock())
