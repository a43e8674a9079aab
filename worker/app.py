"""The worker as a whole: what is made, in which order it runs, and in which order it stops.

`Worker` puts the parts together; nothing else knows more than its own neighbours. For each API token
collection, facts and the measuring of drift, one pusher per destination, upkeep, repairs, continuous verification and
the HTTP side run beside each other and meet in the ledger.

Stopping: collection, facts, drift, verification, upkeep and repairs are cut off where they are, since what they have
not committed they do again; pushers finish the request that is under way and record its outcome; then the ledger is
checkpointed and closed.
"""

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

import apsw

from worker import __version__
from worker.clock import Clock
from worker.cloudflare import Api, CloudflareApi, OnRequest, Priority, Quota, RateLimitType, unobserved
from worker.collect import LOOP as COLLECT
from worker.collect import Collector
from worker.config import CloudflareSettings, Settings
from worker.datasets import catalogue_of, chosen, metadata_of
from worker.drift import LOOP as DRIFT
from worker.drift import DriftMeter
from worker.errors import WorkerError
from worker.facts import LOOP as FACTS
from worker.facts import FactReader
from worker.health import Health, loop_of
from worker.ledger import GATHER_SECONDS, Backfill, Import, Ledger, Resend, Verify, register_destinations
from worker.maintain import INTERVAL_SECONDS as MAINTAIN_SECONDS
from worker.maintain import LOOP as MAINTAIN
from worker.maintain import Maintainer
from worker.observe import Metrics, get_logger
from worker.owners import Owners
from worker.push import IDLE_SECONDS, Pusher
from worker.remote_write import RemoteWriteClient
from worker.repair import INTERVAL_SECONDS as REPAIR_SECONDS
from worker.repair import LOOP as REPAIR
from worker.repair import Backfiller, Importer, Repairer, Resender, Verifier
from worker.report import Running, RunningDestination, report_status
from worker.serve import Server, create_app
from worker.status import ApiBudget, CloudflareStatus, StatusReport
from worker.verification import Verification
from worker.verify import LOOP as VERIFY
from worker.verify import ContinuousVerification

# A pusher may take this long to finish its request after SIGTERM; with the checkpoint behind it the whole stop stays
# under 10 s, a third of the 30 s that Kubernetes grants by default.
STOP_SECONDS = 7.0

# `run --once` gives a destination this many attempts: with waits of 1, 2, 4 and 8 s about a quarter of a minute.
ONCE_ATTEMPTS = 5

# One query after the other may have to wait for the quota, which Cloudflare blocks for 300 s at a time.
_COLLECT_LIVENESS_SECONDS = 900.0

# A round over 10,000 zones is 1,000 queries, for which the quota takes a quarter of an hour; twice that where some are
# refused and taken apart.
_COLLECT_ROUND_SECONDS = 1800.0

log = get_logger()

T = TypeVar("T")


def api_of(settings: CloudflareSettings, clock: Clock, *, on_request: OnRequest = unobserved) -> CloudflareApi:
    """Cloudflare's API as the settings have it, with a quota of its own."""
    return CloudflareApi(
        api_url=settings.api_url,
        token=settings.api_token.get_secret_value(),
        clock=clock,
        on_request=on_request,
        quota=Quota(
            clock,
            graphql=settings.graphql_requests_per_5_minutes,
            total=settings.requests_per_5_minutes,
            rate_limit_type=RateLimitType(settings.rate_limit_type),
        ),
    )


class Worker:
    """All parts of one worker, made and connected. An async context manager: leaving it closes what it holds."""

    def __init__(
        self, settings: Settings, clock: Clock, *, once: bool = False, gather_seconds: float = GATHER_SECONDS
    ) -> None:
        """Hold the ledger and make the parts; ConfigError, or what `Ledger.open` raises. No request is sent yet.

        once:           pushers give up after ONCE_ATTEMPTS.
        gather_seconds: as in `Ledger.open`, of the machine's time and not the clock's.
        """
        self.settings = settings
        self._clock = clock
        # These may refuse their settings: the lock on the ledger is taken when nothing can fail any more.
        catalogue = catalogue_of(settings.cloudflare)
        self.collected = chosen(settings.cloudflare, catalogue)
        self.senders = [RemoteWriteClient(destination, clock) for destination in settings.destinations]
        tokens = settings.cloudflare.by_token()
        self.apis = {
            token.name: api_of(token, clock, on_request=partial(self._count_request, token.name)) for token in tokens
        }
        self.ledger = Ledger.open(settings.ledger.path, gather_seconds=gather_seconds)
        self.health = Health(clock, [token.name for token in tokens])
        self.metrics = Metrics(
            clock,
            self.health,
            version=__version__,
            sqlite_version=apsw.sqlite_lib_version(),
            destinations=[destination.name for destination in settings.destinations],
            datasets=[dataset.name for dataset in self.collected.datasets],
            fact_sets=[fact_set.name for fact_set in self.collected.fact_sets],
        )
        fact_sets = self.collected.fact_sets
        self.owners = Owners(
            tokens,
            kinds={each.scope for each in self.collected.datasets} | {each.scope for each in fact_sets},
            ledger=self.ledger,
            metrics=self.metrics,
        )
        self.collectors = [
            Collector(
                token,
                datasets=self.collected.datasets,
                owners=self.owners,
                max_ledger_bytes=settings.ledger.max_bytes,
                api=self.apis[token.name],
                ledger=self.ledger,
                clock=clock,
                health=self.health,
                metrics=self.metrics,
            )
            for token in tokens
        ]
        # A loop only where there is something to do for it.
        self.drift_meters = [
            DriftMeter(
                token,
                datasets=self.collected.datasets,
                api=self.apis[token.name],
                ledger=self.ledger,
                clock=clock,
                metrics=self.metrics,
            )
            for token in tokens
            if token.drift_sample_percent
        ]
        self.fact_readers = [
            FactReader(
                token,
                fact_sets=fact_sets,
                max_ledger_bytes=settings.ledger.max_bytes,
                api=self.apis[token.name],
                ledger=self.ledger,
                clock=clock,
                health=self.health,
                metrics=self.metrics,
            )
            for token in tokens
            if fact_sets
        ]
        metadata = metadata_of(catalogue)
        self.pushers = [
            Pusher(
                destination,
                ledger=self.ledger,
                sender=sender,
                clock=clock,
                health=self.health,
                metrics=self.metrics,
                metadata=metadata,
                attempts_allowed=ONCE_ATTEMPTS if once else None,
            )
            for destination, sender in zip(settings.destinations, self.senders, strict=True)
        ]
        self.maintainer = Maintainer(
            settings.cloudflare,
            settings.ledger,
            datasets=self.collected.datasets,
            fact_sets=self.collected.fact_sets,
            ledger=self.ledger,
            clock=clock,
            health=self.health,
            metrics=self.metrics,
        )
        self.verification = Verification(settings.destinations, ledger=self.ledger, clock=clock)
        self.continuous_verification = ContinuousVerification(
            self.verification,
            tuple(destination.name for destination in settings.destinations),
            hours=settings.cloudflare.verify_hours,
            clock=clock,
            metrics=self.metrics,
        )
        self.repairer = Repairer(
            ledger=self.ledger,
            clock=clock,
            health=self.health,
            carriers={
                Resend: Resender(ledger=self.ledger, clock=clock, verification=self.verification),
                Import: Importer(max_ledger_bytes=settings.ledger.max_bytes, ledger=self.ledger, clock=clock),
                Backfill: Backfiller(
                    settings.cloudflare,
                    catalogue=catalogue,
                    collected=self.collected.datasets,
                    max_ledger_bytes=settings.ledger.max_bytes,
                    apis=self.apis,
                    ledger=self.ledger,
                    clock=clock,
                ),
                Verify: Verifier(self.verification, ledger=self.ledger, clock=clock),
            },
        )
        self._expect_loops()
        for name, api in self.apis.items():
            self._watch(name, api.quota)

    async def __aenter__(self) -> Self:
        now = self._clock.now()
        async with self._closing() as closing:
            await self.ledger.write(
                register_destinations,
                {destination.name: destination.is_strict for destination in self.settings.destinations},
                replay_since=now - self.settings.cloudflare.replay_hours * 3600,
                now=now,
            )
            closing.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing().aclose()

    def _closing(self) -> contextlib.AsyncExitStack:
        """What closes everything when it is left, the ledger last and whatever the others raise."""
        stack = contextlib.AsyncExitStack()
        apis = (api.aclose for api in self.apis.values())
        senders = (sender.aclose for sender in self.senders)
        for close in (self.ledger.close, *apis, self.verification.aclose, *senders):
            stack.push_async_callback(close)
        return stack

    async def run(self, stopping: asyncio.Event, *, listening: asyncio.Future[str] | None = None) -> None:
        """Collect, push and serve until `stopping` is set; `listening` is told the URL of the HTTP side.

        What a part raises ends the others and is raised.
        """
        app = create_app(self.metrics, self.health, self.status, self._clock)
        server = await Server.bind(app, self.settings.listen.host, self.settings.listen.port)
        url = f"http://{server.host}:{server.port}"
        log.info("The worker runs", version=__version__, url=url, ledger=str(self.ledger.path))
        if listening is not None:
            listening.set_result(url)
        try:
            async with asyncio.TaskGroup() as group:
                pushing = [group.create_task(pusher.run(stopping), name=pusher.loop) for pusher in self.pushers]
                cut_off = [
                    *(group.create_task(each.run(stopping), name=each.loop) for each in self.collectors),
                    *(group.create_task(each.run(stopping), name=each.loop) for each in self.fact_readers),
                    *(group.create_task(each.run(stopping), name=DRIFT) for each in self.drift_meters),
                    group.create_task(self.maintainer.run(stopping), name=MAINTAIN),
                    group.create_task(self.repairer.run(stopping), name=REPAIR),
                ]
                if self.settings.cloudflare.verify_hours:
                    cut_off.append(group.create_task(self.continuous_verification.run(stopping), name=VERIFY))
                group.create_task(server.serve(), name="serve")
                await stopping.wait()
                log.info("The worker stops as soon as the requests under way have their answers")
                for task in cut_off:
                    task.cancel()
                _, late = await asyncio.wait(pushing, timeout=STOP_SECONDS)
                for task in late:
                    task.cancel()
                server.stop()
        except ExceptionGroup as errors:
            raise _reason(errors) from errors
        log.info("The worker has stopped")

    async def run_once(self, stopping: asyncio.Event) -> bool:
        """Collect and read all that is due and push all that is pending, as far as Cloudflare and the receivers let it.

        Returns whether all that is due was collected.
        """
        await self.maintainer.tidy()
        try:
            collected = await _cut_off(_all(each.collect_due(stopping) for each in self.collectors), stopping)
            read = await _cut_off(_all(each.read_due(stopping) for each in self.fact_readers), stopping)
        except ExceptionGroup as errors:
            raise _reason(errors) from errors
        await self.push_once(stopping)
        return bool(collected and read)

    async def push_once(self, stopping: asyncio.Event) -> None:
        """Carry out the repairs that were asked for and push all that is pending; nothing is collected."""
        await self._step_repairs(stopping)
        await _cut_off(self._drain(stopping), stopping, grace_seconds=STOP_SECONDS)
        # What a repair queues is bounded, so a large one takes several rounds.
        while await self._step_repairs(stopping):
            await _cut_off(self._drain(stopping), stopping, grace_seconds=STOP_SECONDS)

    async def read_back_once(self, stopping: asyncio.Event) -> None:
        """Carry out the repairs that were asked for, as far as that takes no delivery; nothing is pushed."""
        while await self._step_repairs(stopping):
            pass

    async def _step_repairs(self, stopping: asyncio.Event) -> bool:
        """One step of every repair; whether any of them went on."""
        return bool(await _cut_off(self.repairer.step_all(), stopping, grace_seconds=0)) and not stopping.is_set()

    async def _drain(self, stopping: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for pusher in self.pushers:
                    group.create_task(pusher.drain(stopping), name=pusher.loop)
        except ExceptionGroup as errors:
            raise _reason(errors) from errors

    async def status(self, *, due_at: float | None = None) -> StatusReport:
        """Everything that there is to tell at this moment; of windows, what was final at `due_at`, now by default."""
        running = Running(
            readiness=self.health.readiness(),
            cloudflare=CloudflareStatus(
                token=self.health.token,
                tokens=self.health.tokens,
                budgets=tuple(
                    ApiBudget(token=name, api=api, remaining=each.quota.remaining(api), limit=each.quota.limit(api))
                    for name, each in self.apis.items()
                    for api in Api
                ),
            ),
            destinations={
                pusher.name: RunningDestination(pusher.deliverer.protocol_text, pusher.deliverer.parked_text)
                for pusher in self.pushers
            },
        )
        return await report_status(
            self.ledger,
            self.settings,
            self._clock.now(),
            running,
            datasets=self.collected.datasets,
            fact_sets=self.collected.fact_sets,
            due_at=due_at,
        )

    def _watch(self, token: str, quota: Quota) -> None:
        """Tell in the metrics what is left of a token's budget."""
        metrics = self.metrics
        for api in Api:
            metrics.cloudflare_budget_limit_requests.labels(token, api).set(quota.limit(api))
            remaining = partial(quota.remaining, api)
            metrics.cloudflare_budget_remaining_requests.labels(token, api).set_function(remaining)
        metrics.cloudflare_query_cost.labels(token).set_function(lambda: _or_unknown(quota.cost_per_request))
        metrics.cloudflare_budget_left.labels(token).set_function(lambda: _or_unknown(quota.budget_left))

    def _count_request(self, token: str, api: Api, priority: Priority, outcome: str, seconds: float) -> None:
        # Listing many zones, or taking a refused query apart, is one turn of the loop and many requests. Requests for
        # facts come from the task of that name, and say nothing of whether collection turns, as little as drift's do.
        asking = asyncio.current_task()
        if asking is not None and asking.get_name() == loop_of(FACTS, token):
            self.health.beat(loop_of(FACTS, token))
        elif priority is not Priority.DRIFT:
            self.health.beat(loop_of(COLLECT, token))
        self.metrics.cloudflare_requests_total.labels(token, api, outcome).inc()
        self.metrics.cloudflare_request_duration_seconds.labels(api).observe(seconds)

    def _expect_loops(self) -> None:
        interval = self.settings.cloudflare.collection_interval_seconds
        for collector in self.collectors:
            self.health.expect(
                collector.loop,
                allowance_seconds=interval + _COLLECT_ROUND_SECONDS,
                liveness_seconds=interval + _COLLECT_LIVENESS_SECONDS,
            )
        for reader in self.fact_readers:
            # The quota may make every read wait, and each counts as a pass.
            allowance = interval + _COLLECT_LIVENESS_SECONDS
            self.health.expect(reader.loop, allowance_seconds=allowance, liveness_seconds=allowance)
        for pusher, destination in zip(self.pushers, self.settings.destinations, strict=True):
            # The longest wait of a pusher is a Retry-After at its cap, with jitter, behind a request that timed out.
            queue = destination.queue
            longest = max(queue.max_backoff_seconds, queue.max_retry_after_seconds, queue.parked_probe_interval_seconds)
            longest *= 1.2
            allowance = longest + destination.timeout_seconds + IDLE_SECONDS
            self.health.expect(pusher.loop, allowance_seconds=allowance, liveness_seconds=allowance)
        # Upkeep deletes in steps and beats at each; ten times its interval covers a slow disk.
        self.health.expect(MAINTAIN, allowance_seconds=10 * MAINTAIN_SECONDS, liveness_seconds=10 * MAINTAIN_SECONDS)
        self.health.expect(REPAIR, allowance_seconds=60 * REPAIR_SECONDS, liveness_seconds=60 * REPAIR_SECONDS)


@contextlib.contextmanager
def stop_on_signals(stopping: asyncio.Event) -> Iterator[None]:
    """Set `stopping` at the first SIGTERM or SIGINT; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop() -> None:
        stopping.set()
        for number in before:
            loop.remove_signal_handler(number)
            # Not the default action: the first process of a container has none.
            signal.signal(number, _end_at_once)

    for number in before:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


async def _all(works: Iterable[Coroutine[Any, Any, bool]]) -> bool:
    """Whether all of these say yes, which go on beside each other."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return all(task.result() for task in tasks)


async def _cut_off(work: Coroutine[Any, Any, T], stopping: asyncio.Event, *, grace_seconds: float = 0.0) -> T | None:
    """What `work` returns or raises; None where it was cut off, so long after `stopping` was set."""
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((working,), timeout=grace_seconds)
    finally:
        waiting.cancel()
        working.cancel()
    await asyncio.wait((working,))
    return None if working.cancelled() else working.result()


def _or_unknown(number: float | None) -> float:
    return math.nan if number is None else number


def _reason(errors: ExceptionGroup[Exception]) -> Exception:
    """What the parts of the worker could not go on with: the first error that says what to do, else the first."""
    known = errors.subgroup(WorkerError) or errors
    first: Exception = known
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return first
