"""A fleet at a moment, and queries to ask of it without a port."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from worker.cloudflare.catalogue import Dataset
from worker.simulator.entitlements import ENTITLEMENTS, QueryLimits
from worker.simulator.events import Events
from worker.simulator.execution import Answer, World, execute
from worker.simulator.fleet import Fleet, Plan
from worker.simulator.refusals import Dialect
from worker.simulator.schema import schema_of
from worker.simulator.settling import Settling

# Tuesday 2025-06-17T15:00:00Z, within the hours in which every rhythm but the sparse one always has traffic.
NOW = 1_750_172_400

ALL_FIELDS = """
    avg { bytes edgeRequestBytes sampleInterval }
    sum {
      requests bytes cachedRequests cachedBytes encryptedRequests encryptedBytes edgeRequestBytes pageViews threats
      countryMap { clientCountryName requests bytes threats }
      responseStatusMap { edgeResponseStatus requests }
      contentTypeMap { edgeResponseContentTypeName requests bytes }
      browserMap { uaBrowserFamily pageViews }
      clientHTTPVersionMap { clientHTTPProtocol requests }
      clientSSLMap { clientSSLProtocol requests }
      ipClassMap { ipType requests }
      threatPathingMap { threatPathingName requests }
    }
    uniq { uniques }
"""


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def enterprise(zones: int = 5, seed: int = 1) -> Fleet:
    return Fleet(seed, zones=zones, plans=(Plan.ENTERPRISE,))


def world_of(fleet: Fleet, now: float = NOW, datasets: tuple[Dataset, ...] = ()) -> World:
    schema = schema_of(datasets)
    return World(
        fleet=fleet,
        events=Events(fleet, schema.nodes),
        schema=schema,
        now=now,
        settling=Settling(),
        accounts=frozenset(account.tag for account in fleet.accounts),
        zones={zone.tag: zone for zone in fleet.zones},
        entitlements=ENTITLEMENTS,
        changes={},
        denied_fields=frozenset(),
        removed_fields=frozenset(),
        blank_scopes=frozenset(),
        sampling=None,
        limits=QueryLimits(),
        dialect=Dialect.RECENT,
        budget_left=300,
        salt="salt",
    )


def changed(world: World, **changes: Any) -> World:
    return replace(world, **changes)


def query(
    node: str,
    *,
    dimensions: str = "datetime",
    limit: int = 10_000,
    order: str = "",
    fields: str = "sum { requests }",
) -> str:
    time = "date" if node == "httpRequests1dGroups" else "datetime"
    scalar = "Date" if time == "date" else "Time"
    grouping = f"dimensions {{ {dimensions} }}" if dimensions else ""
    return f"""
      query ($tags: [string!], $since: {scalar}!, $until: {scalar}!) {{
        viewer {{ zones(filter: {{zoneTag_in: $tags}}) {{
          zoneTag
          {node}(limit: {limit}, filter: {{{time}_geq: $since, {time}_lt: $until}} {order}) {{ {grouping} {fields} }}
        }} }}
      }}
    """


def ask(world: World, text: str, tags: Sequence[str], since: float, until: float) -> Answer:
    is_daily = "$since: Date!" in text
    moment = (lambda seconds: iso(seconds)[:10]) if is_daily else iso
    variables: Mapping[str, Any] = {"tags": list(tags), "since": moment(since), "until": moment(until)}
    return execute(text, variables, None, world)


def rows_by_zone(answer: Answer, node: str) -> dict[str, list[dict[str, Any]]]:
    assert answer.refusals == ()
    assert answer.data is not None
    return {zone["zoneTag"]: zone[node] for zone in answer.data["viewer"]["zones"]}
