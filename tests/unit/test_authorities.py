import os
import ssl
from pathlib import Path

import certifi
import pytest
import trustme

from worker.authorities import trust_the_usual
from worker.errors import ConfigError


def der_of(authority: trustme.CA) -> bytes:
    return ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())


def trusted(**environ: str | Path) -> set[bytes]:
    """The certificates that are trusted in this environment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust_the_usual(context, {name: str(value) for name, value in environ.items()})
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    return set(context.get_ca_certs(binary_form=True))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's store, still empty: a file and a folder."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "cert.pem").touch()
    places = ssl.get_default_verify_paths()._replace(
        openssl_cafile=str(tmp_path / "cert.pem"), openssl_capath=str(tmp_path / "certs")
    )
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: places)
    return tmp_path


@pytest.mark.parametrize("name", ["cert.pem", "certs/0a1b2c3d.0", "certs/mounted.crt", "certs/without an ending"])
def test_the_machines_authorities_are_trusted_and_no_others(machine: Path, name: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(machine / name)
    assert trusted() == {der_of(authority)}


def test_a_machine_that_has_none_trusts_those_of_the_package(machine: Path) -> None:
    (machine / "cert.pem").unlink()
    (machine / "certs").rmdir()
    package = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    package.load_verify_locations(certifi.where())
    assert trusted() == set(package.get_ca_certs(binary_form=True))


def test_the_variables_name_other_places_each_for_its_own(machine: Path) -> None:
    authorities = [trustme.CA() for _ in range(5)]
    file, first, second = machine / "company.pem", machine / "first", machine / "second"
    first.mkdir()
    second.mkdir()
    for authority, path in zip(
        authorities, (machine / "cert.pem", machine / "certs/a.pem", file, first / "a", second / "a"), strict=True
    ):
        authority.cert_pem.write_to_path(path)
    of_file, of_folder, named, *in_folders = (der_of(authority) for authority in authorities)
    assert trusted() == {of_file, of_folder}
    assert trusted(SSL_CERT_FILE=file) == {named, of_folder}
    assert trusted(SSL_CERT_DIR=f"{first}:{machine}/none:{second}") == {of_file, *in_folders}
    assert trusted(SSL_CERT_FILE=file, SSL_CERT_DIR=machine / "none") == {named}
    assert trusted(SSL_CERT_FILE="", SSL_CERT_DIR="") == {of_file, of_folder}


def test_what_else_lies_there_spoils_nothing(machine: Path) -> None:
    authority = trustme.CA()
    pem = authority.cert_pem.bytes()
    damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    (machine / "cert.pem").write_bytes("Römisch\n".encode("latin-1") + damaged + pem + pem[:100])
    (machine / "certs/folder").mkdir()
    (machine / "certs/nowhere").symlink_to("/does/not/exist")
    (machine / "certs/loop").symlink_to(machine / "certs/loop")
    os.mkfifo(machine / "certs/pipe")
    (machine / "certs/key").write_bytes(authority.private_key_pem.bytes())
    assert trusted() == {der_of(authority)}


@pytest.mark.parametrize(
    "damaged",
    [
        b"-----BEGIN CERTIFICATE-----\n\xff\xfe\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n",
        b"-----BEGIN CERTIFICATE-----\n" * 100_000,  # with a look from each to the end of the file it takes minutes
    ],
)
def test_a_damaged_certificate_takes_no_other_one_along(machine: Path, damaged: bytes) -> None:
    authority = trustme.CA()
    crlf = authority.cert_pem.bytes().replace(b"\n", b"\r\n")
    (machine / "cert.pem").write_bytes(damaged + crlf)
    (machine / "certs/other.pem").write_bytes(crlf.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"))
    assert trusted() == {der_of(authority)}


def test_of_a_huge_file_no_more_than_its_beginning_is_read(machine: Path) -> None:
    authority = trustme.CA()
    with (machine / "certs/core").open("wb") as file:
        file.write(authority.cert_pem.bytes())
        file.truncate(1 << 40)  # 1 TB, which takes no room
    assert trusted() == {der_of(authority)}


def test_a_file_has_one_name_or_two_and_may_lie_elsewhere(
    machine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = trustme.CA()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ca.pem"
    authority.cert_pem.write_to_path(elsewhere)
    (machine / "certs/company.pem").symlink_to(elsewhere)
    (machine / "certs/0a1b2c3d.0").symlink_to("company.pem")
    assert trusted() == {der_of(authority)}


def test_variables_that_lead_nowhere_are_a_mistake_that_names_them(machine: Path) -> None:
    missing, pipe = machine / "missing.pem", machine / "pipe"
    os.mkfifo(pipe)
    for environ, said in (
        ({"SSL_CERT_FILE": missing}, f"SSL_CERT_FILE (given: {missing}): cannot be read: No such file or directory"),
        (
            {"SSL_CERT_FILE": machine / "cert.pem"},
            f"SSL_CERT_FILE (given: {machine}/cert.pem): no certificate is found",
        ),
        ({"SSL_CERT_FILE": pipe}, f"SSL_CERT_FILE (given: {pipe}): cannot be read: it is not a file"),
        ({"SSL_CERT_DIR": missing}, f"SSL_CERT_DIR (given: {missing}): no certificate is found"),
    ):
        with pytest.raises(ConfigError) as mistake:
            trusted(**environ)
        assert said in str(mistake.value)
