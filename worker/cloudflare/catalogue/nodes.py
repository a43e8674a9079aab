"""YAML as values, each with the line it stands on, and every mistake noted.

A reader answers with an empty value where something is wrong, so that reading goes on and all mistakes are told at
once; who asks must look at `mistakes` before the values are used. Knows nothing of datasets.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

import yaml
from yaml.constructor import SafeConstructor

from worker.errors import Mistake

# The parser in C, where PyYAML was built with it, is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_EXPONENT = re.compile(r"[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{1,2}")


class Item(NamedTuple):
    """A key of a mapping and its value."""

    key: yaml.ScalarNode
    value: yaml.Node


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing where no known name is near."""
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


@dataclass
class NodeReader:
    """Reads the nodes of one file.

    file_name: how the file is called in mistakes.
    mistakes:  those found so far.
    """

    file_name: str
    mistakes: list[Mistake] = field(default_factory=list)
    _constructor: SafeConstructor = field(default_factory=SafeConstructor)

    def wrong(self, node: yaml.Node, problem: str) -> None:
        """Note what is wrong with a node; of a scalar, what stands there is told, too."""
        given = node.value if isinstance(node, yaml.ScalarNode) else None
        self.mistakes.append(Mistake(f"{self.file_name}:{node.start_mark.line + 1}", given, problem))

    def document(self, text: str) -> yaml.Node | None:
        """The root of the one document in `text`; None where there is none, or where it is not YAML."""
        try:
            return yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = self.file_name if mark is None else f"{self.file_name}:{mark.line + 1}"
            problem = ", ".join(part for part in (error.context, error.problem) if part)
        except yaml.YAMLError:
            where, problem = self.file_name, "it holds a character that YAML does not allow"
        except RecursionError:
            where, problem = self.file_name, "it is nested too deeply"
        self.mistakes.append(Mistake(where, None, f"is not YAML: {problem}"))
        return None

    def mapping(self, node: yaml.Node, what: str) -> dict[str, Item]:
        """The items of a mapping whose keys are free."""
        found: dict[str, Item] = {}
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{what} must be a mapping of names to values")
            return found
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.wrong(key, f"a name in {what} must be text")
            elif key.value in found:
                first = found[key.value].key.start_mark.line + 1
                self.wrong(key, f"is given a second time in {what}; the first is on line {first}")
            else:
                found[key.value] = Item(key, value)
        return found

    def fields(
        self, node: yaml.Node, what: str, *, required: Collection[str], optional: Collection[str] = ()
    ) -> Mapping[str, yaml.Node]:
        """The values of a mapping whose keys are known."""
        found = self.mapping(node, what)
        known = (*required, *optional)
        unknown = [item.key for name, item in found.items() if name not in known]
        for key in unknown:
            self.wrong(key, f"is not a key of {what}{nearest(key.value, known)}; keys are {', '.join(known)}")
        # What was misspelt is not missing as well.
        misspelt = {name for key in unknown for name in get_close_matches(key.value, known, n=1)}
        missing = [name for name in required if name not in found and name not in misspelt]
        if missing and isinstance(node, yaml.MappingNode):
            where = Mistake(f"{self.file_name}:{node.start_mark.line + 1}", None, f"{what} lacks {', '.join(missing)}")
            self.mistakes.append(where)
        return {name: item.value for name, item in found.items()}

    def text(self, node: yaml.Node | None, what: str) -> str:
        """Text on one line."""
        value = self._scalar(node)
        if isinstance(value, str) and value.strip() and value.isprintable():
            return value
        if node is not None:
            self.wrong(node, f"{what} must be text on one line")
        return ""

    def texts(self, node: yaml.Node | None, what: str) -> Mapping[str, yaml.Node]:
        """A list of different texts, each with its node."""
        if node is None:
            return {}
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, f"{what} must be a list")
            return {}
        found: dict[str, yaml.Node] = {}
        for item in node.value:
            text = self.text(item, f"each of {what}")
            if text in found and text:
                self.wrong(item, f"is given a second time in {what}")
            found[text] = item
        return found

    def word(self, node: yaml.Node | None, what: str, allowed: Collection[str]) -> str:
        """One of a few words."""
        text = self.text(node, what)
        if text and text not in allowed and node is not None:
            self.wrong(node, f"{what} must be one of {', '.join(allowed)}{nearest(text, allowed)}")
        return text

    def whole(self, node: yaml.Node | None, what: str, *, minimum: int, maximum: int) -> int:
        """A whole number between two bounds, both allowed."""
        value = self._scalar(node)
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return value
        if node is not None:
            self.wrong(node, f"{what} must be a whole number from {minimum} to {maximum}")
        return minimum

    def positive(self, node: yaml.Node, what: str) -> float:
        """A number greater than zero."""
        value = self._scalar(node)
        if isinstance(value, str) and _EXPONENT.fullmatch(value):  # YAML 1.1 takes these for text
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        self.wrong(node, f"{what} must be a number greater than 0")
        return 1.0

    def truth(self, node: yaml.Node | None, what: str, *, default: bool) -> bool:
        """`true` or `false`."""
        if node is None:
            return default
        value = self._scalar(node)
        if not isinstance(value, bool):
            self.wrong(node, f"{what} must be true or false")
        return value is True

    def condition(self, node: yaml.Node, what: str) -> str | int | bool | tuple[str | int, ...]:
        """A value that a filter compares with: text, a whole number, a truth value, or a list of the first two."""
        if isinstance(node, yaml.SequenceNode) and node.value:
            values = tuple(self.condition(item, what) for item in node.value)
            single = tuple(value for value in values if isinstance(value, str | int) and not isinstance(value, bool))
            if len(single) < len(values):
                self.wrong(node, f"{what} must be a list of texts or whole numbers")
            return single
        value = self._scalar(node)
        if isinstance(value, str | int):
            return value
        self.wrong(node, f"{what} must be text, a whole number, true, false, or a list")
        return ""

    def _scalar(self, node: yaml.Node | None) -> object:
        """The value of a scalar as YAML reads it; None for everything else."""
        if not isinstance(node, yaml.ScalarNode):
            return None
        try:
            value: object = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return None
        return value
