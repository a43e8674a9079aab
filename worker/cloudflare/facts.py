"""Reading facts: from the REST API's listings to samples, all of a scope's or none.

A listing that arrived in part, or in which anything is not what it should be, is a failure and no sample. What points
at a machine or a person in it (addresses of origins, connections of tunnels, hosts of certificates) is not read at all.
Knows nothing of when to read, nor of windows.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

from worker.cloudflare.catalogue import (
    CERTIFICATE_ACTIVE,
    CERTIFICATE_EXPIRY,
    CERTIFICATES,
    LB_POOLS,
    ORIGIN_WEIGHT,
    POOL_HEALTHY,
    TUNNEL_HEALTHY,
    TUNNEL_STATUS,
    TUNNELS,
    FactSet,
    Metric,
)
from worker.cloudflare.client import CloudflareClient
from worker.cloudflare.errors import ApiFailure
from worker.cloudflare.paging import Page, all_pages
from worker.cloudflare.rows import Samples
from worker.cloudflare.scope import Scope
from worker.series import label_block

# As many as a page of an analytics query has rows; an account has 1,000 tunnels unless it asks for more.
_MOST_OBJECTS = 10_000

# https://developers.cloudflare.com/cloudflare-one/connections/connect-networks/: the states of a tunnel. A further one
# would be `other`, so that what it is called cannot become ever more series.
_TUNNEL_STATUSES = frozenset({"healthy", "degraded", "down", "inactive"})

_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
_State: TypeAlias = tuple[Metric, Mapping[str, str], float]


class _Certificate(msgspec.Struct):
    expires_on: _Moment | None = None
    issuer: str | None = None


class _Pack(msgspec.Struct):
    id: str
    type: str
    status: str
    certificates: list[_Certificate] | None = None
    certificate_authority: str | None = None


class _Origin(msgspec.Struct):
    name: str
    weight: float = 1.0  # what Cloudflare takes it for where it is not given


class _Pool(msgspec.Struct):
    id: str
    name: str
    healthy: bool | None = None  # none where no monitor checks it
    origins: list[_Origin] | None = None


class _Tunnel(msgspec.Struct):
    id: str
    name: str
    status: str
    deleted_at: str | None = None


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Source(Generic[T]):
    """Where facts come from.

    path:   with a place for the scope's tag.
    params: of the request.
    page:   what a page of the listing is.
    states: what one of the listed objects says.
    """

    path: str
    params: Mapping[str, str]
    page: type[Page[T]]
    states: Callable[[T], Iterator[_State]]


def _of_pack(pack: _Pack) -> Iterator[_State]:
    if pack.status == "deleted":
        return
    labels = {"certificate_id": pack.id, "type": pack.type}
    yield CERTIFICATE_ACTIVE, labels, float(pack.status == "active")
    # A pack that is not issued yet has no certificate; one for browsers old and new has several.
    dated = [(each.expires_on.timestamp(), each.issuer) for each in pack.certificates or () if each.expires_on]
    if dated:
        expiry, issuer = min(dated, key=lambda each: each[0])
        yield CERTIFICATE_EXPIRY, {**labels, "issuer": pack.certificate_authority or issuer or ""}, expiry


def _of_pool(pool: _Pool) -> Iterator[_State]:
    labels = {"pool": pool.name, "pool_id": pool.id}
    if pool.healthy is not None:
        yield POOL_HEALTHY, labels, float(pool.healthy)
    for origin in pool.origins or ():
        yield ORIGIN_WEIGHT, {**labels, "origin": origin.name}, origin.weight


def _of_tunnel(tunnel: _Tunnel) -> Iterator[_State]:
    if tunnel.deleted_at is not None:
        return
    labels = {"tunnel": tunnel.name, "tunnel_id": tunnel.id}
    status = tunnel.status if tunnel.status in _TUNNEL_STATUSES else "other"
    yield TUNNEL_HEALTHY, labels, float(status == "healthy")
    yield TUNNEL_STATUS, {**labels, "status": status}, 1.0


_SOURCES: Mapping[str, _Source[Any]] = MappingProxyType(
    {
        # Without `status=all` it lists active packs only, and one that could not be renewed would just be gone.
        CERTIFICATES.name: _Source("/zones/{tag}/ssl/certificate_packs", {"status": "all"}, Page[_Pack], _of_pack),
        LB_POOLS.name: _Source("/accounts/{tag}/load_balancers/pools", {}, Page[_Pool], _of_pool),
        TUNNELS.name: _Source("/accounts/{tag}/cfd_tunnel", {"is_deleted": "false"}, Page[_Tunnel], _of_tunnel),
    }
)


async def read_facts(client: CloudflareClient, fact_set: FactSet, scope: Scope) -> Samples | ApiFailure:
    """What Cloudflare says of a scope at this moment; it may be nothing.

    Costs one request for fifty objects.
    """
    source = _SOURCES[fact_set.name]
    path = source.path.format(tag=scope.tag)
    listed = await all_pages(client, path, source.params, source.page, is_counted=False, most_objects=_MOST_OBJECTS)
    if isinstance(listed, ApiFailure):
        return listed
    return _samples(scope, (state for each in listed for state in source.states(each)))


def _samples(scope: Scope, states: Iterator[_State]) -> Samples:
    values: dict[bytes, float] = {}
    for metric, labels, value in states:
        # For Prometheus an empty label is none, and the sample would be of another series.
        own = {name: text or "unknown" for name, text in labels.items()}
        block = label_block(metric.name, {**scope.labels(), **own})
        # Ids are distinct. Names of origins need not be within a pool: together they have the sum of their weights.
        values[block] = values.get(block, 0.0) + value
    return Samples(tuple(values), array("d", values.values()))
