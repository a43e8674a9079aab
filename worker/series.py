"""Series: what identifies one, and its one serialized form.

A series is identified by its label block: the protobuf bytes of its sorted labels, exactly as a `TimeSeries` message of
remote write 1.0 carries them. The block is made once, when a bucket is captured; the ledger keeps it as the
identity of the series, and a request is built by concatenating blocks and samples.

Pure functions; knows nothing of Cloudflare, of SQLite or of a receiver.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

# Remote write 1.0 specification, "Labels": the names a sender may use.
METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)

_LABELS_FIELD = b"\x0a"  # TimeSeries.labels = 1, length-delimited
_NAME_FIELD = b"\x0a"  # Label.name = 1
_VALUE_FIELD = b"\x12"  # Label.value = 2

# A label may be as long as Cloudflare likes; that of any series seen so far has a few hundred characters.
_MAX_NOTATION_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class MetricMetadata:
    """What is told of a metric beside its samples; every metric here is a gauge.

    help: one sentence.
    unit: base unit such as `bytes`; empty where it counts things.
    """

    help: str
    unit: str


@lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """An unsigned protobuf varint (little-endian base 128). Remembered: a request has the same few again and again."""
    if number < 0:
        message = f"{number} has no unsigned varint"
        raise ValueError(message)
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The varint at `offset` and the offset after it; ValueError where `data` ends in its middle."""
    number = shift = 0
    while True:
        if offset >= len(data):
            message = "the data ends inside a varint"
            raise ValueError(message)
        byte = data[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
        shift += 7


def label_block(name: str, labels: Mapping[str, str]) -> bytes:
    """The identity of the series `name{labels}`: its labels sorted by name and serialized.

    Labels with an empty value are left out, as Prometheus takes them for absent. ValueError for a name
    that remote write 1.0 does not allow.
    """
    if not METRIC_NAME.fullmatch(name):
        message = f"{name!r} is not a metric name: it must match {METRIC_NAME.pattern}"
        raise ValueError(message)
    pairs = {"__name__": _serialized_label("__name__", name)}
    for label, value in labels.items():
        pair = _serialized_label(label, value)
        if label.startswith("__") or not LABEL_NAME.fullmatch(label):
            message = f"{label!r} is not a label name: it must match {LABEL_NAME.pattern} and not start with __"
            raise ValueError(message)
        if value:
            pairs[label] = pair
    # Names are ASCII, whose order is that of their bytes.
    return b"".join([pairs[label] for label in sorted(pairs)])


def parse_label_block(block: bytes) -> dict[str, str]:
    """The labels of a block, `__name__` among them, in their order; ValueError where it is not a label block."""
    labels: dict[str, str] = {}
    offset = 0
    while offset < len(block):
        pair, offset = _read_field(block, offset, _LABELS_FIELD)
        name, middle = _read_field(pair, 0, _NAME_FIELD)
        value, end = _read_field(pair, middle, _VALUE_FIELD)
        if end != len(pair):
            message = "a label has more than a name and a value"
            raise ValueError(message)
        labels[name.decode()] = value.decode()
    return labels


def metric_name(block: bytes) -> str:
    """The name of a block's metric, which nearly always comes first; ValueError where it has none."""
    offset = 0
    while offset < len(block):
        pair, offset = _read_field(block, offset, _LABELS_FIELD)
        name, middle = _read_field(pair, 0, _NAME_FIELD)
        if name == b"__name__":
            return _read_field(pair, middle, _VALUE_FIELD)[0].decode()
    message = "the labels hold no __name__"
    raise ValueError(message)


# The labels of a zone are in every series of it, and most values in many zones: a hit takes a tenth of the time. About
# 300 bytes each, 5 MB.
@lru_cache(maxsize=16_384)
def _serialized_label(label: str, text: str) -> bytes:
    name, value = label.encode(), text.encode()
    pair = _NAME_FIELD + varint(len(name)) + name + _VALUE_FIELD + varint(len(value)) + value
    return _LABELS_FIELD + varint(len(pair)) + pair


def _read_field(data: bytes, offset: int, tag: bytes) -> tuple[bytes, int]:
    if data[offset : offset + 1] != tag:
        message = f"expected field tag {tag.hex()} at byte {offset}"
        raise ValueError(message)
    length, start = read_varint(data, offset + 1)
    end = start + length
    if end > len(data):
        message = f"a field of {length} bytes at byte {offset} is longer than the data"
        raise ValueError(message)
    return data[start:end], end


def notation(labels: Mapping[str, str]) -> str:
    """A series as PromQL writes it, bounded: to be pasted into a query."""
    name = labels.get("__name__", "(a series that cannot be read)")
    pairs = ", ".join(f'{label}="{_escaped(value)}"' for label, value in labels.items() if label != "__name__")
    text = f"{name}{{{pairs}}}" if pairs else name
    return text if len(text) <= _MAX_NOTATION_CHARACTERS else f"{text[: _MAX_NOTATION_CHARACTERS - 1]}…"


def _escaped(value: str) -> str:
    """A label's value as it stands between quotes; nothing in it can move the cursor of a terminal."""
    quoted = value.replace("\\", r"\\").replace('"', r"\"")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in quoted)
