import httpx
import pytest

from worker.config import ProxySettings
from worker.remote_write.proxy import proxy_for

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("url", "no_proxy", "is_proxied"),
    [
        ("https://receiver.example/write", "", True),
        ("https://receiver.example/write", "*", False),
        ("https://receiver.example/write", "other.example, receiver.example", False),
        ("https://a.receiver.example/write", "receiver.example", False),
        ("https://notreceiver.example/write", "receiver.example", True),
        ("https://receiver.example/write", ".receiver.example", True),
        ("https://a.receiver.example/write", ".receiver.example", False),
        ("https://a.receiver.example/write", "*.receiver.example", False),
        ("https://RECEIVER.example/write", "receiver.EXAMPLE", False),
        ("https://receiver.example/write", "receiver.example:443", False),
        ("https://receiver.example:8443/write", "receiver.example:443", True),
        ("http://receiver.example/write", "receiver.example:80", False),
        ("http://10.1.2.3/write", "10.0.0.0/8", False),
        ("http://11.1.2.3/write", "10.0.0.0/8", True),
        ("http://10.1.2.3/write", "10.1.2.3", False),
        ("http://10.1.2.3:9090/write", "10.1.2.3:80", True),
        ("http://10.1.2.3/write", "2.3", True),
        ("http://[fd00::1]/write", "fd00::/8", False),
        ("http://[fd00::1]/write", "fd00::1", False),
        ("http://[fd00::1]:9090/write", "[fd00::1]:9090", False),
        ("http://receiver.example/write", "10.0.0.0/8,not/anetwork", True),
        ("http://müller.example/write", "xn--mller-kva.example", False),
        ("http://xn--mller-kva.example/write", "xn--mller-kva.example", False),
        ("http://localhost:9090/write", "other.example", False),
        ("http://127.0.0.1:9090/write", "other.example", False),
        ("http://[::1]:9090/write", "other.example", False),
    ],
)
def test_exceptions_are_read_as_go_reads_them(url: str, no_proxy: str, *, is_proxied: bool) -> None:
    settings = ProxySettings(proxy_url=PROXY, no_proxy=no_proxy or None)
    assert proxy_for(httpx.URL(url), settings, {}) == (httpx.URL(PROXY) if is_proxied else None)


def test_without_exceptions_a_proxy_is_for_this_machine_too() -> None:
    assert proxy_for(httpx.URL("http://localhost"), ProxySettings(proxy_url=PROXY), {}) == httpx.URL(PROXY)


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": PROXY}, PROXY),
        ({"https_proxy": PROXY}, PROXY),
        ({"HTTPS_PROXY": "proxy.example:3128"}, PROXY),
        ({"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "receiver.example"}, None),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "receiver.example"}, None),
    ],
)
def test_the_environment_is_read_where_that_is_set(environ: dict[str, str], proxy: str | None) -> None:
    url = httpx.URL("https://receiver.example/write")
    assert proxy_for(url, ProxySettings(proxy_from_environment=True), environ) == (proxy and httpx.URL(proxy))
    assert proxy_for(url, ProxySettings(), environ) is None
