"""The command line: what a person asks for, handed to the part that does it, and told in a table, JSON or one line.

Owns the names of commands and options, the exit codes, and how results look on a terminal. Decides nothing else.

Exit codes: 0 done; 1 unexpected failure; 2 bad usage or configuration; 3 done, but something is still pending, refused
or missing; 4 another worker holds the ledger; 5 the ledger is damaged or its volume is unusable. Where Ctrl-C cuts a
command off that has nothing to finish, it is 130, as shells have it.
"""

import asyncio
import getpass
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table

from worker import __version__
from worker.app import Worker, stop_on_signals
from worker.clock import SystemClock, wait_for_any
from worker.cloudflare import FACT_SETS, SchemaCheck
from worker.config import Settings, describe, load_settings
from worker.config.endpoints import listen_address
from worker.datasets import (
    DatasetListing,
    Known,
    catalogue_of,
    check_datasets,
    chosen,
    ledger_path_of,
    list_datasets,
    list_scopes,
    read_known,
)
from worker.errors import LedgerDamagedError, LedgerHeldError, LedgerUnusableError, UsageError, WorkerError
from worker.health import TokenState, Verdict
from worker.ledger import (
    Ledger,
    Resend,
    ResendCount,
    ask_for_resend,
    job,
    plan_resend,
    resent,
    scope_reports,
)
from worker.observe import Redactor, configure_logging, get_logger
from worker.remote_write import secrets_of
from worker.report import Running, report_status
from worker.status import (
    DatasetStatus,
    DeniedStatus,
    DestinationStatus,
    ScopeStatus,
    StatusReport,
    worst_first,
    worth_a_row,
)
from worker.times import instant, moment, span

EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130  # 128 and the number of SIGINT

# A header or a parameter of a URL that is shorter than this guards nothing, and without every "1" or "on" the log would
# be useless.
_SHORTEST_SECRET = 4

# How often a command looks whether the running worker has done what it was asked for.
_FOLLOW_SECONDS = 0.5

# More rows than a person reads; --json has all.
_MOST_ROWS = 50

# Names that show whom a line with many is about.
_FIRST_NAMES = 3

# What only a running worker knows: a command that reads its ledger would have to make it up.
_KNOWN_TO_THE_WORKER = {"readiness", "cloudflare", "message", "parked"}

# A reason is a sentence; a command line that names a hundred zones is longer than anybody reads in a journal.
_MOST_REASON_CHARACTERS = 1000

# As many names as fit into one message.
_MOST_NAMES = 5

# Wider than any row: the longest name of a zone has 253 characters.
_UNCUT_COLUMNS = 1000

_config = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with settings; an environment variable wins over it.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

log = get_logger()


class _Group(click.Group):
    """Turns the worker's own errors into one message and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WorkerError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cfrw")
@click.option(
    "--resend-since",
    metavar="WHEN",
    help="Push captured buckets again from WHEN on: the same as `cfrw resend --since WHEN`.",
)
@_config
@click.pass_context
def main(ctx: click.Context, resend_since: str | None, config_file: Path | None) -> None:
    """Finalized Cloudflare analytics, pushed to Prometheus with their own timestamps.

    Settings come from environment variables and from the file that --config names. WHEN is RFC 3339
    (2026-01-06T03:00:00Z), unix seconds, or a duration ago (90s, 15m, 6h, 3d).
    """
    if ctx.invoked_subcommand is not None:
        if resend_since is not None:
            msg = "--resend-since is a command by itself; `cfrw resend --since WHEN` takes further options"
            raise click.UsageError(msg)
        if config_file is not None:
            msg = f"--config goes behind the command: cfrw {ctx.invoked_subcommand} --config {config_file}"
            raise click.UsageError(msg)
        return
    if resend_since is not None:
        ctx.invoke(resend, since=resend_since, config_file=config_file)
        return
    click.echo(ctx.get_help())


@main.command()
@_config
@click.option("--once", is_flag=True, help="Collect all that is due, push all that is pending, and exit.")
def run(config_file: Path | None, *, once: bool) -> None:
    """Collect, push and serve until SIGTERM."""
    settings = _settings(config_file)
    _start_logging(settings)
    complete = asyncio.run(_run_once(settings) if once else _run(settings))
    if not complete:
        click.echo("done, but something is still pending, refused or missing: `cfrw status` shows it", err=True)
        sys.exit(EXIT_INCOMPLETE)


async def _run(settings: Settings) -> bool:
    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        async with Worker(settings, SystemClock()) as worker:
            await worker.run(stopping)
    return True


async def _run_once(settings: Settings) -> bool:
    stopping = asyncio.Event()
    clock = SystemClock()
    with stop_on_signals(stopping):
        async with Worker(settings, clock, once=True) as worker:
            # What becomes final while this goes on is for the next one; else minute windows would never be complete.
            begun_at = clock.now()
            collected = await worker.run_once(stopping)
            return collected and is_complete(await worker.status(due_at=begun_at))


@main.command()
@_config
@click.option("--config-only", is_flag=True, help="Look at the configuration only; send no request.")
@_json
def check(config_file: Path | None, *, config_only: bool, as_json: bool) -> None:
    """Say whether this set-up is sound."""
    if not config_only:
        msg = "this version checks the configuration only: add --config-only"
        raise UsageError(msg)
    settings = _settings(config_file)
    chosen(settings.cloudflare, catalogue_of(settings.cloudflare))
    rows = describe(settings)
    if as_json:
        _print_json(dict(rows))
        return
    table = _table(_words("setting"), _text("value"))
    for name, value in rows:
        table.add_row(name, value)
    click.echo("The configuration is sound:")
    _console().print(table)


@main.command()
@_config
@click.option(
    "--check",
    "schema_file",
    type=click.Path(path_type=Path),
    metavar="SCHEMA",
    help="Validate every query of every dataset against this GraphQL schema instead.",
)
@click.option("--zone", metavar="ZONE", help="Only those of this zone or account (name or id), and what it is denied.")
@_json
def datasets(config_file: Path | None, *, schema_file: Path | None, zone: str | None, as_json: bool) -> None:
    """List the catalogue: every dataset that can be collected, whether it is, and how many zones are denied it.

    What zones and accounts are denied is read from the ledger, if there is one.
    """
    if schema_file is not None:
        if zone is not None:
            msg = "--check is about the catalogue, --zone about the ledger; give one of them"
            raise click.UsageError(msg)
        _check_datasets(check_datasets(schema_file, config_file, os.environ), as_json=as_json)
        return
    if zone is not None:
        _datasets_of(zone, config_file, as_json=as_json)
        return
    listed = list_datasets(config_file, os.environ, _known(ledger_path_of(config_file, os.environ)))
    if as_json:
        _print_json(listed)
        return
    console = _console()
    for scope in dict.fromkeys(each.scope for each in listed):
        of_scope = [each for each in listed if each.scope == scope]
        console.print(f"{len(of_scope)} datasets of {scope}s; * is collected\n", soft_wrap=True)
        console.print(_listed(of_scope))
        for each in of_scope:
            for reason, count in each.denied.items():
                console.print(f"{each.name}: denied to {_count_of(scope, count)}: {reason}", soft_wrap=True)
        console.print("")
    console.print("--json has their metrics", soft_wrap=True)


def _known(ledger_path: Path) -> Known | None:
    """What the ledger knows of zones and accounts; None without one. A broken one does not cost the list."""
    if not ledger_path.exists():
        return None
    try:
        return asyncio.run(read_known(ledger_path))
    except (LedgerUnusableError, LedgerDamagedError) as error:
        click.echo(f"what zones and accounts are denied is not known: {error}", err=True)
        return None


def _datasets_of(zone: str, config_file: Path | None, *, as_json: bool) -> None:
    """All that one zone, or account, could be asked for."""
    listed = list_datasets(config_file, os.environ)
    known = asyncio.run(read_known(ledger_path_of(config_file, os.environ)))
    names = [*(scope.name for scope in known.scopes), *(scope.tag for scope in known.scopes)]
    _require_known("--zone", [zone], names)
    found = list_scopes(listed, known, zone)
    if as_json:
        _print_json(found)
        return
    console = _console()
    for scope in found:
        console.print(f"{scope.kind} {scope.name} ({scope.scope}); * is collected, and was looked at\n", soft_wrap=True)
        table = _table(_words("dataset"), _words("denied since"), _text("because"))
        for each in scope.datasets:
            since = "" if each.denied_since is None else instant(each.denied_since)
            table.add_row(f"{each.dataset}{'*' if each.is_collected else ''}", since, each.reason or "")
        console.print(table)


def _check_datasets(found: SchemaCheck, *, as_json: bool) -> None:
    if as_json:
        _print_json(found)
    else:
        for each in found.refusals:
            click.echo(f"{each.dataset}, windows of {', '.join(map(span, each.widths_seconds))}: {each.reason}")
        verdict = "some are not valid, see above" if found.refusals else "all are valid"
        click.echo(f"{found.queries:,} queries of {found.datasets:,} datasets: {verdict}")
    if found.refusals:
        sys.exit(UsageError.exit_code)


def _listed(listed: Sequence[DatasetListing]) -> Table:
    names = _words("dataset"), _text("groups"), _text("labels")
    table = _table(*names, _number("metrics"), _text("widths"), _number("delay"), _number("denied"))
    for each in listed:
        table.add_row(
            f"{each.name}{'*' if each.is_collected else ''}",
            # The scope is a group, too, and stands above the table.
            ", ".join(group for group in each.groups if group != each.scope),
            ", ".join(each.labels),
            str(len(each.metrics)),
            each.widths,
            span(each.delay_seconds),
            _denied_to(each),
        )
    return table


def _denied_to(listed: DatasetListing) -> str:
    """Of how many zones or accounts; nothing where it was never looked at."""
    if listed.scope_count is None or not (listed.is_collected or listed.denied):
        return ""
    return f"{sum(listed.denied.values()):,}/{listed.scope_count:,}"


@main.command()
@_config
@_json
def status(config_file: Path | None, *, as_json: bool) -> None:
    """Show the ledger: newest buckets, backlog, and holes with their reasons."""
    settings = _settings(config_file)
    report = asyncio.run(_read_status(settings))
    if as_json:
        fields = msgspec.to_builtins(report)
        fields["destinations"] = [_without_what_is_unknown(each) for each in fields["destinations"]]
        _print_json(_without_what_is_unknown(fields))
    else:
        print_status(report, _console())
    if not is_complete(report):
        sys.exit(EXIT_INCOMPLETE)


def _without_what_is_unknown(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _KNOWN_TO_THE_WORKER}


async def _read_status(settings: Settings) -> StatusReport:
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        unknown = Running(readiness=Verdict(ok=True, problems=()), token=TokenState.UNKNOWN, budgets=())
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


@main.command()
@_config
@click.option("--since", required=True, metavar="WHEN", help="Windows that start at WHEN or later.")
@click.option("--until", metavar="WHEN", help="Windows that start before WHEN; now by default.")
@click.option("--zone", "zones", multiple=True, metavar="ZONE", help="Only this zone (name or id); repeatable.")
@click.option("--dataset", "datasets", multiple=True, metavar="DATASET", help="Only this dataset; repeatable.")
@click.option("--destination", "destinations", multiple=True, metavar="NAME", help="Only there; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; change nothing.")
@click.option("--reason", metavar="TEXT", help="Why, for the journal; the command line by default.")
@_json
def resend(
    *,
    since: str,
    config_file: Path | None = None,
    until: str | None = None,
    zones: Sequence[str] = (),
    datasets: Sequence[str] = (),
    destinations: Sequence[str] = (),
    reason: str | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Push captured buckets again, refused and expired ones included.

    Nothing is fetched from Cloudflare: what the ledger holds is sent with the same timestamps and values as before.
    A running worker does it; without one, this command does it itself.
    """
    settings = _settings(config_file)
    now = SystemClock().now()
    wanted = Resend(
        since=int(_when("--since", since, now)),
        until=int(now if until is None else _when("--until", until, now)),
        zones=tuple(zones),
        datasets=tuple(datasets),
        destinations=tuple(destinations),
    )
    if wanted.since >= wanted.until:
        msg = f"nothing lies between --since {instant(wanted.since)} and --until {instant(wanted.until)}"
        raise UsageError(msg)
    plan = asyncio.run(_plan(settings, wanted, now))
    if not as_json:
        _print_counts("Would be sent again" if dry_run else "To be sent again", plan)
    if dry_run:
        if as_json:
            _print_json(plan)
        return
    redactor = _start_logging(settings)
    why = _for_the_journal(reason or shlex.join(["cfrw", *sys.argv[1:]]), redactor)
    outcome = asyncio.run(_resend(settings, wanted, why))
    if as_json:
        _print_json(outcome)
    elif outcome is not None:
        _print_counts("What became of it", outcome)
        if _is_pending(outcome):
            click.echo(
                "What is pending stays pending: a running worker goes on with it, else the next `cfrw run` does."
            )
    if outcome is None or any(count.state != "acknowledged" for count in outcome):
        sys.exit(EXIT_INCOMPLETE)


async def _plan(settings: Settings, wanted: Resend, now: float) -> tuple[ResendCount, ...]:
    """What a resend would send, after a look at whether what it names exists."""
    ledger = Ledger.open_read_only(settings.ledger.path)
    try:
        # Reports of no time at all: they name every zone, those that have disappeared included.
        scopes = await ledger.read(scope_reports, since=now, final_until=now)
        # A zone is there once for each width that its windows ever had.
        known_zones = dict.fromkeys([*(scope.name for scope in scopes), *(scope.tag for scope in scopes)])
        _require_known("--zone", wanted.zones, list(known_zones))
        _require_known("--dataset", wanted.datasets, [*catalogue_of(settings.cloudflare), *FACT_SETS])
        _require_known("--destination", wanted.destinations, [each.name for each in settings.destinations])
        return await ledger.read(plan_resend, wanted)
    finally:
        await ledger.close()


async def _resend(settings: Settings, wanted: Resend, reason: str) -> tuple[ResendCount, ...] | None:
    """Have it done by whoever holds the ledger; what became of it, None where it was not begun, which is told."""
    clock = SystemClock()
    stopping = asyncio.Event()
    ask = partial(ask_for_resend, resend=wanted, reason=reason, asked_by=_asked_by(), now=clock.now())
    with stop_on_signals(stopping):
        try:
            worker = Worker(settings, clock, once=True)
        except LedgerHeldError:
            return await _resend_by_running_worker(settings, wanted, ask, stopping)
        async with worker:
            number = await worker.ledger.write(ask)
            await worker.push_once(stopping)
            outcome = await _what_became(worker.ledger, number, wanted)
    if outcome is None:
        why = "the ledger's volume is full; make room on it"
        click.echo(f"nothing was sent again: {why}, and the next run does it (repair {number})", err=True)
    return outcome


async def _resend_by_running_worker(
    settings: Settings, wanted: Resend, ask: Callable[..., int], stopping: asyncio.Event
) -> tuple[ResendCount, ...] | None:
    """Ask the worker that holds the ledger, and watch it until everything is decided or a signal comes."""
    clock = SystemClock()
    ledger = Ledger.open_to_ask(settings.ledger.path)
    try:
        number = await ledger.write(ask)
        click.echo(f"asked the running worker (repair {number}); Ctrl-C stops watching, not the repair", err=True)
        is_stopped = False
        while not is_stopped:
            # The whole range is every bucket in it; what this repair itself still waits for stands in an index.
            if not _is_pending(await ledger.read(resent, number)):
                outcome = await _what_became(ledger, number, wanted)
                if outcome is not None and not _is_pending(outcome):
                    return outcome
            is_stopped = await wait_for_any(clock, _FOLLOW_SECONDS, stopping)
        outcome = await _what_became(ledger, number, wanted)
    finally:
        await ledger.close()
    if outcome is None:
        click.echo("the running worker has not come to it yet; it will, and its status page shows it", err=True)
    return outcome


async def _what_became(ledger: Ledger, number: int, wanted: Resend) -> tuple[ResendCount, ...] | None:
    """The states of all that a resend asked for, also of what a later one took over; None where it was not begun."""
    asked = await ledger.read(job, number)
    if asked is None or asked.queued is None:
        return None
    return await ledger.read(plan_resend, wanted)


def _is_pending(counts: Sequence[ResendCount]) -> bool:
    return any(count.state == "pending" for count in counts)


def _for_the_journal(reason: str, redactor: Redactor) -> str:
    """The reason without secrets, which a person may have pasted, and bounded."""
    clean = redactor.text(reason)
    return clean if len(clean) <= _MOST_REASON_CHARACTERS else f"{clean[: _MOST_REASON_CHARACTERS - 1]}…"


def _asked_by() -> str:
    """Who runs this command, for the journal."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container the user often has a number only.
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@main.command()
@click.option(
    "--listen", default="127.0.0.1:8787", show_default=True, metavar="HOST:PORT", help="Where to listen; port 0: any."
)
@click.option("--zones", default=5, show_default=True, type=click.IntRange(1), help="How many zones there are.")
@click.option("--accounts", default=2, show_default=True, type=click.IntRange(1), help="Over how many accounts.")
@click.option("--seed", default=1, show_default=True, help="Everything follows from it.")
def simulate(*, listen: str, zones: int, accounts: int, seed: int) -> None:
    """Serve a simulated Cloudflare API until Ctrl-C, for a worker to be tried on."""
    from worker.simulator import api, fleet, serving  # noqa: PLC0415 - needs graphql-core, which a worker does not

    try:
        host, port = listen_address(listen)
    except ValueError as error:
        msg = f"--listen {listen}: {error}"
        raise UsageError(msg) from None

    async def serve_until_stopped() -> None:
        simulated = api.SimulatedApi(fleet.Fleet(seed, zones=zones, accounts=accounts), SystemClock())
        stopping = asyncio.Event()
        with stop_on_signals(stopping):
            async with serving.serve(simulated, host, port) as url:
                click.echo(
                    f"A simulated Cloudflare API with {zones:,} zones listens at {url} until Ctrl-C.\n"
                    "For a worker that collects from it:\n\n"
                    f"  export CF_API_URL={url}\n"
                    f"  export CF_API_TOKEN={api.ACCEPTED_BEARER}\n"
                    "  # Only without a --config file: this replaces every destination that a file lists.\n"
                    "  # export REMOTE_WRITE_URL=http://127.0.0.1:9090/api/v1/write\n"
                    "  cfrw run\n"
                )
                await stopping.wait()

    try:
        asyncio.run(serve_until_stopped())
    except OSError as error:
        # Of the resolver's errors the numbers are negative, and not the operating system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        msg = f"--listen {listen}: cannot listen there: {reason}"
        raise UsageError(msg) from error


@main.command()
@click.option(
    "--receiver",
    type=click.Choice(["auto", "prometheus", "builtin"]),
    default="auto",
    show_default=True,
    help="What receives: a `prometheus` on PATH, or a small one in memory; auto takes the first that there is.",
)
def demo(receiver: str) -> None:
    """Show the whole job on this machine, with an outage in the middle; takes under a minute."""
    from worker.demo.show import Choice, run_demo  # noqa: PLC0415 - needs graphql-core, which a worker does not

    sys.exit(run_demo(Choice(receiver), _console()))


def is_complete(report: StatusReport) -> bool:
    """Whether there are zones, everything due of them was captured, and everything captured was acknowledged."""
    return (
        bool(report.scopes)
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
    line = partial(_print_line, console)
    line(f"ledger {report.ledger.path}: {report.ledger.size_bytes:,} of {report.ledger.max_bytes:,} bytes\n")
    console.print(_deliveries(report))
    for each in report.destinations:
        for wrong in _what_is_wrong(each):
            line(wrong)
    line("")
    if not (report.scopes or report.denied):
        line("no zone has been listed yet")
        return
    if len(report.datasets) > 1:
        console.print(_datasets(report.datasets[:_MOST_ROWS]))
        line(_rest(len(report.datasets)))
    if scopes := worth_a_row(report):
        naming = _naming(report)
        console.print(_scopes(scopes[:_MOST_ROWS], naming))
        for scope in scopes[:_MOST_ROWS]:
            if scope.reason is not None:
                line(f"{' '.join(name(scope) for _, name in naming)}: {scope.reason}")
        line(_rest(len(scopes)))
    if report.denied:
        line("not collected, as it is denied:")
        for denied in report.denied[:_MOST_ROWS]:
            line(f"  {denied.dataset}: {_whom(denied)}: {denied.reason}")
        line(_rest(len(report.denied)))


def _print_line(console: Console, text: str) -> None:
    # The terminal breaks a long line, and puts it together again when it is copied.
    console.print(text, soft_wrap=True)


def _rest(count: int) -> str:
    """The line that ends a table of the first rows of so many; empty where these are all."""
    hidden = count - _MOST_ROWS
    return f"{hidden:,} more are not shown: --json has all\n" if hidden > 0 else ""


def _datasets(datasets: Sequence[DatasetStatus]) -> Table:
    """One row for each, which fits into 80 columns with the longest name of a shipped one."""
    numbers = map(_number, ("missing", "denied"))
    table = _table(_text("dataset"), _number("zones or\naccounts"), _words("newest window ends"), *numbers)
    for each in datasets:
        newest = "-" if each.newest_window_end is None else instant(each.newest_window_end)
        table.add_row(each.dataset, f"{each.scope_count:,}", newest, f"{each.missing:,}", f"{each.scopes_denied:,}")
    return table


def _scopes(scopes: Sequence[ScopeStatus], naming: Sequence[tuple[str, Callable[[ScopeStatus], str]]]) -> Table:
    table = _table(
        *(_text(header) for header, _ in naming),
        _words("newest window ends"),
        *map(_number, ("captured", "expected", "missing")),
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
    return f"{_count_of(denied.kind, denied.scope_count)} ({', '.join(names)}{more})"


def _count_of(kind: str, count: int) -> str:
    return f"{count:,} {kind}{'' if count == 1 else 's'}"


def _deliveries(report: StatusReport) -> Table:
    table = _table(
        _text("destination"),
        _number("pending\nsamples"),
        _number("oldest\npending"),
        *map(_number, ("acknowledged", "partial", "refused", "expired", "damaged")),
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


def _print_counts(title: str, counts: Sequence[ResendCount]) -> None:
    if not counts:
        click.echo(f"{title}: nothing")
        return
    table = _table(_text("destination"), _words("state"), _number("buckets"), _number("samples"))
    for count in counts:
        table.add_row(count.destination, count.state, f"{count.buckets:,}", f"{count.samples:,}")
    click.echo(f"{title}:")
    _console().print(table)


def _table(*columns: Column) -> Table:
    """A table without a frame: in 80 columns there is none to spare."""
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _text(header: str) -> Column:
    """A column that goes on in the next line where it is too long."""
    return Column(header, overflow="fold")


def _words(header: str) -> Column:
    """A column that keeps its width."""
    return Column(header, no_wrap=True)


def _number(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def _console() -> Console:
    """The terminal, on which texts of remote sides appear as they are: none of them is markup."""
    width = None if sys.stdout.isatty() else _UNCUT_COLUMNS
    return Console(markup=False, emoji=False, highlight=False, width=width)


def _settings(config_file: Path | None) -> Settings:
    return load_settings(config_file, os.environ)


def _start_logging(settings: Settings) -> Redactor:
    redactor = configure_logging(settings.log.level, settings.log.format, _secrets(settings))
    if settings.replaced_destinations:
        log.warning("REMOTE_WRITE_URL replaces the destinations of the file", replaced=settings.replaced_destinations)
    return redactor


def _secrets(settings: Settings) -> Iterator[str]:
    """Every secret of the configuration that is long enough to be one."""
    yield settings.cloudflare.api_token.get_secret_value()
    for destination in settings.destinations:
        yield from (secret for secret in secrets_of(destination) if len(secret) >= _SHORTEST_SECRET)


def _when(option: str, text: str, now: float) -> float:
    try:
        when = moment(text, now)
    except ValueError as error:
        msg = f"{option}: {error}"
        raise UsageError(msg) from None
    if when > now:
        msg = f"{option} {text} is in the future"
        raise UsageError(msg)
    return when


def _require_known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """UsageError for a name that is not known; it tells those that are near, else the first that are known."""
    for name in given:
        if name in known:
            continue
        if near := get_close_matches(name, known, n=_MOST_NAMES):
            hint = f"did you mean {' or '.join(near)}?"
        elif known:
            hint = f"known are {', '.join(known[:_MOST_NAMES])}{', ...' if len(known) > _MOST_NAMES else ''}"
        else:
            hint = "none is known yet"
        msg = f"{option} {name} is not known; {hint}"
        raise UsageError(msg)


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
