"""Whether Cloudflare would understand what the catalogue asks: every query, validated against a schema.

The schema is a file in GraphQL's own language (SDL). Needs graphql-core, which the extra `simulator` installs and a
worker does not need.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.cloudflare.catalogue import Catalogue, Dataset
from worker.cloudflare.catalogue.model import SAMPLE_INTERVAL_PATH
from worker.cloudflare.query import Source, WindowsQuery
from worker.errors import UsageError


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the schema says against a dataset.

    widths_seconds: the widths of windows whose queries are wrong.
    reason:         in the words of GraphQL.
    """

    dataset: str
    widths_seconds: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SchemaCheck:
    """What came of it: how many queries there were, and what is wrong with some."""

    datasets: int
    queries: int
    refusals: tuple[Refusal, ...]


def check_catalogue(catalogue: Catalogue, schema_file: Path) -> SchemaCheck:
    """Validate every query that an entry can produce; UsageError where the file cannot be read, or is no schema."""
    mistakes_in = _validator(schema_file)
    queries = 0
    found: dict[tuple[str, str], dict[int, None]] = {}
    for dataset in catalogue.values():
        for width_seconds, text in queries_of(dataset):
            queries += 1
            for mistake in mistakes_in(text):
                found.setdefault((dataset.name, mistake), {})[width_seconds] = None
    refusals = tuple(Refusal(name, tuple(widths), reason) for (name, reason), widths in found.items())
    return SchemaCheck(datasets=len(catalogue), queries=queries, refusals=refusals)


def queries_of(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Every query for one dataset with the width of its windows: whole, and without each field that a plan may deny."""
    for dropped in ((), *((field,) for field in _deniable(dataset))):
        narrowed = dataset.without(dropped)
        if narrowed.is_empty:
            continue
        for grain in narrowed.grains:
            starts = range(0, grain.width_seconds, grain.width_seconds)
            yield grain.width_seconds, WindowsQuery((Source(narrowed, grain),), (), starts).text


def _deniable(dataset: Dataset) -> Iterator[str]:
    yield from (total.field for total in dataset.totals)
    for breakdown in dataset.breakdowns:
        yield breakdown.field
        yield from (f"{breakdown.field}_{leaf}" for leaf, _ in breakdown.values)
    if dataset.is_sampled:
        yield "_".join(SAMPLE_INTERVAL_PATH)


def _validator(schema_file: Path) -> Callable[[str], list[str]]:
    """What GraphQL says against a query. Cloudflare's schema is large: it is read once, which takes seconds."""
    try:
        import graphql  # noqa: PLC0415 - a worker does not need it
    except ModuleNotFoundError:
        msg = "a check against a schema needs graphql-core: install cloudflare-remote-write with the extra `simulator`"
        raise UsageError(msg) from None
    try:
        schema = graphql.build_schema(schema_file.read_text(encoding="utf-8"), assume_valid=True, no_location=True)
    except OSError as error:
        msg = f"{schema_file}: cannot be read: {error.strerror}"
        raise UsageError(msg) from None
    except UnicodeDecodeError:
        msg = f"{schema_file}: is not UTF-8 text"
        raise UsageError(msg) from None
    except (graphql.GraphQLError, TypeError) as error:
        msg = f"{schema_file}: is not a schema in GraphQL's language: {str(error).partition(chr(10))[0]}"
        raise UsageError(msg) from None
    if schema.query_type is None:
        msg = f"{schema_file}: is a schema without queries"
        raise UsageError(msg)
    return lambda text: [error.message for error in graphql.validate(schema, graphql.parse(text))]
