"""What the files that a destination's settings name hold now.

Passwords are rotated and certificates renewed while the worker runs. Whoever uses settings asks for them with the files
read, and asks again when a file has changed; nobody else knows that a secret came from a file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr, TypeAdapter, ValidationError

from worker.config import DestinationSettings, SecretFile
from worker.config.section import Section
from worker.config.values import InvalidValueError
from worker.errors import ConfigError, Mistake

S = TypeVar("S", bound=Section)
Signature = tuple[tuple[int, int, int] | None, ...]
"""What changes when a file does: time of its last change, size and inode; None for a file that is not there."""


def signature(paths: tuple[Path, ...]) -> Signature:
    """The state of the files, to be compared with a later one. Reads nothing but their directory entries."""
    return tuple(_signature(path) for path in paths)


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def files_of(section: Section) -> Iterator[Path]:
    """Every file that the settings name: of secrets, certificates and keys."""
    for _, value in section:
        yield from _files_in(value)


def _files_in(value: object) -> Iterator[Path]:
    match value:
        case Path():
            yield value
        case SecretFile(path=path):
            yield path
        case Section():
            yield from files_of(value)
        case Mapping():
            for member in value.values():
                yield from _files_in(member)
        case _:
            pass


def plain(value: str | SecretStr | SecretFile) -> str:
    """What is sent of a setting that may be a secret. A file is read; whoever reads many reads them before."""
    match value:
        case str():
            return value
        case SecretStr():
            return value.get_secret_value()
        case SecretFile():
            return value.read().get_secret_value()


def with_files_read(settings: DestinationSettings) -> DestinationSettings:
    """The same settings with every secret's file replaced by its content, checked as when the worker started.

    ConfigError where a file cannot be read or holds something else than its setting takes.
    """
    return _read(settings, f"remote_write {settings.name}: ")


def _read(section: S, where: str) -> S:
    changed: dict[str, object] = {}
    for name, value in section:
        match value:
            case SecretFile() as file:
                changed[name] = _content(section, name, file, f"{where}{name}_file")
            case Section() as inner if (read := _read(inner, f"{where}{name}.")) is not inner:
                changed[name] = read
            case Mapping() if any(isinstance(member, SecretFile) for member in value.values()):
                changed[name] = {
                    key: _content(section, name, member, f"{where}{name}.{key}")
                    if isinstance(member, SecretFile)
                    else member
                    for key, member in value.items()
                }
            case _:
                pass
    return section.model_copy(update=changed) if changed else section


def _content(section: Section, name: str, file: SecretFile, setting: str) -> object:
    field = type(section).model_fields[name]
    try:
        content = file.read().get_secret_value()
        # A header's name does not matter for what its value may be.
        given = {"X": content} if isinstance(getattr(section, name), Mapping) else content
        checked: object = TypeAdapter(field.rebuild_annotation()).validate_python(given)
    except InvalidValueError as invalid:
        raise ConfigError([Mistake(setting, str(file.path), invalid.problem)]) from None
    except ValidationError as error:
        (detail, *_) = error.errors(include_url=False, include_input=False)
        problem = getattr(detail.get("ctx", {}).get("error"), "problem", "holds what this setting does not take")
        raise ConfigError([Mistake(setting, str(file.path), f"holds what cannot be used: it {problem}")]) from None
    return checked["X"] if isinstance(checked, Mapping) else checked
