"""A Cloudflare that answers from a function, for tests of the client's side."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from tests.clocks import ManualClock
from worker.cloudflare import CloudflareApi, Quota, Zone

TOKEN = "canary-token-7Yx0"
API_URL = "https://api.test/client/v4"
NOW = 1_750_000_000


def tag(number: int) -> str:
    return f"{number:032x}"


def zone(number: int, name: str | None = None, account: str = "Example Inc") -> Zone:
    return Zone(tag(number), name or f"zone{number}.example", tag(0xACC), account)


@dataclass(frozen=True)
class Asked:
    """A query, as the other side reads it."""

    text: str
    node: str
    zones: tuple[str, ...]
    since: str
    until: str
    limit: int

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
    zones = [{"zoneTag": each, "r0": list(found)} for each, found in rows.items()]
    return msgspec.json.encode({"data": {"viewer": {"zones": zones}}, "errors": None})


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
        node = re.search(r"r0: (\w+)\(", body["query"])
        assert node
        variables = body["variables"]
        since, until = (
            next(variables[name] for name in variables if name.startswith(each)) for each in ("since", "until")
        )
        asked = Asked(body["query"], node[1], tuple(variables["zones"]), since, until, variables["limit0"])
        self.asked.append(asked)
        return self.refuse(asked) or httpx.Response(200, content=answer(self.rows(asked)))

    def rows(self, asked: Asked) -> dict[str, list[Any]]:
        spans = range(asked.since_seconds, asked.until_seconds, self.width_seconds)
        date = "T" not in asked.since
        return {
            each: [
                self.row(asked, instant(start, date=date), requests_in(each, start))
                for start in spans
                if requests_in(each, start)
            ]
            for each in asked.zones
        }

    def row(self, asked: Asked, start: str, requests: int) -> dict[str, Any]:
        """Only the fields that the query asks for."""
        whole = row(start, requests)
        return {**whole, "sum": {name: value for name, value in whole["sum"].items() if name in asked.text}}

    def api(self, clock: ManualClock | None = None, **options: Any) -> CloudflareApi:
        clock = clock or ManualClock(NOW)
        return CloudflareApi(api_url=API_URL, token=TOKEN, clock=clock, transport=Network(self), **options)


def small_quota(clock: ManualClock, graphql: int, total: int = 1200) -> Quota:
    return Quota(clock, graphql=graphql, total=total)
