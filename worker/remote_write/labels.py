"""Label blocks taken apart, as a request of remote write 2.0 needs them; remembered from request to request.

Owns the memory of what was taken apart, and its bound. Knows nothing of the messages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from worker.series import parse_label_block, read_varint

MAX_REMEMBERED_BYTES = 8 * 2**20
"""Label blocks that are remembered, bytes together: 8 MiB are some 50,000 series of 160 bytes. What is kept of such a
block takes about 270 bytes more, so all of them 20 MB; some 100 MB if no two of these series shared a label."""


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A name and its value. Two that are equal count as different: compared by identity, they are cheap to look up."""

    name: str
    value: str


class SeriesLabels(NamedTuple):
    """The labels of a series.

    metric: its metric's name, "" where it has none.
    pick:   what a mapping has for its labels, `__name__` among them, in the order of the block.
    """

    metric: str
    pick: Callable[[Mapping[Label, bytes]], tuple[bytes, ...]]


class LabelMemory(dict[bytes, SeriesLabels]):
    """The labels of a block, by `memory[block]`. ValueError where it is not a label block.

    When it is full it forgets everything: unlike forgetting the oldest first, that still helps when more series than it
    holds come round and round in the same order.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._labels: dict[bytes, Label] = {}

    def __missing__(self, block: bytes) -> SeriesLabels:
        self._bytes += len(block)
        if self._bytes > self._max_bytes:
            self.clear()
            self._labels.clear()
            self._bytes = len(block)
        labels = tuple(map(self._label, _cut(block)))
        metric = next((label.value for label in labels if label.name == "__name__"), "")
        remembered = self[block] = SeriesLabels(metric, _picker(labels))
        return remembered

    def _label(self, one_label: bytes) -> Label:
        known = self._labels.get(one_label)
        if known is None:
            [(name, value)] = parse_label_block(one_label).items()
            known = self._labels[one_label] = Label(name, value)
        return known


def _cut(block: bytes) -> Iterator[bytes]:
    """The block in blocks of one label each."""
    start = 0
    while start < len(block):
        length, end = read_varint(block, start + 1)
        end += length
        yield block[start:end]
        start = end


def _picker(labels: Sequence[Label]) -> Callable[[Mapping[Label, bytes]], tuple[bytes, ...]]:
    # `itemgetter` picks faster than any loop, but gives a single item bare.
    return itemgetter(*labels) if len(labels) > 1 else lambda mapping: tuple(mapping[label] for label in labels)


LABELS_OF = LabelMemory(MAX_REMEMBERED_BYTES)
"""The memory of this process, for the requests to all destinations."""
