"""The reasons why the worker cannot go on.

    WorkerError                exit 1
    ├── UsageError             exit 2   what was asked cannot be done as asked
    │   └── ConfigError        exit 2   every mistake of the configuration, in one message
    ├── LedgerHeldError        exit 4   another worker holds the ledger
    └── LedgerError            exit 5
        ├── LedgerUnusableError         the volume does not do what a ledger needs
        │   └── LedgerFullError         there is no room left on it
        └── LedgerDamagedError          the file is not the ledger it should be

What a remote side answers is not in this tree: it is an outcome, a value that the caller has to match.
The text of an error is written for the person who reads it at night: what happened, to what, and what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class WorkerError(Exception):
    """The worker cannot go on; the text says why and what to do."""

    exit_code: ClassVar[int] = 1


class UsageError(WorkerError):
    """A command was given something that it cannot do."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in the configuration.

    setting: the name as the user wrote it or would write it, for example `CF_BUCKET_SECONDS` or `remote_write[0].url`.
    given:   what stood there, or None when nothing did; never a secret.
    problem: what is wrong and what is allowed.
    """

    setting: str
    given: str | None
    problem: str

    def __str__(self) -> str:
        given = "" if self.given is None else f" (given: {self.given})"
        return f"{self.setting}{given}: {self.problem}"


class ConfigError(UsageError):
    """The configuration has mistakes; all of them are in the message, and none of them holds a secret."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join([f"The configuration has {count}:", *(f"  {mistake}" for mistake in mistakes)]))


class LedgerHeldError(WorkerError):
    """Another worker holds the ledger."""

    exit_code = 4


class LedgerError(WorkerError):
    """The ledger cannot be used."""

    exit_code = 5


class LedgerUnusableError(LedgerError):
    """The volume or the file system does not do what a ledger needs: writable, local, room left."""


class LedgerFullError(LedgerUnusableError):
    """No room is left on the ledger's volume. Nothing was written; what was committed before is safe."""


class LedgerDamagedError(LedgerError):
    """The file is not the ledger that it should be."""
