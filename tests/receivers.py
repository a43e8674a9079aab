"""Real receivers for tests and benchmarks: Prometheus and VictoriaMetrics as child processes.

Each has its own temporary folder and a port of 127.0.0.1 that it keeps over its life, so that an outage is `stop` (or
`kill`) and `start`. What it stored is read back sample by sample, exactly.

Which programs there are and where they come from is the business of tests/fetch_receivers.py.
"""

import asyncio
import json
import math
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tests.plain_http import NO_AUTHORITIES
from worker.remote_write.encode import compress
from worker.remote_write.proto.remote_write_v1_pb2 import Label, Sample, TimeSeries, WriteRequest

RECEIVERS = ("prometheus-2.42", "prometheus-3.5", "victoria-metrics")
"""The receivers that every end-to-end test runs against; names of `tests.fetch_receivers.PROGRAMS`."""

Labels = frozenset[tuple[str, str]]
"""A series' labels as (name, value) pairs, `__name__` among them."""

Known = TypeVar("Known")

CLOUDFLARE_SERIES = '{__name__=~"cloudflare_.+"}'

# Below the ports that Linux (from 32768) and macOS (from 49152) hand to outgoing connections, so that nobody is given a
# receiver's port while the receiver is down.
PORTS = range(20_000, 32_000)
PORT_ATTEMPTS = 20

START_SECONDS = 60.0  # both are ready after about 0.5 s; the machine may be busy with other tests
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
QUERY_SECONDS = 60.0

# Prometheus spends 16 bytes of memory and about 30 bytes of JSON on a sample: 15 MB in one answer.
MAX_SAMPLES_PER_QUERY = 500_000


class ReceiverError(Exception):
    """A receiver does not start or stop, refuses a query, or holds what it never should."""


class PortTakenError(ReceiverError):
    """Somebody else listens on the port."""


class Receiver(ABC):
    """A receiver that runs inside its `async with` block, and in there may be stopped and started.

    program:     the file to run.
    extra_flags: handed to it after our own.
    """

    def __init__(self, program: Path, *, extra_flags: Sequence[str] = ()) -> None:
        self.program = program
        self._extra_flags = tuple(extra_flags)
        self._folder: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Its temporary folder, with `data` and `log` in it; gone after the block."""
        return _known(self._folder, f"{self.program.name} was never started")

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1, the same while it is down."""
        return _known(self._port, f"{self.program.name} was never started")

    @property
    def pid(self) -> int:
        """Its process, for whoever measures memory and CPU time."""
        return _known(self._process, f"{self.program.name} is not running").pid

    @property
    def query_url(self) -> str:
        """Base address of the query API: what stands before `/api/v1/query`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def write_url(self) -> str:
        """Where remote write goes."""
        return f"{self.query_url}/api/v1/write"

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="cfrw-receiver-"))
        try:
            await self._start_on_a_free_port()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def start(self) -> None:
        """Start again after `stop` or `kill`, on the same port and data; return when requests are answered."""
        if self._process is not None:
            message = f"{self.program.name} is running already"
            raise ReceiverError(message)
        await self._start_on(self.port)

    async def stop(self) -> None:
        """Stop in order: everything that was acknowledged is on disk."""
        await self._end_process(signal.SIGTERM)

    async def kill(self) -> None:
        """Stop by SIGKILL.

        Prometheus keeps what it acknowledged. VictoriaMetrics loses the last seconds of it: it is made to.
        """
        await self._end_process(signal.SIGKILL)

    async def read_all(
        self, match: str = CLOUDFLARE_SERIES, *, start: float = 0.0, end: float | None = None
    ) -> dict[Labels, dict[int, float]]:
        """Every stored sample of the series that `match` selects: by series, then by unix milliseconds.

        start, end: unix seconds, both inclusive; without `end` up to an hour from now.
        ReceiverError where one instant of a series holds two different values.
        """
        stored: dict[Labels, dict[int, float]] = {}
        for labels, samples in (await self.read_raw(match, start=start, end=end)).items():
            by_time = stored[labels] = {}
            for timestamp_ms, value in samples:
                kept = by_time.setdefault(timestamp_ms, value)
                if not (kept == value or (math.isnan(kept) and math.isnan(value))):
                    message = f"{dict(labels)} is both {kept} and {value} at {timestamp_ms} ms"
                    raise ReceiverError(message)
        return stored

    async def read_raw(
        self, match: str = CLOUDFLARE_SERIES, *, start: float = 0.0, end: float | None = None
    ) -> dict[Labels, list[tuple[int, float]]]:
        """The same as sorted (unix milliseconds, value) pairs; a sample that is stored twice is there twice."""
        first_ms = round(start * 1000)
        last_ms = round((time.time() + 3600 if end is None else end) * 1000)
        raw: defaultdict[Labels, list[tuple[int, float]]] = defaultdict(list)
        async with httpx.AsyncClient(
            base_url=self.query_url, timeout=QUERY_SECONDS, trust_env=False, verify=NO_AUTHORITIES
        ) as client:
            await self._read(client, match, first_ms, last_ms, raw)
        for samples in raw.values():
            samples.sort(key=lambda sample: sample[0])
        return dict(raw)

    async def push(self, series: Mapping[Labels, Mapping[int, float]]) -> httpx.Response:
        """Send samples, by series and unix milliseconds, past the worker; the receiver's answer."""
        request = WriteRequest(
            timeseries=[
                TimeSeries(
                    labels=[Label(name=name, value=value) for name, value in sorted(labels)],
                    samples=[Sample(value=value, timestamp=moment) for moment, value in sorted(samples.items())],
                )
                for labels, samples in series.items()
            ]
        )
        headers = {
            "Content-Encoding": "snappy",
            "Content-Type": "application/x-protobuf",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        }
        async with httpx.AsyncClient(timeout=QUERY_SECONDS, trust_env=False, verify=NO_AUTHORITIES) as client:
            return await client.post(self.write_url, content=compress(request.SerializeToString()), headers=headers)

    @abstractmethod
    def _flags(self, port: int) -> list[str]:
        """The command line after the program."""

    @abstractmethod
    async def _answers(self, client: httpx.AsyncClient) -> bool:
        """Whether this receiver, and not another one on its port, is ready; httpx.TransportError where nobody is."""

    @abstractmethod
    async def _read(
        self, client: httpx.AsyncClient, match: str, first_ms: int, last_ms: int, raw: "defaultdict[Labels, list[Any]]"
    ) -> None:
        """Append every sample of first_ms..last_ms, both inclusive, to its series in `raw`."""

    async def _start_on_a_free_port(self) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = free_port()
            try:
                await self._start_on(port)
            except PortTakenError:
                # Between our look at the port and the program's own.
                if attempt == PORT_ATTEMPTS:
                    raise
            else:
                self._port = port
                return

    async def _start_on(self, port: int) -> None:
        process = self._process = self._spawn(port)
        deadline = time.monotonic() + START_SECONDS
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=NO_AUTHORITIES
        ) as client:
            while not await self._is_ready(client):
                ended = process.poll() is not None
                if ended or time.monotonic() > deadline:
                    await self._end_process(signal.SIGKILL)
                    raise self._start_error("ended by itself" if ended else "was not ready in time")
                await asyncio.sleep(POLL_SECONDS)

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        try:
            return await self._answers(client)
        except httpx.TransportError:
            return False

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self.program, *self._flags(port), *self._extra_flags],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _start_error(self, what_happened: str) -> ReceiverError:
        log = (self.folder / "log").read_text(errors="replace")
        kind = PortTakenError if "address already in use" in log else ReceiverError
        return kind(f"{self.program} {what_happened}; the end of its log:\n{log[-2000:]}")

    async def _end_process(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            await asyncio.to_thread(process.wait)
            message = f"{self.program} did not stop within {STOP_SECONDS:.0f} s"
            raise ReceiverError(message) from error

    async def _end(self) -> None:
        try:
            await self._end_process(signal.SIGKILL)
        finally:
            await asyncio.to_thread(shutil.rmtree, self.folder)


class PrometheusServer(Receiver):
    """Prometheus as a remote-write receiver; rules and targets it has none, but for itself on demand.

    out_of_order_seconds: its out-of-order window; None leaves it at Prometheus' own default, which is none.
    self_scrape:          scrape itself every second, so that its newest sample is of now; without it the newest sample
                          is the newest one that was pushed, and the age of samples counts from there.
    remote_write:         where it writes on what it gets, as its configuration has it.
    """

    def __init__(
        self,
        program: Path,
        *,
        out_of_order_seconds: int | None = None,
        self_scrape: bool = False,
        remote_write: Sequence[Mapping[str, Any]] = (),
        extra_flags: Sequence[str] = (),
    ) -> None:
        super().__init__(program, extra_flags=extra_flags)
        self._out_of_order_seconds = out_of_order_seconds
        self._self_scrape = self_scrape
        self._remote_write = remote_write

    def _flags(self, port: int) -> list[str]:
        configuration: dict[str, Any] = {"remote_write": list(self._remote_write)}
        if self._out_of_order_seconds is not None:
            configuration["storage"] = {"tsdb": {"out_of_order_time_window": f"{self._out_of_order_seconds}s"}}
        if self._self_scrape:
            target = {"targets": [f"127.0.0.1:{port}"]}
            configuration["scrape_configs"] = [
                {"job_name": "self", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [target]}
            ]
        # Every JSON text is a YAML text.
        (self.folder / "prometheus.yml").write_text(json.dumps(configuration))
        return [
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            "--storage.tsdb.retention.time=100y",  # the most that Prometheus allows
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-remote-write-receiver",
            f"--query.max-samples={MAX_SAMPLES_PER_QUERY}",
            "--log.level=warn",
        ]

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        if (await client.get("/-/ready")).status_code != httpx.codes.OK:
            return False
        flags = (await client.get("/api/v1/status/flags")).json()["data"]
        if flags["storage.tsdb.path"] != str(self.folder / "data"):
            return False
        if not self._self_scrape:
            return True
        answer = await client.get("/api/v1/query", params={"query": "up"})
        return bool(answer.json()["data"]["result"])

    async def _read(
        self, client: httpx.AsyncClient, match: str, first_ms: int, last_ms: int, raw: "defaultdict[Labels, list[Any]]"
    ) -> None:
        # Prometheus 3 leaves out a range's left edge, Prometheus 2 includes it: one millisecond more is asked for, and
        # what came too much is dropped. The right edge is the time of the query, included by both.
        form = {
            "query": f"{match}[{last_ms - first_ms + 1}ms]",
            "time": f"{last_ms // 1000}.{last_ms % 1000:03d}",
        }
        answer = await client.post("/api/v1/query", data=form)
        if "too many samples" in answer.text[:1000] and answer.is_error and first_ms < last_ms:
            middle_ms = (first_ms + last_ms) // 2
            await self._read(client, match, first_ms, middle_ms, raw)
            await self._read(client, match, middle_ms + 1, last_ms, raw)
            return
        for series in _succeeded(answer).json()["data"]["result"]:
            samples = [
                (timestamp_ms, float(text))
                for seconds, text in series["values"]
                if (timestamp_ms := round(seconds * 1000)) >= first_ms
            ]
            if samples:
                raw[frozenset(series["metric"].items())] += samples


class VictoriaMetricsServer(Receiver):
    """VictoriaMetrics, single node.

    It stores numbers as decimals of about 15 digits: integers below 10^15 come back as they were, 0.1 + 0.2 does not.
    It keeps every repetition of a sample.

    retention: how long it keeps samples, as its flag takes it. What is older it answers 204 to and drops.
    """

    def __init__(self, program: Path, *, retention: str = "100y", extra_flags: Sequence[str] = ()) -> None:
        super().__init__(program, extra_flags=extra_flags)
        self._retention = retention

    async def dropped_as_too_old(self) -> int:
        """How many samples it has dropped because they were older than its retention."""
        async with httpx.AsyncClient(
            base_url=self.query_url, timeout=QUERY_SECONDS, trust_env=False, verify=NO_AUTHORITIES
        ) as client:
            counters = _succeeded(await client.get("/metrics")).text
        counted = re.search(r'^vm_rows_ignored_total\{reason="small_timestamp"\} (\d+)$', counters, re.MULTILINE)
        return int(counted[1]) if counted else 0

    def _flags(self, port: int) -> list[str]:
        return [
            f"-storageDataPath={self.folder / 'data'}",
            f"-retentionPeriod={self._retention}",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-search.latencyOffset=0s",
            "-search.disableCache",
            "-loggerLevel=WARN",
        ]

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        return str(self.folder / "data") in (await client.get("/flags")).text

    async def _read(
        self, client: httpx.AsyncClient, match: str, first_ms: int, last_ms: int, raw: "defaultdict[Labels, list[Any]]"
    ) -> None:
        # What was acknowledged is searchable only after a flush, which otherwise comes within seconds.
        _succeeded(await client.get("/internal/force_flush"))
        form = {
            "match[]": match,
            "start": f"{first_ms // 1000}.{first_ms % 1000:03d}",
            "end": f"{last_ms // 1000}.{last_ms % 1000:03d}",
            "reduce_mem_usage": "1",  # raw blocks: several lines for a series, nothing merged
        }
        async with client.stream("POST", "/api/v1/export", data=form) as answer:
            if answer.is_error:
                await answer.aread()
            _succeeded(answer)
            async for line in answer.aiter_lines():
                series = json.loads(line)
                values = (math.nan if value is None else float(value) for value in series["values"])
                raw[frozenset(series["metric"].items())] += zip(series["timestamps"], values, strict=True)


def new_receiver(name: str, program: Path, *, out_of_order_seconds: int) -> Receiver:
    """The receiver of that name (of RECEIVERS) that takes samples up to `out_of_order_seconds` old."""
    if name.startswith("prometheus"):
        return PrometheusServer(program, out_of_order_seconds=out_of_order_seconds)
    return VictoriaMetricsServer(program)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listened a moment ago."""
    chance = random.SystemRandom()  # not the shared generator: a test that seeds it would get the same port everywhere
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def _known(value: Known | None, otherwise: str) -> Known:
    if value is None:
        raise ReceiverError(otherwise)
    return value


def _succeeded(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        message = f"{answer.request.url} answers {answer.status_code}: {answer.text[:1000]}"
        raise ReceiverError(message)
    return answer
