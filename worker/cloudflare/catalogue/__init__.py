"""The catalogue: which datasets exist, how each is asked for, and which fields become which metrics and labels.

Data only. A dataset is added by writing it down here; building its queries and decoding its answers follow from the
description. Names of nodes, dimensions and fields are those of Cloudflare's GraphQL Analytics schema.
"""

from collections.abc import Mapping

from worker.cloudflare.catalogue.http import HTTP_REQUESTS
from worker.cloudflare.catalogue.model import (
    Breakdown,
    Dataset,
    Grain,
    Label,
    Metric,
    ScopeKind,
    TimeType,
    Top,
    Total,
)

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in (HTTP_REQUESTS,)}
"""Every dataset, by name."""

__all__ = [
    "DATASETS",
    "HTTP_REQUESTS",
    "Breakdown",
    "Dataset",
    "Grain",
    "Label",
    "Metric",
    "ScopeKind",
    "TimeType",
    "Top",
    "Total",
]
