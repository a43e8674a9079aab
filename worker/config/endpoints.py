"""How URLs, addresses and credentials are written, and what is wrong with one that is not.

Parsers as in `worker.config.values`. What they refuse is shown without the parts that may be secret, and not at all
where all of it may be.
"""

import ipaddress
import re
import unicodedata
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from worker.config.values import InvalidValueError, plain_text, shown


def shown_url(url: str) -> str:
    """A URL, well-formed or not, without what may be secret in it: user, password and the values of its query."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*", scheme):
        scheme, separator, rest = "", "", url
    # A password may itself hold / or ?, unescaped: everything up to the last @ is hidden.
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    # Where a port should be, there may be a password whose @ was forgotten.
    rest = re.sub(r"^([^/?#:\[]*:)(?![0-9]*(?:[/?#]|$)).*", r"\1***", rest)
    path, mark, _ = rest.partition("?")
    if not mark:
        path, mark, _ = rest.partition("#")
    return shown(scheme + separator + path + (f"{mark}***" if mark else ""))


def ascii_host(url: str) -> str | None:
    """The host of a well-formed URL as it is written in ASCII (RFC 3492); None where it is so already, or cannot be."""
    host = urlsplit(url).hostname or ""
    labels = unicodedata.normalize("NFKC", host).lower().split(".")
    name = ".".join(label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels)
    return None if host.isascii() or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", name) else name


def destination_url(value: object) -> str:
    """Where samples are pushed to or read back from: http or https, with a host, without user and fragment.

    The host may be in any script, if the HTTP library knows how to write it in ASCII.
    """
    return _url_without_user(value, "basic_auth (in the environment: REMOTE_WRITE_USERNAME and REMOTE_WRITE_PASSWORD)")


def token_url(value: object) -> str:
    """Where a token is fetched; as `destination_url`."""
    return _url_without_user(value, "client_id and client_secret")


def _url_without_user(value: object, instead: str) -> str:
    text, parts = _url(value, may_have_any_host=True)
    if "@" in parts.netloc:
        raise InvalidValueError(shown_url(text), f"must not hold a user or password; give them as {instead}")
    if parts.fragment:
        raise InvalidValueError(shown_url(text), "must not have a fragment (#...)")
    return text


def proxy_url(value: object) -> str:
    """A proxy: http or https, with a host, perhaps with user and password, and nothing behind the port."""
    if isinstance(value, str) and value.strip().lower().startswith("socks"):
        problem = "must be a proxy with http:// or https://; SOCKS is not spoken"
        raise InvalidValueError(shown_url(value.strip()), problem)
    text, parts = _url(value)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidValueError(shown_url(text), "must end with the proxy's host and port")
    return text


def api_url(value: object) -> str:
    """The base URL of Cloudflare's API, without a slash at its end."""
    text, parts = _url(value)
    if parts.scheme.lower() != "https" and not is_loopback(parts.hostname or ""):
        raise InvalidValueError(
            shown_url(text),
            "must be https, since the API token is sent there; plain http is taken only for a simulated API on this "
            "machine (localhost, 127.0.0.1, [::1])",
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidValueError(shown_url(text), "must not hold a user, a password, a query or a fragment")
    return text.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _url(value: object, *, may_have_any_host: bool = False) -> tuple[str, SplitResult]:
    if not isinstance(value, str):
        raise InvalidValueError(None, "must be a URL")
    text = value.strip()
    problem = "must be a URL with http:// or https:// and a host, such as https://prometheus.example.org/api/v1/write"
    if " " in text or not text.isprintable():
        raise InvalidValueError(shown_url(text), "must be a URL, without blanks and control characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The library's own words may repeat what it was given.
        raise InvalidValueError(shown_url(text), problem) from None
    if parts.scheme.lower() not in {"http", "https"} or not host or port == 0:
        raise InvalidValueError(shown_url(text), problem)
    user = parts.netloc.rpartition("@")[0]
    if not f"{user}{parts.path}{parts.query}{parts.fragment}".isascii():
        raise InvalidValueError(shown_url(text), "must be in ASCII but for its host, with %C3%BC for ü")
    if not host.isascii() and not may_have_any_host:
        name = ascii_host(text)
        raise InvalidValueError(shown_url(text), f"must be in ASCII{f'; write the host as {name}' if name else ''}")
    return text, parts


def listen_address(value: object) -> tuple[str, int]:
    """`host:port`, `[ipv6]:port`, or `:port` for all IPv4 addresses; port 0 takes any free one."""
    problem = "must be host:port, such as 0.0.0.0:9845, 127.0.0.1:9845, [::]:9845 or :9845"
    text = value.strip() if isinstance(value, str) else ""
    host, colon, digits = text.rpartition(":")
    port = int(digits) if re.fullmatch(r"[0-9]{1,5}", digits) else -1
    if not colon or not 0 <= port <= 65535:
        raise InvalidValueError(shown(value), problem)
    if not host:
        return "0.0.0.0", port  # noqa: S104 - what the user asks for: a scraper comes from another machine
    if bracketed := re.fullmatch(r"\[(.+)\]", host):
        host = bracketed[1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise InvalidValueError(shown(value), problem) from None
    elif not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?", host):
        raise InvalidValueError(shown(value), problem)
    return host, port


def user_name(value: object) -> str:
    """A user name of basic authentication (RFC 7617, 2: a colon would end it)."""
    text = plain_text(value)
    if ":" in text:
        raise InvalidValueError(shown(text), "must not hold a colon")
    return text


def secret(value: object) -> SecretStr:
    """A password: text of one line. Line ends after it are dropped, as an editor or `echo` leaves them in a file."""
    text = secret_text(value).rstrip("\r\n")
    if not text or not text.isprintable():
        raise InvalidValueError(None, "must be text of one line, without control characters")
    return SecretStr(text)


def token(value: object) -> SecretStr:
    """A token as it stands in an Authorization header (RFC 6750, 2.1: no blanks); blanks around it are dropped."""
    text = secret_text(value).strip()
    if re.match(r"bearer\s", text, re.IGNORECASE):
        raise InvalidValueError(None, "must be the token alone, without the word Bearer in front of it")
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise InvalidValueError(None, "must be one word of visible ASCII characters")
    return SecretStr(text)


def pem(value: object) -> str:
    """Certificates as text (RFC 7468); never shown, as a key may stand there by mistake."""
    text = secret_text(value).strip()
    if not text.startswith("-----BEGIN ") or not text.endswith("-----"):
        problem = "must be the text itself, from -----BEGIN to -----END ...-----; a file is given as ..._file"
        raise InvalidValueError(None, problem)
    if "PRIVATE KEY" in text:
        raise InvalidValueError(None, "must be certificates alone; the private key is given as key or key_file")
    return f"{text}\n"


def secret_pem(value: object) -> SecretStr:
    """A private key as text (RFC 7468)."""
    text = secret_text(value).strip()
    if not text.startswith("-----BEGIN ") or not text.endswith("PRIVATE KEY-----"):
        problem = "must be the text of a private key itself, from -----BEGIN to -----END; a file is given as key_file"
        raise InvalidValueError(None, problem)
    return SecretStr(f"{text}\n")


def secret_text(value: object) -> str:
    """The text of a secret, wrapped or not."""
    match value:
        case SecretStr():
            return value.get_secret_value()
        case str():
            return value
        case _:
            raise InvalidValueError(None, "must be text")
