from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.clocks import ManualClock
from tests.dashboard import queries
from tests.unit.cloudflare.datasets import HTTP_OVERVIEW, HTTP_REQUESTS
from worker.check.dashboards import OWN, TRAFFIC, look_at_dashboards
from worker.check.finding import Finding, State
from worker.check.memory import Memory
from worker.config import DestinationSettings
from worker.datasets import Chosen
from worker.errors import ConfigError, Mistake
from worker.ledger import Room, Scope
from worker.remote_write import Fate, Found, Later, Selector

HOUR = 3600
NOW = 1_750_000_000
UNLABELLED = tuple(metric.name for metric, labels in HTTP_REQUESTS.metrics() if not labels and metric.name in TRAFFIC)
MEMORY = Memory((Scope("t1", "a.test", "acc", "Acc", "pro"),), (), {}, {}, Room(0, 0), (NOW - 5 * HOUR, NOW - 2 * HOUR))


class Reader:
    """Has a sample of each of these metrics, or answers the same to everything."""

    def __init__(self, *there: str, says: Later | None = None) -> None:
        self.asked: list[tuple[Selector, int, int]] = []
        self._there = there
        self._says = says

    async def read(self, selector: Selector, first_ms: int, last_ms: int) -> Found | Later:
        self.asked.append((selector, first_ms, last_ms))
        names = [name for name in selector.metrics if name in self._there]
        return self._says or Found({frozenset({("__name__", name)}): [(last_ms, 1.0)] for name in names})


async def looked(
    reader: Reader | ConfigError,
    *,
    memory: Memory | None = MEMORY,
    datasets: Sequence[object] = (HTTP_REQUESTS,),
    query_url: str | None = None,
) -> list[Finding]:
    destination = DestinationSettings.model_validate(
        {"name": "prom", "url": "http://prom.test/api/v1/write", "query_url": query_url}
    )
    found = look_at_dashboards(
        destination,
        reader,
        Chosen(tuple(datasets), ()),  # type: ignore[arg-type]  # datasets of tests
        memory,
        ManualClock(NOW),
        first_seconds=4260,
        width_seconds=HOUR,
    )
    return [each async for each in found]


def test_the_metrics_that_are_looked_for_are_those_of_the_dashboard() -> None:
    shown = {name for query in queries() for name in query.metrics}
    assert {*OWN, *TRAFFIC} == shown


async def test_what_is_there_is_told_of_the_worker_and_of_one_zone() -> None:
    reader = Reader(*OWN, *TRAFFIC)
    own, traffic = await looked(reader)
    assert (own.state, traffic.state) == (State.OK, State.OK)
    assert own.what == f"prom: {len(OWN)} of {len(OWN)} metrics of the worker itself are there"
    assert "metrics of the last windows of a.test are there" in traffic.what
    assert reader.asked[1] == (
        Selector(UNLABELLED, {"zone_id": ("t1",)}),
        (NOW - 4260 - 2 * HOUR) * 1000,
        NOW * 1000,
    )


async def test_what_has_not_happened_yet_is_named_and_no_fault() -> None:
    own, _ = await looked(Reader(*OWN[4:], *TRAFFIC))
    assert own.state is State.OK
    assert f"without {', '.join(OWN[:3])} and 1 more" in own.what


async def test_where_nothing_of_it_is_there_it_is_a_warning_with_what_to_do() -> None:
    own, traffic = await looked(Reader())
    assert (own.state, traffic.state) == (State.WARNING, State.WARNING)
    assert "/metrics of the worker scraped" in own.to_do
    assert "write_relabel_configs" in traffic.to_do


async def test_before_the_first_start_nobody_is_asked() -> None:
    reader = Reader()
    (finding,) = await looked(reader, memory=None)
    assert (finding.state, reader.asked) == (State.SKIPPED, [])


@pytest.mark.parametrize(
    ("memory", "datasets"),
    [
        (replace(MEMORY, covered=None), (HTTP_REQUESTS,)),
        (replace(MEMORY, scopes=()), (HTTP_REQUESTS,)),
        (MEMORY, (HTTP_OVERVIEW,)),
        (MEMORY, ()),
    ],
)
async def test_nothing_is_missed_of_what_was_not_captured(memory: Memory, datasets: Sequence[object]) -> None:
    reader = Reader(*OWN)
    _, traffic = await looked(reader, memory=memory, datasets=datasets)
    assert (traffic.state, len(reader.asked)) == (State.SKIPPED, 1)


@pytest.mark.parametrize(("query_url", "state"), [(None, State.SKIPPED), ("http://prom.test", State.WARNING)])
async def test_a_query_api_that_does_not_answer_is_a_fault_only_where_somebody_named_it(
    query_url: str | None, state: State
) -> None:
    (finding,) = await looked(Reader(says=Later("HTTP 404: nothing", Fate.PARK, 404)), query_url=query_url)
    assert finding.state is state
    assert "HTTP 404: nothing" in finding.what


async def test_without_a_query_api_it_is_said_why() -> None:
    (finding,) = await looked(ConfigError([Mistake("remote_write prom: query_url", None, "is required to read back")]))
    assert finding.state is State.SKIPPED
    assert "query_url: is required to read back" in finding.what
