import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.config import endpoints
from worker.config.values import InvalidValueError

CANARY = "hunter2-canary"
EVERYWHERE = str(IPv4Address(0))
URLS_WITH_SECRETS = [
    f"https://user:{CANARY}@host/x",
    f"https://{CANARY}@host/x",
    f"https://user:{CANARY}/y?z@host/x",
    f"https://user:a@b{CANARY}@host/x",
    f"user:{CANARY}@host",
    f"no scheme://user:{CANARY}@host",
    f"https://user:{CANARY}",
    f"https://user:{CANARY}/host",
    f"https://host/x?key={CANARY}",
    f"https://host/x#{CANARY}",
    f"https://ho st/?key={CANARY}",
    f"https://[broken/?key={CANARY}",
    f"https://[user:{CANARY}@host",
]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:9845", (EVERYWHERE, 9845)),
        ("[::]:9845", ("::", 9845)),
        ("[::1]:80", ("::1", 80)),
        (":9845", (EVERYWHERE, 9845)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:1", ("localhost", 1)),
        ("worker-0.worker.default.svc:65535", ("worker-0.worker.default.svc", 65535)),
    ],
)
def test_addresses_are_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert endpoints.listen_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9845",
        "host",
        "host:",
        "host:65536",
        "host:-1",
        "::1:80",
        "[::1]",
        "[nonsense]:1",
        "a b:1",
        "http://h:1",
        "h:٣",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="must be host:port"):
        endpoints.listen_address(text)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_ip_address_can_be_listened_on(address: object, port: int) -> None:
    host = f"[{address}]" if ":" in str(address) else str(address)
    assert endpoints.listen_address(f"{host}:{port}") == (str(address), port)


@given(st.text())
def test_any_text_is_an_address_or_a_mistake(text: str) -> None:
    with contextlib.suppress(InvalidValueError):
        host, port = endpoints.listen_address(text)
        assert host
        assert 0 <= port <= 65535


@pytest.mark.parametrize(
    "url",
    [
        "https://api.cloudflare.com/client/v4",
        "http://localhost:8080/client/v4",
        "http://127.0.0.1:1",
        "http://[::1]:8080",
    ],
)
def test_the_api_is_asked_over_https_or_on_this_machine(url: str) -> None:
    assert endpoints.api_url(url + "/") == url


@pytest.mark.parametrize(
    "url", ["http://api.cloudflare.com/client/v4", "http://10.0.0.1/", "http://localhost.evil.example/"]
)
def test_the_token_never_travels_in_the_clear(url: str) -> None:
    with pytest.raises(InvalidValueError, match="must be https, since the API token is sent there"):
        endpoints.api_url(url)


@pytest.mark.parametrize(
    "url", ["https://u@api.cloudflare.com", "https://api.cloudflare.com?a=b", "https://api.cloudflare.com#a"]
)
def test_the_base_url_of_the_api_is_a_base_url(url: str) -> None:
    with pytest.raises(InvalidValueError, match="must not hold"):
        endpoints.api_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://prometheus:9090/api/v1/write",
        "https://[::1]:1/x?db=y",
        "HTTPS://Host.example",
        "https://HØst.example:1/x",
    ],
)
def test_a_destination_is_http_or_https(url: str) -> None:
    assert endpoints.destination_url(f" {url} ") == url


@pytest.mark.parametrize(
    "url",
    [
        "prometheus:9090/api/v1/write",
        "//prometheus/api",
        "http://",
        "http:///api",
        "ftp://host/x",
        "http://host:99999/",
        "http://host:0/",
        "http://[::1/",
        "http://host/a b",
        "http://host/ø",
        "http://host/?ø",
        "http://ø@host/",
        "http://ho\u00a0st/",
        "http://host/#a",
        "http://user:pw@host/",
        3,
        None,
    ],
)
def test_what_is_no_url_of_a_destination_is_refused(url: object) -> None:
    with pytest.raises(InvalidValueError, match="must"):
        endpoints.destination_url(url)


def test_a_host_in_another_script_is_told_in_ascii_where_it_has_to_be() -> None:
    for parse in (endpoints.api_url, endpoints.proxy_url):
        with pytest.raises(InvalidValueError, match=r"must be in ASCII; write the host as xn--hst-0na\.example"):
            parse("https://HØst.example")


@pytest.mark.parametrize("host", ["receiver.example", "[::1]", "a..ø", f"{'ø' * 64}.example", "ø!"])
def test_a_host_that_is_in_ascii_or_cannot_be_has_no_other_form(host: str) -> None:
    assert endpoints.ascii_host(f"https://{host}/") is None


@pytest.mark.parametrize("url", URLS_WITH_SECRETS)
def test_a_url_is_shown_without_what_may_be_secret_in_it(url: str) -> None:
    assert CANARY not in endpoints.shown_url(url)


@pytest.mark.parametrize("parse", [endpoints.destination_url, endpoints.api_url])
@pytest.mark.parametrize("url", [url for url in URLS_WITH_SECRETS if "?key" not in url])
def test_a_refused_url_is_told_without_what_may_be_secret_in_it(parse: Callable[[object], str], url: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse(url)
    assert CANARY not in f"{caught.value.given} {caught.value.problem}"


def test_a_harmless_url_is_shown_as_it_is() -> None:
    for url in ("https://host:9090/api/v1/write", "http://[::1]:9090/x", "host:9090/x", "http://host:99999/"):
        assert endpoints.shown_url(url) == url


@pytest.mark.parametrize("text", ["", " ", "two words", "tök", "a\nb", f"Bearer {CANARY}", None, 3, ["a"]])
def test_what_is_no_token_is_refused_without_being_shown(text: object) -> None:
    with pytest.raises(InvalidValueError) as caught:
        endpoints.token(text)
    assert caught.value.given is None


def test_blanks_around_a_token_and_line_ends_after_a_password_are_dropped() -> None:
    assert endpoints.token(" abc\n").get_secret_value() == "abc"
    assert endpoints.secret(" pass word \r\n").get_secret_value() == " pass word "
    assert endpoints.secret(SecretStr("x")).get_secret_value() == "x"


@pytest.mark.parametrize("text", ["", "\n", "a\nb", "a\0b", 3, None])
def test_what_is_no_password_is_refused_without_being_shown(text: object) -> None:
    with pytest.raises(InvalidValueError) as caught:
        endpoints.secret(text)
    assert caught.value.given is None


def test_a_user_name_cannot_hold_the_colon_that_ends_it() -> None:
    with pytest.raises(InvalidValueError, match="must not hold a colon"):
        endpoints.user_name("a:b")
