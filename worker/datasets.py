"""The catalogue that a configuration means: all of it, and the datasets of it that are collected.

Settings and the catalogue know nothing of each other; here they meet.
"""

from worker.cloudflare import Catalogue, Dataset, extended, select_datasets
from worker.config import CloudflareSettings
from worker.errors import ConfigError, Mistake


def catalogue_of(settings: CloudflareSettings) -> Catalogue:
    """Every dataset: the shipped ones and those of the user's own file; ConfigError with all mistakes in the file."""
    return extended(settings.catalogue)


def chosen_datasets(settings: CloudflareSettings, catalogue: Catalogue) -> tuple[Dataset, ...]:
    """The datasets to be collected; ConfigError where a name means none, or none at this width of windows."""
    chosen = select_datasets(catalogue, settings.datasets, settings.bucket_seconds)
    if isinstance(chosen, Mistake):
        raise ConfigError([chosen])
    return chosen
