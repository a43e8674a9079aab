"""Collects what is wrong, so that it is told all at once.

Owns the way from a pydantic error to a sentence for people: nothing of pydantic's own words, and nothing of what it was
given, reaches a message.
"""

from collections.abc import Callable

from pydantic import ValidationError

from worker.config.values import InvalidValueError
from worker.errors import ConfigError, Mistake


class Mistakes:
    """The mistakes found so far; of several about the same setting the first is kept, as the others follow from it."""

    def __init__(self) -> None:
        self._found: dict[str, Mistake] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, setting: str, given: str | None, problem: str) -> None:
        """Note that what was given for `setting` is wrong; nothing of a secret may be in any of the three."""
        self._found.setdefault(setting, Mistake(setting, given, problem))

    def add_invalid(self, error: ValidationError, setting_at: Callable[[tuple[int | str, ...]], str]) -> None:
        """Note what a model refused; `setting_at` names the setting at a place inside the model."""
        for detail in error.errors(include_url=False, include_input=False):
            setting = setting_at(detail["loc"])
            match detail["type"]:
                case "value_error" if isinstance(invalid := detail["ctx"]["error"], InvalidValueError):
                    self.add(setting, invalid.given, invalid.problem)
                case "missing":
                    self.add(setting, None, "is required")
                case "tuple_type":
                    self.add(setting, None, "must be a list: every item starts with `- `")
                case _:  # every single value is left to a parser: what a model itself refuses is no mapping
                    self.add(setting, None, "must be a mapping of keys to values")

    def raise_any(self, order: Callable[[Mistake], tuple[int, int]]) -> None:
        """Raise ConfigError with all mistakes, in this order, if there are any."""
        if self._found:
            raise ConfigError(sorted(self._found.values(), key=order))
