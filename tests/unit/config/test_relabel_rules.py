import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from worker.config.relabel_rules import RelabelAction, RelabelRule, RelabelRules, compiled
from worker.config.values import InvalidValueError

RULES: TypeAdapter[tuple[RelabelRule, ...]] = TypeAdapter(RelabelRules)


def rule(**keys: Any) -> RelabelRule:
    return RelabelRule.model_validate(keys)


def mistake(*rules: dict[str, Any]) -> tuple[str, str | None, str]:
    """Where the one mistake of these rules is, what is shown of it, and the problem."""
    with pytest.raises(ValidationError) as refused:
        RULES.validate_python(rules)
    (detail,) = refused.value.errors()
    error = detail["ctx"]["error"]
    assert isinstance(error, InvalidValueError)
    assert "\n" not in error.problem
    return ".".join(map(str, detail["loc"])), error.given, error.problem


def problem_of(**keys: Any) -> str:
    return mistake(keys)[2]


def matches(regex: str, text: str) -> bool:
    return compiled(regex).search(text.encode()) is not None


# --------------------------------------------------------------------------------------------------------- what is read


def test_what_is_left_out_is_as_in_prometheus() -> None:
    assert rule(target_label="a") == RelabelRule(
        source_labels=(),
        separator=";",
        target_label="a",
        regex="(.*)",
        modulus=0,
        replacement="$1",
        action=RelabelAction.REPLACE,
    )


@pytest.mark.parametrize("nothing", ["", None])
def test_a_text_that_is_given_as_nothing_is_nothing_and_not_its_default(nothing: str | None) -> None:
    given = rule(target_label="a", separator=nothing, regex=nothing, replacement=nothing)
    assert (given.separator, given.regex, given.replacement) == ("", "", "")


@pytest.mark.parametrize("nothing", ["", None, []])
def test_no_source_labels_can_be_written_in_every_way_that_yaml_has(nothing: Any) -> None:
    assert rule(target_label="a", source_labels=nothing).source_labels == ()


def test_blanks_and_line_ends_are_part_of_a_text() -> None:
    given = rule(target_label="a", separator=" ", regex=" a\n", replacement="  ")
    assert (given.separator, given.regex, given.replacement) == (" ", " a\n", "  ")


@pytest.mark.parametrize("written", ["keepequal", "KeepEqual", "KEEPEQUAL"])
def test_an_action_is_read_in_upper_and_lower_case(written: str) -> None:
    assert rule(action=written, target_label="a").action == RelabelAction.KEEPEQUAL


def test_a_modulus_is_read_from_the_file_s_text() -> None:
    assert rule(action="hashmod", target_label="a", modulus="16").modulus == 16


def test_a_rule_never_changes_and_can_be_told_from_another_one() -> None:
    given = rule(target_label="a")
    with pytest.raises(ValidationError, match="frozen"):
        given.target_label = "b"
    assert given == rule(target_label="a")
    assert hash(given) == hash(rule(target_label="a"))
    assert given != rule(target_label="b")


def test_the_repr_holds_what_was_written_and_no_compiled_regex() -> None:
    assert "regex='a|b'" in repr(rule(action="keep", regex="a|b"))
    assert "re2" not in repr(rule(action="keep", regex="a|b"))


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_a_mistake_is_told_with_the_rule_s_index_and_the_key() -> None:
    good = {"action": "keep", "regex": "a"}
    assert mistake(good, {"action": "hashmod", "target_label": "a"}) == (
        "1",
        None,
        "modulus is required with the action hashmod, and must be more than 0",
    )
    assert mistake(good, good, {"source_labels": "zone"}) == (
        "2.source_labels",
        "zone",
        "must be a list of label names, such as [zone, country]",
    )


@pytest.mark.parametrize("action", ["replace", "hashmod", "lowercase", "uppercase", "keepequal", "dropequal"])
def test_an_action_that_sets_or_compares_a_label_needs_its_name(action: str) -> None:
    assert problem_of(action=action) == f"target_label is required with the action {action}"


@pytest.mark.parametrize("action", ["keep", "drop", "labelmap", "labeldrop", "labelkeep"])
def test_other_actions_need_no_key_at_all(action: str) -> None:
    assert rule(action=action).target_label == ""


@pytest.mark.parametrize("name", ["zone", "_", "__tmp_x", "__name__", "A1"])
@pytest.mark.parametrize("action", ["replace", "lowercase", "uppercase", "keepequal", "dropequal"])
def test_a_label_name_is_a_target(action: str, name: str) -> None:
    assert rule(action=action, target_label=name).target_label == name


@pytest.mark.parametrize("name", ["0a", "a-b", "a.b", "ü", " a", "a ", "$1", "${1}a"])
@pytest.mark.parametrize("action", ["lowercase", "uppercase", "keepequal", "dropequal"])
def test_what_is_no_label_name_is_no_target(action: str, name: str) -> None:
    assert problem_of(action=action, target_label=name).startswith("target_label must be a label name")


@pytest.mark.parametrize(
    "template", ["label", "label${1}", "${1}label", "${1}", "$1", "asd$2asd", "_${1}_", "foo${bar}foo", "$1$2", "${a}0"]
)
def test_a_name_may_refer_to_groups(template: str) -> None:
    assert rule(target_label=template).target_label == template
    assert rule(action="labelmap", replacement=template).replacement == template


@pytest.mark.parametrize(
    "template", ["-label", "${", "$", "${}", "foo${", "-foo${1}bar-", "bar.foo${1}bar", "0${3}", "$$", "${1", "${é}"]
)
def test_a_name_that_is_none_whatever_the_groups_hold_is_refused(template: str) -> None:
    assert problem_of(target_label=template).startswith("target_label must be a label name")
    assert problem_of(action="labelmap", replacement=template).startswith("replacement must be a label name")


def test_a_labelmap_without_a_name_to_map_to_is_refused() -> None:
    assert problem_of(action="labelmap", replacement="").startswith("replacement must be a label name")


@pytest.mark.parametrize(
    ("action", "key", "value"),
    [
        *[("labeldrop", key, value) for key, value in (("source_labels", ["a"]), ("separator", ","), ("modulus", 1))],
        *[("labelkeep", key, value) for key, value in (("target_label", "a"), ("replacement", "a"))],
        *[("keepequal", key, value) for key, value in (("separator", ","), ("regex", "a"), ("replacement", "a"))],
        *[("dropequal", key, value) for key, value in (("modulus", 1), ("regex", ""), ("separator", ""))],
        ("lowercase", "replacement", "a"),
        ("uppercase", "replacement", ""),
    ],
)
def test_a_key_that_means_nothing_with_the_action_is_refused(action: str, key: str, value: Any) -> None:
    target = {} if action.startswith("label") else {"target_label": "a"}
    assert problem_of(action=action, **target | {key: value}) == f"{key} must be left out with the action {action}"


@pytest.mark.parametrize(
    "keys", [{"action": "labeldrop"}, {"action": "keepequal", "target_label": "a"}, {"target_label": "a"}]
)
def test_a_key_that_holds_its_default_is_as_good_as_left_out(keys: dict[str, Any]) -> None:
    written = {"separator": ";", "replacement": "$1", "modulus": 0, "source_labels": []}
    assert rule(**keys, **written) == rule(**keys)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"action": "delete"}, "must be replace or keep or drop or "),
        ({"action": None}, "must be replace or keep or drop or "),
        ({"source_labels": ["a", ""]}, "must be a list of label names: one of them is empty"),
        ({"source_labels": {"a": "b"}}, "must be a list of label names, such as [zone, country]"),
        ({"source_labels": [["a"]]}, "must be text"),
        ({"regex": ["a"]}, "must be text"),
        ({"replacement": "\ud800"}, "must be text that UTF-8 can hold"),
        ({"modulus": "-1"}, "must be a whole number of hash values from 0 to "),
        ({"modulus": "many"}, "must be a whole number of hash values from 0 to "),
        ({"source_label": ["a"]}, "source_label is not a known key (did you mean source_labels?)"),
    ],
)
def test_what_is_no_value_of_a_key_is_refused(keys: dict[str, Any], problem: str) -> None:
    assert problem_of(**{"target_label": "a", **keys}).startswith(problem)


def test_a_rule_that_is_no_mapping_is_left_to_whoever_tells_of_mappings() -> None:
    with pytest.raises(ValidationError) as refused:
        RULES.validate_python(["drop"])
    assert refused.value.errors()[0]["type"] == "model_type"


# -------------------------------------------------------------------------------------------------------------- regexes


@pytest.mark.parametrize(
    ("regex", "text", "expected"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "ba", False),
        ("a|b", "b", True),
        ("a|b", "ab", False),  # the anchors hold for every alternative
        ("", "", True),
        ("", "a", False),
        (".*", "", True),
        ("a.b", "a\nb", True),  # a dot matches a line end, as in Prometheus 3
        ("(?-s)a.b", "a\nb", False),
        ("a", "a\n", False),  # unlike Python's $
        ("(?i)a", "A", True),
        ("(?i)a|b", "B", True),
        ("(?U)a+", "aaa", True),
        (r"\pL+", "straße", True),
        (r"\p{Greek}", "Ω", True),
        ("[[:alpha:]]+", "abc", True),
        (r"\d", "٣", False),  # ASCII only, unlike Python's
        (r"\w", "é", False),
        (r"a\z", "a", True),
        (r"\Qa.b\E", "a.b", True),
        (r"\Qa.b\E", "axb", False),
        ("(?P<name>a)", "a", True),
        ("(?<name>a)", "a", True),
        (".", "é", True),  # characters, not bytes
        (r"\x{e9}", "é", True),
    ],
)
def test_a_regex_is_read_as_prometheus_reads_it(regex: str, text: str, expected: bool) -> None:  # noqa: FBT001 - a column
    assert matches(regex, text) == expected


@pytest.mark.parametrize(
    "regex", ["a(?=b)", "(?!a)", "(?<=a)b", "(?<!a)b", r"(a)\1", r"a\\\2", "(?P<n>a)(?P=n)", "(?>a)"]
)
def test_what_re2_cannot_do_is_said_to_be_impossible(regex: str) -> None:
    where, given, problem = mistake({"action": "keep", "regex": regex})
    assert (where, given) == ("0.regex", regex)
    assert problem.startswith("must be in RE2's syntax, as in Prometheus, which has no lookahead or lookbehind")
    assert "no backreferences" in problem


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(a", "missing ): (a"),
        ("a)", "unexpected ): a)"),
        ("a)|(b", "unexpected ): a)|(b"),
        ("[a", "missing ]: [a"),
        ("*", "no argument for repetition operator: *"),
        ("a{1001}", "invalid repetition size: {1001}"),
        (r"\Z", r"invalid escape sequence: \Z"),
        ("a++", "bad repetition operator: ++"),
    ],
)
def test_a_regex_that_does_not_compile_is_refused_with_re2_s_reason(regex: str, reason: str) -> None:
    assert problem_of(action="keep", regex=regex) == f"is not in RE2's syntax: {reason}"


def test_a_regex_is_looked_at_whatever_else_is_wrong_with_its_rule() -> None:
    with pytest.raises(ValidationError) as refused:
        RULES.validate_python([{"action": "kepe", "regex": "(a"}, {"regex": "a)", "modulus": "x"}])
    assert [detail["loc"] for detail in refused.value.errors()] == [
        (0, "regex"),
        (0, "action"),
        (1, "regex"),
        (1, "modulus"),
    ]


def test_a_quotation_that_would_swallow_the_anchor_is_refused() -> None:
    assert problem_of(action="keep", regex=r"\Qa").startswith("is not in RE2's syntax: missing )")


@pytest.mark.parametrize("regex", [r"\C", r"\\\C", r"\Qa\E\C"])
def test_single_bytes_which_only_re2_itself_knows_are_refused(regex: str) -> None:
    assert problem_of(action="keep", regex=regex) == r"must not match single bytes (\C)"


@pytest.mark.parametrize("regex", [r"\\C", r"\Q\C\E", "C"])
def test_a_letter_c_is_no_single_byte(regex: str) -> None:
    assert rule(action="keep", regex=regex).regex == regex


def test_group_names_that_only_re2_itself_knows_are_refused() -> None:
    assert problem_of(action="keep", regex="(?P<é>a)").startswith("must name its groups with letters, digits")


def test_nothing_of_a_regex_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    problem_of(action="keep", regex="(canary")
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------ the metric name


@pytest.mark.parametrize("keys", [{"action": "labelkeep", "regex": "zone"}, {"action": "labeldrop", "regex": "__.*"}])
def test_rules_that_take_the_name_from_every_series_are_refused(keys: dict[str, Any]) -> None:
    where, given, problem = mistake({"action": "drop", "regex": "a"}, keys, {"action": "keep"})
    assert (where, given) == ("", keys["regex"])
    assert problem.startswith(f"the rule with index 1 ({keys['action']}) removes __name__, the metric's name")


@pytest.mark.parametrize(
    "later",
    [
        {"target_label": "__name__", "replacement": "up"},
        {"target_label": "$1", "source_labels": ["zone"]},
        {"action": "labelmap", "regex": "zone", "replacement": "__name__"},
        {"action": "labelmap"},
    ],
)
def test_a_later_rule_may_give_the_name_back(later: dict[str, Any]) -> None:
    removing = {"action": "labelkeep", "regex": "zone"}
    assert len(RULES.validate_python([removing, later])) == 2
    assert mistake(later, removing)[0] == ""


@pytest.mark.parametrize(
    "keys", [{"action": "labelkeep", "regex": "__name__|zone"}, {"action": "labeldrop", "regex": "__tmp_.*"}]
)
def test_rules_that_leave_the_name_are_taken(keys: dict[str, Any]) -> None:
    assert re.fullmatch(r"\(RelabelRule\(.*\),\)", str(RULES.validate_python([keys])))
