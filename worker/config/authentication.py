"""Who the worker is to a destination, with the keys that Prometheus gives the ways to say so."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from worker.config import endpoints, values
from worker.config.connection import ProxySettings, TlsSettings
from worker.config.headers import authorization_scheme
from worker.config.secret_files import SecretFile, is_empty
from worker.config.section import INLINE, FilePath, ReadableFile, Secret, Section, Text, Token, Truth, read_again


class BasicAuth(Section):
    """User name and password (RFC 7617), either of which may be empty, as in Prometheus."""

    username: Annotated[str | SecretFile, read_again(endpoints.user_name)] = ""
    """User name; it must not hold a colon. Empty where it is left out."""

    password: Secret = SecretStr("")
    """Password. Empty where it is left out, as with receivers whose user name is a key."""


class Authorization(Section):
    """An Authorization header (RFC 9110, 11.6.2) of any scheme but Basic."""

    type: Annotated[str, BeforeValidator(authorization_scheme)] = "Bearer"
    """Scheme of the Authorization header; for Basic there is `basic_auth`."""

    credentials: Token
    """What follows the scheme in the Authorization header."""


class OAuth2Settings(Section):
    """A token from an OAuth 2.0 server, by client credentials (RFC 6749, 4.4)."""

    client_id: Text
    """Name under which the token's server knows the worker."""

    client_secret: Secret
    """Password that goes with `client_id`."""

    token_url: Annotated[str, BeforeValidator(endpoints.token_url)] = Field(repr=False)
    """Where the token is fetched."""

    scopes: Annotated[tuple[str, ...], BeforeValidator(values.name_list)] = ()
    """What the token is asked to allow."""

    endpoint_params: Annotated[
        Mapping[str, str], BeforeValidator(values.texts_by_name), AfterValidator(MappingProxyType)
    ] = Field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Further parameters of the request for the token, by name, such as `audience`."""

    tls: Annotated[TlsSettings, Field(validation_alias="tls_config")] = TlsSettings()
    """TLS with the token's server; nothing is taken over from the destination's own `tls_config`."""

    proxy: Annotated[ProxySettings, INLINE] = Field(default_factory=ProxySettings)
    """Proxy on the way to the token's server; nothing is taken over from the destination's own."""


class SigV4Settings(Section):
    """Requests signed as AWS wants them. What is left out is found as AWS' own programs find it."""

    region: Text | None = None
    """AWS region, such as `eu-central-1`; that of the environment or the profile where it is left out."""

    access_key: Annotated[SecretStr, BeforeValidator(endpoints.secret)] | None = None
    """AWS access key; needs `secret_key`."""

    secret_key: Annotated[SecretStr, BeforeValidator(endpoints.secret)] | None = None
    """Secret of `access_key`."""

    profile: Text | None = None
    """Profile in AWS' own configuration files."""

    role_arn: Text | None = None
    """Role that is assumed before anything is signed."""

    external_id: Text | None = None
    """External id for the role."""

    service_name: Text = "aps"
    """Service that the signature is for; `aps` is Amazon Managed Service for Prometheus."""

    use_fips_sts_endpoint: Truth = False
    """Assume the role at an endpoint that follows FIPS 140."""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """As Prometheus has it."""
        for one, other in (("access_key", "secret_key"), ("secret_key", "access_key"), ("external_id", "role_arn")):
            if not is_empty(given.get(one)) and is_empty(given.get(other)):
                yield other, f"is required with {one}"


Uuid = Annotated[str, BeforeValidator(values.uuid)]
AzureCloud = Literal["AzurePublic", "AzureChina", "AzureGovernment"]
_AZURE_CLOUDS: tuple[AzureCloud, ...] = ("AzurePublic", "AzureChina", "AzureGovernment")


def _azure_cloud(value: object) -> str:
    return values.word(value, _AZURE_CLOUDS)


class AzureManagedIdentity(Section):
    """An identity that Azure gives to a machine."""

    client_id: Uuid | None = None
    """Id of the identity; the machine's own where it is left out."""


class AzureWorkloadIdentity(Section):
    """An identity that Azure gives to a Kubernetes service account."""

    client_id: Uuid
    """Id of the identity."""

    tenant_id: Text
    """Id of the Entra tenant."""

    token_file_path: FilePath = Path("/var/run/secrets/azure/tokens/azure-identity-token")
    """File in which Kubernetes keeps the service account's token."""


class AzureOAuth(Section):
    """An application that is registered with Entra, by its secret."""

    client_id: Uuid
    """Id of the application."""

    client_secret: Secret
    """Secret of the application."""

    tenant_id: Text
    """Id of the Entra tenant."""


class AzureCertificate(Section):
    """An application that is registered with Entra, by its certificate."""

    client_id: Uuid
    """Id of the application."""

    tenant_id: Text
    """Id of the Entra tenant."""

    certificate_path: ReadableFile
    """File with the certificate and its private key (PEM or PKCS #12)."""

    certificate_password: Secret | None = None
    """Password of that file."""

    send_certificate_chain: Truth = False
    """Send the certificates above it along, as Entra wants for some applications."""


class AzureSdk(Section):
    """Whatever identity the Azure SDK finds by itself."""

    tenant_id: Text | None = None
    """Id of the Entra tenant."""


class AzureAdSettings(Section):
    """A token from Microsoft Entra ID, once called Azure AD."""

    cloud: Annotated[AzureCloud, BeforeValidator(_azure_cloud)] = "AzurePublic"
    """`AzurePublic`, `AzureChina` or `AzureGovernment`."""

    managed_identity: AzureManagedIdentity | None = None
    """The identity of the machine."""

    workload_identity: AzureWorkloadIdentity | None = None
    """The identity of the Kubernetes service account."""

    oauth: AzureOAuth | None = None
    """An application and its secret."""

    certificate: AzureCertificate | None = None
    """An application and its certificate."""

    sdk: AzureSdk | None = None
    """Whatever identity the Azure SDK finds by itself."""

    scope: Text | None = None
    """What the token is for; Azure Monitor in that cloud where it is left out."""

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """One identity, not none, not two."""
        known = ("managed_identity", "workload_identity", "oauth", "certificate", "sdk")
        used = [key for key in known if not is_empty(given.get(key))]
        if not used:
            yield "", f"must have one of {', '.join(known)}; an empty one is written as `sdk: {{}}`"
        for key in used[1:]:
            yield key, f"cannot be combined with {used[0]}: a request comes from one identity"
