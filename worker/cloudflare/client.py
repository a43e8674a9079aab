"""The HTTP client: one exchange with Cloudflare, and what came of it as a value.

Owns the connection, the token, the deadline around a whole exchange and the bound on what is read of a body; draws
every request from the quota, and pauses the quota when Cloudflare says that it is used up, or that of a zone or an
account. Whatever goes wrong on the way comes back as `Refused`. Knows nothing of queries or windows.
"""

import asyncio
import logging
import re
import ssl
import zlib
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import httpx

from worker import __version__
from worker.authorities import trust_the_usual
from worker.clock import Clock, ahead_of
from worker.cloudflare.errors import ApiFailure, ErrorKind, classify, one_line
from worker.cloudflare.quota import Api, Lease, Paused, Priority, Quota, RateLimitType
from worker.errors import UsageError

# A query over ten zones is answered within a few seconds; whatever takes longer is not coming.
DEADLINE_SECONDS = 30.0
# Four times the largest answer that a query can cause (14 MB, see worker.cloudflare.query).
MAX_BODY_BYTES = 64 * 1024 * 1024
# Cloudflare blocks for five minutes once a quota is used up.
PAUSE_SECONDS = 300.0
# The loops ask one thing at a time; a few connections more serve a command that runs beside them.
_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say "gzip header and trailer"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")

OnRequest = Callable[[Api, Priority, str, float], None]
"""Told of every exchange: which API, what it was for, "ok" or the kind of error, and how many seconds it took."""


def _trusted(api_url: str) -> ssl.SSLContext:
    """The usual authorities; nobody for an address without TLS, as it takes a while to read them.

    Made by hand, because `ssl.create_default_context` obeys SSLKEYLOGFILE.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not api_url.startswith("http://"):
        trust_the_usual(context)
    return context


def unobserved(_api: Api, _priority: Priority, _outcome: str, _seconds: float) -> None:
    """For whoever does not count requests."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer without errors; the body is JSON."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """No answer that could be used; at least one reason."""

    failures: tuple[ApiFailure, ...]


class TokenAuth(httpx.Auth):
    """Puts the API token into the one header where it belongs, and shows it nowhere else.

    UsageError for a token with a character that RFC 6750 (2.1) does not allow in one: it could not be sent, and an
    escaped form of it might end up in somebody's error text.
    """

    def __init__(self, token: str) -> None:
        if not _TOKEN.fullmatch(token):
            message = "CF_API_TOKEN is empty or has a character that no API token has, such as a space or a line break"
            raise UsageError(message)
        self._token = token
        # RFC 8259, 7: JSON may write any character as its number, and a slash behind a backslash.
        spelled = (rf"(?:\\?{re.escape(sign)}|(?i:\\u{ord(sign):04x}))" for sign in token)
        self._in_json = re.compile("".join(spelled).encode())

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request

    def redacted(self, body: bytes) -> bytes:
        """A body without the token, should the other side have echoed it."""
        token = self._token.encode()
        return body.replace(token, b"***") if token in body else body

    def redacted_json(self, body: bytes) -> bytes:
        """The same however JSON spells the token, at 15 ms a megabyte: for the bodies of errors."""
        return self._in_json.sub(b"***", body)

    def __repr__(self) -> str:
        return "TokenAuth(***)"


class CloudflareClient:
    """Sends requests to one API address with one token.

    api_url:          for example https://api.cloudflare.com/client/v4.
    token:            an API token of a user or of an account.
    quota:            what every request is drawn from; where it counts accounts, Cloudflare is asked to do the same.
    deadline_seconds: for a whole exchange, from waiting for a connection to the last byte; on the machine's own clock.
    transport:        stands in for the network, in tests.
    """

    def __init__(
        self,
        *,
        api_url: str,
        token: str,
        clock: Clock,
        quota: Quota,
        on_request: OnRequest = unobserved,
        deadline_seconds: float = DEADLINE_SECONDS,
        max_body_bytes: int = MAX_BODY_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        # At INFO, httpx logs the address of every request; httpcore logs headers at DEBUG.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.ahead_seconds: float | None = None
        """How far this machine's clock is ahead of Cloudflare's, to about a second; None before the first answer."""
        self._base = api_url.rstrip("/")
        self._clock = clock
        self.quota = quota
        self._on_request = on_request
        self._deadline_seconds = deadline_seconds
        self._connect_seconds = deadline_seconds / 3  # for TCP, and again for TLS
        self._max_body_bytes = max_body_bytes
        self._auth = TokenAuth(token)
        self._http = httpx.AsyncClient(
            auth=self._auth,
            # Only gzip: what is asked for is what `_read` can open with a bound.
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"cloudflare-remote-write/{__version__}",
            },
            # A redirect would carry the token to an address that nobody configured; so would a proxy from the
            # environment or a .netrc.
            follow_redirects=False,
            trust_env=False,
            verify=_trusted(api_url),
            # The deadline bounds the whole exchange, which httpx' own limits do not. But it leaves a connection open
            # that it meets in the handshake, as httpcore closes only what fails, so that has to fail before.
            timeout=httpx.Timeout(None, connect=self._connect_seconds),
            limits=_LIMITS,
            transport=transport,
        )

    async def graphql(
        self, payload: bytes, *, priority: Priority = Priority.LIVE, scopes: Sequence[str] = (), account: str = ""
    ) -> Answer | Refused:
        """Send one GraphQL query: a JSON object with `query` and `variables`.

        scopes:  tags of the zones and accounts that it asks for; it is not sent while the quota of one is used up.
        account: tag of the account that it is counted against, where accounts are counted one by one.
        """
        headers = {"Content-Type": "application/json"}
        match self.quota.rate_limit_type:
            case RateLimitType.ACCOUNT:
                headers["X-Rate-Limit-Type"] = "account-based"
            case RateLimitType.TOKEN:
                pass
            case never:
                assert_never(never)
        turn = self.quota.acquire(Api.GRAPHQL, priority, scopes, account=account)
        return await self._exchange(Api.GRAPHQL, priority, turn, "POST", "/graphql", content=payload, headers=headers)

    async def get(
        self, path: str, params: Mapping[str, str | int], *, priority: Priority = Priority.LIVE
    ) -> Answer | Refused:
        """Read one page of the REST API."""
        turn = self.quota.acquire(Api.REST, priority)
        return await self._exchange(Api.REST, priority, turn, "GET", path, params=params)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _exchange(
        self, api: Api, priority: Priority, turn: Awaitable[Lease | Paused], method: str, path: str, **request: Any
    ) -> Answer | Refused:
        match await turn:
            case Paused(seconds, scopes):
                return Refused((_not_asked(api, seconds, scopes),))
            case Lease() as lease:
                started = self._clock.monotonic()
                with lease:
                    outcome = await self._send(method, path, request)
            case unreachable:
                assert_never(unreachable)
        seconds = self._clock.monotonic() - started
        match outcome:
            case Answer():
                self._on_request(api, priority, "ok", seconds)
            case Refused(failures):
                self._on_request(api, priority, failures[0].kind, seconds)
                self._heed(api, failures)
            case never:
                assert_never(never)
        return outcome

    async def _send(self, method: str, path: str, request: dict[str, Any]) -> Answer | Refused:
        try:
            async with (
                asyncio.timeout(self._deadline_seconds),
                self._http.stream(method, self._base + path, **request) as response,
            ):
                # An answer without a date that can be read changes nothing.
                ahead_seconds = ahead_of(response.headers.get("date"), self._clock.now())
                self.ahead_seconds = self.ahead_seconds if ahead_seconds is None else ahead_seconds
                body = await self._read(response)
        except (TimeoutError, httpx.ConnectTimeout) as error:
            what, seconds = "complete answer", self._deadline_seconds
            if isinstance(error, httpx.ConnectTimeout):
                what, seconds = "connection", self._connect_seconds
            return _failed(ErrorKind.NETWORK, f"no {what} within {seconds:g} s")
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            text = self._auth.redacted(str(error).encode()).decode() or "the connection broke off"
            return _failed(ErrorKind.NETWORK, f"{type(error).__name__}: {text}")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # The text of these may repeat parts of the request.
            return _failed(ErrorKind.NETWORK, f"the request could not be sent: {type(error).__name__}")
        if isinstance(body, ApiFailure):
            return Refused((body,))
        body = self._auth.redacted(body)
        failures = classify(response.status_code, response.headers, body)
        if not failures:
            return Answer(body)
        # Before messages are made of it: they are cut, and a part of the token would be left at their end.
        return Refused(classify(response.status_code, response.headers, self._auth.redacted_json(body)))

    async def _read(self, response: httpx.Response) -> bytes | ApiFailure:
        """The body, unpacked, as long as it stays within the bound; httpx's own decoder has none."""
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            return ApiFailure(ErrorKind.MALFORMED, one_line(f"the body has the content encoding {encoding!r}"))
        inflater = zlib.decompressobj(wbits=_GZIP) if encoding == "gzip" else None
        body = bytearray()
        async for chunk in response.aiter_raw():
            if inflater is None:
                body += chunk
            else:
                try:
                    # At least one byte: zlib takes a bound of 0 for none.
                    body += inflater.decompress(chunk, self._max_body_bytes + 1 - len(body))
                except zlib.error as error:
                    return ApiFailure(ErrorKind.MALFORMED, f"the body is not valid gzip: {error}")
            if len(body) > self._max_body_bytes:
                return ApiFailure(ErrorKind.TOO_LARGE, f"the body is larger than {self._max_body_bytes} bytes")
        if inflater is not None and not inflater.eof:
            return ApiFailure(ErrorKind.MALFORMED, "the gzip body ends in its middle")
        return bytes(body)

    def _heed(self, api: Api, failures: tuple[ApiFailure, ...]) -> None:
        """Stop asking when the quota is used up: of the token, or of the zones and accounts that are named."""
        for failure in failures:
            if failure.kind is ErrorKind.RATE:
                for scope in (*failure.zone_tags, *failure.account_tags) or (None,):
                    self.quota.pause(api, failure.retry_after_seconds or PAUSE_SECONDS, scope)


def _not_asked(api: Api, seconds: float, scopes: tuple[str, ...]) -> ApiFailure:
    whose = f" about {', '.join(scopes)}" if scopes else ""
    text = f"not asked: Cloudflare's quota for {api} requests{whose} is used up, next request in {seconds:.0f} s"
    return ApiFailure(ErrorKind.RATE, one_line(text), zone_tags=scopes, retry_after_seconds=seconds)


def _failed(kind: ErrorKind, text: str) -> Refused:
    return Refused((ApiFailure(kind, one_line(text)),))
