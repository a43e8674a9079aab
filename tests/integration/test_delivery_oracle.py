"""The oracle finds what is wrong with a sender: each test here is a sender with one mistake, and the words for it."""

import asyncio
import base64
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import snappy  # type: ignore[import-untyped]  # ships no types

from tests.clocks import ManualClock
from tests.delivery_oracle import Expectation, Fate, content_of, fates, labels_of, violations
from tests.scripted_receiver import (
    Act,
    Answer,
    Behaviour,
    Keeping,
    Labels,
    Sample,
    ScriptedReceiver,
    Storage,
    Then,
    Version,
    bad,
    bits,
    http,
)
from tests.unit.ledger.fleet import NOW, T0, blocks, buckets, scope
from worker.ledger import Ledger, acknowledge, capture, record_scopes, register_destinations
from worker.remote_write.proto import remote_write_v1_pb2 as v1
from worker.remote_write.proto import remote_write_v2_pb2 as v2

A, B = (tuple(labels_of(block)) for block in blocks(1, 2))
OLD, NEW = T0 * 1000, T0 * 1000 + 60_000

Values = Mapping[Labels, Sequence[tuple[int, float]]]

ALL: Values = {A: [(OLD, 1.0), (NEW, 2.0)], B: [(OLD, 3.0), (NEW, -0.0)]}
OLDER: Values = {A: [(OLD, 1.0)], B: [(OLD, 3.0)]}
NEWER: Values = {A: [(NEW, 2.0)], B: [(NEW, -0.0)]}

DOWN = Act(http(503, b"down"))
REFUSED = Act(http(400, b"no"))


def of(values: Values) -> dict[Sample, int]:
    return {(labels, at): bits(value) for labels, samples in values.items() for at, value in samples}


@dataclass
class Bench:
    """A sender that makes the mistake of a test, and what its ledger would say: everything acknowledged."""

    receiver: ScriptedReceiver
    clock: ManualClock
    http: httpx.AsyncClient
    recorded: dict[Sample, Fate] = field(default_factory=lambda: dict.fromkeys(of(ALL), Fate("acknowledged")))

    async def send(self, values: Values, *, attempt: int = 0, version: Version = Version.V1, **headers: str) -> None:
        content_type, number = version.value
        sent = {
            "Content-Type": content_type,
            "X-Prometheus-Remote-Write-Version": number,
            "Content-Encoding": "snappy",
            **({"Retry-Attempt": str(attempt)} if attempt else {}),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        with contextlib.suppress(httpx.TransportError):
            await self.http.post(self.receiver.url, content=body(values, version), headers=sent)

    def found(
        self,
        expected: Expectation | None = None,
        *,
        secrets: Sequence[str] = (),
        outputs: Mapping[str, bytes] | None = None,
    ) -> str:
        expected = expected or Expectation(backoff=None)
        return "\n".join(violations(of(ALL), self.recorded, self.receiver, expected, secrets=secrets, outputs=outputs))


def body(values: Values, version: Version) -> bytes:
    message = older(values) if version is Version.V1 else newer(values)
    packed: bytes = snappy.compress(message.SerializeToString())
    return packed


def older(values: Values) -> v1.WriteRequest:
    request = v1.WriteRequest()
    for labels, samples in values.items():
        series = request.timeseries.add()
        for name, text in labels:
            series.labels.add(name=name, value=text)
        for at, value in samples:
            series.samples.add(value=value, timestamp=at)
    return request


def newer(values: Values) -> v2.Request:
    symbols = list(dict.fromkeys(["", *(text for labels in values for pair in labels for text in pair)]))
    request = v2.Request(symbols=symbols)
    for labels, samples in values.items():
        series = request.timeseries.add(labels_refs=[symbols.index(text) for pair in labels for text in pair])
        for at, value in samples:
            series.samples.add(value=value, timestamp=at)
    return request


@contextlib.asynccontextmanager
async def a_bench(*behaviours: Behaviour, storage: Storage | None = None) -> AsyncIterator[Bench]:
    clock = ManualClock()
    receiver = ScriptedReceiver(clock, storage, behaviours)
    # There is no TLS here; reading the authorities' certificates takes longer than a test.
    async with receiver.listening(), httpx.AsyncClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as client:
        yield Bench(receiver, clock, client)


def once(name: str, act: Act, times: int = 1) -> Behaviour:
    return Behaviour(name, act, times)


# ------------------------------------------------------------------------------------------- nothing is wrong


@pytest.mark.parametrize("version", Version)
async def test_nothing_is_wrong_with_a_sender_that_does_it_right(version: Version) -> None:
    async with a_bench(once("down", DOWN, 2), once("refused", REFUSED)) as bench:
        for attempt in (0, 1, 2):
            await bench.send(ALL, attempt=attempt, version=version)
        await bench.send(OLDER, version=version)
        await bench.send(NEWER, version=version)
    assert bench.found() == ""
    assert bench.receiver.holds() == of(ALL)
    assert [request.status for request in bench.receiver.requests] == [503, 503, 400, 204, 204]


async def test_a_change_to_the_older_version_is_no_repetition() -> None:
    unknown = Behaviour("unknown version", Act(http(415)), 1, lambda request: request.version is Version.V2)
    async with a_bench(unknown) as bench:
        await bench.send(ALL, version=Version.V2)
        await bench.send(ALL)
    assert bench.found() == ""


async def test_what_the_ledger_says_is_read_from_its_file(tmp_path: Path) -> None:
    captured = buckets([1, 2], range(3))
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(1), scope(2)], NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    await ledger.write(capture, captured, NOW)
    await ledger.write(acknowledge, "prom", [1, 2, 3], NOW)
    recorded = await ledger.read(fates, "prom")
    await ledger.close()
    assert recorded.keys() == content_of(captured).keys()
    of_first = content_of(captured[:3]).keys()
    assert {sample for sample, fate in recorded.items() if fate == Fate("acknowledged")} == of_first
    assert {fate.state for sample, fate in recorded.items() if sample not in of_first} == {"pending"}


# ---------------------------------------------------------------------------------- conservation and invention


async def test_a_sample_that_was_acknowledged_and_not_sent() -> None:
    async with a_bench() as bench:
        await bench.send(OLDER)
    assert "2 of 4 samples: acknowledged and not at the receiver" in bench.found()


async def test_an_answer_that_was_taken_for_one_to_another_request() -> None:
    async with a_bench(once("silent", Act(http(200)))) as bench:
        await bench.send(ALL)
    assert "4 of 4 samples: acknowledged and not at the receiver" in bench.found()


async def test_a_value_of_which_a_bit_is_another() -> None:
    async with a_bench() as bench:
        await bench.send(OLDER)
        await bench.send({A: [(NEW, 2.0)], B: [(NEW, 0.0)]})
    assert "1 of 4 samples: at the receiver with another value" in bench.found()
    assert "request 2 has 1 samples that were not captured so" in bench.found()


async def test_a_sample_that_nobody_captured() -> None:
    async with a_bench() as bench:
        await bench.send(ALL)
        await bench.send({A: [(NEW + 60_000, 2.0)]})
    assert "1 samples are stored that were not captured so" in bench.found()


async def test_a_good_sample_that_is_lost_with_a_bad_one() -> None:
    async with a_bench(storage=Storage(refuses=bad([(A, OLD)]))) as bench:
        await bench.send(ALL)
    bench.recorded = dict.fromkeys(of(ALL), Fate("refused", 400, "too old sample"))
    expected = Expectation(bad=frozenset({(A, OLD)}))
    assert "3 of 4 samples: recorded as refused, though it is good" in bench.found(expected)


@pytest.mark.parametrize("fate", [Fate("refused", 400), Fate("refused", None, "too old"), Fate("expired")])
async def test_a_sample_that_is_given_up_without_saying_why(fate: Fate) -> None:
    async with a_bench(storage=Storage(refuses=bad([(A, OLD)]), keeping=Keeping.GOOD_PART)) as bench:
        await bench.send(ALL)
    bench.recorded[A, OLD] = fate
    expected = Expectation(bad=frozenset({(A, OLD)}), may_be=frozenset({"expired"}))
    assert "1 of 4 samples: " in bench.found(expected)
    assert "without a" in bench.found(expected)


async def test_a_sample_that_is_still_pending_or_not_in_the_ledger_at_all() -> None:
    async with a_bench() as bench:
        await bench.send(ALL)
    bench.recorded[A, OLD] = Fate("pending")
    del bench.recorded[A, NEW]
    assert "1 of 4 samples: in the end pending" in bench.found()
    assert "1 of 4 samples: in the end nowhere" in bench.found()
    assert "the ledger has 3 samples and 4 were captured" in bench.found()


# --------------------------------------------------------------------------------------------------- the requests


async def test_two_requests_with_a_series_at_once() -> None:
    async with a_bench(once("hang", Act(then=Then.HANG))) as bench:
        hanging = asyncio.create_task(bench.send(OLDER))
        await bench.receiver.until(lambda: bench.receiver.happened["hang"] == 1)
        await bench.send(NEWER)
        hanging.cancel()
        await asyncio.wait((hanging,))
    assert "is under way" in bench.found()


@pytest.mark.parametrize(
    "samples", [[(NEW, 2.0), (OLD, 1.0)], [(OLD, 1.0), (OLD, 1.0)]], ids=["descending", "repeated"]
)
async def test_samples_of_a_series_that_do_not_ascend_in_a_request(samples: list[tuple[int, float]]) -> None:
    async with a_bench() as bench:
        await bench.send({A: samples})
    assert "its samples do not ascend" in bench.found()


async def test_labels_and_headers_that_the_specification_forbids() -> None:
    empty: Labels = (("__name__", "m"), ("a", ""))
    async with a_bench() as bench:
        await bench.send({A[::-1]: [(OLD, 1.0)]})
        await bench.send({empty: [(OLD, 1.0)]})
        await bench.send({A: []})
        await bench.send(NEWER, X_Prometheus_Remote_Write_Version="2.0.0")
    assert "not sorted" in bench.found()
    assert "a label is empty" in bench.found()
    assert "it has no sample" in bench.found()
    assert "x-prometheus-remote-write-version is '2.0.0'" in bench.found()


async def test_windows_in_the_wrong_order_or_together_at_a_strict_receiver() -> None:
    strict = Expectation(strict=True, backoff=None)
    async with a_bench() as bench:
        await bench.send(NEWER)
        await bench.send(OLDER)
    assert "behind" in bench.found(strict)
    assert bench.found() == "", "any other receiver takes it"
    async with a_bench() as bench:
        await bench.send(ALL)
    assert "two windows of a series" in bench.found(strict)


async def test_a_window_that_does_not_wait_for_the_one_before_it() -> None:
    async with a_bench(once("down", DOWN)) as bench:
        await bench.send(OLDER)
        await bench.send(NEWER)
        await bench.send(OLDER, attempt=1)
    assert "leaves" in bench.found(Expectation(strict=True, backoff=None))


# ------------------------------------------------------------------------------------------------------- retries


async def test_a_retry_with_other_bytes() -> None:
    async with a_bench(once("down", DOWN)) as bench:
        await bench.send(OLDER)
        await bench.send(ALL, attempt=1)
    assert "it has other bytes" in bench.found()


async def test_a_new_request_in_place_of_a_retry() -> None:
    async with a_bench(once("down", DOWN)) as bench:
        await bench.send(OLDER)
        await bench.send(ALL)
    assert "it is not the same bytes with the next Retry-Attempt" in bench.found()


@pytest.mark.parametrize("attempts", [(0, 0), (0, 2), (0, 1, 1), (1,)])
async def test_attempts_that_are_not_counted(attempts: Sequence[int]) -> None:
    async with a_bench(once("down", DOWN, 3)) as bench:
        for attempt in attempts:
            await bench.send(OLDER, attempt=attempt)
    assert "attempt" in bench.found().lower()


async def test_a_retry_of_what_was_taken_or_refused() -> None:
    async with a_bench() as bench:
        await bench.send(OLDER)
        await bench.send(OLDER, attempt=1)
        await bench.send(NEWER)
        await bench.send(NEWER)
    assert "it repeats what was decided" in bench.found()
    assert "it sends again what was taken" in bench.found()
    async with a_bench(once("refused", REFUSED)) as bench:
        await bench.send(OLDER)
        await bench.send(OLDER)
    assert "it is no part of what was refused" in bench.found()


async def test_a_request_that_is_split_before_it_failed_often_enough() -> None:
    async with a_bench(once("down", DOWN, 2)) as bench:
        await bench.send(ALL)
        await bench.send(ALL, attempt=1)
        await bench.send(OLDER)
        await bench.send(NEWER)
    assert "it is not the same bytes" in bench.found()
    assert bench.found(Expectation(attempts_before_split=2, backoff=None)) == ""


async def test_a_retry_that_does_not_wait() -> None:
    async with a_bench(once("down", DOWN, 2), once("busy", Act(http(429)))) as bench:
        for attempt, wait in ((0, 1.0), (1, 1.9), (2, 9.0), (3, 0.0)):
            await bench.send(ALL, attempt=attempt)
            await bench.clock.advance(wait)
    found = bench.found(Expectation(asked_seconds={"busy": 10.0}))
    assert "request 2" not in found
    assert "request 3, attempt 2, after 2, attempt 1, which has status 503 (down): it came after 1.900 s" in found
    assert "request 4, attempt 3, after 3, attempt 2, which has status 429 (busy): it came after 9.000 s" in found


# ------------------------------------------------------------------------------------------------ bounds, silence


async def test_a_search_for_a_bad_sample_that_tries_them_all() -> None:
    found: dict[str, str] = {}
    for way in ("one by one", "by halves"):
        every = {A: [(OLD + 1000 * index, 0.0) for index in range(64)]}
        culprit = (A, OLD + 20_000)
        async with a_bench(storage=Storage(refuses=bad([culprit]))) as bench:
            parts = [every]
            while parts:
                part = parts.pop()
                await bench.send(part)
                if bench.receiver.requests[-1].status == 400 and len(part[A]) > 1:
                    size = 1 if way == "one by one" else len(part[A]) // 2
                    parts += [{A: part[A][at : at + size]} for at in range(0, len(part[A]), size)]
        recorded = dict.fromkeys(of(every), Fate("acknowledged")) | {culprit: Fate("refused", 400, "too old")}
        expected = Expectation(bad=frozenset({culprit}))
        found[way] = "\n".join(violations(of(every), recorded, bench.receiver, expected))
    assert found["one by one"] == "64 requests looked for 1 bad samples among 64; 16 are enough"
    assert found["by halves"] == ""


async def test_a_secret_in_what_comes_out_in_any_form() -> None:
    async with a_bench() as bench:
        await bench.send(ALL)
    packed = base64.b64encode(b"user:canary")
    for output in (b"... canary ...", b"Basic " + packed):
        found = bench.found(secrets=["canary", "user:canary"], outputs={"the log": output})
        assert "a secret is in the log" in found
    assert bench.found(secrets=["canary"], outputs={"the log": b"******"}) == ""


async def test_a_fault_that_never_happened() -> None:
    async with a_bench(once("down", DOWN), Behaviour("poison", DOWN, to=lambda _request: False)) as bench:
        for attempt in (0, 1):
            await bench.send(ALL, attempt=attempt)
    assert bench.found() == "poison never happened"


# ------------------------------------------------------------------------------------------------- the receiver


async def test_one_kind_of_storage_rolls_a_request_back_and_the_other_keeps_its_good_part() -> None:
    for keeping, stored in ((Keeping.ALL_OR_NOTHING, 0), (Keeping.GOOD_PART, 3)):
        async with a_bench(storage=Storage(keeping, bad([(A, OLD)], 500, "too old"))) as bench:
            await bench.send(ALL, version=Version.V2)
        (request,) = bench.receiver.requests
        assert (request.status, len(bench.receiver.holds())) == (500, stored)


async def test_a_strict_storage_refuses_what_is_older_than_the_newest_and_takes_its_repetition() -> None:
    async with a_bench(storage=Storage(out_of_order=False)) as bench:
        for values in (NEWER, NEWER, OLDER, {A: [(NEW, 7.0)]}):
            await bench.send(values)
    assert [request.status for request in bench.receiver.requests] == [204, 204, 400, 400]
    assert bench.receiver.holds() == of(NEWER)


async def test_a_limit_of_size_is_answered_before_anything_is_stored() -> None:
    size = len(snappy.uncompress(body(OLDER, Version.V1)))
    for storage in (Storage(max_samples=3), Storage(max_bytes=size, too_large=Answer(400, "too big"))):
        async with a_bench(storage=storage) as bench:
            await bench.send(ALL)
            await bench.send(OLDER)
        assert [request.status for request in bench.receiver.requests] == [storage.too_large.status, 204]
        assert bench.receiver.holds() == of(OLDER)


def test_values_are_compared_by_their_bits() -> None:
    stale, quiet = (struct.unpack("<d", struct.pack("<Q", number))[0] for number in (0x7FF0000000000002, 0x7FF8 << 48))
    assert bits(stale) != bits(quiet)
    assert bits(0.0) != bits(-0.0)
