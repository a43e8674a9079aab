"""What is secret at a destination, and how it is kept out of what the destination says."""

import base64
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote_plus, unquote, unquote_plus, urlsplit

import httpx

from worker.config import DestinationSettings, ProxySettings
from worker.remote_write.files import plain, with_files_read
from worker.remote_write.proxy import proxy_for

# Headers by which a receiver tells its tenants apart: names, not secrets, and often a single digit.
_TENANT_HEADERS = frozenset({"x-scope-orgid", "thanos-tenant"})

# Of the secrets that were fetched: a token and what came with it, and those before it, which requests under way show. A
# signature is each request's own: as many as there are shards by default, 50.
_REMEMBERED = 64


class SecretMask:
    """Blots out a destination's secrets in what its receiver says: some repeat the request that they complain about."""

    def __init__(self, settings: DestinationSettings) -> None:
        self._configured = frozenset(secrets_of(settings))
        self._fetched: OrderedDict[str, None] = OrderedDict()
        self._spelled: list[re.Pattern[bytes]] | None = None

    def remember(self, secret: str) -> None:
        """Blot this one out as well: a token that was fetched. The oldest are forgotten."""
        if secret not in self._fetched:
            self._spelled = None
        self._fetched[secret] = None
        self._fetched.move_to_end(secret)
        while len(self._fetched) > _REMEMBERED:
            self._fetched.popitem(last=False)

    def __call__(self, text: bytes) -> bytes:
        """The text with every secret replaced by as many stars, so that what follows stays in its place."""
        if not text:
            return text
        if self._spelled is None:
            # The longest first: one may be a part of another.
            secrets = sorted({*self._configured, *self._fetched} - {""}, key=len, reverse=True)
            self._spelled = list(map(_pattern, secrets))
        for spelled in self._spelled:
            text = spelled.sub(lambda found: b"*" * len(found[0]), text)
        return text


@lru_cache(maxsize=4 * _REMEMBERED)
def _pattern(secret: str) -> re.Pattern[bytes]:
    """Where a secret is, in any spelling."""
    return re.compile(b"".join(map(_spelled, secret)))


def _spelled(character: str) -> bytes:
    """A pattern of the character in all its spellings, each of them once: a text has one way to match, or none.

    Where there were two, a secret whose last character is cut off would be tried in two to the power of its length.
    """
    return b"(?:%b)" % b"|".join(dict.fromkeys(_spellings(character)))


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
    """Every secret of a destination, alone and in the forms in which it goes out; some come twice, some are empty.

    Those in files are read now; ConfigError where that fails. What is fetched later is not among them.
    """
    settings = with_files_read(settings)
    if (basic := settings.basic_auth) is not None:
        yield from _of_basic(plain(basic.username), plain(basic.password))
    if settings.authorization is not None:
        yield plain(settings.authorization.credentials)
    if (oauth2 := settings.oauth2) is not None:
        secret = plain(oauth2.client_secret)
        yield from _of_basic(oauth2.client_id, secret)
        yield from _of_basic(quote_plus(oauth2.client_id), quote_plus(secret))
        yield from oauth2.endpoint_params.values()
        yield from _of_query(oauth2.token_url)
        yield from _of_proxy(oauth2.token_url, oauth2.proxy)
    if settings.sigv4 is not None and settings.sigv4.secret_key is not None:
        yield settings.sigv4.secret_key.get_secret_value()
    if settings.azuread is not None and settings.azuread.oauth is not None:
        yield plain(settings.azuread.oauth.client_secret)
    if settings.azuread is not None and (certificate := settings.azuread.certificate) is not None:
        yield plain(certificate.certificate_password or "")
    for name, header in settings.headers.items():
        if name.lower() not in _TENANT_HEADERS:
            # The scheme in front of a credential (`Basic`, `Token`) may be left out when it is repeated.
            yield from {plain(header), plain(header).rpartition(" ")[2]}
    yield from _of_query(settings.url)
    yield from _of_query(settings.query_url or "")
    yield from _of_proxy(settings.url, settings.proxy)


def _of_basic(user: str, password: str) -> Iterator[str]:
    pair = f"{user}:{password}"
    yield base64.b64encode(pair.encode()).decode()
    if password:  # without one, the pair is a name and a colon, which many texts hold
        yield from (password, pair)


def _of_query(url: str) -> Iterator[str]:
    for parameter in urlsplit(url).query.split("&"):
        value = parameter.partition("=")[2]
        yield from {value, unquote_plus(value)}


def _of_proxy(url: str, settings: ProxySettings) -> Iterator[str]:
    for values in settings.proxy_connect_header.values():
        for value in values:
            yield from {value.get_secret_value(), value.get_secret_value().rpartition(" ")[2]}
    try:
        proxy = proxy_for(httpx.URL(url), settings)
    except (httpx.InvalidURL, UnicodeError):
        return  # a URL that cannot be used has no way to it; whoever uses it says so
    if proxy is not None and proxy.userinfo:
        yield from _of_basic(proxy.username, proxy.password)
        yield unquote(proxy.userinfo.decode().partition(":")[2])
