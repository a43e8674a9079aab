import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from worker.clock import SystemClock
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import ConnectionReset, GzipBomb, Slow, TruncatedBody
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve, simulate

QUERY = {"query": "{ cost viewer { budget } }"}
AUTHORIZED = {"Authorization": f"Bearer {ACCEPTED_BEARER}"}


class WatchedClock(ManualClock):
    """Tells when somebody sleeps on it."""

    def __init__(self) -> None:
        super().__init__()
        self.has_sleeper = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.has_sleeper.set()
        await super().sleep(seconds)


class Served:
    def __init__(self, api: SimulatedApi, clock: WatchedClock, url: str, http: httpx.AsyncClient) -> None:
        self.api = api
        self.clock = clock
        self.url = url
        self.http = http

    async def ask(self) -> httpx.Response:
        return await self.http.post(f"{self.url}/graphql", json=QUERY)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    clock = WatchedClock()
    api = SimulatedApi(Fleet(), clock)
    async with serve(api) as url, httpx.AsyncClient(headers=AUTHORIZED) as http:
        yield Served(api, clock, url, http)


async def test_the_api_is_served_on_a_port_of_its_own(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    assert served.url.endswith("/client/v4")
    assert (await served.ask()).json() == {"data": {"cost": 1, "viewer": {"budget": 299}}, "errors": None}
    assert (await served.http.get(f"{served.url}/zones")).json()["result_info"]["total_count"] == 5


async def test_a_connection_is_reset_after_the_query_was_counted(served: Served) -> None:
    served.api.faults.add(ConnectionReset(count=1))
    with pytest.raises(httpx.ReadError):
        await served.ask()
    assert (await served.ask()).json()["data"]["viewer"]["budget"] == 298
    assert served.api.stats.statuses == {0: 1, 200: 1}


async def test_a_body_is_cut_in_its_middle(served: Served) -> None:
    served.api.faults.add(TruncatedBody(count=1))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await served.ask()
    assert (await served.ask()).status_code == 200


async def test_an_answer_waits_for_the_clock_of_the_api(served: Served) -> None:
    served.api.faults.add(Slow(seconds=30, pieces=3))
    waiting = asyncio.create_task(served.ask())
    for _ in range(3):
        await served.clock.has_sleeper.wait()
        served.clock.has_sleeper.clear()
        assert not waiting.done()
        await served.clock.advance(30)
    assert (await waiting).json()["errors"] is None
    assert served.clock.slept == [30, 30, 30]


async def test_a_small_body_may_unpack_to_a_large_one(served: Served) -> None:
    served.api.faults.add(GzipBomb(unpacked_bytes=5_000_000))
    async with served.http.stream("POST", f"{served.url}/graphql", json=QUERY) as response:
        packed = b"".join([block async for block in response.aiter_raw()])
    assert response.headers["Content-Encoding"] == "gzip"
    assert len(packed) < 10_000
    assert len((await served.ask()).content) == 5_000_000


async def test_stopping_does_not_wait_for_requests_in_flight() -> None:
    clock = WatchedClock()
    api = SimulatedApi(Fleet(), clock)
    api.faults.add(Slow(seconds=3_600))
    async with httpx.AsyncClient(headers=AUTHORIZED) as http:
        async with serve(api) as url:
            waiting = asyncio.create_task(http.post(f"{url}/graphql", json=QUERY))
            await clock.has_sleeper.wait()
        with pytest.raises(httpx.TransportError):
            await waiting
        with pytest.raises(httpx.ConnectError):
            await http.post(f"{url}/graphql", json=QUERY)


async def test_a_port_that_is_taken_is_an_error(served: Served) -> None:
    port = httpx.URL(served.url).port
    assert port is not None
    with pytest.raises(OSError, match="in use"):
        async with serve(SimulatedApi(Fleet(), SystemClock()), port=port):
            pass


async def test_a_fleet_is_simulated_until_cancelled() -> None:
    announced: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    simulation = asyncio.create_task(simulate(Fleet(zones=3), SystemClock(), announced.set_result))
    url = await announced
    async with httpx.AsyncClient(headers=AUTHORIZED) as http:
        assert len((await http.get(f"{url}/zones")).json()["result"]) == 3
    simulation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await simulation
