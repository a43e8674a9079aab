from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.ledger.fleet import DATASET, HOUR, NOW, T0, scope, tag
from worker.ledger import Ledger, outstanding_windows, record_scopes, register_destinations


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[Ledger]:
    """An open ledger that knows three zones, whose first day is expected, and one destination that is not strict."""
    opened = Ledger.open(path)
    await opened.write(record_scopes, [scope(zone) for zone in (1, 2, 3)], NOW)
    await opened.write(register_destinations, {"prom": False}, replay_since=0, now=NOW)
    await opened.write(
        outstanding_windows,
        dataset=DATASET,
        width_seconds=HOUR,
        tags=[tag(zone) for zone in (1, 2, 3)],
        starts=range(T0, T0 + 24 * HOUR, HOUR),
    )
    yield opened
    await opened.close()
