"""Destinations as users write them: entries of Prometheus' own `remote_write` list, and the REMOTE_WRITE_* variables.

Owns names that were left out, and that no two destinations are the same.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from worker.config import endpoints
from worker.config.authentication import Authorization, BasicAuth
from worker.config.entry import read_entry
from worker.config.headers import header_text, headers_by_lists
from worker.config.mistakes import Mistakes
from worker.config.secret_files import Given, SecretFile, is_empty
from worker.config.section import Secret, Section, Text, Token, Url, in_directory
from worker.config.settings import DestinationSettings

DEFAULT_NAME = "default"
"""What the destination of the REMOTE_WRITE_* variables is called."""

TENANT_HEADER = "X-Scope-OrgID"
"""The header by which Mimir and Cortex tell tenants apart."""

_ONE_AUTHORIZATION = "cannot be combined with {}: a request has one Authorization header"


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

    tenant: Annotated[str, BeforeValidator(header_text)] | None = None
    """Tenant of Mimir or Cortex, sent as the header `X-Scope-OrgID`."""


class RemoteWriteEntry(DestinationSettings):
    """An entry of the `remote_write` list."""

    name: Text = ""
    """What the destination is called in logs, metrics and the ledger; the URL's host and port where it is left out."""

    bearer_token: Token | None = None
    """Token that is sent as `Authorization: Bearer ...`."""

    http_headers: Annotated[
        Mapping[str, SecretStr | SecretFile], in_directory(headers_by_lists), AfterValidator(MappingProxyType)
    ] = Field(default_factory=lambda: MappingProxyType({}))
    """The same as `headers`, each name with a list under `values`, `secrets` or `files` that has one item."""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """As of every destination; and no header stands in two places."""
        headers = [given.get(key) for key in ("headers", "http_headers")]
        names = [{str(name).lower(): name for name in part} if isinstance(part, Mapping) else {} for part in headers]
        for name in names[0].keys() & names[1].keys():
            yield f"http_headers.{names[1][name]}", "is also given under headers; keep one of them"
        yield from super().wrong_together(given)

    def as_destination(self) -> DestinationSettings:
        """The destination that the entry describes."""
        fields: dict[str, Any] = {field: getattr(self, field) for field in DestinationSettings.model_fields}
        fields["name"] = self.name or urlsplit(self.url).netloc.lower()
        fields["headers"] = {**self.headers, **self.http_headers}
        if self.bearer_token is not None:
            fields["authorization"] = Authorization(credentials=self.bearer_token)
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
        authorization=Authorization(credentials=valid["bearer_token"]) if "bearer_token" in valid else None,
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
        elif (found := read_entry(RemoteWriteEntry, entry, where, directory, mistakes)) is not None:
            destination = found.as_destination()
            named = not is_empty(entry.get("name"))
            _refuse_twins(destination, where, destinations, mistakes, named=named)
            destinations[index] = destination
    return tuple(destinations.values())


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
    """What makes two destinations one: the same place, as the same client, with the same series."""
    fields = ("basic_auth", "authorization", "oauth2", "sigv4", "azuread", "tls", "write_relabel_configs")
    return destination.url, dict(destination.headers), *(getattr(destination, field) for field in fields)
