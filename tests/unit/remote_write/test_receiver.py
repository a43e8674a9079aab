from collections.abc import AsyncIterator

import httpx
import pytest

from worker.config import Message
from worker.remote_write.encode import compress
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.remote_write.proto.remote_write_v1_pb2 import Label, MetricMetadata, Sample, TimeSeries, WriteRequest
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.series import MetricMetadata as Known

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "User-Agent": "test/1",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
HEADERS_V2 = {
    "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request",
    "X-Prometheus-Remote-Write-Version": "2.0.0",
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


def body_v2(*named_values: tuple[str, dict[int, float]]) -> bytes:
    symbols = ["", "__name__", "help", *dict.fromkeys(name for name, _ in named_values)]
    return compress(
        v2.Request(
            symbols=symbols,
            timeseries=[
                v2.TimeSeries(
                    labels_refs=[1, symbols.index(name)],
                    samples=[v2.Sample(value=value, timestamp=timestamp_ms) for timestamp_ms, value in values.items()],
                    metadata=v2.Metadata(type=v2.Metadata.METRIC_TYPE_GAUGE, help_ref=2),
                )
                for name, values in named_values
            ],
        ).SerializeToString()
    )


async def post(http: httpx.AsyncClient, content: bytes) -> tuple[int, str]:
    response = await http.post("/api/v1/write", content=content)
    return response.status_code, response.text


async def post_v2(http: httpx.AsyncClient, content: bytes) -> tuple[int, str, str | None]:
    """Status, text and how many samples are said to be written."""
    response = await http.post("/api/v1/write", content=content, headers=HEADERS_V2)
    return response.status_code, response.text, written(response)


def written(response: httpx.Response) -> str | None:
    value: str | None = response.headers.get("X-Prometheus-Remote-Write-Samples-Written")
    return value


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


async def test_what_is_sent_in_version_2_is_stored_and_counted(
    receiver: MemoryReceiver, http: httpx.AsyncClient
) -> None:
    assert await post_v2(http, body_v2(("up", {1: 1.0, 2: 0.0}), ("down", {1: 0.5}))) == (204, "", "3")
    assert receiver.samples == {UP: {1: 1.0, 2: 0.0}, DOWN: {1: 0.5}}
    assert receiver.metadata == {"up": Known("help", ""), "down": Known("help", "")}
    # Again, as after an answer that was lost: written as well.
    assert await post_v2(http, body_v2(("up", {1: 1.0, 2: 0.0}))) == (204, "", "2")
    assert receiver.repeated_samples == 2
    assert receiver.requests == {Message.V2: 2}


async def test_the_other_headers_of_version_2_are_there_too(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/write", content=body_v2(("up", {1: 1.0})), headers=HEADERS_V2)
    assert response.headers["X-Prometheus-Remote-Write-Histograms-Written"] == "0"
    assert response.headers["X-Prometheus-Remote-Write-Exemplars-Written"] == "0"


async def test_version_2_keeps_the_good_part_of_a_request_that_it_refuses(
    receiver: MemoryReceiver, http: httpx.AsyncClient
) -> None:
    await post_v2(http, body_v2(("up", {1: 1.0})))
    bad = ("backwards", {2: 1.0, 1: 1.0})
    status, text, samples_written = await post_v2(http, body_v2(("up", {1: 2.0, 2: 8.0}), bad, ("down", {1: 7.0})))
    assert (status, samples_written) == (400, "2")
    assert text == (
        "3 of 5 samples are refused: backwards{}: a sample of 1 ms follows one of 2 ms; "
        "up{} has two values at 1 ms: 1.0 is stored, 2.0 was sent"
    )
    assert receiver.samples == {UP: {1: 1.0, 2: 8.0}, DOWN: {1: 7.0}}
    assert set(receiver.metadata) == {"up", "down"}
    assert receiver.answers == {204: 1, 400: 1}


async def test_a_request_of_which_nothing_is_good_is_told_to_have_written_nothing(
    receiver: MemoryReceiver, http: httpx.AsyncClient
) -> None:
    backwards = ("backwards", {2: 1.0, 1: 1.0})
    assert (await post_v2(http, body_v2(backwards)))[::2] == (400, "0")
    assert await post_v2(http, b"\xff") == (400, "the body is not in Snappy's block format", "0")
    assert receiver.samples == {}


async def test_many_reasons_are_cut_short(http: httpx.AsyncClient) -> None:
    bad = [(f"backwards_{number}", {2: 1.0, 1: 1.0}) for number in range(100)]
    status, text, samples_written = await post_v2(http, body_v2(*bad))
    assert (status, samples_written) == (400, "0")
    assert text.startswith("200 of 200 samples are refused: ")
    assert text.count("follows") == 10


async def test_version_1_is_told_what_was_written_too(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/write", content=body(up={1: 1.0, 2: 2.0}))
    assert (response.status_code, written(response)) == (204, "2")
    response = await http.post("/api/v1/write", content=body(up={3: 1.0}, down={2: 1.0, 1: 1.0}))
    assert (response.status_code, written(response)) == (400, "0")


async def test_metadata_of_version_1_is_kept(receiver: MemoryReceiver, http: httpx.AsyncClient) -> None:
    up = MetricMetadata(type=MetricMetadata.GAUGE, metric_family_name="up", help="help", unit="x")
    assert await post(http, compress(WriteRequest(metadata=[up]).SerializeToString())) == (204, "")
    assert receiver.metadata == {"up": Known("help", "x")}


@pytest.mark.parametrize(("messages", "headers"), [([Message.V1], HEADERS_V2), ([Message.V2], HEADERS)])
async def test_a_message_that_it_does_not_know_is_answered_with_415_and_without_counts(
    messages: list[Message], headers: dict[str, str]
) -> None:
    receiver = MemoryReceiver(messages)
    transport = httpx.ASGITransport(receiver.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://receiver", headers=HEADERS) as http:
        response = await http.post("/api/v1/write", content=b"unread", headers=headers)
    assert response.status_code == 415
    assert response.text.startswith("content-type must be one of: application/x-protobuf")
    assert written(response) is None
    assert receiver.requests == {}


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content-Encoding", "gzip", 415),
        ("Content-Encoding", "", 415),
        ("Content-Type", "application/json", 415),
        ("Content-Type", "", 415),
        ("Content-Type", "application/x-protobuf;proto=io.prometheus.write.v3.Request", 415),
        # The specification allows three values; receivers of the field compare them letter by letter.
        ("Content-Type", "application/x-protobuf; proto=io.prometheus.write.v2.Request", 415),
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
    assert written(response) is None
    assert receiver.samples == {}


@pytest.mark.parametrize("version", ["0.1.0", "2.0", "", "3.0.0"])
async def test_version_2_has_to_name_itself(receiver: MemoryReceiver, http: httpx.AsyncClient, version: str) -> None:
    headers = {**HEADERS_V2, "X-Prometheus-Remote-Write-Version": version}
    response = await http.post("/api/v1/write", content=body_v2(("up", {1: 1.0})), headers=headers)
    assert response.status_code == 400
    assert response.text.startswith("x-prometheus-remote-write-version must be 2.0.0")
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
