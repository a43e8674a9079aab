"""What a receiver's answer means for the rows that were sent.

Owns the one table from an answer to a verdict, which docs/delivery.md shows with its reasons. Pure: it neither reads
from a connection nor remembers anything.

    2xx                     Accepted               the rows are delivered; but a 2xx to a 2.0 request without any of the
                                                   Written headers is Later, OLDER_MESSAGE: nobody has read it
    400, 409, 413, 422      Refused                something in these bytes will never be taken: they are split
    415 to a 2.0 request    Later, OLDER_MESSAGE   the same rows go out as 1.0
    408, 425, 5xx           Later, RETRY           the receiver is busy or broken
    429, 529                Later, RATE_LIMITED    the receiver wants fewer requests, or has a limit on what is in them
    anything else           Later, PARK            the destination is set up wrongly, which is not the rows' fault: they
                                                   wait until somebody has corrected it

Remote write wants 4xx other than 429 not to be retried. Those that are retried here all the same say nothing about the
samples; dropping rows because a password has expired would lose them for nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from urllib.parse import urlsplit

from worker.config import Message

MAX_TEXT_CHARACTERS = 1024
"""How much of a receiver's own words is kept: room for the sample it complains about with all its labels."""

_WRITTEN_HEADERS = (
    "x-prometheus-remote-write-samples-written",
    "x-prometheus-remote-write-histograms-written",
    "x-prometheus-remote-write-exemplars-written",
)


_ABOUT_CONTENT = frozenset({400, 409, 413, 422})


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver has the rows.

    status:          the HTTP status, 200 to 299.
    written_samples: how many samples the receiver says it has written; None where it does not say, as in 1.0. Receivers
                     count differently: it is good for an alarm and no proof.
    """

    status: int
    written_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver will never take these bytes.

    status:   the HTTP status.
    text:     what the receiver said: one printable line of at most `MAX_TEXT_CHARACTERS`.
    speaks_2: whether the answer shows that the receiver has read the request as remote write 2.0.
    """

    status: int
    text: str
    speaks_2: bool = False

    @property
    def is_about_content(self) -> bool:
        """Whether a part of the request may fare better."""
        return self.status in _ABOUT_CONTENT


class Fate(Enum):
    """What becomes of a request on which nothing is decided."""

    RETRY = auto()
    """The same bytes again, after a pause; after many failures in parts, as something in it may be the cause."""

    RATE_LIMITED = auto()
    """The same bytes again, after a pause; in parts only for far better reasons, as more requests may be too many."""

    PARK = auto()
    """Nothing else goes to the destination until a probe gets another answer."""

    OLDER_MESSAGE = auto()
    """The same rows again as remote write 1.0, at once."""


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing is decided: the rows stay pending.

    reason:              what happened and, where somebody has to act, what to do; one printable line.
    fate:                what is to be done with the request.
    status:              the HTTP status, or None where no answer came.
    retry_after_seconds: how long the receiver asks to be left alone, within the cap; None where it does not say.
    was_cut_off:         whether the connection broke before all of the request was sent: its size may be why.
    """

    reason: str
    fate: Fate = Fate.RETRY
    status: int | None = None
    retry_after_seconds: float | None = None
    was_cut_off: bool = False


Verdict = Accepted | Refused | Later

_BUSY = frozenset({408, 425})
_RATE_LIMITED = frozenset({429, 529})
_WRONGLY_SET_UP = {
    401: "the receiver does not accept the credentials: check them in the destination's configuration",
    403: "the receiver does not let these credentials write: check their rights and the tenant",
    404: "there is no remote-write endpoint at this URL: check its path, and that the receiver has remote write on",
    405: "the URL does not take POST: check its path",
    407: "a proxy on the way wants credentials",
    415: "the endpoint does not take remote write: check the URL's path",
}


def judge(
    status: int,
    headers: Mapping[str, str],
    message: Message,
    body_excerpt: bytes,
    now: float,
    *,
    max_retry_after_seconds: float,
    retry_on_429: bool = True,
) -> Verdict:
    """The verdict on an answer.

    headers:      looked up by their lower-case names.
    message:      which version of remote write was sent.
    body_excerpt: how the body begins, without secrets; shown to people, never interpreted.
    now:          unix seconds, for a `Retry-After` that is a date.
    retry_on_429: whether a 429 is worth another attempt; without it such a request is refused as a whole.
    """
    text = printable(body_excerpt.decode(errors="replace"))
    speaks_2 = message is Message.V2 and any(header in headers for header in _WRITTEN_HEADERS)
    if 200 <= status < 300:
        if message is Message.V2 and not speaks_2:
            # Remote write 2.0 specification, "Required Written Response Headers": to be treated as a 415.
            return Later(_SILENT.format(status), Fate.OLDER_MESSAGE, status)
        return Accepted(status, _written_samples(headers) if speaks_2 else None)
    if status in _ABOUT_CONTENT or (status == 429 and not retry_on_429):
        return Refused(status, text or "no reason was given", speaks_2)
    return Later(
        printable(f"HTTP {status}: {_reason(status, headers, text)}"),
        _fate(status, message),
        status,
        retry_after_seconds(headers.get("retry-after"), now, max_retry_after_seconds),
    )


_SILENT = (
    "HTTP {} without any X-Prometheus-Remote-Write-*-Written header: the receiver does not know remote write 2.0 and "
    "has dropped what was sent"
)


def _fate(status: int, message: Message) -> Fate:
    if status == 415 and message is Message.V2:
        return Fate.OLDER_MESSAGE
    if status in _RATE_LIMITED:
        return Fate.RATE_LIMITED
    if status in _BUSY or 500 <= status < 600:
        return Fate.RETRY
    return Fate.PARK


def _written_samples(headers: Mapping[str, str]) -> int:
    """Remote write 2.0 specification: a header that is missing beside another one counts as 0; so does a bad one."""
    value = headers.get(_WRITTEN_HEADERS[0], "0").strip()
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else 0


def _reason(status: int, headers: Mapping[str, str], text: str) -> str:
    if 300 <= status < 400:
        target = _origin(headers.get("location", ""))
        return (
            f"the URL redirects{target}, and redirects are not followed, as the credentials would go along: correct it"
        )
    if explanation := _WRONGLY_SET_UP.get(status):
        return f"{explanation}. The receiver said: {text or 'nothing'}"
    return text or "no reason was given"


def _origin(location: str) -> str:
    """` to <scheme>://<host>`, or ` to //<host>`, of a redirect: path and query may hold what is secret in our URL."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    scheme = f"{parts.scheme}:" if parts.scheme else ""
    return f" to {scheme}//{parts.hostname}" if parts.hostname else ""


def retry_after_seconds(value: str | None, now: float, max_seconds: float) -> float | None:
    """How long a `Retry-After` header asks to wait (RFC 9110, 10.2.3: seconds or a date); None where it is neither."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), max_seconds)
    try:
        moment = parsedate_to_datetime(value)
        # The form of C's asctime names no zone; dates in HTTP are UTC.
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):  # the latter where a number in it is larger than any date's
        return None
    return min(max(seconds, 0.0), max_seconds)


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey, and bounded."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.split())[:MAX_TEXT_CHARACTERS]
