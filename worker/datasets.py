"""The catalogue that a configuration means: all of it, and the datasets and facts that are collected.

Settings and the catalogue know nothing of each other; here they meet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.cloudflare import (
    FACT_SETS,
    Catalogue,
    Dataset,
    FactSet,
    SchemaCheck,
    check_catalogue,
    extended,
    select_datasets,
)
from worker.config import BUCKET_SECONDS, CloudflareSettings, load_some
from worker.errors import ConfigError, Mistake
from worker.times import span


@dataclass(frozen=True, slots=True)
class MetricListing:
    """A metric as `cfrw datasets --json` tells it."""

    name: str
    labels: tuple[str, ...]
    unit: str
    additive: bool
    help: str


@dataclass(frozen=True, slots=True)
class DatasetListing:
    """A dataset as `cfrw datasets` tells it.

    labels:        what its numbers are broken down by.
    keep:          how many combinations of labels keep their values in a window; None where they are not counted.
    delay_seconds: how long after its end a window is taken to be final; 0 for facts, which are of the moment.
    is_collected:  whether CF_DATASETS means it.
    """

    name: str
    help: str
    scope: str
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    keep: int | None
    widths_seconds: tuple[int, ...]
    delay_seconds: int
    is_sampled: bool
    is_collected: bool
    metrics: tuple[MetricListing, ...]

    @property
    def widths(self) -> str:
        """For people: `all`, or the widths that there are."""
        return "all" if self.widths_seconds == BUCKET_SECONDS else ", ".join(map(span, self.widths_seconds))


def catalogue_of(settings: CloudflareSettings) -> Catalogue:
    """Every dataset: the shipped ones and those of the user's own file; ConfigError with all mistakes in the file."""
    return extended(settings.catalogue)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is collected."""

    datasets: tuple[Dataset, ...]
    fact_sets: tuple[FactSet, ...]


def chosen(settings: CloudflareSettings, catalogue: Catalogue) -> Chosen:
    """What is to be collected; ConfigError where a name means nothing, or nothing at this width of windows."""
    found = _chosen(catalogue, settings.datasets, settings.bucket_seconds)
    return Chosen(
        datasets=tuple(each for each in found if isinstance(each, Dataset)),
        fact_sets=tuple(each for each in found if isinstance(each, FactSet)),
    )


def _chosen(catalogue: Catalogue, names: tuple[str, ...], width_seconds: int) -> tuple[Dataset | FactSet, ...]:
    found = select_datasets(_with_facts(catalogue), names, width_seconds)
    if isinstance(found, Mistake):
        raise ConfigError([found])
    return found


def _with_facts(catalogue: Catalogue) -> Mapping[str, Dataset | FactSet]:
    return {**catalogue, **FACT_SETS}


def list_datasets(config_file: Path | None, environ: Mapping[str, str]) -> tuple[DatasetListing, ...]:
    """The catalogue of this environment and file, neither of which has to be complete: no token is needed to look.

    Those of zones come first. ConfigError with what is wrong in these settings, or in the user's own file.
    """
    names = ("CF_CATALOGUE", "CF_DATASETS", "CF_BUCKET_SECONDS", "CF_DELAY_SECONDS")
    given = load_some(names, config_file, environ)
    catalogue = extended(given["CF_CATALOGUE"])
    collected = _chosen(catalogue, given["CF_DATASETS"], given["CF_BUCKET_SECONDS"])
    zones_first = sorted(_with_facts(catalogue).values(), key=lambda each: each.scope, reverse=True)
    return tuple(
        _listing(each, given["CF_DELAY_SECONDS"], is_collected=each in collected)
        if isinstance(each, Dataset)
        else _fact_listing(each, is_collected=each in collected)
        for each in zones_first
    )


def check_datasets(schema_file: Path, config_file: Path | None, environ: Mapping[str, str]) -> SchemaCheck:
    """The catalogue of this environment and file, held against a schema; UsageError where that cannot be done."""
    return check_catalogue(extended(load_some(("CF_CATALOGUE",), config_file, environ)["CF_CATALOGUE"]), schema_file)


def _listing(dataset: Dataset, delay_seconds: int, *, is_collected: bool) -> DatasetListing:
    return DatasetListing(
        name=dataset.name,
        help=dataset.help,
        scope=dataset.scope,
        groups=dataset.groups,
        labels=(*(label.name for label in dataset.labels), *(item.label for item in dataset.breakdowns)),
        keep=None if dataset.top is None else dataset.top.keep,
        widths_seconds=dataset.widths_seconds,
        delay_seconds=max(delay_seconds, dataset.delay_seconds or 0),
        is_sampled=dataset.is_sampled,
        is_collected=is_collected,
        metrics=_metrics(dataset),
    )


def _fact_listing(fact_set: FactSet, *, is_collected: bool) -> DatasetListing:
    windows = (fact_set.window_seconds(width) for width in fact_set.widths_seconds)
    return DatasetListing(
        name=fact_set.name,
        help=fact_set.help,
        scope=fact_set.scope,
        groups=fact_set.groups,
        labels=tuple(dict.fromkeys(label for _, labels in fact_set.metrics() for label in labels)),
        keep=None,
        widths_seconds=tuple(dict.fromkeys(windows)),
        delay_seconds=0,
        is_sampled=False,
        is_collected=is_collected,
        metrics=_metrics(fact_set),
    )


def _metrics(of: Dataset | FactSet) -> tuple[MetricListing, ...]:
    return tuple(MetricListing(each.name, labels, each.unit, each.additive, each.help) for each, labels in of.metrics())
