"""How a destination is reached: TLS and proxies, with the keys that Prometheus gives them."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from worker.config import endpoints, values
from worker.config.headers import headers_for_proxy
from worker.config.secret_files import is_empty
from worker.config.section import ReadableFile, Section, Text, Truth

TlsVersion = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
"""A version of TLS, as Prometheus names it."""

_TLS_VERSIONS: tuple[TlsVersion, ...] = ("TLS10", "TLS11", "TLS12", "TLS13")


def _tls_version(value: object) -> str:
    return values.word(value, _TLS_VERSIONS)


class TlsSettings(Section):
    """How a destination's certificate is checked, and which one the worker shows."""

    ca_file: ReadableFile | None = None
    """File with the certificates (PEM) that sign the destination's; without it, the machine's authorities count."""

    cert_file: ReadableFile | None = None
    """File with the certificate (PEM) that the worker shows; needs its key."""

    key_file: ReadableFile | None = None
    """File with the private key (PEM) of the worker's certificate."""

    ca: Annotated[str, BeforeValidator(endpoints.pem)] | None = Field(default=None, repr=False)
    """The same as `ca_file`, but the text (PEM) itself."""

    cert: Annotated[str, BeforeValidator(endpoints.pem)] | None = Field(default=None, repr=False)
    """The same as `cert_file`, but the text (PEM) itself."""

    key: Annotated[SecretStr, BeforeValidator(endpoints.secret_pem)] | None = None
    """The same as `key_file`, but the text (PEM) itself."""

    server_name: Text | None = None
    """Name that the destination's certificate must carry, where it is not the URL's host."""

    insecure_skip_verify: Truth = False
    """Take any certificate: whoever is on the way can then read and change everything, passwords included."""

    min_version: Annotated[TlsVersion, BeforeValidator(_tls_version)] | None = None
    """Lowest version of TLS that is spoken: `TLS10`, `TLS11`, `TLS12` or `TLS13`; TLS 1.2 where it is left out."""

    max_version: Annotated[TlsVersion, BeforeValidator(_tls_version)] | None = None
    """Highest version of TLS that is spoken; the newest where it is left out."""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """A certificate and its key come together; each of them in one way."""
        for key in ("ca", "cert", "key"):
            if _given(given, key) and _given(given, f"{key}_file"):
                yield f"{key}_file", f"cannot be given together with {key}; keep one of them"
        cert = next((key for key in ("cert_file", "cert") if _given(given, key)), None)
        private = next((key for key in ("key_file", "key") if _given(given, key)), None)
        if cert and not private:
            yield cert.replace("cert", "key"), f"is required with {cert}"
        if private and not cert:
            yield private.replace("key", "cert"), f"is required with {private}"
        lowest, highest = (given.get(key) for key in ("min_version", "max_version"))
        if lowest in _TLS_VERSIONS and highest in _TLS_VERSIONS and str(lowest) > str(highest):
            yield "min_version", f"is {lowest}, which is above max_version ({highest})"


class ProxySettings(Section):
    """The way through a proxy; none, unless one is set here: the environment's are not used by themselves."""

    proxy_url: Annotated[str, BeforeValidator(endpoints.proxy_url)] | None = Field(default=None, repr=False)
    """Proxy that requests go through: `http://` or `https://`, with user and password where it wants them."""

    no_proxy: Annotated[str, BeforeValidator(values.plain_text)] | None = None
    """Hosts that are reached without the proxy: names, IP addresses and CIDR blocks, separated by commas."""

    proxy_from_environment: Truth = False
    """Take the proxy from `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` in the worker's environment."""

    proxy_connect_header: Annotated[
        Mapping[str, tuple[SecretStr, ...]],
        BeforeValidator(headers_for_proxy),
        AfterValidator(MappingProxyType),
    ] = Field(default_factory=lambda: MappingProxyType({}))
    """HTTP headers for the proxy itself, by name, each with a list of values; sent with CONNECT."""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """As Prometheus has it."""
        from_environment = str(given.get("proxy_from_environment", "")).strip().lower() in {"true", "yes", "on"}
        for key in ("proxy_url", "no_proxy"):
            if from_environment and _given(given, key):
                yield "proxy_from_environment", f"cannot be combined with {key}; keep one of them"
        if _given(given, "no_proxy") and not _given(given, "proxy_url") and not from_environment:
            yield "no_proxy", "needs proxy_url: without a proxy there is nothing to leave out"
        if given.get("proxy_connect_header") and not _given(given, "proxy_url") and not from_environment:
            yield "proxy_connect_header", "needs proxy_url or proxy_from_environment: there is no proxy to send it to"


def _given(given: Mapping[str, object], key: str) -> bool:
    return not is_empty(given.get(key))
