"""One destination, over HTTP.

Owns what goes out: the headers of each version of remote write, the credentials, when files are read again. Promises a
verdict for every attempt, whatever the other side does, in bounded time and memory, with no secret in it.

Does not try again and does not wait: that is its caller's. One thing it does repeat: a request that was refused with
401, once, where a newer token can be had.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from worker.clock import Clock
from worker.config import DestinationSettings, Message
from worker.errors import ConfigError, Mistake
from worker.remote_write.auth import Credentials, credentials_of
from worker.remote_write.exchange import Answer, Connections
from worker.remote_write.files import Signature, files_of, plain, signature, with_files_read
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import MAX_TEXT_CHARACTERS, Fate, Later, Verdict, judge

# The specifications of remote write, 1.0 and 2.0, "Protocol"; custom headers cannot override them. Some receivers
# compare the content type as a whole: no blank after the semicolon.
_HEADERS = {
    Message.V1: {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    },
    Message.V2: {
        "Content-Encoding": "snappy",
        "Content-Type": f"application/x-protobuf;proto={Message.V2}",
        "X-Prometheus-Remote-Write-Version": "2.0.0",
    },
}

# Read of an answer's body: four times what is kept of it, so that a secret that the end of reading cuts in two lies
# behind what is kept.
_BODY_BYTES = 4 * MAX_TEXT_CHARACTERS


@dataclass(slots=True, eq=False, repr=False)
class _Setup:
    """All that follows from the settings and from what their files hold."""

    files: Signature
    headers: httpx.Headers
    mask: SecretMask
    credentials: Credentials
    connections: Connections
    sends: int = 0

    async def aclose(self) -> None:
        await self.credentials.aclose()
        await self.connections.aclose()


class RemoteWriteClient:
    """Sends requests to one destination.

    ConfigError where its URL or one of its files cannot be used, or a package is missing that its way to authenticate
    needs. Afterwards, a file that cannot be used parks the destination until it can.
    """

    def __init__(self, settings: DestinationSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._url = _url(settings)
        self._limit = f"{settings.timeout_seconds:g} s (remote_timeout)"
        self._files = tuple(files_of(settings))
        self._refreshing = asyncio.Lock()
        self._setup = self._set_up()

    async def send(self, body: bytes, attempt: int, message: Message = Message.V1) -> Verdict:
        """Send one compressed request and tell what its receiver makes of it.

        attempt: 0 for the first time, then how often it was sent before; told in `Retry-Attempt`, by which Mimir
                 chooses the `Retry-After` it asks for.
        message: what `body` holds.

        The time limit is the machine's own, whatever the clock: the network knows no other.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.timeout_seconds
        try:
            async with self._setup_in_use(deadline) as setup:
                headers = self._headers(setup, attempt, message)
                answer = await self._exchange(setup, body, headers, deadline)
                return answer if isinstance(answer, Later) else self._verdict(answer, message, setup.mask)
        except TimeoutError:
            return Later(f"files or credentials were not ready within {self._limit}")
        except ConfigError as error:
            return Later(str(error.mistakes[0]), Fate.PARK)

    async def _exchange(
        self, setup: _Setup, body: bytes, headers: httpx.Headers, deadline: float, *, may_renew: bool = True
    ) -> Answer | Later:
        request = setup.connections.request(body, headers)
        async with asyncio.timeout_at(deadline):
            unready = await setup.credentials.authorize(request)
        if unready is not None:
            return unready
        seconds = deadline - asyncio.get_running_loop().time()
        answer = await setup.connections.exchange(request, seconds, self._limit)
        if isinstance(answer, Answer) and answer.status == 401 and may_renew and setup.credentials.refused(request):
            return await self._exchange(setup, body, headers, deadline, may_renew=False)
        return answer

    async def aclose(self) -> None:
        """Close the connections. No send may be under way."""
        await self._setup.aclose()

    def _headers(self, setup: _Setup, attempt: int, message: Message) -> httpx.Headers:
        headers = httpx.Headers(setup.headers)
        headers.update(_HEADERS[message])
        if attempt:
            headers["Retry-Attempt"] = str(attempt)
        return headers

    def _verdict(self, answer: Answer, message: Message, mask: SecretMask) -> Verdict:
        queue = self._settings.queue
        return judge(
            answer.status,
            answer.headers,
            message,
            mask(answer.body)[:MAX_TEXT_CHARACTERS],
            self._clock.now(),
            max_retry_after_seconds=queue.max_retry_after_seconds,
            retry_on_429=queue.retry_on_http_429,
        )

    @asynccontextmanager
    async def _setup_in_use(self, deadline: float) -> AsyncIterator[_Setup]:
        """What holds now; it is closed when something newer holds and nobody uses it any more."""
        async with asyncio.timeout_at(deadline):
            setup = await self._current_setup()
        setup.sends += 1
        try:
            yield setup
        finally:
            setup.sends -= 1
            if setup is not self._setup and not setup.sends:
                await setup.aclose()

    async def _current_setup(self) -> _Setup:
        if not self._files:
            return self._setup
        async with self._refreshing:
            # In a thread: a volume that hangs must not hold up the other destinations.
            if await asyncio.to_thread(signature, self._files) != self._setup.files:
                old, self._setup = self._setup, await asyncio.to_thread(self._set_up)
                if not old.sends:
                    await old.aclose()
            return self._setup

    def _set_up(self) -> _Setup:
        # Before they are read: what changes in between is noticed the next time.
        files = signature(self._files)
        settings = with_files_read(self._settings)
        mask = SecretMask(settings)
        return _Setup(
            files,
            httpx.Headers({name: plain(value) for name, value in settings.headers.items()}),
            mask,
            credentials_of(settings, self._clock, mask),
            Connections(
                url=self._url,
                tls=settings.tls,
                proxy=settings.proxy,
                mask=mask,
                peer="the receiver",
                where=f"remote_write {settings.name}: tls_config",
                most=settings.queue.max_shards,
                body_bytes=_BODY_BYTES,
            ),
        )


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
