"""Which proxy a request goes through.

The rules are those of Go, whose programs the settings are taken from: a single `proxy_url` holds for every host; where
there is a list of exceptions, or the environment is asked, this machine itself is never reached through a proxy.
"""

import ipaddress
import os
from collections.abc import Mapping

import httpx

from worker.config import ProxySettings
from worker.errors import ConfigError, Mistake


def proxy_for(url: httpx.URL, settings: ProxySettings, environ: Mapping[str, str] = os.environ) -> httpx.URL | None:
    """The proxy on the way to `url`; None where there is none. ConfigError where the environment's cannot be used."""
    if settings.proxy_url is not None:
        if settings.no_proxy and _is_excepted(url, settings.no_proxy):
            return None
        return httpx.URL(settings.proxy_url)
    if not settings.proxy_from_environment or _is_excepted(url, _variable(environ, "NO_PROXY")):
        return None
    name = f"{url.scheme.upper()}_PROXY"
    given = _variable(environ, name)
    return _proxy_of_environment(name, given) if given else None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.lower()) or "").strip()


def _proxy_of_environment(name: str, given: str) -> httpx.URL:
    try:
        proxy = httpx.URL(given if "://" in given else f"http://{given}")
        if proxy.scheme in {"http", "https"} and proxy.host:
            return proxy
    except (httpx.InvalidURL, UnicodeError):
        pass  # told below, without the library's words: they repeat the URL
    raise ConfigError([Mistake(name, None, "must be a proxy with http:// or https://, a host and a port")])


def _is_excepted(url: httpx.URL, exceptions: str) -> bool:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    host = url.raw_host.decode()  # in ASCII, as Go has it
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    items = (item.strip().lower() for item in exceptions.split(","))
    return any(_covers(item, host.rstrip("."), address, port) for item in items if item)


def _covers(item: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    """Whether an item of NO_PROXY means this host: `*`, a CIDR block, an address or a name, with a port or without.

    A name stands for what is below it, too; with a dot in front, for that alone.
    """
    if item == "*":
        return True
    if "/" in item:
        try:
            return address is not None and address in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    name, colon, digits = item.rpartition(":")
    if colon and digits.isdecimal() and _address(item) is None:
        item = name
        if int(digits) != port:
            return False
    if (named := _address(item.strip("[]"))) is not None or address is not None:
        return named == address
    return host.endswith(f".{item.removeprefix('*').lstrip('.')}") or host == item


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
