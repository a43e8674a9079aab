"""The catalogue that a configuration means: all of it, what of it is collected, and what the ledger knows to be denied.

Settings, the catalogue and the ledger know nothing of each other; here they meet.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.cloudflare import (
    FACT_SETS,
    Catalogue,
    Dataset,
    FactSet,
    SchemaCheck,
    ScopeKind,
    check_catalogue,
    extended,
    select_datasets,
)
from worker.config import BUCKET_SECONDS, CloudflareSettings, load_some
from worker.errors import ConfigError, Mistake
from worker.ledger import Denial, Ledger, Scope, denials, present_scopes
from worker.series import MetricMetadata
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
    scope_count:   how many zones, or accounts, the ledger knows; None without a ledger.
    denied:        how many of them are denied it, by the reason; only of what is, or was, collected that is known.
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
    scope_count: int | None
    denied: dict[str, int]
    metrics: tuple[MetricListing, ...]

    @property
    def widths(self) -> str:
        """For people: `all`, or the widths that there are."""
        return "all" if self.widths_seconds == BUCKET_SECONDS else ", ".join(map(span, self.widths_seconds))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one dataset and one zone or account.

    denied_since: unix seconds; None where it is not denied, as far as is known: only what is collected is looked at.
    reason:       why it is denied.
    """

    dataset: str
    is_collected: bool
    denied_since: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ScopeListing:
    """A zone or an account, by its tag (id) and its name, with all datasets of its kind."""

    scope: str
    name: str
    kind: str
    datasets: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows: the zones and accounts of the last listing, and what they are denied."""

    scopes: tuple[Scope, ...]
    denials: tuple[Denial, ...]


async def read_known(ledger_path: Path) -> Known:
    """Look into the ledger, beside a running worker and without one; raises what `Ledger.open_read_only` does."""
    ledger = Ledger.open_read_only(ledger_path)
    try:
        return Known(await ledger.read(present_scopes), await ledger.read(denials))
    finally:
        await ledger.close()


def ledger_path_of(config_file: Path | None, environ: Mapping[str, str]) -> Path:
    """Where the ledger of this environment and file is; ConfigError with what is wrong in that setting."""
    path: Path = load_some(("LEDGER_PATH",), config_file, environ)["LEDGER_PATH"]
    return path


def catalogue_of(settings: CloudflareSettings) -> Catalogue:
    """Every dataset: the shipped ones and those of the user's own file; ConfigError with all mistakes in the file."""
    return extended(settings.catalogue)


def metadata_of(catalogue: Catalogue) -> dict[str, MetricMetadata]:
    """What is told of every metric of a catalogue and of the facts, by its name."""
    described = [pair for each in _with_facts(catalogue).values() for pair in each.metrics()]
    return {metric.name: MetricMetadata(metric.help, metric.unit) for metric, _ in described}


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


def list_datasets(
    config_file: Path | None, environ: Mapping[str, str], known: Known | None = None
) -> tuple[DatasetListing, ...]:
    """The catalogue of this environment and file, neither of which has to be complete: no token is needed to look.

    Those of zones come first. ConfigError with what is wrong in these settings, or in the user's own file.
    """
    names = ("CF_CATALOGUE", "CF_DATASETS", "CF_BUCKET_SECONDS", "CF_DELAY_SECONDS")
    given = load_some(names, config_file, environ)
    catalogue = extended(given["CF_CATALOGUE"])
    collected = _chosen(catalogue, given["CF_DATASETS"], given["CF_BUCKET_SECONDS"])
    zones_first = sorted(_with_facts(catalogue).values(), key=lambda each: each.scope, reverse=True)
    return tuple(
        _listing(each, given["CF_DELAY_SECONDS"], known, is_collected=each in collected)
        if isinstance(each, Dataset)
        else _fact_listing(each, known, is_collected=each in collected)
        for each in zones_first
    )


def list_scopes(listed: Sequence[DatasetListing], known: Known, name: str) -> tuple[ScopeListing, ...]:
    """The zones and accounts of this name or id, which may be several, with what they are entitled to."""
    denied = {(each.tag, each.dataset): each for each in known.denials}
    return tuple(
        ScopeListing(
            scope.tag,
            scope.name,
            _kind(scope),
            tuple(
                Verdict(
                    dataset.name,
                    dataset.is_collected,
                    None if (denial := denied.get((scope.tag, dataset.name))) is None else denial.denied_at,
                    None if denial is None else denial.detail,
                )
                for dataset in listed
                if dataset.scope == _kind(scope)
            ),
        )
        for scope in known.scopes
        if name in {scope.name, scope.tag}
    )


def check_datasets(schema_file: Path, config_file: Path | None, environ: Mapping[str, str]) -> SchemaCheck:
    """The catalogue of this environment and file, held against a schema; UsageError where that cannot be done."""
    return check_catalogue(extended(load_some(("CF_CATALOGUE",), config_file, environ)["CF_CATALOGUE"]), schema_file)


def _kind(scope: Scope) -> ScopeKind:
    return ScopeKind.ACCOUNT if scope.is_account else ScopeKind.ZONE


def _listing(dataset: Dataset, delay_seconds: int, known: Known | None, *, is_collected: bool) -> DatasetListing:
    return DatasetListing(
        name=dataset.name,
        help=dataset.help,
        scope=dataset.scope,
        groups=dataset.groups,
        labels=(*(label.name for label in dataset.labels), *(item.label for item in dataset.breakdowns)),
        keep=None if dataset.top is None else dataset.top.keep,
        widths_seconds=dataset.widths_seconds,
        delay_seconds=dataset.final_after_seconds(delay_seconds),
        is_sampled=dataset.is_sampled,
        is_collected=is_collected,
        scope_count=_scope_count(dataset, known),
        denied=_denials(dataset, known),
        metrics=_metrics(dataset),
    )


def _fact_listing(fact_set: FactSet, known: Known | None, *, is_collected: bool) -> DatasetListing:
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
        scope_count=_scope_count(fact_set, known),
        denied=_denials(fact_set, known),
        metrics=_metrics(fact_set),
    )


def _scope_count(of: Dataset | FactSet, known: Known | None) -> int | None:
    return None if known is None else sum(_kind(scope) is of.scope for scope in known.scopes)


def _denials(of: Dataset | FactSet, known: Known | None) -> dict[str, int]:
    return {} if known is None else Counter(each.detail for each in known.denials if each.dataset == of.name)


def _metrics(of: Dataset | FactSet) -> tuple[MetricListing, ...]:
    return tuple(MetricListing(each.name, labels, each.unit, each.additive, each.help) for each, labels in of.metrics())
