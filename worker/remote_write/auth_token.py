"""Bearer tokens that are fetched, kept while they are good, and fetched again."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from worker.clock import Clock
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import Later

# A token is not used in its last minute: twice the usual time limit of a request, so that none expires on its way. Of
# one that lives for less than two minutes, half of its life.
_MARGIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it was given out.

    lives_seconds: how long it is good for; infinite where nobody says so: then a 401 tells.
    """

    secret: SecretStr
    lives_seconds: float = math.inf


class BearerTokens:
    """Sends `Authorization: Bearer <token>` (RFC 6750, 2.1). However many requests wait for a token, one fetches it."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Token | Later]],
        clock: Clock,
        mask: SecretMask,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._mask = mask
        self._close = close
        self._fetching = asyncio.Lock()
        self._fetched_count = 0
        self._last: Token | Later | None = None
        self._good_until = -math.inf

    async def authorize(self, request: httpx.Request) -> Later | None:
        match await self._current():
            case Token(secret=secret):
                request.headers["Authorization"] = f"Bearer {secret.get_secret_value()}"
                return None
            case Later() as later:
                return later

    def refused(self, request: httpx.Request) -> bool:
        # Another request may have fetched a newer one meanwhile.
        match self._last:
            case Token(secret=secret) if request.headers.get("Authorization") == f"Bearer {secret.get_secret_value()}":
                self._good_until = -math.inf
            case _:
                pass
        return True

    async def aclose(self) -> None:
        await self._close()

    async def _current(self) -> Token | Later:
        count = self._fetched_count
        async with self._fetching:
            # What came of a fetch that was under way holds for all who waited for it, failures included.
            is_shared = count != self._fetched_count
            if self._last is None or not (is_shared or self._clock.monotonic() < self._good_until):
                self._last = await self._fetch()
                self._fetched_count += 1
                if isinstance(self._last, Token):
                    self._mask.remember(self._last.secret.get_secret_value())
                    margin = min(_MARGIN_SECONDS, self._last.lives_seconds / 2)
                    self._good_until = self._clock.monotonic() + self._last.lives_seconds - margin
            return self._last
