"""The configuration: environment variables, one YAML file, and what is wrong with them.

Owns every name that a user can set. Promises that a `Settings` value is complete and consistent, that every mistake is
found before anything else happens and told in one `ConfigError`, and that no secret is in any repr or message. Knows
nothing of what the settings are used for.
"""

from worker.config.destinations import SECRET_FILE_KEYS
from worker.config.load import load_settings
from worker.config.names import DESTINATION_KEYS, SETTINGS, Setting, describe
from worker.config.settings import (
    BUCKET_SECONDS,
    KNOWN_DATASETS,
    BasicAuth,
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    LogSettings,
    QueueSettings,
    Settings,
    TlsSettings,
)

__all__ = [
    "BUCKET_SECONDS",
    "DESTINATION_KEYS",
    "KNOWN_DATASETS",
    "SECRET_FILE_KEYS",
    "SETTINGS",
    "BasicAuth",
    "CloudflareSettings",
    "DestinationSettings",
    "LedgerSettings",
    "ListenSettings",
    "LogSettings",
    "QueueSettings",
    "Setting",
    "Settings",
    "TlsSettings",
    "describe",
    "load_settings",
]
