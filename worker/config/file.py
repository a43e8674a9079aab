"""The YAML file: from bytes to mappings, lists and texts.

Every scalar stays the text that stands in the file, as an environment variable would hold it: `010` keeps its zero, a
zone id made of digits stays an id, and one parser reads both. Promises that a syntax error, a tag and a key given
twice are mistakes with their line and a placeholder one with its name, and that no such message repeats a value.

Knows no setting by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import SafeConstructor

from worker.config.mistakes import Mistakes

_PLACEHOLDER = re.compile(r"\$\{[A-Za-z_][^}]*\}")
# What the YAML library quotes in its messages, and which of it may be repeated: a single character, or one of the
# library's own tokens (`'<block end>'`). All else comes from the file.
_QUOTED = re.compile(r"""(['"])(.*?)\1""", re.DOTALL)
_HARMLESS = re.compile(r"<[a-z ]+>|\\?.")

_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_MAPPING = "tag:yaml.org,2002:map"
_SEQUENCE = "tag:yaml.org,2002:seq"


class _Loader(SafeConstructor, yaml.BaseLoader):
    """Makes texts, nothing (`~`), mappings and lists, and notices keys that are given twice."""

    yaml_constructors: ClassVar[Any] = {
        tag: SafeConstructor.yaml_constructors[tag] for tag in (_TEXT, _NULL, _MAPPING, _SEQUENCE, None)
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[tuple[str, int, int]] = []

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    self.repeated.append((key.value, lines[key.value], line))
                lines.setdefault(key.value, line)
        return node


_Loader.add_implicit_resolver(_NULL, re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


def read_file(
    path: Path, mistakes: Mistakes, *, own_placeholders: frozenset[str] = frozenset()
) -> Mapping[str, object] | None:
    """The file's top-level keys with their values; None, with the reason in `mistakes`, where it cannot be read.

    own_placeholders: keys, at any depth, under which `${...}` means something.
    """
    where = str(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        tree = loader.get_single_data()
        for key, first, line in loader.repeated:
            mistakes.add(f"{path}:{line}", None, f"{key} is given a second time; the first is on line {first}")
        if tree is None:
            return {}
        if isinstance(tree, Mapping):
            return _Placeholders(own_placeholders, mistakes).refuse_in(tree)
        problem = "must hold settings, one `name: value` a line"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            where = f"{path}:{mark.line + 1}"
        problem = _syntax(error)
    except yaml.YAMLError:
        problem = "holds a character that YAML does not allow"
    except RecursionError:
        problem = "is nested too deeply"
    mistakes.add(where, None, problem)
    return None


@dataclass(frozen=True, slots=True)
class _Placeholders:
    """Looks for `${...}`, which nothing fills in.

    own: keys under which it means something.
    """

    own: frozenset[str]
    mistakes: Mistakes

    def refuse_in(self, tree: Mapping[object, object]) -> Mapping[str, object]:
        """The mapping with texts as its keys throughout; placeholders are noted as mistakes."""
        return {str(key): self._checked(value, str(key), own=key in self.own) for key, value in tree.items()}

    def _checked(self, value: object, name: str, *, own: bool) -> object:
        match value:
            case Mapping():
                return {
                    str(key): self._checked(item, f"{name}.{key}", own=own or key in self.own)
                    for key, item in value.items()
                }
            case list():
                return [self._checked(item, f"{name}[{index}]", own=own) for index, item in enumerate(value)]
            case str() if not own and _PLACEHOLDER.search(value):
                problem = (
                    "holds a ${...} placeholder, and nothing fills it in: write the value itself, give a secret as a "
                    "file (..._file), or use an environment variable of the worker"
                )
                self.mistakes.add(name, None, problem)
        return value


def _syntax(error: yaml.MarkedYAMLError) -> str:
    library_text = ", ".join(part for part in (error.context, error.problem) if part)
    text = _QUOTED.sub(lambda quoted: quoted[0] if _HARMLESS.fullmatch(quoted[2]) else "...", library_text)
    if text != library_text:
        text += "; text that starts with a special character must stand in quotes"
    elif r"'\t'" in text:
        text += "; indent with blanks, not with tabs"
    return f"is not YAML: {text}"
