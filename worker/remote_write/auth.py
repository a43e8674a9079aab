"""Who the worker is to a receiver.

Owns the ways to say so, which the modules beside this one (`auth_...`) hold. Nothing here has a repr that shows a
secret.
"""

import base64
from typing import Protocol

import httpx
from pydantic import SecretStr

from worker.clock import Clock
from worker.config import DestinationSettings
from worker.errors import ConfigError, Mistake
from worker.remote_write.auth_oauth2 import oauth2_tokens
from worker.remote_write.files import plain
from worker.remote_write.mask import SecretMask, secrets_of
from worker.remote_write.verdict import Later

__all__ = ["Credentials", "FixedHeader", "SecretMask", "credentials_of", "secrets_of"]


class Credentials(Protocol):
    """What shows a receiver who sends a request."""

    async def authorize(self, request: httpx.Request) -> Later | None:
        """Put it into the request's headers; or say why it cannot be had now."""

    def refused(self, request: httpx.Request) -> bool:
        """The receiver answered 401 to this request: drop what it showed. Whether something newer can be shown."""

    async def aclose(self) -> None:
        """Close the connections that were needed for it."""


class FixedHeader:
    """An Authorization header that stays what it is, or none."""

    def __init__(self, value: SecretStr | None) -> None:
        self._value = value

    async def authorize(self, request: httpx.Request) -> None:
        if self._value is not None:
            request.headers["Authorization"] = self._value.get_secret_value()

    def refused(self, _request: httpx.Request) -> bool:
        return False

    async def aclose(self) -> None:
        pass


def credentials_of(settings: DestinationSettings, clock: Clock, mask: SecretMask) -> Credentials:
    """What the destination's settings, with their files read, say to show beside its headers.

    mask: is told of every secret that is fetched. ConfigError where a package is missing or a file cannot be used.
    """
    if settings.oauth2 is not None:
        return oauth2_tokens(settings, settings.oauth2, clock, mask)
    if settings.sigv4 is not None:
        try:
            from worker.remote_write.auth_aws import Signatures  # noqa: PLC0415 - its package is an extra
        except ModuleNotFoundError as error:
            raise _missing(settings, "sigv4", "aws", error) from None
        return Signatures(settings, settings.sigv4, mask)
    if settings.azuread is not None:
        try:
            from worker.remote_write.auth_azure import azure_tokens  # noqa: PLC0415 - its package is an extra
        except ModuleNotFoundError as error:
            raise _missing(settings, "azuread", "azure", error) from None
        return azure_tokens(settings, settings.azuread, clock, mask)
    return FixedHeader(_fixed(settings))


def _fixed(settings: DestinationSettings) -> SecretStr | None:
    if (basic := settings.basic_auth) is not None:
        user = f"{plain(basic.username)}:{plain(basic.password)}"  # RFC 7617, 2
        return SecretStr(f"Basic {base64.b64encode(user.encode()).decode()}")
    if (given := settings.authorization) is not None:
        return SecretStr(f"{given.type} {plain(given.credentials)}")  # as RFC 6750, 2.1 for a Bearer token
    return None


def _missing(settings: DestinationSettings, key: str, extra: str, error: ModuleNotFoundError) -> ConfigError:
    package = (error.name or extra).partition(".")[0]
    problem = (
        f"needs a package that is not installed ({package}): pip install '.[{extra}]' in the folder of the project, or "
        f"build the container image with --build-arg EXTRAS={extra}"
    )
    return ConfigError([Mistake(f"remote_write {settings.name}: {key}", None, problem)])
