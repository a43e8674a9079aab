from pathlib import Path

import pytest

from tests import fetch_receivers
from tests.fetch_receivers import CannotFetchError, Program, debian_source, why_unfit


def _apt_folder(tmp_path: Path, files: dict[str, str]) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def _program_that_says(tmp_path: Path, text: str) -> Path:
    program = tmp_path / "prometheus"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    return program


def _fields(source: str | None) -> dict[str, str]:
    assert source is not None
    return dict(line.split(": ", 1) for line in source.splitlines() if not line.startswith(" "))


def test_a_deb822_source_keeps_its_mirror_and_key_and_changes_its_suite(tmp_path: Path) -> None:
    apt = _apt_folder(
        tmp_path,
        {
            "sources.list.d/debian.sources": (
                "# a comment\nTypes: deb deb-src\n# another\nURIs: http://mirror.example/debian\n"
                "Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /usr/share/keyrings/d.gpg\n"
                "\n"
                "Types: deb\nURIs: http://security.example\nSuites: bookworm-security\nComponents: main\n"
            )
        },
    )
    assert _fields(debian_source(apt, "sid")) == {
        "types": "deb",
        "uris": "http://mirror.example/debian",
        "suites": "sid",
        "components": "main",
        "signed-by": "/usr/share/keyrings/d.gpg",
        "targets": "Packages",
    }


def test_a_key_written_into_the_source_is_kept_line_by_line(tmp_path: Path) -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n"
    stanza = f"Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\n{key}"
    source = debian_source(_apt_folder(tmp_path, {"sources.list.d/debian.sources": stanza}), "bookworm")
    assert source is not None
    assert "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END" in source


def test_a_classic_source_is_understood_with_its_options(tmp_path: Path) -> None:
    line = "deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian trixie main non-free\n"
    apt = _apt_folder(tmp_path, {"sources.list": f"# deb http://old.example bookworm main\n{line}"})
    assert _fields(debian_source(apt, "bookworm")) == {
        "types": "deb",
        "uris": "http://mirror.example/debian",
        "suites": "bookworm",
        "components": "main",
        "architectures": "amd64 arm64",
        "signed-by": "/k.gpg",
        "targets": "Packages",
    }


def test_other_peoples_and_disabled_sources_are_no_debian_mirror(tmp_path: Path) -> None:
    apt = _apt_folder(
        tmp_path,
        {
            "sources.list.d/cloud.list": "deb https://packages.example/apt cloud-sdk-bookworm main\n",
            "sources.list.d/off.sources": "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: sid\n",
            "sources.list.d/security.list": "deb http://security.example bookworm-security main\n",
        },
    )
    assert debian_source(apt, "sid") is None


PROMETHEUS_2 = Program("bookworm", "prometheus", ("prometheus",), at_least=(2, 42), below=(3,))


@pytest.mark.parametrize("version", ["2.42.0+ds (branch: debian/sid)", "2.53.1 (branch: HEAD)"])
def test_a_program_between_its_versions_will_do(tmp_path: Path, version: str) -> None:
    assert why_unfit(PROMETHEUS_2, _program_that_says(tmp_path, f"prometheus, version {version}")) is None


@pytest.mark.parametrize(
    "said", ["prometheus, version 2.41.9", "prometheus, version 3.0.0", "prometheus, version 10.0.0", "nothing of use"]
)
def test_a_program_outside_its_versions_will_not_do(tmp_path: Path, said: str) -> None:
    assert why_unfit(PROMETHEUS_2, _program_that_says(tmp_path, said)) is not None


def test_a_program_that_is_not_there_will_not_do(tmp_path: Path) -> None:
    assert "does not run" in str(why_unfit(Program("sid", "x", ("x",)), tmp_path / "x"))


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_missing_is_said_in_one_line_and_fails_only_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], ci: str
) -> None:
    def refuse(suite: str, programs: object) -> None:
        message = f"no network for {suite}, {programs is not None}"
        raise CannotFetchError(message)

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(fetch_receivers, "CACHE", tmp_path)
    monkeypatch.setattr(fetch_receivers, "fetch", refuse)
    monkeypatch.setattr(fetch_receivers, "locate", lambda name: None if name == "vmagent" else tmp_path)
    assert fetch_receivers.main() == (1 if ci else 0)
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "MISSING RECEIVERS: vmagent;" in output
    assert ("FAILURE" if ci else "SKIPPED") in output
    assert "no network for sid" in output
