"""The way of an export: through the ledger by time, dataset and scope, and out again by metric.

Buckets lie in the ledger by scope and window, and a text has all samples of a metric together: so a stretch of time is
written into a spool as it is found, and sorted from there.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from worker.buckets import Batch
from worker.config import BUCKET_SECONDS, DestinationSettings
from worker.export.files import ExportedFile, Files, Folder, Spool, Stream
from worker.export.formats import Format, Samples
from worker.ledger import CapturedScope, Export, Ledger, LeftOut, captured_buckets, captured_scopes
from worker.openmetrics import series_text
from worker.remote_write import Outbox
from worker.series import MetricMetadata
from worker.times import instant

_TWICE = "another series has the same labels there, and a sample of that time or a later one"

# Reasons are sentences of relabelling that may name a label's value; more than these nobody reads.
_MOST_REASONS = 10

# What is kept in memory of the text of a dataset and scope, beside one series: a week of minutes with 130 series would
# be 200 MB.
_PIECE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    widths:    of the windows of each dataset, in seconds.
    newest_ms: the newest timestamp in it, unix milliseconds; 0 where there is no sample.
    damaged:   buckets that do not hold what was captured: dataset, zone or account, start of the window.
    """

    files: tuple[ExportedFile, ...]
    widths: Mapping[str, Sequence[int]]
    newest_ms: int
    damaged: tuple[tuple[str, str, int], ...]
    left_out: tuple[LeftOut, ...]

    @property
    def samples(self) -> int:
        """How many there are in all files."""
        return sum(file.samples for file in self.files)


class Exporter:
    """One export."""

    def __init__(
        self,
        ledger: Ledger,
        wanted: Export,
        how: Format,
        *,
        metadata: Mapping[str, MetricMetadata],
        destination: DestinationSettings | None,
        stretch_seconds: int | None,
        max_bytes: int | None,
    ) -> None:
        """Nothing is read yet.

        destination:     whose labels the series get.
        stretch_seconds: a file holds the samples of a stretch of this length, aligned to it; None: of all time.
        max_bytes:       a file that has reached it is followed by another one.
        """
        self._ledger = ledger
        self._wanted = wanted
        self._how = how
        self._metadata = metadata
        self._outbox = None if destination is None else Outbox(destination)
        self._stretch_seconds = stretch_seconds
        self._max_bytes = max_bytes
        self._newest_ms = 0
        self._damaged: list[tuple[str, str, int]] = []
        self._left_out: Counter[str] = Counter()
        # Where relabelling makes one series of several: up to when it has samples, by a digest of its labels. 100 bytes
        # a series, 13 MB for 1,000 zones with 130 series each.
        self._written_until: dict[bytes, int] = {}

    async def write(self, place: Folder | Stream, told: Callable[[float], None]) -> Exported:
        """Write everything; `told` hears after each part how much of the whole is done, from 0 to 1."""
        wanted = self._wanted
        selected = partial(captured_scopes, widths_seconds=BUCKET_SECONDS, zones=wanted.zones, datasets=wanted.datasets)
        scopes = await self._ledger.read(selected, since=wanted.since, until=wanted.until)
        files = Files(place, suffix=self._how.suffix, end=self._how.end, max_bytes=self._max_bytes)
        stretches = self._stretches()
        for number, stretch in enumerate(stretches):
            with Spool(place.spool_folder) as spool:
                for place_of, scope in enumerate(scopes, 1):
                    await self._read(scope, stretch, spool)
                    told((number + place_of / len(scopes)) / len(stretches))
                self._sort(spool, files, f"cloudflare-{instant(stretch.start // 1000).replace(':', '')}")
            files.end()
        left_out = tuple(LeftOut(samples, reason) for reason, samples in self._left_out.most_common(_MOST_REASONS))
        widths: defaultdict[str, set[int]] = defaultdict(set)
        for scope in scopes:
            widths[scope.dataset].update(scope.widths_seconds)
        return Exported(
            tuple(files.written),
            {name: sorted(each) for name, each in widths.items()},
            self._newest_ms,
            tuple(self._damaged),
            left_out,
        )

    def _stretches(self) -> Sequence[range]:
        """Of the timestamps that may occur, unix milliseconds."""
        since, until = self._wanted.since, self._wanted.until
        # A window may be stamped up to its end, which is a day after its start at most.
        last = until + BUCKET_SECONDS[-1]
        step = self._stretch_seconds
        if step is None:
            return [range(since * 1000, last * 1000)]
        starts = range(since // step * step, last, step)
        return [range(start * 1000, (start + step) * 1000) for start in starts]

    async def _read(self, scope: CapturedScope, stretch: range, spool: Spool) -> None:
        """Put what a dataset and scope has in a stretch into the spool."""
        wanted = self._wanted
        found = await self._ledger.read(
            captured_buckets,
            scope,
            since=wanted.since,
            until=wanted.until,
            stamped=stretch,
            metrics=wanted.metrics,
            undelivered_to=wanted.destination if wanted.undelivered else None,
        )
        self._damaged += [(scope.dataset, scope.name or scope.tag, start) for start in found.damaged]
        batch = self._as_it_is_called(found.batch)
        series: defaultdict[int, Samples] = defaultdict(Samples)
        for bucket in batch.buckets:
            self._newest_ms = max(self._newest_ms, bucket.timestamp_ms)
            for number, value in zip(array("I", bucket.series_ids), array("d", bucket.values), strict=True):
                series[number].moments.append(bucket.timestamp_ms)
                series[number].values.append(value)
        piece = _Piece(spool)
        for number in sorted(series, key=batch.series.__getitem__):
            block = batch.series[number]
            samples = self._ascending(block, series[number])
            if samples.moments:
                metric, labels = series_text(block)
                lines = self._how.lines(scope, metric, labels, samples)
                piece.add(self._how.family(metric), lines, len(samples.moments))
        piece.end()

    def _as_it_is_called(self, batch: Batch) -> Batch:
        """The samples with the labels of the destination; those that cannot have any are left out and counted."""
        if self._outbox is None:
            return batch
        outgoing = self._outbox.outgoing(batch)
        for part, reason in outgoing.unsendable:
            self._left_out[reason] += part.sample_count
        return outgoing.batch

    def _ascending(self, block: bytes, samples: Samples) -> Samples:
        """Without the samples before the end of those that another scope's series, which got the same labels, had."""
        if self._outbox is None:
            return samples
        digest = hashlib.blake2b(block, digest_size=8).digest()
        until = self._written_until.get(digest, -1)
        self._written_until[digest] = max(until, samples.moments[-1])
        later = samples.after(until)
        if repeated := len(samples.moments) - len(later.moments):
            self._left_out[_TWICE] += repeated
        return later

    def _sort(self, spool: Spool, files: Files, name: str) -> None:
        for family, pieces in spool.families():
            head = self._how.head(family, self._metadata.get(family))
            for number, (data, series, samples) in enumerate(pieces):
                files.put(name, head, data, is_first=number == 0, series=series, samples=samples)


class _Piece:
    """Lines of one family after the other, a piece of the spool at a time."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._family = ""
        self._lines: list[bytes] = []
        self._samples = 0
        self._size_bytes = 0

    def add(self, family: str, lines: bytes, samples: int) -> None:
        if family != self._family or self._size_bytes > _PIECE_BYTES:
            self.end()
        self._family = family
        self._lines.append(lines)
        self._samples += samples
        self._size_bytes += len(lines)

    def end(self) -> None:
        if self._lines:
            self._spool.add(self._family, self._lines, samples=self._samples)
        self._lines, self._samples, self._size_bytes = [], 0, 0
