import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.dashboard import Query, queries
from tests.receivers import Labels, PrometheusServer
from worker.cloudflare.catalogue import shipped

HOUR = 3600
WINDOWS = 24
ZONES = ("a.example", "b.example")


def _traffic(first: int) -> dict[Labels, dict[int, float]]:
    """Two zones with different numbers in every hourly window, each stamped at its window's start."""
    series: dict[Labels, dict[int, float]] = {}
    for dataset in shipped().values():
        for metric, broken_down in dataset.metrics():
            for factor, zone in enumerate(ZONES, start=1):
                labels = {"__name__": metric.name, "zone": zone, "zone_id": f"id-{zone}"}
                labels |= dict.fromkeys(broken_down, "one")
                values = {(first + window * HOUR) * 1000: float(factor * (window + 1)) for window in range(WINDOWS)}
                series[frozenset(labels.items())] = values
    return series


async def _ask(prometheus: PrometheusServer, query: Query, start: int, end: int) -> list[Any]:
    async with httpx.AsyncClient(base_url=prometheus.query_url, trust_env=False) as client:
        if query.instant:
            form = {"query": query.filled_in, "time": str(end)}
            answer = await client.post("/api/v1/query", data=form)
        else:
            form = {"query": query.filled_in, "start": str(start), "end": str(end), "step": str(HOUR)}
            answer = await client.post("/api/v1/query_range", data=form)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["data"]["result"]
    return found


async def test_the_dashboard_shows_every_window_once_and_at_its_own_time(
    required_program: Callable[[str], Path],
) -> None:
    end = int(time.time()) // HOUR * HOUR
    first = end - (WINDOWS - 1) * HOUR
    traffic = [query for query in queries() if any(name.startswith("cloudflare_") for name in query.metrics)]
    async with PrometheusServer(required_program("prometheus-3.5"), out_of_order_seconds=72 * HOUR) as prometheus:
        assert (await prometheus.push(_traffic(first))).status_code == 204

        for query in traffic:
            assert await _ask(prometheus, query, first, end), query

        (requests,) = (query for query in traffic if query.panel == "Requests per second")
        shown = {series["metric"]["zone"]: series["values"] for series in await _ask(prometheus, requests, first, end)}
        for factor, zone in enumerate(ZONES, start=1):
            expected = [(first + window * HOUR, factor * (window + 1) / HOUR) for window in range(WINDOWS)]
            assert [(moment, float(value)) for moment, value in shown[zone]] == expected

        (total,) = (query for query in traffic if query.panel == "Requests")
        ((_, value),) = [series["value"] for series in await _ask(prometheus, total, first, end)]
        # 1 + 2 + ... + 24 of one zone, twice that of the other.
        assert float(value) == 3 * WINDOWS * (WINDOWS + 1) / 2
