"""The catalogue's files: from YAML to datasets, or to everything that is wrong with them.

Files with the same syntax come with the package (`shipped`) and from users (`extended`). Promises that a dataset that
is returned can be asked for and stored as it is, and that mistakes are found all at once, each with its file, its line
and the nearest valid name. Nothing is read at import. Does not know Cloudflare's schema: whether a node or a field
exists is for `cfrw datasets --check` to say.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from worker.cloudflare.catalogue.entry import EntryReader
from worker.cloudflare.catalogue.facts import FACT_SETS
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL, Dataset
from worker.cloudflare.catalogue.nodes import Item, NodeReader
from worker.errors import ConfigError, Mistake

Catalogue: TypeAlias = Mapping[str, Dataset]
"""Datasets by name, in the order of their files."""


@lru_cache(maxsize=1)
def shipped() -> Catalogue:
    """The datasets that come with the package. The files are read at the first call."""
    datasets: dict[str, Dataset] = {}
    folder = resources.files(__package__)
    for file in sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name):
        datasets |= _or_raise(load(file.read_text(encoding="utf-8"), file.name, beside=datasets))
    return MappingProxyType(datasets)


def extended(path: Path | None) -> Catalogue:
    """The shipped datasets with those of a user's file, which win over shipped ones of the same name.

    ConfigError with all mistakes in the file.
    """
    if path is None:
        return shipped()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([Mistake("CF_CATALOGUE", str(path), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Mistake("CF_CATALOGUE", str(path), "is not UTF-8 text")]) from None
    return MappingProxyType({**shipped(), **_or_raise(load(text, str(path), beside=shipped()))})


def _or_raise(loaded: Catalogue | tuple[Mistake, ...]) -> Catalogue:
    if isinstance(loaded, tuple):
        raise ConfigError(loaded)
    return loaded


def load(text: str, file_name: str, *, beside: Catalogue = MappingProxyType({})) -> Catalogue | tuple[Mistake, ...]:
    """The datasets of one file, or its mistakes in the order of their lines.

    beside: datasets that there are already. Those of the same name are replaced; the others keep their metrics and
            their names to themselves.
    """
    reader = NodeReader(file_name)
    root = reader.document(text)
    if root is None:
        return tuple(reader.mistakes) or {}
    items = reader.mapping(root, "the catalogue")
    others = [dataset for name, dataset in beside.items() if name not in items]
    taken = {metric.name for each in others for metric, _ in each.metrics()}
    taken |= {metric.name for each in FACT_SETS.values() for metric, _ in each.metrics()}
    entries = EntryReader(reader, metrics=taken | {metric.name for metric in SAMPLE_INTERVAL.values()})
    datasets = {name: entries.dataset(item) for name, item in items.items()}
    _check_groups(reader, datasets, items, others)
    if reader.mistakes:
        return tuple(sorted(reader.mistakes, key=lambda mistake: _line(mistake.setting)))
    return datasets


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def _check_groups(
    reader: NodeReader, datasets: Catalogue, items: Mapping[str, Item], others: Sequence[Dataset]
) -> None:
    """No name may mean a dataset and a group."""
    groups = {group for dataset in (*others, *datasets.values()) for group in dataset.groups}
    groups |= {group for fact_set in FACT_SETS.values() for group in fact_set.groups}
    for name in datasets:
        if name in groups:
            reader.wrong(items[name].key, "is the name of a group, too")
        if name in FACT_SETS:
            reader.wrong(items[name].key, "is the name of facts, which come from the REST API and cannot be replaced")
    names = {dataset.name for dataset in others} | FACT_SETS.keys()
    for dataset in datasets.values():
        for group in names.intersection(dataset.groups):
            reader.wrong(items[dataset.name].key, f"is in the group {group}, which is the name of a dataset")
