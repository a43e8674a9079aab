"""The demo put on stage: what is started in which order, what happens, and how everything is cleared away."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr
from rich.console import Console

from worker.app import Worker
from worker.clock import SystemClock
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, ListenSettings, Settings
from worker.demo.clock import DemoClock
from worker.demo.display import Display, Progress, display_on, print_outcome
from worker.demo.outcome import DATASET, Outcome, compare, true_samples, zone_counts
from worker.demo.receivers import (
    HOST,
    OUT_OF_ORDER_SECONDS,
    BuiltIn,
    Prometheus,
    PrometheusProgram,
    Receiver,
    find_prometheus,
)
from worker.demo.timetable import DELAY_SECONDS, REPLAY_HOURS, WIDTH_SECONDS, Timetable, timetable
from worker.errors import UsageError, WorkerError
from worker.ledger import backlogs, scope_reports
from worker.observe import configure_logging
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

EXIT_GOOD = 0
EXIT_MISSING = 3

ZONES = 5

# Half as long again as it takes; clearing away behind it takes a few seconds at most, so that all is over in a minute.
DEADLINE_SECONDS = 50.0

# Ten times a second is smooth to the eye, and cheap: two queries of a small ledger.
_LOOK_SECONDS = 0.1

# Of the worker's log, when something went wrong.
_LOG_LINES = 20

_INTRODUCTION = """\
You will see the whole job on this machine, in less than a minute: a simulated Cloudflare with a few zones, the worker \
that collects its numbers, and a receiver that is taken down midway and still gets every number.
Nothing leaves this machine, your own settings are not read, and in the end nothing is left behind.
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Choice(StrEnum):
    """Which receiver is wanted."""

    AUTO = "auto"
    PROMETHEUS = "prometheus"
    BUILTIN = "builtin"


def run_demo(choice: Choice, console: Console) -> int:
    """Perform the demo; return its exit code. WorkerError where it does not come to its end."""
    program = None if choice is Choice.BUILTIN else find_prometheus(Path.cwd())
    if choice is Choice.PROMETHEUS and program is None:
        msg = "--receiver prometheus: there is no `prometheus` of version 2.39 or later on PATH; builtin needs none"
        raise UsageError(msg)
    show = Show(console, choice, program, timetable(SystemClock().now()))
    return asyncio.run(show.run())


class Show:
    """One performance."""

    def __init__(
        self,
        console: Console,
        choice: Choice,
        program: PrometheusProgram | None,
        times: Timetable,
    ) -> None:
        self._console = console
        self._choice = choice
        self._program = program
        self._times = times
        self._fleet = Fleet(zones=ZONES)
        self._machine = SystemClock()
        self._clock = DemoClock(times.starts_at, times.ends_at, times.speed)
        self._caught: signal.Signals | None = None
        self._is_clearing = False
        self._doing = "Everything is being started."
        self._in_trouble = False
        self._progress: Progress | None = None
        self._progressed = asyncio.Condition()

    async def run(self) -> int:
        """Perform, whatever signals come; return the exit code."""
        loop = asyncio.get_running_loop()
        performance = asyncio.create_task(self._perform())
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt, number, performance)
        try:
            outcome = await performance
        except asyncio.CancelledError:
            if self._caught is None:
                raise
            self._console.print("Interrupted. Everything is stopped and removed.")
            # What a shell reports of a program that died by this signal.
            return 128 + self._caught
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        return EXIT_GOOD if outcome.is_good else EXIT_MISSING

    def _interrupt(self, number: signal.Signals, performance: "asyncio.Task[Outcome]") -> None:
        """Break off at the first signal; clearing away is never broken off."""
        if self._caught is None and not self._is_clearing:
            self._caught = number
            performance.cancel()

    async def _perform(self) -> Outcome:
        self._console.print(_INTRODUCTION, soft_wrap=not self._console.is_terminal)
        with TemporaryDirectory(prefix="cfrw-demo-") as name:
            folder = Path(name)
            with _log_in(folder / "worker.log") as show_log:
                try:
                    async with AsyncExitStack() as stack:
                        try:
                            outcome = await self._play(stack, folder)
                        finally:
                            self._is_clearing = True
                except ExceptionGroup as errors:
                    # One of the parts has failed, and with it all others.
                    raise errors.exceptions[0] from errors
                if not outcome.is_good:
                    show_log()
            print_outcome(self._console, outcome)
            return outcome

    async def _play(self, stack: AsyncExitStack, folder: Path) -> Outcome:
        """Everything that may be broken off; what is on the stack then clears away."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                display = stack.enter_context(display_on(self._console, self._machine))
                receiver = await self._start_receiver(stack, display, folder)
                worker = await self._start_worker(stack, display, receiver, folder)
                waiting, drain_seconds = await self._tell(display, receiver)
                return await self._take_stock(worker, receiver, waiting, drain_seconds)
        except TimeoutError as error:
            msg = (
                f"The demo did not come to its end within {DEADLINE_SECONDS:.0f} s; it was broken off at this: "
                f"{self._doing} On a machine with nothing else to do it takes about 35 s."
            )
            raise WorkerError(msg) from error

    async def _start_receiver(self, stack: AsyncExitStack, display: Display, folder: Path) -> Receiver:
        why = "" if self._choice is Choice.BUILTIN else "No Prometheus was found. "
        if self._program is not None:
            prometheus = Prometheus(self._program, folder)
            stack.push_async_callback(prometheus.stop)
            try:
                await prometheus.start()
            except WorkerError as error:
                if self._choice is Choice.PROMETHEUS:
                    raise
                why = f"{error}\n"
            else:
                display.say(f"{prometheus.name} runs: {prometheus.base_url}")
                return prometheus
        built_in = BuiltIn()
        stack.push_async_callback(built_in.stop)
        await built_in.start()
        display.say(f"{why}A small built-in receiver runs, and checks every request.")
        return built_in

    async def _start_worker(self, stack: AsyncExitStack, display: Display, receiver: Receiver, folder: Path) -> Worker:
        api_url = await stack.enter_async_context(serve(SimulatedApi(self._fleet, self._clock)))
        worker = await stack.enter_async_context(Worker(_settings(api_url, receiver, folder), self._clock))
        stopping = asyncio.Event()
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(worker.run(stopping, listening=listening), name="worker")
        watching = group.create_task(self._watch(worker, display), name="watch")
        stack.callback(stopping.set)
        stack.callback(watching.cancel)
        display.say(f"The worker runs; its status page, for as long as this lasts: {await listening}/")
        return worker

    async def _tell(self, display: Display, receiver: Receiver) -> tuple[int, float]:
        """The story; how many samples waited at the end of the outage, and how long it took to deliver them."""
        times = self._times
        name = receiver.name[0].upper() + receiver.name[1:]

        self._doing = "The worker fetches the hour before its start, and delivers it."
        missed = times.final_windows(times.starts_at) * len(self._fleet.zones)
        await self._until(lambda progress: progress.captured >= missed and progress.waiting_windows == 0)
        display.say(
            f"It has fetched the hour before its start, and delivered it: {missed:,} windows of one minute and zone."
        )

        self._clock.run()
        display.say(f"Now time runs, {times.speed:.0f} times as fast as here.")
        self._doing = "Each window is captured once it is final, ten minutes after its end, and then pushed."
        await self._until(lambda progress: progress.now >= times.outage_begins_at)

        self._doing = f"{name} is being stopped."
        await receiver.stop()
        self._in_trouble = True
        self._doing = f"{name} is down. What cannot be delivered waits in SQLite."
        display.say(f"{name} is stopped. Collection goes on; what cannot be delivered waits in SQLite.")
        suffered = await self._until(
            lambda progress: progress.now >= times.outage_ends_at and progress.waiting_windows > 0
        )

        display.say(f"{name} is started again; {suffered.backlog}.")
        self._doing = f"{name} is being started again."
        await receiver.start()
        back_at = self._machine.monotonic()
        self._in_trouble = False
        self._doing = "The backlog is delivered."
        await self._until(lambda progress: progress.waiting_windows == 0)
        drain_seconds = self._machine.monotonic() - back_at
        display.say(f"The backlog is delivered, {drain_seconds:.1f} s after {receiver.name} was there again.")

        self._doing = "Each window is captured once it is final, and then pushed, as before."
        total = len(times.windows) * len(self._fleet.zones)
        await self._until(
            lambda progress: (
                progress.now >= times.ends_at and progress.captured >= total and progress.waiting_windows == 0
            )
        )
        self._doing = f"Everything is read back from {receiver.name} and compared with what Cloudflare has."
        return suffered.waiting_samples, drain_seconds

    async def _take_stock(self, worker: Worker, receiver: Receiver, waiting: int, drain_seconds: float) -> Outcome:
        windows = self._times.windows
        reports = await worker.ledger.read(
            scope_reports, since=windows.start, final_until=windows.stop, with_deliveries=True
        )
        true = await asyncio.to_thread(true_samples, self._fleet, windows, WIDTH_SECONDS)
        return Outcome(
            receiver=receiver.name,
            zones=zone_counts(self._fleet, len(windows), reports),
            comparison=compare(true, await receiver.read()),
            waiting_samples=waiting,
            drain_seconds=drain_seconds,
        )

    async def _watch(self, worker: Worker, display: Display) -> None:
        """Show the progress and tell it to whoever waits for it, for ever."""
        while True:
            self._progress = await self._look(worker)
            display.show(self._progress)
            async with self._progressed:
                self._progressed.notify_all()
            await self._machine.sleep(_LOOK_SECONDS)

    async def _look(self, worker: Worker) -> Progress:
        windows = self._times.windows
        now = self._clock.now()
        reports = await worker.ledger.read(
            scope_reports, since=windows.start, final_until=windows.stop, with_deliveries=True
        )
        waiting = await worker.ledger.read(backlogs)
        return Progress(
            now=now,
            doing=self._doing,
            in_trouble=self._in_trouble,
            total=len(windows) * len(self._fleet.zones),
            captured=sum(report.captured for report in reports),
            acknowledged=sum(report.acknowledged or 0 for report in reports),
            waiting_windows=sum(backlog.buckets for backlog in waiting),
            waiting_samples=sum(backlog.samples for backlog in waiting),
        )

    async def _until(self, reached: Callable[[Progress], bool]) -> Progress:
        """Wait for progress that is as wanted; return it."""
        async with self._progressed:
            while True:
                await self._progressed.wait()
                if self._progress is not None and reached(self._progress):
                    return self._progress


def _settings(api_url: str, receiver: Receiver, folder: Path) -> Settings:
    """What a user would set by CF_*, REMOTE_WRITE_* and the rest, of which nothing is read here."""
    return Settings(
        cloudflare=CloudflareSettings(
            api_token=SecretStr(ACCEPTED_BEARER),
            api_url=api_url,
            datasets=(DATASET,),
            bucket_seconds=WIDTH_SECONDS,
            delay_seconds=DELAY_SECONDS,
            replay_hours=REPLAY_HOURS,
        ),
        destinations=(
            DestinationSettings(
                name="demo", url=receiver.write_url, out_of_order_time_window_seconds=OUT_OF_ORDER_SECONDS
            ),
        ),
        ledger=LedgerSettings(path=folder / "ledger.db"),
        listen=ListenSettings(host=HOST, port=0),
    )


@contextmanager
def _log_in(file: Path) -> Iterator[Callable[[], None]]:
    """Keep what is logged, and whatever else goes to stderr, out of the picture; show the end of it on an error.

    Gives what shows it otherwise.
    """
    stderr = sys.stderr

    def show() -> None:
        lines = file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            stderr.write("".join(f"{line}\n" for line in ["The end of the worker's log:", *lines]))

    with file.open("a") as log:
        try:
            with contextlib.redirect_stderr(log):
                configure_logging("warning", "console", [ACCEPTED_BEARER])
                yield show
        except Exception:
            show()
            raise
        finally:
            configure_logging("warning", "console", [ACCEPTED_BEARER])
