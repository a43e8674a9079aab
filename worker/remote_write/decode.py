"""What a receiver reads in a remote write request, and every rule of the specifications that it can check there.

The strictest reader there is: the receivers of the field overlook, or silently drop, much of what is an error here. So
is some of what the specifications only advise against: a series without `__name__`, a label name that begins with `__`,
two TimeSeries of one series, and, in version 2.0, metadata without a type.

Used by the built-in receiver and by tests; it reads with protobuf's own parser, so that it agrees with `encode` on
nothing but the specification. Delivery never comes here.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar, assert_never

import snappy  # type: ignore[import-untyped]  # ships no types
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import DecodeError

from worker.config import Message
from worker.remote_write.proto import remote_write_v1_pb2 as v1
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.series import LABEL_NAME, METRIC_NAME, MetricMetadata, read_varint

MAX_BODY_BYTES = 32 * 2**20
"""Largest body that is unpacked: 32 MiB, what Prometheus and VictoriaMetrics take."""

Labels = tuple[tuple[str, str], ...]
"""The identity of a series as it was sent: pairs of name and value, sorted by name."""


_AnyRequest = TypeVar("_AnyRequest", v1.WriteRequest, v2.Request)


class InvalidRequestError(Exception):
    """A request that breaks a rule of remote write; the text says which, and where."""


@dataclass(frozen=True, slots=True)
class ReceivedSeries:
    """One TimeSeries of a request.

    samples: pairs of timestamp (unix milliseconds) and value, the oldest first, at least one.
    """

    labels: Labels
    samples: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Reading:
    """What a request holds.

    series:       the TimeSeries that break no rule, in their order.
    metadata:     by metric name, of what breaks no rule.
    sample_count: of all TimeSeries.
    broken_rules: which, and where.
    """

    series: list[ReceivedSeries] = field(default_factory=list)
    metadata: dict[str, MetricMetadata] = field(default_factory=dict)
    sample_count: int = 0
    broken_rules: list[str] = field(default_factory=list)


def read_write_request(body: bytes, message: Message = Message.V1) -> list[ReceivedSeries]:
    """The series of a compressed request in their order. InvalidRequestError where it is not as it has to be."""
    reading = read_request(body, message)
    for broken_rule in reading.broken_rules:
        raise InvalidRequestError(broken_rule)
    return reading.series


def read_request(body: bytes, message: Message) -> Reading:
    """What a compressed request holds, and what is wrong with the rest of it.

    InvalidRequestError where nothing of it can be told from anything else.
    """
    unpacked = _unpacked(body)
    match message:
        case Message.V1:
            return _read_v1(_parsed(v1.WriteRequest(), unpacked))
        case Message.V2:
            return _read_v2(_parsed(v2.Request(), unpacked))
        case _:
            assert_never(message)


def shown(labels: Labels) -> str:
    """The series as people write it, such as `up{job="x"}`."""
    name = dict(labels).get("__name__", "")
    return name + "{" + ", ".join(f'{key}="{value}"' for key, value in labels if key != "__name__") + "}"


def bits(value: float) -> bytes:
    """The eight bytes of a value: by them NaN equals itself and -0.0 is not 0.0."""
    return struct.pack("<d", value)


def _unpacked(body: bytes) -> bytes:
    try:
        # The block format starts with the length of what is packed, so that a bomb is known before it goes off.
        length, _ = read_varint(body, 0)
        unpacked: bytes | None = snappy.uncompress(body) if length <= MAX_BODY_BYTES else None
    except (ValueError, snappy.UncompressError) as error:
        msg = "the body is not in Snappy's block format"
        raise InvalidRequestError(msg) from error
    if unpacked is None:
        msg = f"the body unpacks to {length} bytes, more than {MAX_BODY_BYTES}"
        raise InvalidRequestError(msg)
    return unpacked


def _parsed(request: _AnyRequest, unpacked: bytes) -> _AnyRequest:
    name = request.DESCRIPTOR.full_name
    try:
        request.ParseFromString(unpacked)
    except DecodeError as error:
        msg = f"the body is not a {name}: {error}"
        raise InvalidRequestError(msg) from None
    size = request.ByteSize()
    request.DiscardUnknownFields()
    if request.ByteSize() != size:
        # A request of another version reads as an empty one of this, with unknown fields.
        msg = f"the body has fields that {name} does not have"
        raise InvalidRequestError(msg)
    return request


def _read_v1(request: v1.WriteRequest) -> Reading:
    reader = _Reader()
    for series in request.timeseries:
        labels = tuple((label.name, label.value) for label in series.labels)
        reader.take(labels, series.samples, _broken_name_rules(labels))
    for described in request.metadata:
        metric = described.metric_family_name
        if not metric:
            reader.refuse("there is metadata without a metric")
        elif metric in reader.reading.metadata:
            reader.refuse(f"{metric} has metadata twice")
        for broken_rule in _broken_type_rules(described.type, v1.MetricMetadata.MetricType):
            reader.refuse(f"{metric}: {broken_rule}")
        reader.reading.metadata[metric] = MetricMetadata(described.help, described.unit)
    return reader.reading


def _read_v2(request: v2.Request) -> Reading:
    symbols = tuple(request.symbols)
    if not symbols or symbols[0]:
        msg = "the first symbol is not the empty string"
        raise InvalidRequestError(msg)
    if len(set(symbols)) < len(symbols):
        msg = "a symbol occurs twice"
        raise InvalidRequestError(msg)
    reader = _Reader()
    for index, series in enumerate(request.timeseries):
        metadata = series.metadata
        highest = max(*series.labels_refs, metadata.help_ref, metadata.unit_ref, 0)
        if highest >= len(symbols) or len(series.labels_refs) % 2:
            reader.reading.sample_count += len(series.samples)
            reader.refuse(
                f"TimeSeries {index}: there is no symbol {highest}"
                if highest >= len(symbols)
                else f"TimeSeries {index}: a label has a name and no value"
            )
            continue
        strings = iter([symbols[reference] for reference in series.labels_refs])
        labels = tuple(zip(strings, strings, strict=True))
        if reader.take(labels, series.samples, _broken_type_rules(metadata.type, v2.Metadata.MetricType)):
            known = MetricMetadata(symbols[metadata.help_ref], symbols[metadata.unit_ref])
            reader.reading.metadata[dict(labels)["__name__"]] = known
    return reader.reading


class _Reader:
    """A request while it is read: the rules that both versions have in common."""

    def __init__(self) -> None:
        self.reading = Reading()
        self._known: set[Labels] = set()

    def refuse(self, broken_rule: str) -> None:
        self.reading.broken_rules.append(broken_rule)

    def take(self, labels: Labels, samples: Sequence[v1.Sample | v2.Sample], more_broken_rules: Iterable[str]) -> bool:
        """Add a TimeSeries if it breaks no rule; tell whether it did not."""
        self.reading.sample_count += len(samples)
        broken_rules = [
            f"{shown(labels)}: {broken_rule}"
            for broken_rule in (*_broken_label_rules(labels), *more_broken_rules, *_broken_sample_rules(samples))
        ]
        if labels in self._known:
            broken_rules.append(f"{shown(labels)} has two TimeSeries")
        self._known.add(labels)
        if broken_rules:
            self.reading.broken_rules += broken_rules
            return False
        received = tuple((sample.timestamp, sample.value) for sample in samples)
        self.reading.series.append(ReceivedSeries(labels, received))
        return True


def _broken_label_rules(labels: Labels) -> Iterator[str]:
    names = [name.encode() for name, _ in labels]
    if names != sorted(names):
        yield "its labels are not sorted by name"
    if len(set(names)) < len(names):
        yield "a label occurs twice"
    if "__name__" not in dict(labels):
        yield "it has no __name__"
    for name, value in labels:
        if not name or not value:
            yield "a label has an empty name or value"
        elif name.startswith("__") and name != "__name__":
            yield f"{name!r} is reserved"


def _broken_name_rules(labels: Labels) -> Iterator[str]:
    """What version 1.0 alone asks of names: in 2.0 they may be any text."""
    for name, value in labels:
        if name == "__name__":
            if not METRIC_NAME.fullmatch(value):
                yield f"{value!r} is not a metric name"
        elif not LABEL_NAME.fullmatch(name):
            yield f"{name!r} is not a label name"


def _broken_sample_rules(samples: Sequence[v1.Sample | v2.Sample]) -> Iterator[str]:
    if not samples:
        yield "it has no samples"
    for earlier, later in pairwise(samples):
        if later.timestamp <= earlier.timestamp:
            yield f"a sample of {later.timestamp} ms follows one of {earlier.timestamp} ms"


def _broken_type_rules(number: int, types: EnumTypeWrapper) -> Iterator[str]:
    if number not in types.values():
        yield f"its metadata has the type {number}, which there is not"
    elif number == 0:
        yield "its metadata has no type"
