"""What a destination has stored, read back over its query API.

Owns the selectors, the two ways of asking, and what their answers mean. Prometheus, Mimir, Cortex and Thanos are asked
by an instant query of a range selector, whose answer is raw samples; VictoriaMetrics by `/api/v1/export`, which is made
for that there. The first answer shows which it is: nobody else answers at that path with a stream of JSON lines.

Promises: every sample that the selector means, between two instants that are both included, or the reason why not;
never a part of them. What is too much for a receiver is asked for in halves, and `most_samples` remembers how much is
not. Bounded time and memory for every request, and no secret in a reason.
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec

from worker.clock import Clock
from worker.config import DestinationSettings
from worker.config.endpoints import shown_url
from worker.errors import ConfigError, Mistake
from worker.remote_write.endpoint import Endpoint, Reply
from worker.remote_write.exchange import usable_url
from worker.remote_write.verdict import Fate, Later, printable, retry_after_seconds

Labels: TypeAlias = frozenset[tuple[str, str]]
"""A series by its labels, as (name, value) pairs, `__name__` among them."""

# 5,000 samples, each the only one of its series, are 1.5 MB of JSON. To read, know and compare them takes 0.1 s of CPU,
# during which nothing else is done.
_MOST_SAMPLES = 5_000

# What a receiver cannot even tell of so few is not about their number.
_FEWEST_SAMPLES = 100

# Twenty times what is asked for at once.
_BODY_BYTES = 32 * 2**20

# A narrower stretch is one window: it holds one sample of each series.
_NARROWEST_MS = 60_000

# Where no answer comes in time, an eighth of it is the last attempt: each takes as long as the time limit.
_MOST_TIMEOUTS = 3

# What is left for the way there and back when a receiver uses up all of the time limit.
_OWN_SHARE = 0.9

# VictoriaMetrics keeps decimals: integers below 2^53 as they are, fractions to 12 digits (lib/decimal: 1e12).
_DECIMAL_ERROR = 2e-12

# Enough to see which metrics and zones it is about.
_MOST_SELECTOR_CHARACTERS = 200

# What receivers answer to what is beyond one of their limits; some, to what they do not understand, too.
_LIMITS = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True)
class Selector:
    """Which series are read.

    metrics: names; at least one.
    labels:  by name of a label the values that it may have.
    """

    metrics: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        pairs = [_matcher("__name__", self.metrics), *(_matcher(*each) for each in sorted(self.labels.items()))]
        return f"{{{','.join(pairs)}}}"


@dataclass(frozen=True, slots=True)
class Found:
    """What was read.

    series:         samples as (unix milliseconds, value), ascending; one that is stored twice is there twice.
    relative_error: how far a value may be off by the way the receiver keeps numbers; 0 where every bit counts.
    """

    series: Mapping[Labels, list[tuple[int, float]]]
    relative_error: float = 0.0


@dataclass(frozen=True, slots=True)
class _TooMuch:
    """Less may be told.

    timed_out: whether that took all of the time limit to find out.
    """

    reason: str
    status: int | None = None
    timed_out: bool = False


class ReadBack(Endpoint):
    """Reads from the query API of one destination. ConfigError as of `query_url`, and of an Endpoint."""

    def __init__(self, settings: DestinationSettings, clock: Clock) -> None:
        super().__init__(settings, clock, url=query_url(settings), body_bytes=_BODY_BYTES)
        self.most_samples = _MOST_SAMPLES
        """How many samples should be asked for at once; fewer where the receiver has refused more."""
        self._exports: bool | None = None

    async def read(self, selector: Selector, first_ms: int, last_ms: int) -> Found | Later:
        """Every sample of the selected series from `first_ms` to `last_ms`, unix milliseconds, both included."""
        return await self._read(selector, first_ms, last_ms, halvings=0, most=self.most_samples)

    async def _read(
        self, selector: Selector, first_ms: int, last_ms: int, *, halvings: int, most: int
    ) -> Found | Later:
        found = await self._ask(selector, first_ms, last_ms)
        if not isinstance(found, _TooMuch):
            return found
        halves = _halves(selector, first_ms, last_ms)
        if not halves or (found.timed_out and halvings == _MOST_TIMEOUTS):
            fate = Fate.PARK if found.status in _LIMITS else Fate.RETRY
            return Later(f"{found.reason}; asked for {str(selector)[:_MOST_SELECTOR_CHARACTERS]}", fate, found.status)
        self.most_samples = max(_FEWEST_SAMPLES, min(self.most_samples, most >> halvings + 1))
        series: dict[Labels, list[tuple[int, float]]] = {}
        relative_error = 0.0
        for half in halves:
            part = await self._read(*half, halvings=halvings + 1, most=most)
            if isinstance(part, Later):
                return part
            relative_error = part.relative_error
            for labels, samples in part.series.items():
                series.setdefault(labels, []).extend(samples)
        return Found(series, relative_error)

    async def _ask(self, selector: Selector, first_ms: int, last_ms: int) -> Found | Later | _TooMuch:
        if self._exports is not False:
            form = {"match[]": str(selector), "start": _seconds(first_ms), "end": _seconds(last_ms)}
            reply = await self._posted(form, "/api/v1/export")
            if self._exports or not isinstance(reply, Reply) or _is_lines(reply) or _knows_the_path(reply):
                found = self._found(reply, _exported)
                self._exports = isinstance(found, Found) or self._exports
                return found
        form = {
            # Prometheus 3 leaves out a range's left edge, Prometheus 2 includes it: one millisecond more is asked for,
            # and what came too much is dropped.
            "query": f"{selector}[{last_ms - first_ms + 1}ms]",
            "time": _seconds(last_ms),
            "timeout": f"{self._settings.timeout_seconds * 1000 * _OWN_SHARE:.0f}ms",
            "partial_response": "false",  # Thanos: an error is better than a part
            "nocache": "1",
        }
        found = self._found(await self._posted(form, "/api/v1/query"), _queried)
        if isinstance(found, Found):
            self._exports = False
            kept = {
                labels: samples
                for labels, all_samples in found.series.items()
                if (samples := [sample for sample in all_samples if sample[0] >= first_ms])
            }
            return replace(found, series=kept)
        return found

    async def _posted(self, form: Mapping[str, str], below: str) -> Reply | Later | _TooMuch:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cache-Control": "no-store",
            "X-Read-Consistency": "strong",  # Mimir: read what was written
        }
        started = asyncio.get_running_loop().time()
        reply = await self._post(urlencode(form).encode(), headers, below=below)
        if isinstance(reply, Later):
            took = asyncio.get_running_loop().time() - started
            is_over = reply.fate is Fate.RETRY and took >= self._settings.timeout_seconds * _OWN_SHARE
            return _TooMuch(reply.reason, timed_out=True) if is_over else reply
        return reply

    def _found(
        self, reply: Reply | Later | _TooMuch, parse: Callable[[bytes], Found | Later]
    ) -> Found | Later | _TooMuch:
        if not isinstance(reply, Reply):
            return reply
        answer = reply.answer
        where = f"HTTP {answer.status} from {shown_url(str(self._url))}"
        if 200 <= answer.status < 300 and not answer.whole:
            return _TooMuch(f"{where}: the answer breaks off, or is larger than {_BODY_BYTES:,} bytes", answer.status)
        if 200 <= answer.status < 300:
            return _parsed(reply, parse, where)
        said = reply.text or "no reason was given"
        if answer.status in {*_LIMITS, 504} or (answer.status == 503 and "timed out" in said):
            return _TooMuch(f"{where}: {said}", answer.status)
        advice = _ADVICE.get(answer.status, "")
        if 300 <= answer.status < 400:
            advice, said = "it redirects, and redirects are not followed: correct query_url", ""
        return Later(
            f"{where}: {'. '.join(filter(None, (advice, said)))}",
            _fate(answer.status),
            answer.status,
            retry_after_seconds(
                answer.headers.get("retry-after"), self._clock.now(), self._settings.queue.max_retry_after_seconds
            ),
        )


def _parsed(reply: Reply, parse: Callable[[bytes], Found | Later], where: str) -> Found | Later:
    try:
        found = parse(reply.answer.body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError, RecursionError):
        reason = f"{where} is no answer of a query API: check query_url. It begins: {reply.text[:100]}"
        return Later(reason, Fate.PARK, reply.answer.status)
    if isinstance(found, Later):
        shown = reply.mask(found.reason.encode()).decode(errors="replace")
        return replace(found, reason=printable(f"{where}: {shown}"))
    return found


_ADVICE = {
    401: "the query API does not accept the credentials: it is asked with those that are written with",
    403: "the query API does not let these credentials read: check their rights and the tenant",
    404: "there is no query API: check query_url, which is what stands in front of /api/v1/query",
    405: "there is no query API: check query_url, which is what stands in front of /api/v1/query",
}


def _fate(status: int) -> Fate:
    if status in {429, 529}:
        return Fate.RATE_LIMITED
    return Fate.RETRY if status in {408, 425} or status >= 500 else Fate.PARK


def query_url(settings: DestinationSettings) -> httpx.URL:
    """The base URL of the destination's query API: `query_url`, or what `url` says where that leaves no doubt.

    ConfigError where neither does.
    """
    setting = f"remote_write {settings.name}: query_url"
    if settings.query_url is not None:
        return usable_url(settings.query_url, setting, shown_url(settings.query_url))
    url = usable_url(settings.url, f"remote_write {settings.name}: url", settings.shown_url)
    path = urlsplit(settings.url).path.rstrip("/")
    # Receivers that are several programs take writes and queries at different places.
    for end, base in () if "/insert/" in path else _BASES:
        if path.endswith(end):
            return url.copy_with(path=path.removesuffix(end) + base or "/")
    problem = (
        f"is required to read back, as {settings.shown_url} does not tell it: what stands in front of /api/v1/query, "
        "such as http://prometheus:9090, or http://vmselect:8481/select/0/prometheus"
    )
    raise ConfigError([Mistake(setting, None, problem)])


_BASES = (
    ("/api/v1/write", ""),  # Prometheus, VictoriaMetrics
    ("/api/v1/remote_write", ""),  # Amazon's
    ("/api/v1/push", "/prometheus"),  # Mimir, Cortex
    ("/api/prom/push", "/api/prom"),  # Grafana Cloud, Cortex of old
)


def _matcher(label: str, values: tuple[str, ...]) -> str:
    if len(values) == 1:
        return f"{label}={json.dumps(values[0], ensure_ascii=False)}"
    return f"{label}=~{json.dumps('|'.join(map(re.escape, values)), ensure_ascii=False)}"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _halves(selector: Selector, first_ms: int, last_ms: int) -> tuple[tuple[Selector, int, int], ...]:
    """The same in two: by zones, by time down to a window, then by metrics; nothing where it is the least already."""
    label = max(selector.labels, key=lambda name: len(selector.labels[name]), default="")
    values = selector.labels.get(label, ())
    if half := len(values) // 2:
        some_labels = ({**selector.labels, label: some} for some in (values[:half], values[half:]))
        return tuple((replace(selector, labels=labels), first_ms, last_ms) for labels in some_labels)
    if last_ms - first_ms >= _NARROWEST_MS:
        middle_ms = (first_ms + last_ms) // 2
        return (selector, first_ms, middle_ms), (selector, middle_ms + 1, last_ms)
    if half := len(selector.metrics) // 2:
        names = selector.metrics[:half], selector.metrics[half:]
        return tuple((replace(selector, metrics=some), first_ms, last_ms) for some in names)
    return ()


class _Matrix(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct):
    result: list[_Matrix]
    result_type: Literal["matrix"] = msgspec.field(name="resultType")


class _Answer(msgspec.Struct):
    status: Literal["success"]
    data: _Data
    warnings: list[str] = []


class _Line(msgspec.Struct):
    metric: dict[str, str]
    values: list[float | str | None]
    timestamps: list[int]


def _knows_the_path(reply: Reply) -> bool:
    """Whether an answer without samples is about the request, and not about a path that does not exist."""
    return reply.answer.status in {401, 413, 422, 429} or reply.answer.status >= 500


def _is_lines(reply: Reply) -> bool:
    return reply.answer.headers.get("content-type", "").startswith("application/stream+json")


def _queried(body: bytes) -> Found | Later:
    answer = msgspec.json.decode(body, type=_Answer)
    if answer.warnings:
        return Later(f"the answer may be a part: {answer.warnings[0][:200]}")
    return Found(
        {
            frozenset(series.metric.items()): [(round(at * 1000), float(text)) for at, text in series.values]
            for series in answer.data.result
        }
    )


def _exported(body: bytes) -> Found:
    series: dict[Labels, list[tuple[int, float]]] = {}
    for line in _lines(body):
        values = (math.nan if value is None else float(value) for value in line.values)
        series.setdefault(frozenset(line.metric.items()), []).extend(zip(line.timestamps, values, strict=True))
    for samples in series.values():
        samples.sort(key=lambda sample: sample[0])
    return Found(series, _DECIMAL_ERROR)


def _lines(body: bytes) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    return (decoder.decode(line) for line in body.split(b"\n") if line)
