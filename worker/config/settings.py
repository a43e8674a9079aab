"""The settings as the rest of the worker sees them: frozen values, checked, with units in their names.

The docstring under each field is the one place where a setting is explained; its first paragraph is what the table of
settings says. A setting's name for users is its section's prefix and the field's name in capitals (`CF_` +
`bucket_seconds`); a destination's keys are Prometheus' own, given here as aliases. Secrets are `SecretStr`, which no
repr shows.

Knows nothing of where the values come from.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from worker.buckets import SampleTimestamp
from worker.config import endpoints, values
from worker.config.values import InvalidValueError

KNOWN_DATASETS = ("http_requests",)
"""What can be named in `CF_DATASETS`: the catalogue's names."""

BUCKET_SECONDS = (60, 300, 900, 1800, 3600, 86400)
"""The widths of window that Cloudflare's rollups can be asked for."""

_DAY_SECONDS = 86_400
_YEAR_HOURS = 365 * 24


def _whole(minimum: int, maximum: int, unit: str) -> BeforeValidator:
    return BeforeValidator(partial(values.whole_number, minimum=minimum, maximum=maximum, unit=unit))


def _duration(minimum: float, maximum: float) -> BeforeValidator:
    return BeforeValidator(partial(values.duration_seconds, minimum=minimum, maximum=maximum))


def _choice(*allowed: str) -> BeforeValidator:
    return BeforeValidator(partial(values.choice, allowed=allowed))


Url = Annotated[str, BeforeValidator(endpoints.destination_url)]
Secret = Annotated[SecretStr, BeforeValidator(endpoints.secret)]
Token = Annotated[SecretStr, BeforeValidator(endpoints.token)]
Text = Annotated[str, BeforeValidator(values.plain_text)]
Truth = Annotated[bool, BeforeValidator(values.truth)]
ReadableFile = Annotated[Path, BeforeValidator(values.readable_file)]


class Section(BaseModel):
    """What all settings have in common: unknown names are refused, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
    )

    @classmethod
    def keys(cls) -> dict[str, "type[Section] | None"]:
        """The keys under which the fields are written, each with the section that it opens, if it opens one."""
        keys: dict[str, type[Section] | None] = {}
        for name, info in cls.model_fields.items():
            kinds = (info.annotation, *get_args(info.annotation))
            inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
            keys[str(info.validation_alias or name)] = inner
        return keys

    @model_validator(mode="before")
    @classmethod
    def _an_empty_value_is_no_value(cls, given: Any) -> Any:
        """Leave out known keys that hold nothing, so that their defaults apply; unknown ones stay, to be reported."""
        if not isinstance(given, Mapping):
            return given
        known = {*cls.keys(), *cls.model_fields}
        return {key: value for key, value in given.items() if key not in known or value not in (None, "")}


class CloudflareSettings(Section):
    """What is collected, when, and with which token."""

    api_token: Token
    """Cloudflare API token (no global API key) with Zone > Zone > Read and Zone > Analytics > Read."""

    api_url: Annotated[str, BeforeValidator(endpoints.api_url)] = "https://api.cloudflare.com/client/v4"
    """Base URL of Cloudflare's API; https, or plain http to this machine for the simulated API."""

    accounts: Annotated[tuple[str, ...], BeforeValidator(values.name_list)] = ()
    """Only zones of these accounts (names or ids) are collected; empty for every account the token can read."""

    zones: Annotated[tuple[str, ...], BeforeValidator(values.zone_list)] = ()
    """Only these zones (names or ids) are collected; empty for every zone the token can read."""

    exclude_zones: Annotated[tuple[str, ...], BeforeValidator(values.zone_list)] = ()
    """These zones (names or ids) are not collected."""

    datasets: Annotated[tuple[str, ...], BeforeValidator(partial(values.names_among, known=KNOWN_DATASETS))] = (
        "http_requests",
    )
    """Datasets of the catalogue that are collected."""

    bucket_seconds: Annotated[int, BeforeValidator(partial(values.one_of, allowed=BUCKET_SECONDS, unit="seconds"))] = (
        3600
    )
    """Width of a window, in seconds: 60, 300, 900, 1800, 3600 or 86400.

    An hour: 24 samples per series and day, and the rollup that every plan can read.
    """

    delay_seconds: Annotated[int, _whole(0, _DAY_SECONDS, "seconds")] = 600
    """How long after its end a window is taken to be final, in seconds.

    Cloudflare's numbers settle within about 5 minutes; twice that, so that a slow day does not become a wrong bucket.
    """

    collection_interval_seconds: Annotated[int, _whole(1, 3600, "seconds")] = 60
    """How often the worker looks for windows that have become final, in seconds.

    The narrowest window is 60 s wide, so that none waits for more than one window's width.
    """

    replay_hours: Annotated[int, _whole(1, _YEAR_HOURS, "hours")] = 24
    """How far back missing windows are fetched without being asked for, in hours.

    A day: long enough for an outage overnight.
    """

    backfill_max_hours: Annotated[int, _whole(1, _YEAR_HOURS, "hours")] = 72
    """How far back `cfrw backfill` may reach, in hours.

    Three days: a weekend, and Friday's evening before it.
    """

    sample_timestamp: Annotated[SampleTimestamp, _choice(*SampleTimestamp)] = SampleTimestamp.START
    """Instant that samples carry: `start` of the window, or `end` (one millisecond before its end)."""


class BasicAuth(Section):
    """User name and password (RFC 7617)."""

    username: Annotated[str, BeforeValidator(endpoints.user_name)]
    """User name; it must not hold a colon."""

    password: Secret
    """Password."""


class TlsSettings(Section):
    """How a destination's certificate is checked, and which one the worker shows."""

    ca_file: ReadableFile | None = None
    """File with the certificates (PEM) that sign the destination's; empty for the usual authorities."""

    cert_file: ReadableFile | None = None
    """File with the certificate (PEM) that the worker shows; needs `key_file`."""

    key_file: ReadableFile | None = None
    """File with the private key (PEM) of `cert_file`."""

    server_name: Text | None = None
    """Name that the destination's certificate must carry, where it is not the URL's host."""

    insecure_skip_verify: Truth = False
    """Take any certificate: whoever is on the way can then read and change everything, passwords included."""


class QueueSettings(Section):
    """How much is sent at once, and how soon again after a failure."""

    max_samples_per_send: Annotated[int, _whole(1, 1_000_000, "samples")] = 10_000
    """Most samples in one request.

    10,000 samples of about 200 bytes with their labels are 2 MB: well under the 32 MB that the strictest receivers
    take.
    """

    max_bytes_per_send: Annotated[int, BeforeValidator(partial(values.size_bytes, minimum=10_000))] = 3_000_000
    """Most bytes in one request before compression.

    3 MB: a tenth of the 32 MB that Prometheus and VictoriaMetrics take, and 10,000 samples with labels of 300 bytes.
    """

    min_backoff_seconds: Annotated[float, _duration(0.001, 3600), Field(validation_alias="min_backoff")] = 1.0
    """Pause after the first failure; doubled after each further one."""

    max_backoff_seconds: Annotated[float, _duration(0.001, 3600), Field(validation_alias="max_backoff")] = 60.0
    """Longest pause between two attempts.

    A minute: a receiver that is back is found within it, and one that is down gets 1,440 requests a day.
    """

    @model_validator(mode="after")
    def _the_longest_pause_is_not_the_shorter_one(self) -> Self:
        if self.max_backoff_seconds < self.min_backoff_seconds:
            shortest, longest = map(values.duration_text, (self.min_backoff_seconds, self.max_backoff_seconds))
            raise InvalidValueError(None, f"min_backoff ({shortest}) must not be more than max_backoff ({longest})")
        return self


class DestinationSettings(Section):
    """One remote-write endpoint."""

    name: Text
    """What the destination is called in logs, metrics and the ledger; the URL's host and port where it is left out.

    Deliveries are recorded under it: a destination with a new name is a new destination.
    """

    url: Annotated[Url, Field(repr=False)]
    """Where samples are pushed to, such as `https://prometheus.example.org/api/v1/write`.

    Its query may hold a key: for people there is `shown_url`.
    """

    timeout_seconds: Annotated[float, _duration(0.001, 3600), Field(validation_alias="remote_timeout")] = 30.0
    """Longest time that one request may take, from connecting to the end of the answer. As in Prometheus."""

    headers: Annotated[
        Mapping[str, SecretStr], BeforeValidator(endpoints.headers), AfterValidator(MappingProxyType)
    ] = Field(default_factory=lambda: MappingProxyType({}))
    """Further HTTP headers, by name; those that the protocol fixes cannot be set."""

    basic_auth: BasicAuth | None = None
    """User name and password."""

    bearer_token: Token | None = None
    """Token that is sent as `Authorization: Bearer ...`."""

    tls: Annotated[TlsSettings, Field(validation_alias="tls_config")] = TlsSettings()
    """How the destination's certificate is checked, and which one the worker shows."""

    queue: Annotated[QueueSettings, Field(validation_alias="queue_config")] = QueueSettings()
    """How much is sent at once, and how soon again after a failure."""

    out_of_order_time_window_seconds: Annotated[
        int,
        BeforeValidator(partial(values.whole_duration_seconds, maximum=10 * _YEAR_HOURS * 3600)),
        Field(validation_alias="out_of_order_time_window"),
    ] = 0
    """What the receiver's own `out_of_order_time_window` is set to; 0 where it takes nothing out of order.

    With 0 a series gets one window per request, oldest first; otherwise many windows travel together.
    """

    query_url: Annotated[Url | None, Field(repr=False)] = None
    """Base URL of the receiver's query API, for reading back what was pushed."""

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it, for logs and tables."""
        return endpoints.shown_url(self.url)


class LedgerSettings(Section):
    """Where captured buckets are kept, and for how long."""

    path: Annotated[Path, BeforeValidator(values.file_path)] = Path("data/ledger.db")
    """File of the ledger (SQLite), on a local disk; relative to the working directory."""

    retention_hours: Annotated[int, _whole(1, 10 * _YEAR_HOURS, "hours")] = 168
    """How long buckets that every destination has acknowledged are kept, in hours; at least `CF_REPLAY_HOURS`.

    A week: what was pushed can be resent without asking Cloudflare again, whose free plan keeps three days.
    """

    max_bytes: Annotated[int, BeforeValidator(partial(values.size_bytes, minimum=2**20))] = 10 * 2**30
    """Most bytes the ledger may take on disk: plain, or with a unit (`500MiB`, `10GiB`).

    10 GiB at 15 bytes a sample are 700 million samples: 1,000 zones with 200 series and hourly windows for 5 months.
    """


class ListenSettings(Section):
    """Where `/metrics`, the health endpoints and the status page are served."""

    host: str = "0.0.0.0"  # noqa: S104 - a scraper comes from another machine; nothing secret is served
    """Address or host name to listen on."""

    port: Annotated[int, _whole(0, 65535, "port")] = 9845
    """TCP port; 0 takes any free one."""

    @property
    def address(self) -> str:
        """Host and port as one text, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen(given: Any) -> Any:
    if isinstance(given, ListenSettings):
        return given
    host, port = endpoints.listen_address(given)
    return ListenSettings(host=host, port=port)


class LogSettings(Section):
    """How much is logged, and in which form."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _choice("debug", "info", "warning", "error")] = (
        "info"
    )
    """Least severity that is logged: `debug`, `info`, `warning` or `error`."""

    format: Annotated[Literal["json", "console"], _choice("json", "console")] = "json"
    """`json`, one object a line, or `console` for people."""


class Settings(Section):
    """Everything that can be set."""

    cloudflare: CloudflareSettings
    destinations: tuple[DestinationSettings, ...]
    ledger: LedgerSettings = LedgerSettings()

    listen: Annotated[ListenSettings, BeforeValidator(_listen)] = ListenSettings()
    """Address and port of `/metrics`, the health endpoints and the status page: `host:port`, `[::]:9845`, `:9845`."""

    log: LogSettings = LogSettings()

    replaced_destinations: int = 0
    """How many destinations of the file's list the REMOTE_WRITE_* variables have replaced."""
