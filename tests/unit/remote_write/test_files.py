import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.config import BasicAuth, DestinationSettings, OAuth2Settings, SecretFile, TlsSettings
from worker.remote_write.files import files_of, plain, signature, with_files_read


def test_every_file_that_is_named_at_any_depth_is_known(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("ca", "oauth-ca", "client-secret", "header")}
    for path in paths.values():
        path.write_text("content")
    settings = DestinationSettings(
        name="main",
        url="https://receiver.example",
        headers={"X-Key": SecretFile(paths["header"])},
        tls=TlsSettings(ca_file=paths["ca"]),
        oauth2=OAuth2Settings(
            client_id="me",
            client_secret=SecretFile(paths["client-secret"]),
            token_url="https://auth.example",
            tls=TlsSettings(ca_file=paths["oauth-ca"]),
        ),
    )
    assert set(files_of(settings)) == set(paths.values())
    read = with_files_read(settings)
    assert set(files_of(read)) == {paths["ca"], paths["oauth-ca"]}
    assert read.oauth2 is not None
    assert plain(read.oauth2.client_secret) == "content"
    assert plain(read.headers["X-Key"]) == "content"
    assert settings.oauth2 is not None
    assert isinstance(settings.oauth2.client_secret, SecretFile)


def test_settings_without_files_stay_what_they_are() -> None:
    basic = BasicAuth(username="user", password=SecretStr("secret"))
    settings = DestinationSettings(name="main", url="https://receiver.example", basic_auth=basic)
    assert with_files_read(settings) is settings
    assert not list(files_of(settings))


@pytest.mark.parametrize("change", ["content", "other file", "gone", "link"])
def test_the_signature_changes_with_the_file(change: str, tmp_path: Path) -> None:
    path, other = tmp_path / "secret", tmp_path / "other"
    path.write_text("one")
    other.write_text("two")
    # Nothing but the file itself tells these two apart.
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    before = signature((path,))
    assert signature((path,)) == before
    match change:
        case "content":
            path.write_text("longer")
        case "other file":
            other.replace(path)
        case "gone":
            path.unlink()
        case _:  # as Kubernetes changes what it mounts
            (tmp_path / "new").symlink_to(other)
            (tmp_path / "new").replace(path)
    assert signature((path,)) != before


def test_a_secret_is_plain_whether_it_was_in_a_file_or_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("content\n")
    assert [plain(value) for value in ("a", SecretStr("b"), SecretFile(tmp_path / "secret"))] == ["a", "b", "content"]
