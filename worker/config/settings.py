"""The settings as the rest of the worker sees them: frozen values, checked, with units in their names.

The docstring under each field is the one place where a setting is explained; its first paragraph is what the table of
settings says. A setting's name for users is its section's prefix and the field's name in capitals (`CF_` +
`bucket_seconds`); a destination's keys are Prometheus' own, given here as aliases. Secrets are `SecretStr`, which no
repr shows.

Knows nothing of where the values come from.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from worker.buckets import SampleTimestamp
from worker.config import endpoints, values
from worker.config.authentication import Authorization, AzureAdSettings, BasicAuth, OAuth2Settings, SigV4Settings
from worker.config.connection import ProxySettings, TlsSettings
from worker.config.headers import headers_by_name
from worker.config.relabel_rules import RelabelRules
from worker.config.secret_files import SecretFile, is_empty
from worker.config.section import (
    ELSEWHERE,
    FROM_A_FILE,
    INLINE,
    Section,
    Text,
    Truth,
    Url,
    choice,
    duration,
    read_once,
    whole,
)
from worker.config.values import InvalidValueError
from worker.shards import Shard

BUCKET_SECONDS = (60, 300, 900, 1800, 3600, 86400)
"""The widths of window that Cloudflare's rollups can be asked for."""

_DAY_SECONDS = 86_400
_YEAR_HOURS = 365 * 24
# Enterprise accounts have 15 requests a second, 4,500 in five minutes; twenty times that is a slip of the finger.
_MOST_REQUESTS = 100_000


DEFAULT_TOKEN = "default"  # noqa: S105 - its name
"""What the token of CF_API_TOKEN is called."""


class TokenSettings(Section):
    """An API token, what is collected with it, and how much it may ask."""

    name: Annotated[str, BeforeValidator(values.short_name)]
    """What the token is called in logs, metrics and the status."""

    api_token: Annotated[SecretStr, read_once(endpoints.token), FROM_A_FILE]
    """Cloudflare API token (no global API key) with Zone > Zone > Read and Zone > Analytics > Read."""

    accounts: Annotated[tuple[str, ...], BeforeValidator(values.name_list)] = ()
    """Only these accounts (names or ids) and their zones are collected; empty for every account the token can read."""

    zones: Annotated[tuple[str, ...], BeforeValidator(values.zone_list)] = ()
    """Only these zones (names or ids) and the accounts that own them are collected; empty for all the token reads."""

    exclude_zones: Annotated[tuple[str, ...], BeforeValidator(values.zone_list)] = ()
    """These zones (names or ids) are not collected."""

    graphql_requests_per_5_minutes: Annotated[int, whole(1, _MOST_REQUESTS, "requests")] = 300
    """Most GraphQL queries in any five minutes, restarts included.

    What Cloudflare accepts; fewer where something else uses the same token.
    """

    requests_per_5_minutes: Annotated[int, whole(1, _MOST_REQUESTS, "requests")] = 1200
    """Most requests of all kinds in any five minutes, GraphQL queries among them.

    What Cloudflare accepts; beyond it all of the token's requests are blocked for five minutes.
    """

    rate_limit_type: Annotated[Literal["token", "account"], choice("token", "account")] = "token"
    """Whether Cloudflare counts GraphQL queries by `token`, or those of each `account` by themselves."""

    def fields(self) -> dict[str, Any]:
        """The values of all that is set for the token, by their names."""
        return {name: getattr(self, name) for name in TokenSettings.model_fields}


class CloudflareSettings(TokenSettings):
    """What is collected, when, and with which token: with the first of them, where there are several."""

    name: Annotated[str, BeforeValidator(values.short_name), ELSEWHERE] = DEFAULT_TOKEN
    """What the token is called in logs, metrics and the status."""

    further_tokens: Annotated[tuple[TokenSettings, ...], ELSEWHERE] = ()
    """The tokens behind the first. A zone or account that several could collect is left to the first of them."""

    api_url: Annotated[str, BeforeValidator(endpoints.api_url)] = "https://api.cloudflare.com/client/v4"
    """Base URL of Cloudflare's API; https, or plain http to this machine for the simulated API."""

    datasets: Annotated[tuple[str, ...], BeforeValidator(values.some_names)] = ("http_requests",)
    """Datasets of the catalogue that are collected: names, and groups such as `zone`, `workers`, `storage` or `all`."""

    catalogue: Annotated[Path | None, BeforeValidator(values.readable_file)] = None
    """YAML file with datasets of your own, which are added to the catalogue or replace those of the same name."""

    bucket_seconds: Annotated[int, BeforeValidator(partial(values.one_of, allowed=BUCKET_SECONDS, unit="seconds"))] = (
        3600
    )
    """Width of a window, in seconds: 60, 300, 900, 1800, 3600 or 86400.

    An hour: 24 samples per series and day, and the rollup that every plan can read.
    """

    delay_seconds: Annotated[int, whole(0, _DAY_SECONDS, "seconds")] = 600
    """How long after its end a window is taken to be final, in seconds.

    Cloudflare's numbers settle within about 5 minutes; twice that, so that a slow day does not become a wrong bucket.
    """

    collection_interval_seconds: Annotated[int, whole(1, 3600, "seconds")] = 60
    """How often the worker looks for windows that have become final, in seconds.

    The narrowest window is 60 s wide, so that none waits for more than one window's width.
    """

    replay_hours: Annotated[int, whole(1, _YEAR_HOURS, "hours")] = 24
    """How far back missing windows are fetched without being asked for, in hours.

    A day: long enough for an outage overnight.
    """

    backfill_max_hours: Annotated[int, whole(1, _YEAR_HOURS, "hours")] = 72
    """How far back `cfrw backfill` may reach, in hours.

    Three days: a weekend, and Friday's evening before it.
    """

    sample_timestamp: Annotated[SampleTimestamp, choice(*SampleTimestamp)] = SampleTimestamp.START
    """Instant that samples carry: `start` of the window, or `end` (one millisecond before its end)."""

    shard: Annotated[Shard | None, BeforeValidator(values.shard)] = None
    """Which part of the zones and accounts this worker collects: `2/4`, or `auto/4` by the ordinal of its pod's name.

    Every part has a worker with a ledger and a token of its own.
    """

    drift_sample_percent: Annotated[float, BeforeValidator(values.percentage)] = 1.0
    """How many of the captured windows are read again later, to see whether they were final, in percent; 0 for none.

    One in a hundred: of 1,000 zones with 8 datasets that is 80 windows at a time, ten of each dataset, which are one
    query; each read three times, 24 queries per width of a window, of 5 minutes a twelfth of the 300 that Cloudflare
    accepts. They never go before what is live, and no more than 48 of them in a minute.
    """

    drift_after_seconds: Annotated[tuple[int, ...], BeforeValidator(values.rising_seconds)] = (900, 3600, 21_600)
    """How long after its capture such a window is read again, in seconds, ascending.

    A quarter of an hour, longer than Cloudflare usually takes to settle altogether; an hour, and six, for a bad day.
    """

    verify_hours: Annotated[int, whole(0, _YEAR_HOURS, "hours")] = 0
    """How far back the destinations are read back once an hour and compared with the ledger, in hours; 0 for never.

    Off, since credentials to write with may not be good for reading, and a receiver pays for it: six hours of 1,000
    zones with 200 series and hourly windows are 1.2 million samples, 240 queries an hour.
    """

    def by_token(self) -> "tuple[CloudflareSettings, ...]":
        """The settings once for each token, as if it were the only one."""
        first = self.model_copy(update={"further_tokens": ()})
        others = (first.model_copy(update=token.fields()) for token in self.further_tokens)
        return (first, *others)


class Message(StrEnum):
    """What a request holds, as Prometheus names it."""

    V1 = "prometheus.WriteRequest"
    """Remote write 1.0."""

    V2 = "io.prometheus.write.v2.Request"
    """Remote write 2.0."""


def _message(value: object) -> Message:
    return Message(values.word(value, tuple(Message)))


class QueueSettings(Section):
    """How much is sent at once, and how soon again after a failure."""

    max_samples_per_send: Annotated[int, whole(1, 1_000_000, "samples")] = 40_000
    """Most samples in one request.

    A backlog has some 30 samples of a series in a row: 40,000 of 18 bytes are 0.7 MB, and no more when compressed. With
    one sample of each series they have 150 bytes each, 6 MB in all and 0.65 MB compressed. Both are under the 1 MB of a
    proxy that nobody has set up for it; where external labels make it more, 1.3 MB with 90 bytes of them, what the
    proxy takes is learnt. And 50,000 samples are what Cortex as it is takes at a time (`ingestion_burst_size`). With
    20,000 delivery needs a quarter more CPU: a request has its price.
    """

    max_bytes_per_send: Annotated[int, BeforeValidator(partial(values.size_bytes, minimum=10_000))] = 6_000_000
    """Most bytes in one request before compression.

    6 MB: a fifth of the 32 MB that Prometheus and VictoriaMetrics take, and 40,000 samples with labels of 130 bytes.
    """

    min_backoff_seconds: Annotated[float, duration(0.001, 3600), Field(validation_alias="min_backoff")] = 1.0
    """Pause after the first failure; doubled after each further one."""

    max_backoff_seconds: Annotated[float, duration(0.001, 3600), Field(validation_alias="max_backoff")] = 60.0
    """Longest pause between two attempts.

    A minute: a receiver that is back is found within it, and one that is down gets 1,440 requests a day.
    """

    min_shards: Annotated[int, whole(1, 1000, "shards")] = 1
    """Fewest requests that are under way at once."""

    max_shards: Annotated[int, whole(1, 1000, "shards")] = 50
    """Most requests that are under way at once; those of one series always follow each other. As in Prometheus."""

    retry_on_http_429: Truth = True
    """Wait and send again when the receiver answers 429; with `false` it counts as a refusal."""

    sample_age_limit_seconds: Annotated[
        float, duration(0, 10 * _YEAR_HOURS * 3600), Field(validation_alias="sample_age_limit")
    ] = 0.0
    """Samples older than this are not sent; 0 sends all. As in Prometheus."""

    max_retry_after_seconds: Annotated[float, duration(1, _DAY_SECONDS), Field(validation_alias="max_retry_after")] = (
        300.0
    )
    """Longest pause that a receiver can ask for with `Retry-After`.

    Five minutes: the longest that receivers ask for in earnest; whatever is longer is a mistake at the other end, and
    300 s cost an hourly window nothing.
    """

    parked_probe_interval_seconds: Annotated[
        float, duration(0.001, _DAY_SECONDS), Field(validation_alias="parked_probe_interval")
    ] = 60.0
    """How often a destination is tried that refuses the worker itself (401, 403, 404, 405, TLS, DNS).

    A minute: a password that was put right is noticed within it, and 1,440 refusals a day lock no account.
    """

    split_after_failures: Annotated[int, whole(1, 1000, "failures")] = 5
    """How often a request fails (5xx, no answer) until it is sent in parts, as one sample may be to blame.

    Waits of 1+2+4+8+16 s: half a minute, longer than a receiver takes to restart.
    """

    blame_after_seconds: Annotated[
        float, duration(0, 10 * _YEAR_HOURS * 3600), Field(validation_alias="blame_after")
    ] = 3600.0
    """How long a sample must fail alone with a 500 or a 429, while others are taken, until it is recorded as refused.

    An hour: longer than a part of a receiver (one ingester of many) is usually away, whose series fail alike meanwhile.
    """

    max_split_requests_per_minute: Annotated[int, whole(1, 60_000, "requests")] = 600
    """Most requests per minute that look for refused samples.

    10 a second: one bad sample among 40,000 is found by 2 * log2(40,000) + 1 = 32 of them, in 3 s.
    """

    max_wait_for_missing_window_seconds: Annotated[
        float, duration(0, 10 * _YEAR_HOURS * 3600), Field(validation_alias="max_wait_for_missing_window")
    ] = 2400.0
    """How long after its end a window that could not be captured yet holds back the later ones of its zone, where the
    receiver takes nothing out of order.

    40 minutes: of the hour that such a receiver looks back, 10 are CF_DELAY_SECONDS, 30 are left for further attempts
    and 20 for delivery.
    """

    live_window_seconds: Annotated[
        float, duration(0, 10 * _YEAR_HOURS * 3600), Field(validation_alias="live_window")
    ] = 7200.0
    """Windows that started within this time do not wait behind a backlog.

    Two hours: a window of an hour is captured 70 minutes after it started.
    """

    protocol_retry_interval_seconds: Annotated[
        float, duration(60, 10 * _YEAR_HOURS * 3600), Field(validation_alias="protocol_retry_interval")
    ] = 86_400.0
    """How long a receiver that does not understand remote write 2.0 gets 1.0 before 2.0 is tried again.

    A day: a receiver that was upgraded is found the day after, at the price of one request a day.
    """

    @model_validator(mode="after")
    def _no_least_is_above_its_most(self) -> Self:
        shortest, longest = map(values.duration_text, (self.min_backoff_seconds, self.max_backoff_seconds))
        problems = []
        # Prometheus' own least is 30 ms, and blocks that name only a most below a second are common: it holds for all.
        if self.max_backoff_seconds < self.min_backoff_seconds and "min_backoff_seconds" in self.model_fields_set:
            problems.append(f"min_backoff ({shortest}) must not be more than max_backoff ({longest})")
        if self.max_shards < self.min_shards:
            problems.append(f"min_shards ({self.min_shards}) must not be more than max_shards ({self.max_shards})")
        if problems:
            raise InvalidValueError(None, "; ".join(problems))
        return self


class MetadataSettings(Section):
    """Whether receivers learn what the metrics mean."""

    send: Truth | None = None
    """Send type, help and unit of the metrics along; by default with remote write 2.0, which has a place for them."""


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

    timeout_seconds: Annotated[float, duration(0.001, 3600), Field(validation_alias="remote_timeout")] = 30.0
    """Longest time that one request may take, from connecting to the end of the answer. As in Prometheus."""

    headers: Annotated[
        Mapping[str, SecretStr | SecretFile], BeforeValidator(headers_by_name), AfterValidator(MappingProxyType)
    ] = Field(default_factory=lambda: MappingProxyType({}))
    """Further HTTP headers, by name; those that the protocol fixes cannot be set."""

    basic_auth: BasicAuth | None = None
    """User name and password."""

    authorization: Authorization | None = None
    """Authorization header of any scheme but Basic."""

    oauth2: OAuth2Settings | None = None
    """A token from an OAuth 2.0 server."""

    sigv4: SigV4Settings | None = None
    """Requests signed as AWS wants them; all that AWS' own programs find by themselves with `sigv4: {}`."""

    azuread: AzureAdSettings | None = None
    """A token from Microsoft Entra ID."""

    tls: Annotated[TlsSettings, Field(validation_alias="tls_config")] = TlsSettings()
    """How the destination's certificate is checked, and which one the worker shows."""

    proxy: Annotated[ProxySettings, INLINE] = Field(default_factory=ProxySettings)
    """The way through a proxy."""

    queue: Annotated[QueueSettings, Field(validation_alias="queue_config")] = QueueSettings()
    """How much is sent at once, and how soon again after a failure."""

    metadata: Annotated[MetadataSettings, Field(validation_alias="metadata_config")] = MetadataSettings()
    """Whether receivers learn what the metrics mean."""

    protobuf_message: Annotated[Message, BeforeValidator(_message)] | None = None
    """`prometheus.WriteRequest` (remote write 1.0) or `io.prometheus.write.v2.Request` (2.0); found out by default."""

    write_relabel_configs: RelabelRules = ()
    """Rules that change, keep or drop series on the way to this destination, after the external labels are added."""

    external_labels: Annotated[
        Mapping[str, str], BeforeValidator(values.labels), AfterValidator(MappingProxyType), ELSEWHERE
    ] = Field(default_factory=lambda: MappingProxyType({}))
    """Labels that every series gets which does not have them yet; one set for all destinations."""

    out_of_order_time_window_seconds: Annotated[
        int,
        BeforeValidator(partial(values.whole_duration_seconds, maximum=10 * _YEAR_HOURS * 3600)),
        Field(validation_alias="out_of_order_time_window"),
    ] = 0
    """What the receiver's own `out_of_order_time_window` is set to; 0 where it takes nothing out of order.

    With 0 a series gets one window per request, oldest first; otherwise many windows travel together.
    """

    @property
    def is_strict(self) -> bool:
        """Whether the receiver takes nothing out of order."""
        return self.out_of_order_time_window_seconds == 0

    query_url: Annotated[Url | None, Field(repr=False)] = None
    """Base URL of the receiver's query API, for reading back what was pushed: what stands in front of `/api/v1/query`.

    Where it is left out it follows from `url`, if that leaves no doubt.
    """

    @classmethod
    def wrong_together(cls, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """A request has one Authorization header."""
        yield from super().wrong_together(given)
        ways = ("basic_auth", "authorization", "bearer_token", "oauth2", "sigv4", "azuread")
        used = [key for key in ways if not is_empty(given.get(key))]
        for key in ("headers", "http_headers"):
            if isinstance(headers := given.get(key), Mapping):
                used += [f"{key}.{name}" for name in headers if name.lower() == "authorization"]
        for key in used[1:]:
            yield key, f"cannot be combined with {used[0]}: a request has one Authorization header"

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it, for logs and tables."""
        return endpoints.shown_url(self.url)


class LedgerSettings(Section):
    """Where captured buckets are kept, and for how long."""

    path: Annotated[Path, BeforeValidator(values.file_path)] = Path("data/ledger.db")
    """File of the ledger (SQLite), on a local disk; relative to the working directory."""

    retention_hours: Annotated[int, whole(1, 10 * _YEAR_HOURS, "hours")] = 168
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

    port: Annotated[int, whole(0, 65535, "port")] = 9845
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

    level: Annotated[Literal["debug", "info", "warning", "error"], choice("debug", "info", "warning", "error")] = "info"
    """Least severity that is logged: `debug`, `info`, `warning` or `error`."""

    format: Annotated[Literal["json", "console"], choice("json", "console")] = "json"
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
