"""Keys of Prometheus' `remote_write` that no setting stands behind.

Some ask for what the worker does anyway, whatever they say, and are taken if they are written well. The others ask for
something that it does not do, and are mistakes that say so and what to do, unless their value asks for nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from worker.config import values
from worker.config.secret_files import is_empty


@dataclass(frozen=True, slots=True)
class Kept:
    """A key whose value makes no difference.

    parser: what it must be.
    why:    the reason, for the documents.
    """

    parser: Callable[[object], object]
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that cannot be honoured.

    instead:  what to do, for the user and for the documents.
    harmless: the one value that asks for what the worker does anyway, if there is one.
    """

    instead: str
    harmless: str | None = None


_NUMBER = partial(values.whole_number, minimum=1, maximum=10**9, unit="samples")
_DURATION = partial(values.duration_seconds, minimum=0, maximum=10 * 365 * 86_400)
_SENT_ALONG = "what the metrics mean is sent along with their samples"
_CLIENT_CREDENTIALS_ONLY = "remove it: tokens are fetched with client_id and client_secret only"

KEYS: Mapping[str, Kept | Refused] = {
    "send_exemplars": Kept(values.truth, "there are no exemplars"),
    "send_native_histograms": Kept(values.truth, "there are no histograms"),
    "queue_config.capacity": Kept(_NUMBER, "the queue is the ledger, on disk"),
    "queue_config.batch_send_deadline": Kept(_DURATION, "what is captured is sent at once"),
    "metadata_config.send_interval": Kept(_DURATION, _SENT_ALONG),
    "metadata_config.max_samples_per_send": Kept(_NUMBER, _SENT_ALONG),
    "follow_redirects": Refused("remove it and give the final URL: credentials would follow a redirect", "false"),
    "enable_http2": Refused("remove it: requests go over HTTP/1.1, which every receiver speaks", "false"),
    "round_robin_dns": Refused("remove it, or put a load balancer before the receivers", "false"),
    "google_iam": Refused("remove it: Google takes no remote write; use a Prometheus or a collector of Google's"),
    "external_labels": Refused("write it beside remote_write, not in it: it is one set for all destinations"),
    "sigv4.session_name": Refused("remove it: AWS is told a name of its own choice"),
    "sigv4.tags": Refused("remove it: sessions have no tags"),
    "oauth2.grant_type": Refused(_CLIENT_CREDENTIALS_ONLY, "client_credentials"),
    "oauth2.client_certificate_key_id": Refused(_CLIENT_CREDENTIALS_ONLY),
    "oauth2.client_certificate_key": Refused(_CLIENT_CREDENTIALS_ONLY),
    "oauth2.client_certificate_key_file": Refused(_CLIENT_CREDENTIALS_ONLY),
    "oauth2.signature_algorithm": Refused(_CLIENT_CREDENTIALS_ONLY),
    "oauth2.iss": Refused(_CLIENT_CREDENTIALS_ONLY),
    "oauth2.audience": Refused("write it under endpoint_params: `endpoint_params: {audience: ...}`"),
    "oauth2.claims": Refused(_CLIENT_CREDENTIALS_ONLY),
}
"""By the path of the key inside an entry of the list."""


def check(key: Kept | Refused, value: object) -> None:
    """InvalidValueError where what is written under a key of `KEYS` is a mistake."""
    if is_empty(value):
        return
    match key:
        case Kept(parser):
            parser(value)
        case Refused(instead, harmless):
            if harmless is None or not _says(value, harmless):
                than = f" with another value than {harmless}" if harmless else ""
                raise values.InvalidValueError(None, f"is a key of Prometheus that is not supported{than}; {instead}")


def _says(value: object, harmless: str) -> bool:
    if harmless == "false":
        try:
            return not values.truth(value)
        except values.InvalidValueError:
            return False
    return value == harmless
