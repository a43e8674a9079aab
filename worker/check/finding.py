"""What a check finds: a value for every single thing that was looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# So many names show whom a finding is about.
_FIRST_NAMES = 3


class State(StrEnum):
    """How serious it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something will go wrong later or is lost meanwhile."""
    FAILURE = "failure"
    """It does not work as it is."""
    SKIPPED = "skipped"
    """It was not looked at, and nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    section: what it is a part of, such as `token` or `ledger`.
    what:    what was found, as a sentence without a full stop at its end.
    to_do:   what to do about it, or could be done; empty where that is nothing.
    """

    state: State
    section: str
    what: str
    to_do: str = ""


def ok(section: str, what: str, to_do: str = "") -> Finding:
    return Finding(State.OK, section, what, to_do)


def warning(section: str, what: str, to_do: str = "") -> Finding:
    return Finding(State.WARNING, section, what, to_do)


def failure(section: str, what: str, to_do: str = "") -> Finding:
    return Finding(State.FAILURE, section, what, to_do)


def skipped(section: str, what: str, to_do: str = "") -> Finding:
    return Finding(State.SKIPPED, section, what, to_do)


def first_of(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - _FIRST_NAMES:,} more" if len(names) > _FIRST_NAMES else ""
    return f"{', '.join(names[:_FIRST_NAMES])}{more}"
