"""How the other side's certificate is checked, and which certificate the worker shows."""

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from worker.authorities import trust_the_usual
from worker.config import TlsSettings
from worker.errors import ConfigError, Mistake

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}


class _NamedContext(ssl.SSLContext):
    """Asks for, and checks, a name that is not the URL's; also behind a proxy, where httpx offers no way to say so."""

    server_name: str | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature is Python's
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name or server_hostname, session)


def ssl_context(tls: TlsSettings, where: str, *, is_used: bool = True) -> ssl.SSLContext:
    """The settings as Python's `ssl` takes them; files are read now.

    With `ca_file` or `ca` only its certificates are trusted, as in Prometheus; without them, the usual authorities.

    where:   what stands in front of a key in a mistake. ConfigError where a file is not what it should be.
    is_used: False for a URL without TLS. No authorities are trusted then but those of the settings, as it takes a while
             to read the usual ones.
    """
    # Not `create_default_context`: it writes the session keys to a file that an environment variable can name.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.server_name is not None:
        context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
        context.server_name = tls.server_name
    if tls.min_version is not None:
        context.minimum_version = _VERSIONS[tls.min_version]
    if tls.max_version is not None:
        context.maximum_version = _VERSIONS[tls.max_version]
    if is_used or tls.ca is not None or tls.ca_file is not None:
        _trust(context, tls, where)
    _show_certificate(context, tls, where)
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _trust(context: ssl.SSLContext, tls: TlsSettings, where: str) -> None:
    if tls.ca is None and tls.ca_file is None:
        trust_the_usual(context)
        return
    # Who is named there is trusted, also if it is no root: as in Go, whose programs the settings are taken from.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=tls.ca_file, cadata=tls.ca)
    except (OSError, ValueError) as error:
        key, shown = ("ca", None) if tls.ca is not None else ("ca_file", str(tls.ca_file))
        raise _unusable(where, key, shown, error) from None


def _show_certificate(context: ssl.SSLContext, tls: TlsSettings, where: str) -> None:
    inline_key = tls.key.get_secret_value() if tls.key is not None else None
    if tls.cert_file is None and tls.cert is None:
        return
    try:
        with ExitStack() as files:
            certificate = tls.cert_file or files.enter_context(_as_file(tls.cert or ""))
            key = tls.key_file or files.enter_context(_as_file(inline_key or ""))
            # No password: without one, OpenSSL would ask on the terminal for that of an encrypted key.
            context.load_cert_chain(certificate, key, password=b"")
    except OSError as error:
        key_name, shown = ("cert_file", str(tls.cert_file)) if tls.cert_file is not None else ("cert", None)
        raise _unusable(where, key_name, shown, error) from None


@contextmanager
def _as_file(pem: str) -> Iterator[str]:
    """A path under which OpenSSL, which takes nothing else, finds the text: of a file that no directory lists."""
    with tempfile.TemporaryFile() as file:
        file.write(pem.encode())
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _unusable(where: str, key: str, shown: str | None, error: Exception) -> ConfigError:
    match error:
        case ssl.SSLError(reason=str(reason)) | OSError(strerror=str(reason)):
            pass
        case _:
            reason = "no certificate was found"
    problem = f"cannot be used for TLS ({reason}); it must hold what its key says, in PEM"
    return ConfigError([Mistake(f"{where}.{key}", shown, problem)])
