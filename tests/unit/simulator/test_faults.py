import msgspec
import pytest

from tests.clocks import ManualClock
from tests.unit.simulator.worlds import NOW
from worker.simulator.faults import (
    ConnectionReset,
    Fault,
    Faults,
    GraphqlError,
    HttpStatus,
    Incident,
    RequestFault,
    ZoneMissing,
)
from worker.simulator.refusals import RefusalKind


def anything(fault: RequestFault) -> bool:
    del fault
    return True


def test_a_fault_hits_as_many_requests_as_it_says_and_is_struck_off() -> None:
    faults = Faults(ManualClock(NOW))
    faults.add(HttpStatus(count=2))
    assert [faults.take(anything) is not None for _ in range(3)] == [True, True, False]
    assert faults.active() == ()
    assert faults.hits == {"http_status": 2}


async def test_a_fault_ends_when_its_time_has_come() -> None:
    clock = ManualClock(NOW)
    faults = Faults(clock)
    faults.add(HttpStatus(until=NOW + 60.0))
    await clock.advance(59)
    assert faults.take(anything)
    await clock.advance(1)
    assert faults.take(anything) is None
    assert faults.active() == ()


def test_the_oldest_fault_that_fits_hits_first() -> None:
    faults = Faults(ManualClock(NOW))
    faults.add(HttpStatus(), ConnectionReset(count=1))
    assert faults.take(lambda fault: isinstance(fault, ConnectionReset)) == ConnectionReset(count=1)
    assert faults.active() == (HttpStatus(),)


def test_what_is_so_for_every_request_is_not_taken_by_one() -> None:
    faults = Faults(ManualClock(NOW))
    faults.add(ZoneMissing(zone="f" * 32))
    assert faults.take(anything) is None
    assert faults.of_kind(ZoneMissing) == [ZoneMissing(zone="f" * 32)]
    faults.clear()
    assert faults.of_kind(ZoneMissing) == []


def test_faults_are_written_as_json() -> None:
    texts = (
        '{"kind": "graphql_error", "error": "window", "count": 2}',
        '{"kind": "incident", "start": 0, "end": 60, "delay_seconds": 7200}',
    )
    assert msgspec.json.decode(f"[{','.join(texts)}]", type=list[Fault]) == [
        GraphqlError(error=RefusalKind.WINDOW, count=2),
        Incident(start=0, end=60, delay_seconds=7200),
    ]


@pytest.mark.parametrize(
    "text", ['{"kind": "earthquake"}', '{"kind": "slow"}', '{"kind": "slow", "seconds": 1, "minutes": 1}']
)
def test_a_fault_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Fault)
