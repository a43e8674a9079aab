"""How results look on a terminal: tables, lines that are never cut, and JSON."""

import sys
from textwrap import wrap

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table

# Wider than any row: the longest name of a zone has 253 characters.
_UNCUT_COLUMNS = 1000

# More rows than a person reads; --json has all.
MOST_ROWS = 50

# A moment has 20 characters, and most names have fewer than 24; nothing shorter is broken to fit a terminal.
_LEAST_BROKEN_CHARACTERS = 24


def new_table(*columns: Column) -> Table:
    """A table without a frame: in 80 columns there is none to spare."""
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def text_column(header: str) -> Column:
    """A column that goes on in the next line where it is too long."""
    return Column(header, overflow="fold")


def period_column(header: str) -> Column:
    """A column for `MOMENT to MOMENT`, which breaks behind the `to` if at all."""
    return Column(header, overflow="fold", min_width=len("2026-01-06T03:00:00Z to"))


def word_column(header: str) -> Column:
    """A column that keeps its width."""
    return Column(header, no_wrap=True)


def number_column(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def terminal() -> Console:
    """The terminal, on which texts of remote sides appear as they are: none of them is markup."""
    width = None if sys.stdout.isatty() else _UNCUT_COLUMNS
    return Console(markup=False, emoji=False, highlight=False, width=width)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or wider where moments and names would be broken to pieces in it."""
    console = terminal()
    widths, needs = [], []
    for column in table.columns:
        lines = [line for cell in (column.header, *column.cells) for line in str(cell).splitlines()]
        longest = max(map(len, lines), default=0)
        word = max((len(word) for line in lines for word in line.split()), default=0)
        least = max(column.min_width or 0, min(word, _LEAST_BROKEN_CHARACTERS))
        widths.append(longest if column.no_wrap else min(longest, least))
        needs.append(longest - widths[-1])
    # Two blanks stand between columns.
    spare = console.width - sum(widths) - 2 * (len(widths) - 1)
    console.width -= min(spare, 0)
    # What needs least comes first, so that as many columns as can be have all they need.
    for index in sorted(range(len(needs)), key=needs.__getitem__):
        more = max(0, min(spare, needs[index]))
        widths[index] += more
        spare -= more
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    console.print(table)


def print_line(console: Console, text: str) -> None:
    # The terminal breaks a long line, and puts it together again when it is copied.
    console.print(text, soft_wrap=True)


def print_hanging(lead: str, text: str) -> None:
    """A line of which the text goes on below itself on a terminal; anything else gets it in one piece."""
    console = terminal()
    width = max(_LEAST_BROKEN_CHARACTERS, console.width - len(lead)) if console.is_terminal else sys.maxsize
    lines = wrap(text, width, break_long_words=False, break_on_hyphens=False)
    print_line(console, lead + f"\n{' ' * len(lead)}".join(lines))


def print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def rest(count: int) -> str:
    """The line that ends a table of the first rows of so many; empty where these are all."""
    hidden = count - MOST_ROWS
    return f"{hidden:,} more are not shown: --json has all\n" if hidden > 0 else ""


def count_of(kind: str, count: int) -> str:
    return f"{count:,} {kind}{'' if count == 1 else 's'}"
