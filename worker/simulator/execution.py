"""Answering one GraphQL query, as a pure function of the query and of the world at one moment.

graphql-core parses and validates against the schema; this module walks what is left. (Executing with graphql-core too
would resolve every number of every row by itself: seconds for an answer that this takes milliseconds for.) A query is
answered whole or refused whole with its first error, as Cloudflare does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLIncludeDirective,
    GraphQLObjectType,
    GraphQLSkipDirective,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    get_argument_values,
    get_directive_values,
    get_named_type,
    get_variable_values,
    parse,
    validate,
)

from worker.simulator import filters, rollups
from worker.simulator.entitlements import Entitlements, QueryLimits
from worker.simulator.fleet import Fleet, Zone
from worker.simulator.refusals import Details, Dialect, Refusal, RefusalKind, RefusedError, refusal
from worker.simulator.schema import ROLLUPS, SCHEMA, Rollup, available_fields
from worker.simulator.settling import Settling

# One query text per dataset and width is what a worker sends.
_REMEMBERED_QUERIES = 256
_COST = 1


@dataclass(frozen=True, slots=True)
class World:
    """All that an answer depends on besides the query.

    zones:          those that the token may see, by tag.
    entitlements:   by plan and dataset.
    denied_fields:  (zone tag, dataset, field as `settings` lists it) that must not be selected.
    blank_zones:    those whose datasets come back empty, whatever there is.
    budget_left:    how many queries the token has left.
    salt:           what the arbitrary order of rows and zones depends on.
    """

    fleet: Fleet
    now: float
    settling: Settling
    zones: Mapping[str, Zone]
    entitlements: Entitlements
    denied_fields: frozenset[tuple[str, str, str]]
    blank_zones: frozenset[str]
    limits: QueryLimits
    dialect: Dialect
    budget_left: int
    salt: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One dataset that a query asked for: what, of which zones (answered or not), for which range of unix seconds."""

    node: str
    key: str
    zone_tags: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a query: data or refusals.

    asked: what it asked for, as far as it was looked at.
    """

    status: int
    data: dict[str, Any] | None
    refusals: tuple[Refusal, ...]
    asked: tuple[Asked, ...]


def execute(query: str, variables: Mapping[str, Any], operation_name: str | None, world: World) -> Answer:
    """The answer to a query."""
    execution: _Execution | None = None
    try:
        document = _checked_document(query)
        execution = _Execution(world, document, operation_name, variables)
        data = execution.data()
    except RefusedError as error:
        asked = () if execution is None else tuple(execution.asked)
        return Answer(error.refusal.status, None, (error.refusal,), asked)
    except GraphQLError as error:
        return Answer(HTTPStatus.BAD_REQUEST, None, (Refusal(error.message, HTTPStatus.BAD_REQUEST),), ())
    return Answer(HTTPStatus.OK, data, (), tuple(execution.asked))


@lru_cache(_REMEMBERED_QUERIES)
def _checked_document(query: str) -> DocumentNode:
    document = parse(query, no_location=True)
    errors = validate(SCHEMA, document)
    if errors:
        raise errors[0]
    return document


@dataclass(frozen=True, slots=True)
class _Selected:
    """A selected field: its key in the answer, its name, its arguments, and what is selected below it."""

    key: str
    name: str
    arguments: Mapping[str, Any]
    below: tuple["_Selected", ...]

    def names_below(self, name: str) -> list[str]:
        """What is selected of the object in the field `name` below."""
        return [leaf.name for each in self.below if each.name == name for leaf in each.below]


@dataclass(slots=True)
class _Execution:
    world: World
    document: DocumentNode
    operation_name: str | None
    variable_values: Mapping[str, Any]
    asked: list[Asked] = field(default_factory=list)
    _nodes: int = 0
    _fragments: dict[str, SelectionSetNode] = field(default_factory=dict)
    _variables: Any = None

    def data(self) -> dict[str, Any]:
        operation = self._operation()
        self._fragments = {
            definition.name.value: definition.selection_set
            for definition in self.document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }
        variables = get_variable_values(SCHEMA, operation.variable_definitions or (), dict(self.variable_values))
        if isinstance(variables, list):
            raise variables[0]
        self._variables = variables
        answer: dict[str, Any] = {}
        for selected in self._selected([operation.selection_set], SCHEMA.query_type):
            answer[selected.key] = _COST if selected.name == "cost" else self._viewer(selected)
        return answer

    def _operation(self) -> OperationDefinitionNode:
        operations = [
            definition
            for definition in self.document.definitions
            if isinstance(definition, OperationDefinitionNode)
            and (self.operation_name is None or (definition.name and definition.name.value == self.operation_name))
        ]
        if len(operations) != 1:
            message = "operationName must name one operation of the query"
            raise GraphQLError(message)
        return operations[0]

    def _selected(self, sets: Sequence[SelectionSetNode], parent: Any) -> tuple[_Selected, ...]:
        """The selections with fragments spread, conditions applied and equal keys merged."""
        nodes: dict[str, list[FieldNode]] = {}
        for selection_set in sets:
            self._collect(selection_set, nodes)
        merged: list[_Selected] = []
        for key, same in nodes.items():
            name = same[0].name.value
            if name.startswith("__"):
                message = f"{name} is not simulated"
                raise GraphQLError(message)
            definition = parent.fields[name]
            named_type = get_named_type(definition.type)
            below: tuple[_Selected, ...] = ()
            if isinstance(named_type, GraphQLObjectType):
                below = self._selected([node.selection_set for node in same if node.selection_set], named_type)
            merged.append(_Selected(key, name, get_argument_values(definition, same[0], self._variables), below))
        return tuple(merged)

    def _collect(self, selection_set: SelectionSetNode, nodes: dict[str, list[FieldNode]]) -> None:
        for selection in selection_set.selections:
            skip = get_directive_values(GraphQLSkipDirective, selection, self._variables)
            include = get_directive_values(GraphQLIncludeDirective, selection, self._variables)
            if (skip and skip["if"]) or (include and not include["if"]):
                continue
            match selection:
                case FieldNode():
                    key = (selection.alias or selection.name).value
                    nodes.setdefault(key, []).append(selection)
                case InlineFragmentNode():
                    self._collect(selection.selection_set, nodes)
                case FragmentSpreadNode():
                    self._collect(self._fragments[selection.name.value], nodes)
                case _:
                    message = f"{selection.kind} is not simulated"
                    raise GraphQLError(message)

    def _viewer(self, viewer: _Selected) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for selected in viewer.below:
            match selected.name:
                case "budget":
                    answer[selected.key] = self.world.budget_left
                case "zones":
                    answer[selected.key] = self._zones(selected, self.world.zones, ("viewer", selected.key))
                case _:
                    answer[selected.key] = self._accounts(selected)
        return answer

    def _accounts(self, accounts: _Selected) -> list[dict[str, Any]]:
        visible = {zone.account.tag for zone in self.world.zones.values()}
        account_filter = accounts.arguments.get("filter")
        tags = sorted(visible) if account_filter is None else [account_filter["accountTag"]]
        path = ("viewer", accounts.key)
        if not visible.issuperset(tags):
            raise RefusedError(refusal(RefusalKind.ACCOUNT_UNAUTHORIZED, self.world.dialect, path))
        if len(tags) > 1:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_NODES, self.world.dialect, path))
        return [self._account(accounts, tag, (*path, str(index))) for index, tag in enumerate(tags)]

    def _account(self, account: _Selected, tag: str, path: tuple[str, ...]) -> dict[str, Any]:
        zones = {zone.tag: zone for zone in self.world.zones.values() if zone.account.tag == tag}
        return {
            selected.key: tag if selected.name == "accountTag" else self._zones(selected, zones, (*path, selected.key))
            for selected in account.below
        }

    def _zones(self, zones: _Selected, visible: Mapping[str, Zone], path: tuple[str, ...]) -> list[dict[str, Any]]:
        asked = _asked_tags(zones.arguments.get("filter") or {}, visible)
        limit = zones.arguments.get("limit")
        asked = asked[:limit]
        if len(asked) > self.world.limits.max_zones:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_ZONES, self.world.dialect, path))
        datasets = [selected for selected in zones.below if selected.name in ROLLUPS]
        self._nodes += len(asked) * len(datasets)
        if self._nodes > self.world.limits.max_nodes:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_NODES, self.world.dialect))
        spans = {
            selected.key: filters.spans(selected.arguments["filter"], ROLLUPS[selected.name].dimensions)
            for selected in datasets
        }
        self.asked.extend(
            Asked(selected.name, selected.key, tuple(asked), *self._range(spans[selected.key])) for selected in datasets
        )
        # A zone that the token cannot see is left out without a word; an index in a path counts in the list asked for.
        answers = [
            self._zone(zones, visible[tag], spans, (*path, str(index)))
            for index, tag in enumerate(asked)
            if tag in visible
        ]
        return rollups.shuffled(answers, f"{self.world.salt}/zones")

    def _zone(
        self,
        zones: _Selected,
        zone: Zone,
        spans: Mapping[str, tuple[filters.Span, ...]],
        path: tuple[str, ...],
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for selected in zones.below:
            match selected.name:
                case "zoneTag":
                    answer[selected.key] = zone.tag
                case "settings":
                    answer[selected.key] = _projected(self._settings(zone), selected.below)
                case node:
                    answer[selected.key] = self._rows(
                        selected, ROLLUPS[node], zone, spans[selected.key], (*path, selected.key)
                    )
        return answer

    def _settings(self, zone: Zone) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for node, entitlement in self.world.entitlements[zone.plan].items():
            fields = available_fields(ROLLUPS[node]) if entitlement.is_enabled else []
            settings[node] = {
                "availableFields": [name for name in fields if (zone.tag, node, name) not in self.world.denied_fields],
                "enabled": entitlement.is_enabled,
                "maxDuration": entitlement.max_duration_seconds,
                "maxNumberOfFields": entitlement.max_fields,
                "maxPageSize": entitlement.max_page_size,
                "notOlderThan": entitlement.not_older_than_seconds,
            }
        return settings

    def _rows(
        self,
        selected: _Selected,
        rollup: Rollup,
        zone: Zone,
        spans: tuple[filters.Span, ...],
        path: tuple[str, ...],
    ) -> list[dict[str, Any]]:
        self._check(selected, rollup, zone, spans, path)
        if zone.tag in self.world.blank_zones:
            return []
        orders = selected.arguments.get("orderBy") or []
        dimensions = list(dict.fromkeys([*selected.names_below("dimensions"), *rollups.ordering_dimensions(orders)]))
        found = rollups.rows(
            self.world.fleet,
            zone.tag,
            rollup,
            spans,
            dimensions,
            now=self.world.now,
            settling=self.world.settling,
        )
        page = rollups.ordered(found, orders, f"{self.world.salt}/{zone.tag}")[: selected.arguments["limit"]]
        return [_projected(row, selected.below) for row in page]

    def _check(
        self,
        selected: _Selected,
        rollup: Rollup,
        zone: Zone,
        spans: tuple[filters.Span, ...],
        path: tuple[str, ...],
    ) -> None:
        """Refuse what the zone may not ask of the dataset."""

        def refuse(kind: RefusalKind, **details: Any) -> RefusedError:
            return RefusedError(
                refusal(kind, self.world.dialect, path, node=rollup.node, details=Details(zone_tag=zone.tag, **details))
            )

        entitlement = self.world.entitlements[zone.plan][rollup.node]
        if not entitlement.is_enabled:
            raise refuse(RefusalKind.PATH_ACCESS)
        fields = [f"{part.name}_{leaf.name}" for part in selected.below for leaf in part.below]
        for name in fields:
            if (zone.tag, rollup.node, name) in self.world.denied_fields:
                raise refuse(RefusalKind.FIELD_ACCESS, field=name.rpartition("_")[2].lower())
        if len(fields) > entitlement.max_fields:
            raise refuse(RefusalKind.FIELD_COUNT, maximum=entitlement.max_fields)
        if not 0 < selected.arguments["limit"] <= entitlement.max_page_size:
            raise refuse(RefusalKind.PAGE_SIZE, maximum=entitlement.max_page_size)
        start, end = self._range(spans)
        if start < self.world.now - entitlement.not_older_than_seconds:
            raise refuse(
                RefusalKind.RETENTION,
                limit_seconds=entitlement.not_older_than_seconds,
                asked_seconds=int(self.world.now) - start,
            )
        if end - start > entitlement.max_duration_seconds:
            raise refuse(RefusalKind.WINDOW, limit_seconds=entitlement.max_duration_seconds, asked_seconds=end - start)

    def _range(self, spans: tuple[filters.Span, ...]) -> tuple[int, int]:
        """From the start of the first span to the end of the last one, or to now where that has no end."""
        now = int(self.world.now)
        if not spans:
            return now, now
        end = spans[-1][1]
        return spans[0][0], now if end == filters.END_OF_TIME else end


def _asked_tags(zone_filter: Mapping[str, Any], visible: Mapping[str, Zone]) -> list[str]:
    """The zones that a filter names, in its order; all that are visible, in order of tag, where it names none."""
    one, several, after = (zone_filter.get(name) for name in ("zoneTag", "zoneTag_in", "zoneTag_gt"))
    asked = sorted(visible) if several is None else list(dict.fromkeys(several))
    if one is not None:
        asked = [one] if several is None or one in several else []
    return asked if after is None else [tag for tag in asked if tag > after]


def _projected(value: Any, below: tuple[_Selected, ...]) -> Any:
    """What is selected of plain data."""
    if isinstance(value, list):
        return [_projected(element, below) for element in value]
    return {
        selected.key: _projected(value[selected.name], selected.below) if selected.below else value[selected.name]
        for selected in below
    }
