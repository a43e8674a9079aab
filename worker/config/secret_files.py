"""Secrets that are given as `X` or, in a file of their own, as `X_FILE`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from worker.config import values
from worker.config.mistakes import Mistakes


class SecretFileError(values.InvalidValueError):
    """A file that should hold a secret does not. The text names the file and what is wrong, and nothing of its content.

    path:    of the file.
    problem: what is wrong with it, as the rest of a sentence.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(values.shown(str(path)), problem)
        self.path = path

    def __str__(self) -> str:
        return f"{self.given} {self.problem}"


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that holds a secret, now this one and later perhaps another.

    path: of the file; absolute, or relative to the working directory.
    """

    path: Path

    def read(self) -> SecretStr:
        """What the file holds now, without blanks and line ends around it, as Prometheus reads it. SecretFileError."""
        try:
            text = self.path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SecretFileError(self.path, f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SecretFileError(self.path, "is not UTF-8 text") from None
        if not text:
            raise SecretFileError(self.path, "is empty")
        if not text.isprintable():
            raise SecretFileError(self.path, "must hold text of one line, without control characters")
        return SecretStr(text)


@dataclass(frozen=True, slots=True)
class Given:
    """That something was given for a setting.

    name:  the setting as the user wrote it.
    value: what was given; None where it is already noted as a mistake. May be a secret, or the file of one.
    """

    name: str
    value: object


def is_empty(value: object) -> bool:
    """Whether a value counts as not given: nothing, or blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def look_up(
    source: Mapping[str, object], key: str, file_key: str, *, directory: Path, mistakes: Mistakes, where: str = ""
) -> Given | None:
    """What `source` holds under `key`, or the file that it names under `file_key`; None where neither is given.

    directory: where a relative path starts.
    where:     what stands in front of the keys in a mistake.
    """
    value, path = source.get(key), source.get(file_key)
    if is_empty(path):
        return None if is_empty(value) else Given(where + key, value)
    name = where + file_key
    if not is_empty(value):
        mistakes.add(name, values.shown(path), f"cannot be given together with {where}{key}; keep one of them")
        return Given(name, None)
    try:
        return Given(name, SecretFile(values.file_path(path, directory)))
    except values.InvalidValueError as invalid:
        mistakes.add(name, invalid.given, invalid.problem)
        return Given(name, None)
