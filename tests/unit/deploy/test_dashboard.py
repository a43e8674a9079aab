import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.clocks import ManualClock
from tests.dashboard import dashboard, queries
from worker.cloudflare.catalogue import shipped
from worker.config import BUCKET_SECONDS
from worker.health import Health
from worker.observe import Metrics

UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def _traffic_metrics() -> dict[str, bool]:
    """Name of every metric that is pushed, and whether it may be summed."""
    return {metric.name: metric.additive for dataset in shipped().values() for metric, _ in dataset.metrics()}


def _own_metrics() -> dict[str, tuple[str, ...]]:
    """Every series name that /metrics can show, and its labels."""
    clock = ManualClock()
    names: dict[str, tuple[str, ...]] = {}
    for metric in Metrics(clock, Health(clock), version="0", sqlite_version="0").descriptions():
        if metric.kind == "histogram":
            names[f"{metric.name}_bucket"] = (*metric.labels, "le")
            names |= dict.fromkeys((f"{metric.name}_sum", f"{metric.name}_count"), metric.labels)
        else:
            names[metric.name] = metric.labels
    return names


def test_every_metric_in_it_exists() -> None:
    known = _traffic_metrics().keys() | _own_metrics().keys()
    asked = {name for query in queries() for name in query.metrics}
    assert asked <= known
    assert {name.partition("_")[0] for name in asked} == {"cloudflare", "cfrw"}


def test_every_label_in_it_exists() -> None:
    by_metric = {
        metric.name: {*labels, "zone", "zone_id", "account"}
        for dataset in shipped().values()
        for metric, labels in dataset.metrics()
    } | {name: set(labels) for name, labels in _own_metrics().items()}
    for query in queries():
        known = set[str | None]().union(*(by_metric[name] for name in query.metrics))
        named = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query.expression))
        grouped = {name for group in re.findall(r"\bby \(([^)]*)\)", query.expression) for name in group.split(", ")}
        assert named | grouped <= known, query


def test_what_is_not_additive_is_never_summed() -> None:
    not_additive = {name for name, additive in _traffic_metrics().items() if not additive}
    asked = [query for query in queries() if query.metrics & not_additive]
    assert asked
    assert not [
        query for query in asked if re.search(r"\b(sum|sum_over_time|avg|avg_over_time|rate)\b", query.expression)
    ]


def test_pushed_gauges_are_never_read_as_counters_nor_at_a_single_instant() -> None:
    traffic = [query for query in queries() if query.metrics & _traffic_metrics().keys()]
    for query in traffic:
        assert not re.search(r"\b(rate|irate|increase|delta)\b", query.expression), query
        # An instant selector finds a sample for five minutes only; hourly ones would be gone most of the time.
        selectors = re.findall(r"cloudflare_\w+(\{[^}]*\})?(\[[^]]*\])?", query.expression)
        assert all(time_range in {"[$__interval]", "[$__range]"} for _, time_range in selectors), query


def test_a_point_of_a_traffic_panel_is_never_narrower_than_a_window() -> None:
    for panel in _panels():
        traffic = any(re.search(r"\bcloudflare_", target["expr"]) for target in panel["targets"])
        if traffic and panel["type"] == "timeseries":
            assert panel["interval"] == "$bucket", panel["title"]


def test_the_window_widths_to_choose_from_are_those_that_can_be_collected() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert set(variables) == {"datasource", "zone", "bucket"}
    widths = [int(text[:-1]) * UNIT_SECONDS[text[-1]] for text in variables["bucket"]["query"].split(",")]
    assert widths == list(BUCKET_SECONDS)
    assert variables["bucket"]["current"]["value"] == "1h"


def test_every_panel_has_a_title_a_description_a_unit_and_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_promtool_accepts_every_query(required_program: Callable[[str], Path], tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query.filled_in} for number, query in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [str(required_program("promtool")), "check", "rules", str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
