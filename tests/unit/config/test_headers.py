from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import load_one, mistakes_in_one
from worker.config import SecretFile
from worker.config.headers import authorization_scheme, headers_by_name
from worker.config.values import InvalidValueError

CANARY = "hunter2canary"


@pytest.mark.parametrize(
    "name", ["Content-Type", "content-encoding", "User-Agent", "Host", "X-Prometheus-Remote-Write-Version"]
)
def test_headers_that_the_protocol_fixes_cannot_be_set(name: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{name} is set by the worker itself"):
        headers_by_name({name: "x"})


def test_every_wrong_header_is_told_by_name_and_never_by_value() -> None:
    given = {"X-A": f"{CANARY}\r\nX-B: y", "x-c": CANARY, "X-C": CANARY, "in valid": CANARY, "X-D": 3, "X-Fine": CANARY}
    with pytest.raises(InvalidValueError) as caught:
        headers_by_name(given)
    assert caught.value.given == "X-A, x-c, X-C, in valid, X-D"
    assert CANARY not in caught.value.problem


def test_values_of_headers_are_secrets() -> None:
    taken = headers_by_name({"X-Scope-OrgID": CANARY})
    assert CANARY not in repr(taken)
    assert taken == {"X-Scope-OrgID": SecretStr(CANARY)}


def test_basic_is_no_scheme_of_the_authorization_block() -> None:
    assert authorization_scheme("Token") == "Token"
    with pytest.raises(InvalidValueError, match="give basic_auth"):
        authorization_scheme("basic")


# -------------------------------------------------------------------------------------------------- http_headers


def test_headers_can_be_written_as_prometheus_writes_them_now(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    headers = load_one(
        tmp_path,
        headers={"X-A": "a"},
        http_headers={"X-B": {"values": ["b"]}, "X-C": {"secrets": ["c"]}, "X-D": {"files": ["key"]}},
    ).headers
    assert headers == {
        "X-A": SecretStr("a"),
        "X-B": SecretStr("b"),
        "X-C": SecretStr("c"),
        "X-D": SecretFile(tmp_path / "key"),
    }


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"X-A": "b"}, "(given: X-A): cannot be sent: X-A must have values, secrets or files, each a list"),
        ({"X-A": {"valeus": ["b"]}}, "(given: X-A): cannot be sent: X-A must have values, secrets or files"),
        (
            {"X-A": {"values": ["b"], "secrets": ["c"]}},
            "(given: X-A): cannot be sent: X-A must have exactly one value: a header is sent once; join several with",
        ),
        ({"X-A": {"values": []}}, "(given: X-A): cannot be sent: X-A must have exactly one value"),
        ({"Host": {"values": ["b"]}}, "(given: Host): cannot be sent: Host is set by the worker itself"),
        ({"X-A": {"files": ["missing"]}}, "(given: X-A): cannot be sent: X-A cannot be read: No such file"),
    ],
)
def test_mistakes_of_http_headers(tmp_path: Path, headers: object, problem: str) -> None:
    [mistake] = mistakes_in_one(tmp_path, http_headers=headers)
    assert mistake.startswith(f"http_headers {problem}")


def test_a_header_stands_in_one_place(tmp_path: Path) -> None:
    assert mistakes_in_one(tmp_path, headers={"x-a": "b"}, http_headers={"X-A": {"values": ["b"]}}) == [
        "http_headers.X-A: is also given under headers; keep one of them"
    ]
