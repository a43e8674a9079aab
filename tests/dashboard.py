"""The Grafana dashboard, taken apart for tests: its panels and their queries with the variables filled in."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.dockerfile import REPOSITORY

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "cloudflare-remote-write.json"

VARIABLES = {
    "$zone": ".+",
    "$__interval_ms": "3600000",
    "$__interval": "3600s",
    "$__range": "86400s",
    "$__rate_interval": "120s",
}
"""What Grafana would fill in for all zones, hourly windows and a day."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    expression: PromQL as it stands in the dashboard.
    instant:    whether it is asked at the end of the time range only.
    """

    panel: str
    expression: str
    instant: bool

    @property
    def filled_in(self) -> str:
        """The expression as Grafana sends it."""
        return re.sub(r"\$\w+", lambda match: VARIABLES[match[0]], self.expression)

    @property
    def metrics(self) -> set[str]:
        """The names of the metrics in it."""
        return set(re.findall(r"\b(?:cfrw|cloudflare)_\w+", self.expression))


def dashboard() -> Mapping[str, Any]:
    described: Mapping[str, Any] = json.loads(DASHBOARD.read_text())
    return described


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], target["expr"], target["instant"])
