"""The way to one destination, for whoever sends to it or reads back from it.

Owns when the files of its settings are read again, its credentials, and its connections. Promises an answer or a reason
for every request, in bounded time and memory, with no secret in a reason.

Does not try again and does not wait: that is its caller's. One thing it does repeat: a request that was refused with
401, once, where a newer token can be had.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx

from worker.clock import Clock
from worker.config import DestinationSettings
from worker.errors import ConfigError
from worker.remote_write.auth import Credentials, credentials_of
from worker.remote_write.exchange import Answer, Connections
from worker.remote_write.files import Signature, files_of, plain, signature, with_files_read
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import MAX_TEXT_CHARACTERS, Fate, Later, printable


@dataclass(slots=True, eq=False, repr=False)
class _Setup:
    """All that follows from the settings and from what their files hold."""

    files: Signature
    headers: httpx.Headers
    mask: SecretMask
    credentials: Credentials
    connections: Connections
    requests: int = 0

    async def aclose(self) -> None:
        await self.credentials.aclose()
        await self.connections.aclose()


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """An answer, and what has to be blotted out of it before anybody sees it."""

    answer: Answer
    mask: SecretMask

    @property
    def excerpt(self) -> bytes:
        """How the body begins, without secrets."""
        # Four times what is kept of it, so that a secret that the end of it cuts in two lies behind what is kept.
        return self.mask(self.answer.body[: 4 * MAX_TEXT_CHARACTERS])[:MAX_TEXT_CHARACTERS]

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the answer; the one of which people are shown something is without secrets."""
        location = self.answer.headers.get("location")
        if location is None:
            return self.answer.headers
        return {**self.answer.headers, "location": self.mask(location.encode()).decode(errors="replace")}

    @property
    def text(self) -> str:
        """The same for people, on one line."""
        return printable(self.excerpt.decode(errors="replace"))


class Endpoint:
    """One URL of a destination, and what lies below it.

    ConfigError where one of its files cannot be used, or a package is missing that its way to authenticate needs.
    Afterwards, a file that cannot be used parks the destination until it can.
    """

    def __init__(self, settings: DestinationSettings, clock: Clock, *, url: httpx.URL, body_bytes: int) -> None:
        """`body_bytes`: how much of an answer's body is read."""
        self._settings = settings
        self._clock = clock
        self._url = url
        self._body_bytes = body_bytes
        self._limit = f"{settings.timeout_seconds:g} s (remote_timeout)"
        self._files = tuple(files_of(settings))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"files of {settings.name}")
        self._refreshing: asyncio.Task[None] | None = None
        self._setup = self._set_up()

    async def _post(self, body: bytes, headers: Mapping[str, str], *, below: str = "") -> Reply | Later:
        """Send one request, with these headers beside those of the settings, to the URL or to a path below it.

        The time limit is the machine's own, whatever the clock: the network knows no other.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.timeout_seconds
        try:
            async with self._setup_in_use(deadline) as setup:
                merged = httpx.Headers(setup.headers)
                merged.update(headers)
                answer = await self._exchange(setup, body, merged, below, deadline)
                return answer if isinstance(answer, Later) else Reply(answer, setup.mask)
        except TimeoutError:
            return Later(f"files or credentials were not ready within {self._limit}")
        except ConfigError as error:
            return Later(str(error.mistakes[0]), Fate.PARK)

    async def _exchange(
        self,
        setup: _Setup,
        body: bytes,
        headers: httpx.Headers,
        below: str,
        deadline: float,
        *,
        may_renew: bool = True,
    ) -> Answer | Later:
        request = setup.connections.request(body, headers, below=below)
        async with asyncio.timeout_at(deadline):
            unready = await setup.credentials.authorize(request)
        if unready is not None:
            return unready
        seconds = deadline - asyncio.get_running_loop().time()
        answer = await setup.connections.exchange(request, seconds, self._limit)
        if isinstance(answer, Answer) and answer.status == 401 and may_renew and setup.credentials.refused(request):
            return await self._exchange(setup, body, headers, below, deadline, may_renew=False)
        return answer

    async def aclose(self) -> None:
        """Close the connections. No request may be under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._setup.aclose()

    @asynccontextmanager
    async def _setup_in_use(self, deadline: float) -> AsyncIterator[_Setup]:
        """What holds now; it is closed when something newer holds and nobody uses it any more."""
        async with asyncio.timeout_at(deadline):
            setup = await self._current_setup()
        setup.requests += 1
        try:
            yield setup
        finally:
            setup.requests -= 1
            if setup is not self._setup and not setup.requests:
                await setup.aclose()

    async def _current_setup(self) -> _Setup:
        if self._files:
            # A volume that hangs cannot be left. Whoever comes waits for the one look that is under way, in a thread
            # that nobody else needs: it must not hold up the other destinations.
            if self._refreshing is None:
                self._refreshing = asyncio.create_task(self._refresh())
            await asyncio.shield(self._refreshing)
        return self._setup

    async def _refresh(self) -> None:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._thread)
        try:
            if await in_thread(signature, self._files) != self._setup.files:
                old, self._setup = self._setup, await in_thread(self._set_up)
                if not old.requests:
                    await old.aclose()
        finally:
            self._refreshing = None

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
                body_bytes=self._body_bytes,
            ),
        )
