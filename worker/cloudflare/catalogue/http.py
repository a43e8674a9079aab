"""The HTTP rollups of a zone."""

from worker.cloudflare.catalogue.model import Breakdown, Dataset, Grain, Metric, TimeType, Total


def _requests_by(path: str, key: str, label: str, what: str) -> Breakdown:
    """A map of the HTTP rollups that counts requests only."""
    metric = Metric(f"cloudflare_zone_{label}_requests", f"Requests in the window, by {what}.", "requests")
    return Breakdown(("sum", path), key, label, (("requests", metric),))


HTTP_REQUESTS = Dataset(
    name="http_requests",
    help="HTTP traffic of a zone, from Cloudflare's rollups, which are not sampled adaptively.",
    grains=(
        Grain(60, "httpRequests1mGroups", "datetimeMinute", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(300, "httpRequests1mGroups", "datetimeFiveMinutes", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(900, "httpRequests1mGroups", "datetimeFifteenMinutes", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(1800, "httpRequests1mGroups", "datetimeHalfOfHour", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(3600, "httpRequests1hGroups", "datetime", "datetime_geq", "datetime_lt", TimeType.TIME),
        Grain(86400, "httpRequests1dGroups", "date", "date_geq", "date_lt", TimeType.DATE),
    ),
    totals=(
        Total(("sum", "requests"), Metric("cloudflare_zone_requests", "Requests in the window.", "requests")),
        Total(
            ("uniq", "uniques"),
            Metric(
                "cloudflare_zone_unique_visitors",
                "Different client IP addresses in the window; must not be summed over windows or zones.",
                "visitors",
                additive=False,
            ),
        ),
        Total(
            ("sum", "bytes"),
            Metric("cloudflare_zone_response_bytes", "Bytes returned to clients in the window.", "bytes"),
        ),
        Total(
            ("sum", "cachedRequests"),
            Metric("cloudflare_zone_cached_requests", "Requests in the window that the cache answered.", "requests"),
        ),
        Total(
            ("sum", "cachedBytes"),
            Metric(
                "cloudflare_zone_cached_response_bytes",
                "Bytes returned to clients from the cache in the window.",
                "bytes",
            ),
        ),
        Total(
            ("sum", "encryptedRequests"),
            Metric("cloudflare_zone_encrypted_requests", "Requests over TLS in the window.", "requests"),
        ),
        Total(
            ("sum", "encryptedBytes"),
            Metric(
                "cloudflare_zone_encrypted_response_bytes",
                "Bytes returned to clients over TLS in the window.",
                "bytes",
            ),
        ),
        Total(
            ("sum", "pageViews"),
            Metric("cloudflare_zone_page_views", "Successful requests for HTML in the window.", "page views"),
        ),
        Total(
            ("sum", "threats"),
            Metric("cloudflare_zone_threats", "Requests in the window that were classified as threats.", "requests"),
        ),
    ),
    breakdowns=(
        Breakdown(
            ("sum", "countryMap"),
            "clientCountryName",
            "country",
            (
                (
                    "requests",
                    Metric(
                        "cloudflare_zone_country_requests",
                        "Requests in the window, by the client's country.",
                        "requests",
                    ),
                ),
                (
                    "bytes",
                    Metric(
                        "cloudflare_zone_country_response_bytes",
                        "Bytes returned to clients in the window, by the client's country.",
                        "bytes",
                    ),
                ),
                (
                    "threats",
                    Metric(
                        "cloudflare_zone_country_threats",
                        "Requests in the window that were classified as threats, by the client's country.",
                        "requests",
                    ),
                ),
            ),
        ),
        _requests_by("responseStatusMap", "edgeResponseStatus", "status", "the HTTP status returned to the client"),
        Breakdown(
            ("sum", "contentTypeMap"),
            "edgeResponseContentTypeName",
            "content_type",
            (
                (
                    "requests",
                    Metric(
                        "cloudflare_zone_content_type_requests",
                        "Requests in the window, by the content type of the response.",
                        "requests",
                    ),
                ),
                (
                    "bytes",
                    Metric(
                        "cloudflare_zone_content_type_response_bytes",
                        "Bytes returned to clients in the window, by the content type of the response.",
                        "bytes",
                    ),
                ),
            ),
        ),
        Breakdown(
            ("sum", "browserMap"),
            "uaBrowserFamily",
            "browser",
            (
                (
                    "pageViews",
                    Metric(
                        "cloudflare_zone_browser_page_views",
                        "Successful requests for HTML in the window, by the client's browser.",
                        "page views",
                    ),
                ),
            ),
        ),
        _requests_by("clientHTTPVersionMap", "clientHTTPProtocol", "http_version", "HTTP version"),
        _requests_by("clientSSLMap", "clientSSLProtocol", "tls_version", "TLS version; `none` is plain HTTP"),
        _requests_by("ipClassMap", "ipType", "ip_class", "class of the client's IP address"),
        _requests_by("threatPathingMap", "threatPathingName", "threat_type", "kind of threat they were classified as"),
    ),
)
