import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from tests import receivers
from tests.receivers import Labels, PrometheusServer, Receiver, ReceiverError, VictoriaMetricsServer, free_port

PROMETHEUS = ("prometheus-2.42", "prometheus-3.5")
VICTORIA_METRICS = ("victoria-metrics", "victoria-metrics-1.79")
HOUR = 3600

RequiredProgram = Callable[[str], Path]
Written = Mapping[Labels, Mapping[int, float]]


def _series(name: str, **labels: str) -> Labels:
    return frozenset({"__name__": name, **labels}.items())


def _last_full_hour() -> int:
    return int(time.time()) // HOUR * HOUR


def _some_samples() -> Written:
    hour_ms = (_last_full_hour() - 5 * HOUR) * 1000
    return {
        _series("cloudflare_zone_requests", zone="a.example"): {hour_ms: 1.0, hour_ms + HOUR * 1000: 123_456_789_012.0},
        _series("cloudflare_zone_requests", zone="b.example"): {hour_ms: 0.0, hour_ms + HOUR * 1000 - 1: 7.0},
        _series("cloudflare_zone_threats", zone='quote" \\ ünïcode'): {hour_ms + 1: 2.5},
    }


async def test_what_was_written_is_read_back_exactly_before_and_after_a_restart(receiver: Receiver) -> None:
    written = _some_samples()
    assert (await receiver.push(written)).status_code == 204
    assert await receiver.read_all() == written
    port, process = receiver.port, receiver.pid

    await receiver.stop()
    with pytest.raises(httpx.ConnectError):
        await receiver.push(written)
    await receiver.start()

    assert receiver.port == port
    assert receiver.pid != process
    assert await receiver.read_all() == written


@pytest.mark.parametrize("name", PROMETHEUS)
async def test_prometheus_keeps_what_it_acknowledged_over_a_kill(required_program: RequiredProgram, name: str) -> None:
    written = _some_samples()
    async with PrometheusServer(required_program(name), out_of_order_seconds=24 * HOUR) as prometheus:
        assert (await prometheus.push(written)).status_code == 204
        await prometheus.kill()
        await prometheus.start()
        assert await prometheus.read_all() == written


async def test_both_ends_of_the_time_range_are_included_and_nothing_beyond(receiver: Receiver) -> None:
    start = _last_full_hour() - 5 * HOUR
    labels = _series("cloudflare_zone_requests")
    around = [start * 1000 + offset for offset in (-1, 0, 1, 999, 1000, 1001)]
    assert (await receiver.push({labels: dict.fromkeys(around, 1.0)})).status_code == 204
    assert await receiver.read_all(start=start, end=start + 1) == {labels: dict.fromkeys(around[1:5], 1.0)}
    assert await receiver.read_all(start=start + 0.999, end=start + 0.999) == {labels: {around[3]: 1.0}}
    assert await receiver.read_all(start=start + 2, end=start + 3) == {}


async def test_only_the_series_asked_for_are_read(receiver: Receiver) -> None:
    written = _some_samples()
    assert (await receiver.push(written)).status_code == 204
    assert {dict(labels)["zone"] for labels in await receiver.read_all('{zone=~"[ab].example"}')} == {
        "a.example",
        "b.example",
    }
    assert await receiver.read_all("nothing_of_this_name") == {}


@pytest.mark.parametrize("name", PROMETHEUS)
async def test_more_samples_than_prometheus_answers_with_at_once_are_read_in_parts(
    required_program: RequiredProgram, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(receivers, "MAX_SAMPLES_PER_QUERY", 10)
    start_ms = (_last_full_hour() - 5 * HOUR) * 1000
    written = {
        _series("cloudflare_zone_requests", zone=zone): {start_ms + offset: float(offset) for offset in range(20)}
        for zone in ("a", "b", "c")
    }
    async with PrometheusServer(required_program(name), out_of_order_seconds=24 * HOUR) as prometheus:
        assert (await prometheus.push(written)).status_code == 204
        assert await prometheus.read_all() == written


@pytest.mark.parametrize("name", PROMETHEUS)
async def test_prometheus_reads_back_every_bit_of_a_float(required_program: RequiredProgram, name: str) -> None:
    start_ms = (_last_full_hour() - 5 * HOUR) * 1000
    values = [0.1 + 0.2, 2.0**53 + 2, 5e-324, -1.5, math.inf, 1e300]
    written = {_series("cloudflare_zone_requests"): {start_ms + index: value for index, value in enumerate(values)}}
    async with PrometheusServer(required_program(name), out_of_order_seconds=24 * HOUR) as prometheus:
        assert (await prometheus.push(written)).status_code == 204
        assert await prometheus.read_all() == written


@pytest.mark.parametrize("name", PROMETHEUS)
async def test_a_prometheus_that_scrapes_itself_refuses_old_samples_without_an_out_of_order_window(
    required_program: RequiredProgram, name: str
) -> None:
    async with PrometheusServer(required_program(name), self_scrape=True) as prometheus:
        refused = await prometheus.push(_some_samples())
        assert refused.status_code == 400
        assert "out of bounds" in refused.text


@pytest.mark.parametrize("name", VICTORIA_METRICS)
async def test_repetitions_in_victoria_metrics_are_seen_and_contradictions_are_errors(
    required_program: RequiredProgram, name: str
) -> None:
    labels = _series("cloudflare_zone_requests", zone="a.example")
    moment_ms = (_last_full_hour() - HOUR) * 1000
    async with VictoriaMetricsServer(required_program(name)) as victoria_metrics:
        for _ in range(2):
            assert (await victoria_metrics.push({labels: {moment_ms: 5.0}})).status_code == 204
            # Read in between, as repetitions within one unflushed block are dropped.
            assert await victoria_metrics.read_all() == {labels: {moment_ms: 5.0}}
        assert await victoria_metrics.read_raw() == {labels: [(moment_ms, 5.0), (moment_ms, 5.0)]}

        assert (await victoria_metrics.push({labels: {moment_ms: 6.0}})).status_code == 204
        with pytest.raises(ReceiverError, match=f"is both .* at {moment_ms} ms"):
            await victoria_metrics.read_all()


async def test_a_port_that_was_taken_meanwhile_is_replaced_by_another(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([receiver.port, receiver.port, free_port()])
    monkeypatch.setattr(receivers, "free_port", lambda: next(ports))
    second = type(receiver)(receiver.program)
    async with second:
        assert second.port != receiver.port
        assert (await second.push(_some_samples())).status_code == 204
        assert await receiver.read_all() == {}


async def test_a_receiver_that_does_not_start_says_why_and_leaves_nothing(required_program: RequiredProgram) -> None:
    broken = PrometheusServer(required_program("prometheus-3.5"), extra_flags=["--no-such-flag"])
    with pytest.raises(ReceiverError, match="no-such-flag"):
        await broken.__aenter__()
    assert not broken.folder.exists()
    with pytest.raises(ReceiverError, match="is not running"):
        assert broken.pid
