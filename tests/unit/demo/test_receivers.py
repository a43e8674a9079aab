from pathlib import Path

import httpx
import pytest

from worker.demo.receivers import BuiltIn, Prometheus, PrometheusProgram, find_prometheus
from worker.errors import WorkerError


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def telling(path: Path, version: str) -> Path:
    return script(path, f"echo 'prometheus, version {version}+ds1 (branch: debian/sid, revision: 1)'")


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_the_prometheus_on_path_comes_first(on_path: Path, tmp_path: Path) -> None:
    found = telling(on_path / "prometheus", "2.42.0")
    telling(tmp_path / ".cache/receivers/sid/prometheus", "3.5.3")
    assert find_prometheus(tmp_path) == PrometheusProgram(found, "2.42.0")


@pytest.mark.usefixtures("on_path")
def test_of_those_that_were_fetched_the_newest_is_taken(tmp_path: Path) -> None:
    telling(tmp_path / ".cache/receivers/a/prometheus", "3.5.3")
    newest = telling(tmp_path / ".cache/receivers/b/prometheus", "3.11.0")
    telling(tmp_path / ".cache/receivers/c/prometheus", "2.42.0")
    assert find_prometheus(tmp_path) == PrometheusProgram(newest, "3.11.0")


@pytest.mark.parametrize(
    "body",
    [
        "echo 'prometheus, version 2.38.0 (branch: HEAD)'",
        "echo 'Prometheus, a game about fire'",
        "echo 'prometheus, version 3.5.0'; exit 1",
    ],
    ids=["too old", "something else", "broken"],
)
def test_a_program_that_will_not_do_is_passed_over(body: str, on_path: Path, tmp_path: Path) -> None:
    script(on_path / "prometheus", body)
    assert find_prometheus(tmp_path) is None


def test_a_version_told_on_stderr_counts(on_path: Path, tmp_path: Path) -> None:
    found = script(on_path / "prometheus", "echo 'prometheus, version 2.42.0 (branch: HEAD)' >&2")
    assert find_prometheus(tmp_path) == PrometheusProgram(found, "2.42.0")


async def test_a_prometheus_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = PrometheusProgram(script(tmp_path / "prometheus", "echo 'no space left on device'; exit 1"), "3.5.3")
    prometheus = Prometheus(program, tmp_path)
    with pytest.raises(WorkerError, match=r"Prometheus 3\.5\.3 \(.*\) does not start\.\n  no space left on device"):
        await prometheus.start()
    await prometheus.stop()


async def test_prometheus_is_started_with_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CF_API_TOKEN", "canary")
    program = PrometheusProgram(script(tmp_path / "prometheus", "/usr/bin/env; exit 1"), "3.5.3")
    prometheus = Prometheus(program, tmp_path)
    with pytest.raises(WorkerError) as error:
        await prometheus.start()
    await prometheus.stop()
    assert "PWD=" in str(error.value)
    assert "canary" not in str(error.value)


async def test_stopping_twice_is_stopping_once(tmp_path: Path) -> None:
    prometheus = Prometheus(PrometheusProgram(tmp_path / "prometheus", "3.5.3"), tmp_path)
    await prometheus.stop()
    built_in = BuiltIn()
    await built_in.start()
    await built_in.stop()
    await built_in.stop()


async def test_the_built_in_receiver_keeps_its_address_and_samples_while_it_is_down() -> None:
    built_in = BuiltIn()
    await built_in.start()
    built_in.memory.samples[("__name__", "up"),][0] = 1.0
    await built_in.stop()
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.post(built_in.write_url)
        await built_in.start()
        assert (await client.post(built_in.write_url)).status_code == 415
    assert await built_in.read() == {(("__name__", "up"),): {0: 1.0}}
    await built_in.stop()
