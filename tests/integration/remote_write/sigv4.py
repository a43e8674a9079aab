"""Signature Version 4 as the receiving end sees it, written from AWS' description of it."""

import hashlib
import hmac
import re
from urllib.parse import quote

from tests.integration.remote_write.scripted_server import SeenRequest

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/"
    r"aws4_request), SignedHeaders=(?P<names>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


class NotSignedError(Exception):
    """The request is not signed as it should be."""


def signed_by(request: SeenRequest, secret_keys: dict[str, str]) -> tuple[str, str, str]:
    """Access key, region and service of a request that is signed rightly; NotSignedError otherwise."""
    found = _AUTHORIZATION.fullmatch(request.header("Authorization") or "")
    if found is None:
        raise NotSignedError(request.header("Authorization"))
    names = found["names"].split(";")
    signature = signature_of(request, names, found["scope"], secret_keys[found["key"]])
    if found["signature"] != signature or not {"host", "x-amz-date"} <= set(names):
        raise NotSignedError(found[0])
    return found["key"], found["region"], found["service"]


def signature_of(request: SeenRequest, names: list[str], scope: str, secret_key: str) -> str:
    """What the signature over these headers must be."""
    method, target, _ = request.line.split(" ")
    path, _, query = target.partition("?")
    canonical = "\n".join(
        [
            method,
            quote(path, safe="/~"),
            "&".join(sorted(query.split("&"))),
            *(f"{name}:{' '.join((request.header(name) or '').split())}" for name in names),
            "",
            ";".join(names),
            hashlib.sha256(request.body).hexdigest(),
        ]
    )
    moment = request.header("X-Amz-Date") or ""
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()
