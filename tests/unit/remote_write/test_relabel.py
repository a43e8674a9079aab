import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worker.config.relabel_rules import RelabelRule
from worker.remote_write.proto.remote_write_v1_pb2 import TimeSeries
from worker.remote_write.relabel import Relabeler, SeriesMap, Unsendable
from worker.series import label_block, parse_label_block

DOCUMENT = Path(__file__).parents[3] / "docs" / "relabelling.md"

ABC = {"a": "foo", "b": "bar", "c": "baz"}


def block(**labels: str) -> bytes:
    return label_block("m", labels)


def rules(*given: dict[str, Any]) -> list[RelabelRule]:
    return [RelabelRule.model_validate(rule) for rule in given]


def relabelled(labels: Mapping[str, str], *given: dict[str, Any], external: Mapping[str, str] = {}) -> Any:
    """The labels of the series `m` with these labels after the rules: all but its name where that is still `m`."""
    result = Relabeler(external, rules(*given))(block(**labels))
    if not isinstance(result, bytes):
        return result
    after = parse_label_block(result)
    return {name: value for name, value in after.items() if (name, value) != ("__name__", "m")}


# ---------------------------------------------------------------------------------------------------------- the actions


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        # replace
        (ABC, [{"source_labels": ["a"], "regex": "f(.*)", "target_label": "d", "replacement": "ch${1}-ch${1}"}],
         ABC | {"d": "choo-choo"}),
        (ABC, [{"source_labels": ["a", "b"], "regex": "f(.*);(.*)r", "target_label": "a", "replacement": "b${1}${2}m"},
               {"source_labels": ["c", "a"], "regex": "(b).*b(.*)ba(.*)", "target_label": "d",
                "replacement": "$1$2$2$3"}],
         ABC | {"a": "boobam", "d": "boooom"}),
        ({"a": "boo"}, [{"source_labels": ["a"], "regex": "f", "target_label": "b", "replacement": "bar"}],
         {"a": "boo"}),
        (ABC, [{"target_label": "env", "replacement": "prod"}], ABC | {"env": "prod"}),
        (ABC, [{"source_labels": ["a"], "target_label": "b", "replacement": ""}], {"a": "foo", "c": "baz"}),
        (ABC, [{"source_labels": ["a"], "regex": "(x)?foo", "target_label": "b"}], {"a": "foo", "c": "baz"}),
        (ABC, [{"source_labels": ["none"], "target_label": "b"}], {"a": "foo", "c": "baz"}),
        (ABC, [{"source_labels": ["none"], "regex": "(.+)", "target_label": "b"}], ABC),
        (ABC, [{"source_labels": ["a", "none", "c"], "separator": "-", "target_label": "d"}], ABC | {"d": "foo--baz"}),
        (ABC, [{"source_labels": ["a", "b"], "separator": "", "target_label": "d"}], ABC | {"d": "foobar"}),
        # a name from the input; an impossible one sets nothing
        ({"a": "some-name-value"},
         [{"source_labels": ["a"], "regex": "some-([^-]+)-([^,]+)", "replacement": "${2}", "target_label": "${1}"}],
         {"a": "some-name-value", "name": "value"}),
        ({"a": "some-name-0"}, [{"source_labels": ["a"], "regex": "some-name-(.*)", "target_label": "${1}"}],
         {"a": "some-name-0"}),
        ({"a": "x-y"}, [{"source_labels": ["a"], "target_label": "$1", "replacement": "v"}], {"a": "x-y"}),
        ({"a": "b", "b": "c"}, [{"source_labels": ["a"], "target_label": "${1}", "replacement": ""}], {"a": "b"}),
        # keep and drop
        (ABC, [{"source_labels": ["a"], "regex": ".*o.*", "action": "drop"}], None),
        (ABC, [{"source_labels": ["a"], "regex": "f|o", "action": "drop"}], ABC),
        (ABC, [{"source_labels": ["a"], "regex": "no-match", "action": "keep"}], None),
        (ABC, [{"source_labels": ["a"], "regex": "f.*", "action": "keep"}], ABC),
        (ABC, [{"source_labels": ["none"], "regex": "", "action": "keep"}], ABC),
        (ABC, [{"source_labels": ["__name__"], "regex": "m", "action": "drop"}], None),
        (ABC, [{"regex": "x", "action": "keep"}, {"target_label": "d", "replacement": "x"}], None),
        # keepequal and dropequal
        ({"a": "1", "b": "1", "c": "2"}, [{"source_labels": ["a"], "target_label": "b", "action": "keepequal"}],
         {"a": "1", "b": "1", "c": "2"}),
        ({"a": "1", "c": "2"}, [{"source_labels": ["a"], "target_label": "c", "action": "keepequal"}], None),
        ({"a": "1", "b": "1"}, [{"source_labels": ["a"], "target_label": "b", "action": "dropequal"}], None),
        ({"a": "1", "c": "2"}, [{"source_labels": ["a"], "target_label": "c", "action": "dropequal"}],
         {"a": "1", "c": "2"}),
        ({"a": "1"}, [{"source_labels": ["x"], "target_label": "y", "action": "dropequal"}], None),
        ({"a": "1", "b": "2", "c": "1;2"},
         [{"source_labels": ["a", "b"], "target_label": "c", "action": "keepequal"}], {"a": "1", "b": "2", "c": "1;2"}),
        # hashmod, with the values that Prometheus computes
        (ABC, [{"source_labels": ["c"], "target_label": "d", "modulus": 1000, "action": "hashmod"}],
         ABC | {"d": "976"}),
        ({"a": "foo\nbar"}, [{"source_labels": ["a"], "target_label": "b", "modulus": 1000, "action": "hashmod"}],
         {"a": "foo\nbar", "b": "734"}),
        # labelmap
        ({"a": "foo", "b1": "bar", "b2": "baz"}, [{"regex": "(b.*)", "replacement": "bar_${1}", "action": "labelmap"}],
         {"a": "foo", "b1": "bar", "b2": "baz", "bar_b1": "bar", "bar_b2": "baz"}),
        ({"b1": "bar", "b2": "baz"}, [{"regex": "b.", "replacement": "b", "action": "labelmap"}],
         {"b": "baz", "b1": "bar", "b2": "baz"}),
        # b1 was set by a rule, and therefore comes after b2, as in Prometheus 3
        ({"b2": "baz"}, [{"target_label": "b1", "replacement": "bar"},
                         {"regex": "b.", "replacement": "b", "action": "labelmap"}],
         {"b": "bar", "b1": "bar", "b2": "baz"}),
        ({"b1": "bar", "b2": "baz"}, [{"target_label": "b1", "replacement": "x"},
                                      {"regex": "b.", "replacement": "b", "action": "labelmap"}],
         {"b": "x", "b1": "x", "b2": "baz"}),
        ({}, [{"target_label": "b1", "replacement": "x"}, {"target_label": "b2", "replacement": "y"},
              {"target_label": "b1", "replacement": "z"}, {"regex": "b.", "replacement": "b", "action": "labelmap"}],
         {"b": "y", "b1": "z", "b2": "y"}),
        # a copy is not copied again by the same rule, nor does it hide what is still to be copied
        ({"a": "1", "aa": "2"}, [{"regex": "(a*)", "replacement": "a$1", "action": "labelmap"}],
         {"a": "1", "aa": "1", "aaa": "2"}),
        # labeldrop and labelkeep
        ({"a": "foo", "b1": "bar", "b2": "baz"}, [{"regex": "b.*", "action": "labeldrop"}], {"a": "foo"}),
        ({"a": "foo", "b1": "bar", "b2": "baz"}, [{"regex": "b.*|__name__", "action": "labelkeep"}],
         {"b1": "bar", "b2": "baz"}),
        # lowercase and uppercase
        ({"a": "bAr123Foo"}, [{"source_labels": ["a"], "target_label": "u", "action": "uppercase"},
                              {"source_labels": ["a"], "target_label": "l", "action": "lowercase"}],
         {"a": "bAr123Foo", "l": "bar123foo", "u": "BAR123FOO"}),
        (ABC, [{"source_labels": ["none"], "target_label": "a", "action": "uppercase"}], {"b": "bar", "c": "baz"}),
        # what other rules build on
        ({"a": "foo"}, [{"target_label": "__tmp_x", "replacement": "1"},
                        {"source_labels": ["__tmp_x"], "regex": "1", "action": "keep"}], {"__tmp_x": "1", "a": "foo"}),
        ({"a": "line1\nline2"}, [{"source_labels": ["a"], "regex": "line1.*line2", "target_label": "d",
                                  "replacement": "match${1}"}], {"a": "line1\nline2", "d": "match"}),
        (ABC, [], ABC),
    ],
)  # fmt: skip
def test_a_rule_does_what_it_does_in_prometheus(
    labels: dict[str, str], given: list[dict[str, Any]], expected: dict[str, str] | None
) -> None:
    assert relabelled(labels, *given) == expected


@pytest.mark.parametrize(
    ("replacement", "expected"),
    [
        ("$1", "x"),
        ("${1}", "x"),
        ("$1$2", "xy"),
        ("$0", "x-y"),
        ("a$1b", "a"),  # the group is called 1b
        ("a${1}b", "axb"),
        ("$1_$2", "y"),  # the group is called 1_
        ("$1-$2", "x-y"),
        ("$one", "x"),
        ("${one}/${two}", "x/y"),
        ("$one_", ""),
        ("$3", ""),
        ("${none}", ""),
        ("$1é", ""),  # é is a letter
        ("$1²", "x²"),  # ² is none
        ("$01", ""),  # a number has no leading zero
        ("$1234567890", ""),
        ("$$1", "$1"),
        ("$$$1", "$x"),
        ("$", "$"),
        ("a$", "a$"),
        ("$-", "$-"),
        ("${", "${"),
        ("${}", "${}"),
        ("${1", "${1"),
        ("${1 }", "${1 }"),
        (r"\1", r"\1"),
        ("ü", "ü"),
    ],
)
def test_a_template_is_read_as_go_reads_it(replacement: str, expected: str) -> None:
    rule = {"source_labels": ["a"], "regex": "(?P<one>.)-(?P<two>.)", "target_label": "r", "replacement": replacement}
    assert relabelled({"a": "x-y"}, rule).get("r", "") == expected


def test_a_group_that_took_no_part_in_the_match_is_empty() -> None:
    rule = {"source_labels": ["a"], "regex": "(x)|(y)", "target_label": "r", "replacement": "<$1|$2>"}
    assert relabelled({"a": "y"}, rule)["r"] == "<|y>"


@pytest.mark.parametrize(
    ("text", "lower", "upper"),
    [
        ("Straße", "straße", "STRAßE"),
        ("ΟΔΟΣ", "οδοσ", "ΟΔΟΣ"),
        ("\u0130", "i", "\u0130"),
        ("\u01c6", "\u01c6", "\u01c4"),
        ("\u1fb3", "\u1fb3", "\u1fbc"),
        ("\ufb01", "\ufb01", "\ufb01"),
        ("\u0149", "\u0149", "\u0149"),
    ],
)
def test_case_is_changed_one_character_for_one_as_go_does(text: str, lower: str, upper: str) -> None:
    for action, expected in (("lowercase", lower), ("uppercase", upper)):
        rule = {"source_labels": ["a"], "target_label": "r", "action": action}
        assert relabelled({"a": text}, rule)["r"] == expected


# ----------------------------------------------------------------------------------------------------------- the result


def test_external_labels_are_added_where_the_series_has_none_and_before_the_rules() -> None:
    rule = {"source_labels": ["cluster", "zone"], "target_label": "both"}
    external = {"zone": "outside", "cluster": "eu", "empty": ""}
    assert relabelled({"zone": "inside"}, rule, external=external) == {
        "both": "eu;inside",
        "cluster": "eu",
        "zone": "inside",
    }


def test_external_labels_come_in_the_order_of_their_names() -> None:
    rule = {"regex": "b.", "replacement": "b", "action": "labelmap"}
    assert relabelled({}, rule, external={"b2": "later", "b1": "first"})["b"] == "later"


def test_labels_are_in_byte_order_whatever_made_them() -> None:
    result = Relabeler({"Z": "1", "_": "2"}, rules({"target_label": "a0", "replacement": "3"}))(block(a="4", b="5"))
    assert isinstance(result, bytes)
    assert list(parse_label_block(result)) == ["Z", "_", "__name__", "a", "a0", "b"]


def test_a_metric_can_get_another_name() -> None:
    rule = {"source_labels": ["__name__"], "target_label": "__name__", "replacement": "cf_${1}"}
    assert relabelled({}, rule) == {"__name__": "cf_m"}


def test_a_series_without_any_label_is_dropped() -> None:
    assert relabelled({"a": "1"}, {"regex": ".*", "action": "labeldrop"}) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"regex": "__name__", "action": "labeldrop"}, "relabelling leaves it without a metric name (__name__)"),
        (
            {"source_labels": ["a"], "target_label": "__name__"},
            "relabelling gives it the name 'x-y', which is not a metric name",
        ),
        (
            {"regex": "(a)", "replacement": "${2}", "action": "labelmap"},
            "relabelling gives it the label '', which is not a label name",
        ),
        (
            {"regex": "(a)", "replacement": "${2}1", "action": "labelmap"},
            "relabelling gives it the label '1', which is not a label name",
        ),
    ],
)
def test_what_is_no_series_any_more_is_not_sent_and_says_why(given: dict[str, Any], reason: str) -> None:
    assert relabelled({"a": "x-y"}, given) == Unsendable(reason)


# ---------------------------------------------------------------------------------------------------- a map of series


def test_every_series_is_relabelled_once() -> None:
    asked: list[bytes] = []

    def relabel(block: bytes) -> bytes | None:
        asked.append(block)
        return None if block == b"two" else block.upper()

    series = SeriesMap(relabel)
    assert series.look_up({1: b"one", 2: b"two"}) == {1: b"ONE", 2: None}
    assert series.look_up({2: b"two", 3: b"three"}) == {2: None, 3: b"THREE"}
    assert asked == [b"one", b"two", b"three"]


def test_series_that_become_the_same_are_named_after_the_first_of_them() -> None:
    series = SeriesMap(lambda _: b"same")
    assert series.look_up({9: b"nine", 4: b"four"}) == {9: b"same", 4: b"same"}
    assert series.first_named(b"same") == 4
    series.look_up({3: b"three"})
    assert series.first_named(b"same") == 4


def test_dropped_and_unsendable_series_are_no_twins_of_each_other() -> None:
    series = SeriesMap(lambda block: None if block == b"dropped" else Unsendable("no name"))
    answer = series.look_up({1: b"dropped", 2: b"dropped", 3: b"bad", 4: b"bad"})
    assert answer == {1: None, 2: None, 3: Unsendable("no name"), 4: Unsendable("no name")}


# --------------------------------------------------------------------------------------------- any labels and any rules


names = st.sampled_from(["a", "b", "ab", "b1", "__tmp"])
texts = st.text(st.sampled_from("ab1;-é\n$"), max_size=4)
label_sets = st.dictionaries(st.sampled_from(["a", "b", "ab", "b1"]), texts, max_size=4)
# Both engines read these in the same way.
regexes = st.sampled_from(["(.*)", "(.+)", "a", "a.*", "(a|b)(.*)", "([^;]*);(.*)", "(?P<x>.)(?P<y>.*)", "b?(1)?", ""])
templates = st.sampled_from(["$1", "${1}", "$2$1", "x", "", "${1}x", "$1x", "${x}${y}", "$$", "$-", "${0}"])
name_templates = st.sampled_from(["a", "b", "c", "$1", "n_${1}", "${2}", "__name__"])


def replacing(*, targets: st.SearchStrategy[str] = name_templates) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"regex": regexes, "target_label": targets, "replacement": templates, "source_labels": st.lists(names)},
        optional={"separator": texts},
    )


any_rule = st.one_of(
    replacing(),
    st.fixed_dictionaries(
        {"action": st.sampled_from(["keep", "drop"]), "regex": regexes, "source_labels": st.lists(names)}
    ),
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["keepequal", "dropequal", "lowercase", "uppercase"]),
            "target_label": names,
            "source_labels": st.lists(names),
        }
    ),
    st.fixed_dictionaries(
        {
            "action": st.just("hashmod"),
            "modulus": st.integers(1, 2**40),
            "target_label": names,
            "source_labels": st.lists(names),
        }
    ),
    st.fixed_dictionaries({"action": st.just("labelmap"), "regex": regexes, "replacement": name_templates}),
    st.fixed_dictionaries({"action": st.sampled_from(["labeldrop", "labelkeep"]), "regex": regexes}),
)


class SecondReading:
    """The rules in Python's own regexes, on what was collected and what was set, kept apart."""

    def __init__(self, collected: Mapping[str, str]) -> None:
        self.collected = dict(collected)
        self.changed: dict[str, str] = {}
        self.dropped = False

    def labels(self) -> dict[str, str]:
        return {**self.collected, **self.changed}

    def put(self, name: str, value: str) -> None:
        self.collected.pop(name, None)
        self.changed[name] = value
        if not value:
            del self.changed[name]

    def apply(self, rule: Mapping[str, Any]) -> None:
        labels = self.labels()
        regex = re.compile(rule.get("regex", "(.*)"), re.DOTALL)
        given = rule.get("separator", ";").join(labels.get(name, "") for name in rule.get("source_labels", ()))
        found = regex.fullmatch(given)
        target = rule.get("target_label", "")
        equal = labels.get(target, "") == given
        match rule.get("action", "replace"):
            case "keep" | "drop" as action:
                self.dropped |= (found is None) == (action == "keep")
            case "keepequal" | "dropequal" as action:
                self.dropped |= equal == (action == "dropequal")
            case "labelmap" | "labeldrop" | "labelkeep" as action:
                for name, value in labels.items():
                    self.name(action, name, value, regex.fullmatch(name), rule.get("replacement", ""))
            case "replace" if found and is_label_name(target := expand(target, found)):
                self.put(target, expand(rule["replacement"], found))
            case "lowercase" | "uppercase" as action:
                self.put(target, given.lower() if action == "lowercase" else given.upper())
            case "hashmod":
                digest = hashlib.md5(given.encode(), usedforsecurity=False).hexdigest()
                self.put(target, str(int(digest[16:], 16) % rule["modulus"]))
            case _:
                pass  # a replacement that matches nothing, or has no name

    def name(self, action: str, name: str, value: str, found: re.Match[str] | None, replacement: str) -> None:
        if action == "labelmap" and found:
            self.put(expand(replacement, found), value)
        elif action != "labelmap" and bool(found) == (action == "labeldrop"):
            self.put(name, "")


def expand(template: str, found: re.Match[str]) -> str:
    def group(reference: re.Match[str]) -> str:
        name = reference[1] or reference[2]
        if name is None:
            return "$"
        try:
            return found[int(name) if name.isdecimal() else name] or ""
        except IndexError:
            return ""

    return re.sub(r"\$\$|\$\{(\w+)\}|\$(\w+)", group, template)


def is_label_name(name: str) -> bool:
    return re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) is not None


def is_sendable(labels: Mapping[str, str]) -> bool:
    is_metric_name = re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", labels.get("__name__", ""))
    return is_metric_name is not None and all(map(is_label_name, labels))


@given(label_sets, st.lists(any_rule, max_size=4))
def test_a_second_reading_of_the_rules_comes_to_the_same(labels: dict[str, str], given: list[dict[str, Any]]) -> None:
    collected = block(**labels)
    second = SecondReading(parse_label_block(collected))
    for rule in given:
        if not second.dropped:
            second.apply(rule)
    match Relabeler({}, rules(*given))(collected):
        case None:
            assert second.dropped or not second.labels()
        case Unsendable():
            assert not second.dropped
            assert not is_sendable(second.labels())
        case bytes() as result:
            assert not second.dropped
            assert parse_label_block(result) == second.labels()


@given(label_sets, st.lists(any_rule, max_size=4))
def test_what_is_sent_is_a_series_that_the_protocol_allows(labels: dict[str, str], given: list[dict[str, Any]]) -> None:
    result = Relabeler({"ext": "1"}, rules(*given))(block(**labels))
    if isinstance(result, bytes):
        series = TimeSeries()
        series.ParseFromString(result)
        pairs = [(label.name.encode(), label.value) for label in series.labels]
        assert [name for name, _ in pairs] == sorted({name for name, _ in pairs})
        assert all(re.fullmatch(rb"[a-zA-Z_][a-zA-Z0-9_]*", name) and value for name, value in pairs)
        assert any(name == b"__name__" for name, _ in pairs)
        assert series.SerializeToString(deterministic=True) == result


@given(
    label_sets,
    st.lists(
        st.sampled_from(
            [
                {"source_labels": ["a"], "target_label": "a"},
                {"regex": "(.*)", "action": "labelmap"},
                {"regex": "none", "action": "labeldrop"},
                {"regex": ".*", "action": "labelkeep"},
                {"action": "keep"},
                {"source_labels": ["b"], "target_label": "b", "action": "keepequal"},
                {"regex": "x", "target_label": "a", "replacement": "never"},
            ]
        )
    ),
)
def test_rules_that_say_nothing_change_no_byte(labels: dict[str, str], given: list[dict[str, Any]]) -> None:
    assert Relabeler({}, rules(*given))(block(**labels)) == block(**labels)


@given(label_sets, st.lists(any_rule, max_size=4))
def test_rules_without_a_value_of_their_own_invent_no_label(
    labels: dict[str, str], given: list[dict[str, Any]]
) -> None:
    selecting = [
        rule for rule in given if rule.get("action") in {"keep", "drop", "keepequal", "labeldrop", "labelkeep"}
    ]
    result = Relabeler({}, rules(*selecting))(block(**labels))
    if isinstance(result, bytes):
        assert parse_label_block(result).items() <= parse_label_block(block(**labels)).items()


# ------------------------------------------------------------------------------------------------------------- the docs


def test_the_document_s_example_does_what_the_document_says() -> None:
    text = DOCUMENT.read_text()
    (example,) = (yaml.safe_load(code) for code in re.findall(r"(?s)^```yaml\n(.*?)^```$", text, re.MULTILINE))
    (destination,) = example["remote_write"]
    relabel = Relabeler(example["external_labels"], rules(*destination["write_relabel_configs"]))
    rows = re.findall(r"^\| `(\w+)\{(.*)\}` \| (?:`(\w+)\{(.*)\}`|not sent) \|$", text, re.MULTILINE)
    assert len(rows) == 3

    def labels(written: str) -> dict[str, str]:
        return dict(re.findall(r'(\w+)="(.*?)"', written))

    for name, before, new_name, after in rows:
        expected = label_block(new_name, labels(after)) if new_name else None
        assert relabel(label_block(name, labels(before))) == expected
