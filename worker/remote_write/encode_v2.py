"""The body of a remote write 2.0 request, `io.prometheus.write.v2.Request`, by concatenation.

Every string of the request stands in its table of symbols once, and a label is two numbers in that table. They are the
request's own; what is remembered between requests is which labels a series has (`worker.remote_write.labels`).
"""

from collections.abc import Mapping, Sequence
from operator import add

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


def write_request_v2(
    blocks: Sequence[bytes], samples: Sequence[bytes], metadata: Mapping[str, MetricMetadata]
) -> bytes:
    """The message of these series, given as their label blocks and their serialized samples.

    Every series says that it is a gauge, and has help and unit where they are given for its metric.
    """
    symbols = _Symbols()
    references = _References(symbols)
    metadata_of = _Metadata(symbols, metadata)
    known = list(map(LABELS_OF.__getitem__, blocks))
    tails = [metadata_of[labels.metric] for labels in known]
    labels_refs = [b"".join(labels.pick(references)) for labels in known]
    heads = list(map(Prefixes(_LABELS_REFS).__getitem__, map(len, labels_refs)))
    pieces = [b""] * (5 * len(blocks))
    lengths = map(add, map(add, map(len, heads), map(len, labels_refs)), map(add, map(len, samples), map(len, tails)))
    pieces[0::5] = map(Prefixes(_TIME_SERIES).__getitem__, lengths)
    pieces[1::5] = heads
    pieces[2::5] = labels_refs
    pieces[3::5] = samples
    pieces[4::5] = tails
    return symbols.serialized() + b"".join(pieces)


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
