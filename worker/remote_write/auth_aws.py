"""Requests that are signed as AWS wants them (Signature Version 4). Needs the extra `aws`."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.session
import httpx

from worker.config import DestinationSettings, SigV4Settings
from worker.errors import ConfigError, Mistake
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import Fate, Later, printable

# At DEBUG it writes what it signs and what it gets, with the keys and tokens in it.
logging.getLogger("botocore").setLevel(logging.INFO)

# What describes the message; `Host` and what AWS adds are always signed. Whatever else a proxy may add or change on the
# way would make the signature wrong.
_SIGNED = ("content-encoding", "content-type", "x-prometheus-remote-write-version")


# For the requests that keys are got with, so that no answer is an answer before the usual time limit of a request that
# waits for it, 30 s, is over.
_CONNECT_SECONDS = 5
_READ_SECONDS = 10


class Signatures:
    """Signs every attempt anew, with the keys that AWS' own programs would find, or with those of a role.

    botocore finds, keeps and renews the keys, which may take requests to other parts of AWS: these obey the variables
    and files that AWS' own programs obey. It knows no `await`, so that it works in a thread: in one, as another one
    would have to wait for the same.
    """

    def __init__(self, settings: DestinationSettings, sigv4: SigV4Settings, mask: SecretMask) -> None:
        """ConfigError where the profile does not exist, or nothing says what the region is. No request is sent."""
        self._sigv4 = sigv4
        self._mask = mask
        self._session = botocore.session.Session(profile=sigv4.profile)
        self._session.set_default_client_config(
            botocore.config.Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                # Trying again is the business of whoever sends.
                retries={"total_max_attempts": 1},
                use_fips_endpoint=sigv4.use_fips_sts_endpoint or None,
            )
        )
        setting = f"remote_write {settings.name}: sigv4"
        try:
            self._session.get_scoped_config()
            region = sigv4.region or self._session.get_config_variable("region")
        except botocore.exceptions.BotoCoreError as error:
            raise ConfigError([Mistake(setting, None, f"cannot be used: {printable(str(error))}")]) from None
        if not region:
            problem = "is required, as neither the environment nor AWS' own configuration names one"
            raise ConfigError([Mistake(f"{setting}.region", None, problem)])
        self._region: str = region
        self._keys: botocore.credentials.Credentials | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sigv4")

    async def authorize(self, request: httpx.Request) -> Later | None:
        loop = asyncio.get_running_loop()
        try:
            headers, secrets = await loop.run_in_executor(self._thread, self._signed_headers, request)
        except Exception as error:  # noqa: BLE001 - botocore raises whatever it stumbles over in an answer
            return Later(printable(f"no keys from AWS (sigv4): {self._shown(error)}"), _fate(error))
        for secret in secrets:
            self._mask.remember(secret)
        request.headers.update(headers)
        return None

    def refused(self, _request: httpx.Request) -> bool:
        # botocore knows when its keys end; AWS answers 403 to those that are wrong.
        return False

    async def aclose(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _current_keys(self) -> botocore.credentials.ReadOnlyCredentials:
        if self._keys is None:
            self._keys = self._find_keys()
        return self._keys.get_frozen_credentials()

    def _find_keys(self) -> botocore.credentials.Credentials:
        sigv4 = self._sigv4
        if sigv4.access_key is not None and sigv4.secret_key is not None:
            self._session.set_credentials(sigv4.access_key.get_secret_value(), sigv4.secret_key.get_secret_value())
        keys = self._session.get_credentials()
        if keys is None:
            raise botocore.exceptions.NoCredentialsError
        if sigv4.role_arn is None:
            return keys
        fetcher = botocore.credentials.AssumeRoleCredentialFetcher(
            client_creator=partial(self._session.create_client, region_name=self._region),
            source_credentials=keys,
            role_arn=sigv4.role_arn,
            extra_args={"ExternalId": sigv4.external_id} if sigv4.external_id else None,
        )
        return botocore.credentials.DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")

    def _signed_headers(self, request: httpx.Request) -> tuple[dict[str, str], list[str]]:
        """The headers with the signature, and what in them must not be shown."""
        keys = self._current_keys()
        signed = botocore.awsrequest.AWSRequest(
            method=request.method,
            url=str(request.url),
            data=request.content,
            headers={name: request.headers[name] for name in (*_SIGNED, "host") if name in request.headers},
        )
        botocore.auth.SigV4Auth(keys, self._sigv4.service_name, self._region).add_auth(signed)
        # AWS Signature Version 4 ends the header with it.
        signature = signed.headers["Authorization"].rpartition("Signature=")[2]
        secrets = [secret for secret in (keys.access_key, keys.secret_key, keys.token, signature) if secret]
        return dict(signed.headers.items()), secrets

    def _shown(self, error: Exception) -> str:
        is_told = isinstance(error, botocore.exceptions.BotoCoreError | botocore.exceptions.ClientError)
        return self._mask((str(error) if is_told else repr(error)).encode()).decode(errors="replace")


def _fate(error: Exception) -> Fate:
    """What AWS refuses, and keys that are nowhere to be found, wait for somebody; what is down for now does not."""
    match error:
        case botocore.exceptions.ClientError():
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            return Fate.RETRY if status >= 500 or status == 429 else Fate.PARK
        case botocore.exceptions.HTTPClientError() | botocore.exceptions.ConnectionError():
            return Fate.RETRY
        case _:
            return Fate.PARK
