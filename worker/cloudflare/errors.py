"""What can go wrong between the worker and Cloudflare: one list of kinds, and one function that recognizes them.

Cloudflare reports errors in three shapes: GraphQL's list of errors (also with status 200 and beside partial data), the
REST envelope with numbered errors, and bodies that are not JSON at all. `classify` turns each into values. Pure; knows
nothing of how a query is asked again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

import msgspec


class ErrorKind(StrEnum):
    """Why an answer is not usable; also the outcome that requests are counted by."""

    RATE = "rate"
    """Too many queries in five minutes."""
    COMPLEXITY = "complexity"
    """Too many zones and nodes in one query."""
    COST = "cost"
    """The query used too much of something on Cloudflare's side."""
    RETENTION = "retention"
    """Cloudflare does not keep data of that age for that zone; `bound_seconds` is how far back it reaches."""
    WINDOW = "window"
    """The query spans too long a time; `bound_seconds` is the longest span allowed."""
    PAGE = "page"
    """`limit` was out of range."""
    FIELDS = "fields"
    """Too many fields in one query."""
    ZONES = "zones"
    """More zones than one query may ask for."""
    PLAN_DATASET = "plan_dataset"
    """The zone's plan does not include the dataset."""
    PLAN_FIELD = "plan_field"
    """The zone's plan does not include one field, named in `field`."""
    AUTH_SCOPE = "auth_scope"
    """The token is valid but has no permission for that zone or account."""
    TOKEN = "token"  # noqa: S105 - the name of a kind of error
    """The token itself is missing, malformed, unknown, expired or revoked."""
    REFUSED = "refused"
    """GraphQL refuses the query for a reason that is not in this list."""
    ENDPOINT = "endpoint"
    """The address does not behave like Cloudflare's API: a redirect, a 404, an unknown REST error."""
    SERVER = "server"
    """Cloudflare failed; the same query may succeed later."""
    NETWORK = "network"
    """No complete answer arrived in time: name, connection, TLS, reset, deadline."""
    MALFORMED = "malformed"
    """An answer arrived, but it is not what was asked for."""
    TRUNCATED = "truncated"
    """As many rows as the limit allows: there may be more, so none is taken."""
    TOO_LARGE = "too_large"
    """The body is larger than the worker is willing to hold."""
    MISSING_ZONE = "missing_zone"
    """The answer leaves out a zone that was asked for, without an error."""


@dataclass(frozen=True, slots=True)
class ApiFailure:
    """One thing that Cloudflare, or the way to it, did not do.

    message:             for people, at most MAX_MESSAGE characters on one line.
    zone_tags:           the zones that the message itself names.
    account_tags:        the accounts that it names.
    zone_index:          the position among the query's zones that the error's path points to.
    is_of_account:       whether the error's path ends at the account, short of its zones and nodes.
    node:                the last name in the error's path: an alias of the query's, or the node itself.
    field:               the field that a plan denies.
    bound_seconds:       how far back (RETENTION) or how wide (WINDOW) a query may go.
    bound_rows:          the highest `limit` allowed (PAGE).
    retry_after_seconds: how long to wait, where the answer says so.
    """

    kind: ErrorKind
    message: str
    zone_tags: tuple[str, ...] = ()
    account_tags: tuple[str, ...] = ()
    zone_index: int | None = None
    is_of_account: bool = False
    node: str | None = None
    field: str | None = None
    bound_seconds: int | None = None
    bound_rows: int | None = None
    retry_after_seconds: float | None = None


# Enough for the longest message that Cloudflare documents (about 200 characters) with two ids in it.
MAX_MESSAGE: Final = 300

# One error per zone and node is the most that a query of ten zones can cause; a hundred leaves room and stays bounded.
_MAX_ERRORS: Final = 100

# More than the longest name in the schema.
_MAX_NAME: Final = 100

# A header that asks for more than an hour is taken for an hour; the longest block that is documented is 5 minutes.
_MAX_RETRY_AFTER_SECONDS: Final = 3600.0

# A century: more than Cloudflare keeps anything, and a number of seconds that a float holds.
_MAX_DURATION_SECONDS: Final = 100 * 365 * 86_400

# https://developers.cloudflare.com/fundamentals/api/troubleshooting/: authentication error, missing headers, invalid
# headers, invalid format of the header, unknown or invalid token. Not 9109, which also means "no permission".
_TOKEN_CODES: Final = frozenset({1000, 1001, 6003, 6103, 6111, 9103, 9106, 9107, 10000})

# What a message says, most specific first. Source: https://developers.cloudflare.com/analytics/graphql-api/errors/ and
# recorded answers of the live API.
_MESSAGES: Final = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (
            ErrorKind.RATE,
            r"rate limiter budget depleted|exceeded its rate limit|rate limited|more than \d+ requests per",
        ),
        (ErrorKind.COMPLEXITY, r"in combination, your request queries too many nodes"),
        (ErrorKind.COST, r"query consumed excessive resources"),
        (ErrorKind.RETENTION, r"cannot request data older than"),
        (ErrorKind.WINDOW, r"time range is too large|time range wider than"),
        (ErrorKind.PAGE, r"limit must be positive number"),
        (ErrorKind.FIELDS, r"number of fields can't be more than"),
        (ErrorKind.ZONES, r"too many zones requested"),
        (ErrorKind.PLAN_FIELD, r"does not have access to the field"),
        (ErrorKind.PLAN_DATASET, r"does not have access to the path"),
        (ErrorKind.AUTH_SCOPE, r"not authorized|unauthorized to access"),
        (ErrorKind.TOKEN, r"authentication error|invalid (api|access) token|missing x-auth-key"),
        (ErrorKind.SERVER, r"unable to execute query|too many queries in progress|internal server error"),
    )
)
# What `extensions.code` says where the message is unknown.
_CODES: Final = {"budget": ErrorKind.RATE, "authz": ErrorKind.AUTH_SCOPE}

_ZONE_LIST = re.compile(r"\bzones?\W+((?:[0-9a-f]{32}\W*)+)", re.IGNORECASE)
_ACCOUNT_LIST = re.compile(r"\baccounts?\W+((?:[0-9a-f]{32}\W*)+)", re.IGNORECASE)
_TAG = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_FIELD = re.compile(r"\bfield\W+(\w+)", re.IGNORECASE)
_BOUND = re.compile(r"\b(?:older|wider) than\s+((?:\d+[wdhms])+)", re.IGNORECASE)
_ROWS = re.compile(r"\bnot greater than\s+(\d{1,9})\b", re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+)([wdhms])", re.IGNORECASE)
_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}


class _Error(msgspec.Struct):
    message: Any = None
    code: Any = None
    path: Any = None
    extensions: Any = None


class _Envelope(msgspec.Struct):
    errors: list[_Error] | None = None
    success: bool | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def classify(http_status: int, headers: Mapping[str, str], body: bytes) -> tuple[ApiFailure, ...]:
    """What is wrong with an answer of the GraphQL or the REST API; nothing means that its data may be read.

    headers: case-insensitive, as httpx gives them.
    """
    retry_after = _retry_after_seconds(headers)
    try:
        envelope = _ENVELOPE.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and so are those of bad UTF-8
        return (_unreadable(http_status, body, str(error), retry_after),)
    if envelope.errors:
        return tuple(_classified(http_status, error, retry_after) for error in envelope.errors[:_MAX_ERRORS])
    if not 200 <= http_status < 300:
        return (_by_status(http_status, "", retry_after),)
    if envelope.success is False:
        return (ApiFailure(ErrorKind.ENDPOINT, "the API reports no success and names no error"),)
    return ()


def one_line(text: str) -> str:
    """A text of somebody else's, made fit for a log line: no control characters, not longer than MAX_MESSAGE."""
    # Four times the length is read, for white space that collapses, and no more: the text may be megabytes.
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_MESSAGE]).split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def duration_seconds(text: str) -> int:
    """Seconds of a duration as Cloudflare writes it: `54000s`, `4w2d`, `8w1d6h`; at most a century."""
    seconds = sum(int(number) * _SECONDS[unit.lower()] for number, unit in _DURATION_PART.findall(text))
    return min(seconds, _MAX_DURATION_SECONDS)


def _classified(http_status: int, error: _Error, retry_after: float | None) -> ApiFailure:
    text = error.message if isinstance(error.message, str) else ""
    code = error.extensions.get("code") if isinstance(error.extensions, dict) else None
    in_envelope = isinstance(error.code, int)
    kind = next((kind for kind, pattern in _MESSAGES if pattern.search(text[: 4 * MAX_MESSAGE])), None)
    if in_envelope and error.code in _TOKEN_CODES:
        kind = ErrorKind.TOKEN
    if kind is None and isinstance(code, str):
        kind = _CODES.get(code)
    if kind is None and (in_envelope or http_status >= 500 or http_status in (401, 429)):
        return _by_status(http_status, f"{error.code}: {text}" if in_envelope else text, retry_after)
    text = text[: 4 * MAX_MESSAGE]
    bound = _BOUND.search(text)
    field = _FIELD.search(text) if kind is ErrorKind.PLAN_FIELD else None
    rows = _ROWS.search(text) if kind is ErrorKind.PAGE else None
    return ApiFailure(
        kind=kind or ErrorKind.REFUSED,
        message=one_line(text) or "an error without a message",
        zone_tags=_tags(_ZONE_LIST, text),
        account_tags=_tags(_ACCOUNT_LIST, text),
        zone_index=_zone_index(error.path),
        is_of_account=isinstance(error.path, list) and "accounts" in error.path[-2:],
        node=_node(error.path),
        field=field[1] if field else None,
        bound_seconds=duration_seconds(bound[1]) if bound else None,
        bound_rows=int(rows[1]) if rows else None,
        retry_after_seconds=retry_after,
    )


def _by_status(http_status: int, text: str, retry_after: float | None) -> ApiFailure:
    match http_status:
        case 429:
            kind = ErrorKind.RATE
        case 401:
            kind = ErrorKind.TOKEN
        case 403:
            kind = ErrorKind.AUTH_SCOPE
        case _ if http_status >= 500:
            kind = ErrorKind.SERVER
        case _:
            kind = ErrorKind.ENDPOINT
    message = one_line(f"HTTP status {http_status}" + (f": {text}" if text else ""))
    return ApiFailure(kind, message, retry_after_seconds=retry_after)


def _unreadable(http_status: int, body: bytes, reason: str, retry_after: float | None) -> ApiFailure:
    """A body that is not JSON: an HTML page of something in between, a truncated answer."""
    looks_like_html = body.lstrip()[:1] == b"<"
    what = "an HTML page" if looks_like_html else "a body that is not the API's JSON"
    if not 200 <= http_status < 300:
        failure = _by_status(http_status, f"with {what}", retry_after)
        # A page with status 403 comes from a firewall on the way, which says nothing about the token's permissions.
        if failure.kind is ErrorKind.AUTH_SCOPE and looks_like_html:
            return ApiFailure(ErrorKind.SERVER, failure.message, retry_after_seconds=retry_after)
        return failure
    if looks_like_html:
        return ApiFailure(ErrorKind.SERVER, f"HTTP status {http_status}: with {what}", retry_after_seconds=retry_after)
    return ApiFailure(ErrorKind.MALFORMED, one_line(f"HTTP status {http_status}: with {what}: {reason}"))


def _tags(list_of_tags: re.Pattern[str], text: str) -> tuple[str, ...]:
    tags = (tag.lower() for named in list_of_tags.findall(text) for tag in _TAG.findall(named))
    return tuple(dict.fromkeys(tags))


def _node(path: Any) -> str | None:
    """The name at the end of the path of a GraphQL error, where it goes further than the zones or accounts."""
    if not isinstance(path, list) or len(path) <= len(("viewer", "zones", "0")):
        return None
    if "zones" in path[-2:]:  # through their account: viewer, accounts, 0, zones, 0
        return None
    return path[-1][:_MAX_NAME] if isinstance(path[-1], str) else None


def _zone_index(path: Any) -> int | None:
    """The number after "zones" in the path of a GraphQL error, also below an account; Cloudflare writes a string."""
    if not isinstance(path, list):
        return None
    for before, item in pairwise(path):
        # Two digits count more zones than a query has, and int() refuses very long numbers.
        if before == "zones" and str(item)[:3].isdecimal() and len(str(item)) <= 2:
            return int(item)
    return None


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date that is read relative to the answer's own `Date`."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        seconds = float(value[:9])
    else:
        try:
            seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        except (TypeError, ValueError, OverflowError):  # no header, or not a date: the caller has its own waiting time
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)
