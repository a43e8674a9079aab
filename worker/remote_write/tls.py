"""How a destination's certificate is checked, and which certificate the worker shows."""

import ssl
from pathlib import Path

import certifi

from worker.config import DestinationSettings
from worker.errors import ConfigError, Mistake


def ssl_context(settings: DestinationSettings) -> ssl.SSLContext:
    """The TLS settings of a destination as Python's `ssl` takes them.

    With `ca_file` only its certificates are trusted, as in Prometheus; without it, the authorities of the `certifi`
    package, which a container without any of its own has too. ConfigError where a file is not what it should be.
    """
    tls = settings.tls
    # Not `create_default_context`: it writes the session keys to a file that an environment variable can name.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities = tls.ca_file or Path(certifi.where())
    try:
        context.load_verify_locations(cafile=authorities)
    except OSError as error:
        raise _unusable(settings.name, "ca_file", authorities, error) from None
    if tls.cert_file is not None:
        try:
            # No password: without one, OpenSSL would ask on the terminal for that of an encrypted key.
            context.load_cert_chain(tls.cert_file, tls.key_file, password=b"")
        except OSError as error:
            raise _unusable(settings.name, "cert_file", tls.cert_file, error) from None
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unusable(destination: str, key: str, path: Path, error: OSError) -> ConfigError:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    problem = f"cannot be used for TLS ({reason}); it must hold what its key says, in PEM"
    return ConfigError([Mistake(f"remote_write {destination}: tls_config.{key}", str(path), problem)])
