"""What can be made to go wrong, and what is going wrong now.

Owns the kinds of faults and the board on which they are put up and struck off. A fault is put up by
`POST /admin/faults` as JSON, `{"kind": "http_status", "status": 503, "count": 3}`, or in process by
`faults.add(HttpStatus(status=503, count=3))`. What each does is decided where it bites: on the way (`wire`), in an
answer, or in what the API knows of its zones (`api`).
"""

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

import msgspec

from worker.clock import Clock
from worker.simulator.fleet import Plan, ZoneStatus
from worker.simulator.refusals import RefusalKind


class Surface(StrEnum):
    """Which requests a fault hits."""

    GRAPHQL = "graphql"
    REST = "rest"
    ALL = "all"


class _Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all faults have in common.

    until: when it ends, in unix seconds of the API's clock; without, it stays until it is cleared.
    """

    until: float | None = None


class _RequestFault(_Fault, frozen=True, kw_only=True):
    """A fault of single requests; `count` says how many it hits before it is struck off, without it hits all."""

    count: int | None = None


class _WireFault(_RequestFault, frozen=True, kw_only=True):
    """A fault of the way between client and API, whatever was asked.

    on:    which requests it hits.
    token: only requests with this token; without, all.
    """

    on: Surface = Surface.ALL
    token: str | None = None


class HttpStatus(_WireFault, frozen=True, kw_only=True, tag="http_status"):
    """Another answer instead: an outage (503), a bad gateway, a page of HTML with status 200."""

    status: int = 503
    retry_after_seconds: int | None = None
    is_html: bool = False


class Slow(_WireFault, frozen=True, kw_only=True, tag="slow"):
    """The right answer, but late: in `pieces` of about the same size, with a pause before each."""

    seconds: float
    pieces: int = 1


class TruncatedBody(_WireFault, frozen=True, kw_only=True, tag="truncated_body"):
    """The connection ends in the middle of the body."""


class MalformedJson(_WireFault, frozen=True, kw_only=True, tag="malformed_json"):
    """The body is whole as far as HTTP knows, but its JSON stops in the middle."""


class ConnectionReset(_WireFault, frozen=True, kw_only=True, tag="connection_reset"):
    """The connection is reset instead of an answer, after the request was counted against the quota."""


class GzipBomb(_WireFault, frozen=True, kw_only=True, tag="gzip_bomb"):
    """A body that is small on the way and `unpacked_bytes` long when it is unpacked."""

    unpacked_bytes: int = 1 << 30


class GraphqlError(_RequestFault, frozen=True, kw_only=True, tag="graphql_error"):
    """An error of GraphQL's own, made up.

    error:      which.
    zone:       only for queries that ask for this zone, or this account (its tag).
    node:       only for queries that ask for this dataset.
    status:     the HTTP status, if not the usual one of that error.
    message:    the text, if not the usual one of that error.
    is_partial: whether the answer has data as well: all of it, except that the failed zones' rows are missing.
    """

    error: RefusalKind
    zone: str | None = None
    node: str | None = None
    status: int | None = None
    message: str | None = None
    is_partial: bool = False


class Oddity(StrEnum):
    """What is wrong with rows."""

    DUPLICATED = "duplicated"
    """Every row comes twice."""

    NOT_A_NUMBER = "not_a_number"
    """One number of every row is written NaN, which JSON does not have."""

    HUGE = "huge"
    """One number of every row is 2^53 + 1, the first integer that a float64 does not hold."""

    ENDLESS = "endless"
    """One number of every row is 1e999, which a float64 takes for infinity."""

    NEGATIVE = "negative"
    """One number of every row is below 0."""

    EMPTY = "empty"
    """One object of every row is null, as the schema allows."""


class OddRows(_RequestFault, frozen=True, kw_only=True, tag="odd_rows"):
    """An answer whose rows are not what they should be; hits only answers that have rows.

    scope: only the rows of this zone or account (its tag).
    node:  only those of this node.
    """

    how: Oddity
    scope: str | None = None
    node: str | None = None


class TokenRevoked(_RequestFault, frozen=True, kw_only=True, tag="token_revoked"):
    """No token is accepted, or this one is not."""

    token: str | None = None


class ZoneMissing(_Fault, frozen=True, kw_only=True, tag="zone_missing"):
    """A zone is left out without a word: everywhere as if it had been deleted, or only on one surface."""

    zone: str
    on: Surface = Surface.ALL


class ZoneChanged(_Fault, frozen=True, kw_only=True, tag="zone_changed"):
    """A zone got another name, plan or status."""

    zone: str
    name: str | None = None
    plan: Plan | None = None
    status: ZoneStatus | None = None


class FieldDenied(_Fault, frozen=True, kw_only=True, tag="field_denied"):
    """A zone (or an account) may not select a field, written as `settings` has it: `sum_threats`, `sum_countryMap`."""

    zone: str
    node: str
    field: str


class FieldRemoved(_Fault, frozen=True, kw_only=True, tag="field_removed"):
    """A field of a node, written as `settings` lists it, or the node itself is in the schema no more, for anybody."""

    node: str
    field: str = ""


class EntitlementChanged(_Fault, frozen=True, kw_only=True, tag="entitlement_changed"):
    """A zone or an account may ask something else of a node than its plan says; what is not given stays.

    scope:         its tag.
    denied_fields: in addition to those that its plan denies; see `Entitlement` for the rest.
    """

    scope: str
    node: str
    is_enabled: bool | None = None
    max_duration_seconds: int | None = None
    not_older_than_seconds: int | None = None
    max_page_size: int | None = None
    max_fields: int | None = None
    denied_fields: tuple[str, ...] = ()


class Incident(_Fault, frozen=True, kw_only=True, tag="incident"):
    """Some of the traffic of the minutes in [start, end), unix seconds, becomes visible late, and then all at once.

    zone:          whose (a tag); without, every zone's.
    delay_seconds: how long after a minute's end.
    percent:       how much of it. Some percent with a long delay are what makes a captured bucket drift.
    """

    start: int
    end: int
    delay_seconds: int
    percent: int = 100
    zone: str | None = None


WireFault = HttpStatus | Slow | TruncatedBody | MalformedJson | ConnectionReset | GzipBomb
RequestFault = WireFault | GraphqlError | OddRows | TokenRevoked
WorldFault = ZoneMissing | ZoneChanged | FieldDenied | FieldRemoved | EntitlementChanged | Incident
"""What is so for every request as long as it is up."""
Fault = RequestFault | WorldFault

Kind = TypeVar("Kind", ZoneMissing, ZoneChanged, FieldDenied, FieldRemoved, EntitlementChanged, Incident)


class Faults:
    """The board of faults; the oldest one that fits a request hits it.

    hits: how many requests each kind has hit.
    """

    def __init__(self, clock: Clock) -> None:
        self.hits: Counter[str] = Counter()
        self._clock = clock
        self._board: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        self._board.extend(faults)

    def clear(self) -> None:
        self._board.clear()

    def active(self) -> tuple[Fault, ...]:
        """The faults that are up, each with the count that is left."""
        now = self._clock.now()
        self._board = [fault for fault in self._board if fault.until is None or now < fault.until]
        return tuple(self._board)

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """The faults of one kind that are up."""
        return [fault for fault in self.active() if isinstance(fault, kind)]

    def take(self, fits: Callable[[RequestFault], bool]) -> RequestFault | None:
        """The oldest fault that fits a request, counted as a hit, or None."""
        for place, fault in enumerate(self.active()):
            if isinstance(fault, RequestFault) and fits(fault):
                self.hits[str(fault.__struct_config__.tag)] += 1
                if fault.count is not None:
                    left = msgspec.structs.replace(fault, count=fault.count - 1)
                    self._board[place : place + 1] = [left] if left.count else []
                return fault
        return None
