from pathlib import Path
from typing import Any

import httpx

from tests.clocks import ManualClock
from tests.unit.check.test_receiver import Receiver
from worker.check import Finding, State, look
from worker.cloudflare import CloudflareApi
from worker.config import load_settings
from worker.datasets import catalogue_of, chosen
from worker.errors import ConfigError, Mistake
from worker.simulator.api import BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet

NOW = 1_750_000_000

CONFIGURATION = """
cloudflare:
  - {name: one, api_token: token-1, zones: [ZONE]}
  - {name: two, api_token: token-2}
  - {name: three, api_token: token-3}
remote_write:
  - {name: a, url: "http://a.test/write"}
  - {name: b, url: "http://b.test/write"}
"""


async def looked(folder: Path, *accepted: str, **receivers: Receiver) -> list[Finding]:
    clock = ManualClock(NOW)
    fleet = Fleet(seed=11, zones=3)
    simulated = SimulatedApi(fleet, clock, tokens=accepted)
    file = folder / "cfrw.yaml"
    file.write_text(CONFIGURATION.replace("ZONE", fleet.zones[0].name))
    settings = load_settings(file, {"LEDGER_PATH": str(folder / "ledger.db")})
    apis: dict[str, Any] = {
        token.name: CloudflareApi(
            api_url=f"http://simulated{BASE_PATH}",
            token=token.api_token.get_secret_value(),
            clock=clock,
            transport=httpx.ASGITransport(simulated),
        )
        for token in settings.cloudflare.by_token()
    }
    senders = {name: receivers.get(name, Receiver()) for name in ("a", "b")}
    readers = dict.fromkeys(senders, ConfigError([Mistake("query_url", None, "is required")]))
    collected = chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
    try:
        found = look(settings, collected, apis=apis, senders=senders, readers=readers, clock=clock, probe=True)
        return [finding async for finding in found]
    finally:
        for api in apis.values():
            await api.aclose()


async def test_every_token_is_looked_at_by_its_name_and_each_zone_counts_for_one_of_them(tmp_path: Path) -> None:
    findings = await looked(tmp_path, "token-1", "token-2", "token-3")
    assert [each.what.split()[:2] for each in findings if each.section == "API budget"] == [
        ["one:", "1"],
        ["two:", "2"],
        ["three:", "nothing"],
    ]
    zones = {each.what.split(":")[0]: each for each in findings if each.section == "zones"}
    assert {name: each.state for name, each in zones.items()} == {
        "one": State.OK,
        "two": State.OK,
        "three": State.WARNING,
    }
    assert "1 are asked with a token before it" in zones["two"].what
    assert "leave this token out" in zones["three"].to_do


async def test_whatever_fails_the_rest_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, and long enough to be taken for one that is damaged " * 20)
    findings = await looked(tmp_path, "token-2", "token-3", a=Receiver(-1))
    states = {(each.section, each.what.split(":")[0]): each.state for each in findings}
    assert states["token", "one"] is State.FAILURE
    assert states["token", "two"] is State.OK
    assert any(each.section == "ledger" and each.state is State.FAILURE for each in findings)
    assert (states["age window", "a"], states["age window", "b"]) == (State.FAILURE, State.OK)
    refused = next(each for each in findings if each.state is State.FAILURE and each.section == "token")
    assert "its api_token under `cloudflare`" in refused.to_do
