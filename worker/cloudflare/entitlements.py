"""Entitlements: what a plan lets a zone or an account be asked for, and what that leaves of a dataset.

Cloudflare's tables of plans contradict its API, so only its `settings` are believed, and those with care: they tell
what will be refused, never what will be answered. In doubt a dataset is asked for, since a refusal is noticed and costs
one query, and a number that nobody asks for is missed for good. Pure; `worker.cloudflare.settings_node` reads them.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

from worker.cloudflare.catalogue import Dataset, Grain
from worker.cloudflare.errors import ApiFailure
from worker.times import span


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What `settings` say of one node, for one zone or account. A number is None where they do not say it.

    enabled:              whether the node may be asked for at all.
    fields:               what may be selected, as Cloudflare names it (`count`, `sum_requests`, `sum_countryMap`,
                          `dimensions_datetimeHour`); empty where the list is not known.
    max_duration_seconds: the longest time that one query may span.
    max_fields:           how many fields one query may select.
    max_page_rows:        the highest `limit` of a query.
    retention_seconds:    how long ago a query may begin.
    """

    enabled: bool
    fields: frozenset[str] = frozenset()
    max_duration_seconds: int | None = None
    max_fields: int | None = None
    max_page_rows: int | None = None
    retention_seconds: int | None = None


Entitlements = Mapping[str, Entitlement | ApiFailure]
"""Of one zone or account: what it may ask of each node, or why that is not known."""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What can be asked for.

    dropped:           the fields that are left out, named like `sum_threats`, `sum_countryMap`, `sum_countryMap_bytes`.
    retention_seconds: how long ago a query may begin; None where that is not known.
    """

    dataset: Dataset
    dropped: frozenset[str] = frozenset()
    retention_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing of the dataset can be asked for; the reason is for people."""

    reason: str


def signature(entitlements: Entitlements) -> Hashable:
    """Equal for zones or accounts that may be asked for the same, so that they can share a query."""
    return frozenset((node, known if isinstance(known, Entitlement) else None) for node, known in entitlements.items())


def entitled(
    dataset: Dataset, width_seconds: int, entitlement: Entitlement | ApiFailure, *, delay_seconds: int = 0
) -> Narrowed | Denied:
    """What an entitlement leaves of a dataset in windows of this width; ValueError where it has no such windows.

    delay_seconds: how long after their end windows are asked for.

    An entitlement that is not known leaves everything. So does a list of fields that names nothing in the way that is
    known. Time dimensions are not looked for in it: which of them it names is not documented.
    """
    grain = dataset.grain(width_seconds)
    if isinstance(entitlement, ApiFailure):
        return Narrowed(dataset)
    if refusal := _refusal(grain, entitlement, delay_seconds):
        return Denied(refusal)
    dropped: frozenset[str] = frozenset()
    listed = frozenset(field.lower().replace(".", "_") for field in entitlement.fields)
    if _is_understood(listed, dataset):
        if missing := _missing_label(listed, dataset):
            return Denied(f"the plan does not include the dimension {missing} of {grain.node}")
        dropped = frozenset(_missing_fields(listed, dataset))
    narrowed = dataset.without(dropped)
    if narrowed.is_empty:
        return Denied(f"the plan includes none of the fields of {grain.node} that {dataset.name} is made of")
    return _within(entitlement.max_fields, Narrowed(narrowed, dropped, entitlement.retention_seconds), grain)


def _refusal(grain: Grain, entitlement: Entitlement, delay_seconds: int) -> str | None:
    """Why no window can be asked for, whatever the fields."""
    width = span(grain.width_seconds)
    if not entitlement.enabled:
        return f"the plan does not include {grain.node}"
    kept = entitlement.retention_seconds
    if kept is not None and kept < grain.width_seconds + delay_seconds:
        return f"the plan keeps {grain.node} for {span(kept)}, too short for windows of {width}"
    longest = entitlement.max_duration_seconds
    if longest is not None and longest < grain.width_seconds:
        return f"the plan allows {span(longest)} of {grain.node} in a query, less than a window of {width}"
    return None


def _is_understood(listed: frozenset[str], dataset: Dataset) -> bool:
    """Whether a list of fields names them as known: by an object that the dataset has fields in, and the field."""
    objects = {item.path[0].lower() for item in dataset.totals} | {item.path[0].lower() for item in dataset.breakdowns}
    return any(field in objects or field.partition("_")[0] in {*objects, "dimensions"} for field in listed)


def _missing_label(listed: frozenset[str], dataset: Dataset) -> str | None:
    """A dimension that the dataset needs for a label and that is not listed, while others are."""
    if not any(field.startswith("dimensions_") and not field.startswith("dimensions_date") for field in listed):
        return None
    missing = (label.dimension for label in dataset.labels if f"dimensions_{label.dimension}".lower() not in listed)
    return next(missing, None)


def _missing_fields(listed: frozenset[str], dataset: Dataset) -> Iterator[str]:
    """The fields of a dataset that are not listed; of a map that is listed as a whole, none of its parts."""
    for total in dataset.totals:
        if total.field.lower() not in listed:
            yield total.field
    for breakdown in dataset.breakdowns:
        whole = breakdown.field.lower()
        parts = {field for field in listed if field.startswith(f"{whole}_")}
        if (f"{whole}_{breakdown.key}".lower() not in parts) if parts else (whole not in listed):
            yield breakdown.field
        elif parts:
            yield from (
                f"{breakdown.field}_{leaf}" for leaf, _ in breakdown.values if f"{whole}_{leaf}".lower() not in parts
            )
    if dataset.is_sampled and "avg_sampleinterval" not in listed:
        yield "avg_sampleInterval"


def _within(max_fields: int | None, narrowed: Narrowed, grain: Grain) -> Narrowed | Denied:
    """Leave out maps, the last ones first, and then totals, until no more fields are selected than allowed."""
    while max_fields is not None and _field_count(narrowed.dataset, grain) > max_fields:
        dataset = narrowed.dataset
        if not dataset.breakdowns and len(dataset.totals) <= 1:
            return Denied(f"the plan allows {max_fields} fields of {grain.node} in a query, fewer than are needed")
        items = dataset.breakdowns or dataset.totals
        ranked = dataset.top and "_".join(dataset.top.by)
        last = [item.field for item in items if item.field != ranked][-1]
        narrowed = replace(narrowed, dataset=dataset.without({last}), dropped=narrowed.dropped | {last})
    return narrowed


def _field_count(dataset: Dataset, grain: Grain) -> int:
    """How many fields a query for it selects."""
    dimensions = len(dataset.labels) + (grain.dimension is not None)
    maps = sum(1 + len(breakdown.values) for breakdown in dataset.breakdowns)
    return dimensions + len(dataset.totals) + maps + dataset.is_sampled
