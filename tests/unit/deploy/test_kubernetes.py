import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # the package has no types
import pytest
import yaml

from tests.clocks import ManualClock
from tests.dockerfile import REPOSITORY, image_environment
from worker.config import ListenSettings, load_settings
from worker.health import Health
from worker.observe import Metrics
from worker.serve import CONNECTION_SECONDS, create_app
from worker.status import StatusReport

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
NAME = "cloudflare-remote-write"
LABELS = {"app.kubernetes.io/name": NAME}

# The oldest release that clouds still offer, and the newest that the validator knows.
VERSIONS = ("1.31", "1.36")

UNITS = {"Mi": 2**20, "Gi": 2**30}


def _manifest(name: str) -> Any:
    return yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text())


@pytest.fixture
def pod() -> Mapping[str, Any]:
    described: Mapping[str, Any] = _manifest("statefulset")["spec"]["template"]["spec"]
    return described


@pytest.fixture
def container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    (only,) = pod["containers"]
    described: Mapping[str, Any] = only
    return described


def _paths_served() -> set[str]:
    async def no_status() -> StatusReport:
        raise NotImplementedError

    clock = ManualClock()
    health = Health(clock)
    metrics = Metrics(clock, health, version="0", sqlite_version="0")
    return {route.path for route in create_app(metrics, health, no_status, clock).routes}  # type: ignore[attr-defined] # all are Route


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr] # else the test fails
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["statefulset", "service", "secret.example"])
def test_every_manifest_is_valid_to_the_letter(name: str, version: str) -> None:
    kubernetes_validate.validate(_manifest(name), version, strict=True)


def test_the_kustomization_names_every_manifest_that_is_applied() -> None:
    kustomization = _manifest("kustomization")
    others = {"kustomization.yaml", "cfrw.yaml", "secret.example.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - others
    (generated,) = kustomization["configMapGenerator"]
    assert generated == {"name": NAME, "files": ["cfrw.yaml"]}


def test_the_image_has_the_projects_version(container: Mapping[str, Any]) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert _manifest("kustomization")["images"] == [{"name": container["image"], "newTag": version}]


def test_there_is_one_worker_with_a_volume_of_its_own(container: Mapping[str, Any]) -> None:
    spec = _manifest("statefulset")["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]]["mountPath"] == "/data"
    assert all(mount.get("readOnly") for name, mount in mounts.items() if name != claim["metadata"]["name"])


def test_the_pod_has_no_privileges_and_no_token_of_the_cluster(
    pod: Mapping[str, Any], container: Mapping[str, Any]
) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_the_worker_has_time_to_stop_in_order(pod: Mapping[str, Any]) -> None:
    assert pod["terminationGracePeriodSeconds"] > 10


def test_memory_and_cpu_are_bounded(container: Mapping[str, Any]) -> None:
    resources = container["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}
    assert _bytes(resources["requests"]["memory"]) <= _bytes(resources["limits"]["memory"])


def test_probes_ask_for_what_the_worker_serves(container: Mapping[str, Any]) -> None:
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert paths == {"startup": "/-/healthy", "liveness": "/-/healthy", "readiness": "/-/ready"}
    assert set(paths.values()) <= _paths_served()
    (port,) = container["ports"]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    assert all(probe["timeoutSeconds"] < CONNECTION_SECONDS for probe in probes.values())


def test_ports_and_labels_lead_from_the_monitor_to_the_worker(container: Mapping[str, Any]) -> None:
    (port,) = container["ports"]
    assert port["containerPort"] == ListenSettings().port

    service = _manifest("service")
    (service_port,) = service["spec"]["ports"]
    assert service_port == {"name": "http", "port": ListenSettings().port, "targetPort": port["name"]}
    assert service["spec"]["clusterIP"] is None or service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    stateful_set = _manifest("statefulset")["spec"]
    assert stateful_set["serviceName"] == service["metadata"]["name"]
    assert stateful_set["selector"]["matchLabels"] == stateful_set["template"]["metadata"]["labels"] == LABELS
    assert service["spec"]["selector"] == service["metadata"]["labels"] == LABELS

    monitor = _manifest("servicemonitor")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == LABELS
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service_port["name"]
    assert endpoint["path"] in _paths_served()
    assert endpoint["interval"] == "30s"
    assert int(endpoint["scrapeTimeout"].removesuffix("s")) <= CONNECTION_SECONDS


def test_the_worker_takes_its_settings_and_the_secret(
    pod: Mapping[str, Any], container: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (variable,) = container["env"]
    folder = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "secrets")
    secret = _manifest("secret.example")
    (key,) = secret["stringData"]
    assert variable == {"name": "CF_API_TOKEN_FILE", "value": f"{folder}/{key}"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["secrets"]["secret"]["secretName"] == secret["metadata"]["name"]
    assert volumes["settings"]["configMap"]["name"] == _manifest("kustomization")["configMapGenerator"][0]["name"]
    assert container["args"] == ["run", "--config", "/etc/cfrw/cfrw.yaml"]

    (tmp_path / key).write_text("a-token\n")
    monkeypatch.chdir(tmp_path)
    environment = {**image_environment(), "CF_API_TOKEN_FILE": str(tmp_path / key)}
    settings = load_settings(KUBERNETES / "cfrw.yaml", environment)
    assert settings.ledger.path == Path("/data/ledger.db")
    assert settings.listen.port == ListenSettings().port
    claim = _manifest("statefulset")["spec"]["volumeClaimTemplates"][0]["spec"]
    assert settings.ledger.max_bytes < _bytes(claim["resources"]["requests"]["storage"])
    (destination,) = settings.destinations
    assert destination.out_of_order_time_window_seconds > settings.cloudflare.replay_hours * 3600
