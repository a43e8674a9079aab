"""A ledger of which all is delivered, and a receiver that shows what a test wants."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import JumpingClock
from tests.unit.ledger.fleet import HOUR, NOW, T0, acknowledge_all, blocks, bucket, scope, true_value
from worker.config import DestinationSettings
from worker.health import Health
from worker.ledger import (
    Arguments,
    Job,
    Ledger,
    Resend,
    Verify,
    VerifyResult,
    ask,
    capture,
    job,
    record_scopes,
    register_destinations,
)
from worker.remote_write import Found, Labels, Later, ReadBack, Selector
from worker.repair import LOOP, Repairer, Resender, Verifier
from worker.series import parse_label_block
from worker.verification import Verification

EVERYTHING = Verify(T0, T0 + 9 * HOUR)
HOURS = 4


def stored(hours: range = range(HOURS)) -> dict[Labels, list[tuple[int, float]]]:
    return {
        frozenset(parse_label_block(block).items()): [
            (at, true_value(block, at)) for at in ((T0 + hour * HOUR) * 1000 for hour in hours)
        ]
        for block in blocks(1, 3)
    }


class Scene:
    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        self.clock = JumpingClock(NOW)
        self.ledger = ledger
        self.answers: list[Callable[[], Found | Later]] = []
        self.asked: list[tuple[Selector, int, int]] = []
        monkeypatch.setattr(ReadBack, "read", self.read)
        urls = {"prom": "http://prom/api/v1/write", "thanos": "http://thanos/api/v1/receive"}
        settings = [DestinationSettings(name=name, url=url, **more) for name, url in urls.items()]
        self.verification = Verification(settings, ledger=ledger, clock=self.clock)
        health = Health(self.clock)
        health.expect(LOOP, allowance_seconds=9, liveness_seconds=9)
        self.repairer = Repairer(
            ledger=ledger,
            clock=self.clock,
            health=health,
            carriers={
                Verify: Verifier(self.verification, ledger=ledger, clock=self.clock),
                Resend: Resender(ledger=ledger, clock=self.clock, verification=self.verification),
            },
        )

    async def read(self, selector: Selector, first_ms: int, last_ms: int) -> Found | Later:
        self.asked.append((selector, first_ms, last_ms))
        return self.answers.pop(0)() if len(self.answers) > 1 else self.answers[0]()

    async def carried_out(self, arguments: Arguments) -> Job:
        number = await self.ledger.write(ask, arguments, reason="", asked_by="", now=NOW)
        while (found := await self.ledger.read(job, number)) and found.is_open:
            await self.repairer.step_all()
        assert found is not None
        return found

    async def verified(self, wanted: Verify = EVERYTHING) -> VerifyResult:
        result = (await self.carried_out(wanted)).result
        assert isinstance(result, VerifyResult)
        return result


@asynccontextmanager
async def reading_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> AsyncIterator[Scene]:
    """Four acknowledged windows of one zone; the destinations have further keys."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(1)], NOW)
    await ledger.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    await ledger.write(capture, [bucket(1, hour) for hour in range(HOURS)], NOW)
    await acknowledge_all(ledger)
    made = Scene(ledger, monkeypatch, **more)
    yield made
    await made.verification.aclose()
    await ledger.close()
