"""Verbs about the tokens that Cloudflare is asked with.

Its limits count what a token sent, whichever process sent it. Which tokens it refuses, a command can tell that looks at
the ledger only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from worker.ledger.session import Session


@dataclass(frozen=True, slots=True)
class TokenRefusal:
    """That Cloudflare refuses a token, since `refused_at`, unix seconds; `detail` is what it said last."""

    refused_at: int
    detail: str


def log_requests(session: Session, token: str, ended_at: Mapping[str, Sequence[float]]) -> None:
    """Keep when a token's recent requests to each API ended, unix seconds, in place of what was kept before.

    token: its name in the configuration.
    """
    session.many(
        "log_requests",
        [
            {
                "token": token,
                "api": api,
                "ended_at": msgspec.json.encode([round(moment) for moment in moments]).decode(),
            }
            for api, moments in ended_at.items()
        ],
    )


def logged_requests(session: Session, token: str) -> dict[str, list[int]]:
    """What `log_requests` kept last of a token."""
    return {
        str(api): msgspec.json.decode(str(ended_at), type=list[int])
        for api, ended_at in session.rows("logged_requests", token=token)
    }


def record_token_refusal(session: Session, token: str, detail: str, now: float) -> None:
    """Keep that Cloudflare refuses a token, since the first time that this was so."""
    session.change("record_token_refusal", token=token, detail=detail, now=int(now))


def forget_token_refusal(session: Session, token: str) -> None:
    """Cloudflare takes the token."""
    session.change("forget_token_refusal", token=token)


def token_refusals(session: Session) -> dict[str, TokenRefusal]:
    """The tokens that Cloudflare refuses, by their names."""
    return {str(token): TokenRefusal(*refusal) for token, *refusal in session.rows("token_refusals")}
