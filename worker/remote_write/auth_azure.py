"""Tokens of Microsoft Entra ID, for Azure Monitor. Needs the extra `azure`."""

import asyncio
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import httpx
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.core.pipeline.transport import AsyncHttpResponse, AsyncHttpTransport
from azure.core.rest import HttpRequest
from azure.identity import AzureAuthorityHosts, aio
from pydantic import SecretStr

from worker.clock import Clock
from worker.config import AzureAdSettings, DestinationSettings, ProxySettings, TlsSettings
from worker.errors import ConfigError, Mistake
from worker.remote_write.auth_token import BearerTokens, Token
from worker.remote_write.exchange import Answer, Connections
from worker.remote_write.files import plain
from worker.remote_write.mask import SecretMask
from worker.remote_write.verdict import Fate, Later, printable

# As Prometheus has them: the authority that gives out tokens, and Azure Monitor's ingestion as what they are for.
_AUTHORITIES = {
    "AzurePublic": AzureAuthorityHosts.AZURE_PUBLIC_CLOUD,
    "AzureChina": AzureAuthorityHosts.AZURE_CHINA,
    "AzureGovernment": AzureAuthorityHosts.AZURE_GOVERNMENT,
}
_SCOPES = {
    "AzurePublic": "https://monitor.azure.com//.default",
    "AzureChina": "https://monitor.azure.cn//.default",
    "AzureGovernment": "https://monitor.azure.us//.default",
}

# A third of the usual time limit of the request that waits for a token.
_SECONDS = 10.0

# Tokens of a few kB, with all that is put beside them.
_BODY_BYTES = 65_536


def azure_tokens(
    settings: DestinationSettings, azuread: AzureAdSettings, clock: Clock, mask: SecretMask
) -> BearerTokens:
    """Tokens for the identity that the settings name; ConfigError where it cannot be used. No request is sent."""
    transport = _Transport(settings.proxy, mask)
    source = _TokenSource(azuread, transport, clock, mask)
    try:
        source.credential()
    except (ValueError, OSError) as error:
        problem = f"cannot be used: {printable(mask(str(error).encode()).decode(errors='replace'))}"
        raise ConfigError([Mistake(f"remote_write {settings.name}: azuread", None, problem)]) from None
    return BearerTokens(source.fetch, clock, mask, transport.close)


class _TokenSource:
    def __init__(self, azuread: AzureAdSettings, transport: "_Transport", clock: Clock, mask: SecretMask) -> None:
        self._azuread = azuread
        self._transport = transport
        self._clock = clock
        self._mask = mask
        self._scope = azuread.scope or _SCOPES[azuread.cloud]

    def credential(self) -> AsyncTokenCredential:
        """A new one each time: it knows no token yet, so that after a 401 it asks for another."""
        azuread = self._azuread
        # Trying again is the business of whoever sends.
        common: dict[str, Any] = {"transport": self._transport, "retry_total": 0}
        authority = {"authority": _AUTHORITIES[azuread.cloud]}
        if (managed := azuread.managed_identity) is not None:
            return aio.ManagedIdentityCredential(client_id=managed.client_id, **common)
        if (workload := azuread.workload_identity) is not None:
            return aio.WorkloadIdentityCredential(
                tenant_id=workload.tenant_id,
                client_id=workload.client_id,
                token_file_path=str(workload.token_file_path),
                **authority,
                **common,
            )
        if (oauth := azuread.oauth) is not None:
            secret = plain(oauth.client_secret)
            return aio.ClientSecretCredential(oauth.tenant_id, oauth.client_id, secret, **authority, **common)
        if (certificate := azuread.certificate) is not None:
            return aio.CertificateCredential(
                certificate.tenant_id,
                certificate.client_id,
                str(certificate.certificate_path),
                password=plain(certificate.certificate_password or "") or None,
                send_certificate_chain=certificate.send_certificate_chain,
                **authority,
                **common,
            )
        tenant_id = azuread.sdk.tenant_id if azuread.sdk is not None else None
        tenant = {"workload_identity_tenant_id": tenant_id} if tenant_id else {}
        return aio.DefaultAzureCredential(**tenant, **authority, **common)

    async def fetch(self) -> Token | Later:
        try:
            credential = await asyncio.to_thread(self.credential)
            granted = await credential.get_token(self._scope)
        except HttpResponseError as error:
            status = error.response.status_code if error.response is not None else None
            is_busy = status is not None and (status in {408, 429} or status >= 500)
            return self._none(error, Fate.RETRY if is_busy else Fate.PARK)
        except Exception as error:  # noqa: BLE001 - the library raises whatever it stumbles over in an answer
            return self._none(error, Fate.PARK)
        return Token(SecretStr(granted.token), max(0.0, granted.expires_on - self._clock.now()))

    def _none(self, error: Exception, fate: Fate) -> Later:
        for cause in _causes(error):
            if isinstance(cause, _UnreachableError):
                return Later(printable(f"no token from Azure (azuread): {cause.later.reason}"), cause.later.fate)
        text = str(error) if isinstance(error, HttpResponseError | OSError) else repr(error)
        said = self._mask(text.encode()).decode(errors="replace")
        return Later(printable(f"no token from Azure (azuread): {said}"), fate)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _UnreachableError(ServiceRequestError):
    """No answer came; `later` says why."""

    def __init__(self, later: Later) -> None:
        super().__init__(later.reason)
        self.later = later


class _Response(AsyncHttpResponse):
    """An answer as Azure's library takes it."""

    def __init__(self, request: HttpRequest, answer: Answer) -> None:
        super().__init__(request, answer)  # type: ignore[arg-type]  # its type is the older one of two alike
        self.status_code = answer.status
        self.headers = dict(answer.headers)
        self.content_type = answer.headers.get("content-type")
        self.reason = ""
        self._body = answer.body

    def body(self) -> bytes:
        return self._body


class _Transport(AsyncHttpTransport[HttpRequest, AsyncHttpResponse]):
    """Carries the requests of Azure's library as the worker's own are carried, and not in one of its ways.

    It asks the authority of the cloud, or a service of the machine that it runs on, by plain HTTP, which no proxy
    reaches.
    """

    def __init__(self, proxy: ProxySettings, mask: SecretMask) -> None:
        self._proxy = proxy
        self._mask = mask
        self._connections: dict[tuple[str, bytes], Connections] = {}

    async def send(self, request: HttpRequest, **options: Any) -> AsyncHttpResponse:
        form = request.content
        body = urlencode(form).encode() if isinstance(form, Mapping) else form or b""
        headers = {**request.headers, "Accept-Encoding": "identity"}
        sent = httpx.Request(request.method, request.url, headers=headers, content=body)
        connections = await self._to(sent.url)
        answer = await connections.exchange(sent, min(_SECONDS, options.get("connection_timeout", _SECONDS)))
        if isinstance(answer, Later):
            raise _UnreachableError(answer)
        return _Response(request, answer)

    async def _to(self, url: httpx.URL) -> Connections:
        origin = url.scheme, url.netloc
        if origin not in self._connections:
            self._connections[origin] = await asyncio.to_thread(
                Connections,
                url=url.copy_with(query=None),
                tls=TlsSettings(),
                proxy=self._proxy if url.scheme == "https" else ProxySettings(),
                mask=self._mask,
                peer=url.host,
                where="azuread",
                most=1,
                body_bytes=_BODY_BYTES,
            )
        return self._connections[origin]

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        while self._connections:
            _, connections = self._connections.popitem()
            await connections.aclose()

    async def __aexit__(
        self,
        _type: type[BaseException] | None = None,
        _value: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None:
        # Whoever made it closes it: it outlives the credentials that it is lent to.
        pass
