"""`cfrw status`: the ledger in tables, without a worker."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from worker.cli.options import EXIT_INCOMPLETE, config_option, json_option, settings_of
from worker.cli.tables import (
    MOST_ROWS,
    count_of,
    new_table,
    number_column,
    print_json,
    print_line,
    rest,
    terminal,
    text_column,
    word_column,
)
from worker.clock import SystemClock
from worker.config import DEFAULT_TOKEN, Settings
from worker.datasets import catalogue_of, chosen
from worker.health import TokenState, Verdict
from worker.ledger import Ledger
from worker.report import Running, report_status
from worker.status import (
    CloudflareStatus,
    DatasetStatus,
    DeniedStatus,
    DestinationStatus,
    ScopeStatus,
    StatusReport,
    TokenStatus,
    worst_first,
    worth_a_row,
)
from worker.times import instant, span

# Names that show whom a line with many is about.
_FIRST_NAMES = 3

# What only a running worker knows: a command that reads its ledger would have to make it up.
_KNOWN_TO_THE_WORKER = {"readiness", "cloudflare", "message", "parked"}


@click.command()
@config_option
@json_option
def status(config_file: Path | None, *, as_json: bool) -> None:
    """Show the ledger: newest buckets, backlog, and holes with their reasons."""
    settings = settings_of(config_file, needs_token=False)
    report = asyncio.run(_read_status(settings))
    if as_json:
        fields = msgspec.to_builtins(report)
        fields["destinations"] = [_without_what_is_unknown(each) for each in fields["destinations"]]
        print_json(_without_what_is_unknown(fields))
    else:
        print_status(report, terminal())
    if not is_complete(report):
        sys.exit(EXIT_INCOMPLETE)


def _without_what_is_unknown(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _KNOWN_TO_THE_WORKER}


async def _read_status(settings: Settings) -> StatusReport:
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        nothing = CloudflareStatus(token=TokenState.UNKNOWN, tokens={}, budgets=())
        unknown = Running(readiness=Verdict(ok=True, problems=()), cloudflare=nothing)
        collected = chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
        report = await report_status(
            ledger,
            settings,
            SystemClock().now(),
            unknown,
            datasets=collected.datasets,
            fact_sets=collected.fact_sets,
        )
        return worst_first(report)
    finally:
        await ledger.close()


def is_complete(report: StatusReport) -> bool:
    """Whether there are zones, everything due of them was captured, and everything captured was acknowledged.

    What a token that is refused should bring, nobody knows.
    """
    return (
        bool(report.scopes)
        and all(token.refusal is None for token in report.tokens)
        and not any(scope.missing for scope in report.scopes)
        and not any(
            each.pending_buckets
            or each.partial_buckets
            or each.refused_buckets
            or each.expired_buckets
            or each.damaged_buckets
            for each in report.destinations
        )
    )


def print_status(report: StatusReport, console: Console) -> None:
    """The report as tables, with what is wrong, or denied, on lines of its own below each."""
    line = partial(print_line, console)
    line(f"ledger {report.ledger.path}: {report.ledger.size_bytes:,} of {report.ledger.max_bytes:,} bytes\n")
    console.print(_deliveries(report))
    for each in report.destinations:
        for wrong in _what_is_wrong(each):
            line(wrong)
    if len(report.tokens) > 1:
        line("")
        console.print(_tokens(report.tokens))
    for token in report.tokens:
        if token.refused_since is not None:
            line(_refused(token, token.refused_since))
    line("")
    if report.scopes or report.denied:
        _print_scopes(report, console)
    else:
        line("no zone has been listed yet")


def _print_scopes(report: StatusReport, console: Console) -> None:
    line = partial(print_line, console)
    if len(report.datasets) > 1:
        console.print(_datasets(report.datasets[:MOST_ROWS]))
        line(rest(len(report.datasets)))
    if scopes := worth_a_row(report):
        naming = _naming(report)
        console.print(_scopes(scopes[:MOST_ROWS], naming))
        for scope in scopes[:MOST_ROWS]:
            if scope.reason is not None:
                line(f"{' '.join(name(scope) for _, name in naming)}: {scope.reason}")
        line(rest(len(scopes)))
    if report.denied:
        line("not collected, as it is denied:")
        for denied in report.denied[:MOST_ROWS]:
            line(f"  {denied.dataset}: {_whom(denied)}: {denied.reason}")
        line(rest(len(report.denied)))


def _tokens(tokens: Sequence[TokenStatus]) -> Table:
    """What is asked with each token, and what was sent with it in the last five minutes."""
    columns = ("zones", "accounts", "queries in\n5 minutes", "requests in\n5 minutes")
    table = new_table(text_column("token"), *map(number_column, columns))
    for each in tokens:
        sent = (f"{each.graphql_requests:,}/{each.graphql_limit:,}", f"{each.requests:,}/{each.requests_limit:,}")
        table.add_row(each.name, f"{each.zones:,}", f"{each.accounts:,}", *sent)
    return table


def _refused(token: TokenStatus, since: float) -> str:
    is_single = token.name == DEFAULT_TOKEN
    name = "the API token" if is_single else f"token {token.name}"
    check = "CF_API_TOKEN" if is_single else "its api_token under `cloudflare`"
    return f"{name}: Cloudflare has refused it since {instant(since)}; check {check}. It said: {token.refusal}"


def _datasets(datasets: Sequence[DatasetStatus]) -> Table:
    """One row for each, which fits into 80 columns with the longest name of a shipped one."""
    numbers = map(number_column, ("missing", "denied"))
    table = new_table(
        text_column("dataset"), number_column("zones or\naccounts"), word_column("newest window ends"), *numbers
    )
    for each in datasets:
        newest = "-" if each.newest_window_end is None else instant(each.newest_window_end)
        table.add_row(each.dataset, f"{each.scope_count:,}", newest, f"{each.missing:,}", f"{each.scopes_denied:,}")
    return table


def _scopes(scopes: Sequence[ScopeStatus], naming: Sequence[tuple[str, Callable[[ScopeStatus], str]]]) -> Table:
    table = new_table(
        *(text_column(header) for header, _ in naming),
        word_column("newest window ends"),
        *map(number_column, ("captured", "expected", "missing")),
    )
    for scope in scopes:
        table.add_row(
            *(name(scope) for _, name in naming),
            "-" if scope.newest_window_end is None else instant(scope.newest_window_end),
            *(f"{count:,}" for count in (scope.captured, scope.expected, scope.missing)),
        )
    return table


def _whom(denied: DeniedStatus) -> str:
    """How many zones or accounts a denial is about, and the first of them."""
    names = [scope.name for scope in denied.scopes[:_FIRST_NAMES]]
    more = ", ..." if denied.scope_count > len(names) else ""
    return f"{count_of(denied.kind, denied.scope_count)} ({', '.join(names)}{more})"


def _deliveries(report: StatusReport) -> Table:
    table = new_table(
        text_column("destination"),
        number_column("pending\nsamples"),
        number_column("oldest\npending"),
        *map(number_column, ("acknowledged", "partial", "refused", "expired", "damaged")),
    )
    for each in report.destinations:
        buckets = (
            each.acknowledged_buckets,
            each.partial_buckets,
            each.refused_buckets,
            each.expired_buckets,
            each.damaged_buckets,
        )
        table.add_row(
            each.name,
            f"{each.pending_samples:,}",
            "-" if each.oldest_pending_end is None else span(report.now - each.oldest_pending_end),
            *(f"{count:,}" for count in buckets),
        )
    return table


def _what_is_wrong(destination: DestinationStatus) -> Iterator[str]:
    """The lines below the table that are about one destination."""
    name = destination.name
    if destination.last_failure is not None:
        yield f"{name}: {destination.last_failure}{_when_it_failed(destination)}"
    for each in destination.given_up:
        yield f"{name}: {each.buckets:,} {each.state}: {_answer(each.status, each.reason)} ({instant(each.newest_at)})"
    if destination.refusals:
        yield f"{name}: refused samples: {destination.refused_samples:,}; the newest:"
    for refusal in destination.refusals:
        yield from (f"  {series}" for series in refusal.series)
        if (hidden := refusal.samples - len(refusal.series)) > 0:
            yield f"  and {hidden:,} more"
        what = f"stamped {instant(refusal.timestamp)}, refused {instant(refusal.refused_at)}"
        yield f"    {what}: {_answer(refusal.status, refusal.reason)}"


def _when_it_failed(destination: DestinationStatus) -> str:
    if destination.last_failure_at is None:
        return ""
    is_over = destination.last_success_at is not None and destination.last_success_at > destination.last_failure_at
    return f" ({instant(destination.last_failure_at)}{'; it has taken something since' if is_over else ''})"


def _answer(status: int | None, reason: str) -> str:
    """What a receiver said, on one line."""
    line = " ".join(reason.split())
    return line if status is None else f"HTTP {status}: {line}"


def _naming(report: StatusReport) -> list[tuple[str, Callable[[ScopeStatus], str]]]:
    """The columns that tell the rows apart: a zone's or account's name, and what else is not the same in all rows."""
    kinds = " or ".join(sorted({each.kind for each in report.datasets}, reverse=True))
    columns: list[tuple[str, Callable[[ScopeStatus], str]]] = [(kinds or "zone", lambda scope: scope.name)]
    if len(report.datasets) > 1:
        columns.append(("dataset", lambda scope: scope.dataset))
    if len({(scope.dataset, scope.scope) for scope in report.scopes}) < len(report.scopes):
        columns.append(("width", lambda scope: span(scope.width_seconds)))
    return columns
