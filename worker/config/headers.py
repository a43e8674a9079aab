"""How HTTP headers are written, and what is wrong with one that is not.

Parsers as in `worker.config.values`. The values of headers count as secrets and are never shown.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from worker.config.endpoints import secret_text
from worker.config.secret_files import SecretFile
from worker.config.values import InvalidValueError, file_path, shown

# RFC 9110, 5.6.2: the characters of a header's name.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What remote write, HTTP or the connection fix; remote write 1.0 does not let custom headers replace its own.
# `Retry-Attempt` is counted by the worker.
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "retry-attempt",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "www-authenticate",
        "x-prometheus-remote-write-version",
    }
)

RESERVED_CONNECT_HEADERS = frozenset({"connection", "content-length", "host", "proxy-connection", "transfer-encoding"})
"""What the connection fixes of a request to a proxy."""


def header_value(value: object) -> SecretStr:
    """What may stand in an HTTP header: visible ASCII with blanks inside (RFC 9110, 5.5)."""
    text = secret_text(value).strip()
    if not re.fullmatch(r"[\x20-\x7e]+", text):
        raise InvalidValueError(None, "must be visible ASCII characters and blanks, on one line")
    return SecretStr(text)


def header_text(value: object) -> str:
    """As `header_value`, for what is no secret."""
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value.strip()):
        raise InvalidValueError(shown(value), "must be visible ASCII characters and blanks, on one line")
    return value.strip()


def authorization_scheme(value: object) -> str:
    """The first word of an Authorization header (RFC 9110, 11.1)."""
    if not isinstance(value, str) or not _HEADER_NAME.fullmatch(value.strip()):
        raise InvalidValueError(shown(value), "must be one word, such as Bearer")
    if value.strip().lower() == "basic":
        raise InvalidValueError(shown(value), "must not be Basic: give basic_auth with username and password")
    return value.strip()


def headers_by_name(value: object) -> Mapping[str, SecretStr | SecretFile]:
    """HTTP headers of a destination: none of the reserved ones, none twice. Their values count as secrets."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(None, "must be a mapping of header names to values")
    taken: dict[str, SecretStr | SecretFile] = {}
    problems: dict[str, str] = {}
    lower = [str(name).lower() for name in value]
    for name, content in value.items():
        if problem := _name_problem(name, RESERVED_HEADERS):
            problems[shown(name)] = problem
        elif lower.count(name.lower()) > 1:
            problems[name] = "is given twice, in different spelling"
        else:
            try:
                taken[name] = _header_content(content)
            except InvalidValueError as invalid:
                problems[name] = invalid.problem
    _refuse(problems)
    return taken


def headers_by_lists(value: object, directory: Path) -> Mapping[str, SecretStr | SecretFile]:
    """HTTP headers as Prometheus writes them under `http_headers`: each with one value, secret or file.

    directory: where a relative path starts.
    """
    if not isinstance(value, Mapping):
        raise InvalidValueError(None, "must be a mapping of header names to `values`, `secrets` or `files`")
    single: dict[str, object] = {}
    problems: dict[str, str] = {}
    for name, lists in value.items():
        if not isinstance(lists, Mapping) or not lists.keys() <= {"values", "secrets", "files"}:
            problems[shown(name)] = "must have values, secrets or files, each a list"
            continue
        contents = [(kind, content) for kind, given in lists.items() for content in _items(given)]
        match contents:
            case [("files", path)]:
                single[name] = SecretFile(file_path(path, directory))
            case [(_, content)]:
                single[name] = content
            case _:
                problems[shown(name)] = "must have exactly one value: a header is sent once; join several with a comma"
    _refuse(problems)
    return headers_by_name(single)


def _items(given: object) -> Sequence[object]:
    """The items of a list; a single item counts as a list of it, nothing as none."""
    if given is None:
        return ()
    return given if isinstance(given, list | tuple) else (given,)


def headers_for_proxy(value: object) -> Mapping[str, tuple[SecretStr, ...]]:
    """HTTP headers for a proxy: lists of values by name. The values count as secrets."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(None, "must be a mapping of header names to lists of values")
    taken: dict[str, tuple[SecretStr, ...]] = {}
    problems: dict[str, str] = {}
    for name, contents in value.items():
        if problem := _name_problem(name, RESERVED_CONNECT_HEADERS):
            problems[shown(name)] = problem
        elif isinstance(contents, str | SecretStr) or not isinstance(contents, Sequence) or not contents:
            problems[name] = "must be a list of values, such as [value]"
        else:
            try:
                taken[name] = tuple(map(header_value, contents))
            except InvalidValueError as invalid:
                problems[name] = invalid.problem
    _refuse(problems)
    return taken


def _name_problem(name: object, reserved: frozenset[str]) -> str | None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        return "is no name of a header"
    return "is set by the worker itself" if name.lower() in reserved else None


def _header_content(value: object) -> SecretStr | SecretFile:
    if isinstance(value, SecretFile):
        header_value(value.read())
        return value
    return header_value(value)


def _refuse(problems: Mapping[str, str]) -> None:
    if problems:
        text = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        raise InvalidValueError(", ".join(problems), f"cannot be sent: {text}")
