"""Reading back from real receivers, and from ones that say whatever a test wants."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import (
    SeenRequest,
    destination,
    replying,
    response,
    saying,
    serving,
)
from tests.receivers import RECEIVERS, Labels, PrometheusServer, Receiver, VictoriaMetricsServer
from worker.config import DestinationSettings
from worker.errors import ConfigError
from worker.remote_write import Fate, Found, Later, ReadBack, Selector, query_url, secrets_of

HOUR_MS = 3_600_000
T0_MS = (int(time.time()) // 3600 - 6) * HOUR_MS
REQUESTS = Selector(("cloudflare_zone_requests",), {})


def series(**labels: str) -> Labels:
    return frozenset({"__name__": "cloudflare_zone_requests", **labels}.items())


async def read(
    settings: DestinationSettings, selector: Selector = REQUESTS, first_ms: int = T0_MS, last_ms: int = T0_MS + HOUR_MS
) -> tuple[Found | Later, int]:
    reader = ReadBack(settings, ManualClock())
    try:
        return await reader.read(selector, first_ms, last_ms), reader.most_samples
    finally:
        await reader.aclose()


async def found(settings: DestinationSettings, selector: Selector, first_ms: int, last_ms: int) -> Found:
    result, _ = await read(settings, selector, first_ms, last_ms)
    assert isinstance(result, Found), result
    return result


async def test_exactly_what_lies_between_two_instants_is_read_both_included(receiver: Receiver) -> None:
    values = [0.0, -0.0, 1.0, 2.0**53, 17.0]
    stored = {T0_MS + hour * HOUR_MS: value for hour, value in enumerate(values)}
    odd = 'a"b\\c.d|e{}\n'
    await receiver.push({series(zone="a.example"): stored, series(zone=odd): {T0_MS + HOUR_MS: 1.5}})
    await receiver.push({series(zone="axexample"): stored, frozenset({("__name__", "other")}): {T0_MS: 1.0}})
    await receiver.read_all()  # VictoriaMetrics: what was stored can be found from now on
    settings = destination(receiver.write_url)

    everything = await found(settings, REQUESTS, T0_MS, T0_MS + 4 * HOUR_MS)
    assert len(everything.series) == 3
    assert everything.series[series(zone="a.example")] == list(stored.items())
    assert everything.series[series(zone=odd)] == [(T0_MS + HOUR_MS, 1.5)]

    some = Selector(("cloudflare_zone_requests", "other"), {"zone": ("a.example", odd)})
    inner = await found(settings, some, T0_MS + HOUR_MS, T0_MS + 2 * HOUR_MS)
    assert {labels: [at for at, _ in samples] for labels, samples in inner.series.items()} == {
        series(zone="a.example"): [T0_MS + HOUR_MS, T0_MS + 2 * HOUR_MS],
        series(zone=odd): [T0_MS + HOUR_MS],
    }
    assert (await found(settings, some, T0_MS + 1, T0_MS + HOUR_MS - 1)).series == {}
    is_victoria = "victoria" in receiver.program.name
    assert (everything.relative_error > 0) == is_victoria
    if not is_victoria:
        assert math.copysign(1, everything.series[series(zone="a.example")][1][1]) == -1


@pytest.mark.parametrize("receiver", ["victoria-metrics"], indirect=True)
async def test_what_is_stored_twice_is_read_twice(receiver: Receiver) -> None:
    for value in (1.0, 1.0, 2.0):
        await receiver.push({series(): {T0_MS: value}})
    await receiver.read_raw()

    twice = await found(destination(receiver.write_url), REQUESTS, T0_MS, T0_MS)

    assert sorted(twice.series[series()]) == [(T0_MS, 1.0), (T0_MS, 1.0), (T0_MS, 2.0)]


def matrix(*samples: tuple[int, str], warnings: tuple[str, ...] = ()) -> bytes:
    result = [
        {"metric": {"__name__": "cloudflare_zone_requests"}, "values": [[at / 1000, text] for at, text in samples]}
    ]
    data = {"resultType": "matrix", "result": result}
    return response(200, json.dumps({"status": "success", "data": data, "warnings": warnings}))


def prometheus(answer: Callable[[str, int], bytes]) -> Callable[[SeenRequest], bytes]:
    """Answers a query, given as its text and the length of its range; nothing else is there."""

    def reply(request: SeenRequest) -> bytes:
        if "/api/v1/export" in request.line:
            return response(404, "404 page not found")
        query = parse_qs(request.body.decode())["query"][0]
        return answer(query, int(query.rpartition("[")[2].removesuffix("ms]")))

    return reply


async def test_a_query_carries_what_a_write_carries() -> None:
    async with serving(replying(prometheus(lambda *_: matrix((T0_MS, "1"))))) as server:
        settings = destination(
            "http://192.0.2.1/api/v1/push",
            headers={"X-Scope-OrgID": "team"},
            query_url=f"{server.url}/below?key=canary",
            authorization={"credentials": "canary-token"},
        )
        result, _ = await read(settings)
    assert isinstance(result, Found)
    request = server.requests[-1]
    assert request.line.startswith("POST /api/v1/write/below/api/v1/query?key=canary ")
    assert request.header("X-Scope-OrgID") == "team"
    assert request.header("Authorization") == "Bearer canary-token"
    assert request.header("X-Read-Consistency") == "strong"
    assert "canary" in set(secrets_of(settings))


async def test_what_is_too_much_is_asked_for_in_halves_and_remembered() -> None:
    asked: list[tuple[int, int]] = []

    def answer(query: str, length_ms: int) -> bytes:
        names = query.count("|") + 1
        asked.append((names, length_ms))
        if length_ms > HOUR_MS / 2 + 1 or names > 1:
            return response(422, '{"status":"error","errorType":"execution","error":"too many samples"}')
        return matrix((T0_MS, "1"))

    async with serving(replying(prometheus(answer))) as server:
        result, most = await read(destination(server.url))
        assert isinstance(result, Found)
        assert asked == [(1, HOUR_MS + 1), (1, HOUR_MS // 2 + 1), (1, HOUR_MS // 2)]
        assert most == 2_500
        # Zones are halved first, as that makes series fewer as well; what is one window already is halved by metrics.
        names = Selector(("a", "b"), {})
        asked.clear()
        assert isinstance((await read(destination(server.url), names, T0_MS, T0_MS))[0], Found)
        assert asked == [(2, 1), (1, 1), (1, 1)]


async def test_a_victoria_metrics_that_is_asked_for_too_much_at_first_stays_one() -> None:
    def reply(request: SeenRequest) -> bytes:
        form = parse_qs(request.body.decode())
        if "/api/v1/query" in request.line:
            return matrix((T0_MS, "1"))
        if float(form["end"][0]) - float(form["start"][0]) > 1800:
            return response(422, "too many series")
        return response(200, "", "Content-Type: application/stream+json; charset=utf-8\r\n")

    async with serving(replying(reply)) as server:
        result, _ = await read(destination(server.url))
    assert isinstance(result, Found)
    assert result.relative_error > 0


@pytest.mark.parametrize("name", RECEIVERS)
async def test_the_limits_of_real_receivers_are_kept_to(
    name: str, required_program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.receivers.MAX_SAMPLES_PER_QUERY", 30)
    program = required_program(name)
    limited = (
        PrometheusServer(program, out_of_order_seconds=86_400)
        if name.startswith("prometheus")
        else VictoriaMetricsServer(program, extra_flags=["-search.maxExportSeries=3"])
    )
    stored = {
        series(zone=f"zone-{zone}"): {T0_MS + minute * 60_000: float(zone * minute) for minute in range(20)}
        for zone in range(8)
    }
    async with limited as receiver:
        await receiver.push(stored)
        await receiver.read_all('{zone="zone-0"}')
        selector = Selector(("cloudflare_zone_requests",), {"zone": tuple(f"zone-{zone}" for zone in range(8))})
        result, most = await read(destination(receiver.write_url), selector)
    assert isinstance(result, Found), result
    assert {labels: dict(samples) for labels, samples in result.series.items()} == stored
    assert most < 5_000


async def test_an_answer_that_is_larger_than_is_read_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.remote_write.read_back._BODY_BYTES", 1000)

    def answer(_: str, length_ms: int) -> bytes:
        return matrix(*[(T0_MS, "1")] * (length_ms // 60_000))

    async with serving(replying(prometheus(answer))) as server:
        result, most = await read(destination(server.url))
    assert isinstance(result, Found)
    assert most < 5_000


async def test_half_an_answer_is_none() -> None:
    line = b'{"metric":{"__name__":"a"},"values":[1],"timestamps":[1]}\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/stream+json\r\nContent-Length: 1000\r\n\r\n"
    async with serving(saying(head + line)) as server:
        result, _ = await read(destination(server.url), last_ms=T0_MS)
    assert isinstance(result, Later)
    assert "breaks off" in result.reason
    assert result.fate is Fate.RETRY


@pytest.mark.parametrize(
    ("answer", "fate", "words"),
    [
        (response(401, "who are you canary-token"), Fate.PARK, "does not accept the credentials"),
        (response(403), Fate.PARK, "does not let these credentials read"),
        (response(404), Fate.PARK, "check query_url"),
        (response(302, headers="Location: http://elsewhere/?canary-token\r\n"), Fate.PARK, "redirects"),
        (response(429, headers="Retry-After: 7\r\n"), Fate.RATE_LIMITED, "no reason"),
        (response(500, "oh"), Fate.RETRY, "oh"),
        (response(422, "parse error"), Fate.PARK, "parse error"),
        (response(503, "query timed out in expression evaluation"), Fate.RETRY, "timed out"),
        (response(200, "<html>welcome</html>"), Fate.PARK, "no answer of a query API"),
        (response(200, '{"status":"success","data":{"resultType":"vector","result":[]}}'), Fate.PARK, "query API"),
        (matrix(warnings=("a store is away: canary-token",)), Fate.RETRY, "a store is away"),
    ],
)
async def test_what_is_not_an_answer_is_told(answer: bytes, fate: Fate, words: str) -> None:
    async with serving(replying(lambda _: answer)) as server:
        settings = destination(server.url, authorization={"credentials": "canary-token"})
        result, _ = await read(settings, last_ms=T0_MS)
    assert isinstance(result, Later)
    assert result.fate is fate
    assert words in result.reason
    assert "canary" not in result.reason
    assert result.retry_after_seconds == (7.0 if fate is Fate.RATE_LIMITED else None)


async def test_a_receiver_that_says_nothing_is_left_after_a_few_halves() -> None:
    async with serving(saying(then_close=False)) as server:
        result, _ = await read(destination(server.url, timeout_seconds=0.05))
    assert isinstance(result, Later)
    assert result.fate is Fate.RETRY
    assert "no answer came" in result.reason


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://p:9090/api/v1/write", "http://p:9090/"),
        ("http://p/prefix/api/v1/write", "http://p/prefix"),
        ("http://m/api/v1/push?key=x", "http://m/prometheus?key=x"),
        ("https://g.example/api/prom/push", "https://g.example/api/prom"),
        ("https://aps.example/workspaces/ws-1/api/v1/remote_write", "https://aps.example/workspaces/ws-1"),
        ("http://vminsert/insert/0/prometheus/api/v1/write", None),
        ("http://thanos/api/v1/receive", None),
    ],
)
def test_the_query_api_is_where_the_url_says_or_has_to_be_set(url: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="remote_write main: query_url: is required to read back"):
            query_url(destination(url))
    else:
        assert str(query_url(destination(url))) == expected
    assert str(query_url(destination(url, query_url="http://q/base"))) == "http://q/base"
