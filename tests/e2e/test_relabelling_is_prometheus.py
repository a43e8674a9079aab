"""What Prometheus itself sends on, under hundreds of rule sets, is what the worker makes of the same series.

One Prometheus takes the series by remote write and sends them to as many destinations as there are rule sets. The value
of a sample tells which series it was.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import snappy  # type: ignore[import-untyped]  # ships no types
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.receivers import PrometheusServer, free_port
from worker.config.relabel_rules import RelabelRule
from worker.remote_write.proto.remote_write_v1_pb2 import WriteRequest
from worker.remote_write.relabel import Relabeler, Relabelled, Unsendable
from worker.series import LABEL_NAME, METRIC_NAME, label_block, parse_label_block

SEED = 20250101
RULE_SETS = 200
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.1
EXTERNAL_LABELS = {"cluster": "eu", "zone": "elsewhere"}

SERIES: list[tuple[str, dict[str, str]]] = [
    ("cloudflare_zone_requests", {"zone": "example.com", "zone_id": "0a1b", "account": "Example Inc"}),
    ("cloudflare_zone_requests", {"zone": "example.org", "zone_id": "0a1c"}),
    ("cloudflare_zone_country_requests", {"zone": "example.com", "zone_id": "0a1b", "country": "DE"}),
    ("cloudflare_zone_country_requests", {"zone": "example.com", "zone_id": "0a1b", "country": "de"}),
    ("cloudflare_zone_status_requests", {"zone": "example.com", "zone_id": "0a1b", "status": "404"}),
    ("cloudflare_zone_threats", {"zone": "Straße", "zone_id": "\u0130\u0131\u017f\u212a", "account": "ΑΣ ǆ ᾳ ŉ ﬁ"}),
    ("cloudflare_zone_threats", {"zone": "foo-bar", "account": "$1;${2}"}),
    ("cloudflare_zone_threats", {"zone_id": "line1\nline2"}),
    ("up", {}),
    ("up", {"cluster": "us", "a1": "one", "a2": "two", "b1": "three"}),
    ("http:requests:rate5m", {"account": "account", "zone": "zone", "country": "zone"}),
]

NAMES = ["__name__", "zone", "zone_id", "account", "country", "status", "cluster", "a1", "a2", "b1", "__tmp_x", "none"]
REGEXES = [
    "(.*)",
    "(.+)",
    "",
    ".*",
    "cloudflare_zone_(.*)",
    "cloudflare_(?P<scope>zone)_(?P<what>.+)",
    "(?i)EXAMPLE.*",
    "example|org",
    "(a|b)([0-9])",
    "(zone)(_id)?",
    "zone.*|__name__",
    "__name__",
    r"\w+",
    r"[[:alpha:]]+\.\pL+",
    "line1.line2",
    "(?-s)line1.line2",
    "^foo-(bar)$",
    "(.*?)[;_](.*)",
    "([^;]*);(.*)",
    "(?U)(.*)(.*)",
    r"\Qfoo-bar\E",
    "404|5..",
    "(x)?(.*)",
]
TEMPLATES = [
    "$1",
    "${1}",
    "$2",
    "${2}$1",
    "",
    "static",
    "$0",
    "${0}-$0",
    "$1_x",
    "${1}_x",
    "$what",
    "${what}/${scope}",
    "$$1",
    "$$",
    "$",
    "${",
    "${}",
    "a$-b",
    "${1",
    "$01",
    "$9",
    "$1é",
    "ü$2",
]
NEVER_EMPTY = ["static", "${0}-$0", "${1}_x", "${what}/${scope}", "a$-b"]
NAME_TEMPLATES = ["zone", "new", "__tmp_x", "__name__", "$1", "${1}", "${2}", "new_${1}", "${1}_${2}", "$0", "_$1"]
TARGETS = ["zone", "new", "__tmp_x", "country"]

KEYS = {
    "Replace": ("source_labels", "separator", "regex", "target_template", "replacement"),
    "keep": ("source_labels", "separator", "regex"),
    "drop": ("source_labels", "separator", "regex"),
    "keepequal": ("source_labels", "target_label"),
    "dropequal": ("source_labels", "target_label"),
    "hashmod": ("source_labels", "separator", "modulus", "target_label"),
    "labelmap": ("regex", "name_template"),
    "labeldrop": ("regex",),
    "labelkeep": ("regex",),
    "lowercase": ("source_labels", "separator", "target_label"),
    "uppercase": ("source_labels", "separator", "target_label"),
}
WRITTEN = {"target_template": "target_label", "name_template": "replacement"}


def rule(chance: random.Random) -> dict[str, Any]:
    """Any rule that Prometheus takes; some make series that cannot be sent."""
    action = chance.choice([*KEYS, "Replace", "Replace", "Replace"])
    values = {
        "source_labels": chance.sample(NAMES, chance.randrange(4)),
        "separator": chance.choice(["", ";", "-", "_"]),
        "regex": chance.choice(REGEXES),
        "modulus": chance.choice([1, 7, 1000, 2**40]),
        "target_label": chance.choice(TARGETS),
        "target_template": chance.choice(NAME_TEMPLATES),
        "name_template": chance.choice(NAME_TEMPLATES),
        "replacement": chance.choice(TEMPLATES),
    }
    return {"action": action} | {WRITTEN.get(key, key): values[key] for key in KEYS[action]}


class Destinations:
    """Keeps what is sent to `/<number>`: the labels of each series, by its number."""

    def __init__(self) -> None:
        self.labels: defaultdict[int, dict[int, dict[str, str]]] = defaultdict(dict)
        self.app = Starlette(routes=[Route("/{number:int}", self._write, methods=["POST"])])

    async def _write(self, request: Request) -> Response:
        message = WriteRequest()
        message.ParseFromString(snappy.uncompress(await request.body()))
        for series in message.timeseries:
            names = [label.name for label in series.labels]
            assert names == sorted(set(names))
            labels = {label.name: label.value for label in series.labels}
            self.labels[request.path_params["number"]][int(series.samples[0].value)] = labels
        return Response(status_code=204)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serves on the port it yields."""
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(self.app, port=port, log_level="error", lifespan="off"))
        task = asyncio.create_task(server.serve())
        try:
            yield port
        finally:
            server.should_exit = True
            await task


class ForwardingPrometheus(PrometheusServer):
    """Sends what it receives to one destination per rule set."""

    def __init__(self, program: Path, rule_sets: list[list[dict[str, Any]]], port: int) -> None:
        super().__init__(program)
        self._rule_sets = rule_sets
        self._destinations_port = port

    def _flags(self, port: int) -> list[str]:
        flags = super()._flags(port)
        configuration = json.loads((self.folder / "prometheus.yml").read_text())
        configuration["global"] = {"external_labels": EXTERNAL_LABELS}
        configuration["remote_write"] = [
            {
                "url": f"http://127.0.0.1:{self._destinations_port}/{number}",
                "name": f"rules-{number}",
                "write_relabel_configs": rules,
                "metadata_config": {"send": False},
                "queue_config": {"max_shards": 1, "batch_send_deadline": "100ms"},
            }
            for number, rules in enumerate(self._rule_sets)
        ]
        (self.folder / "prometheus.yml").write_text(json.dumps(configuration))
        return flags

    async def forward(self, sample_count: int) -> None:
        """Return when as many samples were sent to, or dropped for, every destination."""
        async with httpx.AsyncClient(base_url=self.query_url, trust_env=False) as client:
            while True:
                text = (await client.get("/metrics")).text
                done: Counter[str] = Counter()
                for name, value in re.findall(
                    r"(?m)^prometheus_remote_storage_samples_(?:dropped_)?total\{.*remote_name=\"(.*?)\".*\} (\S+)$",
                    text,
                ):
                    done[name] += int(float(value))
                pending = re.findall(r"(?m)^prometheus_remote_storage_samples_pending\{.*\} (\S+)$", text)
                if set(done.values()) == {sample_count} and set(pending) == {"0"}:
                    return
                await asyncio.sleep(POLL_SECONDS)


def is_read_alike(version: str, rule: Mapping[str, Any]) -> bool:
    """Whether this version's reading is the worker's.

    Prometheus 3 sets target labels of any name by default. Prometheus 2 has another order in which labels overwrite
    each other that are mapped to one name, and does not remove a label whose name and empty value come from groups.
    """
    templated = "$" in rule.get("target_label", "")
    if version == "3.5":
        return not templated
    return rule["action"] != "labelmap" and (not templated or rule["replacement"] in NEVER_EMPTY)


def blocks_read_alike(version: str) -> list[bytes]:
    """The series whose values Prometheus' regexes read as the worker's: in version 2 a dot matches no line end."""
    return [
        label_block(name, labels)
        for name, labels in SERIES
        if version == "3.5" or not any("\n" in value for value in labels.values())
    ]


@pytest.mark.parametrize("version", ["2.42", "3.5"])
async def test_prometheus_sends_what_the_worker_would_send(
    required_program: Callable[[str], Path], version: str
) -> None:
    program = required_program(f"prometheus-{version}")
    chance = random.Random(SEED)
    rules_alike = (candidate for candidate in iter(lambda: rule(chance), None) if is_read_alike(version, candidate))
    rule_sets = [list(islice(rules_alike, chance.randint(1, 3))) for _ in range(RULE_SETS)]
    blocks = blocks_read_alike(version)
    destinations = Destinations()
    async with destinations.serving() as port, ForwardingPrometheus(program, rule_sets, port) as prometheus:
        now_ms = int(time.time() * 1000) + 1000  # Prometheus does not send on what is older than itself
        pushed = {frozenset(parse_label_block(block).items()): {now_ms: float(i)} for i, block in enumerate(blocks)}
        assert (await prometheus.push(pushed)).status_code == 204
        async with asyncio.timeout(WAIT_SECONDS):
            await prometheus.forward(len(blocks))
    differences = []
    outcomes: Counter[str] = Counter()
    for number, rules in enumerate(rule_sets):
        relabel = Relabeler(EXTERNAL_LABELS, [RelabelRule.model_validate(rule) for rule in rules])
        for i, block in enumerate(blocks):
            theirs = destinations.labels[number].get(i)
            result = relabel(block)
            outcomes[type(result).__name__] += 1
            if not agree(result, theirs):
                ours = parse_label_block(result) if isinstance(result, bytes) else result
                differences.append(f"{rules}\n{parse_label_block(block)}\nPrometheus: {theirs}\nworker: {ours}\n")
    assert not differences, f"{len(differences)} differences:\n" + "\n".join(differences[:10])
    # Rules that drop everything, or nothing, would prove little.
    assert outcomes["bytes"] > len(blocks) * RULE_SETS // 3
    assert outcomes["NoneType"] > len(blocks) * RULE_SETS // 20
    assert outcomes["Unsendable"]


def agree(ours: Relabelled, theirs: Mapping[str, str] | None) -> bool:
    if isinstance(ours, Unsendable):  # Prometheus sends it all the same
        return theirs is not None and not is_sendable(theirs)
    # Prometheus 3 sends a series without any label, which Prometheus 2 drops.
    return (parse_label_block(ours) if ours is not None else {}) == (theirs or {})


def is_sendable(labels: Mapping[str, str]) -> bool:
    return METRIC_NAME.fullmatch(labels.get("__name__", "")) is not None and all(map(LABEL_NAME.fullmatch, labels))
