"""`cfrw check`: whether a set-up is sound, one finding after the other.

Looks at everything that a worker of this configuration has to do with, beside a running one and without one:
Cloudflare, the ledger and its volume, every destination. Promises that what can be looked at is, whatever became of the
rest; what cannot, says why. Changes nothing but for the samples of `worker.check.probe`, which can be left out.

    finding                       what is found, as a value
    cloudflare                    the token, what it reads, what it is entitled to, what that costs
    delay                         whether windows are final, by what the worker has measured
    volume                        the ledger, its volume, room and speed
    receiver, probe               a destination, and how old samples may be for it
    dashboards                    whether what they show is where it is read from
    clocks, memory                the difference of two clocks; what the ledger knows
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from worker.check.cloudflare import look_at_cloudflare
from worker.check.dashboards import Reader, look_at_dashboards
from worker.check.delay import look_at_delays
from worker.check.finding import Finding, State, failure, ok, skipped, warning
from worker.check.memory import Memory, read_memory
from worker.check.receiver import SECTION as DESTINATION
from worker.check.receiver import Sender, ages_of, look_at_receiver
from worker.check.volume import look_at_volume
from worker.clock import Clock
from worker.cloudflare import CloudflareApi
from worker.config import Settings
from worker.datasets import Chosen
from worker.errors import ConfigError, LedgerError

__all__ = ["DESTINATION", "Finding", "State", "failure", "look", "ok", "skipped", "warning"]


async def look(
    settings: Settings,
    collected: Chosen,
    *,
    apis: Mapping[str, CloudflareApi],
    senders: Mapping[str, Sender],
    readers: Mapping[str, Reader | ConfigError],
    clock: Clock,
    probe: bool,
) -> AsyncIterator[Finding]:
    """Everything that there is to say, as it is found.

    apis:    by the name of the token.
    senders: by the name of the destination.
    readers: by the name of the destination; or why it cannot be read back from.
    probe:   whether samples may be sent to find out how old they may be.
    """
    memory: Memory | LedgerError | None
    try:
        memory = await read_memory(settings.ledger.path, collected.datasets, list(apis))
    except LedgerError as error:
        memory = error
    known = memory if isinstance(memory, Memory) else None
    taken: set[str] = set()
    for token in settings.cloudflare.by_token():
        api = apis[token.name]
        async for finding in look_at_cloudflare(token, collected, api, known, clock, taken=taken):
            yield finding if len(apis) == 1 else replace(finding, what=f"{token.name}: {finding.what}")
    for finding in look_at_delays(settings.cloudflare, collected.datasets, known):
        yield finding
    for finding in await look_at_volume(settings.ledger, memory, clock):
        yield finding
    delays = [each.final_after_seconds(settings.cloudflare.delay_seconds) for each in collected.datasets]
    ages = ages_of(settings.cloudflare, max(delays, default=settings.cloudflare.delay_seconds))
    width_seconds = settings.cloudflare.bucket_seconds
    for destination in settings.destinations:
        async for finding in look_at_receiver(destination, senders[destination.name], clock, ages, probe=probe):
            yield finding
        async for finding in look_at_dashboards(
            destination,
            readers[destination.name],
            collected,
            known,
            clock,
            first_seconds=ages.first_seconds,
            width_seconds=width_seconds,
        ):
            yield finding
