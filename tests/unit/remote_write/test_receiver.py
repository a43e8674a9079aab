from collections.abc import AsyncIterator

import httpx
import pytest

from worker.remote_write.encode import compress
from worker.remote_write.proto.remote_write_v1_pb2 import Label, Sample, TimeSeries, WriteRequest
from worker.remote_write.receiver import Failure, MemoryReceiver

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "User-Agent": "test/1",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
UP = (("__name__", "up"),)
DOWN = (("__name__", "down"),)


@pytest.fixture
def receiver() -> MemoryReceiver:
    return MemoryReceiver()


@pytest.fixture
async def http(receiver: MemoryReceiver) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(receiver.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://receiver", headers=HEADERS) as client:
        yield client


def body(**values_by_name: dict[int, float]) -> bytes:
    return compress(
        WriteRequest(
            timeseries=[
                TimeSeries(
                    labels=[Label(name="__name__", value=name)],
                    samples=[Sample(value=value, timestamp=timestamp_ms) for timestamp_ms, value in values.items()],
                )
                for name, values in values_by_name.items()
            ]
        ).SerializeToString()
    )


async def post(http: httpx.AsyncClient, content: bytes) -> tuple[int, str]:
    response = await http.post("/api/v1/write", content=content)
    return response.status_code, response.text


async def test_what_is_sent_is_stored_and_answered_with_204(receiver: MemoryReceiver, http: httpx.AsyncClient) -> None:
    assert await post(http, body(up={1: 1.0, 2: 0.0}, down={1: 0.5})) == (204, "")
    assert receiver.samples == {UP: {1: 1.0, 2: 0.0}, DOWN: {1: 0.5}}
    assert receiver.answers == {204: 1}


async def test_the_same_again_changes_nothing(receiver: MemoryReceiver, http: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert await post(http, body(up={1: float("nan"), 2: -0.0})) == (204, "")
    assert receiver.repeated_samples == 2
    assert len(receiver.samples[UP]) == 2


@pytest.mark.parametrize(("first", "second"), [(1.0, 2.0), (0.0, -0.0), (1.0, float("nan"))])
async def test_another_value_for_a_timestamp_is_refused_and_nothing_of_its_request_is_stored(
    receiver: MemoryReceiver, http: httpx.AsyncClient, first: float, second: float
) -> None:
    await post(http, body(up={1: first}))
    status, text = await post(http, body(down={1: 7.0}, up={1: second, 2: 8.0}))
    assert (status, text) == (400, f"up{{}} has two values at 1 ms: {first!r} is stored, {second!r} was sent")
    assert receiver.samples == {UP: {1: first}}
    assert receiver.repeated_samples == 0
    assert receiver.answers == {204: 1, 400: 1}


async def test_a_broken_rule_is_refused_by_its_name(receiver: MemoryReceiver, http: httpx.AsyncClient) -> None:
    status, text = await post(http, body(up={2: 1.0, 1: 1.0}))
    assert (status, text) == (400, "up{}: a sample of 1 ms follows one of 2 ms")
    assert receiver.samples == {}


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content-Encoding", "gzip", 415),
        ("Content-Encoding", "", 415),
        ("Content-Type", "application/json", 415),
        ("Content-Type", "application/x-protobuf;proto=io.prometheus.write.v2.Request", 415),
        ("X-Prometheus-Remote-Write-Version", "2.0.0", 400),
        ("X-Prometheus-Remote-Write-Version", "", 400),
        ("User-Agent", "", 400),
    ],
)
async def test_a_header_that_is_missing_or_wrong_is_refused_by_its_name(
    receiver: MemoryReceiver, http: httpx.AsyncClient, header: str, value: str, status: int
) -> None:
    response = await http.post("/api/v1/write", content=body(up={1: 1.0}), headers={header: value})
    assert response.status_code == status
    assert response.text.startswith(header.lower())
    assert receiver.samples == {}


async def test_the_full_content_type_of_version_1_is_taken_too(http: httpx.AsyncClient) -> None:
    content_type = "application/x-protobuf;proto=prometheus.WriteRequest"
    response = await http.post("/api/v1/write", content=body(up={1: 1.0}), headers={"Content-Type": content_type})
    assert response.status_code == 204


async def test_it_fails_as_it_is_told_until_it_is_told_otherwise(
    receiver: MemoryReceiver, http: httpx.AsyncClient
) -> None:
    receiver.failure = Failure(429, "slow down", retry_after="7")
    response = await http.post("/api/v1/write", content=body(up={1: 1.0}))
    assert (response.status_code, response.text, response.headers["Retry-After"]) == (429, "slow down", "7")
    receiver.failure = Failure(503)
    response = await http.post("/api/v1/write", content=body(up={1: 1.0}))
    assert response.status_code == 503
    assert "Retry-After" not in response.headers
    receiver.failure = None
    assert await post(http, body(up={1: 1.0})) == (204, "")
    assert receiver.answers == {429: 1, 503: 1, 204: 1}


async def test_only_post_is_taken(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/v1/write")).status_code == 405
    assert (await http.post("/elsewhere")).status_code == 404
