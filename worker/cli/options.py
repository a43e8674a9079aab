"""What the commands share: options, exit codes, the settings, and names and times that a person typed."""

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import click

from worker.config import Settings, load_settings
from worker.errors import UsageError
from worker.observe import Redactor, configure_logging, get_logger
from worker.remote_write import secrets_of
from worker.times import instant, moment

log = get_logger()

EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130  # 128 and the number of SIGINT

# A header or a parameter of a URL that is shorter than this guards nothing, and without every "1" or "on" the log would
# be useless.
_SHORTEST_SECRET = 4

# As many names as fit into one message.
_MOST_NAMES = 5

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with settings; an environment variable wins over it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_of(config_file: Path | None, *, needs_token: bool = True) -> Settings:
    """`needs_token`: whether the command asks Cloudflare anything."""
    return load_settings(config_file, os.environ, needs_token=needs_token)


def start_logging(settings: Settings) -> Redactor:
    redactor = configure_logging(settings.log.level, settings.log.format, secrets_in(settings))
    if settings.replaced_destinations:
        log.warning("REMOTE_WRITE_URL replaces the destinations of the file", replaced=settings.replaced_destinations)
    return redactor


def secrets_in(settings: Settings) -> Iterator[str]:
    """Every secret of the configuration that is long enough to be one."""
    for token in settings.cloudflare.by_token():
        yield token.api_token.get_secret_value()
    for destination in settings.destinations:
        yield from (secret for secret in secrets_of(destination) if len(secret) >= _SHORTEST_SECRET)


def past_moment(option: str, text: str, now: float) -> float:
    try:
        when = moment(text, now)
    except ValueError as error:
        msg = f"{option}: {error}"
        raise UsageError(msg) from None
    if when > now:
        msg = f"{option} {text} is in the future"
        raise UsageError(msg)
    return when


def stretch(since_option: str, since: str, until_option: str, until: str | None, now: float) -> tuple[int, int]:
    """From when to when, unix seconds, as a person typed it; to now without an end. UsageError where it is empty."""
    first = int(past_moment(since_option, since, now))
    last = int(now if until is None else past_moment(until_option, until, now))
    if first >= last:
        msg = f"nothing lies between {since_option} {instant(first)} and {until_option} {instant(last)}"
        raise UsageError(msg)
    return first, last


def require_known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """UsageError for a name that is not known; it tells those that are near, else the first that are known."""
    for name in given:
        if name in known:
            continue
        if near := get_close_matches(name, known, n=_MOST_NAMES):
            hint = f"did you mean {' or '.join(near)}?"
        elif known:
            hint = f"known are {', '.join(known[:_MOST_NAMES])}{', ...' if len(known) > _MOST_NAMES else ''}"
        else:
            hint = "none is known yet"
        msg = f"{option} {name} is not known; {hint}"
        raise UsageError(msg)
