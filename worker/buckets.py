"""Windows and buckets: which slices of time exist, when one is final, and what was captured in it.

All times are UTC. A window is half-open, [start, start + width), and aligned: its start is a multiple of its width
since the unix epoch, which is how Cloudflare cuts its own buckets (an hour starts at the full hour, a day at midnight).

Pure values and functions; knows nothing of Cloudflare, of SQLite or of a receiver.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class SampleTimestamp(StrEnum):
    """Which instant of its window a sample carries."""

    START = "start"
    """The window's start, as Cloudflare labels its own buckets."""

    END = "end"
    """One millisecond before the window's end: never in the future and still inside the window, for a receiver that
    refuses what is older than about an hour."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open, aligned slice of time.

    start:         unix seconds, a multiple of width_seconds.
    width_seconds: how long it is.
    """

    start: int
    width_seconds: int

    def __post_init__(self) -> None:
        if self.width_seconds <= 0 or self.start % self.width_seconds:
            message = f"{self.start} is not the start of a window of {self.width_seconds} s"
            raise ValueError(message)

    @property
    def end(self) -> int:
        """The first second that is not in the window any more, in unix seconds."""
        return self.start + self.width_seconds

    def is_final(self, now: float, delay_seconds: float) -> bool:
        """Whether Cloudflare's numbers for the window are taken to have settled."""
        return now >= self.end + delay_seconds

    def timestamp_ms(self, which: SampleTimestamp) -> int:
        """The instant that the window's samples carry, in unix milliseconds."""
        match which:
            case SampleTimestamp.START:
                return self.start * 1000
            case SampleTimestamp.END:
                return self.end * 1000 - 1


def final_window_starts(now: float, *, width_seconds: int, delay_seconds: float, reach_seconds: float) -> range:
    """The starts of all windows that are final at `now` and ended less than `reach_seconds` before it, oldest first."""
    after_newest = int((now - delay_seconds) // width_seconds) * width_seconds
    # A window belongs to the reach while its end lies inside it, so that a day's bucket is not out of a day's reach
    # at the moment it becomes final.
    oldest = int((now - reach_seconds) // width_seconds) * width_seconds
    return range(min(oldest, after_newest), after_newest, width_seconds)


@dataclass(frozen=True, slots=True)
class Bucket:
    """What Cloudflare answered for one window of one dataset and scope; complete, never changed.

    dataset:      name in the catalogue.
    scope:        Cloudflare's tag (id) of the zone or account.
    window:       the slice of time.
    timestamp_ms: the instant that every sample of it carries, unix milliseconds.
    series:       one label block (`worker.series`) per sample; distinct.
    values:       one float64 per series, in the same order.
    """

    dataset: str
    scope: str
    window: Window
    timestamp_ms: int
    series: tuple[bytes, ...]
    values: "array[float]"

    def __post_init__(self) -> None:
        if len(self.series) != len(self.values):
            message = f"{len(self.series)} series but {len(self.values)} values"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class StoredBucket:
    """A bucket as the ledger hands it out to be delivered: series are numbers, samples are packed.

    bucket_id:    its number in the ledger.
    timestamp_ms: the instant that every sample of it carries, unix milliseconds.
    series_ids:   4 bytes per sample, unsigned, little-endian.
    values:       8 bytes per sample, IEEE 754 double, little-endian, in the same order.
    is_part:      whether the destination has the rest of it already.
    """

    bucket_id: int
    timestamp_ms: int
    series_ids: bytes
    values: bytes
    is_part: bool = False

    @property
    def sample_count(self) -> int:
        """How many samples it holds."""
        return len(self.values) // 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Buckets to be delivered together, oldest first within each scope.

    buckets: in the order in which a receiver must see them.
    series:  label block of every series id that occurs in them.
    """

    buckets: tuple[StoredBucket, ...]
    series: Mapping[int, bytes]

    @property
    def sample_count(self) -> int:
        """How many samples its buckets hold together."""
        return sum([len(bucket.values) for bucket in self.buckets]) // 8
