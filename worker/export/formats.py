"""How series become lines: in OpenMetrics by metric, in CSV in the order in which they are found. Pure."""

import csv
import io
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

from worker.ledger import CapturedScope
from worker.openmetrics import END, family_head, number_text, timestamp_text
from worker.series import MetricMetadata


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one series, ascending in time: unix milliseconds, and the values."""

    moments: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def after(self, moment: int) -> "Samples":
        """Those that are later."""
        first = bisect_right(self.moments, moment)
        return Samples(self.moments[first:], self.values[first:]) if first else self


_COLUMNS = ("time", "dataset", "scope", "metric", "labels", "value")


class Format(Protocol):
    """How a file is written."""

    @property
    def suffix(self) -> str:
        """Of its name."""

    @property
    def end(self) -> bytes:
        """Its last line."""

    def family(self, metric: str) -> str:
        """What has to stand together in a file, by the metric's name."""

    def head(self, family: str, metadata: MetricMetadata | None) -> bytes:
        """What stands before a family, in each file that holds some of it."""

    def lines(self, scope: CapturedScope, metric: str, labels: str, samples: Samples) -> bytes:
        """The samples of one series."""


@dataclass(frozen=True, slots=True)
class _OpenMetrics:
    suffix: str = ".om"
    end: bytes = END

    def family(self, metric: str) -> str:
        return metric

    def head(self, family: str, metadata: MetricMetadata | None) -> bytes:
        return family_head(family, metadata).encode()

    def lines(self, scope: CapturedScope, metric: str, labels: str, samples: Samples) -> bytes:
        del scope
        series = f"{metric}{{{labels}}}" if labels else metric
        pairs = zip(samples.moments, samples.values, strict=True)
        return "".join(
            [f"{series} {number_text(value)} {timestamp_text(moment)}\n" for moment, value in pairs]
        ).encode()


@dataclass(frozen=True, slots=True)
class _Csv:
    suffix: str = ".csv"
    end: bytes = b""

    def family(self, metric: str) -> str:
        del metric
        return ""

    def head(self, family: str, metadata: MetricMetadata | None) -> bytes:
        del family, metadata
        return f"{','.join(_COLUMNS)}\n".encode()

    def lines(self, scope: CapturedScope, metric: str, labels: str, samples: Samples) -> bytes:
        text = io.StringIO()
        named = (scope.dataset, scope.name or scope.tag, metric, labels)
        csv.writer(text, lineterminator="\n").writerows(
            (_instant(moment), *named, number_text(value))
            for moment, value in zip(samples.moments, samples.values, strict=True)
        )
        return text.getvalue().encode()


FORMATS: Mapping[str, Format] = MappingProxyType({"openmetrics": _OpenMetrics(), "csv": _Csv()})
"""By the name that users write."""


def _instant(timestamp_ms: int) -> str:
    moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if timestamp_ms % 1000 else "seconds").replace("+00:00", "Z")
