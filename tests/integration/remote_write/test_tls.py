import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    Answer,
    ScriptedServer,
    destination,
    saying,
    serving,
)
from worker.config import TlsSettings
from worker.errors import ConfigError
from worker.remote_write import Accepted, Later, RemoteWriteClient, Verdict


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


@contextlib.asynccontextmanager
async def client_of(url: str, tls: TlsSettings) -> AsyncIterator[RemoteWriteClient]:
    client = RemoteWriteClient(destination(url, tls=tls), ManualClock())
    try:
        yield client
    finally:
        await client.aclose()


async def verdict_of(certificate: trustme.LeafCert, tls: TlsSettings) -> Verdict:
    async with serving(saying(NO_CONTENT), server_context(certificate)) as server, client_of(server.url, tls) as client:
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Accepted) == bool(server.requests)
    return verdict


async def test_a_certificate_of_the_configured_authority_is_trusted(files: Files) -> None:
    certificate = files.authority.issue_cert("127.0.0.1")
    assert await verdict_of(certificate, TlsSettings(ca_file=files.ca_file)) == Accepted(204)


async def test_without_an_authority_file_the_public_ones_are_trusted_and_no_others(files: Files) -> None:
    verdict = await verdict_of(files.authority.issue_cert("127.0.0.1"), TlsSettings())
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("the receiver's certificate cannot be trusted: ")


async def test_with_an_authority_file_no_other_authority_is_trusted(files: Files) -> None:
    verdict = await verdict_of(trustme.CA().issue_cert("127.0.0.1"), TlsSettings(ca_file=files.ca_file))
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("the receiver's certificate cannot be trusted: ")


async def test_a_certificate_for_another_name_is_not_trusted(files: Files) -> None:
    verdict = await verdict_of(files.authority.issue_cert("other.example"), TlsSettings(ca_file=files.ca_file))
    assert isinstance(verdict, Later)
    assert "IP address mismatch" in verdict.reason


async def test_an_expired_certificate_is_not_trusted(files: Files) -> None:
    certificate = files.authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    verdict = await verdict_of(certificate, TlsSettings(ca_file=files.ca_file))
    assert verdict == Later("the receiver's certificate cannot be trusted: certificate has expired")


async def test_the_server_name_is_the_one_that_is_asked_for_and_checked(files: Files) -> None:
    certificate = files.authority.issue_cert("receiver.example")
    tls = TlsSettings(ca_file=files.ca_file, server_name="receiver.example")
    asked_for = []
    context = server_context(certificate)
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    async with serving(saying(NO_CONTENT), context) as server, client_of(server.url, tls) as client:
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
    context = server_context(files.authority.issue_cert("127.0.0.1"))
    files.authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with_certificate = TlsSettings(ca_file=files.ca_file, cert_file=files.cert_file, key_file=files.key_file)
    async with serving(saying(NO_CONTENT), context) as server:
        async with client_of(server.url, with_certificate) as client:
            assert await client.send(b"body", 0) == Accepted(204)
        async with client_of(server.url, TlsSettings(ca_file=files.ca_file)) as client:
            verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.status is None
    assert len(server.requests) == 1


async def test_plain_http_behind_an_https_url_is_told_as_a_tls_failure(files: Files) -> None:
    def script(_: ScriptedServer) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        return answer

    async with serving(script) as server:
        url = server.url.replace("http://", "https://")
        async with client_of(url, TlsSettings(ca_file=files.ca_file)) as client:
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
