"""Whose certificates are trusted where no setting says so: the machine's authorities, as in programs written in Go.

Owns where they are looked for. Those of the `certifi` package are trusted on a machine that has none, such as a small
container, and nowhere else: an authority that an administrator has removed must not come back by another way.
"""

import os
import re
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import certifi

from worker.errors import ConfigError, Mistake

_FILE_VARIABLE, _FOLDERS_VARIABLE = "SSL_CERT_FILE", "SSL_CERT_DIR"

# Nothing but base64 is between the lines, so that one of which the end is missing does not take the next one along.
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

# Looked at of a file. All 144 authorities of a Debian in one are 0.22 MB; folders hold other things, too.
_MOST_CHARACTERS = 8_000_000


def trust_the_usual(context: ssl.SSLContext, environ: Mapping[str, str] = os.environ) -> None:
    """Trust the machine's authorities: those in OpenSSL's file and folder, or where SSL_CERT_FILE and SSL_CERT_DIR say.

    It takes 40 ms for the 144 of a Debian, so it is for those who speak TLS. The files are read once, as in Prometheus.

    ConfigError where SSL_CERT_FILE cannot be read, or where the variables lead to no certificate at all.
    """
    places = ssl.get_default_verify_paths()
    file, folders = environ.get(_FILE_VARIABLE), environ.get(_FOLDERS_VARIABLE)
    if file and (problem := _unreadable(file)):
        raise ConfigError([Mistake(_FILE_VARIABLE, file, f"cannot be read: {problem}")])
    # An authority may stand below another that is not trusted. Go asks for no more, OpenSSL does unless it is told.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for certificate in _certificates(file or places.openssl_cafile, folders or places.openssl_capath):
        with suppress(ssl.SSLError):  # one that cannot be read vouches for nobody, and does not spoil the others
            context.load_verify_locations(cadata=certificate)
    if context.cert_store_stats()["x509"]:
        return
    if file or folders:
        name, given = (_FILE_VARIABLE, file) if file else (_FOLDERS_VARIABLE, folders)
        problem = "no certificate is found there; it must hold the authorities that are trusted, in PEM"
        raise ConfigError([Mistake(name, given, problem)])
    context.load_verify_locations(certifi.where())


def _unreadable(file: str) -> str | None:
    try:
        if not stat.S_ISREG(Path(file).stat().st_mode):
            return "it is not a file"  # a pipe might be waited for without end
        with Path(file).open("rb"):
            return None
    except OSError as error:
        return error.strerror


@cache
def _certificates(file: str, folders: str) -> tuple[str, ...]:
    """The certificates (PEM) of the file and of all files in the folders, each once."""
    found: dict[str, None] = {}
    for path in (Path(file), *_paths(folders)):
        # What cannot be read is not there: folders hold private keys, too, and no machine has all the places.
        with suppress(OSError):
            if path.is_file():
                with path.open(encoding="ascii", errors="replace") as text:
                    found.update(dict.fromkeys(_CERTIFICATE.findall(text.read(_MOST_CHARACTERS))))
    return tuple(found)


def _paths(folders: str) -> Iterator[Path]:
    """What lies in them, by any name: OpenSSL itself sees only what `rehash` has named, Go what is mounted, too."""
    for folder in filter(None, folders.split(os.pathsep)):
        with suppress(OSError):
            for path in Path(folder).iterdir():
                # `rehash` gives every file a second name beside its own; read twice, a store takes twice as long.
                if not path.is_symlink() or len(path.readlink().parts) > 1:
                    yield path
