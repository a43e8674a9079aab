"""How secrets are recognised in a text and taken out of it.

The one place that knows the forms in which a secret may turn up. Pure; keeps the secrets it was given to itself.
"""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

REDACTED = "***"


class Redactor:
    """Takes known secrets out of texts.

    A secret is found as it is and in the forms that it takes on its way: URL-encoded, in base64 (of basic auth: give
    `user:password` as one more secret), and escaped as Python's repr and JSON do, in upper and lower case.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        # The longest first: a secret that contains another one leaves nothing of itself behind.
        alternatives = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
        self._pattern = re.compile(alternatives, re.IGNORECASE) if alternatives else None

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, text: str) -> str:
        """The text with `***` in place of every secret."""
        return text if self._pattern is None else self._pattern.sub(REDACTED, text)

    def value(self, value: object) -> object:
        """The value as JSON has it, with `***` in place of every secret; what JSON has no type for, as its text."""
        match value:
            case None | bool():
                return value
            case int() | float():
                text = str(value)
                # A secret may be a number; infinity and NaN are not JSON.
                return value if math.isfinite(value) and self.text(text) == text else self.text(text)
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(key)): self.value(member) for key, member in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.value(member) for member in value]
            case _:
                # The text of an exception alone may be empty, or say nothing without its type.
                return self.text(repr(value) if isinstance(value, BaseException) else str(value))


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }
