"""The configuration: environment variables, one YAML file, and what is wrong with them.

Owns every name that a user can set. Promises that a `Settings` value is complete and consistent, that every mistake is
found before anything else happens and told in one `ConfigError`, and that no secret is in any repr or message. Knows
nothing of what the settings are used for.
"""

from worker.config.authentication import (
    Authorization,
    AzureAdSettings,
    AzureCertificate,
    AzureManagedIdentity,
    AzureOAuth,
    AzureSdk,
    AzureWorkloadIdentity,
    BasicAuth,
    OAuth2Settings,
    SigV4Settings,
)
from worker.config.connection import ProxySettings, TlsSettings
from worker.config.load import load_settings, load_some
from worker.config.names import (
    DESTINATION_KEYS,
    SECRET_FILE_KEYS,
    SETTINGS,
    TOKEN_KEYS,
    TOKEN_SETTINGS,
    Setting,
    describe,
)
from worker.config.relabel_rules import RelabelRule
from worker.config.secret_files import SecretFile, SecretFileError
from worker.config.settings import (
    BUCKET_SECONDS,
    DEFAULT_TOKEN,
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    LogSettings,
    Message,
    MetadataSettings,
    QueueSettings,
    Settings,
    TokenSettings,
)

__all__ = [
    "BUCKET_SECONDS",
    "DEFAULT_TOKEN",
    "DESTINATION_KEYS",
    "SECRET_FILE_KEYS",
    "SETTINGS",
    "TOKEN_KEYS",
    "TOKEN_SETTINGS",
    "Authorization",
    "AzureAdSettings",
    "AzureCertificate",
    "AzureManagedIdentity",
    "AzureOAuth",
    "AzureSdk",
    "AzureWorkloadIdentity",
    "BasicAuth",
    "CloudflareSettings",
    "DestinationSettings",
    "LedgerSettings",
    "ListenSettings",
    "LogSettings",
    "Message",
    "MetadataSettings",
    "OAuth2Settings",
    "ProxySettings",
    "QueueSettings",
    "RelabelRule",
    "SecretFile",
    "SecretFileError",
    "Setting",
    "Settings",
    "SigV4Settings",
    "TlsSettings",
    "TokenSettings",
    "describe",
    "load_settings",
    "load_some",
]
