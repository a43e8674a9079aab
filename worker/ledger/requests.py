"""Verbs about requests to Cloudflare: its limits count what a token sent, whichever process sent it."""

from collections.abc import Mapping, Sequence

import msgspec

from worker.ledger.session import Session


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
