"""Which values the dimensions of a node have.

A dimension that is not named here has made-up values, as many as one of its kind usually has. Values that a catalogue's
conditions name are among the values, so that no condition lets nothing through.
"""

from collections.abc import Sequence

from worker.simulator.scalars import Value

# So many that a busy scope has more of them in an hour than a label may have.
_WIDE = ("host", "queryname", "scriptname", "asn", "ruleid", "path", "objectname")
_WIDE_VALUES = 150
_VALUES = 5

_STATUSES = (200, 200, 204, 301, 304, 403, 404, 429, 500, 502, 503, 522)
_COUNTRIES = ("US", "DE", "BR", "IN", "JP", "FR", "GB", "NL", "PL", "CN", "ZA", "AU", "T1", "XX")
_COLOS = ("AMS", "CDG", "EWR", "FRA", "GRU", "IAD", "JNB", "LHR", "NRT", "SIN", "SYD", "WAW")

_KNOWN: dict[str, tuple[Value, ...]] = {
    "action": ("block", "challenge", "jschallenge", "log", "managed_challenge", "skip"),
    "cacheStatus": ("bypass", "dynamic", "expired", "hit", "hit", "miss", "none", "revalidated", "stale"),
    "clientCountryName": _COUNTRIES,
    "clientRequestHTTPMethodName": ("DELETE", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT"),
    "clientRequestHTTPProtocol": ("HTTP/1.1", "HTTP/2", "HTTP/3"),
    "clientSSLProtocol": ("QUIC", "TLSv1.2", "TLSv1.3", "none"),
    "coloCode": _COLOS,
    "coloName": _COLOS,
    "country": _COUNTRIES,
    "deviceType": ("desktop", "mobile", "tablet"),
    "edgeResponseStatus": _STATUSES,
    "ipVersion": (4, 6),
    "httpResponseStatus": _STATUSES,
    # 0 stands for an answer without a request to the origin.
    "originResponseStatus": (0, *_STATUSES),
    "queryType": ("A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "TXT"),
    "requestSource": ("earlyHintsCache", "edgeWorkerFetch", "eyeball", "eyeball"),
    "responseCode": ("NOERROR", "NXDOMAIN", "REFUSED", "SERVFAIL"),
    "responseStatusCode": _STATUSES,
    "status": ("clientDisconnected", "exceededResources", "scriptThrewException", "success", "success", ""),
    "statusCode": _STATUSES,
    "upperTierColoName": ("", *_COLOS[:4]),
}


def pool(dimension: str, scalar: str, named: Sequence[Value] = ()) -> tuple[Value, ...]:
    """The values of a dimension; one that comes twice is twice as frequent.

    named: those that conditions of the catalogue name.
    """
    kind: type = {"string": str, "float64": float}.get(scalar, int)
    values = tuple(value for value in _KNOWN.get(dimension, ()) if isinstance(value, kind))
    if not values:
        count = _WIDE_VALUES if dimension.lower().endswith(_WIDE) else _VALUES
        # A uint8 that says yes or no has nothing else.
        count = 2 if scalar == "uint8" else count
        values = tuple(f"{dimension}-{index}" if kind is str else kind(index) for index in range(count))
    # Twice, so that few scopes have nothing of what a condition asks for.
    return (*values, *named, *named)
