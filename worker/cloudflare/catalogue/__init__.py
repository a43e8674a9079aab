"""The catalogue: which datasets exist, how each is asked for, and which fields become which metrics and labels.

Data only: the YAML files of this folder, a file of the user's own, and the few facts that only the REST API has. A
dataset is added by writing it down there; building its queries and decoding its answers follow from the description.
Names of nodes, dimensions and fields are those of Cloudflare's GraphQL Analytics schema.
"""

from worker.cloudflare.catalogue.facts import (
    CERTIFICATE_ACTIVE,
    CERTIFICATE_EXPIRY,
    CERTIFICATES,
    FACT_SETS,
    LB_POOLS,
    ORIGIN_WEIGHT,
    POOL_HEALTHY,
    TUNNEL_HEALTHY,
    TUNNEL_STATUS,
    TUNNELS,
    FactSet,
)
from worker.cloudflare.catalogue.load import Catalogue, extended, load, shipped
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
from worker.cloudflare.catalogue.selection import dataset_groups, further_delays, select_datasets

__all__ = [
    "CERTIFICATES",
    "CERTIFICATE_ACTIVE",
    "CERTIFICATE_EXPIRY",
    "FACT_SETS",
    "LB_POOLS",
    "ORIGIN_WEIGHT",
    "POOL_HEALTHY",
    "TUNNELS",
    "TUNNEL_HEALTHY",
    "TUNNEL_STATUS",
    "Breakdown",
    "Catalogue",
    "Dataset",
    "FactSet",
    "Grain",
    "Label",
    "Metric",
    "ScopeKind",
    "TimeType",
    "Top",
    "Total",
    "dataset_groups",
    "extended",
    "further_delays",
    "load",
    "select_datasets",
    "shipped",
]
