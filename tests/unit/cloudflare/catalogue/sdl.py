"""Cloudflare's schema as names, read by its lines: building it with graphql-core takes seconds, this a tenth of one."""

import re
from functools import cache, lru_cache
from pathlib import Path

import pytest

SCHEMA = Path(__file__).parents[4].parent / "shared" / "cloudflare" / "schema.graphql"

_BLOCK = re.compile(r"^(?:type|input|enum) (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_DESCRIPTION = re.compile(r'^\s*""".*?"""\n', re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+)(?:\((.*?)\))?(?:: ([\w\[\]!]+))?", re.MULTILINE | re.DOTALL)
_ARGUMENT = re.compile(r"(\w+): ([\w\[\]!]+)")


class Sdl:
    """Types by name, and their fields, or the values of enumerations, by name."""

    def __init__(self, text: str) -> None:
        self._bodies = dict(_BLOCK.findall(_DESCRIPTION.sub("", text)))

    @cache  # noqa: B019 - there is one, as long as the tests run
    def fields(self, type_name: str) -> dict[str, str]:
        """The fields of a type with their types as they are written."""
        return {name: kind for name, _, kind in _FIELD.findall(self._bodies[type_name])}

    def arguments(self, type_name: str, field: str) -> dict[str, str]:
        """The arguments of a field with the names of their types, without marks."""
        for name, arguments, _ in _FIELD.findall(self._bodies[type_name]):
            if name == field:
                return {argument: re.sub(r"[\[\]!]", "", kind) for argument, kind in _ARGUMENT.findall(arguments)}
        raise KeyError(field)

    def object(self, type_name: str, field: str) -> str:
        """The name of the type that a field has."""
        return re.sub(r"[\[\]!]", "", self.fields(type_name)[field])


@lru_cache(maxsize=1)
def _read() -> Sdl:
    return Sdl(SCHEMA.read_text())


def cloudflares_schema() -> Sdl:
    """Skips the test where the schema is not here."""
    if not SCHEMA.exists():
        pytest.skip("Cloudflare's schema is not here")
    return _read()
