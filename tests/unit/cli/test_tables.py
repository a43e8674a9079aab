import pytest
from rich.console import Console

from worker.cli import tables
from worker.cli.tables import (
    new_table,
    number_column,
    period_column,
    print_hanging,
    print_table,
    text_column,
    word_column,
)

PERIOD = "2026-01-06T03:00:00Z to 2026-01-06T05:00:00Z"


@pytest.mark.parametrize("columns", [20, 70, 80, 100, 200])
def test_a_table_breaks_neither_moments_nor_names_and_cuts_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "terminal", lambda: Console(width=columns, markup=False, highlight=False))
    table = new_table(word_column("asked at"), period_column("what"), text_column("outcome"), number_column("windows"))
    outcome = "1,000 samples equal, 20 missing, and 4 destinations not read"
    table.add_row("2026-01-06T06:00:00Z", PERIOD, outcome, "1,475")

    print_table(table)

    header, line, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "asked at what outcome windows"
    assert len(line) <= max(columns, 20 + 2 + 23 + 2 + 12 + 2 + 7)
    words = [word for row in rows for word in row.split()]
    assert sorted(words) == sorted(f"2026-01-06T06:00:00Z {PERIOD} {outcome} 1,475".split())
    assert (len(rows) == 1) is (columns == 200)


def test_a_name_longer_than_any_terminal_has_room_for_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "terminal", lambda: Console(width=40, markup=False, highlight=False))
    table = new_table(text_column("metric"), number_column("missing"))
    name = "cloudflare_zone_content_type_response_bytes"
    table.add_row(name, "90")

    print_table(table)

    rows = capsys.readouterr().out.splitlines()[2:]
    assert "".join(row.split()[0] for row in rows) == name
    assert max(map(len, rows)) <= 40


@pytest.mark.parametrize(
    ("is_terminal", "lines"),
    [(True, ["ok  token  it reads all the zones of", "           the accounts"]), (False, None)],
)
def test_a_finding_goes_on_below_itself_on_a_terminal_and_is_one_line_elsewhere(
    *, is_terminal: bool, lines: list[str] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=38, force_terminal=is_terminal, markup=False, highlight=False)
    monkeypatch.setattr(tables, "terminal", lambda: console)

    print_hanging("ok  token  ", "it reads all the zones of the accounts")

    assert capsys.readouterr().out.splitlines() == (lines or ["ok  token  it reads all the zones of the accounts"])
