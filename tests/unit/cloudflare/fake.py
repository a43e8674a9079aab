"""A Cloudflare that answers from a function, for tests of the client's side."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import httpx
import msgspec
from graphql import FieldNode, OperationDefinitionNode, parse

from tests.clocks import ManualClock
from worker.cloudflare import ApiFailure, CloudflareApi, Quota, Zone
from worker.cloudflare.decode import Answers, Decoder
from worker.cloudflare.query import WindowsQuery

TOKEN = "canary-token-7Yx0"
# Nothing goes there. Of an address with TLS, each client would read all authorities first: 25 ms.
API_URL = "http://api.test/client/v4"
NOW = 1_750_000_000


def tag(number: int) -> str:
    return f"{number:032x}"


def zone(number: int, name: str | None = None, account: str = "Example Inc") -> Zone:
    return Zone(tag(number), name or f"zone{number}.example", tag(0xACC), account)


@dataclass(frozen=True)
class Asked:
    """A query, as the other side reads it; `zones` are the tags of the scopes, whatever they are.

    account: the account that was asked for, or that its zones were asked for through.
    """

    text: str
    nodes: tuple[str, ...]
    zones: tuple[str, ...]
    since: str
    until: str
    limits: tuple[int, ...]
    account: str | None = None

    @property
    def node(self) -> str:
        return self.nodes[0]

    @property
    def limit(self) -> int:
        return self.limits[0]

    @property
    def since_seconds(self) -> int:
        return seconds(self.since)

    @property
    def until_seconds(self) -> int:
        return seconds(self.until)


def seconds(moment: str) -> int:
    parsed = datetime.fromisoformat(moment)
    return int(parsed.replace(tzinfo=UTC).timestamp())


def instant(moment: int, *, date: bool = False) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d" if date else "%Y-%m-%dT%H:%M:%SZ")


def row(start: str, requests: float = 1, **changed: Any) -> dict[str, Any]:
    """A row with every field of the HTTP rollups; `changed` replaces fields of `sum`."""
    total: dict[str, Any] = {
        "requests": requests,
        "bytes": 10 * requests,
        "cachedRequests": 0,
        "cachedBytes": 0,
        "encryptedRequests": requests,
        "encryptedBytes": 10 * requests,
        "pageViews": 0,
        "threats": 0,
        "countryMap": [{"clientCountryName": "DE", "requests": requests, "bytes": 10 * requests, "threats": 0}],
        "responseStatusMap": [{"edgeResponseStatus": 200, "requests": requests}],
        "contentTypeMap": [{"edgeResponseContentTypeName": "html", "requests": requests, "bytes": 10 * requests}],
        "browserMap": [{"uaBrowserFamily": "Firefox", "pageViews": 0}],
        "clientHTTPVersionMap": [{"clientHTTPProtocol": "HTTP/2", "requests": requests}],
        "clientSSLMap": [{"clientSSLProtocol": "TLSv1.3", "requests": requests}],
        "ipClassMap": [{"ipType": "noRecord", "requests": requests}],
        "threatPathingMap": [],
    }
    return {"dimensions": {"start": start}, "sum": {**total, **changed}, "uniq": {"uniques": 1}}


def answer(rows: Mapping[str, Sequence[Any]]) -> bytes:
    """The body of a successful answer with these rows per zone tag."""
    return answer_of({each: [found] for each, found in rows.items()})


def answer_of(rows: Mapping[str, Sequence[Sequence[Any]]], kind: str = "zone", *, nested: bool = False) -> bytes:
    """The body of a successful answer with these rows per tag, of every dataset that was asked for.

    nested: whether the zones are those of an account that they were asked for through.
    """
    entries = [
        {f"{kind}Tag": each} | {f"r{number}": list(found) for number, found in enumerate(all_rows)}
        for each, all_rows in rows.items()
    ]
    viewer: dict[str, Any] = {f"{kind}s": entries}
    if nested:
        viewer = {"accounts": [viewer]}
    return msgspec.json.encode({"data": {"viewer": viewer}, "errors": None})


@lru_cache(maxsize=256)
def selections(text: str) -> tuple[FieldNode, ...]:
    """What a query asks for of each scope, one field per dataset."""
    (operation,) = parse(text).definitions
    assert isinstance(operation, OperationDefinitionNode)
    (viewer,) = _fields(operation)
    (scopes,) = _fields(viewer)
    if nested := [each for each in _fields(scopes) if each.name.value == "zones"]:
        (scopes,) = nested
    return tuple(each for each in _fields(scopes) if each.alias)


def _fields(node: OperationDefinitionNode | FieldNode) -> list[FieldNode]:
    return [
        each for each in (node.selection_set.selections if node.selection_set else ()) if isinstance(each, FieldNode)
    ]


def generic_rows(asked: FieldNode, start: str, requests: int) -> list[dict[str, Any]]:
    """The rows of a window of any dataset without maps: every number is `requests`; with labels two rows."""

    def value(field: FieldNode, label: str) -> Any:
        if field.alias:
            return start
        return {each.name.value: value(each, label) for each in _fields(field)} if field.selection_set else requests

    def one(label: str) -> dict[str, Any]:
        found = {each.name.value: value(each, label) for each in _fields(asked)}
        dimensions = next((each for each in _fields(asked) if each.name.value == "dimensions"), None)
        if dimensions:
            found["dimensions"] = {
                (each.alias or each.name).value: start if each.alias else label for each in _fields(dimensions)
            }
        return found

    rows = [one("a"), one("b")]
    has_labels = any(value == "a" for value in rows[0].get("dimensions", {}).values())
    return rows if has_labels else rows[:1]


def decode(body: bytes, query: WindowsQuery, decoder: Decoder | None = None) -> Answers:
    """What an answer says of every dataset and scope asked, also where it cannot be read at all."""
    found = (decoder or Decoder()).decode(body, query)
    if not isinstance(found, ApiFailure):
        return found
    return {(scope.tag, source.dataset.name): found for scope in query.scopes for source in query.sources}


def error(message: str, *, code: str | None = None, path: Sequence[Any] | None = None) -> dict[str, Any]:
    extensions = {"timestamp": "2026-02-22T20:00:00Z"} | ({"code": code} if code else {})
    return {"message": message, "path": path, "extensions": extensions}


def refusal(*errors: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json={"data": None, "errors": list(errors)}, headers=headers)


def requests_in(zone_tag: str, start: int) -> int:
    """The truth of this Cloudflare: requests of a zone in the window that starts then; 0 is no row."""
    return (int(zone_tag, 16) * 31 + start // 60) % 7


class Network(httpx.AsyncBaseTransport):
    """Hands every request to a function; unlike httpx.MockTransport, the answers' bodies are still to be read."""

    def __init__(self, handler: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> None:
        self._handler = handler

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._handler(request)
        if not response.is_stream_consumed:
            return response
        stream = httpx.ByteStream(response.content)
        return httpx.Response(response.status_code, headers=response.headers, stream=stream)


@dataclass
class FakeCloudflare:
    """Answers every GraphQL query from `requests_in`, except where `refuse` says otherwise.

    rest: answers of the REST API, by path; a function of the parameters.
    """

    width_seconds: int = 60
    refuse: Callable[[Asked], httpx.Response | None] = lambda _: None
    rest: Callable[[str, Mapping[str, str]], httpx.Response] = lambda _path, _params: httpx.Response(404, json={})
    asked: list[Asked] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        self.requests.append(request)
        if not request.url.path.endswith("/graphql"):
            path = request.url.path.removeprefix("/client/v4")
            return self.rest(path, dict(request.url.params))
        body = msgspec.json.decode(request.content)
        variables = body["variables"]
        sources = selections(body["query"])
        since, until = (
            next(variables[name] for name in variables if name.startswith(each)) for each in ("since", "until")
        )
        asked = Asked(
            body["query"],
            tuple(source.name.value for source in sources),
            tuple(variables["zones"]) if "zones" in variables else (variables["account"],),
            since,
            until,
            tuple(variables[f"limit{number}"] for number in range(len(sources))),
            variables.get("account"),
        )
        self.asked.append(asked)
        kind = "zone" if "zones" in variables else "account"
        nested = kind == "zone" and asked.account is not None
        return self.refuse(asked) or httpx.Response(200, content=answer_of(self.rows(asked), kind, nested=nested))

    def rows(self, asked: Asked) -> dict[str, list[list[Any]]]:
        return {each: [self.rows_of(asked, source, each) for source in selections(asked.text)] for each in asked.zones}

    def rows_of(self, asked: Asked, source: FieldNode, each: str) -> list[Any]:
        date = "T" not in asked.since
        found: list[Any] = []
        for start in range(asked.since_seconds, asked.until_seconds, self.width_seconds):
            if requests := requests_in(each, start):
                moment = instant(start, date=date)
                if source.name.value.startswith(("httpRequests1m", "httpRequests1h", "httpRequests1d")):
                    found.append(self.row(asked, moment, requests))
                else:
                    found += generic_rows(source, moment, requests)
        return found

    def row(self, asked: Asked, start: str, requests: int) -> dict[str, Any]:
        """Only the fields that the query asks for."""
        whole = row(start, requests)
        return {**whole, "sum": {name: value for name, value in whole["sum"].items() if name in asked.text}}

    def api(self, clock: ManualClock | None = None, **options: Any) -> CloudflareApi:
        clock = clock or ManualClock(NOW)
        return CloudflareApi(api_url=API_URL, token=TOKEN, clock=clock, transport=Network(self), **options)


def small_quota(clock: ManualClock, graphql: int, total: int = 1200) -> Quota:
    return Quota(clock, graphql=graphql, total=total)
