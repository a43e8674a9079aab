import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    Answer,
    ScriptedServer,
    client_of,
    destination,
    saying,
    serving,
)
from worker.config import TlsSettings
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, RemoteWriteClient, Verdict
from worker.remote_write.tls import ssl_context


@dataclass(frozen=True)
class Files:
    """A certificate authority, and files as a user would have them."""

    authority: trustme.CA
    ca_file: Path
    cert_file: Path
    key_file: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    worker = authority.issue_cert("worker.example")
    worker.cert_chain_pems[0].write_to_path(folder / "worker.pem")
    worker.private_key_pem.write_to_path(folder / "worker.key")
    return Files(authority, folder / "ca.pem", folder / "worker.pem", folder / "worker.key")


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@contextlib.contextmanager
def polite_server(context: ssl.SSLContext) -> Iterator[str]:
    """Serves one handshake that fails, and says why before it goes, as most servers do and asyncio's does not."""

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            try:
                tls.do_handshake()
            except ssl.SSLError:
                # What is unread when the connection is closed would make the goodbye a reset.
                while socket.socket.recv(tls, 65_536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/api/v1/write"
        finally:
            thread.join()


async def refusal_of(context: ssl.SSLContext, tls: TlsSettings) -> Later:
    with polite_server(context) as url:
        async with client_of(destination(url, tls=tls)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    return verdict


def context_that_wants_a_certificate(files: Files) -> ssl.SSLContext:
    context = server_context(files.authority.issue_cert("127.0.0.1"))
    files.authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def verdict_of(certificate: trustme.LeafCert, tls: TlsSettings) -> Verdict:
    async with (
        serving(saying(NO_CONTENT), server_context(certificate)) as server,
        client_of(destination(server.url, tls=tls)) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Accepted) == bool(server.requests)
    return verdict


async def test_a_certificate_of_the_configured_authority_is_trusted(files: Files) -> None:
    certificate = files.authority.issue_cert("127.0.0.1")
    assert await verdict_of(certificate, TlsSettings(ca_file=files.ca_file)) == Accepted(204)


async def test_without_an_authority_file_the_machines_authorities_are_trusted_and_no_others(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca_file))
    assert await verdict_of(files.authority.issue_cert("127.0.0.1"), TlsSettings()) == Accepted(204)
    verdict = await verdict_of(trustme.CA().issue_cert("127.0.0.1"), TlsSettings())
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert verdict.reason.startswith("the receiver's certificate cannot be trusted: ")


async def test_an_authority_below_another_needs_only_itself_to_be_trusted(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = files.authority.create_child_ca()
    below.cert_pem.write_to_path(tmp_path / "below.pem")
    certificate = below.issue_cert("127.0.0.1")
    assert await verdict_of(certificate, TlsSettings(ca_file=tmp_path / "below.pem")) == Accepted(204)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "below.pem"))
    assert await verdict_of(certificate, TlsSettings()) == Accepted(204)


async def test_with_an_authority_file_no_other_authority_is_trusted(files: Files) -> None:
    verdict = await verdict_of(trustme.CA().issue_cert("127.0.0.1"), TlsSettings(ca_file=files.ca_file))
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert verdict.reason.startswith("the receiver's certificate cannot be trusted: ")


async def test_a_certificate_for_another_name_is_not_trusted(files: Files) -> None:
    verdict = await verdict_of(files.authority.issue_cert("other.example"), TlsSettings(ca_file=files.ca_file))
    assert isinstance(verdict, Later)
    assert "IP address mismatch" in verdict.reason


async def test_an_expired_certificate_is_not_trusted(files: Files) -> None:
    certificate = files.authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    verdict = await verdict_of(certificate, TlsSettings(ca_file=files.ca_file))
    assert verdict == Later("the receiver's certificate cannot be trusted: certificate has expired", Fate.PARK)


async def test_the_server_name_is_the_one_that_is_asked_for_and_checked(files: Files) -> None:
    certificate = files.authority.issue_cert("receiver.example")
    tls = TlsSettings(ca_file=files.ca_file, server_name="receiver.example")
    asked_for = []
    context = server_context(certificate)
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    async with serving(saying(NO_CONTENT), context) as server, client_of(destination(server.url, tls=tls)) as client:
        assert await client.send(b"body", 0) == Accepted(204)
    assert asked_for == ["receiver.example"]
    # The name in TLS is not the one in HTTP.
    assert server.requests[0].header("Host") == f"127.0.0.1:{server.port}"


async def test_a_wrong_server_name_is_not_trusted_either(files: Files) -> None:
    certificate = files.authority.issue_cert("127.0.0.1")
    verdict = await verdict_of(certificate, TlsSettings(ca_file=files.ca_file, server_name="receiver.example"))
    assert isinstance(verdict, Later)
    assert "Hostname mismatch" in verdict.reason


@pytest.mark.parametrize("skip", [True, False])
async def test_any_certificate_is_taken_if_and_only_if_that_was_asked_for(*, skip: bool) -> None:
    certificate = trustme.CA().issue_cert("other.example")
    verdict = await verdict_of(certificate, TlsSettings(insecure_skip_verify=skip))
    assert isinstance(verdict, Accepted if skip else Later)


async def test_the_client_certificate_is_shown_to_a_receiver_that_wants_one(files: Files) -> None:
    tls = TlsSettings(ca_file=files.ca_file, cert_file=files.cert_file, key_file=files.key_file)
    context = context_that_wants_a_certificate(files)
    async with serving(saying(NO_CONTENT), context) as server, client_of(destination(server.url, tls=tls)) as client:
        assert await client.send(b"body", 0) == Accepted(204)


async def test_a_receiver_that_wants_a_certificate_and_gets_none_parks(files: Files) -> None:
    verdict = await refusal_of(context_that_wants_a_certificate(files), TlsSettings(ca_file=files.ca_file))
    assert verdict == Later(
        "TLS failed: TLSV13_ALERT_CERTIFICATE_REQUIRED; the receiver does not take the certificate that the worker "
        "shows: check tls_config",
        Fate.PARK,
    )


async def test_a_client_certificate_that_has_expired_parks_and_is_told(files: Files, tmp_path: Path) -> None:
    expired = files.authority.issue_cert("worker.example", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    expired.private_key_and_cert_chain_pem.write_to_path(tmp_path / "expired.pem")
    tls = TlsSettings(ca_file=files.ca_file, cert_file=tmp_path / "expired.pem", key_file=tmp_path / "expired.pem")
    verdict = await refusal_of(context_that_wants_a_certificate(files), tls)
    assert verdict == Later(
        "TLS failed: SSLV3_ALERT_CERTIFICATE_EXPIRED; the receiver does not take the certificate that the worker "
        "shows: check tls_config",
        Fate.PARK,
    )


async def test_a_certificate_and_its_key_may_stand_in_the_settings_themselves(files: Files) -> None:
    context = context_that_wants_a_certificate(files)
    tls = TlsSettings(
        ca=files.ca_file.read_text(), cert=files.cert_file.read_text(), key=SecretStr(files.key_file.read_text())
    )
    async with serving(saying(NO_CONTENT), context) as server, client_of(destination(server.url, tls=tls)) as client:
        assert await client.send(b"body", 0) == Accepted(204)
        assert "BEGIN" not in f"{tls!r} {client._setup!r}"


async def test_a_certificate_that_is_renewed_is_shown_without_a_restart(files: Files, tmp_path: Path) -> None:
    context = context_that_wants_a_certificate(files)
    certificate = tmp_path / "worker.pem"
    trustme.CA().issue_cert("worker.example").private_key_and_cert_chain_pem.write_to_path(certificate)
    tls = TlsSettings(ca_file=files.ca_file, cert_file=certificate, key_file=certificate)
    async with serving(saying(NO_CONTENT), context) as server, client_of(destination(server.url, tls=tls)) as client:
        assert isinstance(await client.send(b"body", 0), Later)
        (tmp_path / "new").write_bytes(files.cert_file.read_bytes() + files.key_file.read_bytes())
        (tmp_path / "new").replace(certificate)
        assert await client.send(b"body", 0) == Accepted(204)


async def test_authorities_that_are_renewed_are_trusted_without_a_restart(files: Files, tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authorities)
    certificate = files.authority.issue_cert("127.0.0.1")
    async with (
        serving(saying(NO_CONTENT), server_context(certificate)) as server,
        client_of(destination(server.url, tls=TlsSettings(ca_file=authorities))) as client,
    ):
        assert isinstance(await client.send(b"body", 0), Later)
        (tmp_path / "new").write_bytes(files.ca_file.read_bytes())
        (tmp_path / "new").replace(authorities)
        assert await client.send(b"body", 0) == Accepted(204)


async def test_a_certificate_that_becomes_unreadable_parks_and_is_named(files: Files, tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(files.ca_file.read_bytes())
    certificate = files.authority.issue_cert("127.0.0.1")
    async with (
        serving(saying(NO_CONTENT, then_close=False), server_context(certificate)) as server,
        client_of(destination(server.url, tls=TlsSettings(ca_file=authorities))) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)
        for spoil in (lambda: authorities.write_text("no certificate"), authorities.unlink):
            spoil()
            verdict = await client.send(b"body", 0)
            assert isinstance(verdict, Later)
            assert verdict.fate is Fate.PARK
            assert f"tls_config.ca_file (given: {authorities}): cannot be used for TLS" in verdict.reason
        authorities.write_bytes(files.ca_file.read_bytes())
        assert await client.send(b"body", 0) == Accepted(204)


@pytest.mark.parametrize(
    ("most", "limits", "spoken"),
    [
        (ssl.TLSVersion.TLSv1_2, {}, "TLSv1.2"),
        (ssl.TLSVersion.TLSv1_3, {"min_version": "TLS13"}, "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_3, {"max_version": "TLS12"}, "TLSv1.2"),
    ],
)
async def test_the_versions_of_tls_are_kept_within_their_limits(
    most: ssl.TLSVersion, limits: dict[str, Any], spoken: str, files: Files
) -> None:
    heard = []

    def script(server: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(writer.get_extra_info("ssl_object").version())
            await saying(NO_CONTENT)(server)(reader, writer)

        return answer

    context = server_context(files.authority.issue_cert("127.0.0.1"))
    context.maximum_version = most
    tls = TlsSettings(ca_file=files.ca_file, **limits)
    async with serving(script, context) as server, client_of(destination(server.url, tls=tls)) as client:
        assert await client.send(b"body", 0) == Accepted(204)
    assert heard == [spoken]


async def test_a_receiver_that_speaks_no_version_of_tls_that_may_be_spoken_parks(files: Files) -> None:
    context = server_context(files.authority.issue_cert("127.0.0.1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    verdict = await refusal_of(context, TlsSettings(ca_file=files.ca_file, min_version="TLS13"))
    assert verdict == Later("TLS failed: TLSV1_ALERT_PROTOCOL_VERSION", Fate.PARK)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_spoken_where_that_was_asked_for() -> None:
    for name, version in (("TLS10", ssl.TLSVersion.TLSv1), ("TLS11", ssl.TLSVersion.TLSv1_1)):
        context = ssl_context(TlsSettings.model_validate({"min_version": name}), "main")
        assert context.minimum_version is version


async def test_a_handshake_that_is_cut_is_tried_again_soon(files: Files) -> None:
    async def answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with serving(lambda _: answer) as server:
        url = server.url.replace("http://", "https://")
        async with client_of(destination(url, tls=TlsSettings(ca_file=files.ca_file))) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.RETRY


@pytest.mark.parametrize("key", ["ca", "cert"])
def test_what_is_no_certificate_in_the_settings_is_a_mistake_and_not_shown(key: str, files: Files) -> None:
    text = "-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----\n"
    given = {"ca": text} if key == "ca" else {"cert": text, "key": SecretStr(files.key_file.read_text())}
    with pytest.raises(ConfigError) as mistake:
        RemoteWriteClient(destination("https://receiver.example", tls=TlsSettings(**given)), ManualClock())
    assert f"remote_write main: tls_config.{key}: cannot be used for TLS" in str(mistake.value)
    assert "canary" not in str(mistake.value)


async def test_plain_http_behind_an_https_url_is_told_as_a_tls_failure(files: Files) -> None:
    def script(_: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        return answer

    async with serving(script) as server:
        url = server.url.replace("http://", "https://")
        async with client_of(destination(url, tls=TlsSettings(ca_file=files.ca_file))) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("TLS failed: ")


def test_a_file_that_holds_no_certificate_is_a_mistake_of_the_configuration(tmp_path: Path, files: Files) -> None:
    text = tmp_path / "text.pem"
    text.write_text("not a certificate")
    for tls, key, path in (
        (TlsSettings(ca_file=text), "ca_file", text),
        (TlsSettings(cert_file=text, key_file=files.key_file), "cert_file", text),
        (TlsSettings(cert_file=files.cert_file, key_file=text), "cert_file", files.cert_file),
    ):
        with pytest.raises(ConfigError) as mistake:
            RemoteWriteClient(destination("https://receiver.example", tls=tls), ManualClock())
        assert f"remote_write main: tls_config.{key} (given: {path})" in str(mistake.value)


def test_an_encrypted_key_is_a_mistake_and_nobody_is_asked_for_its_password(tmp_path: Path, files: Files) -> None:
    key = load_pem_private_key(files.key_file.read_bytes(), password=None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    tls = TlsSettings(cert_file=files.cert_file, key_file=encrypted)
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        RemoteWriteClient(destination("https://receiver.example", tls=tls), ManualClock())
