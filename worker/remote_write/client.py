"""One destination, over HTTP.

Owns what goes out: the headers of each version of remote write. Promises a verdict for every attempt, whatever the
other side does, in bounded time and memory, with no secret in it.
"""

from worker.clock import Clock, ahead_of
from worker.config import DestinationSettings, Message
from worker.remote_write.endpoint import Endpoint
from worker.remote_write.exchange import usable_url
from worker.remote_write.verdict import MAX_TEXT_CHARACTERS, Later, Verdict, judge

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

# Read of an answer's body: what a person is shown of it, and as much again as a secret may lie in that is cut in two.
_BODY_BYTES = 4 * MAX_TEXT_CHARACTERS


class RemoteWriteClient(Endpoint):
    """Sends requests to one destination.

    ConfigError where its URL or one of its files cannot be used, or a package is missing that its way to authenticate
    needs. Afterwards, a file that cannot be used parks the destination until it can.
    """

    def __init__(self, settings: DestinationSettings, clock: Clock) -> None:
        url = usable_url(settings.url, f"remote_write {settings.name}: url", settings.shown_url)
        super().__init__(settings, clock, url=url, body_bytes=_BODY_BYTES)
        self.ahead_seconds: float | None = None
        """How far this machine's clock is ahead of the receiver's; None where its last answer does not tell."""

    async def send(self, body: bytes, attempt: int, message: Message = Message.V1) -> Verdict:
        """Send one compressed request and tell what its receiver makes of it.

        attempt: 0 for the first time, then how often it was sent before; told in `Retry-Attempt`, by which Mimir
                 chooses the `Retry-After` it asks for.
        message: what `body` holds.

        The time limit is the machine's own, whatever the clock: the network knows no other.
        """
        headers = _HEADERS[message] | ({"Retry-Attempt": str(attempt)} if attempt else {})
        reply = await self._post(body, headers)
        if isinstance(reply, Later):
            return reply
        self.ahead_seconds = ahead_of(reply.answer.headers.get("date"), self._clock.now())
        queue = self._settings.queue
        return judge(
            reply.answer.status,
            reply.headers,
            message,
            reply.excerpt,
            self._clock.now(),
            max_retry_after_seconds=queue.max_retry_after_seconds,
            retry_on_429=queue.retry_on_http_429,
        )
