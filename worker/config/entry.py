"""From the mapping that stands in the file to the section that it describes.

Owns what holds at every depth of an entry: a value or the file of it, keys that nobody knows, keys of Prometheus that
no setting stands behind, keys that do not go together. Promises that all of it is told at once, each mistake under the
name that the user wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from worker.config import prometheus_keys
from worker.config.mistakes import Mistakes
from worker.config.secret_files import look_up
from worker.config.section import Section
from worker.config.values import InvalidValueError, did_you_mean

_AnySection = TypeVar("_AnySection", bound=Section)


def read_entry(
    kind: type[_AnySection], given: Mapping[str, object], where: str, directory: Path, mistakes: Mistakes
) -> _AnySection | None:
    """The section, or None where a mistake was found in it.

    where:     the entry as mistakes name it, such as `remote_write[0]`.
    directory: where relative paths start.
    """
    before = len(mistakes)
    reading = _Reading(where, directory, mistakes)
    entry = reading.prepare(kind, given, "")
    try:
        section = kind.model_validate(entry, context={"directory": directory})
    except ValidationError as error:
        mistakes.add_invalid(error, lambda location: reading.name(kind.written(location)))
        return None
    return section if len(mistakes) == before else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """One entry on its way.

    file_names: under which name a value was given that stands in a file, by its path in the entry.
    """

    where: str
    directory: Path
    mistakes: Mistakes
    file_names: dict[str, str] = field(default_factory=dict)

    def name(self, path: str) -> str:
        """A path in the entry as the user wrote it."""
        return self.file_names.get(path) or (f"{self.where}.{path}" if path else self.where)

    def prepare(self, kind: type[Section], given: Mapping[str, object], path: str) -> dict[str, Any]:
        """What the section's model can take: without the keys that it does not know, with files for their values."""
        keys = kind.keys()
        files = {key.file_name: key for key in keys.values() if key.file_name}
        inside = f"{path}." if path else ""
        entry: dict[str, Any] = {}
        for name, value in given.items():
            if (of_prometheus := prometheus_keys.KEYS.get(inside + name)) is not None:
                self._check(of_prometheus, inside + name, value)
            elif name in keys:
                entry[name] = self._prepare_inner(keys[name].section, value, inside + name)
            elif name not in files:
                problem = f"is not a known key{did_you_mean(name, [*keys, *files])}"
                self.mistakes.add(self.name(inside + name), None, problem)
        for file_name, key in files.items():
            found = look_up(
                given,
                key.name,
                file_name,
                directory=self.directory,
                mistakes=self.mistakes,
                where=f"{self.where}.{inside}",
            )
            if found is not None:
                entry[key.name] = found.value
                self.file_names[inside + key.name] = found.name
        for name, problem in kind.wrong_together({**given, **entry}):
            self.mistakes.add(self.name(inside + name if name else path), None, problem)
        return entry

    def _prepare_inner(self, kind: type[Section] | None, value: object, path: str) -> object:
        match value:
            case Mapping() if kind is not None:
                return self.prepare(kind, value, path)
            case list() if kind is not None:
                return [self._prepare_inner(kind, item, f"{path}[{index}]") for index, item in enumerate(value)]
            case _:
                return value

    def _check(self, key: prometheus_keys.Kept | prometheus_keys.Refused, path: str, value: object) -> None:
        try:
            prometheus_keys.check(key, value)
        except InvalidValueError as invalid:
            self.mistakes.add(self.name(path), invalid.given, invalid.problem)
