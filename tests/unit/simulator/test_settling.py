from tests.unit.simulator.worlds import NOW
from worker.simulator.settling import AT_ONCE, HoldUp, Settling

ZONE = "f" * 32
OTHER = "e" * 32
MINUTE_END = NOW + 60


def permille(settling: Settling, age: float, zone: str = ZONE) -> int:
    return settling.permille(zone, NOW, MINUTE_END + age)


def test_a_minute_arrives_along_the_curve() -> None:
    assert [permille(Settling(), age) for age in (-1, 0, 30, 60, 180, 240, 299, 300, 9_999)] == [
        0,
        0,
        225,
        450,
        750,
        980,
        999,
        1000,
        1000,
    ]


def test_without_delay_a_minute_is_visible_when_it_is_over() -> None:
    assert [permille(AT_ONCE, age) for age in (-1, 0, 1)] == [0, 1000, 1000]


def test_an_incident_holds_up_the_minutes_that_it_covers_until_its_delay_is_over() -> None:
    settling = Settling(hold_ups=(HoldUp(ZONE, NOW, NOW + 60, 7200, 100),))
    assert [permille(settling, age) for age in (300, 7199, 7200)] == [0, 0, 1000]
    assert permille(settling, 300, OTHER) == 1000
    assert settling.permille(ZONE, NOW + 60, MINUTE_END + 400) == 1000


def test_an_incident_may_hold_up_only_a_part() -> None:
    settling = Settling(hold_ups=(HoldUp(None, NOW, NOW + 60, 7200, 10),))
    assert [permille(settling, age) for age in (300, 7200)] == [900, 1000]


def test_a_span_has_settled_when_its_last_minute_has() -> None:
    settling = Settling()
    assert not settling.has_settled(ZONE, NOW, NOW + 3600, NOW + 3600 + 299)
    assert settling.has_settled(ZONE, NOW, NOW + 3600, NOW + 3600 + 300)


def test_a_span_that_an_incident_touches_has_not_settled_until_it_is_over() -> None:
    settling = Settling(hold_ups=(HoldUp(ZONE, NOW + 1800, NOW + 1860, 7200, 100),))
    assert not settling.has_settled(ZONE, NOW, NOW + 3600, NOW + 3600 + 300)
    assert settling.has_settled(OTHER, NOW, NOW + 3600, NOW + 3600 + 300)
    assert settling.has_settled(ZONE, NOW, NOW + 3600, NOW + 3600 + 7200)
