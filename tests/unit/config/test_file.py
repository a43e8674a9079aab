from pathlib import Path

import pytest

from worker.config.file import read_file
from worker.config.mistakes import Mistakes
from worker.errors import ConfigError

CANARY = "hunter2-canary"


def read(path: Path, text: str) -> object:
    """What the file holds; ConfigError with its mistakes."""
    file = path / "config.yml"
    file.write_text(text, encoding="utf-8")
    mistakes = Mistakes()
    tree = read_file(file, mistakes)
    mistakes.raise_any(lambda _: (0, 0))
    return tree


def refused(path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, text)
    return str(caught.value)


def test_scalars_stay_the_text_that_stands_in_the_file(tmp_path: Path) -> None:
    text = "a: 010\nb: yes\nc: 2026-01-01\nd: 1e3\ne: 0x10\nf: '5'\ng: 1_000\nh: =\n"
    assert read(tmp_path, text) == {
        "a": "010",
        "b": "yes",
        "c": "2026-01-01",
        "d": "1e3",
        "e": "0x10",
        "f": "5",
        "g": "1_000",
        "h": "=",
    }


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "a:\nb: ~\nc: null\nd: ''\n") == {"a": None, "b": None, "c": None, "d": ""}
    assert read(tmp_path, "") == {}
    assert read(tmp_path, "# only a comment\n") == {}


def test_merged_mappings_are_merged(tmp_path: Path) -> None:
    text = "a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n"
    assert read(tmp_path, text) == {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "3"}}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa: 1\n") == {"a": "1"}


def test_a_key_given_twice_is_a_mistake_with_both_lines_at_every_level(tmp_path: Path) -> None:
    message = refused(tmp_path, "a: 1\nb:\n  - url: x\n    url: y\n  - url: z\n    url: z\na: 2\nc: {d: 1, d: 1}\n")
    assert f"{tmp_path}/config.yml:4: url is given a second time; the first is on line 3" in message
    assert f"{tmp_path}/config.yml:6: url is given a second time; the first is on line 5" in message
    assert f"{tmp_path}/config.yml:7: a is given a second time; the first is on line 1" in message
    assert f"{tmp_path}/config.yml:8: d is given a second time; the first is on line 8" in message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "indent with blanks, not with tabs"),
        ("a: b: c\n", 1, "mapping values are not allowed here"),
        ("a: 1\n--- \nb: 2\n", 2, "another document"),
        ('a: "unfinished\n', 2, "end of stream"),
        (f"a: *{CANARY}\n", 1, "undefined alias ...; text that starts with a special character must stand in quotes"),
        (f"a: !{CANARY} x\n", 1, "tag ...; text that starts with a special character must stand in quotes"),
        (f"a: !!int {CANARY}\n", 1, "could not determine a constructor"),
        (f"a: {{{{ {CANARY} }}}}\n", 1, "unhashable key"),
        (f"a: %{CANARY}\n", 1, "cannot start any token"),
        (f"a: '{CANARY}' x\n", 1, "expected <block end>"),
        (f"a: &{CANARY} 1\nb: &{CANARY} 2\n", 2, "found duplicate anchor ...; first occurrence, second occurrence"),
    ],
)
def test_a_syntax_error_is_one_line_with_file_and_line_and_nothing_of_the_content(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    message = refused(tmp_path, text)
    assert len(message.splitlines()) == 2
    assert f"{tmp_path}/config.yml:{line}: is not YAML: " in message
    assert words in message
    assert CANARY not in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n"])
def test_the_file_holds_names_and_values(tmp_path: Path, text: str) -> None:
    assert "must hold settings, one `name: value` a line" in refused(tmp_path, text)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    mistakes = Mistakes()
    (tmp_path / "binary.yml").write_bytes(b"a: \xff\xfe")
    (tmp_path / "control.yml").write_bytes(b"a: \x07")
    for name in ("missing.yml", "", "binary.yml", "control.yml"):
        assert read_file(tmp_path / name, mistakes) is None
    with pytest.raises(ConfigError) as caught:
        mistakes.raise_any(lambda _: (0, 0))
    assert [str(mistake).removeprefix(str(tmp_path)) for mistake in caught.value.mistakes] == [
        "/missing.yml: cannot be read: No such file or directory",
        ": cannot be read: Is a directory",
        "/binary.yml: is not UTF-8 text",
        "/control.yml: holds a character that YAML does not allow",
    ]


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: " + "[" * 5000 + "]" * 5000 + "\n"])
def test_endless_nesting_is_a_mistake_and_no_crash(tmp_path: Path, text: str) -> None:
    assert "is nested too deeply" in refused(tmp_path, text)


def test_placeholders_are_mistakes_since_nothing_fills_them_in(tmp_path: Path) -> None:
    message = refused(tmp_path, "a: ${TOKEN}\nb:\n  - c: x${HOME:-y}z\n    d: costs $5 {ok} ${1} $HOME\n")
    assert "  a: holds a ${...} placeholder" in message
    assert "  b[0].c: holds a ${...} placeholder" in message
    assert "b[0].d" not in message
    assert "TOKEN" not in message


def test_placeholders_stand_where_they_mean_something(tmp_path: Path) -> None:
    mistakes = Mistakes()
    file = tmp_path / "config.yml"
    file.write_text("a:\n  - own: [{b: '${c}'}]\n    d: '${e}'\nf: '${g}'\n")
    assert read_file(file, mistakes, own_placeholders=frozenset({"own"})) == {
        "a": [{"own": [{"b": "${c}"}], "d": "${e}"}],
        "f": "${g}",
    }
    with pytest.raises(ConfigError) as caught:
        mistakes.raise_any(lambda _: (0, 0))
    assert [mistake.setting for mistake in caught.value.mistakes] == ["a[0].d", "f"]
