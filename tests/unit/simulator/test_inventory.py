from datetime import datetime

from tests.unit.simulator.worlds import NOW
from worker.simulator import inventory
from worker.simulator.fleet import Fleet, Plan

FLEET = Fleet(zones=4, plans=(Plan.FREE, Plan.PRO))
FREE, PRO, *_ = FLEET.zones
ACCOUNT = FLEET.accounts[0]
DAY_SECONDS = 86_400


def days_left(now: float) -> list[float]:
    return [
        (datetime.fromisoformat(certificate["expires_on"]).timestamp() - now) / DAY_SECONDS
        for pack in inventory.certificate_packs(PRO, now)
        for certificate in pack["certificates"]
    ]


def test_certificates_are_renewed_before_they_expire() -> None:
    left = [days for day in range(200) for days in days_left(NOW + day * DAY_SECONDS)]
    assert 30 <= min(left) < 32
    assert 88 < max(left) <= 90


def test_a_certificate_is_the_same_until_it_is_renewed() -> None:
    seen = [inventory.certificate_packs(PRO, NOW + day * DAY_SECONDS)[0] for day in range(60)]
    assert len({pack["id"] for pack in seen}) == 1
    assert len({pack["primary_certificate"] for pack in seen}) == 2


def test_free_zones_have_the_universal_certificate_alone_and_no_load_balancer() -> None:
    assert [pack["type"] for pack in inventory.certificate_packs(FREE, NOW)] == ["universal"]
    assert inventory.load_balancers(FREE) == []


def test_a_load_balancer_names_pools_of_its_account() -> None:
    (balancer,) = inventory.load_balancers(PRO)
    pools = {pool["id"] for pool in inventory.pools(PRO.account, NOW)}
    assert {*balancer["default_pools"], balancer["fallback_pool"]} == pools


def test_pools_and_tunnels_are_ill_now_and_then() -> None:
    hours = [NOW + 3_600 * hour for hour in range(100)]
    healthy = [pool["healthy"] for now in hours for pool in inventory.pools(ACCOUNT, now)]
    assert 0 < healthy.count(False) < healthy.count(True)
    statuses = {tunnel["status"] for now in hours for tunnel in inventory.tunnels(ACCOUNT, now)}
    assert statuses == {"degraded", "healthy", "inactive"}
