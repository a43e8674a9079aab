"""One request and its answer over HTTP, with a receiver or with a server that gives out tokens.

Owns which URLs can be used, and the connections to one. Promises an answer or a reason for every exchange, whatever the
other side does, in bounded time and memory, with no secret in a reason; that nothing is sent to any other place than
the URL, through no other proxy than the one that is set: no redirect is followed, nothing is taken from the environment
unasked.

Does not try again, and does not know what an answer means.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import httpcore
import httpx

from worker import __version__
from worker.config import ProxySettings, TlsSettings
from worker.config.endpoints import ascii_host
from worker.errors import ConfigError, Mistake
from worker.remote_write.early import CutOffError, EarlyAnswers, was_cut_off
from worker.remote_write.mask import SecretMask
from worker.remote_write.proxy import proxy_for
from worker.remote_write.tls import ssl_context
from worker.remote_write.verdict import Fate, Later, printable

USER_AGENT = f"cloudflare-remote-write/{__version__}"

# A connection that takes longer than ten seconds does not come: three lost SYNs are repeated after 1, 2 and 4 s. All
# else of an exchange has one limit together.
_TIMEOUTS = httpx.Timeout(None, connect=10.0).as_dict()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    headers: looked up by their lower-case names.
    body:    how the body begins, as it came: whatever broke off behind the status does not undo it.
    whole:   whether that is all of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True


@dataclass(slots=True)
class _Pool:
    transport: httpx.AsyncHTTPTransport
    exchanges: int = 0

    def __post_init__(self) -> None:
        self.transport._pool._network_backend = EarlyAnswers()  # noqa: SLF001 - httpx lets nobody choose one

    async def close_what_says_more(self) -> None:
        """Close the connections on which bytes came behind an answer that was read to its end.

        httpcore keeps them, and would take them for the answer to the next request: a second 204 would acknowledge
        what nobody has seen. It shows them nowhere, which is why its insides are looked at; a test sends such bytes.
        """
        for connection in self.transport._pool.connections:  # noqa: SLF001 - see above
            http11: object = connection
            while not isinstance(http11, httpcore.AsyncHTTP11Connection | None):
                http11 = getattr(http11, "_connection", None)  # one deeper behind a proxy
            if http11 is not None:
                state = http11._h11_state  # noqa: SLF001 - see above
                if state.their_state in (h11.DONE, h11.IDLE) and state.trailing_data[0]:
                    await http11._network_stream.aclose()  # noqa: SLF001 - see above


@dataclass(slots=True, eq=False, repr=False)
class Connections:
    """The connections to one URL.

    peer:           who is there, as words in a reason.
    where:          what stands in front of the keys of `tls` in a mistake.
    most:           how many exchanges there are at once, at most.
    body_bytes:     how much of an answer's body is read.

    Making them raises ConfigError where TLS files or the environment's proxy cannot be used.
    """

    url: httpx.URL
    tls: TlsSettings
    proxy: ProxySettings
    mask: SecretMask
    peer: str
    where: str
    most: int
    body_bytes: int
    _proxy: httpx.Proxy | None = field(init=False)
    _context: ssl.SSLContext = field(init=False)
    _pool: _Pool = field(init=False)

    def __post_init__(self) -> None:
        self._context = ssl_context(self.tls, self.where, is_used=self.url.scheme == "https")
        self._proxy = self._proxy_settings()
        self._pool = self._open()

    def _proxy_settings(self) -> httpx.Proxy | None:
        url = proxy_for(self.url, self.proxy)
        if url is None:
            return None
        # They are for the proxy alone: a request that is not tunnelled would carry them on to its destination.
        headers = [
            (name, value.get_secret_value())
            for name, values in (self.proxy.proxy_connect_header.items() if self.url.scheme == "https" else ())
            for value in values
        ]
        # The same authorities, but the server's name and the worker's certificate belong to the other end.
        own = self.tls.model_copy(update=dict.fromkeys(("server_name", "cert", "cert_file", "key", "key_file")))
        context = ssl_context(own, self.where) if url.scheme == "https" else None
        return httpx.Proxy(url, headers=headers, ssl_context=context)

    def _open(self) -> _Pool:
        # Without httpx' client around it: that is for cookies, redirects and the environment, none of which is wanted,
        # as nothing that an answer says changes the next request; and it takes a fifth of an exchange's time.
        return _Pool(
            httpx.AsyncHTTPTransport(
                # As many again replace those that a timeout has just spoiled.
                limits=httpx.Limits(max_connections=2 * self.most, max_keepalive_connections=self.most),
                proxy=self._proxy,
                trust_env=False,
                verify=self._context,
            )
        )

    def request(self, body: bytes, headers: Mapping[str, str], *, below: str = "") -> httpx.Request:
        """A request to the URL, or to a path below it, for `exchange`; whoever authenticates it adds to its headers."""
        url = self.url.copy_with(path=self.url.path.rstrip("/") + below) if below else self.url
        # What comes back is shown to people as it comes; nothing in it is worth unpacking, or the risk.
        own = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        merged = httpx.Headers(headers)
        merged.update(own)
        return httpx.Request("POST", url, content=body, headers=merged)

    async def exchange(self, request: httpx.Request, seconds: float, limit: str = "") -> Answer | Later:
        """Send the request and read its answer; both together take no longer than `seconds`.

        limit: what a reason calls this time; the seconds where it is left out.

        The time limit is the machine's own, whatever the clock: the network knows no other.
        """
        response: httpx.Response | None = None
        body = bytearray()
        whole = False
        request.extensions["timeout"] = _TIMEOUTS
        try:
            async with asyncio.timeout(seconds), self._pool_in_use() as pool:
                response = await pool.transport.handle_async_request(request)
                try:
                    async for chunk in response.aiter_raw():
                        body += chunk[: self.body_bytes - len(body)]
                        if len(body) == self.body_bytes:
                            break
                    else:
                        whole = True
                    await pool.close_what_says_more()
                finally:
                    await response.aclose()
        except (OSError, httpx.TransportError) as error:
            # httpcore lets some of TLS' own errors, which are OSErrors as timeouts are, through.
            # Once status and headers are here the other side has decided, whatever becomes of the text behind them.
            if response is None:
                return self._later(error, limit or f"{seconds:g} s")
        if response.is_success and was_cut_off(response):
            reason = f"HTTP {response.status_code} before the whole request was sent, and the connection was cut"
            return Later(reason, was_cut_off=True)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            body = bytearray(f"(the answer is encoded as {encoding}, which was not asked for)".encode())
            whole = False
        return Answer(response.status_code, response.headers, bytes(body), whole)

    async def aclose(self) -> None:
        """Close the connections; no exchange may be under way."""
        await self._pool.transport.aclose()

    @asynccontextmanager
    async def _pool_in_use(self) -> AsyncIterator[_Pool]:
        pool = self._pool
        pool.exchanges += 1
        try:
            yield pool
        except BaseException:
            # httpcore 1.0 keeps counting a connection whose TLS failed inside a proxy's tunnel, until it opens no more.
            if self._proxy is not None and pool is self._pool:
                self._pool = self._open()
            raise
        finally:
            pool.exchanges -= 1
            if pool is not self._pool and not pool.exchanges:
                await pool.transport.aclose()

    def _later(self, error: Exception, limit: str) -> Later:
        """Why no answer came, in words without a URL, a header or anything else that was sent."""
        match error:
            case httpx.ConnectTimeout():
                return Later(
                    f"no connection came about: check that {self._nearest} runs and that nothing drops its packets"
                )
            case TimeoutError() | httpx.TimeoutException():
                return Later(f"no answer came within {limit}")
            case httpx.RemoteProtocolError():
                return Later(printable(f"the answer cannot be read: {self._masked(str(error))}"))
            case httpx.ProxyError():
                # httpcore's words: the status of the answer to CONNECT and its reason phrase.
                fate = Fate.PARK if str(error).startswith("4") else Fate.RETRY
                return Later(printable(f"the proxy does not let the connection pass: {self._masked(str(error))}"), fate)
            case _:
                return self._network_later(error) or Later(f"the connection failed ({type(error).__name__})")

    def _masked(self, text: str) -> str:
        return self.mask(text.encode()).decode(errors="replace")

    @property
    def _nearest(self) -> str:
        """Who is at the other end of a connection that is made first."""
        return self.peer if self._proxy is None else "the proxy"

    def _network_later(self, error: BaseException) -> Later | None:
        """What the operating system or OpenSSL says is the matter, where one of them is behind the error."""
        # What breaks in a TLS handshake is sent as well, and is no request.
        is_request = not isinstance(error, httpx.ConnectError)
        was_cut = is_request and any(isinstance(cause, CutOffError) for cause in _causes(error))
        for cause in _causes(error):
            match cause:
                case socket.gaierror():
                    return Later(f"{self._nearest}'s host name cannot be resolved: {cause.strerror}", Fate.PARK)
                case ssl.SSLError():
                    return self._tls_later(cause)
                case OSError(errno=int(number)):
                    when = " while the request was being sent" if was_cut else ""
                    return Later(f"the connection failed{when}: {os.strerror(number)}", was_cut_off=was_cut)
                case _:
                    pass
        return None

    def _tls_later(self, error: ssl.SSLError) -> Later:
        match error:
            case ssl.SSLCertVerificationError():
                return Later(f"{self.peer}'s certificate cannot be trusted: {error.verify_message}", Fate.PARK)
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                return Later("the connection was cut in the middle of TLS")
            case ssl.SSLError(reason=str(reason)) if "CERTIFICATE" in reason and "ALERT" in reason:
                hint = f"{self.peer} does not take the certificate that the worker shows: check tls_config"
                return Later(f"TLS failed: {reason}; {hint}", Fate.PARK)
            case _:
                return Later(f"TLS failed: {error.reason}", Fate.PARK)


def usable_url(url: str, setting: str, shown: str) -> httpx.URL:
    """The URL as the HTTP library takes it, which knows more of host names than the configuration does.

    setting: where it is written.
    shown:   the URL for people. ConfigError where it cannot be used.
    """
    if (parsed := _parsed(url)) is not None:
        return parsed
    # The library maps no letters to others, as Go does, and asks more of a name in another script than of one in ASCII.
    name = ascii_host(url)
    instead = f"; in ASCII this one is {name}" if name is not None and _parsed(f"https://{name}") is not None else ""
    raise ConfigError([Mistake(setting, shown, f"must be a URL with a host name that can exist{instead}")])


def _parsed(url: str) -> httpx.URL | None:
    """None where the library cannot use it; its own words would repeat the URL."""
    try:
        parsed = httpx.URL(url)
        has_host = bool(parsed.host)
    except (httpx.InvalidURL, UnicodeError):
        return None
    return parsed if has_host else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, nearest first; of several addresses that failed, what was wrong with the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
