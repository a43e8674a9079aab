from tests.unit.simulator.worlds import NOW
from worker.simulator.stats import Stats


def test_the_busiest_five_minutes_are_found_wherever_they_begin() -> None:
    stats = Stats()
    stats.query_times += [NOW + at for at in (0, 10, 290, 299, 300, 301, 900)]
    assert stats.busiest(300) == 5
    assert stats.busiest(1) == 1
    assert Stats().busiest(300) == 0
