"""Facts: states that only the REST API has, with the metrics that they become.

A fact is what Cloudflare says at one moment: when a certificate expires, whether a pool is healthy. Nobody can ask for
it afterwards, so it has no past to be caught up; that is why these are no datasets of the GraphQL schema, and beside
them in CF_DATASETS all the same. Data only; worker.cloudflare.facts reads them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from worker.cloudflare.catalogue.entry import WIDTHS_SECONDS
from worker.cloudflare.catalogue.model import Metric, ScopeKind

FACTS = "facts"
"""The group of all of them."""


@dataclass(frozen=True, slots=True)
class FactSet:
    """Facts that are read together.

    name:                 what users write in CF_DATASETS.
    help:                 one sentence for people.
    scope:                what they are read of.
    permission:           what the token needs beyond what every token needs.
    states:               every metric, with the labels that it has beside those of the scope.
    least_window_seconds: they are read once in a window, and windows are at least so long.
    """

    name: str
    help: str
    scope: ScopeKind
    permission: str
    states: tuple[tuple[Metric, tuple[str, ...]], ...]
    least_window_seconds: int = WIDTHS_SECONDS[0]

    @property
    def groups(self) -> tuple[str, ...]:
        """Further names in CF_DATASETS that they are meant by."""
        return (self.scope, FACTS)

    @property
    def widths_seconds(self) -> tuple[int, ...]:
        """The values of CF_BUCKET_SECONDS that they can be collected with: every one."""
        return WIDTHS_SECONDS

    def window_seconds(self, bucket_seconds: int) -> int:
        """How long a window is in which they are read once, where those of datasets are so long."""
        return max(bucket_seconds, self.least_window_seconds)

    def metrics(self) -> Iterator[tuple[Metric, tuple[str, ...]]]:
        """Every metric, with its labels."""
        yield from self.states


CERTIFICATE_EXPIRY = Metric(
    "cloudflare_zone_certificate_expiry_timestamp_seconds",
    "When the first certificate of the pack expires, in unix seconds.",
    "seconds",
    additive=False,
)
CERTIFICATE_ACTIVE = Metric(
    "cloudflare_zone_certificate_active", "Whether the certificate pack is in use: 1, or 0.", "", additive=False
)
POOL_HEALTHY = Metric(
    "cloudflare_account_lb_pool_healthy",
    "Whether the load balancers' pool has enough healthy origins: 1, or 0; of pools that are checked.",
    "",
    additive=False,
)
ORIGIN_WEIGHT = Metric(
    "cloudflare_account_lb_origin_weight",
    "The origin's weight in its pool, as it is configured.",
    "",
    additive=False,
)
TUNNEL_HEALTHY = Metric(
    "cloudflare_account_tunnel_healthy", "Whether the tunnel's status is healthy: 1, or 0.", "", additive=False
)
TUNNEL_STATUS = Metric("cloudflare_account_tunnel_status", "Always 1; the label says the status.", "", additive=False)

CERTIFICATES = FactSet(
    name="certificates",
    help="Certificate packs of a zone: whether they are in use, and when they expire.",
    scope=ScopeKind.ZONE,
    permission="Zone > SSL and Certificates > Read",
    states=(
        (CERTIFICATE_EXPIRY, ("certificate_id", "type", "issuer")),
        (CERTIFICATE_ACTIVE, ("certificate_id", "type")),
    ),
    # A request for every zone. Once an hour 1,000 zones are 84 requests of the 1,200 in five minutes; once a minute
    # they would be 5,000.
    least_window_seconds=3600,
)
LB_POOLS = FactSet(
    name="lb_pools",
    help="Pools of load balancers: their health, and the weights of their origins.",
    scope=ScopeKind.ACCOUNT,
    permission="Account > Load Balancing: Monitors And Pools > Read",
    states=((POOL_HEALTHY, ("pool", "pool_id")), (ORIGIN_WEIGHT, ("pool", "pool_id", "origin"))),
)
TUNNELS = FactSet(
    name="tunnel_status",
    help="Status of Cloudflare tunnels.",
    scope=ScopeKind.ACCOUNT,
    permission="Account > Cloudflare Tunnel > Read",
    states=((TUNNEL_HEALTHY, ("tunnel", "tunnel_id")), (TUNNEL_STATUS, ("tunnel", "tunnel_id", "status"))),
)

FACT_SETS: Mapping[str, FactSet] = MappingProxyType({each.name: each for each in (CERTIFICATES, LB_POOLS, TUNNELS)})
"""All of them, by name."""
