import importlib
import sys

import pytest

import worker.simulator
from worker.errors import UsageError


def test_without_graphql_core_the_simulator_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphql", None)
    with pytest.raises(UsageError, match=r"cloudflare-remote-write\[simulator\]"):
        importlib.reload(worker.simulator)
