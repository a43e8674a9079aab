"""Destinations as users write them: entries of Prometheus' own `remote_write` list, and the REMOTE_WRITE_* variables.

Owns the difference between what may be written and `DestinationSettings`: secrets in files, the ways to give an
Authorization header, paths relative to the file, names that were left out, and the keys of Prometheus that this version
does not honour, each of which is a mistake unless it asks for what the worker does anyway.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr, ValidationError

from worker.config import endpoints
from worker.config.mistakes import Mistakes
from worker.config.secret_files import Given, is_empty, look_up
from worker.config.settings import BasicAuth, DestinationSettings, Secret, Section, Text, Token, Url
from worker.config.values import did_you_mean

DEFAULT_NAME = "default"
"""What the destination of the REMOTE_WRITE_* variables is called."""

SECRET_FILE_KEYS = ("basic_auth.username", "basic_auth.password", "bearer_token", "authorization.credentials")
"""Keys that can be given as a file, with `_file` after them."""

TENANT_HEADER = "X-Scope-OrgID"
"""The header by which Mimir and Cortex tell tenants apart."""

# Keys that Prometheus knows and this version does not honour, with the values that change nothing: they ask for what
# the worker does anyway.
_NOT_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "oauth2": (),
    "sigv4": (),
    "azuread": (),
    "google_iam": (),
    "proxy_url": (),
    "no_proxy": (),
    "proxy_from_environment": ("false",),
    "proxy_connect_header": (),
    "http_headers": (),
    "write_relabel_configs": ([],),
    "metadata_config": ({"send": "false"},),
    "protobuf_message": ("prometheus.WriteRequest",),
    "send_exemplars": ("false",),
    "send_native_histograms": ("false",),
    "round_robin_dns": ("false",),
    "enable_http2": ("false",),
    "follow_redirects": ("false",),
    "tls_config.ca": (),
    "tls_config.cert": (),
    "tls_config.key": (),
    "tls_config.min_version": ("TLS12",),
    "tls_config.max_version": (),
    "queue_config.min_shards": ("1",),
    "queue_config.retry_on_http_429": ("true",),
    "queue_config.sample_age_limit": ("0", "0s"),
}
_ONE_AUTHORIZATION = "cannot be combined with {}: a request has one Authorization header"
# Upper limits that one request at a time, sent as soon as there is something to send, never reaches.
_ALWAYS_KEPT = ("queue_config.capacity", "queue_config.max_shards", "queue_config.batch_send_deadline")


class RemoteWriteVariables(Section):
    """The one destination that variables can describe; it takes the place of the list in the file."""

    url: Url | None = None
    """Where samples are pushed to, such as `https://prometheus.example.org/api/v1/write`."""

    username: Annotated[str, BeforeValidator(endpoints.user_name)] | None = None
    """User name of basic authentication."""

    password: Secret | None = None
    """Password of basic authentication."""

    bearer_token: Token | None = None
    """Token that is sent as `Authorization: Bearer ...`."""

    tenant: Annotated[str, BeforeValidator(endpoints.header_text)] | None = None
    """Tenant of Mimir or Cortex, sent as the header `X-Scope-OrgID`."""


class Authorization(Section):
    """An Authorization header, as Prometheus takes it."""

    type: Annotated[str, BeforeValidator(endpoints.authorization_scheme)] = "Bearer"
    """Scheme of the Authorization header; for Basic there is `basic_auth`."""

    credentials: Token
    """What follows the scheme in the Authorization header."""


class RemoteWriteEntry(DestinationSettings):
    """An entry of the `remote_write` list."""

    name: Text = ""
    """What the destination is called in logs, metrics and the ledger; the URL's host and port where it is left out."""

    authorization: Authorization | None = None
    """Authorization header of any scheme but Basic."""

    def as_destination(self) -> DestinationSettings:
        """The destination that the entry describes."""
        fields: dict[str, Any] = {field: getattr(self, field) for field in DestinationSettings.model_fields}
        fields["name"] = self.name or urlsplit(self.url).netloc.lower()
        if self.authorization is not None:
            scheme, credentials = self.authorization.type, self.authorization.credentials
            if scheme.lower() == "bearer":
                fields["bearer_token"] = credentials
            else:
                fields["headers"] = {**self.headers, "Authorization": f"{scheme} {credentials.get_secret_value()}"}
        return DestinationSettings(**fields)


def from_variables(
    given: Mapping[str, Given], valid: Mapping[str, Any], mistakes: Mistakes
) -> DestinationSettings | None:
    """The destination of the REMOTE_WRITE_* variables; None where they are mistaken.

    given: what was given, by the variable's last part (`url`, `username`, ...).
    valid: the parsed values of those among them that are as they should be.
    """
    before = len(mistakes)
    if "url" not in given:
        names = ", ".join(item.name for item in given.values())
        mistakes.add("REMOTE_WRITE_URL", None, f"is required with {names}")
    for one, other in (("username", "password"), ("password", "username")):
        if one in given and other not in given:
            mistakes.add(f"REMOTE_WRITE_{other.upper()}", None, f"is required with {given[one].name}")
    if "bearer_token" in given and ("username" in given or "password" in given):
        mistakes.add(given["bearer_token"].name, None, _ONE_AUTHORIZATION.format("a user name and password"))
    if len(mistakes) > before or given.keys() != valid.keys():
        return None
    return DestinationSettings(
        name=DEFAULT_NAME,
        url=valid["url"],
        headers={TENANT_HEADER: SecretStr(valid["tenant"])} if "tenant" in valid else {},
        basic_auth=BasicAuth(username=valid["username"], password=valid["password"]) if "username" in valid else None,
        bearer_token=valid.get("bearer_token"),
    )


def from_list(entries: object, directory: Path, mistakes: Mistakes) -> tuple[DestinationSettings, ...]:
    """The destinations of the file's `remote_write` list that are as they should be.

    directory: of the file; relative paths in it start there, as in Prometheus.
    """
    if not isinstance(entries, list):
        mistakes.add("remote_write", None, "must be a list: every destination starts with `- url: ...`")
        return ()
    destinations: dict[int, DestinationSettings] = {}
    for index, entry in enumerate(entries):
        where = f"remote_write[{index}]"
        if not isinstance(entry, Mapping):
            mistakes.add(where, None, "must be a mapping of keys to values, such as `- url: ...`")
        elif (destination := _destination(entry, where, directory, mistakes)) is not None:
            named = not is_empty(entry.get("name"))
            _refuse_twins(destination, where, destinations, mistakes, named=named)
            destinations[index] = destination
    return tuple(destinations.values())


def _destination(
    given: Mapping[str, object], where: str, directory: Path, mistakes: Mistakes
) -> DestinationSettings | None:
    before = len(mistakes)
    # One level deep is as deep as the keys go; the copies can be changed.
    entry = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    _refuse_unsupported(entry, where, mistakes)
    files = _fetch_secrets(entry, where, directory, mistakes)
    _refuse_unknown(entry, where, mistakes)
    _refuse_two_authorizations(entry, where, mistakes)
    _resolve_tls_files(entry, where, directory, mistakes)

    def setting_at(path: str) -> str:
        return files.get(path, f"{where}.{path}")

    try:
        valid = RemoteWriteEntry.model_validate(entry)
    except ValidationError as error:
        mistakes.add_invalid(error, setting_at)
        return None
    return valid.as_destination() if len(mistakes) == before else None


def _refuse_unsupported(entry: dict[str, Any], where: str, mistakes: Mistakes) -> None:
    """Take the keys out of the entry that Prometheus knows and the worker has no setting for."""
    for key in (*_NOT_SUPPORTED, *_ALWAYS_KEPT):
        parent, _, last = key.rpartition(".")
        mapping = entry.get(parent) if parent else entry
        if not isinstance(mapping, dict) or last not in mapping:
            continue
        value = mapping.pop(last)
        harmless = _NOT_SUPPORTED.get(key)
        if harmless is None or is_empty(value) or value in harmless:
            continue
        only = f" with another value than {harmless[0]}" if harmless and isinstance(harmless[0], str) else ""
        problem = f"is a key of Prometheus that this version does not support{only}; remove it"
        mistakes.add(f"{where}.{key}", None, problem)


def _fetch_secrets(entry: dict[str, Any], where: str, directory: Path, mistakes: Mistakes) -> dict[str, str]:
    """Put the contents of secrets' files under the secrets' own keys; the names under which they were given, by key."""
    names = {}
    for key in SECRET_FILE_KEYS:
        parent, _, last = key.rpartition(".")
        mapping = entry.get(parent) if parent else entry
        if not isinstance(mapping, dict):
            continue
        inside = f"{where}.{parent}." if parent else f"{where}."
        found = look_up(mapping, last, f"{last}_file", directory=directory, mistakes=mistakes, where=inside)
        mapping.pop(f"{last}_file", None)
        if found is not None:
            mapping[last] = found.value
            names[key] = found.name
    return names


def _refuse_unknown(
    mapping: dict[str, Any], where: str, mistakes: Mistakes, section: type[Section] = RemoteWriteEntry, parent: str = ""
) -> None:
    """Take keys out of the entry that nobody knows."""
    keys = section.keys()
    files = [f"{key}_file".rpartition(".")[2] for key in SECRET_FILE_KEYS if key.rpartition(".")[0] == parent]
    for key, value in list(mapping.items()):
        if key not in keys:
            del mapping[key]
            mistakes.add(f"{where}.{key}", None, f"is not a known key{did_you_mean(key, [*keys, *files])}")
        elif (inner := keys[key]) is not None and isinstance(value, dict):
            _refuse_unknown(value, f"{where}.{key}", mistakes, inner, key)


def _refuse_two_authorizations(entry: Mapping[str, Any], where: str, mistakes: Mistakes) -> None:
    keys = [key for key in ("basic_auth", "authorization", "bearer_token") if not is_empty(entry.get(key))]
    headers = entry.get("headers")
    if isinstance(headers, Mapping):
        keys += [f"headers.{name}" for name in headers if name.lower() == "authorization"]
    for key in keys[1:]:
        mistakes.add(f"{where}.{key}", None, _ONE_AUTHORIZATION.format(keys[0]))


def _resolve_tls_files(entry: Mapping[str, Any], where: str, directory: Path, mistakes: Mistakes) -> None:
    tls = entry.get("tls_config")
    if not isinstance(tls, dict):
        return
    for key in ("ca_file", "cert_file", "key_file"):
        if isinstance(path := tls.get(key), str) and not is_empty(path):
            tls[key] = str(directory / path)
    for one, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if not is_empty(tls.get(one)) and is_empty(tls.get(other)):
            mistakes.add(f"{where}.tls_config.{other}", None, f"is required with {one}")


def _refuse_twins(
    destination: DestinationSettings,
    where: str,
    others: Mapping[int, DestinationSettings],
    mistakes: Mistakes,
    *,
    named: bool,
) -> None:
    """No two destinations send to one place as one client, or have their deliveries recorded under one name."""
    for index, other in others.items():
        if _identity(other) == _identity(destination):
            mistakes.add(f"{where}.url", destination.shown_url, f"is the same destination as remote_write[{index}]")
        elif other.name == destination.name and named:
            mistakes.add(f"{where}.name", destination.name, f"is also the name of remote_write[{index}]")
        elif other.name == destination.name:
            problem = (
                f"is required: remote_write[{index}] is called {other.name}, too, and deliveries are recorded by name"
            )
            mistakes.add(f"{where}.name", None, problem)


def _identity(destination: DestinationSettings) -> tuple[object, ...]:
    auth = (destination.basic_auth, destination.bearer_token)
    return destination.url, dict(destination.headers), *auth
