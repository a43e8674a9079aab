"""What a receiver's answer means for the rows that were sent.

Owns the one table from an answer to a verdict. Pure: it neither reads from a connection nor remembers anything.

    2xx                            Accepted  the rows are delivered
    400, 409, 413, 422, other 4xx  Refused   these bytes will never be taken; the specification forbids to repeat them
    408, 429, 5xx                  Later     the receiver is busy or broken
    401, 403, 404, 405, 407, 415   Later     the destination is set up wrongly, which is not the rows' fault: they wait
                                             until somebody has corrected it
    1xx, 3xx, anything else        Later     not an answer of remote write at all

Remote write 1.0 wants 2xx and 4xx (except 429) not to be retried. The statuses that are retried here all the same say
nothing about the samples; dropping rows because a password has expired would lose them for nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

MAX_TEXT_CHARACTERS = 1024
"""How much of a receiver's own words is kept: room for the sample it complains about with all its labels."""

MAX_RETRY_AFTER_SECONDS = 300.0
"""Longest wait that a receiver may ask for: five minutes, so that a wrong date does not stop delivery for a day."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver has the rows.

    status: the HTTP status, 200 to 299.
    """

    status: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver will never take these bytes.

    status: the HTTP status, 400 to 499.
    text:   what the receiver said: one printable line of at most `MAX_TEXT_CHARACTERS`.
    """

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing is decided: the rows stay pending, and the same bytes are to be sent again.

    reason:              what happened and, where somebody has to act, what to do; one printable line.
    status:              the HTTP status, or None where no answer came.
    retry_after_seconds: how long the receiver asks to be left alone, at most `MAX_RETRY_AFTER_SECONDS`; None where it
                         does not say.
    """

    reason: str
    status: int | None = None
    retry_after_seconds: float | None = None


Verdict = Accepted | Refused | Later

_WRONGLY_SET_UP = {
    401: "the receiver does not accept the credentials: check basic_auth, bearer_token and headers",
    403: "the receiver does not let these credentials write: check their rights and the tenant",
    404: "there is no remote-write endpoint at this URL: check its path, and that the receiver has remote write on",
    405: "the URL does not take POST: check its path",
    407: "a proxy on the way wants credentials",
    415: "the endpoint does not take remote write 1.0: check the URL's path",
}


def judge(status: int, headers: Mapping[str, str], body_excerpt: bytes, now: float) -> Verdict:
    """The verdict on an answer.

    headers:      looked up by their lower-case names.
    body_excerpt: how the body begins, without secrets; shown to people, never interpreted.
    now:          unix seconds, for a `Retry-After` that is a date.
    """
    text = printable(body_excerpt.decode(errors="replace"))
    if 200 <= status < 300:
        return Accepted(status)
    if 400 <= status < 500 and status not in {408, 429, *_WRONGLY_SET_UP}:
        return Refused(status, text or "no reason was given")
    return Later(
        printable(f"HTTP {status}: {_reason(status, headers, text)}"),
        status,
        retry_after_seconds(headers.get("retry-after"), now),
    )


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
    """` to <scheme>://<host>` of a redirect: its path and query may repeat what is secret in our URL."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    return f" to {parts.scheme}://{parts.hostname}" if parts.hostname else ""


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """How long a `Retry-After` header asks to wait (RFC 9110, 10.2.3: seconds or a date); None where it is neither."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(value)
        # The form of C's asctime names no zone; dates in HTTP are UTC.
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):  # the latter where a number in it is larger than any date's
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey, and bounded."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.split())[:MAX_TEXT_CHARACTERS]
