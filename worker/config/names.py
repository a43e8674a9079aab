"""Every name that a user can set, with its meaning and default: what the documents are checked against.

Derived from the fields of the settings, whose docstrings are the only description of each. Knows nothing of where
values come from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker.config import endpoints, values
from worker.config.destinations import RemoteWriteEntry, RemoteWriteVariables
from worker.config.secret_files import SecretFile
from worker.config.section import ELSEWHERE, Section, can_be_a_file, holds
from worker.config.settings import (
    DEFAULT_TOKEN,
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    LogSettings,
    Settings,
    TokenSettings,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set.

    name:     as users write it: the environment variable, or the key inside an entry of `remote_write`.
    default:  as a user would write it; empty where nothing is set.
    required: whether there is no default.
    secret:   whether its value is hidden, and can be given as a file.
    path:     where its value is: attributes from `Settings`, or from an entry of the list.
    section:  the one with the field that it comes from, which is the last of the path.
    """

    name: str
    default: str
    required: bool
    secret: bool
    path: tuple[str, ...]
    section: type[Section] = field(repr=False, compare=False)

    @property
    def info(self) -> FieldInfo:
        """The field that it comes from."""
        return self.section.model_fields[self.path[-1]]

    @property
    def meaning(self) -> str:
        """What it is, in a sentence or two."""
        return " ".join(self.section.meaning(self.path[-1]).partition("\n\n")[0].split())


def _setting(name: str, path: tuple[str, ...], section: type[Section]) -> Setting:
    info = section.model_fields[path[-1]]
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return Setting(
        name=name,
        default=_as_text(name, path[-1], default),
        required=info.is_required(),
        secret=holds(info.annotation, SecretStr),
        path=path,
        section=section,
    )


def _settings() -> Iterator[Setting]:
    """In the order in which they are documented."""

    def of(prefix: str, attribute: str, section: type[Section]) -> Iterator[Setting]:
        for name, info in section.model_fields.items():
            if ELSEWHERE not in info.metadata:
                yield _setting(prefix + name.upper(), (attribute, name), section)

    yield from of("CF_", "cloudflare", CloudflareSettings)
    yield from of("REMOTE_WRITE_", "remote_write", RemoteWriteVariables)
    yield from of("LEDGER_", "ledger", LedgerSettings)
    yield _setting("LISTEN_ADDRESS", ("listen",), Settings)
    yield from of("LOG_", "log", LogSettings)


def _destination_keys(section: type[Section], prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Setting]:
    for key in section.keys().values():
        if key.section is None or key.repeated:
            yield _setting(prefix + key.name, (*path, *key.path), key.owner)
        else:
            yield from _destination_keys(key.section, f"{prefix}{key.name}.", (*path, *key.path))


def _as_text(name: str, attribute: str, value: object) -> str:
    """A value as a user would write it under this name; secrets are hidden."""
    match value:
        case None:
            text = ""
        case ListenSettings():
            text = value.address
        case tuple() if value and isinstance(value[0], Section):
            text = "1 rule" if len(value) == 1 else f"{len(value)} rules"
        case tuple():
            text = ",".join(map(str, value))
        case Mapping():
            text = ", ".join(f"{key}: {_single_as_text(name, attribute, item)}" for key, item in value.items())
        case _:
            text = _single_as_text(name, attribute, value)
    return text


def _single_as_text(name: str, attribute: str, value: object) -> str:
    match value:
        case _ if attribute in _HIDDEN:
            text = "**********"
        case bool():
            text = str(value).lower()
        case SecretFile():
            text = str(value.path)
        case Path():
            text = str(value) if value.is_absolute() else f"./{value}"
        case str() if attribute.endswith("url"):
            text = endpoints.shown_url(value)
        case str() if value.startswith("-----BEGIN"):
            text = value.splitlines()[0] + "..."
        case int() if "bytes" in attribute:
            text = values.size_text(value)
        case int() | float() if attribute.endswith("_seconds") and not name.endswith("_SECONDS"):
            text = values.duration_text(value)
        case float():
            text = f"{value:g}"
        case _:
            text = str(value)
    return text


# Parameters of a foreign server, and headers of a proxy: nobody knows which of them is a password.
_HIDDEN = ("endpoint_params", "proxy_connect_header")

SETTINGS: tuple[Setting, ...] = tuple(_settings())
"""Every environment variable, in the order of the documents; in the file, the same names in lower case are keys."""

TOKEN_SETTINGS: Mapping[str, str] = {
    setting.name: setting.path[-1]
    for setting in SETTINGS
    if setting.path[0] == "cloudflare" and setting.path[-1] in TokenSettings.model_fields
}
"""Those of `SETTINGS` that are about a token, with the key that an entry of `cloudflare` has for each."""

TOKEN_KEYS: tuple[Setting, ...] = tuple(
    _setting(key.name, key.path, key.owner) for key in TokenSettings.keys().values()
)
"""Every key of an entry of `cloudflare`; the token itself also with `_file` after it."""

DESTINATION_KEYS: tuple[Setting, ...] = tuple(_destination_keys(RemoteWriteEntry))
"""Every key of an entry of `remote_write`; those of `SECRET_FILE_KEYS` also with `_file` after them."""

SECRET_FILE_KEYS = tuple(key.name for key in DESTINATION_KEYS if can_be_a_file(key.info))
"""Keys that can be given as a file, with `_file` after them."""


def describe(settings: Settings) -> list[tuple[str, str]]:
    """What is in force, as names and values for people to read; secrets are hidden, what is not set is left out."""
    tokens = settings.cloudflare.by_token()
    is_list = len(tokens) > 1 or tokens[0].name != DEFAULT_TOKEN
    lines = [
        (f"cloudflare[{index}].{key.name}", _as_text(key.name, key.path[-1], _value_at(token, key.path)))
        for index, token in enumerate(tokens if is_list else ())
        for key in TOKEN_KEYS
    ]
    lines += [
        (setting.name, _as_text(setting.name, setting.path[-1], _value_at(settings, setting.path)))
        for setting in SETTINGS
        if setting.path[0] != "remote_write" and not (is_list and setting.name in TOKEN_SETTINGS)
    ]
    for index, destination in enumerate(settings.destinations):
        lines += [line for key in DESTINATION_KEYS for line in _described(f"remote_write[{index}].", key, destination)]
    if settings.destinations:
        lines.append(("external_labels", _as_text("", "", settings.destinations[0].external_labels)))
    return [(name, value) for name, value in lines if value]


def _described(prefix: str, key: Setting, destination: DestinationSettings) -> Iterator[tuple[str, str]]:
    value = _value_at(destination, key.path)
    suffix = "_file" if isinstance(value, SecretFile) else ""
    yield f"{prefix}{key.name}{suffix}", _as_text(key.name, key.path[-1], value)


def _value_at(start: object, path: tuple[str, ...]) -> object:
    """The value at the end of a path of attributes; None where something on it is not there."""
    value: object = start
    for attribute in path:
        value = getattr(value, attribute, None)
    return value
