"""What all settings have in common, and the kinds of value that their fields hold.

A section is written as a mapping of keys. A field marked `INLINE` is a section whose keys stand among those of the
section around it, as Prometheus has its proxy settings.

Knows no setting by name.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from worker.config import endpoints, values
from worker.config.secret_files import SecretFile

_Value = TypeVar("_Value")

INLINE = "inline"
"""Marks a field in its `Annotated`: the keys of its section stand among those around it."""


ELSEWHERE = "elsewhere"
"""Marks a field in its `Annotated` that no key of the section sets."""

FROM_A_FILE = "from a file"
"""Marks a field in its `Annotated` whose value can be given as a file, though the value itself is none."""


def whole(minimum: int, maximum: int, unit: str) -> BeforeValidator:
    """A whole number of `unit` between two bounds, both allowed."""
    return BeforeValidator(partial(values.whole_number, minimum=minimum, maximum=maximum, unit=unit))


def duration(minimum: float, maximum: float) -> BeforeValidator:
    """A duration as Prometheus writes it, between two bounds in seconds, both allowed."""
    return BeforeValidator(partial(values.duration_seconds, minimum=minimum, maximum=maximum))


def choice(*allowed: str) -> BeforeValidator:
    """One of a few words."""
    return BeforeValidator(partial(values.choice, allowed=allowed))


def read_again(parser: Callable[[object], _Value]) -> BeforeValidator:
    """A value, or the file that holds it: the file is read and its content checked, and stays a file."""

    def parse(value: object) -> _Value | SecretFile:
        if isinstance(value, SecretFile):
            parser(value.read().get_secret_value())
            return value
        return parser(value)

    return BeforeValidator(parse)


def read_once(parser: Callable[[object], SecretStr]) -> BeforeValidator:
    """A secret; a file is read now and never again."""
    return BeforeValidator(lambda value: parser(value.read() if isinstance(value, SecretFile) else value))


def in_directory(parser: Callable[[object, Path], object]) -> BeforeValidator:
    """What has paths in it; they start at the `directory` of the validation's context, else where the worker runs."""

    def parse(value: object, info: ValidationInfo) -> object:
        return parser(value, (info.context or {}).get("directory", Path()))

    return BeforeValidator(parse)


Url = Annotated[str, BeforeValidator(endpoints.destination_url)]
Secret = Annotated[SecretStr | SecretFile, read_again(endpoints.secret)]
Token = Annotated[SecretStr | SecretFile, read_again(endpoints.token)]
Text = Annotated[str, BeforeValidator(values.plain_text)]
Truth = Annotated[bool, BeforeValidator(values.truth)]
ReadableFile = Annotated[Path, in_directory(values.readable_file)]
FilePath = Annotated[Path, in_directory(values.file_path)]


@dataclass(frozen=True, slots=True)
class Key:
    """A key under which something can be written in a section.

    name:     the key.
    path:     attributes from the section to the value.
    owner:    the section whose field is behind it, which is the last attribute of the path.
    section:  the section that stands under the key, if one does.
    repeated: whether what stands under the key is a list of such sections.
    """

    name: str
    path: tuple[str, ...]
    owner: "type[Section]"
    section: "type[Section] | None"
    repeated: bool

    @property
    def info(self) -> FieldInfo:
        """The field behind it."""
        return self.owner.model_fields[self.path[-1]]

    @property
    def file_name(self) -> str | None:
        """The key that names a file with the value instead, if there is one."""
        return f"{self.name}_file" if can_be_a_file(self.info) else None


class Section(BaseModel):
    """What all settings have in common: unknown names are refused, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_by_alias=True,
        validate_by_name=True,
    )

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """The keys of the section, in the order of its fields."""
        found: dict[str, Key] = {}
        for name, info in cls.model_fields.items():
            section = _section_in(info.annotation)
            if ELSEWHERE in info.metadata:
                continue
            if section is not None and INLINE in info.metadata:
                for inner in section.keys().values():
                    found[inner.name] = Key(
                        inner.name, (name, *inner.path), inner.owner, inner.section, repeated=inner.repeated
                    )
            else:
                key = str(info.validation_alias or name)
                found[key] = Key(key, (name,), cls, section, repeated=holds(info.annotation, tuple))
        return found

    @classmethod
    def meaning(cls, field: str) -> str:
        """What a field is: the docstring under it.

        It is looked up in the source, so only where somebody asks: to read all of them takes a tenth of a second.
        """
        owner = next(kind for kind in cls.__mro__ if field in inspect.get_annotations(kind))
        source = ast.parse(inspect.getsource(owner))
        [definition] = (node for node in source.body if isinstance(node, ast.ClassDef))
        for statement, below in pairwise(definition.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))) if (
                    name == field
                ):
                    return inspect.cleandoc(text)
        return ""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """Which of the keys that hold something do not go together, each with the reason.

        given: keys to what was written under them, before it is parsed; of `X` and `X_file` always `X`.
        """
        for info in cls.model_fields.values():
            section = _section_in(info.annotation)
            if section is not None and INLINE in info.metadata:
                yield from section.wrong_together(given)

    @classmethod
    def written(cls, location: tuple[int | str, ...]) -> str:
        """How the place of an error inside the model is written: `a.b`, `a[0].b`."""
        text = ""
        section: type[Section] | None = cls
        for part in location:
            if isinstance(part, int):
                text += f"[{part}]"
                continue
            info = None if section is None else _field_at(section, part)
            if info is None or INLINE not in info.metadata:
                text += f".{part}" if text else part
            section = None if info is None else _section_in(info.annotation)
        return text

    @model_validator(mode="before")
    @classmethod
    def _the_keys_of_inline_sections_are_gathered(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        keys = cls.keys()
        gathered: dict[str, Any] = {}
        for name, value in given.items():
            if name in keys and len(path := keys[name].path) > 1:
                gathered.setdefault(path[0], {})[name] = value
            else:
                gathered[name] = value
        return gathered

    @model_validator(mode="before")
    @classmethod
    def _an_empty_value_is_no_value(cls, given: Any) -> Any:
        """Leave out known keys that hold nothing, so that their defaults apply; unknown ones stay, to be reported."""
        if not isinstance(given, Mapping):
            return given
        known = {*cls.keys(), *cls.model_fields}
        return {key: value for key, value in given.items() if key not in known or value not in (None, "")}


def _field_at(section: type[Section], part: str) -> FieldInfo | None:
    """The field that has this name or is written so."""
    fields = section.model_fields.items()
    return next((info for name, info in fields if part in (name, info.validation_alias)), None)


def _section_in(annotation: object) -> type[Section] | None:
    """The section that an annotation holds, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((inner for part in get_args(annotation) if (inner := _section_in(part))), None)


def can_be_a_file(info: FieldInfo) -> bool:
    """Whether the field's value can be given as the file that holds it."""
    return FROM_A_FILE in info.metadata or (holds(info.annotation, SecretFile) and not holds(info.annotation, Mapping))


def holds(annotation: object, kind: type) -> bool:
    """Whether an annotation is this type or has it inside."""
    origin = getattr(annotation, "__origin__", annotation)
    return origin is kind or any(holds(inner, kind) for inner in get_args(annotation))
