"""Answering one GraphQL query, as a pure function of the query and of the world at one moment.

graphql-core parses and validates against the schema; this module walks what is left. (Executing with graphql-core too
would resolve every number of every row by itself: seconds for an answer that this takes milliseconds for.) A query is
answered whole or refused whole with its first error, as Cloudflare does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import msgspec
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

from worker.cloudflare.catalogue import ScopeKind
from worker.simulator import filters, groups, rollups
from worker.simulator.entitlements import PLAN_ORDER, Entitlement, Entitlements, QueryLimits, entitlement
from worker.simulator.events import Event, Events
from worker.simulator.fleet import Fleet, Plan, Zone
from worker.simulator.groups import Sampling
from worker.simulator.nodes import COUNT, Node, Path
from worker.simulator.refusals import Details, Dialect, Refusal, RefusalKind, RefusedError, refusal
from worker.simulator.rollups import Rollup
from worker.simulator.schema import Schema, Source
from worker.simulator.settling import Settling

# One query text per dataset and width is what a worker sends.
_REMEMBERED_QUERIES = 256
_COST = 1


@dataclass(frozen=True, slots=True)
class World:
    """All that an answer depends on besides the query.

    events:         what happened besides the rollups.
    schema:         what can be asked.
    accounts:       the tags of those that the token may see.
    zones:          those that the token may see, by tag.
    entitlements:   by plan and node.
    changes:        what single zones and accounts have instead, by their tag and node; a function of what they had.
    denied_fields:  (zone or account tag, node, field as `settings` lists it) that must not be selected.
    removed_fields: (node, field) that do not exist any more; "" stands for the node itself.
    blank_scopes:   the tags of those whose datasets come back empty, whatever there is.
    sampling:       how adaptive nodes are thinned out; without, they count everything.
    budget_left:    how many queries the token has left.
    scope_budgets:  how many an account or a zone has left, where those are counted instead.
    salt:           what the arbitrary order of rows and zones depends on.
    """

    fleet: Fleet
    events: Events
    schema: Schema
    now: float
    settling: Settling
    accounts: frozenset[str]
    zones: Mapping[str, Zone]
    entitlements: Entitlements
    changes: Mapping[tuple[str, str], Callable[[Entitlement], Entitlement]]
    denied_fields: frozenset[tuple[str, str, str]]
    removed_fields: frozenset[tuple[str, str]]
    blank_scopes: frozenset[str]
    sampling: Sampling | None
    limits: QueryLimits
    dialect: Dialect
    budget_left: int
    salt: str
    scope_budgets: Callable[[str], int] | None = None

    def entitlement(self, tag: str, plan: Plan, node: str) -> Entitlement:
        """What a zone or an account may ask of a node now."""
        usual = entitlement(self.entitlements, plan, node)
        change = self.changes.get((tag, node))
        return usual if change is None else change(usual)

    def is_denied(self, tag: str, node: str, field_name: str, allowed: Entitlement) -> bool:
        """Whether it must not select a field of a node that it may ask."""
        return field_name in allowed.denied_fields or (tag, node, field_name) in self.denied_fields

    def is_removed(self, node: str, field_name: str = "") -> bool:
        """Whether the node, or one of its fields, is not there any more."""
        return (node, field_name) in self.removed_fields


@dataclass(frozen=True, slots=True)
class Asked:
    """One node that a query asked for: of which zones or accounts (answered or not), for which range of unix seconds.

    key:   its field's key in the answer.
    path:  of the list of zones or accounts in the answer.
    scope: which of the two that is.
    """

    node: str
    key: str
    scope_tags: tuple[str, ...]
    start: int
    end: int
    path: tuple[str, ...] = ("viewer", "zones")
    scope: ScopeKind = ScopeKind.ZONE


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a query: data or refusals.

    data:    as JSON has it once it is encoded; rows of nodes are structures.
    asked:   what it asked for, as far as it was looked at.
    counted: the accounts and zones that it counts against, where those are counted, by tag.
    """

    status: int
    data: dict[str, Any] | None
    refusals: tuple[Refusal, ...]
    asked: tuple[Asked, ...]
    counted: Mapping[str, ScopeKind] = field(default_factory=dict)


def execute(query: str, variables: Mapping[str, Any], operation_name: str | None, world: World) -> Answer:
    """The answer to a query."""
    execution: _Execution | None = None
    try:
        document = _checked_document(query, world.schema)
        execution = _Execution(world, document, operation_name, variables)
        data = execution.data()
    except RefusedError as error:
        asked = () if execution is None else tuple(execution.asked)
        counted = {} if execution is None else execution.counted
        return Answer(error.refusal.status, None, (error.refusal,), asked, counted)
    except GraphQLError as error:
        return Answer(HTTPStatus.BAD_REQUEST, None, (Refusal(error.message, HTTPStatus.BAD_REQUEST),), ())
    return Answer(HTTPStatus.OK, data, (), tuple(execution.asked), execution.counted)


@lru_cache(_REMEMBERED_QUERIES)
def _checked_document(query: str, schema: Schema) -> DocumentNode:
    document = parse(query, no_location=True)
    errors = validate(schema.graphql, document)
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
    counted: dict[str, ScopeKind] = field(default_factory=dict)
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
        schema = self.world.schema.graphql
        variables = get_variable_values(schema, operation.variable_definitions or (), dict(self.variable_values))
        if isinstance(variables, list):
            raise variables[0]
        self._variables = variables
        answer: dict[str, Any] = {}
        for selected in self._selected([operation.selection_set], schema.query_type):
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
        # The budget last: whose it is, the others tell.
        for selected in sorted(viewer.below, key=lambda selected: selected.name == "budget"):
            match selected.name:
                case "budget":
                    answer[selected.key] = self._budget_left()
                case "zones":
                    path = ("viewer", selected.key)
                    if self.world.scope_budgets is not None:
                        self._count_zone(selected, path)
                    answer[selected.key] = self._zones(selected, self.world.zones, path)
                case _:
                    answer[selected.key] = self._accounts(selected)
        return answer

    def _budget_left(self) -> int:
        if self.world.scope_budgets is None or not self.counted:
            return self.world.budget_left
        return min(self.world.scope_budgets(tag) for tag in self.counted)

    def _count_zone(self, zones: _Selected, path: tuple[str, ...]) -> None:
        """Where accounts and zones are counted, only a single zone can be asked for outside of its account."""
        tag = (zones.arguments.get("filter") or {}).get("zoneTag")
        if tag is None:
            raise RefusedError(refusal(RefusalKind.ZONE_LIST, self.world.dialect, path))
        self.counted[tag] = ScopeKind.ZONE

    def _accounts(self, accounts: _Selected) -> list[dict[str, Any]]:
        visible = self.world.accounts
        account_filter = accounts.arguments.get("filter")
        tags = sorted(visible) if account_filter is None else [account_filter["accountTag"]]
        path = ("viewer", accounts.key)
        self.counted |= dict.fromkeys(tags, ScopeKind.ACCOUNT)
        if not visible.issuperset(tags):
            raise RefusedError(refusal(RefusalKind.ACCOUNT_UNAUTHORIZED, self.world.dialect, path))
        if len(tags) > 1:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_NODES, self.world.dialect, path))
        datasets = self._datasets(ScopeKind.ACCOUNT, accounts, tags, path)
        return [self._account(accounts, tag, datasets, (*path, str(index))) for index, tag in enumerate(tags)]

    def _account(
        self, selected: _Selected, tag: str, datasets: Mapping[str, "_Dataset"], path: tuple[str, ...]
    ) -> dict[str, Any]:
        zones = {zone.tag: zone for zone in self.world.zones.values() if zone.account.tag == tag}
        plans = [zone.plan for zone in zones.values()]
        account = _Scope(ScopeKind.ACCOUNT, tag, max(plans, key=PLAN_ORDER.index, default=Plan.FREE))
        answer: dict[str, Any] = {}
        for each in selected.below:
            match each.name:
                case "accountTag":
                    answer[each.key] = tag
                case "zones":
                    answer[each.key] = self._zones(each, zones, (*path, each.key))
                case "settings":
                    answer[each.key] = self._settings(account, each)
                case _:
                    answer[each.key] = self._rows(datasets[each.key], account, (*path, each.key))
        return answer

    def _zones(self, zones: _Selected, visible: Mapping[str, Zone], path: tuple[str, ...]) -> list[dict[str, Any]]:
        asked = _asked_tags(zones.arguments.get("filter") or {}, visible)
        limit = zones.arguments.get("limit")
        asked = asked[:limit]
        if len(asked) > self.world.limits.max_zones:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_ZONES, self.world.dialect, path))
        datasets = self._datasets(ScopeKind.ZONE, zones, asked, path)
        # A zone that the token cannot see is left out without a word; an index in a path counts in the list asked for.
        answers = [
            self._zone(zones, visible[tag], datasets, (*path, str(index)))
            for index, tag in enumerate(asked)
            if tag in visible
        ]
        return rollups.shuffled(answers, f"{self.world.salt}/zones")

    def _zone(
        self, selected: _Selected, zone: Zone, datasets: Mapping[str, "_Dataset"], path: tuple[str, ...]
    ) -> dict[str, Any]:
        scope = _Scope(ScopeKind.ZONE, zone.tag, zone.plan)
        answer: dict[str, Any] = {}
        for each in selected.below:
            match each.name:
                case "zoneTag":
                    answer[each.key] = zone.tag
                case "settings":
                    answer[each.key] = self._settings(scope, each)
                case _:
                    answer[each.key] = self._rows(datasets[each.key], scope, (*path, each.key))
        return answer

    def _datasets(
        self, kind: ScopeKind, scopes: _Selected, tags: Sequence[str], path: tuple[str, ...]
    ) -> dict[str, "_Dataset"]:
        """What is asked of every scope of a list, by key; counted against the ceiling."""
        sources = self.world.schema.sources
        found = {
            each.key: _Dataset.of(each, sources[kind, each.name])
            for each in scopes.below
            if (kind, each.name) in sources
        }
        self._nodes += len(tags) * len(found)
        if self._nodes > self.world.limits.max_nodes:
            raise RefusedError(refusal(RefusalKind.TOO_MANY_NODES, self.world.dialect))
        for dataset in found.values():
            name = dataset.source.name
            for field_name in ("", *dataset.fields):
                if self.world.is_removed(name, field_name):
                    raise _unknown(field_name.rpartition("_")[2] or name)
        self.asked.extend(
            Asked(dataset.source.name, key, tuple(tags), *self._range(dataset.spans), path, kind)
            for key, dataset in found.items()
        )
        return found

    def _settings(self, scope: "_Scope", selected: _Selected) -> dict[str, Any]:
        return {each.key: _projected(self._allowed(scope, each.name), each.below) for each in selected.below}

    def _allowed(self, scope: "_Scope", node: str) -> dict[str, Any]:
        """What `settings` says of a node."""
        if self.world.is_removed(node):
            raise _unknown(node)
        allowed = self.world.entitlement(scope.tag, scope.plan, node)
        fields = self.world.schema.sources[scope.kind, node].fields if allowed.is_enabled else []
        return {
            "availableFields": [
                name
                for name in fields
                if not (self.world.is_denied(scope.tag, node, name, allowed) or self.world.is_removed(node, name))
            ],
            "enabled": allowed.is_enabled,
            "maxDuration": allowed.max_duration_seconds,
            "maxNumberOfFields": allowed.max_fields,
            "maxPageSize": allowed.max_page_size,
            "notOlderThan": allowed.not_older_than_seconds,
        }

    def _rows(self, dataset: "_Dataset", scope: "_Scope", path: tuple[str, ...]) -> list[Any]:
        self._check(dataset, scope, path)
        if scope.tag in self.world.blank_scopes:
            return []
        match dataset.source:
            case Rollup() as rollup:
                return self._rollup_rows(dataset, rollup, scope.tag)
            case Node() as node:
                return self._node_rows(dataset, node, scope.tag)

    def _rollup_rows(self, dataset: "_Dataset", rollup: Rollup, zone_tag: str) -> list[dict[str, Any]]:
        selected = dataset.selected
        orders = selected.arguments.get("orderBy") or []
        dimensions = list(dict.fromkeys([*selected.names_below("dimensions"), *rollups.ordering_dimensions(orders)]))
        found = rollups.rows(
            self.world.fleet,
            zone_tag,
            rollup,
            dataset.spans,
            dimensions,
            now=self.world.now,
            settling=self.world.settling,
        )
        page = rollups.ordered(found, orders, f"{self.world.salt}/{zone_tag}")[: selected.arguments["limit"]]
        return [_projected(row, selected.below) for row in page]

    def _node_rows(self, dataset: "_Dataset", node: Node, tag: str) -> list[Any]:
        world, salt = self.world, f"{self.world.salt}/{tag}/{dataset.selected.key}"
        stream = world.events.stream(tag, node)
        events: list[Event] = []
        for start, end in dataset.spans:
            events += world.events.visible(stream, start, end, now=world.now, settling=world.settling)
        if dataset.conditions:
            passed = groups.kinds_that(stream, node, dataset.conditions)
            events = [event for event in events if event[0] in passed]
        interval = 1
        if world.sampling is not None:
            interval = world.sampling.interval(sum(amount for _, amount, _ in events))
            events = groups.thinned(events, interval, salt)
        found = groups.rows(events, stream, node, dataset.columns, interval=interval)
        page = groups.ordered(found, dataset.order, salt)[: dataset.selected.arguments["limit"]]
        return dataset.shaped(page)

    def _check(self, dataset: "_Dataset", scope: "_Scope", path: tuple[str, ...]) -> None:
        """Refuse what the zone or account may not ask of the node."""
        node = dataset.source.name

        def refuse(kind: RefusalKind, **details: Any) -> RefusedError:
            about = Details(zone_tag=scope.tag, scope=scope.kind, **details)
            return RefusedError(refusal(kind, self.world.dialect, path, node=node, details=about))

        allowed = self.world.entitlement(scope.tag, scope.plan, node)
        if not allowed.is_enabled:
            raise refuse(RefusalKind.PATH_ACCESS)
        for name in dataset.fields:
            if self.world.is_denied(scope.tag, node, name, allowed):
                raise refuse(RefusalKind.FIELD_ACCESS, field=name.rpartition("_")[2].lower())
        if len(dataset.fields) > allowed.max_fields:
            raise refuse(RefusalKind.FIELD_COUNT, maximum=allowed.max_fields)
        if not 0 < dataset.selected.arguments["limit"] <= allowed.max_page_size:
            raise refuse(RefusalKind.PAGE_SIZE, maximum=allowed.max_page_size)
        start, end = self._range(dataset.spans)
        if start < self.world.now - allowed.not_older_than_seconds:
            raise refuse(
                RefusalKind.RETENTION,
                limit_seconds=allowed.not_older_than_seconds,
                asked_seconds=int(self.world.now) - start,
            )
        if end - start > allowed.max_duration_seconds:
            raise refuse(RefusalKind.WINDOW, limit_seconds=allowed.max_duration_seconds, asked_seconds=end - start)

    def _range(self, spans: tuple[filters.Span, ...]) -> tuple[int, int]:
        """From the start of the first span to the end of the last one, or to now where that has no end."""
        now = int(self.world.now)
        if not spans:
            return now, now
        end = spans[-1][1]
        return spans[0][0], now if end == filters.END_OF_TIME else end


@dataclass(frozen=True, slots=True)
class _Scope:
    """The zone or the account that is asked."""

    kind: ScopeKind
    tag: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One field of a list of zones or accounts that asks for rows.

    spans:      the time that its filter lets through.
    conditions: the rest of its filter.
    fields:     what is selected, as `settings` lists it.
    columns:    the dimensions and numbers that a row of a node needs, to be shown or to be ordered by.
    order:      the places of the columns to order by, the one that counts most first, and whether downwards.
    shape:      the objects of a row, each field's key with its column; an object without a name holds the row's own.
    """

    selected: _Selected
    source: Source
    spans: tuple[filters.Span, ...]
    conditions: filters.Conditions
    fields: tuple[str, ...]
    columns: tuple[Path, ...]
    order: tuple[tuple[int, bool], ...]
    shape: tuple[tuple[str, tuple[tuple[str, int, tuple[_Selected, ...]], ...]], ...]

    @classmethod
    def of(cls, selected: _Selected, source: Source) -> "_Dataset":
        times, conditions = filters.divided(selected.arguments["filter"], source.widths)
        columns: dict[Path, int] = {}
        shape = []
        for part in selected.below:
            is_object = part.name != "count"
            leaves: list[tuple[_Selected, Path]] = (
                [(leaf, (part.name, leaf.name)) for leaf in part.below] if is_object else [(part, COUNT)]
            )
            placed = ((leaf.key, columns.setdefault(path, len(columns)), leaf.below) for leaf, path in leaves)
            shape.append((part.key if is_object else "", tuple(placed)))
        fields = tuple("_".join(path) for path in columns)
        order = []
        for each in selected.arguments.get("orderBy") or []:
            name, _, direction = each.rpartition("_")
            part, _, leaf = name.rpartition("_")
            path = (part, leaf) if part else (COUNT if (name,) == COUNT else ("dimensions", name))
            order.append((columns.setdefault(path, len(columns)), direction == "DESC"))
        spans = filters.spans(times, source.widths)
        return cls(selected, source, spans, conditions, fields, tuple(columns), tuple(order), tuple(shape))

    def shaped(self, page: Sequence[Sequence[Any]]) -> list[Any]:
        """The rows, by columns, as the query wants them."""
        by_column = list(zip(*page, strict=True)) or [()] * len(self.columns)
        objects: dict[str, Sequence[Any]] = {}
        for key, leaves in self.shape:
            shown = {
                name: [_projected(value, below) for value in by_column[column]] if below else by_column[column]
                for name, column, below in leaves
            }
            if key:
                objects[key] = _zipped(shown, len(page))
            else:
                objects |= shown
        return _zipped(objects, len(page))


def _zipped(fields: Mapping[str, Sequence[Any]], count: int) -> list[Any]:
    """Objects made of these fields' values."""
    made = _object(tuple(fields))
    return list(map(made, *fields.values())) if fields else [made()] * count


# Millions of rows are made; a structure without garbage collection takes a third of the time of a dictionary.
@lru_cache(_REMEMBERED_QUERIES)
def _object(keys: tuple[str, ...]) -> type[msgspec.Struct]:
    """A structure with these keys in JSON, in this order."""
    names = [f"field{place}" for place in range(len(keys))]
    fields = [(name, Any) for name in names]
    return msgspec.defstruct("Object", fields, rename=dict(zip(names, keys, strict=True)), gc=False)


def _unknown(name: str) -> GraphQLError:
    return GraphQLError(f'unknown field "{name}"')


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
