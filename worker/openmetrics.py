"""OpenMetrics text with timestamps: the format that `promtool` makes blocks of, and that other tools write, too.

Owns how a family, a series and a sample are written, and how a line is read back. Promises that what is written is read
as the same labels, the same timestamp and the same number; only of a NaN the payload is lost, for which the text has no
word. Pure; knows nothing of datasets, files or the ledger.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md: a family is told once (TYPE, UNIT,
HELP) and its samples follow together; `# EOF` ends the text, so that one that was cut off is known by its lack.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import BinaryIO

from worker.series import LABEL_NAME, METRIC_NAME, MetricMetadata, label_block, parse_label_block

END = b"# EOF\n"
"""The last line."""

_LABEL_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

# Every integer below is the shortest text of its float.
_LARGEST_INTEGER = 2.0**53

# A hundred times as long as a line with ten labels of a thousand characters.
_MAX_LINE_BYTES = 2**20

_GZIP = b"\x1f\x8b"
_TOLD = re.compile(rf"# (?:TYPE|HELP|UNIT) {METRIC_NAME.pattern}(?: |$)", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)
_VALUE = re.compile(rf"{_NUMBER.pattern}|[-+]?inf(?:inity)?|nan", re.ASCII | re.IGNORECASE)
_SERIES = re.compile(rf"({METRIC_NAME.pattern})(?:\{{(.*)\}})?", re.ASCII | re.DOTALL)
_PAIR = re.compile(rf"({LABEL_NAME.pattern})=\"((?:[^\"\\]|\\[n\"\\])*)\"(?:,|$)", re.ASCII)
_ESCAPED = re.compile(r"\\(.)")
_MEANT = {"n": "\n", '"': '"', "\\": "\\"}

# What a request can carry (`worker.remote_write.samples`).
_TIMESTAMPS_MS = range(1 << 35, 1 << 42)

# Of what makes no sense, enough to find it.
_SHOWN_CHARACTERS = 60


def family_head(metric: str, metadata: MetricMetadata | None) -> str:
    """The lines before the samples of a metric; every metric here is a gauge."""
    lines = [f"# TYPE {metric} gauge\n"]
    if metadata is not None:
        # A unit that the name does not end in is a mistake to a strict reader.
        if metadata.unit and metric.endswith(f"_{metadata.unit}"):
            lines.append(f"# UNIT {metric} {metadata.unit}\n")
        lines.append(f"# HELP {metric} {metadata.help.translate(_LABEL_ESCAPES)}\n")
    return "".join(lines)


def series_text(block: bytes) -> tuple[str, str]:
    """A label block (`worker.series`) as its metric's name and what stands between the braces."""
    labels = parse_label_block(block)
    metric = labels.pop("__name__")
    return metric, ",".join(f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels.items())


def number_text(value: float) -> str:
    """A sample's value: the shortest text that is read as the same float64."""
    if value.is_integer() and abs(value) < _LARGEST_INTEGER:
        return str(int(value)) if value or math.copysign(1.0, value) > 0 else "-0"
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def timestamp_text(timestamp_ms: int) -> str:
    """Unix milliseconds as the seconds that stand behind a value."""
    seconds, rest = divmod(timestamp_ms, 1000)
    return f"{seconds}.{rest:03d}" if rest else str(seconds)


@dataclass(frozen=True, slots=True)
class Sample:
    """A line that is a sample: label block (`worker.series`), value, unix milliseconds."""

    block: bytes
    value: float
    timestamp_ms: int


def read(stream: BinaryIO) -> Iterator[tuple[int, Sample | str]]:
    """Every sample of a text with the number of its line, and what is wrong with a line instead of its sample.

    What is wrong with the whole, such as that it is cut off, is told of its last line. Nothing comes after something
    that makes no sense of what follows.
    """
    number = 0
    ended_at = None
    while line := stream.readline(_MAX_LINE_BYTES):
        number += 1
        if number == 1 and line.startswith(_GZIP):
            yield number, "the file is compressed; `gzip -dc FILE | cfrw import -` reads it"
            return
        if ended_at is not None:
            yield number, f"there is more behind # EOF, which stands in line {ended_at}; one text ends there"
            return
        try:
            text = _text(line)
            if not text.startswith("#"):
                yield number, _sample(text)
            elif text == "# EOF":
                ended_at = number
            elif not _TOLD.match(text):
                yield number, "is no line of OpenMetrics: behind # stand TYPE, HELP, UNIT or EOF"
        except ValueError as error:
            yield number, str(error)
            if len(line) == _MAX_LINE_BYTES:
                return
    if ended_at is None:
        yield number, "the text does not end in # EOF: it is cut off, or no OpenMetrics"


def _text(line: bytes) -> str:
    if not line.endswith(b"\n"):
        what = "is too long" if len(line) == _MAX_LINE_BYTES else "has no end"
        message = f"the line {what}"
        raise ValueError(message)
    try:
        return line[:-1].decode()
    except UnicodeDecodeError:
        message = "is not UTF-8"
        raise ValueError(message) from None


def _sample(text: str) -> Sample:
    # Neither value nor timestamp has a space in it, which the value of a label may have.
    series, *numbers = text.rsplit(" ", 2)
    if len(numbers) != 2 or not _VALUE.fullmatch(numbers[0]) or not _NUMBER.fullmatch(numbers[1]):
        message = "is no sample with a timestamp: SERIES VALUE SECONDS, with one space between"
        raise ValueError(message)
    return Sample(_block(series), float(numbers[0]), _milliseconds(numbers[1]))


# Samples of a series follow each other.
@lru_cache(maxsize=256)
def _block(series: str) -> bytes:
    found = _SERIES.fullmatch(series)
    if found is None:
        message = f'{_short(series)} is no series: NAME{{LABEL="VALUE",...}}'
        raise ValueError(message)
    metric, inner = found.groups("")
    labels: dict[str, str] = {}
    end = 0
    while end < len(inner):
        pair = _PAIR.match(inner, end)
        if pair is None or pair[1] in labels:
            what = "is there twice" if pair else 'is no label: NAME="VALUE", with \\\\, \\" and \\n escaped'
            message = f"{_short(pair[1] if pair else inner[end:])} {what}"
            raise ValueError(message)
        labels[pair[1]] = _ESCAPED.sub(lambda escaped: _MEANT[escaped[1]], pair[2])
        end = pair.end()
    return label_block(metric, labels)


@lru_cache(maxsize=4096)
def _milliseconds(text: str) -> int:
    milliseconds = Decimal(text).scaleb(3)
    if milliseconds != milliseconds.to_integral_value() or int(milliseconds) not in _TIMESTAMPS_MS:
        message = f"{text} is no time between 1971 and 2109: unix seconds are meant, and no part of a millisecond"
        raise ValueError(message)
    return int(milliseconds)


def _short(text: str) -> str:
    printable = "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:_SHOWN_CHARACTERS]
    )
    return repr(printable if len(text) <= _SHOWN_CHARACTERS else f"{printable}…")
