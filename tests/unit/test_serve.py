import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from msgspec import structs

from tests.clocks import ManualClock
from tests.reports import DESTINATION, REPORT, SCOPE
from worker import serve
from worker.errors import LedgerDamagedError
from worker.health import Health
from worker.observe import Metrics
from worker.serve import STATUS_AGE_SECONDS, create_app
from worker.status import StatusReport

PATHS = ("/", "/metrics", "/-/healthy", "/-/ready", "/api/v1/status")


class Source:
    """Stands for the ledger: hands out its report, or fails, or hangs; and counts how often it was asked."""

    def __init__(self) -> None:
        self.report = REPORT
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.readings = 0

    async def read(self) -> StatusReport:
        self.readings += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return self.report


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Health:
    return Health(clock)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def client(clock: ManualClock, health: Health, source: Source) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics(clock, health, version="0.1.0", sqlite_version="3.54.1")
    app = create_app(metrics, health, source.read, clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        yield client


def make_ready(health: Health) -> None:
    health.ledger_writable()
    health.token_accepted()


async def test_metrics_come_in_the_format_that_the_client_prefers(client: httpx.AsyncClient) -> None:
    text = await client.get("/metrics")
    openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})

    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "cfrw_build_info" in text.text
    assert openmetrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert openmetrics.text.endswith("# EOF\n")


async def test_ready_says_what_is_not_and_since_when(client: httpx.AsyncClient, health: Health) -> None:
    answer = await client.get("/-/ready")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines() == ["not ready", *map(str, health.readiness().problems)]
    assert answer.text.count("(since ") == 2

    make_ready(health)
    answer = await client.get("/-/ready")
    assert (answer.status_code, answer.text) == (200, "ready\n")


async def test_healthy_says_which_loop_hangs(client: httpx.AsyncClient, health: Health, clock: ManualClock) -> None:
    health.expect("collect", allowance_seconds=300, liveness_seconds=60)
    answer = await client.get("/-/healthy")
    assert (answer.status_code, answer.text) == (200, "healthy\n")

    await clock.advance(61)
    answer = await client.get("/-/healthy")
    assert answer.status_code == 503
    assert answer.text.startswith("not healthy\ncollect: has not turned for 1m 1s")


async def test_health_comes_as_json_for_who_asks(client: httpx.AsyncClient, health: Health) -> None:
    answer = await client.get("/-/ready", headers={"accept": "application/json"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert [problem["what"] for problem in answer.json()["problems"]] == ["ledger", "token"]

    make_ready(health)
    answer = await client.get("/-/ready", headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "problems": []})


async def test_the_page_and_the_json_tell_the_same(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    status = await client.get("/api/v1/status")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert DESTINATION.url in page.text
    assert status.headers["content-type"] == "application/json"
    assert status.json()["destinations"][0]["url"] == DESTINATION.url
    assert status.json()["readiness"] == {"ok": True, "problems": []}
    assert status.json()["cloudflare"]["token"] == "accepted"


async def test_the_json_has_every_scope_or_the_part_that_was_asked_for(
    client: httpx.AsyncClient, source: Source
) -> None:
    scopes = tuple(structs.replace(SCOPE, name=str(number), missing=number) for number in range(300))
    source.report = replace(REPORT, scopes=scopes, scope_count=300)

    whole = (await client.get("/api/v1/status")).json()
    part = (await client.get("/api/v1/status", params={"offset": 1, "limit": 2})).json()

    assert len(whole["scopes"]) == 300
    assert [scope["name"] for scope in part["scopes"]] == ["298", "297"]
    assert part["scope_count"] == 300


@pytest.mark.parametrize("given", ["-1", "x", "1.5", "", "\u0663", "1" * 5000])
@pytest.mark.parametrize("name", ["limit", "offset"])
async def test_a_number_that_is_none_is_a_bad_request(client: httpx.AsyncClient, name: str, given: str) -> None:
    answer = await client.get("/api/v1/status", params={name: given})

    assert answer.status_code == 400
    assert answer.text == f"{name} must be a number from 0 to 999999999\n"


async def test_the_ledger_is_read_once_for_all_who_ask_at_a_time(
    client: httpx.AsyncClient, source: Source, clock: ManualClock
) -> None:
    answers = await asyncio.gather(*(client.get(path) for path in ("/", "/api/v1/status") * 20))
    assert {answer.status_code for answer in answers} == {200}
    assert source.readings == 1

    await clock.advance(STATUS_AGE_SECONDS)
    await client.get("/")
    assert source.readings == 2


@pytest.mark.parametrize("path", ["/", "/api/v1/status"])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LedgerDamagedError("/data/ledger.db is damaged;\nrestore it"), "/data/ledger.db is damaged; restore it"),
        (ValueError("hunter2"), "ValueError, see the log"),
        (TimeoutError(), None),
    ],
)
async def test_a_status_that_cannot_be_read_is_one_line_and_503(
    client: httpx.AsyncClient, source: Source, path: str, error: Exception, text: str | None
) -> None:
    source.error = error

    answer = await client.get(path)

    assert answer.status_code == 503
    assert answer.text.count("\n") == 1
    assert text is None or answer.text == f"the status cannot be read: {text}\n"

    source.error = None
    assert (await client.get(path)).status_code == 200


async def test_a_ledger_that_hangs_costs_the_status_and_nothing_else(
    client: httpx.AsyncClient, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "STATUS_SECONDS", 0.01)
    source.open.clear()

    answers = await asyncio.gather(*(client.get("/") for _ in range(5)))

    assert {answer.status_code for answer in answers} == {503}
    assert (await client.get("/-/healthy")).status_code == 200
    source.open.set()
    monkeypatch.setattr(serve, "STATUS_SECONDS", 60.0)
    assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_nothing_can_be_posted(client: httpx.AsyncClient, path: str, method: str) -> None:
    answer = await client.request(method, path)

    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/x", "/metrics/", "/-/", "/api/v1/status/", "/../etc/passwd", "/%2e%2e/"])
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", [*PATHS, "/unknown"])
async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    for answer in (await client.get(path), await client.post(path)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


async def test_a_failure_that_nobody_expected_is_logged_where_secrets_are_taken_out(
    client: httpx.AsyncClient, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(serve.log, "exception", logged.append, raising=False)
    source.error = ValueError("hunter2")

    answer = await client.get("/api/v1/status")

    assert logged == ["the status cannot be read"]
    assert "hunter2" not in answer.text
