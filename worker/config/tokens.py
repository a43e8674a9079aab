"""Several API tokens as users write them: entries of the list `cloudflare` in the file.

Owns that each has a name of its own and that none is there twice.
"""

from collections.abc import Mapping
from pathlib import Path

from worker.config.entry import read_entry
from worker.config.mistakes import Mistakes
from worker.config.settings import TokenSettings


def from_list(entries: object, directory: Path, mistakes: Mistakes) -> tuple[TokenSettings, ...]:
    """The tokens of the file's `cloudflare` list that are as they should be.

    directory: of the file; relative paths in it start there.
    """
    if not isinstance(entries, list):
        mistakes.add("cloudflare", None, "must be a list: every token starts with `- name: ...`")
        return ()
    tokens: dict[int, TokenSettings] = {}
    for index, entry in enumerate(entries):
        where = f"cloudflare[{index}]"
        if not isinstance(entry, Mapping):
            mistakes.add(where, None, "must be a mapping of keys to values, such as `- name: ...`")
        elif (token := read_entry(TokenSettings, entry, where, directory, mistakes)) is not None:
            if both := [zone for zone in token.zones if zone in token.exclude_zones]:
                mistakes.add(f"{where}.exclude_zones", ", ".join(both), "must not hold a zone that is also in zones")
            _refuse_twins(token, where, tokens, mistakes)
            tokens[index] = token
    return tuple(tokens.values())


def _refuse_twins(token: TokenSettings, where: str, others: Mapping[int, TokenSettings], mistakes: Mistakes) -> None:
    """No two budgets for one token, and no two tokens that look like one in metrics and in the ledger."""
    for index, other in others.items():
        if other.name == token.name:
            mistakes.add(f"{where}.name", token.name, f"is also the name of cloudflare[{index}]")
        if other.api_token == token.api_token:
            problem = f"is the same token as that of cloudflare[{index}]: a token has one budget; make them one entry"
            mistakes.add(f"{where}.api_token", None, problem)
