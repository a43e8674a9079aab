import re
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dockerfile import REPOSITORY, image_environment
from worker.config import SETTINGS, ListenSettings, Settings, load_settings

COMPOSE = REPOSITORY / "deploy" / "compose"
SERVICES = ("worker", "prometheus", "grafana")
PORT = ListenSettings().port
HOUR = 3600


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def compose() -> Mapping[str, Any]:
    described: Mapping[str, Any] = _yaml(COMPOSE / "compose.yaml")
    return described


def _example_environment() -> dict[str, str]:
    lines = (COMPOSE / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _substituted(value: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: environment.get(match[1]) or match[2], value)


def _worker_settings(
    compose: Mapping[str, Any], environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Settings:
    """What the worker makes of all it is told in its container."""
    token = tmp_path / "cf_api_token"
    token.write_text("a-token\n")
    service = compose["services"]["worker"]
    assert service["environment"]["CF_API_TOKEN_FILE"] == f"/run/secrets/{service['secrets'][0]}"
    told = {name: _substituted(str(value), environment) for name, value in service["environment"].items()}
    monkeypatch.chdir(tmp_path)
    return load_settings(COMPOSE / "cfrw.yaml", {**image_environment(), **told, "CF_API_TOKEN_FILE": str(token)})


def _mounts(service: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Source and mode of every volume, by the path in the container."""
    parts = [volume.split(":") for volume in service["volumes"]]
    return {target: (source, mode[0] if mode else "rw") for source, target, *mode in parts}


def test_every_image_is_pinned_by_its_tag(compose: Mapping[str, Any]) -> None:
    assert set(compose["services"]) == set(SERVICES)
    for service in compose["services"].values():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])


def test_the_workers_image_has_the_projects_version(compose: Mapping[str, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert compose["services"]["worker"]["image"] == f"{project['name']}:{project['version']}"
    assert (COMPOSE / compose["services"]["worker"]["build"]).resolve() == REPOSITORY


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_read_only_and_without_privileges(compose: Mapping[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(compose: Mapping[str, Any], name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in compose["services"][name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_exists_and_is_mounted_read_only(compose: Mapping[str, Any], name: str) -> None:
    for source, mode in _mounts(compose["services"][name]).values():
        if source.startswith("."):
            assert (COMPOSE / source).exists()
            assert mode == "ro"
        else:
            assert source in compose["volumes"]


def test_secrets_are_files_that_git_does_not_take(compose: Mapping[str, Any]) -> None:
    for secret in compose["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    ignored = (COMPOSE / ".gitignore").read_text().split()
    assert ignored == ["/.env", "/secrets/"]
    told = {name for service in compose["services"].values() for name in service.get("environment", {})}
    assert not {name for name in told if re.search(r"TOKEN|PASSWORD|SECRET", name) and not name.endswith("_FILE")}


def test_every_variable_of_the_worker_is_a_setting_of_it(compose: Mapping[str, Any]) -> None:
    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    assert compose["services"]["worker"]["environment"].keys() <= known


@pytest.mark.parametrize("environment", [{}, _example_environment()], ids=["without .env", "with .env.example"])
def test_the_worker_takes_its_settings(
    compose: Mapping[str, Any], environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = _worker_settings(compose, environment, monkeypatch, tmp_path)
    defaults = {setting.name: setting.default for setting in SETTINGS}
    assert str(settings.cloudflare.bucket_seconds) == defaults["CF_BUCKET_SECONDS"]
    assert settings.cloudflare.zones == settings.cloudflare.exclude_zones == ()
    assert settings.ledger.path == Path("/data/ledger.db")
    assert settings.listen.port == PORT
    (destination,) = settings.destinations
    assert destination.url == "http://prometheus:9090/api/v1/write"
    assert destination.query_url == "http://prometheus:9090"


def test_the_example_environment_names_exactly_what_the_file_reads() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == _example_environment().keys()
    assert _example_environment().keys() <= {setting.name for setting in SETTINGS}


def test_the_worker_is_run_on_its_mounted_settings_and_volume(compose: Mapping[str, Any]) -> None:
    worker = compose["services"]["worker"]
    mounts = _mounts(worker)
    assert worker["command"] == ["run", "--config", "/etc/cfrw/cfrw.yaml"]
    assert mounts["/etc/cfrw/cfrw.yaml"] == ("./cfrw.yaml", "ro")
    assert mounts["/data"] == ("ledger", "rw")
    assert worker["user"] == "65532:65532"
    assert worker["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > 10


def test_prometheus_takes_remote_writes_as_old_as_the_worker_sends_them(
    compose: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "--web.enable-remote-write-receiver" in compose["services"]["prometheus"]["command"]
    window = _yaml(COMPOSE / "prometheus" / "prometheus.yml")["storage"]["tsdb"]["out_of_order_time_window"]
    window_seconds = int(window.removesuffix("h")) * HOUR
    settings = _worker_settings(compose, {}, monkeypatch, tmp_path)
    assert window_seconds == settings.destinations[0].out_of_order_time_window_seconds
    assert window_seconds > settings.cloudflare.replay_hours * HOUR


def test_prometheus_scrapes_the_worker() -> None:
    jobs = _yaml(COMPOSE / "prometheus" / "prometheus.yml")["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets["cloudflare-remote-write"] == [f"worker:{PORT}"]
    assert all(job.get("metrics_path", "/metrics") == "/metrics" for job in jobs)


def test_promtool_accepts_the_configuration_of_prometheus(required_program: Callable[[str], Path]) -> None:
    configuration = COMPOSE / "prometheus" / "prometheus.yml"
    command = [str(required_program("promtool")), "check", "config", str(configuration)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_grafana_finds_its_data_source_and_its_dashboard(compose: Mapping[str, Any]) -> None:
    provisioning = COMPOSE / "grafana" / "provisioning"
    (source,) = _yaml(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scrape_interval = _yaml(COMPOSE / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape_interval

    grafana = compose["services"]["grafana"]
    (provider,) = _yaml(provisioning / "dashboards" / "files.yaml")["providers"]
    folder, _ = _mounts(grafana)[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (COMPOSE / folder / home.name).is_file()
