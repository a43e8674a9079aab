from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import load_one, mistakes_in_one
from worker.config import ProxySettings

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    for name in ("ca.pem", "c.pem", "k.pem"):
        (tmp_path / name).write_text("abc")


@pytest.mark.parametrize(
    ("tls", "mistakes"),
    [
        ({"cert_file": "c.pem"}, ["tls_config.key_file: is required with cert_file"]),
        ({"key_file": "k.pem"}, ["tls_config.cert_file: is required with key_file"]),
        ({"cert": CERTIFICATE}, ["tls_config.key: is required with cert"]),
        ({"key": PRIVATE_KEY}, ["tls_config.cert: is required with key"]),
        (
            {"ca": CERTIFICATE, "ca_file": "ca.pem"},
            ["tls_config.ca_file: cannot be given together with ca; keep one of them"],
        ),
        (
            {"cert": CERTIFICATE, "cert_file": "c.pem", "key": PRIVATE_KEY, "key_file": "k.pem"},
            [
                "tls_config.cert_file: cannot be given together with cert; keep one of them",
                "tls_config.key_file: cannot be given together with key; keep one of them",
            ],
        ),
        (
            {"min_version": "TLS13", "max_version": "TLS12"},
            ["tls_config.min_version: is TLS13, which is above max_version (TLS12)"],
        ),
        (
            {"min_version": "TLSv1.2"},
            ["tls_config.min_version (given: TLSv1.2): must be one of TLS10, TLS11, TLS12, TLS13"],
        ),
        (
            {"ca": "ca.pem"},
            [
                (
                    "tls_config.ca: must be the text itself, from -----BEGIN to -----END ...-----; a file is given as "
                    "..._file"
                )
            ],
        ),
        (
            {"cert": CERTIFICATE, "key": CERTIFICATE},
            [
                (
                    "tls_config.key: must be the text of a private key itself, from -----BEGIN to -----END; a file is "
                    "given as key_file"
                )
            ],
        ),
        (
            {"cert": f"{CERTIFICATE}\n{PRIVATE_KEY}", "key": PRIVATE_KEY},
            ["tls_config.cert: must be certificates alone; the private key is given as key or key_file"],
        ),
    ],
)
def test_mistakes_of_tls(tmp_path: Path, tls: dict[str, str], mistakes: list[str]) -> None:
    assert mistakes_in_one(tmp_path, tls_config=tls) == mistakes


def test_a_key_may_be_a_file_while_its_certificate_stands_here(tmp_path: Path) -> None:
    tls = load_one(tmp_path, tls_config={"cert": CERTIFICATE, "key_file": "k.pem"}).tls
    assert tls.cert == f"{CERTIFICATE}\n"
    assert tls.key_file == tmp_path / "k.pem"


@pytest.mark.parametrize(
    ("entry", "mistakes"),
    [
        (
            {"proxy_url": "http://proxy:3128/path"},
            ["proxy_url (given: http://proxy:3128/path): must end with the proxy's host and port"],
        ),
        (
            {"proxy_url": "proxy:3128"},
            [
                (
                    "proxy_url (given: proxy:3128): must be a URL with http:// or https:// and a host, such as "
                    "https://prometheus.example.org/api/v1/write"
                )
            ],
        ),
        ({"no_proxy": "a"}, ["no_proxy: needs proxy_url: without a proxy there is nothing to leave out"]),
        (
            {"proxy_url": "http://proxy", "proxy_from_environment": True},
            ["proxy_from_environment: cannot be combined with proxy_url; keep one of them"],
        ),
        (
            {"no_proxy": "a", "proxy_from_environment": True},
            ["proxy_from_environment: cannot be combined with no_proxy; keep one of them"],
        ),
        (
            {"proxy_connect_header": {"X-A": ["b"]}},
            ["proxy_connect_header: needs proxy_url or proxy_from_environment: there is no proxy to send it to"],
        ),
        (
            {"proxy_url": "http://proxy", "proxy_connect_header": {"X-A": "b", "Host": ["c"], "X B": ["d"]}},
            [
                (
                    "proxy_connect_header (given: Host, X B, X-A): cannot be sent: Host is set by the worker itself; "
                    "X B is no name of a header; X-A must be a list of values, such as [value]"
                )
            ],
        ),
    ],
)
def test_mistakes_of_proxies(tmp_path: Path, entry: dict[str, Any], mistakes: list[str]) -> None:
    assert mistakes_in_one(tmp_path, **entry) == mistakes


def test_the_environments_proxy_is_used_only_when_asked_for(tmp_path: Path) -> None:
    assert load_one(tmp_path).proxy == ProxySettings()
    assert not ProxySettings().proxy_from_environment
    settings = load_one(tmp_path, proxy_from_environment=True, proxy_connect_header={"X-A": ["b", "c"]}).proxy
    assert settings.proxy_from_environment
    assert settings.proxy_connect_header == {"X-A": (SecretStr("b"), SecretStr("c"))}


def test_a_proxys_password_is_not_shown() -> None:
    settings = ProxySettings(proxy_url="http://user:canary@proxy", proxy_connect_header={"X-A": (SecretStr("canary"),)})
    assert "canary" not in repr(settings)
