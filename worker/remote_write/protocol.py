"""Which version of remote write a destination is spoken to in.

The newer one is tried first, because it carries metadata and because a receiver of it keeps the good part of a request
that it refuses. A receiver that does not know it is spoken to in the older one for a day, or until the worker starts
anew; then the newer one is tried again. One that was only seen to fail may have been starting: ten minutes.
"""

from worker.clock import Clock
from worker.config import Message

# Longer than most receivers take to start. One that does fail whatever is sent in 2.0 gets as many requests of it as
# `split_after_failures` says, six times an hour.
_UNPROVEN_SECONDS = 600.0


class Protocol:
    """The choice for one destination, and what it rests on."""

    def __init__(self, configured: Message | None, *, retry_seconds: float, clock: Clock) -> None:
        """Make it.

        configured:    the version that was asked for; None leaves the choice to what the receiver answers.
        retry_seconds: how long the older version is kept to before the newer one is tried again.
        """
        self._configured = configured
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._older_until: float | None = None
        self._settled = configured is not None
        self.why_older: str | None = None
        """Why 1.0 is spoken although it was not asked for; None where it is not."""

    @property
    def message(self) -> Message:
        """What the next request is to be."""
        if self._configured is not None:
            return self._configured
        if self._older_until is not None:
            if self._clock.monotonic() < self._older_until:
                return Message.V1
            self._older_until, self._settled = None, False
        return Message.V2

    @property
    def is_automatic(self) -> bool:
        """Whether the choice is left to what the receiver answers."""
        return self._configured is None

    @property
    def knows_2(self) -> bool:
        """Whether the receiver has shown that it understands 2.0, or is taken to by whoever configured it."""
        return self._settled and self.message is Message.V2

    def understood(self, message: Message) -> None:
        """The receiver has answered as one that knows this version."""
        if self._configured is None and message is self.message:
            self._settled = True
            if message is Message.V2:
                self.why_older = None

    def fall_back(self, why: str, *, proven: bool = True) -> None:
        """Speak the older version from now on, for a while.

        proven: whether an answer shows that the receiver does not know the newer one.
        """
        seconds = self._retry_seconds if proven else min(self._retry_seconds, _UNPROVEN_SECONDS)
        self._older_until = self._clock.monotonic() + seconds
        self._settled = True
        self.why_older = why
