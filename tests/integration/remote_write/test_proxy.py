import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from tests.integration.remote_write.forward_proxy import proxying
from tests.integration.remote_write.scripted_server import NO_CONTENT, client_of, destination, saying, serving
from worker.config import ProxySettings, QueueSettings, TlsSettings
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, RemoteWriteClient


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_plain_request_goes_through_the_proxy_with_its_credentials_and_no_connect_header() -> None:
    headers = {"X-Proxy-Key": (SecretStr("canary-key"),)}
    async with serving(saying(NO_CONTENT)) as server, proxying() as proxy:
        url = proxy.url.replace("://", "://us%65r:p%40ss@")
        settings = destination(server.url, proxy=ProxySettings(proxy_url=url, proxy_connect_header=headers))
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Accepted(204)
    assert proxy.heads[0].startswith(f"POST {server.url} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.heads[0]
    assert server.requests[0].header("X-Proxy-Key") is None
    assert server.requests[0].body == b"body"


async def test_an_encrypted_request_is_tunnelled_and_only_the_proxy_learns_what_is_meant_for_it(
    authority: trustme.CA, ca_file: Path
) -> None:
    headers = {"X-Proxy-Key": (SecretStr("one"), SecretStr("two"))}
    async with serving(saying(NO_CONTENT, then_close=False), server_context(authority)) as server, proxying() as proxy:
        settings = destination(
            server.url,
            headers={"X-Key": "for the receiver"},
            tls=TlsSettings(ca_file=ca_file),
            proxy=ProxySettings(proxy_url=proxy.url.replace("://", "://user:pass@"), proxy_connect_header=headers),
        )
        async with client_of(settings) as client:
            for _ in range(2):
                assert await client.send(b"body", 0) == Accepted(204)
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in head
    assert "X-Proxy-Key: one\r\nX-Proxy-Key: two\r\n" in head
    assert "for the receiver" not in head
    for request in server.requests:
        assert request.header("X-Key") == "for the receiver"
        assert request.header("X-Proxy-Key") is None
        assert request.header("Proxy-Authorization") is None


async def test_a_proxy_that_speaks_tls_is_checked_by_its_own_name(authority: trustme.CA, ca_file: Path) -> None:
    tls = TlsSettings(ca_file=ca_file, server_name="receiver.example")
    async with (
        serving(saying(NO_CONTENT), server_context(authority, "receiver.example")) as server,
        proxying(tls=server_context(authority)) as proxy,
        client_of(destination(server.url, tls=tls, proxy=ProxySettings(proxy_url=proxy.url))) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)


async def test_the_server_name_is_checked_behind_a_proxy_too(authority: trustme.CA, ca_file: Path) -> None:
    tls = TlsSettings(ca_file=ca_file, server_name="receiver.example")
    async with (
        serving(saying(NO_CONTENT), server_context(authority)) as server,
        proxying() as proxy,
        client_of(destination(server.url, tls=tls, proxy=ProxySettings(proxy_url=proxy.url))) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert "Hostname mismatch, certificate is not valid for 'receiver.example'" in verdict.reason


async def test_however_often_a_tunnel_fails_the_next_one_is_tried(authority: trustme.CA, ca_file: Path) -> None:
    context = server_context(trustme.CA())
    async with serving(saying(NO_CONTENT), context) as server, proxying() as proxy:
        settings = destination(
            server.url,
            queue=QueueSettings(max_shards=1),
            tls=TlsSettings(ca_file=ca_file),
            proxy=ProxySettings(proxy_url=proxy.url),
        )
        async with client_of(settings) as client:
            for attempt in range(5):
                verdict = await client.send(b"body", attempt)
                assert isinstance(verdict, Later)
                assert verdict.reason.startswith("the receiver's certificate cannot be trusted: ")
            authority.issue_cert("127.0.0.1").configure_cert(context)
            assert await client.send(b"body", 5) == Accepted(204)


async def test_a_tunnel_that_fails_leaves_those_that_hold_alone(authority: trustme.CA, ca_file: Path) -> None:
    received, go_on = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        received.set()
        await go_on.wait()
        writer.write(NO_CONTENT)

    context = server_context(authority)
    async with serving(lambda _: answer, context) as server, proxying() as proxy:
        settings = destination(server.url, tls=TlsSettings(ca_file=ca_file), proxy=ProxySettings(proxy_url=proxy.url))
        async with client_of(settings) as client:
            first = asyncio.create_task(client.send(b"body", 0))
            await received.wait()
            proxy.answer = b"502 Bad Gateway"
            assert await client.send(b"body", 0) == Later("the proxy does not let the connection pass: 502 Bad Gateway")
            go_on.set()
            assert await first == Accepted(204)


@pytest.mark.parametrize(
    ("answer", "fate"),
    [(b"407 Proxy Authentication Required", Fate.PARK), (b"403 Forbidden", Fate.PARK), (b"504 Timeout", Fate.RETRY)],
)
async def test_what_a_proxy_refuses_is_told_by_its_status(answer: bytes, fate: Fate) -> None:
    async with proxying(answer) as proxy:
        settings = destination("https://receiver.example/write", proxy=ProxySettings(proxy_url=proxy.url))
        async with client_of(settings) as client:
            verdict = await client.send(b"body", 0)
    assert verdict == Later(f"the proxy does not let the connection pass: {answer.decode()}", fate)


async def test_the_name_of_a_receiver_behind_a_proxy_is_the_proxys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(host: str | bytes, *_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, f"asked for {host!r}")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    settings = destination("https://receiver.example/", proxy=ProxySettings(proxy_url="http://proxy.example:3128"))
    async with client_of(settings) as client:
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("the proxy's host name cannot be resolved: asked for ")
    assert "proxy.example" in verdict.reason


async def test_no_secret_of_a_proxy_is_in_a_verdict_or_a_repr() -> None:
    echo = b"407 no: canary-pass dXNlcjpjYW5hcnktcGFzcw== canary-key"
    async with proxying(echo) as proxy:
        url = proxy.url.replace("://", "://user:canary-pass@")
        headers = {"X-Proxy-Key": (SecretStr("Token canary-key"),)}
        settings = destination(
            "https://receiver.example/write", proxy=ProxySettings(proxy_url=url, proxy_connect_header=headers)
        )
        async with client_of(settings) as client:
            verdict = await client.send(b"body", 0)
            assert "canary" not in f"{client!r} {client._setup!r} {client._setup.connections!r}"
    assert isinstance(verdict, Later)
    assert verdict.reason == f"the proxy does not let the connection pass: 407 no: {'*' * 11} {'*' * 24} {'*' * 10}"


async def test_the_environments_proxy_is_used_where_that_is_set(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, ca_file: Path
) -> None:
    async with (
        serving(saying(NO_CONTENT), server_context(authority, "receiver.example")) as server,
        proxying() as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        # This machine is never reached through the environment's proxy; a name of it that is not known to be one is.
        url = server.url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104 - nothing listens there
        tls = TlsSettings(ca_file=ca_file, server_name="receiver.example")
        for from_environment in (True, False):
            settings = destination(url, tls=tls, proxy=ProxySettings(proxy_from_environment=from_environment))
            async with client_of(settings) as client:
                assert await client.send(b"body", 0) == Accepted(204)
    assert [head.partition(" ")[0] for head in proxy.heads] == ["CONNECT"]


def test_a_proxy_of_the_environment_that_cannot_be_used_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:canary@proxy.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    settings = destination("https://receiver.example", proxy=ProxySettings(proxy_from_environment=True))
    with pytest.raises(ConfigError, match="HTTPS_PROXY: must be a proxy with http:// or https://") as mistake:
        RemoteWriteClient(settings, None)  # type: ignore[arg-type]  # no clock is looked at before the mistake
    assert "canary" not in str(mistake.value)
