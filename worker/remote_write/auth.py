"""Who the worker is to a receiver.

The only place that takes a destination's secrets out of their wrapping. Nothing here has a repr that shows one.
"""

import base64
import json
import re
from collections.abc import Generator, Iterator
from urllib.parse import unquote_plus, urlsplit

import httpx
from pydantic import SecretStr

from worker.config import DestinationSettings

# Headers by which a receiver tells its tenants apart: names, not secrets, and often a single digit.
_TENANT_HEADERS = frozenset({"x-scope-orgid", "thanos-tenant"})


class BearerAuth(httpx.Auth):
    """Sends `Authorization: Bearer <token>` (RFC 6750, 2.1)."""

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        yield request


def authentication(settings: DestinationSettings) -> httpx.Auth | None:
    """How the requests to a destination are authenticated, beside its own headers."""
    if settings.basic_auth is not None:
        return httpx.BasicAuth(settings.basic_auth.username, settings.basic_auth.password.get_secret_value())
    if settings.bearer_token is not None:
        return BearerAuth(settings.bearer_token)
    return None


class SecretMask:
    """Blots out a destination's secrets in what its receiver says: some repeat the request that they complain about."""

    def __init__(self, settings: DestinationSettings) -> None:
        # The longest first: one may be a part of another.
        secrets = sorted({secret for secret in secrets_of(settings) if secret}, key=len, reverse=True)
        self._spelled = [
            re.compile(b"".join(b"(?:%b)" % b"|".join(_spellings(character)) for character in secret))
            for secret in secrets
        ]

    def __call__(self, text: bytes) -> bytes:
        """The text with every secret replaced by as many stars, so that what follows stays in its place."""
        for spelled in self._spelled:
            text = spelled.sub(lambda found: b"*" * len(found[0]), text)
        return text


def _spellings(character: str) -> Iterator[bytes]:
    """Patterns of a character as JSON (RFC 8259, 7) and URLs (RFC 3986, 2.1) may write it, and as it is."""
    utf_16 = character.encode("utf-16-be").hex()
    yield b"(?i:%b)" % "".join(rf"\\u{utf_16[at : at + 4]}" for at in range(0, len(utf_16), 4)).encode()
    yield b"(?i:%b)" % "".join(f"%{byte:02x}" for byte in character.encode()).encode()
    yield re.escape(json.dumps(character)[1:-1].encode())
    if character in "/ ":
        yield {"/": rb"\\/", " ": rb"\+"}[character]
    yield re.escape(character.encode())


def secrets_of(settings: DestinationSettings) -> Iterator[str]:
    """Every secret of a destination, alone and in the forms in which it goes out; some come twice, some are empty."""
    if settings.basic_auth is not None:
        password = settings.basic_auth.password.get_secret_value()
        yield password
        user = f"{settings.basic_auth.username}:{password}"
        yield from (user, base64.b64encode(user.encode()).decode())
    if settings.bearer_token is not None:
        yield settings.bearer_token.get_secret_value()
    for name, header in settings.headers.items():
        if name.lower() not in _TENANT_HEADERS:
            # The scheme in front of a credential (`Basic`, `Token`) may be left out when it is repeated.
            yield from {header.get_secret_value(), header.get_secret_value().rpartition(" ")[2]}
    for parameter in urlsplit(settings.url).query.split("&"):
        value = parameter.partition("=")[2]
        yield from {value, unquote_plus(value)}
