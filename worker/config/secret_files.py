"""Secrets that are given as `X` or, in a file of their own, as `X_FILE`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.config import values
from worker.config.mistakes import Mistakes


@dataclass(frozen=True, slots=True)
class Given:
    """That something was given for a setting.

    name:  the setting as the user wrote it.
    value: what was given; None where it is already noted as a mistake. May be a secret.
    """

    name: str
    value: object


def is_empty(value: object) -> bool:
    """Whether a value counts as not given: nothing, or blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def look_up(
    source: Mapping[str, object], key: str, file_key: str, *, directory: Path, mistakes: Mistakes, where: str = ""
) -> Given | None:
    """What `source` holds under `key`, or in the file that it names under `file_key`; None where neither is given.

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
        return Given(name, _content(path, directory))
    except values.InvalidValueError as invalid:
        mistakes.add(name, invalid.given, invalid.problem)
        return Given(name, None)


def _content(path: object, directory: Path) -> str:
    """What a secret's file holds, without the line ends after it; a relative path starts at `directory`."""
    file = values.file_path(directory / path if isinstance(path, str) else path)
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise values.InvalidValueError(values.shown(str(file)), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise values.InvalidValueError(values.shown(str(file)), "is not UTF-8 text") from None
    if not text:
        raise values.InvalidValueError(values.shown(str(file)), "is empty")
    return text
