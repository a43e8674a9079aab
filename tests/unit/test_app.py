import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.plain_http import NO_AUTHORITIES
from tests.truth import SAME, difference, expected_content
from tests.unit.ledger.fleet import ask_for_resend
from worker.app import ONCE_ATTEMPTS, Worker, stop_on_signals
from worker.buckets import final_window_starts
from worker.clock import Clock
from worker.cloudflare import Api, Priority
from worker.config import (
    CloudflareSettings,
    DestinationSettings,
    LedgerSettings,
    ListenSettings,
    Message,
    QueueSettings,
    Settings,
    TlsSettings,
)
from worker.errors import ConfigError, LedgerDamagedError, LedgerFullError, LedgerHeldError, UsageError
from worker.health import TokenState
from worker.ledger import (
    Ledger,
    Resend,
    backlogs,
    delivery_counts,
)
from worker.remote_write import Accepted, Verdict
from worker.remote_write.receiver import Failure, MemoryReceiver
from worker.simulator.api import ACCEPTED_BEARER, SimulatedApi
from worker.simulator.faults import HttpStatus
from worker.simulator.fleet import Fleet
from worker.simulator.serving import serve

HOUR = 3600
NOW = 1_750_032_600.0  # 2025-06-16T00:10:00Z: the hour before has just become final
REPLAY_HOURS = 6


@dataclass
class Scene:
    """A simulated Cloudflare and a receiver on ports of this machine, and settings for a worker between them."""

    clock: ManualClock
    api: SimulatedApi
    receiver: MemoryReceiver
    settings: Settings
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def worker(self, *, clock: Clock | None = None, once: bool = False) -> Worker:
        return Worker(self.settings, clock or self.clock, once=once)

    def changed(self, **sections: Any) -> "Scene":
        """The same with other sections of the settings."""
        self.settings = self.settings.model_copy(update=sections)
        return self

    def expected(self) -> dict[Any, dict[int, float]]:
        """What a receiver must hold once everything that is due has been delivered."""
        starts = final_window_starts(
            self.clock.now(), width_seconds=HOUR, delay_seconds=600, reach_seconds=REPLAY_HOURS * HOUR
        )
        return expected_content(self.api.fleet, self.api.fleet.zones, starts)

    def received(self) -> dict[str, int]:
        """How what the receiver holds differs from that."""
        stored = {frozenset(labels): samples for labels, samples in self.receiver.samples.items()}
        return difference(self.expected(), stored)

    async def is_free(self) -> bool:
        """Whether another worker could have the ledger now."""
        try:
            ledger = Ledger.open(self.settings.ledger.path)
        except LedgerHeldError:
            return False
        await ledger.close()
        return True


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = ManualClock(NOW)
    api = SimulatedApi(Fleet(seed=5, zones=3), clock)
    receiver = MemoryReceiver()
    async with serve(api) as api_url, receiver.listening() as write_url:
        settings = Settings(
            cloudflare=CloudflareSettings(
                api_token=SecretStr(ACCEPTED_BEARER), api_url=api_url, replay_hours=REPLAY_HOURS
            ),
            destinations=(
                DestinationSettings(
                    name="memory",
                    url=write_url,
                    out_of_order_time_window_seconds=86_400,
                    queue=QueueSettings(min_backoff_seconds=1, max_backoff_seconds=60),
                ),
            ),
            ledger=LedgerSettings(path=tmp_path / "ledger.db"),
            listen=ListenSettings(host="127.0.0.1", port=0),
        )
        yield Scene(clock, api, receiver, settings)


@contextlib.asynccontextmanager
async def running(scene: Scene, worker: Worker) -> AsyncIterator["asyncio.Task[None]"]:
    """The worker at work; it is stopped at the end, unless it has ended by itself."""
    async with worker:
        task = asyncio.create_task(worker.run(scene.stopping))
        try:
            yield task
        finally:
            scene.stopping.set()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                task.result()


async def sees(condition: Callable[[], bool], *tasks: "asyncio.Task[Any]") -> None:
    """Wait until something is so, as long as these run; the time limit of the test is the bound."""
    while not condition():
        for task in tasks:
            assert not task.done(), task
        await asyncio.sleep(0)


def passes(worker: Worker) -> dict[str, float]:
    """When each loop last completed a pass."""
    return {name: loop.completed_at or 0.0 for name, loop in worker.health.loops().items()}


async def states(ledger: Ledger) -> dict[str, int]:
    return {count.state: count.buckets for count in await ledger.read(delivery_counts)}


# ---------------------------------------------------------------------------------------- the main job


async def test_a_worker_becomes_ready_with_its_first_passes_and_what_is_due_arrives(scene: Scene) -> None:
    worker = scene.worker()
    what = {problem.what for problem in worker.health.readiness().problems}
    assert what == {"ledger", "token", "collect", "push:memory", "maintain", "repair"}
    async with running(scene, worker) as task:
        await sees(lambda: worker.health.readiness().ok, task)
        await sees(lambda: scene.received() == SAME, task)
        assert worker.health.liveness().ok
    await task


async def test_windows_that_become_final_while_it_runs_are_delivered_as_well(scene: Scene) -> None:
    worker = scene.worker()
    async with running(scene, worker) as task:
        await sees(lambda: worker.health.readiness().ok, task)
        for _ in range(61):
            await scene.clock.advance(60)
            await sees(lambda: passes(worker)["collect"] >= scene.clock.now(), task)
        newest = max(at for samples in scene.expected().values() for at in samples)
        await sees(lambda: any(newest in samples for samples in scene.receiver.samples.values()), task)


async def test_the_http_side_tells_where_it_listens_and_answers(scene: Scene) -> None:
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with scene.worker() as worker:
        task = asyncio.create_task(worker.run(scene.stopping, listening=listening))
        async with httpx.AsyncClient(base_url=await listening, trust_env=False, verify=NO_AUTHORITIES) as client:
            await sees(lambda: worker.health.readiness().ok, task)
            assert (await client.get("/-/ready")).status_code == 200
            status = (await client.get("/api/v1/status")).json()
            metrics = (await client.get("/metrics")).text
        scene.stopping.set()
        await task
    assert status["cloudflare"]["token"] == "accepted"
    assert [budget["api"] for budget in status["cloudflare"]["budgets"]] == ["graphql", "rest"]
    assert {scope["name"] for scope in status["scopes"]} == {zone.name for zone in scene.api.fleet.zones}
    # One query for what the zones are entitled to, one for their windows.
    assert 'cfrw_cloudflare_requests_total{api="graphql",outcome="ok",token="default"} 2.0' in metrics
    assert 'cfrw_cloudflare_query_cost{token="default"} 1.0' in metrics
    assert "cfrw_cloudflare_budget_left" in metrics
    assert 'cfrw_cloudflare_budget_limit_requests{api="rest",token="default"} 1200.0' in metrics
    assert ACCEPTED_BEARER not in str(status) + metrics


async def test_an_outage_on_either_side_makes_a_worker_neither_unready_nor_unhealthy(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudflare = scene.settings.cloudflare.model_copy(update={"replay_hours": 24})
    worker = scene.changed(cloudflare=cloudflare).worker()
    send = worker.senders[0].send
    attempts: list[int] = []

    async def counted(body: bytes, attempt: int, message: Message) -> Verdict:
        attempts.append(attempt)
        return await send(body, attempt, message)

    monkeypatch.setattr(worker.senders[0], "send", counted)
    async with running(scene, worker) as task:
        await sees(lambda: worker.health.readiness().ok, task)
        scene.api.faults.add(HttpStatus())
        scene.receiver.failure = Failure(503)
        for _ in range(65):
            await scene.clock.advance(60)
            await sees(lambda: min(passes(worker).values()) > scene.clock.now() - 120, task)
            assert worker.health.readiness().ok, worker.health.readiness().problems
            assert worker.health.liveness().ok
        scene.api.faults.clear()
        scene.receiver.failure = None
        while (await worker.ledger.read(backlogs))[0].buckets:
            await scene.clock.advance(60)
        # The oldest were given up at the replay bound.
        assert (await states(worker.ledger))["acknowledged"] > 60
        assert len(attempts) > 10 * ONCE_ATTEMPTS, "it never gives up"


async def test_a_loop_is_allowed_the_longest_that_it_may_have_to_wait(scene: Scene) -> None:
    async with scene.worker() as worker:
        allowed = {name: loop.allowance_seconds for name, loop in worker.health.loops().items()}
        # 10,000 zones are 1,000 queries, of which 300 may be sent in 5 minutes; then the pause between two passes.
        assert allowed["collect"] > 1000 * 300 / 300 + 60
        # A receiver may ask for 5 minutes, to which a tenth comes by chance, and a request may take 30 s.
        assert allowed["push:memory"] > 300 * 1.1 + 30


@pytest.mark.parametrize("percent", [0.0, 1.0])
async def test_what_measures_runs_as_it_is_switched_on(percent: float, scene: Scene) -> None:
    more = {"drift_sample_percent": percent, "verify_hours": int(percent)}
    cloudflare = scene.settings.cloudflare.model_copy(update=more)
    worker = scene.changed(cloudflare=cloudflare).worker()
    async with running(scene, worker) as task:
        await sees(lambda: worker.health.readiness().ok, task)
        tasks = {each.get_name() for each in asyncio.all_tasks()}
        exposition, _ = worker.metrics.exposition("")
    assert ("drift" in tasks, b'cfrw_drift_readings_total{after="900"' in exposition) == (bool(percent), bool(percent))
    assert ("verify" in tasks, b"cfrw_verify_samples{" in exposition) == (bool(percent), bool(percent))


async def test_a_request_for_drift_does_not_show_that_collection_turns(scene: Scene) -> None:
    async with scene.worker() as worker:
        worker._count_request("default", Api.GRAPHQL, Priority.DRIFT, "ok", 1.0)
        assert worker.health.loops()["collect"].beat_at is None
        worker._count_request("default", Api.GRAPHQL, Priority.RETRY, "ok", 1.0)
        assert worker.health.loops()["collect"].beat_at is not None


async def test_every_request_to_cloudflare_shows_that_collection_turns(scene: Scene) -> None:
    async with scene.worker() as worker:
        await scene.clock.advance(600)
        await worker.apis["default"].list_zones()
        assert worker.health.loops()["collect"].beat_at == scene.clock.now()


async def test_without_the_token_s_acceptance_a_worker_is_not_ready(scene: Scene) -> None:
    changed = scene.settings.cloudflare.model_copy(update={"api_token": SecretStr("another-token")})
    worker = scene.changed(cloudflare=changed).worker()
    async with running(scene, worker) as task:
        await sees(lambda: all(passes(worker).values()), task)
        assert {problem.what for problem in worker.health.readiness().problems} == {"token"}
        assert worker.health.token is TokenState.REFUSED


# -------------------------------------------------------------------------------------------- stopping


async def test_stopping_finishes_the_request_under_way_records_it_and_cuts_collection_off(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scene.worker()
    answered = asyncio.Event()
    asked = asyncio.Event()
    sent: list[bytes] = []

    async def slowly(body: bytes, _attempt: int, _message: Message) -> Verdict:
        sent.append(body)
        await answered.wait()
        return Accepted(204)

    async def never(*_asked: Any, **_options: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(worker.senders[0], "send", slowly)
    async with worker:
        task = asyncio.create_task(worker.run(scene.stopping))
        await sees(lambda: len(sent) > 0 and passes(worker)["collect"] > 0, task)
        monkeypatch.setattr(worker.apis["default"], "fetch", never)
        while not asked.is_set():
            await scene.clock.advance(60)
        scene.stopping.set()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done(), "it waits for the answer"
        under_way = len(sent)
        answered.set()
        await task
        counts = await states(worker.ledger)
    assert len(sent) == under_way, "nothing is sent after it was told to stop"
    assert counts["acknowledged"] > 0


async def test_a_request_that_takes_too_long_is_given_up_and_its_buckets_wait(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.app.STOP_SECONDS", 0.0)
    worker = scene.worker()
    sent: list[bytes] = []

    async def never(body: bytes, _attempt: int, _message: Message) -> Verdict:
        sent.append(body)
        await asyncio.Event().wait()
        return Accepted(204)

    monkeypatch.setattr(worker.senders[0], "send", never)
    async with running(scene, worker) as task:
        await sees(lambda: len(sent) > 0, task)
        scene.stopping.set()
        await task
        assert (await states(worker.ledger)).keys() == {"pending"}
    assert await scene.is_free()


@pytest.mark.parametrize("part", ["collector", "maintainer", "repairer", "pusher"])
@pytest.mark.parametrize("error", [LedgerDamagedError("the ledger is damaged"), RuntimeError("nobody expected it")])
async def test_what_one_part_cannot_go_on_with_ends_all_and_is_raised_as_it_is(
    part: str, error: Exception, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scene.worker()
    failing = getattr(worker, part, None) or getattr(worker, f"{part}s")[0]

    async def fail(_stopping: asyncio.Event) -> None:
        await sees(lambda: len(scene.receiver.samples) > 0 or part in {"collector", "pusher"})
        raise error

    monkeypatch.setattr(failing, "run", fail)
    with pytest.raises(type(error)) as raised:
        async with worker:
            await worker.run(scene.stopping)
    assert raised.value is error
    assert await scene.is_free()
    assert not {task for task in asyncio.all_tasks() if task.get_name() in passes(worker)}


async def test_of_several_errors_the_one_that_says_what_to_do_is_raised(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scene.worker()
    full = LedgerFullError("make room")

    async def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(worker.collectors[0], "run", lambda _stopping: fail(RuntimeError()))
    monkeypatch.setattr(worker.repairer, "run", lambda _stopping: fail(full))
    with pytest.raises(LedgerFullError):
        async with worker:
            await worker.run(scene.stopping)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_in_order_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        os.kill(os.getpid(), number)
        await stopping.wait()
        assert signal.getsignal(number) not in {signal.SIG_DFL, signal.default_int_handler, before}
    assert signal.getsignal(number) == before


# --------------------------------------------------------------------------- when it cannot even begin


async def test_a_port_that_is_taken_is_told_and_the_ledger_let_go(scene: Scene) -> None:
    taken = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        scene.changed(listen=ListenSettings(host="127.0.0.1", port=port))
        with pytest.raises(UsageError, match=f"LISTEN_ADDRESS .given: 127.0.0.1:{port}.: cannot listen"):
            async with scene.worker() as worker:
                await worker.run(scene.stopping)
    assert await scene.is_free()


async def test_a_destination_whose_settings_cannot_be_used_is_told_before_the_ledger_is_touched(
    scene: Scene, tmp_path: Path
) -> None:
    not_pem = tmp_path / "ca.pem"
    not_pem.write_text("this is no certificate")
    tls = TlsSettings(ca_file=not_pem)
    scene.changed(destinations=(scene.settings.destinations[0].model_copy(update={"tls": tls}),))
    with pytest.raises(ConfigError, match=r"tls_config\.ca_file"):
        scene.worker()
    assert not scene.settings.ledger.path.exists()


async def test_a_second_worker_is_told_who_holds_the_ledger(scene: Scene) -> None:
    async with scene.worker():
        with pytest.raises(LedgerHeldError, match=f"another worker .process {os.getpid()}. holds the ledger"):
            scene.worker()
    assert await scene.is_free()


async def test_a_ledger_that_does_not_take_the_destinations_is_let_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scene.worker()

    async def full(*_args: Any, **_kwargs: Any) -> None:
        message = "make room"
        raise LedgerFullError(message)

    monkeypatch.setattr(worker.ledger, "write", full)
    with pytest.raises(LedgerFullError):
        async with worker:
            pytest.fail("it has not begun")
    assert await scene.is_free()


async def test_the_ledger_is_let_go_even_where_closing_the_rest_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scene.worker()

    async def fail() -> None:
        message = "the connection cannot be closed"
        raise OSError(message)

    monkeypatch.setattr(worker.senders[0], "aclose", fail)
    monkeypatch.setattr(worker.apis["default"], "aclose", fail)
    with pytest.raises(OSError, match="cannot be closed"):
        async with worker:
            pass
    assert await scene.is_free()


# ------------------------------------------------------------------------------------------------ once


async def test_once_collects_and_delivers_everything_that_is_due(scene: Scene) -> None:
    async with scene.worker(once=True) as worker:
        assert await worker.run_once(scene.stopping)
        assert (await states(worker.ledger)).keys() == {"acknowledged"}
        assert b"cfrw_ledger_last_prune_timestamp_seconds 1.75" in worker.metrics.exposition("")[0]
    assert scene.received() == SAME


async def test_once_with_cloudflare_down_delivers_what_the_ledger_has_and_is_not_complete(scene: Scene) -> None:
    async with scene.worker(once=True) as worker:
        await worker.run_once(scene.stopping)
        await worker.ledger.write(ask_for_resend, Resend(0, 2**40), reason="", asked_by="", now=NOW)
    scene.receiver.samples.clear()
    scene.api.faults.add(HttpStatus())
    async with scene.worker(once=True) as worker:
        assert not await worker.run_once(scene.stopping)
        assert (await states(worker.ledger)).keys() == {"acknowledged"}
    assert scene.received() == SAME


async def test_once_gives_a_receiver_that_is_down_a_few_attempts(scene: Scene) -> None:
    scene.receiver.failure = Failure(503)
    async with scene.worker(once=True) as worker:
        working = asyncio.create_task(worker.run_once(scene.stopping))
        while not working.done():
            await scene.clock.advance(1)
            await states(worker.ledger)  # gives the sockets their time, or a day passes before they answer
        assert working.result(), "everything is collected"
        assert (await states(worker.ledger)).keys() == {"pending"}
    # Three zones are in three lanes; each tries 2.0 and 1.0, and then looks for what may be to blame.
    assert 3 * ONCE_ATTEMPTS <= scene.receiver.answers[503] <= 3 * 3 * ONCE_ATTEMPTS


async def test_once_is_cut_off_when_it_is_told_to_stop_while_it_waits_for_cloudflare(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def never(*_asked: Any, **_options: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with scene.worker(once=True) as worker:
        monkeypatch.setattr(worker.apis["default"], "fetch", never)
        working = asyncio.create_task(worker.run_once(scene.stopping))
        await asked.wait()
        scene.stopping.set()
        assert not await working
    assert await scene.is_free()


async def test_once_finishes_the_request_under_way_when_it_is_told_to_stop(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene.worker(once=True) as worker:

        async def stop(_body: bytes, _attempt: int, _message: Message) -> Verdict:
            scene.stopping.set()
            for _ in range(20):
                await asyncio.sleep(0)
            return Accepted(204)

        monkeypatch.setattr(worker.senders[0], "send", stop)
        await worker.run_once(scene.stopping)
        assert "acknowledged" in await states(worker.ledger)


async def test_once_a_full_volume_is_raised_as_it_is(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene.worker(once=True) as worker:

        async def fail(_stopping: asyncio.Event) -> None:
            message = "make room"
            raise LedgerFullError(message)

        monkeypatch.setattr(worker.pushers[0], "drain", fail)
        with pytest.raises(LedgerFullError):
            await worker.run_once(scene.stopping)


async def test_a_destination_that_is_new_gets_what_the_ledger_holds(scene: Scene) -> None:
    async with scene.worker(once=True) as worker:
        await worker.run_once(scene.stopping)
    first = scene.settings.destinations[0]
    scene.receiver.samples.clear()
    scene.changed(destinations=(first, first.model_copy(update={"name": "new"})))
    async with scene.worker(once=True) as worker:
        await worker.push_once(scene.stopping)
    assert scene.received() == SAME
