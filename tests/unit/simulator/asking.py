"""Asking a simulated world for windows of a dataset, said independently of the worker's own queries."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from tests.unit.simulator.worlds import iso
from worker.cloudflare.catalogue import Dataset, ScopeKind, TimeType
from worker.simulator.execution import Answer, World, execute

Row = dict[str, Any]


def text_of(dataset: Dataset, width_seconds: int, since: int, until: int) -> str:
    """The field that asks for a dataset's windows in [since, until), called `rows`."""
    grain = dataset.grain(width_seconds)
    moments = [iso(at) if grain.time is TimeType.TIME else iso(at)[:10] for at in (since, until)]
    conditions = [f'{grain.since}: "{moments[0]}"', f'{grain.until}: "{moments[1]}"']
    conditions += [f"{name}: {msgspec.json.encode(value).decode()}" for name, value in dataset.where]
    parts: dict[str, list[str]] = {"dimensions": [label.dimension for label in dataset.labels]}
    if grain.dimension is not None:
        parts["dimensions"].append(f"start: {grain.dimension}")
    for total in dataset.totals:
        if len(total.path) > 1:
            parts.setdefault(total.path[0], []).append(total.path[1])
    for item in dataset.breakdowns:
        leaves = " ".join((item.key, *(leaf for leaf, _ in item.values)))
        parts.setdefault(item.path[0], []).append(f"{item.path[1]} {{ {leaves} }}")
    if dataset.is_sampled:
        parts.setdefault("avg", []).append("sampleInterval")
    selected = " ".join(f"{name} {{ {' '.join(leaves)} }}" for name, leaves in parts.items() if leaves)
    if any(total.path == ("count",) for total in dataset.totals):
        selected += " count"
    return f"rows: {grain.node}(limit: 10000, filter: {{{', '.join(conditions)}}}) {{ {selected} }}"


def whole(kind: ScopeKind, tags: Sequence[str], fields: str) -> str:
    """The query that asks these fields of zones, or of one account."""
    if kind is ScopeKind.ACCOUNT:
        (tag,) = tags
        return f'{{ viewer {{ accounts(filter: {{accountTag: "{tag}"}}) {{ accountTag {fields} }} }} }}'
    listed = msgspec.json.encode(list(tags)).decode()
    return f"{{ viewer {{ zones(filter: {{zoneTag_in: {listed}}}) {{ zoneTag {fields} }} }} }}"


def ask_windows(  # noqa: PLR0917 - the arguments read like the question
    world: World, dataset: Dataset, width_seconds: int, tags: Sequence[str], since: int, until: int
) -> Answer:
    fields = text_of(dataset, width_seconds, since, until)
    return execute(whole(dataset.scope, tags, fields), {}, None, world)


def rows_of(answer: Answer) -> dict[str, list[Row]]:
    """The rows by the tag of their zone or account."""
    assert answer.refusals == ()
    assert answer.data is not None
    ((name, scopes),) = msgspec.to_builtins(answer.data)["viewer"].items()
    return {scope[f"{name.removesuffix('s')}Tag"]: scope["rows"] for scope in scopes}


def told(dataset: Dataset, width_seconds: int, rows: Sequence[Row], since: int) -> dict[int, dict[Any, Any]]:
    """What rows say: by window, by the values of the labels, every number by its path."""
    found: dict[int, dict[Any, Any]] = {}
    for row in rows:
        start = since
        if dataset.grain(width_seconds).dimension is not None:
            moment = row["dimensions"]["start"]
            start = int(datetime.fromisoformat(moment if "T" in moment else f"{moment}T00:00:00Z").timestamp())
        labels = tuple(row["dimensions"][label.dimension] for label in dataset.labels)
        window = found.setdefault(start, {})
        assert labels not in window
        window[labels] = {
            total.path: row["count"] if len(total.path) == 1 else row[total.path[0]][total.path[1]]
            for total in dataset.totals
        }
        for item in dataset.breakdowns:
            for element in row[item.path[0]][item.path[1]]:
                for leaf, _ in item.values:
                    window[labels][*item.path, str(element[item.key]), leaf] = element[leaf]
    return found
