"""The shipped files: what they promise to users, and that all that they name is in Cloudflare's schema."""

import re
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

from tests.unit.cloudflare.catalogue.sdl import Sdl, cloudflares_schema
from worker.cloudflare.catalogue import Dataset, Grain, shipped
from worker.cloudflare.catalogue.entry import WIDTHS_SECONDS

each_dataset = pytest.mark.parametrize("dataset", shipped().values(), ids=shipped())

NUMBER = re.compile(r"(?:u?int|float)(?:8|16|32|64)!")
# Names of hosts: there is no end to them, so only the dataset that is about them has them.
HOSTS = re.compile(r"(?i).*host(?:name)?|queryname.*|fqdn|sni|domain(?:name)?")


def test_no_shipped_file_overrides_a_dataset_of_another() -> None:
    files = (Path(__file__).parents[4] / "worker" / "cloudflare" / "catalogue").glob("*.yaml")
    names = [name for file in files for name in re.findall(r"^(\w+):", file.read_text(), re.MULTILINE)]
    assert sorted(names) == sorted(shipped())


@each_dataset
def test_metrics_are_named_by_their_scope_or_product_and_unit(dataset: Dataset) -> None:
    products = {"zone": ["zone"], "account": ["account", "worker", "pages", "durable", "container", "browser"]}
    for metric, _ in dataset.metrics():
        assert re.fullmatch(rf"cloudflare_(?:{'|'.join(products[dataset.scope])})_[a-z0-9_]+", metric.name)


@each_dataset
def test_states_have_no_zero_and_everything_else_has(dataset: Dataset) -> None:
    for total in dataset.totals:
        # That nobody came is known as well as how many did; not so for devices, which report when they like.
        counts = total.metric.additive or total.metric.unit == "visitors"
        assert total.has_zero == counts, total


@each_dataset
def test_a_dataset_is_in_the_group_of_its_scope(dataset: Dataset) -> None:
    if dataset.name != "http_hosts":
        assert dataset.scope in dataset.groups


def test_hosts_become_labels_only_in_the_dataset_that_no_group_has() -> None:
    with_hosts = [each for each in shipped().values() if any(HOSTS.fullmatch(label.dimension) for label in each.labels)]
    assert [(each.name, each.groups) for each in with_hosts] == [("http_hosts", ())]


def test_every_width_is_supported_unless_cloudflare_cannot_cut_it_out() -> None:
    lacking = {each.name: each.widths_seconds for each in shipped().values() if each.widths_seconds != WIDTHS_SECONDS}
    assert lacking == {"dmarc_reports": (3600, 86400), "durable_objects_storage": (3600, 86400)}


@each_dataset
def test_all_that_a_dataset_names_is_in_cloudflares_schema(dataset: Dataset) -> None:
    schema = cloudflares_schema()
    for grain in dataset.grains:
        assert list(missing(schema, dataset, grain)) == []


def missing(schema: Sdl, dataset: Dataset, grain: Grain) -> Iterator[str]:
    """What a query for these windows would ask for that is not there, or not of the right kind."""
    scope = str(dataset.scope)
    if grain.node not in schema.fields(scope):
        yield f"{scope}.{grain.node}"
        return
    if grain.node not in schema.fields(f"{scope.capitalize()}Settings"):
        yield f"settings of {grain.node}"
    row = schema.object(scope, grain.node)
    arguments = schema.arguments(scope, grain.node)
    conditions = schema.fields(arguments["filter"])
    for name, kind in ((grain.since, grain.time), (grain.until, grain.time)):
        if conditions.get(name) != kind:
            yield f"filter {name}: {kind}"
    yield from (f"filter {name}: {value}" for name, value in dataset.where if not suits(conditions.get(name), value))
    yield from missing_dimensions(schema, dataset, grain, schema.fields(arguments["orderBy"]))
    yield from missing_numbers(schema, dataset, row)


def missing_dimensions(schema: Sdl, dataset: Dataset, grain: Grain, orders: Container[str]) -> Iterator[str]:
    dimensions = schema.fields(schema.object(schema.object(dataset.scope, grain.node), "dimensions"))
    if grain.dimension is not None and dimensions.get(grain.dimension) != f"{grain.time}!":
        yield f"dimension {grain.dimension}: {grain.time}"
    grouped_by = [label.dimension for label in dataset.labels] + ([grain.dimension] if grain.dimension else [])
    yield from (f"orderBy {name}" for name in grouped_by if f"{name}_ASC" not in orders)
    yield from (f"dimension {name}" for name in grouped_by if dimensions.get(name, "[").startswith("["))


def missing_numbers(schema: Sdl, dataset: Dataset, row: str) -> Iterator[str]:
    for total in dataset.totals:
        kind = row if len(total.path) == 1 else schema.object(row, total.path[0])
        if not NUMBER.fullmatch(schema.fields(kind).get(total.path[-1], "")):
            yield f"field {total.path}"
    for breakdown in dataset.breakdowns:
        element = schema.object(schema.object(row, breakdown.path[0]), breakdown.path[1])
        numbers = [name for name, _ in breakdown.values]
        yield from (f"{element}.{name}" for name in (breakdown.key, *numbers) if name not in schema.fields(element))


def suits(kind: str | None, value: object) -> bool:
    """Whether a condition of this type takes the value."""
    match value:
        case str():
            return kind == "string"
        case bool():
            return kind == "bool"
        case int():
            return NUMBER.fullmatch(f"{kind}!") is not None
        case tuple():
            element = re.fullmatch(r"\[(\w+)!?\]", kind or "")
            return element is not None and all(suits(element[1], item) for item in value)
        case _:
            return False


@each_dataset
def test_a_query_asks_for_a_single_window_only_where_the_schema_has_no_such_time(dataset: Dataset) -> None:
    schema = cloudflares_schema()
    names = {
        60: ("datetimeMinute",),
        300: ("datetimeFiveMinutes", "datetimeFiveMinute"),
        900: ("datetimeFifteenMinutes",),
        1800: ("datetimeHalfOfHour",),
        3600: ("datetimeHour",),
        86400: ("date",),
    }
    for grain in dataset.grains:
        if grain.dimension is None:
            dimensions = schema.fields(schema.object(schema.object(dataset.scope, grain.node), "dimensions"))
            assert not any(name in dimensions for name in names[grain.width_seconds])


@each_dataset
def test_adaptive_rows_tell_how_much_they_were_sampled_where_the_schema_lets_them(dataset: Dataset) -> None:
    schema = cloudflares_schema()
    row = schema.object(dataset.scope, dataset.grains[0].node)
    tells = "avg" in schema.fields(row) and "sampleInterval" in schema.fields(schema.object(row, "avg"))
    is_rollup = re.fullmatch(r"httpRequests1[mhd]Groups", dataset.grains[0].node) is not None
    assert dataset.is_sampled == (tells and not is_rollup)
