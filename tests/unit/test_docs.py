"""The documents say what the program does: every name in them exists, and every name that exists is in them."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from starlette.routing import Route

from tests import datasets_page
from worker import __version__
from worker.check.probe import PROBE_METRIC
from worker.cli import main
from worker.cli.options import EXIT_INCOMPLETE
from worker.clock import SystemClock
from worker.cloudflare import FACT_SETS, ErrorKind, dataset_groups, shipped
from worker.cloudflare.catalogue import load
from worker.config import (
    DESTINATION_KEYS,
    SECRET_FILE_KEYS,
    SETTINGS,
    TOKEN_KEYS,
    RelabelRule,
    Setting,
    load_settings,
    prometheus_keys,
)
from worker.errors import LedgerError, LedgerHeldError, UsageError, WorkerError
from worker.health import Health
from worker.ledger import HoleReason
from worker.ledger.migrations import CURRENT_VERSION
from worker.observe import PUSH_OUTCOMES, MetricDescription, Metrics
from worker.serve import create_app
from worker.status import StatusReport

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
COMMANDS = REPOSITORY / "docs" / "commands.md"
METRICS = REPOSITORY / "docs" / "metrics.md"
EXPORTERS = REPOSITORY / "docs" / "exporters.md"
DESTINATIONS = REPOSITORY / "docs" / "destinations.md"
OPERATIONS = REPOSITORY / "docs" / "operations.md"
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "requirements/*.md", "benchmarks/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(path.relative_to(REPOSITORY)) for path in DOCUMENTS]
)

ENVIRONMENT = {"CF_API_TOKEN": "a-token"}

PLANNED: set[str] = set()
"""Commands that a setting speaks of and that do not exist yet."""

# ------------------------------------------------------------------------------------------------ reading Markdown

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    language: str
    text: str

    @property
    def title(self) -> str:
        """The name of the file that it shows, from the comment in its first line."""
        return self.text.partition("\n")[0].removeprefix("# ")


def blocks(document: Path, *languages: str) -> list[Block]:
    found = [Block(language, text) for language, text in FENCE.findall(document.read_text())]
    return [block for block in found if block.language in languages]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def table(document: Path, *header: str) -> list[tuple[str, ...]]:
    """The rows of the one table with this header, without the marks around code."""
    lines = iter(prose(document).splitlines())
    for line in lines:
        if cells(line) == header:
            next(lines)  # the rule under the header
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
            assert all(len(row) == len(header) for row in rows), f"{document.name}: a row has too many or too few cells"
            return rows
    pytest.fail(f"{document.name} has no table with the columns {', '.join(header)}")


def cells(line: str) -> tuple[str, ...]:
    if not line.startswith("|"):
        return ()
    inner = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return tuple(cell.strip().replace("\\|", "|") for cell in inner)


def codes(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def code(cell: str) -> str:
    """The only thing in the cell, without its backticks; a cell may be empty."""
    found = codes(cell)
    assert not cell or cell == f"`{found[0]}`", f"{cell} must be one word of code"
    return found[0] if found else ""


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_in_the_readme_with_its_default_and_meaning(setting: Setting) -> None:
    rows = {codes(name)[0]: row for name, *row in table(README, "name", "default", "meaning")}
    assert setting.name in rows
    assert_described(setting, *rows[setting.name])


def test_the_settings_stand_in_their_order_and_no_other_does() -> None:
    documented = [codes(row[0]) for row in table(README, "name", "default", "meaning")]
    assert documented == [[each.name, f"{each.name}_FILE"] if each.secret else [each.name] for each in SETTINGS]


def test_the_keys_of_a_token_are_in_the_readme_and_no_other_is() -> None:
    (sentence,) = re.findall(r"^An entry takes (.*?)\.", prose(README), re.MULTILINE | re.DOTALL)
    names = [key.name for key in TOKEN_KEYS]
    assert codes(sentence) == [*names[:2], "api_token_file", *names[2:]]


@pytest.mark.parametrize("key", DESTINATION_KEYS, ids=lambda key: key.name)
def test_every_key_of_a_destination_is_documented_with_its_default_and_meaning(key: Setting) -> None:
    rows = {codes(name)[0]: row for name, *row in table(DESTINATIONS, "key", "default", "meaning")}
    assert key.name in rows
    assert_described(key, *rows[key.name])


def test_no_other_key_of_a_destination_is_documented() -> None:
    documented = [codes(row[0]) for row in table(DESTINATIONS, "key", "default", "meaning")]
    wanted = [
        [key.name, f"{key.name}_file"] if key.name in SECRET_FILE_KEYS else [key.name] for key in DESTINATION_KEYS
    ]
    assert sorted(documented) == sorted(wanted)


def test_every_key_without_a_setting_is_documented_with_what_is_said_of_it() -> None:
    kept = {code(name): reason for name, reason in table(DESTINATIONS, "key", "taken, since")}
    refused = {
        code(name): (code(only), instead)
        for name, only, instead in table(DESTINATIONS, "key", "taken only as", "otherwise")
    }
    assert kept == {
        name: key.why for name, key in prometheus_keys.KEYS.items() if isinstance(key, prometheus_keys.Kept)
    }
    assert refused == {
        name: (key.harmless or "", key.instead)
        for name, key in prometheus_keys.KEYS.items()
        if isinstance(key, prometheus_keys.Refused)
    }


def test_every_key_of_a_rule_is_documented_with_its_default_and_meaning() -> None:
    documented = {
        code(name): (default, meaning)
        for name, default, meaning in table(DESTINATIONS, "key of a rule", "default", "meaning")
    }
    for name, info in RelabelRule.model_fields.items():
        default, meaning = documented.pop(name)
        assert default == (f"`{info.default}`" if info.default else "")
        assert meaning == " ".join(RelabelRule.meaning(name).split())
    assert documented == {}


def assert_described(setting: Setting, default: str, meaning: str) -> None:
    """The meaning may go on where the docstring ends."""
    assert default == ("required" if setting.required else f"`{setting.default}`" if setting.default else "")
    assert meaning == setting.meaning or meaning.startswith(f"{setting.meaning} ")


# ------------------------------------------------------------------------------------------------------- commands


def commands() -> dict[str, click.Command]:
    return {"cfrw": main, **{f"cfrw {name}": command for name, command in main.commands.items()}}


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Every option of a command that its help shows, by the way it is written."""
    written = {}
    for option in command.params:
        if isinstance(option, click.Argument):
            continue
        assert isinstance(option, click.Option)
        metavar = "" if option.is_flag else f" {value_of(option)}"
        written[f"{option.opts[-1]}{metavar}"] = option
    return written


def value_of(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "|".join(option.type.choices)
    return option.metavar or ("INTEGER" if isinstance(option.type, click.types.IntParamType) else option.type.name)


def test_the_readme_says_of_a_planned_command_that_it_does_not_exist_yet() -> None:
    assert PLANNED.isdisjoint(main.commands)
    for name in PLANNED:
        assert re.search(rf"`cfrw {name}`[^|]*does not exist yet", README.read_text())


@pytest.mark.parametrize("name", commands())
def test_every_command_is_in_the_readme_with_what_its_help_says(name: str) -> None:
    rows = {code(command): does for command, does in table(README, "command", "does")}
    assert name in rows
    first_paragraph = (commands()[name].help or "").partition("\n\n")[0]
    assert rows[name].startswith(" ".join(first_paragraph.split()))


def test_no_other_command_is_in_the_readme() -> None:
    assert {code(command) for command, _ in table(README, "command", "does")} == commands().keys()


def test_every_option_is_documented_with_its_commands_and_help_and_no_other_is() -> None:
    documented = {}
    for option, of, meaning in table(COMMANDS, "option", "of", "meaning"):
        for command in codes(of):
            documented[command if command == "cfrw" else f"cfrw {command}", code(option)] = meaning
    helps = {
        (name, written): option.help or ""
        for name, command in commands().items()
        for written, option in options_of(command).items()
    }
    assert documented.keys() == helps.keys()
    for key, text in helps.items():
        assert documented[key].startswith(text), key


def test_every_exit_code_is_in_the_readme() -> None:
    documented = {int(number): means for number, means in table(README, "exit code", "means")}
    errors = {error.exit_code for error in (WorkerError, UsageError, LedgerHeldError, LedgerError)}
    assert documented.keys() == {0, EXIT_INCOMPLETE, *errors}
    told_by_the_code = sys.modules[main.callback.__module__].__doc__ or "" if main.callback else ""
    for number, means in documented.items():
        if number:
            assert f"{number} {means.partition(';')[0]}" in " ".join(told_by_the_code.split())


def test_the_exit_codes_of_what_keeps_it_from_starting_are_true() -> None:
    documented = {int(number) for _, number, _ in table(OPERATIONS, "it says", "exit code", "do")}
    assert documented == {UsageError.exit_code, LedgerHeldError.exit_code, LedgerError.exit_code}


# ---------------------------------------------------------------------------------------------------------- HTTP


async def _no_report() -> StatusReport:
    raise NotImplementedError


def test_every_http_path_is_in_the_readme_and_no_other_is() -> None:
    clock = SystemClock()
    health = Health(clock)
    app = create_app(Metrics(clock, health, version="", sqlite_version=""), health, _no_report, clock)
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    assert {code(path) for path, _ in table(README, "path", "answers")} == routes


# ------------------------------------------------------------------------------------------------------- metrics


def own_metrics() -> tuple[MetricDescription, ...]:
    clock = SystemClock()
    return Metrics(clock, Health(clock), version="", sqlite_version="").descriptions()


def test_the_table_of_traffic_metrics_is_the_catalogue() -> None:
    documented = [
        (code(name), code(label), unit, additive, meaning)
        for name, label, unit, additive, meaning in table(
            README, "metric", "further label", "unit", "may be summed", "meaning"
        )
    ]
    assert documented == [
        (metric.name, ", ".join(labels), metric.unit, "yes" if metric.additive else "no", metric.help)
        for metric, labels in shipped()["http_requests"].metrics()
    ]


def test_the_page_of_datasets_is_made_of_the_catalogue() -> None:
    assert datasets_page.PAGE.read_text() == datasets_page.page(), "`make datasets` writes it anew"


def test_the_readme_names_every_group() -> None:
    documented = [code(group) for group, _ in table(README, "group", "what is in it")]
    assert sorted(documented) == sorted(dataset_groups({**shipped(), **FACT_SETS}))


def metrics_by_dataset() -> dict[str, set[str]]:
    found = {name: {metric.name for metric, _ in each.metrics()} for name, each in shipped().items()}
    return found | {name: {metric.name for metric, _ in each.metrics()} for name, each in FACT_SETS.items()}


def exporters() -> list[tuple[str, str, str]]:
    """What other exporters have: their names, the dataset here, and the query; all rows of the tables with these."""
    rows = [cells(line) for line in prose(EXPORTERS).splitlines() if line.startswith("| `cloudflare_")]
    return [(row[0], code(row[1]), code(row[2])) for row in rows if len(row) == 4]


def test_what_stands_for_anothers_metric_is_in_the_dataset_that_is_named() -> None:
    assert len(exporters()) > 50
    metrics = metrics_by_dataset()
    for theirs, name, query in exporters():
        asked = set(re.findall(r"\bcloudflare_\w+", query))
        assert asked <= metrics[name] if name else not asked, theirs


def test_no_metric_of_another_exporter_is_named_twice() -> None:
    named = [name for theirs, _, _ in exporters() for name in codes(theirs)]
    assert len(named) == len(set(named))


@each_document
def test_every_catalogue_in_a_document_is_sound(document: Path) -> None:
    for block in blocks(document, "yaml"):
        if block.title == "catalogue.yaml":
            found = load(block.text, block.title, beside=shipped())
            assert not isinstance(found, tuple), found


def test_the_table_of_own_metrics_is_the_registry() -> None:
    documented = [
        (code(name), kind, tuple(codes(labels)), meaning)
        for name, kind, labels, meaning in table(METRICS, "metric", "type", "labels", "meaning")
    ]
    assert documented == [(each.name, each.kind, each.labels, each.help) for each in own_metrics()]


def test_the_reasons_of_missing_windows_are_those_of_holes_and_waiting() -> None:
    documented = [code(reason) for reason, _ in table(METRICS, "`reason`", "means")]
    assert documented == ["waiting", *HoleReason]


def test_the_states_are_those_of_the_ledger() -> None:
    schema = (REPOSITORY / "worker" / "ledger" / "schema.sql").read_text()
    (listed,) = re.findall(r"CHECK \(\s*(state = [^)]*?)\s*\),\n    segment", schema)
    assert [code(state) for state, _ in table(METRICS, "`state`", "means")] == re.findall(r"state = '(\w+)'", listed)


def test_the_schema_that_an_upgrade_brings_is_the_ledgers() -> None:
    told = {
        name: re.findall(pattern, (REPOSITORY / name).read_text())[0]
        for name, pattern in {
            "worker/ledger/schema.sql": r"^-- The ledger, schema version (\d+)\.",
            "CHANGELOG.md": r"Ledger schema (\d+)",
            "docs/operations.md": r"From schema 1 \(version 0\.1\.0\) to (\d+)",
        }.items()
    }
    assert told == dict.fromkeys(told, str(CURRENT_VERSION))


def test_the_outcomes_of_pushing_are_those_of_the_code() -> None:
    documented = [code(outcome) for outcome, _ in table(METRICS, "`outcome`", "answer of the receiver")]
    assert documented == list(PUSH_OUTCOMES)


def test_the_outcomes_of_requests_to_cloudflare_are_its_kinds_of_error() -> None:
    documented = [code(outcome) for outcome, _ in table(METRICS, "`outcome`", "means")]
    assert documented == ["ok", *ErrorKind]


def test_the_manual_says_what_to_do_about_every_own_metric() -> None:
    text = OPERATIONS.read_text()
    assert [each.name for each in own_metrics() if not re.search(rf"\b{each.name}\b", text)] == []


# ------------------------------------------------------------------------------------- names anywhere in a document


@each_document
def test_every_variable_that_a_document_names_exists(document: Path) -> None:
    known = {setting.name for setting in SETTINGS} | {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    named = set(re.findall(r"\b(?:CF|REMOTE_WRITE|LEDGER|LISTEN|LOG)_[A-Z_]*[A-Z]\b(?!\.)", document.read_text()))
    assert named - known == set()


@each_document
def test_every_metric_that_a_document_names_exists(document: Path) -> None:
    known = {PROBE_METRIC}.union(*metrics_by_dataset().values())
    for each in own_metrics():
        known.add(each.name)
        if each.kind == "histogram":
            known |= {f"{each.name}_{ending}" for ending in ("bucket", "sum", "count")}
    named = set(
        re.findall(
            r"\b(?:cfrw|cloudflare_(?:zone|account|worker|pages|durable|container|browser))_[a-z0-9_]*[a-z0-9]\b",
            document.read_text(),
        )
    )
    if document == EXPORTERS:  # which says in its first columns what others call theirs
        rows = [line for line in document.read_text().splitlines() if line.startswith("|")]
        known |= {name for row in rows for name in codes(cells(row)[0])}
    assert named - known == set()


@each_document
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    written = re.findall(r"`make ([a-z -]+)`", prose(document))
    for block in blocks(document, "sh", "console"):
        written += re.findall(r"^make ((?:[a-z-]+ ?)+)", block.text, re.MULTILINE)
    assert {target for line in written for target in line.split()} - targets == set()


@each_document
def test_every_name_of_the_code_that_a_document_names_exists(document: Path) -> None:
    for name in re.findall(r"`(worker(?:\.\w+)+)", prose(document)):
        assert resolves(name), f"{name} does not exist"


def resolves(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_every_warning_of_the_worker_is_in_the_manual_and_no_other_is() -> None:
    """An event may go on where the manual ends."""
    documented = {(code(event), level) for event, level, _ in table(OPERATIONS, "event", "level", "see")}
    written = {
        warning
        for path in (REPOSITORY / "worker").rglob("*.py")
        if path.relative_to(REPOSITORY / "worker").parts[0] not in {"simulator", "demo"}
        for warning in warnings_in(path)
    }
    undocumented = {
        (event, level)
        for event, level in written
        if not any(event.startswith(start) and level == wanted for start, wanted in documented)
    }
    assert undocumented == set()
    for start, wanted in documented:
        assert any(event.startswith(start) and level == wanted for event, level in written), start


def warnings_in(path: Path) -> Iterator[tuple[str, str]]:
    """What a module logs for people at night, with its level."""
    levels = {"warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=method), args=[event, *_]) if method in levels:
                for text in texts_of(event, tree):
                    yield text, levels[method]
            case _:
                pass


def texts_of(event: ast.expr, tree: ast.Module) -> list[str]:
    """What an argument can be: a text itself, or any text that its name is given in the module."""
    match event:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name):
            return [
                text
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
                for text in texts_of(node.value, tree)
            ]
        case _:
            return []


def test_the_documents_name_the_versions_of_the_project() -> None:
    assert PROJECT["project"]["version"] == __version__
    assert f"## [{__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"Python {lowest}" in README.read_text()


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    first = blocks(README, "sh")[0]
    assert re.findall(r"^make (\w+)", first.text, re.MULTILINE) == ["demo", "test"]
    assert README.read_text().index(first.text) < 300


# --------------------------------------------------------------------------------------------------------- links


@each_document
def test_every_link_within_the_project_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", prose(document), re.MULTILINE):
        link = "".join(target)
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{link}: there is no such file"
        assert file.is_relative_to(REPOSITORY), f"{link} leads out of the project"
        if anchor:
            assert anchor in anchors(file), f"{link}: there is no such heading"


# ------------------------------------------------------------------------------------------- what can be typed in


def command_lines(document: Path) -> Iterator[str]:
    """Every line to be typed into a shell, with its continuations, without comments."""
    for block in blocks(document, "sh", "console"):
        lines = block.text.replace("\\\n", " ").splitlines()
        prompted = any(line.startswith("$ ") for line in lines)
        yield from (line.removeprefix("$ ") for line in lines if not prompted or line.startswith("$ "))


def cfrw_lines(document: Path) -> list[list[str]]:
    """The arguments of every call of cfrw: in blocks, and in code within a sentence that has more than its name."""
    lines = [*command_lines(document), *(text for text in codes(prose(document)) if " " in text)]
    split = [shlex.split(line, comments=True) for line in lines if re.search(r"\bcfrw\b", line) and "|" not in line]
    names = {"cfrw", ".venv/bin/cfrw"}
    return [words[words.index(name) + 1 :] for words in split for name in names & set(words)]


@each_document
def test_every_call_of_cfrw_in_a_document_is_understood(document: Path) -> None:
    for arguments in cfrw_lines(document):
        if arguments[0] in PLANNED:
            continue
        try:
            parse(arguments)
        except click.ClickException as error:
            pytest.fail(f"cfrw {shlex.join(arguments)}: {error.format_message()}")


def parse(arguments: list[str]) -> None:
    """Read a command line as the program does, without doing anything."""
    # A sentence may name an option without its value.
    if arguments[-1] in {"--since", "--resend-since", "--config"}:
        arguments = [*arguments, "3d"]
    with main.make_context("cfrw", list(arguments)) as context:
        rest = [*context._protected_args, *context.args]
        name, command, own = main.resolve_command(context, rest) if rest else (None, None, [])
        if command is not None and own:
            command.make_context(name, own, parent=context)


def test_an_unknown_option_in_a_document_is_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["resend", "--since", "3d", "--only-everything"])
    with pytest.raises(click.UsageError):
        parse(["holes", "--since", "3d"])


@each_document
def test_every_shell_block_is_shell(document: Path) -> None:
    answer = subprocess.run(
        ["bash", "-n"],  # noqa: S607 - the shell that the reader has, too
        input="\n".join(command_lines(document)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stderr == ""


def test_the_readmes_exports_are_a_sound_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(README, "sh"):
        exported = dict(re.findall(r"^export ((?!PATH)\w+)=(\S+)$", block.text, re.MULTILINE))
        if not exported:
            continue
        (tmp_path / "cfrw.yaml").write_text(blocks(README, "yaml")[1].text)
        file = ["--config", "cfrw.yaml"] if "--config cfrw.yaml" in block.text else []
        result = CliRunner().invoke(main, ["check", "--config-only", *file], env=exported, catch_exceptions=False)
        assert result.exit_code == 0, result.output


@each_document
def test_every_configuration_in_a_document_is_sound(document: Path, tmp_path: Path) -> None:
    for block in blocks(document, "yaml"):
        if block.title.startswith("cfrw.yaml"):
            file = tmp_path / "cfrw.yaml"
            file.write_text(block.text)
            for name in re.findall(r"_(?:file|path): ([\w.]+)", block.text):
                (tmp_path / name).write_text(f"a-secret-of-{name}")
            load_settings(file, {} if "\ncloudflare:\n" in block.text else ENVIRONMENT)


@each_document
def test_every_block_of_yaml_says_what_file_it_is_and_is_yaml(document: Path) -> None:
    for block in blocks(document, "yaml"):
        assert block.title in {"cfrw.yaml", "catalogue.yaml", "prometheus.yml", "rules.yml", "kustomization.yaml"}
        assert isinstance(yaml.safe_load(block.text), Mapping)


@each_document
def test_prometheus_takes_every_configuration_rule_and_query(
    document: Path, tmp_path: Path, required_program: Callable[[str], Path]
) -> None:
    checks: list[tuple[str, str]] = []
    for block in blocks(document, "yaml"):
        if block.title == "prometheus.yml":
            checks.append(("config", block.text))
        elif block.title == "rules.yml":
            checks.append(("rules", block.text))
    queries = [query for block in blocks(document, "promql") for query in block.text.split("\n\n")]
    if document == EXPORTERS:
        queries += [query for _, _, query in exporters() if query]
    if queries:
        # What Grafana fills in. A recording rule is the only thing whose query promtool reads without a server.
        filled = [query.replace("$__interval_ms", "3600000").replace("$__interval", "1h") for query in queries]
        rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(filled)]
        checks.append(("rules", yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})))
    for kind, text in checks:
        file = tmp_path / f"{kind}.yml"
        file.write_text(text)
        answer = subprocess.run(
            [required_program("promtool"), "check", kind, file], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
