"""Whether Cloudflare takes a token: told to health, and kept in the ledger for `cfrw status`, which asks nobody."""

from worker.clock import Clock
from worker.health import Health, TokenState, quote
from worker.ledger import Ledger, forget_token_refusal, record_token_refusal


async def note_accepted(token: str, health: Health, ledger: Ledger) -> None:
    """Cloudflare has answered a request made with the token."""
    is_news = health.tokens[token] is not TokenState.ACCEPTED
    health.token_accepted(token)
    if is_news:
        await ledger.write(forget_token_refusal, token)


async def note_refused(token: str, reason: str, health: Health, ledger: Ledger, clock: Clock) -> None:
    """Cloudflare has answered 401 or 403 to the token itself; `reason` is what it said, without secrets."""
    health.token_refused(reason, token)
    await ledger.write(record_token_refusal, token, quote(reason), clock.now())
