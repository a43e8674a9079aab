"""OpenMetrics text as buckets: which dataset, zone and window each sample is of, and whether it may be imported.

Promises that a bucket comes of all samples of its dataset, zone and window in all files together, and that what does
not fit is told by file and line. Reads no ledger and writes none: what that has is for the caller to compare.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import BinaryIO

from worker.buckets import Bucket, SampleTimestamp, Window
from worker.cloudflare import FACT_SETS, Catalogue, Dataset, FactSet, ScopeKind
from worker.config import CloudflareSettings
from worker.ledger import Scope
from worker.openmetrics import Sample, read
from worker.series import parse_label_block
from worker.times import instant, span

MOST_SAMPLES = 5_000_000
"""How many are read at once. A day of 1,000 zones with 130 series each has 3 million hourly ones, and took 216 MB; at
28 bytes a sample and a kilobyte a bucket these are some 300 MB."""

# Mistakes come by the thousand: the first ones say what is wrong, and a few lines of each where to look.
_MOST_MISTAKES = 20
_FIRST_LINES = 3

_SCOPE_LABELS = {
    ScopeKind.ZONE: ("zone_id", frozenset({"zone", "zone_id", "account"})),
    ScopeKind.ACCOUNT: ("account_id", frozenset({"account", "account_id"})),
}

# Where a file and a line share an integer.
_LINES = 1 << 40


@dataclass(frozen=True, slots=True)
class Imported:
    """A bucket as the files have it.

    places: by series, where its sample stands, `FILE:LINE`.
    """

    bucket: Bucket
    places: "Places"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the samples of a bucket stand."""

    names: Sequence[str]
    packed: "array[int]"

    def place(self, index: int) -> str:
        """`FILE:LINE` of a sample."""
        file, line = divmod(self.packed[index], _LINES)
        return f"{self.names[file]}:{line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line, in words that are the same for every line like it.

    given: what this one has; empty where the words tell it.
    """

    words: str
    given: str = ""


@dataclass(slots=True)
class Mistake:
    """One problem of so many lines, and of the first of them where they stand, `FILE:LINE`, and what they have."""

    words: str
    lines: int = 0
    places: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

    def add(self, place: str, given: str) -> None:
        """Count one more line."""
        self.lines += 1
        if self.lines > _FIRST_LINES:
            return
        self.places.append(place)
        if given and given not in self.given:
            self.given.append(given)

    def __str__(self) -> str:
        told: list[str] = []
        last_file = None
        for place in self.places:
            file, _, line = place.rpartition(":")
            told.append(line if file == last_file else place)
            last_file = file
        more = self.lines - len(self.places)
        further = f" and {more:,} more line{'' if more == 1 else 's'}" if more else ""
        given = f" ({', '.join(self.given)})" if self.given else ""
        return f"{', '.join(told)}{further}: {self.words}{given}"


@dataclass(slots=True)
class _Gathered:
    """The samples of one bucket so far."""

    timestamp_ms: int
    series: "array[int]" = field(default_factory=lambda: array("I"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    places: "array[int]" = field(default_factory=lambda: array("Q"))


class Gathering:
    """Files, read one after the other into buckets.

    mistakes: the first that were found, each with all of its lines.
    untold:   how many lines have others.
    """

    def __init__(
        self,
        settings: CloudflareSettings,
        catalogue: Catalogue,
        scopes: Sequence[Scope],
        *,
        retention_hours: int,
        now: float,
    ) -> None:
        """`scopes`: those that the ledger knows."""
        self.untold = 0
        self.samples = 0
        self._mistakes: dict[str, Mistake] = {}
        self._settings = settings
        self._retention_hours = retention_hours
        self._now = now
        self._scopes = {scope.tag: scope for scope in scopes}
        self._datasets: Mapping[str, Dataset | FactSet] = {**catalogue, **FACT_SETS}
        self._metrics: dict[str, list[tuple[Dataset | FactSet, frozenset[str]]]] = {}
        for dataset in self._datasets.values():
            for metric, labels in dataset.metrics():
                self._metrics.setdefault(metric.name, []).append((dataset, frozenset(labels)))
        self._names: list[str] = []
        self._series: dict[bytes, tuple[int, str, str] | Problem] = {}
        self._blocks: list[bytes] = []
        self._windows: dict[tuple[str, int], Window | Problem] = {}
        self._gathered: dict[tuple[str, str, Window], _Gathered] = {}

    @property
    def mistakes(self) -> Sequence[Mistake]:
        """What is wrong."""
        return tuple(self._mistakes.values())

    def read(self, name: str, stream: BinaryIO) -> None:
        """Take in one text."""
        file = len(self._names)
        self._names.append(name)
        for line, sample in read(stream):
            problem = Problem(sample) if isinstance(sample, str) else self._take(file * _LINES + line, sample)
            if problem is not None:
                self.tell(f"{name}:{line}", problem)
            if self.samples > MOST_SAMPLES:
                too_many = f"more than {MOST_SAMPLES:,} samples; import the files of each day alone"
                self.tell(f"{name}:{line}", Problem(too_many))
                return

    def buckets(self) -> Iterator[Imported]:
        """What was read, oldest window first; a series that is there twice is a mistake."""
        for (dataset, tag, window), found in sorted(self._gathered.items(), key=lambda item: item[0][2]):
            series = tuple(map(self._blocks.__getitem__, found.series))
            places = Places(self._names, found.places)
            if len(set(series)) < len(series):
                self._tell_repeated(found, places)
                continue
            yield Imported(Bucket(dataset, tag, window, found.timestamp_ms, series, found.values), places)

    def tell(self, place: str, problem: Problem) -> None:
        """Count a mistake, and keep it if it is one of the first."""
        if problem.words in self._mistakes or len(self._mistakes) < _MOST_MISTAKES:
            self._mistakes.setdefault(problem.words, Mistake(problem.words)).add(place, problem.given)
        else:
            self.untold += 1

    def _tell_repeated(self, found: _Gathered, places: Places) -> None:
        first: dict[int, int] = {}
        for index, series in enumerate(found.series):
            if series in first:
                other = places.place(first[series])
                self.tell(places.place(index), Problem("the series has a sample of that time already", other))
            first.setdefault(series, index)

    def _take(self, place: int, sample: Sample) -> Problem | None:
        """Put a sample into its bucket; what is wrong with it if it has none."""
        known = self._series.get(sample.block)
        if known is None:
            known = self._series[sample.block] = self._known(sample.block)
        if isinstance(known, Problem):
            return known
        number, dataset, tag = known
        window = self._windows.get((dataset, sample.timestamp_ms))
        if window is None:
            window = self._windows[dataset, sample.timestamp_ms] = self._window(dataset, sample.timestamp_ms)
        if isinstance(window, Problem):
            return window
        gathered = self._gathered.get((dataset, tag, window))
        if gathered is None:
            gathered = self._gathered[dataset, tag, window] = _Gathered(sample.timestamp_ms)
        if gathered.timestamp_ms != sample.timestamp_ms:
            return Problem(f"another sample of {dataset} of this zone or account and window has another time")
        self.samples += 1
        gathered.series.append(number)
        gathered.values.append(sample.value)
        gathered.places.append(place)
        return None

    def _known(self, block: bytes) -> tuple[int, str, str] | Problem:
        """The number of a series, its dataset and its scope; or why it has none."""
        labels = parse_label_block(block)
        metric = labels.pop("__name__")
        meant = self._metrics.get(metric, [])
        # Every sampled dataset has the metric that tells how much; a label says whose it is.
        if len(meant) > 1 and "dataset" in labels:
            meant = [(each, own) for each, own in meant if each.name == labels["dataset"]]
        if len(meant) != 1:
            near = get_close_matches(metric, self._metrics, n=1)
            hint = f"; did you mean {near[0]}?" if near and not meant else ""
            return Problem(f"{metric} is the metric of {'several datasets' if meant else 'no dataset'}{hint}")
        ((dataset, own),) = meant
        id_label, common = _SCOPE_LABELS[dataset.scope]
        scope = self._scopes.get(labels.get(id_label, ""))
        if scope is None or scope.is_account != (dataset.scope is ScopeKind.ACCOUNT):
            given = f"{id_label}={labels[id_label]!r}" if id_label in labels else f"no label {id_label}"
            words = f"the ledger knows no such {dataset.scope}; what is imported has to be listed once before"
            return Problem(words, given)
        if further := labels.keys() - common - own:
            words = f"{metric} of {dataset.name} has no label {min(further)}"
            return Problem(f"{words}; an export for import is one without --destination")
        if missing := own - labels.keys():
            return Problem(f"{metric} of {dataset.name} lacks the label {min(missing)}")
        self._blocks.append(block)
        return len(self._blocks) - 1, dataset.name, scope.tag

    def _window(self, name: str, timestamp_ms: int) -> Window | Problem:
        """The window that a timestamp is of, or why it is of none."""
        dataset = self._datasets[name]
        width_seconds = self._settings.bucket_seconds
        at = instant(timestamp_ms / 1000)
        if isinstance(dataset, FactSet):
            width_seconds = dataset.window_seconds(width_seconds)
        elif width_seconds not in dataset.widths_seconds:
            return Problem(f"{name} has no windows of {span(width_seconds)}, as CF_BUCKET_SECONDS says")
        start = timestamp_ms // 1000 // width_seconds * width_seconds
        window = Window(start, width_seconds)
        if isinstance(dataset, Dataset) and timestamp_ms != window.timestamp_ms(self._settings.sample_timestamp):
            matching = [each for each in SampleTimestamp if window.timestamp_ms(each) == timestamp_ms]
            hint = f"; it is its {matching[0]}" if matching else ""
            return Problem(
                f"its time is not the {self._settings.sample_timestamp} of a window of {span(width_seconds)}, as "
                f"CF_SAMPLE_TIMESTAMP and CF_BUCKET_SECONDS say{hint}",
                f"{timestamp_ms / 1000:.3f} is {at}",
            )
        delay_seconds = 0
        if isinstance(dataset, Dataset):
            delay_seconds = dataset.final_after_seconds(self._settings.delay_seconds)
        if not window.is_final(self._now, delay_seconds):
            return Problem("its window is not final yet; only what has settled is a bucket", at)
        if window.end < self._now - self._retention_hours * 3600:
            return Problem(
                f"its window is older than LEDGER_RETENTION_HOURS ({self._retention_hours}), after which the ledger "
                "deletes what is delivered",
                at,
            )
        return window
