"""The body of a remote write 2.0 request, `io.prometheus.write.v2.Request`, by concatenation.

Every string of the request stands in its table of symbols once, and a label is two numbers in that table. They are the
request's own. What is remembered between requests is which labels a series has (`worker.remote_write.labels`), and all
but the samples of requests that had the same series: catching up, the windows of some zones come round and round.
"""

from collections.abc import Mapping, Sequence
from operator import add
from typing import NamedTuple

from worker.remote_write.fields import Prefixes, field
from worker.remote_write.labels import LABELS_OF, Label
from worker.series import MetricMetadata, varint

_SYMBOL = b"\x22"  # Request.symbols = 4
_TIME_SERIES = b"\x2a"  # Request.timeseries = 5
_LABELS_REFS = b"\x0a"  # TimeSeries.labels_refs = 1, packed
_METADATA = b"\x2a"  # TimeSeries.metadata = 5
_TYPE_GAUGE = b"\x08\x02"  # Metadata.type = 1, a varint: METRIC_TYPE_GAUGE
_HELP_REF = b"\x18"  # Metadata.help_ref = 3, a varint
_UNIT_REF = b"\x20"  # Metadata.unit_ref = 4, a varint

_NOTHING = MetricMetadata("", "")

# Series of remembered frames, together: with 130 bytes for each, and 160 of its label block where nobody else keeps
# that, they are 15 MB at most.
_MAX_REMEMBERED_SERIES = 50_000


def write_request_v2(
    blocks: Sequence[bytes], samples: Sequence[bytes], metadata: Mapping[str, MetricMetadata]
) -> bytes:
    """The message of these series, given as their label blocks and their serialized samples.

    Every series says that it is a gauge, and has help and unit where they are given for its metric.
    """
    frame = _FRAMES.around(tuple(blocks), metadata)
    pieces = [frame.symbols] * (1 + 4 * len(blocks))
    pieces[1::4] = map(Prefixes(_TIME_SERIES).__getitem__, map(add, frame.lengths, map(len, samples)))
    pieces[2::4] = frame.heads
    pieces[3::4] = samples
    pieces[4::4] = frame.tails
    return b"".join(pieces)


class _Frame(NamedTuple):
    """All of a request but its samples, and the lengths of series that depend on them.

    metadata: that it was made with.
    symbols:  the table.
    heads:    of each series its labels, in front of its samples.
    tails:    of each series its metadata, behind its samples.
    lengths:  of head and tail together.
    """

    metadata: Mapping[str, MetricMetadata]
    symbols: bytes
    heads: list[bytes]
    tails: list[bytes]
    lengths: list[int]


class _Frames:
    """Frames by their label blocks: request after request tends to have the same series, in the same order.

    When it is full it forgets everything, as `LabelMemory` does.
    """

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._series = 0
        self._frames: dict[tuple[bytes, ...], _Frame] = {}

    def around(self, blocks: tuple[bytes, ...], metadata: Mapping[str, MetricMetadata]) -> _Frame:
        """The frame of these series; `metadata` is known by its identity, and must not change."""
        known = self._frames.get(blocks)
        if known is not None and known.metadata is metadata:
            return known
        self._series += len(blocks) if known is None else 0
        if self._series > self._max_series:
            self._frames.clear()
            self._series = len(blocks)
        frame = self._frames[blocks] = _frame(blocks, metadata)
        return frame


_FRAMES = _Frames(_MAX_REMEMBERED_SERIES)


def _frame(blocks: Sequence[bytes], metadata: Mapping[str, MetricMetadata]) -> _Frame:
    symbols = _Symbols()
    references = _References(symbols)
    metadata_of = _Metadata(symbols, metadata)
    known = list(map(LABELS_OF.__getitem__, blocks))
    tails = [metadata_of[labels.metric] for labels in known]
    labels_refs = [b"".join(labels.pick(references)) for labels in known]
    heads = list(map(add, map(Prefixes(_LABELS_REFS).__getitem__, map(len, labels_refs)), labels_refs))
    lengths = list(map(add, map(len, heads), map(len, tails)))
    return _Frame(metadata, symbols.serialized(), heads, tails, lengths)


class _Symbols(dict[str, int]):
    """The number of each string in the table, which grows by every string that is looked up; "" is 0."""

    def __init__(self) -> None:
        super().__init__({"": 0})

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number

    def serialized(self) -> bytes:
        prefixes = Prefixes(_SYMBOL)
        texts = [text.encode() for text in self]
        return b"".join([piece for text in texts for piece in (prefixes[len(text)], text)])


class _References(dict[Label, bytes]):
    """The two references of a label."""

    def __init__(self, symbols: _Symbols) -> None:
        super().__init__()
        self._symbols = symbols

    def __missing__(self, label: Label) -> bytes:
        # The name's number is taken before the value's.
        references = self[label] = varint(self._symbols[label.name]) + varint(self._symbols[label.value])
        return references


class _Metadata(dict[str, bytes]):
    """The metadata field of every series of a metric."""

    def __init__(self, symbols: _Symbols, metadata: Mapping[str, MetricMetadata]) -> None:
        super().__init__()
        self._symbols = symbols
        self._metadata = metadata

    def __missing__(self, metric: str) -> bytes:
        known = self._metadata.get(metric, _NOTHING)
        content = _TYPE_GAUGE
        if known.help:
            content += _HELP_REF + varint(self._symbols[known.help])
        if known.unit:
            content += _UNIT_REF + varint(self._symbols[known.unit])
        serialized = self[metric] = field(_METADATA, content)
        return serialized
