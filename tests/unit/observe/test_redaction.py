import base64
import json
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.observe import REDACTED, Redactor

SECRET = "s3cr/t +ü'\"\\&?"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote_plus(SECRET),
        repr({"password": SECRET})[14:-2],
        str(SECRET.encode())[2:-1],
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_found_in_every_form_that_it_takes(form: str) -> None:
    assert Redactor([SECRET]).text(f"before {form} after").rstrip("=") in {
        f"before {REDACTED} after",
        f"before {REDACTED}= after",
        f"before {REDACTED}== after",
    }


def test_the_header_of_basic_auth_is_found_by_the_pair_of_user_and_password() -> None:
    header = base64.b64encode(b"ops:hunter2").decode()

    assert Redactor(["hunter2", "ops:hunter2"]).text(f"Authorization: Basic {header}").rstrip("=") == (
        f"Authorization: Basic {REDACTED}"
    )


def test_a_secret_that_contains_another_one_leaves_nothing_behind() -> None:
    assert Redactor(["abc", "abcdef"]).text("abcdef abc") == f"{REDACTED} {REDACTED}"


def test_no_secrets_and_empty_secrets_change_nothing() -> None:
    assert Redactor([]).text("text") == "text"
    assert Redactor([""]).text("text") == "text"


def test_secrets_are_found_in_everything_that_a_value_holds() -> None:
    redactor = Redactor(["hunter2"])
    value = {
        "hunter2": 1,
        "list": ["hunter2", ("x", b"hunter2")],
        "error": ValueError("hunter2"),
        "path": Path("/hunter2"),
        "nested": {"deep": {"hunter2"}},
    }

    redacted = redactor.value(value)

    assert "hunter2" not in json.dumps(redacted)
    assert json.dumps(redacted).count(REDACTED) == 6


def test_plain_values_stay_what_they_are() -> None:
    value = {"a": None, "b": True, "c": 3, "d": 1.5, "e": "text", "f": [1]}

    assert Redactor(["hunter2"]).value(value) == value


def test_a_secret_may_be_a_number() -> None:
    assert Redactor(["12345678"]).value({"pin": 12345678, "other": 1234}) == {"pin": REDACTED, "other": 1234}


def test_numbers_that_json_does_not_know_become_texts() -> None:
    assert Redactor([]).value([float("inf"), float("nan")]) == ["inf", "nan"]


def test_its_own_repr_tells_no_secret() -> None:
    assert repr(Redactor(["hunter2"])) == "Redactor()"


@given(
    secrets=st.lists(st.text(min_size=6, max_size=12), min_size=1, max_size=4), parts=st.lists(st.text(), max_size=4)
)
def test_no_secret_is_left_in_any_text(secrets: list[str], parts: list[str]) -> None:
    text = "".join(part + secret for part, secret in zip([*parts, "", "", "", ""], secrets, strict=False))

    redacted = Redactor(secrets).text(text)

    # Stars of our own beside stars of the text could spell a secret that is made of stars.
    assert not [secret for secret in secrets if secret in redacted and "*" not in secret]
