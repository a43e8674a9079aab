"""Who the worker is to a receiver.

The only place that takes a destination's secrets out of their wrapping. Nothing here has a repr that shows one.
"""

import base64
import json
from collections.abc import Generator, Iterator
from urllib.parse import quote, quote_plus, unquote_plus, urlsplit

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
        spellings = {spelling for secret in secrets_of(settings) if secret for spelling in _spellings(secret)}
        self._secrets = sorted((spelling.encode() for spelling in spellings), key=len, reverse=True)

    def __call__(self, text: bytes) -> bytes:
        """The text with every secret replaced by as many stars, so that what follows stays in its place."""
        for secret in self._secrets:
            text = text.replace(secret, b"*" * len(secret))
        return text


def _spellings(secret: str) -> tuple[str, ...]:
    """A secret as it is, and as JSON and URLs may write it."""
    return (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote_plus(secret))


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
