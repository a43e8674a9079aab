"""How old samples may be, found out at real receivers that have a sample of now."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.receivers import PrometheusServer, Receiver, VictoriaMetricsServer
from worker.check.dashboards import OWN, TRAFFIC, look_at_dashboards
from worker.check.finding import Finding, State
from worker.check.memory import Memory
from worker.check.probe import MAX_REQUESTS, PROBE_METRIC
from worker.check.receiver import Ages, look_at_receiver
from worker.clock import SystemClock
from worker.cloudflare import shipped
from worker.config import DestinationSettings
from worker.datasets import Chosen
from worker.ledger import Room, Scope
from worker.remote_write import ReadBack, RemoteWriteClient

RequiredProgram = Callable[[str], Path]

MINUTE, HOUR = 60, 3600
AGES = Ages(first_seconds=71 * MINUTE, oldest_seconds=25 * HOUR, end_seconds=11 * MINUTE, replay_hours=24)
PROMETHEUS = ("prometheus-2.42", "prometheus-3.5")


async def looked(receiver: Receiver, **changes: object) -> list[Finding]:
    clock = SystemClock()
    settings = DestinationSettings.model_validate({"name": "it", "url": receiver.write_url} | changes)
    client = RemoteWriteClient(settings, clock)
    try:
        return [each async for each in look_at_receiver(settings, client, clock, AGES, probe=True)]
    finally:
        await client.aclose()


async def now_is_known_to(receiver: Receiver) -> None:
    newest = {frozenset({("__name__", "up")}): {int(time.time() * 1000): 1.0}}
    assert (await receiver.push(newest)).status_code == 204


async def probes(receiver: Receiver) -> list[int]:
    """How many samples each series of the probe has."""
    return sorted(len(samples) for samples in (await receiver.read_all(PROBE_METRIC)).values())


@pytest.mark.parametrize("name", PROMETHEUS)
@pytest.mark.parametrize(
    ("window_seconds", "state", "told"),
    [
        (None, State.FAILURE, "its window ends between 50m and 1h 10m"),
        (8 * HOUR, State.WARNING, "its window ends between 6h and 9h"),
        (48 * HOUR, State.OK, "takes samples of 1d 1h"),
    ],
)
async def test_the_window_of_a_prometheus_is_found_and_found_again(
    *, required_program: RequiredProgram, name: str, window_seconds: int | None, state: State, told: str
) -> None:
    async with PrometheusServer(required_program(name), out_of_order_seconds=window_seconds) as prometheus:
        await now_is_known_to(prometheus)
        for run in (1, 2):
            contact, clock, age = await looked(prometheus)
            assert (contact.state, clock.state, age.state) == (State.OK, State.OK, state)
            assert f"remote write {'2.0' if name == 'prometheus-3.5' else '1.0'}" in contact.what
            assert told in age.what
            stored = await probes(prometheus)
            assert set(stored) == {run}
            assert len(stored) <= MAX_REQUESTS


async def test_an_hourly_window_is_still_taken_by_a_strict_prometheus_that_had_nothing_newer(
    required_program: RequiredProgram,
) -> None:
    async with PrometheusServer(required_program("prometheus-3.5")) as prometheus:
        *_, age = await looked(prometheus)
        assert age.state is State.WARNING
        window = {frozenset({("__name__", "hourly")}): {int((time.time() - AGES.first_seconds) * 1000): 1.0}}
        assert (await prometheus.push(window)).status_code == 204


async def test_a_window_that_is_configured_wider_than_it_is_is_told(required_program: RequiredProgram) -> None:
    async with PrometheusServer(required_program("prometheus-3.5"), out_of_order_seconds=26 * HOUR) as prometheus:
        await now_is_known_to(prometheus)
        *_, age = await looked(prometheus, out_of_order_time_window="72h")
        assert age.state is State.WARNING
        assert "out_of_order_time_window is 3d here, but its window ends between 1d 1h and 1d 12h" in age.what


async def test_a_victoria_metrics_takes_samples_of_every_age(required_program: RequiredProgram) -> None:
    async with VictoriaMetricsServer(required_program("victoria-metrics")) as victoria:
        contact, _, age = await looked(victoria)
        assert "remote write 1.0 (it does not know 2.0)" in contact.what
        assert (age.state, await probes(victoria)) == (State.OK, [1, 1])


async def test_what_the_dashboards_show_is_found_at_every_receiver(receiver: Receiver) -> None:
    now = int(time.time())
    catalogue = shipped()
    collected = Chosen((catalogue["http_requests"],), ())
    start = now // HOUR * HOUR - 2 * HOUR
    zone = ("zone_id", "z1")
    written = {frozenset({("__name__", name)}): {(now - 30) * 1000: 1.0} for name in OWN}
    written |= {frozenset({("__name__", name), zone}): {start * 1000: 1.0} for name in TRAFFIC}
    assert (await receiver.push(written)).status_code == 204
    assert await receiver.read_all()  # which makes it show what it has taken
    memory = Memory((Scope("z1", "a.test", "acc", "Acc", ""),), (), {}, {}, Room(0, 0), (start, start))
    settings = DestinationSettings.model_validate({"name": "it", "url": receiver.write_url})
    clock = SystemClock()
    reader = ReadBack(settings, clock)
    try:
        looked_for = [
            [
                (each.state, each.what)
                async for each in look_at_dashboards(
                    settings, reader, collected, known, clock, first_seconds=AGES.first_seconds, width_seconds=HOUR
                )
            ]
            for known in (memory, replace(memory, scopes=(replace(memory.scopes[0], tag="another"),)))
        ]
    finally:
        await reader.aclose()
    own = (State.OK, f"it: {len(OWN)} of {len(OWN)} metrics of the worker itself are there")
    (first, found), (second, nothing) = looked_for
    assert first == second == own
    assert (found[0], nothing[0]) == (State.OK, State.WARNING)
    assert "without" not in found[1]
