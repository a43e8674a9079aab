"""One destination, over HTTP.

Owns the exchange: which headers go out, how long it may take, how much of the answer is read. Promises a verdict for
every attempt, whatever the other side does, in bounded time and memory, with no secret in it; and that nothing is sent
to any other place than the destination's URL: no redirect is followed and no proxy of the environment used.

Does not try again and does not wait: that is its caller's.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from worker import __version__
from worker.clock import Clock
from worker.config import DestinationSettings
from worker.errors import ConfigError, Mistake
from worker.remote_write.auth import SecretMask, authentication
from worker.remote_write.tls import ssl_context
from worker.remote_write.verdict import MAX_TEXT_CHARACTERS, Later, Verdict, judge, printable

# Remote write 1.0 specification, "Protocol"; custom headers cannot override them.
_PROTOCOL_HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "User-Agent": f"cloudflare-remote-write/{__version__}",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    # The answer is shown to people as it comes; nothing in it is worth unpacking, or the risk.
    "Accept-Encoding": "identity",
}

# A connection that takes longer than this does not come: three lost SYNs are repeated after 1, 2 and 4 s.
_CONNECT_SECONDS = 10.0

# Read of an answer's body: four times what is kept of it, so that a secret that the end of reading cuts in two lies
# behind what is kept.
_BODY_BYTES = 4 * MAX_TEXT_CHARACTERS

# A destination is delivered in four lanes (worker.push), each with one request under way; as many connections again
# replace those that a timeout has just spoiled.
_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)


class RemoteWriteClient:
    """Sends requests to one destination. ConfigError where its URL or its TLS files cannot be used."""

    def __init__(self, settings: DestinationSettings, clock: Clock) -> None:
        headers = httpx.Headers({name: value.get_secret_value() for name, value in settings.headers.items()})
        headers.update(_PROTOCOL_HEADERS)
        self._settings = settings
        self._url = _url(settings)
        self._clock = clock
        self._mask = SecretMask(settings)
        self._tls_name = {"sni_hostname": settings.tls.server_name} if settings.tls.server_name else {}
        self._http = httpx.AsyncClient(
            auth=authentication(settings),
            # Nothing that a receiver says changes the next request.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            headers=headers,
            limits=_LIMITS,
            timeout=httpx.Timeout(None, connect=min(_CONNECT_SECONDS, settings.timeout_seconds)),
            trust_env=False,
            verify=ssl_context(settings),
        )

    async def send(self, body: bytes, attempt: int) -> Verdict:
        """Send one compressed request and tell what its receiver makes of it.

        attempt: 0 for the first time, then how often it was sent before; told in `Retry-Attempt`, by which Mimir
                 chooses the `Retry-After` it asks for.

        The time limit is the machine's own, whatever the clock: the network knows no other.
        """
        response: httpx.Response | None = None
        text = bytearray()
        try:
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                self._http.stream(
                    "POST",
                    self._url,
                    content=body,
                    headers={"Retry-Attempt": str(attempt)} if attempt else {},
                    extensions=self._tls_name,
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    text += chunk[: _BODY_BYTES - len(text)]
                    if len(text) == _BODY_BYTES:
                        break
        except (TimeoutError, httpx.TransportError) as error:
            # Once status and headers are here the receiver has decided, whatever becomes of the text behind them.
            if response is None:
                return Later(self._reason(error))
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            text = bytearray(f"(the answer is encoded as {encoding}, which was not asked for)".encode())
        return judge(response.status_code, response.headers, self._shown(bytes(text)), self._clock.now())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _reason(self, error: Exception) -> str:
        """Why no answer came, in words without a URL, a header or anything else that was sent."""
        match error:
            case httpx.ConnectTimeout():
                return "no connection came about: check that the receiver runs and that nothing drops its packets"
            case TimeoutError() | httpx.TimeoutException():
                return f"no answer came within {self._settings.timeout_seconds:g} s (remote_timeout)"
            case httpx.RemoteProtocolError():
                return printable(
                    f"the answer cannot be read: {self._shown(str(error).encode()).decode(errors='replace')}"
                )
            case httpx.TransportError() if explanation := _network_reason(error):
                return explanation
            case _:
                return f"the connection failed ({type(error).__name__})"

    def _shown(self, text: bytes) -> bytes:
        return self._mask(text)[:MAX_TEXT_CHARACTERS]


def _url(settings: DestinationSettings) -> httpx.URL:
    """The URL as the HTTP library takes it, which knows more of host names than the configuration does."""
    try:
        url = httpx.URL(settings.url)
        if url.host:
            return url
    except (httpx.InvalidURL, UnicodeError):
        pass  # told below, without the library's words: they repeat the URL
    problem = "must be a URL with a host name that can exist"
    raise ConfigError([Mistake(f"remote_write {settings.name}: url", settings.shown_url, problem)])


def _network_reason(error: BaseException) -> str | None:
    """What the operating system or OpenSSL says is the matter, where one of them is behind the error."""
    for cause in _causes(error):
        match cause:
            case socket.gaierror():
                return f"the receiver's host name cannot be resolved: {cause.strerror}"
            case ssl.SSLCertVerificationError():
                return f"the receiver's certificate cannot be trusted: {cause.verify_message}"
            case ssl.SSLError():
                return f"TLS failed: {cause.reason}"
            case OSError(errno=int(number)):
                return f"the connection failed: {os.strerror(number)}"
            case _:
                pass
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, nearest first; of several addresses that failed, what was wrong with the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
