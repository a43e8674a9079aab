"""How Cloudflare's GraphQL says no: message, HTTP status, code and path of every kind of error.

One table, used both where the simulator finds a reason to refuse and where a fault makes one up. Two dialects are on
record, and a client meets both.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from worker.cloudflare.catalogue import ScopeKind

NO_ZONE = "0" * 32
"""The tag in a message about a zone that a made-up error does not have."""


class Dialect(StrEnum):
    """How errors are worded and numbered."""

    RECENT = "recent"
    """Durations like 4w2d, an HTTP status that fits, a path that begins at `viewer`."""

    EARLIER = "earlier"
    """Durations like 54000s, always HTTP 200, a path that names the dataset first."""


class RefusalKind(StrEnum):
    """Why a query is refused."""

    BUDGET = "budget"
    SCOPE_BUDGET = "scope_budget"
    TOO_MANY_NODES = "too_many_nodes"
    EXCESSIVE_RESOURCES = "excessive_resources"
    RETENTION = "retention"
    WINDOW = "window"
    PAGE_SIZE = "page_size"
    FIELD_COUNT = "field_count"
    TOO_MANY_ZONES = "too_many_zones"
    ZONE_LIST = "zone_list"
    PATH_ACCESS = "path_access"
    FIELD_ACCESS = "field_access"
    ZONE_UNAUTHORIZED = "zone_unauthorized"
    ACCOUNT_UNAUTHORIZED = "account_unauthorized"
    UNABLE = "unable"
    TOO_BUSY = "too_busy"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Details:
    """What a message may have to name; a made-up error gets these defaults.

    zone_tag:      the zone or account it is about.
    scope:         which of the two that is.
    field:         the field that is denied, in lower case.
    limit_seconds: how much time is allowed.
    asked_seconds: how much was asked.
    maximum:       the largest number allowed.
    """

    zone_tag: str = NO_ZONE
    scope: ScopeKind = ScopeKind.ZONE
    field: str = "clientasn"
    limit_seconds: int = 86_400
    asked_seconds: int = 172_800
    maximum: int = 10_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error of an answer.

    status: of the HTTP response.
    code:   `extensions.code`, or None where there is none.
    path:   from `viewer` down to what was refused, or None where it is the query as a whole.
    """

    message: str
    status: int
    code: str | None = None
    path: tuple[str, ...] | None = None

    def as_json(self, now: float) -> dict[str, Any]:
        """The element of `errors`; `now` (unix seconds) is the time that it carries."""
        moment = datetime.fromtimestamp(now, UTC)
        extensions = {"timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}000Z"}
        if self.code is not None:
            extensions = {"code": self.code, **extensions}
        return {
            "message": self.message,
            "path": None if self.path is None else list(self.path),
            "extensions": extensions,
        }


class RefusedError(Exception):
    """The query is not answered."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


@dataclass(frozen=True, slots=True)
class _Form:
    """How a kind of error looks; an earlier wording only where it differed."""

    message: str
    status: HTTPStatus
    code: str | None
    earlier_message: str | None = None


_ABOUT_ZONES = frozenset({RefusalKind.TOO_MANY_ZONES, RefusalKind.ZONE_LIST, RefusalKind.ZONE_UNAUTHORIZED})
_ABOUT_A_DATASET = frozenset(
    {
        RefusalKind.RETENTION,
        RefusalKind.WINDOW,
        RefusalKind.PAGE_SIZE,
        RefusalKind.FIELD_COUNT,
        RefusalKind.PATH_ACCESS,
        RefusalKind.FIELD_ACCESS,
    }
)


_FORMS = {
    RefusalKind.BUDGET: _Form(
        "rate limiter budget depleted, try again after 5 minutes",
        HTTPStatus.TOO_MANY_REQUESTS,
        "budget",
        "rate limiter budget depleted, please try again later",
    ),
    RefusalKind.SCOPE_BUDGET: _Form("{Scope} {zone} has exceeded its rate limit", HTTPStatus.OK, "budget"),
    RefusalKind.TOO_MANY_NODES: _Form(
        "in combination, your request queries too many nodes, zones and accounts", HTTPStatus.TOO_MANY_REQUESTS, None
    ),
    RefusalKind.EXCESSIVE_RESOURCES: _Form(
        "query consumed excessive resources, please try running smaller queries", HTTPStatus.TOO_MANY_REQUESTS, None
    ),
    RefusalKind.RETENTION: _Form(
        "cannot request data older than {limit}, but your query requests data from {asked} ago",
        HTTPStatus.BAD_REQUEST,
        "quota",
        "cannot request data older than {limit_seconds}s",
    ),
    RefusalKind.WINDOW: _Form(
        "cannot request a time range wider than {limit}, but your query time range spans {asked}",
        HTTPStatus.BAD_REQUEST,
        "quota",
        "query time range is too large for {scope} {zone}. "
        "Time range can't be wider than {limit_seconds}s, but it's {asked_seconds}s",
    ),
    RefusalKind.PAGE_SIZE: _Form(
        "limit must be positive number and not greater than {maximum}", HTTPStatus.BAD_REQUEST, "quota"
    ),
    RefusalKind.FIELD_COUNT: _Form("number of fields can't be more than {maximum}", HTTPStatus.BAD_REQUEST, "quota"),
    RefusalKind.TOO_MANY_ZONES: _Form("too many zones requested", HTTPStatus.OK, "quota"),
    # That it is refused is documented, its wording is not.
    RefusalKind.ZONE_LIST: _Form(
        "with account-based rate limiting a list of zones has to be nested in an accounts block",
        HTTPStatus.BAD_REQUEST,
        None,
    ),
    RefusalKind.PATH_ACCESS: _Form("{scope} '{zone}' does not have access to the path", HTTPStatus.FORBIDDEN, "authz"),
    RefusalKind.FIELD_ACCESS: _Form(
        "{scope} '{zone}' does not have access to the field '{field}'", HTTPStatus.FORBIDDEN, "authz"
    ),
    RefusalKind.ZONE_UNAUTHORIZED: _Form(
        "zones [{zone}] are not authorized", HTTPStatus.FORBIDDEN, "authz", "requested zone is not authorized"
    ),
    RefusalKind.ACCOUNT_UNAUTHORIZED: _Form("not authorized for that account", HTTPStatus.FORBIDDEN, "authz"),
    RefusalKind.UNABLE: _Form("unable to execute query", HTTPStatus.OK, None),
    RefusalKind.TOO_BUSY: _Form(
        "too many queries in progress, please try again later", HTTPStatus.SERVICE_UNAVAILABLE, None
    ),
    RefusalKind.INTERNAL: _Form("Internal server error", HTTPStatus.INTERNAL_SERVER_ERROR, None),
}


def refusal(
    kind: RefusalKind,
    dialect: Dialect,
    path: tuple[str, ...] | None = None,
    *,
    node: str | None = None,
    details: Details | None = None,
) -> Refusal:
    """The error of this kind as Cloudflare words it.

    path: from `viewer` on, in either dialect.
    node: the dataset that it is about, where it is about one.
    """
    details = details or Details()
    form = _FORMS[kind]
    is_earlier = dialect is Dialect.EARLIER
    template = form.earlier_message if is_earlier and form.earlier_message is not None else form.message
    message = template.format(
        zone=details.zone_tag,
        scope=details.scope,
        Scope=details.scope.capitalize(),
        field=details.field,
        limit=duration(details.limit_seconds),
        asked=duration(details.asked_seconds),
        limit_seconds=details.limit_seconds,
        asked_seconds=details.asked_seconds,
        maximum=details.maximum,
    )
    if is_earlier and path is not None and node is not None:
        path = (node, *path)
    return Refusal(message, HTTPStatus.OK if is_earlier else form.status, form.code, path)


def usual_path(
    kind: RefusalKind, index: int, key: str, scopes: tuple[str, ...] = ("viewer", "zones")
) -> tuple[str, ...] | None:
    """The path that an error of this kind has: to the field `key` of one element of the list, to the list, or none.

    scopes: the path of the list of zones or accounts.
    """
    if kind in _ABOUT_A_DATASET:
        return (*scopes, str(index), key)
    if kind in _ABOUT_ZONES:
        return scopes
    return ("viewer", "accounts") if kind is RefusalKind.ACCOUNT_UNAUTHORIZED else None


def duration(seconds: int) -> str:
    """Weeks, days, hours, minutes and seconds, without those that are zero: 31,539,600 is `52w1d1h`."""
    text = ""
    for unit, width in (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, width)
        if count:
            text += f"{count}{unit}"
    return text or "0s"
