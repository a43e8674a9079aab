"""What was sent with a token of late, kept in the ledger: Cloudflare's limits do not begin anew with a process."""

from worker.clock import Clock
from worker.cloudflare import Api, Quota
from worker.ledger import Ledger, log_requests, logged_requests

# Requests that the process before this one may have had under way when it ended: as many as are sent at once.
_UNDER_WAY = 4


def recent_requests(quota: Quota, clock: Clock) -> dict[str, list[float]]:
    """When the requests of late ended, by API, unix seconds; for the process that comes after this one."""
    now = clock.now()
    return {str(api): [now - seconds for seconds in quota.recent_seconds_ago(api)] for api in Api}


async def keep_requests(token: str, quota: Quota, ledger: Ledger, clock: Clock) -> None:
    """Keep them where nothing that they brought is to be written, however this process ends."""
    await ledger.write(log_requests, token, recent_requests(quota, clock))


async def recall_requests(token: str, quota: Quota, ledger: Ledger, clock: Clock) -> None:
    """Count what the process before this one sent, and what it may have had under way when it ended; once."""
    if quota.has_remembered:
        return
    now = clock.now()
    for api, ended_at in (await ledger.read(logged_requests, token)).items():
        quota.remember(Api(api), [now - moment for moment in ended_at])
        quota.remember(Api(api), [0.0] * _UNDER_WAY)
