"""Facts of the simulated API on their whole way: read once a window, kept, and pushed with the time of the read."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.clocks import JumpingClock
from worker.app import Worker
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, ListenSettings, Settings
from worker.ledger import denials
from worker.remote_write.receiver import MemoryReceiver
from worker.simulator import inventory
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

HOUR = 3600
NOW = 1_750_032_600.0  # ten minutes past an hour


def truth(fleet: Fleet, now: float) -> dict[tuple[str, ...], float]:
    """Every fact at that moment: the metric's name and values of labels that tell it from others."""
    facts: dict[tuple[str, ...], float] = {}
    for zone in fleet.zones:
        for pack in inventory.certificate_packs(zone, now):
            facts["cloudflare_zone_certificate_active", zone.tag, pack["id"]] = 1.0
            expiry = datetime.fromisoformat(pack["certificates"][0]["expires_on"]).timestamp()
            facts["cloudflare_zone_certificate_expiry_timestamp_seconds", zone.tag, pack["id"]] = expiry
    for account in {zone.account.tag: zone.account for zone in fleet.zones}.values():
        for pool in inventory.pools(account, now):
            facts["cloudflare_account_lb_pool_healthy", account.tag, pool["id"]] = float(pool["healthy"])
            for origin in pool["origins"]:
                key = ("cloudflare_account_lb_origin_weight", account.tag, pool["id"], origin["name"])
                facts[key] = origin["weight"]
        for tunnel in inventory.tunnels(account, now):
            healthy = float(tunnel["status"] == "healthy")
            facts["cloudflare_account_tunnel_healthy", account.tag, tunnel["id"]] = healthy
            facts["cloudflare_account_tunnel_status", account.tag, tunnel["id"], tunnel["status"]] = 1.0
    return facts


def received(receiver: MemoryReceiver) -> dict[int, dict[tuple[str, ...], float]]:
    """The same of what has arrived, by timestamp."""
    telling = ("zone_id", "account_id", "certificate_id", "pool_id", "tunnel_id", "origin", "status")
    found: dict[int, dict[tuple[str, ...], float]] = {}
    for series, samples in receiver.samples.items():
        labels = dict(series)
        key = (labels["__name__"], *(labels[name] for name in telling if name in labels))
        for stamp, value in samples.items():
            found.setdefault(stamp, {})[key] = value
    return found


async def test_facts_arrive_once_a_window_with_the_time_of_their_read(tmp_path: Path) -> None:
    clock = JumpingClock(NOW)
    simulated = SimulatedApi(Fleet(seed=5, zones=3), clock)
    receiver = MemoryReceiver()
    async with serve(simulated) as api_url, receiver.listening() as write_url:
        settings = Settings(
            cloudflare=CloudflareSettings.model_validate(
                {"api_token": SecretStr(ACCEPTED_BEARER), "api_url": api_url, "datasets": ["facts"]}
            ),
            destinations=(DestinationSettings(name="memory", url=write_url),),
            ledger=LedgerSettings(path=tmp_path / "ledger.db"),
            listen=ListenSettings(host="127.0.0.1", port=0),
        )

        async def once(now: float) -> tuple[bool, int]:
            """Run a worker at that time; whether it was complete, and how many facts were denied."""
            clock.set(now)
            async with Worker(settings, clock, once=True) as worker:
                complete = await worker.run_once(asyncio.Event())
                return complete, len(await worker.ledger.read(denials))

        assert await once(NOW) == (True, 0)
        assert await once(NOW + 60) == (True, 0)
        assert await once(NOW + HOUR) == (True, 0)
    windows: dict[int, Any] = {}
    for stamp, facts in received(receiver).items():
        windows.setdefault(stamp // 1000 // HOUR, {}).update(facts)
        assert NOW <= stamp / 1000 < NOW + HOUR + 60
        assert not NOW + 50 < stamp / 1000 < NOW + HOUR, "a window is read once"
    assert windows == {int(now // HOUR): truth(simulated.fleet, now) for now in (NOW, NOW + HOUR)}
    assert receiver.metadata["cloudflare_account_tunnel_healthy"].help.startswith("Whether the tunnel")
