"""Which datasets, or sets of facts, are meant by names of them and of groups, and how late they are. Pure."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from worker.cloudflare.catalogue.entry import ALL
from worker.cloudflare.catalogue.model import Dataset
from worker.cloudflare.catalogue.nodes import nearest
from worker.errors import Mistake


class Selectable(Protocol):
    """What has a name in CF_DATASETS."""

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def widths_seconds(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=Selectable)


def dataset_groups(catalogue: Mapping[str, Selectable]) -> tuple[str, ...]:
    """Every group, in alphabetical order; `all` last."""
    return (*sorted({group for dataset in catalogue.values() for group in dataset.groups}), ALL)


def select_datasets(catalogue: Mapping[str, T], names: Sequence[str], width_seconds: int) -> tuple[T, ...] | Mistake:
    """The datasets of these names and groups that have windows of this width, each once.

    A dataset without such windows is left out where a group means it, and a mistake where it is named itself.
    """
    known = dataset_groups(catalogue)
    if unknown := [name for name in names if name not in catalogue and name not in known]:
        problem = f"unknown: {', '.join(name + nearest(name, [*catalogue, *known]) for name in unknown)}"
        hint = f"groups are {', '.join(known)}; `cfrw datasets` lists all datasets"
        return Mistake("CF_DATASETS", ", ".join(names), f"{problem}; {hint}")
    for name in names:
        if name in catalogue and width_seconds not in catalogue[name].widths_seconds:
            widths = ", ".join(map(str, catalogue[name].widths_seconds))
            problem = f"has no windows of {width_seconds} s (CF_BUCKET_SECONDS), only of {widths}"
            return Mistake("CF_DATASETS", name, problem)
    meant = {
        dataset.name: dataset
        for name in names
        for dataset in ([catalogue[name]] if name in catalogue else _of_group(catalogue, name))
        if width_seconds in dataset.widths_seconds
    }
    if not meant:
        problem = f"no dataset of it has windows of {width_seconds} s (CF_BUCKET_SECONDS)"
        return Mistake("CF_DATASETS", ", ".join(names), problem)
    return tuple(meant.values())


def further_delays(datasets: Sequence[Dataset], delay_seconds: int) -> dict[str, int]:
    """By how many seconds longer than `delay_seconds` each dataset's windows take to be final, by its name."""
    return {dataset.name: dataset.final_after_seconds(delay_seconds) - delay_seconds for dataset in datasets}


def _of_group(catalogue: Mapping[str, T], group: str) -> list[T]:
    return [dataset for dataset in catalogue.values() if group in (ALL, *dataset.groups)]
