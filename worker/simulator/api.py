"""The simulated API: one ASGI application that authenticates, counts, breaks and answers.

Every request goes the same way (`_answered`): it is counted, charged to its token's quota, hit by a fault on the way if
one is up, checked for its token, and only then answered. Queries are executed in a thread on a snapshot of the world,
so a large one does not hold up the event loop that it shares with a worker.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from worker.clock import Clock
from worker.cloudflare.catalogue import Dataset
from worker.simulator import directory, inventory, wire
from worker.simulator.directory import Envelope
from worker.simulator.entitlements import ENTITLEMENTS, Entitlement, Entitlements, QueryLimits
from worker.simulator.events import Events
from worker.simulator.execution import Answer, Asked, World, execute
from worker.simulator.faults import (
    ConnectionReset,
    EntitlementChanged,
    Fault,
    Faults,
    FieldDenied,
    FieldRemoved,
    GraphqlError,
    Incident,
    OddRows,
    Surface,
    TokenRevoked,
    WireFault,
    ZoneChanged,
    ZoneMissing,
)
from worker.simulator.fleet import Account, Fleet, Zone
from worker.simulator.groups import Sampling
from worker.simulator.nodes import shipped_datasets
from worker.simulator.oddities import has_rows, odd
from worker.simulator.quota import Exceeded, Quota, QuotaLimits
from worker.simulator.refusals import NO_ZONE, Details, Dialect, Refusal, RefusalKind, refusal, usual_path
from worker.simulator.schema import schema_of
from worker.simulator.settling import HoldUp, Settling
from worker.simulator.stats import QueryRecord, Stats

BASE_PATH = "/client/v4"
ACCEPTED_BEARER = "simulated-token"
"""The token that a client has to present, unless others are set."""


class _Query(msgspec.Struct):
    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = msgspec.field(default=None, name="operationName")


_Answering = Callable[[Request, str, float], Awaitable[Response]]


class SimulatedApi:
    """Cloudflare's API, as far as the worker needs it, over a fleet whose truth is known.

    fleet:        what there is to see.
    clock:        the API's time; give it the worker's own clock.
    tokens:       those that are accepted; each has quotas of its own.
    seen_by:      the tags of the accounts that a token sees, with their zones; one that is not in it sees the whole
                  fleet.
    settling:     how late traffic becomes visible.
    datasets:     the catalogue whose nodes can be asked, besides the zones' rollups; without, the worker's own.
    sampling:     how adaptive nodes thin out what they count; without, all numbers are exact.
    entitlements: what each plan may ask.
    limits:       what a query may ask.
    quota:        what a token may ask, or with the header X-Rate-Limit-Type: account-based each account and zone.
    dialect:      how errors are worded.
    """

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        *,
        tokens: Collection[str] = (ACCEPTED_BEARER,),
        seen_by: Mapping[str, Collection[str]] | None = None,
        settling: Settling | None = None,
        datasets: Collection[Dataset] | None = None,
        sampling: Sampling | None = None,
        entitlements: Entitlements = ENTITLEMENTS,
        limits: QueryLimits | None = None,
        quota: QuotaLimits | None = None,
        dialect: Dialect = Dialect.RECENT,
    ) -> None:
        self.fleet = fleet
        self.faults = Faults(clock)
        self.stats = Stats()
        self._clock = clock
        self._tokens = frozenset(tokens)
        self._seen_by = seen_by or {}
        self._settling = settling or Settling()
        self._schema = schema_of(shipped_datasets() if datasets is None else tuple(datasets))
        self.events = Events(fleet, self._schema.nodes)
        self._sampling = sampling
        self._entitlements = entitlements
        self._limits = limits or QueryLimits()
        self._quota = Quota(quota or QuotaLimits())
        self._dialect = dialect
        self._app = Starlette(
            routes=[
                Route(f"{BASE_PATH}/user/tokens/verify", self._endpoint("verify", self._verify)),
                Route(f"{BASE_PATH}/accounts", self._endpoint("accounts", self._accounts)),
                Route(f"{BASE_PATH}/zones", self._endpoint("zones", self._zones)),
                *(
                    Route(f"{BASE_PATH}/{path}", self._endpoint(path.rpartition("/")[2], answering))
                    for path, answering in {
                        "zones/{tag}/ssl/certificate_packs": self._certificate_packs,
                        "zones/{tag}/load_balancers": self._load_balancers,
                        "accounts/{tag}/load_balancers/pools": self._pools,
                        "accounts/{tag}/cfd_tunnel": self._tunnels,
                    }.items()
                ),
                Route(f"{BASE_PATH}/graphql", self._endpoint("graphql", self._graphql), methods=["POST"]),
                Route("/admin/faults", self._admin_faults, methods=["GET", "POST", "DELETE"]),
                Route("/admin/stats", self._admin_stats),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _endpoint(self, name: str, answering: _Answering) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await self._answered(request, name, answering)

        return endpoint

    async def _answered(self, request: Request, name: str, answering: _Answering) -> Response:
        now = self._clock.now()
        is_graphql = name == "graphql"
        token, unfit = _bearer_token(request)
        self.stats.requests[name] += 1
        if is_graphql:
            self.stats.query_times.append(now)
        exceeded = self._quota.charge(token, now, is_graphql=is_graphql and not _is_account_based(request))
        surface = Surface.GRAPHQL if is_graphql else Surface.REST
        fault = self._take_wire_fault(surface, token)
        response = Response()
        if not wire.replaces_answer(fault):
            if exceeded is not None:
                response = self._throttled(token, now, exceeded)
            elif unfit is not None:
                response = _enveloped(directory.failure(unfit))
            elif not self._accepts(token):
                no = directory.INVALID_TOKEN if name == "verify" else directory.AUTHENTICATION_ERROR
                response = _enveloped(directory.failure(no))
            else:
                response = await answering(request, token, now)
        if fault is not None:
            response = await wire.broken(fault, response, self._clock)
        # The API's own time, which accelerated or moved clocks make another than the machine's.
        response.headers["Date"] = format_datetime(datetime.fromtimestamp(now, UTC), usegmt=True)
        self.stats.statuses[0 if isinstance(fault, ConnectionReset) else response.status_code] += 1
        return response

    def _take_wire_fault(self, surface: Surface, token: str) -> WireFault | None:
        fault = self.faults.take(
            lambda fault: (
                isinstance(fault, WireFault) and fault.on in {Surface.ALL, surface} and fault.token in {None, token}
            )
        )
        return fault if isinstance(fault, WireFault) else None

    def _accepts(self, token: str) -> bool:
        return token in self._tokens and not self.faults.take(
            lambda fault: isinstance(fault, TokenRevoked) and fault.token in {None, token}
        )

    def _throttled(self, token: str, now: float, exceeded: Exceeded) -> Response:
        match exceeded:
            case Exceeded.GRAPHQL:
                return _graphql_response(_refused(refusal(RefusalKind.BUDGET, self._dialect)), now)
            case Exceeded.ALL:
                wait_seconds = self._quota.seconds_until_open(token, now, exceeded)
                return _enveloped(directory.failure(directory.THROTTLED, wait_seconds))

    async def _verify(self, request: Request, token: str, now: float) -> Response:
        del request, now
        return _enveloped(directory.verified_token(hashlib.blake2b(token.encode(), digest_size=16).hexdigest()))

    async def _accounts(self, request: Request, token: str, now: float) -> Response:
        del now
        return _enveloped(directory.account_list(self._visible_accounts(token), request.query_params))

    async def _zones(self, request: Request, token: str, now: float) -> Response:
        del now
        return _enveloped(directory.zone_list(self._visible_zones(Surface.REST, token), request.query_params))

    async def _certificate_packs(self, request: Request, token: str, now: float) -> Response:
        zone = self._zone(request, token)
        if zone is None:
            return _enveloped(directory.failure(directory.NO_SUCH_OBJECT))
        return _enveloped(directory.page_of(inventory.certificate_packs(zone, now), request.query_params))

    async def _load_balancers(self, request: Request, token: str, now: float) -> Response:
        del now
        zone = self._zone(request, token)
        if zone is None:
            return _enveloped(directory.failure(directory.NO_SUCH_OBJECT))
        return _enveloped(directory.page_of(inventory.load_balancers(zone), request.query_params))

    async def _pools(self, request: Request, token: str, now: float) -> Response:
        account = self._account(request, token)
        if account is None:
            return _enveloped(directory.failure(directory.NO_SUCH_OBJECT))
        return _enveloped(directory.whole(inventory.pools(account, now)))

    async def _tunnels(self, request: Request, token: str, now: float) -> Response:
        account = self._account(request, token)
        if account is None:
            return _enveloped(directory.failure(directory.NO_SUCH_OBJECT))
        return _enveloped(directory.page_of(inventory.tunnels(account, now), request.query_params))

    def _zone(self, request: Request, token: str) -> Zone | None:
        tag = request.path_params["tag"]
        return next((zone for zone in self._visible_zones(Surface.REST, token) if zone.tag == tag), None)

    def _account(self, request: Request, token: str) -> Account | None:
        tag = request.path_params["tag"]
        return next((account for account in self._visible_accounts(token) if account.tag == tag), None)

    async def _graphql(self, request: Request, token: str, now: float) -> Response:
        try:
            query = msgspec.json.decode(await request.body(), type=_Query)
        except msgspec.MsgspecError:
            return _enveloped(directory.failure(directory.BAD_BODY))
        world = self._world(token, now)
        if _is_account_based(request):
            # Whose query this is, and so is counted as, its execution will tell.
            world = replace(world, scope_budgets=lambda tag: max(0, self._quota.budget_left_of_scope(tag, now) - 1))
        answer = await asyncio.to_thread(_execute, query, world)
        if _is_account_based(request) and (exceeded := self._exceeded(answer, now)):
            return _graphql_response(exceeded, now)
        fault = self.faults.take(lambda fault: isinstance(fault, GraphqlError) and _fits(fault, answer))
        if isinstance(fault, GraphqlError):
            answer = await asyncio.to_thread(self._failed, fault, query, world, answer)
        fault = self.faults.take(lambda fault: isinstance(fault, OddRows) and has_rows(answer, fault))
        if isinstance(fault, OddRows):
            answer = replace(answer, data=odd(answer, fault))
        self.stats.queries.append(QueryRecord(now, answer.status, answer.asked, token))
        return _graphql_response(answer, now)

    def _exceeded(self, answer: Answer, now: float) -> Answer | None:
        """Charge a query to the accounts and zones that it is about; the refusal where one of them has none left."""
        used_up = self._quota.charge_scopes(answer.counted, now)
        if used_up is None:
            return None
        details = Details(zone_tag=used_up, scope=answer.counted[used_up])
        return replace(_refused(refusal(RefusalKind.SCOPE_BUDGET, self._dialect, details=details)), asked=answer.asked)

    def _failed(self, fault: GraphqlError, query: _Query, world: World, answer: Answer) -> Answer:
        """What becomes of an answer that a fault turns into an error."""
        target = _target(fault, answer)
        if target is None:
            zone_tag = NO_ZONE
            made_up = refusal(fault.error, self._dialect)
        else:
            asked, zone_tag = target
            path = usual_path(fault.error, asked.scope_tags.index(zone_tag), asked.key, asked.path)
            details = Details(zone_tag=zone_tag, scope=asked.scope)
            made_up = refusal(fault.error, self._dialect, path, node=asked.node, details=details)
        made_up = replace(made_up, message=fault.message or made_up.message, status=fault.status or made_up.status)
        if not fault.is_partial:
            return replace(_refused(made_up), asked=answer.asked)
        incomplete = _execute(query, replace(world, blank_scopes=frozenset({zone_tag})))
        return replace(incomplete, status=made_up.status, refusals=(made_up,))

    def _world(self, token: str, now: float) -> World:
        hold_ups = tuple(
            HoldUp(incident.zone, incident.start, incident.end, incident.delay_seconds, incident.percent)
            for incident in self.faults.of_kind(Incident)
        )
        return World(
            fleet=self.fleet,
            events=self.events,
            schema=self._schema,
            now=now,
            settling=replace(self._settling, hold_ups=self._settling.hold_ups + hold_ups),
            accounts=frozenset(account.tag for account in self._visible_accounts(token)),
            zones={zone.tag: zone for zone in self._visible_zones(Surface.GRAPHQL, token)},
            entitlements=self._entitlements,
            changes=_changes(self.faults.of_kind(EntitlementChanged)),
            denied_fields=frozenset(
                (denied.zone, denied.node, denied.field) for denied in self.faults.of_kind(FieldDenied)
            ),
            removed_fields=frozenset((removed.node, removed.field) for removed in self.faults.of_kind(FieldRemoved)),
            blank_scopes=frozenset(),
            sampling=self._sampling,
            limits=self._limits,
            dialect=self._dialect,
            budget_left=self._quota.budget_left(token, now),
            salt=f"{self.fleet.seed}/{len(self.stats.query_times)}",
        )

    def _visible_accounts(self, token: str) -> list[Account]:
        seen = self._seen_by.get(token)
        return [account for account in self.fleet.accounts if seen is None or account.tag in seen]

    def _visible_zones(self, surface: Surface, token: str) -> list[Zone]:
        accounts = self._visible_accounts(token)
        missing = {fault.zone for fault in self.faults.of_kind(ZoneMissing) if fault.on in {Surface.ALL, surface}}
        changes = {fault.zone: fault for fault in self.faults.of_kind(ZoneChanged)}
        return [
            _changed(zone, changes[zone.tag]) if zone.tag in changes else zone
            for zone in self.fleet.zones
            if zone.tag not in missing and zone.account in accounts
        ]

    async def _admin_faults(self, request: Request) -> Response:
        match request.method:
            case "POST":
                try:
                    faults = msgspec.json.decode(await request.body(), type=Fault | list[Fault])
                except msgspec.MsgspecError as error:
                    return Response(f"{error}\n", HTTPStatus.BAD_REQUEST, media_type="text/plain")
                self.faults.add(*(faults if isinstance(faults, list) else [faults]))
            case "DELETE":
                self.faults.clear()
            case _:
                pass
        return _json(HTTPStatus.OK, self.faults.active())

    async def _admin_stats(self, request: Request) -> Response:
        del request
        return _json(HTTPStatus.OK, {**self.stats.as_json(), "faults": dict(self.faults.hits)})


def _bearer_token(request: Request) -> tuple[str, tuple[int, int, str] | None]:
    """The token that the request carries, or "" and what is wrong with its headers."""
    header = request.headers.get("Authorization")
    if header is None:
        return "", directory.MISSING_HEADERS
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return "", directory.INVALID_HEADERS
    return token.strip(), None


def _is_account_based(request: Request) -> bool:
    """Whether its queries are to be counted by account and zone instead of by token."""
    return request.headers.get("X-Rate-Limit-Type") == "account-based"


def _execute(query: _Query, world: World) -> Answer:
    return execute(query.query, query.variables or {}, query.operation_name, world)


def _refused(reason: Refusal) -> Answer:
    return Answer(reason.status, None, (reason,), ())


def _fits(fault: GraphqlError, answer: Answer) -> bool:
    """Whether the fault is about something that the query asked for; a query that fails anyhow is left alone."""
    if answer.refusals:
        return False
    return (fault.zone is None and fault.node is None) or _target(fault, answer) is not None


def _target(fault: GraphqlError, answer: Answer) -> tuple[Asked, str] | None:
    """The node and the tag of the zone or account that the fault is about, if the query asked for any."""
    for asked in answer.asked:
        tag = fault.zone or next(iter(asked.scope_tags), "")
        if fault.node in {None, asked.node} and tag in asked.scope_tags:
            return asked, tag
    return None


def _changed(zone: Zone, change: ZoneChanged) -> Zone:
    return replace(
        zone, name=change.name or zone.name, plan=change.plan or zone.plan, status=change.status or zone.status
    )


def _changes(
    faults: Sequence[EntitlementChanged],
) -> dict[tuple[str, str], Callable[[Entitlement], Entitlement]]:
    """What is put up about each zone's or account's node, joined in order: the latest counts."""
    by_node: dict[tuple[str, str], list[EntitlementChanged]] = {}
    for fault in faults:
        by_node.setdefault((fault.scope, fault.node), []).append(fault)
    return {key: partial(_reentitled, several) for key, several in by_node.items()}


def _reentitled(faults: Sequence[EntitlementChanged], entitlement: Entitlement) -> Entitlement:
    for fault in faults:
        given = {
            name: value
            for name in ("is_enabled", "max_duration_seconds", "not_older_than_seconds", "max_page_size", "max_fields")
            if (value := getattr(fault, name)) is not None
        }
        denied_fields = entitlement.denied_fields.union(fault.denied_fields)
        entitlement = replace(entitlement, denied_fields=denied_fields, **given)
    return entitlement


def _graphql_response(answer: Answer, now: float) -> Response:
    errors = [reason.as_json(now) for reason in answer.refusals] or None
    return _json(answer.status, {"data": answer.data, "errors": errors})


def _enveloped(envelope: Envelope) -> Response:
    response = _json(envelope.status, envelope.body)
    if envelope.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(envelope.retry_after_seconds)
    return response


def _json(status: int, content: Any) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
