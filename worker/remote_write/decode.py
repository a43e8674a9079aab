"""What a receiver reads in a remote write 1.0 request, and every rule of the specification that it can check there.

The strictest reader there is: the receivers of the field overlook, or silently drop, much of what is an error here.
Used by the built-in receiver and by tests; it reads with protobuf's own parser, so that it agrees with `encode` on
nothing but the specification. Delivery never comes here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import snappy  # type: ignore[import-untyped]  # ships no types
from google.protobuf.message import DecodeError

from worker.remote_write.proto.remote_write_v1_pb2 import TimeSeries, WriteRequest
from worker.series import LABEL_NAME, METRIC_NAME, read_varint

MAX_BODY_BYTES = 32 * 2**20
"""Largest body that is unpacked: 32 MiB, what Prometheus and VictoriaMetrics take."""

Labels = tuple[tuple[str, str], ...]
"""The identity of a series as it was sent: pairs of name and value, sorted by name."""


class InvalidRequestError(Exception):
    """A request that breaks a rule of remote write 1.0; the text says which, and where."""


@dataclass(frozen=True, slots=True)
class ReceivedSeries:
    """One TimeSeries of a request.

    samples: pairs of timestamp (unix milliseconds) and value, the oldest first, at least one.
    """

    labels: Labels
    samples: tuple[tuple[int, float], ...]


def read_write_request(body: bytes) -> list[ReceivedSeries]:
    """The series of a compressed request in their order. InvalidRequestError where it is not as it has to be."""
    unpacked = _unpacked(body)
    request = WriteRequest()
    try:
        request.ParseFromString(unpacked)
    except DecodeError as error:
        message = f"the body is not a prometheus.WriteRequest: {error}"
        raise InvalidRequestError(message) from None
    for broken_rule in _broken_rules(request):
        raise InvalidRequestError(broken_rule)
    return [
        ReceivedSeries(_labels(series), tuple((sample.timestamp, sample.value) for sample in series.samples))
        for series in request.timeseries
    ]


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
        message = "the body is not in Snappy's block format"
        raise InvalidRequestError(message) from error
    if unpacked is None:
        message = f"the body unpacks to {length} bytes, more than {MAX_BODY_BYTES}"
        raise InvalidRequestError(message)
    return unpacked


def _broken_rules(request: WriteRequest) -> Iterator[str]:
    size = request.ByteSize()
    request.DiscardUnknownFields()
    if request.ByteSize() != size:
        # A request of another version reads as an empty one of this, with unknown fields.
        yield "the body has fields that a prometheus.WriteRequest has not"
    known: set[Labels] = set()
    for series in request.timeseries:
        labels = _labels(series)
        if labels in known:
            yield f"{shown(labels)} has two TimeSeries"
        known.add(labels)
        for broken_rule in (*_broken_label_rules(labels), *_broken_sample_rules(series)):
            yield f"{shown(labels)}: {broken_rule}"


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
        elif name == "__name__":
            if not METRIC_NAME.fullmatch(value):
                yield f"{value!r} is not a metric name"
        elif name.startswith("__") or not LABEL_NAME.fullmatch(name):
            yield f"{name!r} is not a label name"


def _broken_sample_rules(series: TimeSeries) -> Iterator[str]:
    if not series.samples:
        yield "it has no samples"
    for earlier, later in pairwise(series.samples):
        if later.timestamp <= earlier.timestamp:
            yield f"a sample of {later.timestamp} ms follows one of {earlier.timestamp} ms"


def _labels(series: TimeSeries) -> Labels:
    return tuple((label.name, label.value) for label in series.labels)
