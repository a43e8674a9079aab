"""Tokens of OAuth 2.0, by client credentials (RFC 6749, 4.4)."""

import base64
import math
import re
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec
from pydantic import SecretStr

from worker.clock import Clock
from worker.config import DestinationSettings, OAuth2Settings
from worker.config.endpoints import shown_url
from worker.remote_write.auth_token import BearerTokens, Token
from worker.remote_write.exchange import Answer, Connections, usable_url
from worker.remote_write.files import plain
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import Fate, Later, printable, retry_after_seconds

# Signing a token takes a server milliseconds; a third of the usual time limit of the request that waits for it.
_SECONDS = 10.0

# Tokens of a few kB, with all that some servers put beside them.
_BODY_BYTES = 65_536

# Longest wait that the server may ask for, as the default of `max_retry_after`.
_MAX_RETRY_AFTER_SECONDS = 300.0


def oauth2_tokens(
    settings: DestinationSettings, oauth2: OAuth2Settings, clock: Clock, mask: SecretMask
) -> BearerTokens:
    """Tokens of the server at `oauth2.token_url`; ConfigError where its URL or TLS files cannot be used."""
    setting = f"remote_write {settings.name}: oauth2"
    connections = Connections(
        url=usable_url(oauth2.token_url, f"{setting}.token_url", shown_url(oauth2.token_url)),
        tls=oauth2.tls,
        proxy=oauth2.proxy,
        mask=mask,
        peer="the token's server",
        where=f"{setting}.tls_config",
        most=1,
        body_bytes=_BODY_BYTES,
    )
    server = _TokenServer(oauth2, connections, clock, mask, min(_SECONDS, settings.timeout_seconds))
    return BearerTokens(server.fetch, clock, mask, connections.aclose)


class _TokenServer:
    def __init__(
        self, oauth2: OAuth2Settings, connections: Connections, clock: Clock, mask: SecretMask, seconds: float
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._mask = mask
        self._seconds = seconds
        self._client = (oauth2.client_id, plain(oauth2.client_secret))
        self._form = {"grant_type": "client_credentials"}
        if oauth2.scopes:
            self._form["scope"] = " ".join(oauth2.scopes)
        self._form.update(oauth2.endpoint_params)
        self._in_body = False

    async def fetch(self) -> Token | Later:
        answer = await self._ask()
        if isinstance(answer, Answer) and answer.status in {400, 401} and not self._in_body:
            # RFC 6749, 2.3.1: every server must take the secret in a header; some take it in the body alone.
            self._in_body = True
            answer = await self._ask()
            self._in_body = isinstance(answer, Answer) and 200 <= answer.status < 300
        if isinstance(answer, Later):
            return self._none(answer.reason, answer.fate)
        return self._token(answer)

    async def _ask(self) -> Answer | Later:
        form, headers = dict(self._form), {"Content-Type": "application/x-www-form-urlencoded"}
        if self._in_body:
            form["client_id"], form["client_secret"] = self._client
        else:
            user = ":".join(map(quote_plus, self._client))
            headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        headers["Accept"] = "application/json"
        return await self._connections.exchange(
            self._connections.request(urlencode(form).encode(), headers), self._seconds
        )

    def _token(self, answer: Answer) -> Token | Later:
        given = _json_object(answer.body)
        if 200 <= answer.status < 300:
            match given:
                case {"access_token": str(token)} if re.fullmatch(r"[\x21-\x7e]+", token):
                    if str(given.get("token_type") or "Bearer").lower() == "bearer":
                        return Token(SecretStr(token), _seconds(given.get("expires_in")))
                    return self._none("it gives tokens of another type than Bearer", Fate.PARK)
                case _:
                    return self._none("its answer holds no token", Fate.PARK)
        if 300 <= answer.status < 400:
            return self._none(f"HTTP {answer.status}: it redirects, and redirects are not followed", Fate.PARK)
        match given:
            case {"error": str(error)}:  # RFC 6749, 5.2
                said = f"{error} {given.get('error_description', '')}"
            case _:
                said = answer.body.decode(errors="replace")
        text = printable(self._mask(said.encode()).decode(errors="replace"))
        reason = f"HTTP {answer.status}: {text or 'no reason was given'}"
        if answer.status == 429:
            wait = retry_after_seconds(answer.headers.get("retry-after"), self._clock.now(), _MAX_RETRY_AFTER_SECONDS)
            return self._none(reason, Fate.RATE_LIMITED, wait)
        is_busy = answer.status == 408 or answer.status >= 500
        return self._none(reason, Fate.RETRY if is_busy else Fate.PARK)

    def _none(self, reason: str, fate: Fate, retry_after_seconds: float | None = None) -> Later:
        url = self._connections.url
        text = printable(f"no token from {url.scheme}://{url.netloc.decode()} (oauth2): {reason}")
        return Later(text, fate, retry_after_seconds=retry_after_seconds)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _seconds(given: object) -> float:
    """How long a token is good for; infinite where the server does not say, or says it in words."""
    try:
        seconds = float(given) if isinstance(given, int | float | str) else math.inf
    except ValueError:
        return math.inf
    return max(0.0, seconds) if seconds == seconds else math.inf  # noqa: PLR0124 - NaN is not equal to itself
