"""From the environment and the file to `Settings`, or to the one error that tells every mistake in them."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import SecretStr, TypeAdapter, ValidationError

from worker.config import destinations, pasted, tokens
from worker.config.file import read_file
from worker.config.mistakes import Mistakes
from worker.config.names import SETTINGS, TOKEN_SETTINGS, Setting
from worker.config.secret_files import Given, is_empty, look_up
from worker.config.settings import DestinationSettings, Settings, TokenSettings
from worker.config.values import did_you_mean
from worker.errors import Mistake

# Other programs have CF_ and LOG_ variables, too: a name is taken for a misspelt one of ours only where it differs in a
# character or two. Of names with 12 to 25 characters, 0.9 lets CF_ACCOUNT pass for CF_ACCOUNTS (0.95), but not
# CF_ACCOUNT_ID (0.83), LEDGER_PORT (0.82) or CF_API_KEY (0.82).
_MISSPELT = 0.9
# A number under a name that lacks the unit, or has another one, was meant for us: CF_DELAY, LEDGER_RETENTION_DAYS.
_UNIT = re.compile(r"_(SECONDS|MINUTES|HOURS|DAYS|BYTES)$")
# Replacements refer to the groups of their regex.
_OWN_PLACEHOLDERS = frozenset({"write_relabel_configs"})
# Stands for the token in the settings of what asks Cloudflare nothing.
_NO_TOKEN = SecretStr("not-given")
_LISTS = {"cloudflare": "CF_API_TOKEN", "remote_write": "REMOTE_WRITE_URL"}  # in the place of which each stands
_PLACES = {setting.name: place for place, setting in enumerate(SETTINGS)}


def load_settings(config_file: Path | None, environ: Mapping[str, str], *, needs_token: bool = True) -> Settings:
    """The settings of this environment and file; a variable wins over the file. ConfigError with all mistakes.

    needs_token: whether it is a mistake to give no API token; without one, Cloudflare cannot be asked.
    """
    mistakes = Mistakes()
    file: Mapping[str, object] | None = {}
    directory = Path()
    if config_file is not None:
        file = read_file(config_file, mistakes, own_placeholders=_OWN_PLACEHOLDERS)
        directory = config_file.parent
    # What a broken file would have set is not missing.
    complete = file is not None
    file = file or {}

    given = {setting.name: _look_up(setting, environ, file, directory, mistakes) for setting in SETTINGS}
    _refuse_misspelt_variables(environ, mistakes)
    _refuse_unknown_keys(file, mistakes)
    listed = _tokens(given, file, directory, mistakes)
    if listed is not None:
        given = {name: found for name, found in given.items() if name not in TOKEN_SETTINGS}
    elif not needs_token and given["CF_API_TOKEN"] is None:
        given["CF_API_TOKEN"] = Given("CF_API_TOKEN", _NO_TOKEN)
    parsed = _parse(given, mistakes, complete=complete)
    _cross_check(given, parsed, mistakes)
    labels = pasted.external_labels(file, mistakes)
    pushed_to = _destinations(given, parsed, file, directory, mistakes, complete=complete)
    mistakes.raise_any(lambda mistake: _place(mistake, str(config_file)))
    labelled = tuple(destination.model_copy(update={"external_labels": labels}) for destination in pushed_to)
    return _assemble(parsed, listed or (), labelled, _replaced(given, file))


def load_some(names: Collection[str], config_file: Path | None, environ: Mapping[str, str]) -> Mapping[str, Any]:
    """The values of these settings by their names, whether or not others are given; ConfigError with their mistakes."""
    mistakes = Mistakes()
    file: Mapping[str, object] = {}
    directory = Path()
    if config_file is not None:
        file = read_file(config_file, mistakes, own_placeholders=_OWN_PLACEHOLDERS) or {}
        directory = config_file.parent
    wanted = [setting for setting in SETTINGS if setting.name in names]
    given = {setting.name: _look_up(setting, environ, file, directory, mistakes) for setting in wanted}
    parsed = _parse(given, mistakes, complete=True)
    mistakes.raise_any(lambda mistake: _place(mistake, str(config_file)))
    return parsed


def _look_up(
    setting: Setting, environ: Mapping[str, str], file: Mapping[str, object], directory: Path, mistakes: Mistakes
) -> Given | None:
    """What is given for a setting: by its variable, else by its key in the file."""
    for source, name, suffix, start in (
        (environ, setting.name, "_FILE", Path()),
        (file, setting.name.lower(), "_file", directory),
    ):
        if setting.secret:
            found = look_up(source, name, name + suffix, directory=start, mistakes=mistakes)
        else:
            found = None if is_empty(source.get(name)) else Given(name, source[name])
        if found is not None:
            return found
    return None


def _refuse_misspelt_variables(environ: Mapping[str, str], mistakes: Mistakes) -> None:
    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    without_unit = {_UNIT.sub("", name): name for name in known if _UNIT.search(name)}
    for name in sorted(environ.keys() - known):
        if is_empty(environ[name]):
            continue
        if name.removesuffix("_FILE") in known:
            mistakes.add(name, None, "does not exist: only a secret can be given as a file")
            continue
        meant = next(iter(get_close_matches(name, known, 1, _MISSPELT)), None)
        if meant is None and environ[name].isdecimal():
            meant = without_unit.get(_UNIT.sub("", name))
        if meant is not None:
            mistakes.add(name, None, f"is not a known variable (did you mean {meant}?)")


def _refuse_unknown_keys(file: Mapping[str, object], mistakes: Mistakes) -> None:
    known = ["cloudflare", "remote_write", "external_labels"]
    for setting in SETTINGS:
        known += [setting.name.lower(), f"{setting.name.lower()}_file"] if setting.secret else [setting.name.lower()]
    for key in file:
        if key in pasted.ELSEWHERE:
            mistakes.add(key, None, pasted.ELSEWHERE_PROBLEM)
        elif key != "global" and key not in known:
            mistakes.add(key, None, f"is not a known key{did_you_mean(key, known)}")


def _parse(given: Mapping[str, Given | None], mistakes: Mistakes, *, complete: bool) -> dict[str, Any]:
    """The values of these settings that are as they should be, by name; the default where nothing is given."""
    parsed: dict[str, Any] = {}
    for setting in (setting for setting in SETTINGS if setting.name in given):
        found = given[setting.name]
        if found is not None:
            if found.value is not None:
                parsed |= _parse_one(setting, found, mistakes)
        elif not setting.required:
            parsed[setting.name] = setting.info.get_default(call_default_factory=True)
        elif complete:
            mistakes.add(setting.name, None, f"is required: {setting.meaning}")
    return parsed


def _parse_one(setting: Setting, found: Given, mistakes: Mistakes) -> dict[str, Any]:
    try:
        return {setting.name: TypeAdapter(setting.info.rebuild_annotation()).validate_python(found.value)}
    except ValidationError as error:
        mistakes.add_invalid(error, lambda _: found.name)
        return {}


def _tokens(
    given: Mapping[str, Given | None], file: Mapping[str, object], directory: Path, mistakes: Mistakes
) -> tuple[TokenSettings, ...] | None:
    """The tokens of the file's list; None where it has none, and the settings of one token are in force."""
    entries = file.get("cloudflare")
    if is_empty(entries) or entries == []:
        return None
    if single := [found.name for name in TOKEN_SETTINGS if (found := given[name]) is not None]:
        problem = f"cannot be given together with {', '.join(single)}: with this list, each token has its own there"
        mistakes.add("cloudflare", None, problem)
        return ()
    return tokens.from_list(entries, directory, mistakes)


def _destinations(
    given: Mapping[str, Given | None],
    parsed: Mapping[str, Any],
    file: Mapping[str, object],
    directory: Path,
    mistakes: Mistakes,
    *,
    complete: bool,
) -> tuple[DestinationSettings, ...]:
    """The destination of the variables, else those of the file's list."""
    variables = [setting for setting in SETTINGS if setting.path[0] == "remote_write"]
    single = {setting.path[1]: found for setting in variables if (found := given[setting.name]) is not None}
    entries = file.get("remote_write")
    if single:
        if entries and any(found.name.islower() for found in single.values()):
            mistakes.add(
                "remote_write", None, "cannot be given together with remote_write_... keys; use the list alone"
            )
        valid = {key: parsed[name] for key in single if (name := f"REMOTE_WRITE_{key.upper()}") in parsed}
        destination = destinations.from_variables(single, valid, mistakes)
        return () if destination is None else (destination,)
    if is_empty(entries) or entries == []:
        if complete:
            problem = (
                "is required: no destination is configured; set this variable, or list destinations under remote_write "
                "in the file given with --config"
            )
            mistakes.add("REMOTE_WRITE_URL", None, problem)
        return ()
    return destinations.from_list(entries, directory, mistakes)


def _replaced(given: Mapping[str, Given | None], file: Mapping[str, object]) -> int:
    """How many destinations of the file's list the variables replace."""
    entries = file.get("remote_write")
    by_variables = any(given[setting.name] for setting in SETTINGS if setting.path[0] == "remote_write")
    return len(entries) if by_variables and isinstance(entries, list) else 0


def _cross_check(given: Mapping[str, Given | None], parsed: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Settings that are right by themselves, but not together."""

    def refuse(name: str, value: str, rule: str) -> None:
        found = given[name]
        if found is None:
            mistakes.add(name, None, f"is {value} by default, but {rule}")
        else:
            mistakes.add(found.name, value, rule)

    if both := [zone for zone in parsed.get("CF_ZONES", ()) if zone in parsed.get("CF_EXCLUDE_ZONES", ())]:
        refuse("CF_EXCLUDE_ZONES", ", ".join(both), "must not hold a zone that is also in CF_ZONES")
    delay, replay, kept = (
        parsed.get(name) for name in ("CF_DELAY_SECONDS", "CF_REPLAY_HOURS", "LEDGER_RETENTION_HOURS")
    )
    if delay is not None and replay is not None and delay >= replay * 3600:
        refuse("CF_DELAY_SECONDS", str(delay), f"must be less than CF_REPLAY_HOURS ({replay}), or no window is fetched")
    if replay is not None and kept is not None and kept < replay:
        rule = f"must be at least CF_REPLAY_HOURS ({replay}), or buckets are fetched again once they are gone"
        refuse("LEDGER_RETENTION_HOURS", str(kept), rule)


def _place(mistake: Mistake, config_file: str) -> tuple[int, int]:
    """Where a mistake is told: the file itself, then as the settings are documented, then names that nobody knows."""
    name = mistake.setting
    if name.startswith(config_file):
        return -1, 0
    if entry := re.match(r"(remote_write|cloudflare)(?:\[([0-9]+)\]|$)", name):
        return _PLACES[_LISTS[entry[1]]], int(entry[2] or 0)
    return _PLACES.get(name.upper().removesuffix("_FILE"), len(_PLACES)), 0


def _assemble(
    parsed: Mapping[str, Any],
    listed: tuple[TokenSettings, ...],
    pushed_to: tuple[DestinationSettings, ...],
    replaced: int,
) -> Settings:
    sections: dict[str, Any] = {"destinations": pushed_to, "replaced_destinations": replaced}
    for setting in (setting for setting in SETTINGS if setting.name in parsed):
        section, *field = setting.path
        if not field:
            sections[section] = parsed[setting.name]
        elif section != "remote_write":
            sections.setdefault(section, {})[field[0]] = parsed[setting.name]
    if listed:
        first, *further = listed
        sections["cloudflare"] |= first.fields() | {"further_tokens": tuple(further)}
    return Settings(**sections)
