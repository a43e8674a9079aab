from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import TOKEN, URL, load_list, mistakes_in_one
from worker.config import Authorization, BasicAuth, SecretFile, SecretFileError
from worker.config.values import shown

CANARY = "hunter2canary"


def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = SecretFile(tmp_path / "secret")
    file.path.write_text("one\n")
    assert file.read() == SecretStr("one")
    file.path.write_text("two\r\n\n")
    assert file.read() == SecretStr("two")


def test_blanks_around_a_secret_are_none_of_it_as_in_prometheus(tmp_path: Path) -> None:
    file = SecretFile(tmp_path / "secret")
    file.path.write_text("  pass word \t\n")
    assert file.read() == SecretStr("pass word")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (CANARY.encode() + b"\xff", "is not UTF-8 text"),
        (f"{CANARY}\n{CANARY}".encode(), "must hold text of one line, without control characters"),
        (f"{CANARY}\0".encode(), "must hold text of one line, without control characters"),
    ],
)
def test_a_file_without_a_secret_is_named_and_nothing_of_its_content(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = SecretFile(tmp_path / "secret")
    if content is not None:
        file.path.write_bytes(content)
    with pytest.raises(SecretFileError) as caught:
        file.read()
    assert str(caught.value) == f"{file.path} {problem}"
    assert caught.value.path == file.path
    assert caught.value.__cause__ is None
    assert CANARY not in f"{caught.value!r} {file!r}"


def test_files_of_the_environment_stay_files_too(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s\n")
    file = tmp_path / "secret"
    environ = TOKEN | {"REMOTE_WRITE_URL": URL, "REMOTE_WRITE_BEARER_TOKEN_FILE": str(file)}
    assert load_list(tmp_path, "", environ)[0].authorization == Authorization(credentials=SecretFile(file))
    environ = TOKEN | {
        "REMOTE_WRITE_URL": URL,
        "REMOTE_WRITE_USERNAME": "u",
        "REMOTE_WRITE_PASSWORD_FILE": str(file),
    }
    assert load_list(tmp_path, "", environ)[0].basic_auth == BasicAuth(username="u", password=SecretFile(file))


def test_what_is_in_a_file_is_checked_when_the_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"Bearer {CANARY}")
    assert mistakes_in_one(tmp_path, bearer_token_file="token") == [
        "bearer_token_file: must be the token alone, without the word Bearer in front of it"
    ]


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert mistakes_in_one(tmp_path, bearer_token_file="~/token") == [
        f"bearer_token_file (given: {shown(f'{tmp_path}/home/token')}): cannot be read: No such file or directory"
    ]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    assert mistakes_in_one(tmp_path, bearer_token_file="secrets") == [
        "bearer_token_file (given: secrets): is a directory; give the path of a file in it"
    ]
