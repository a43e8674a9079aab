"""Relabelling rules as Prometheus configures them (`write_relabel_configs`): what may be written, and what is wrong.

Owns the validation of a rule and the meaning of its regex. Promises that an accepted rule can be applied to any series,
and that Prometheus' rules are accepted, but for those that make names which not every receiver takes. What a rule does
to a series is the business of `worker.remote_write.relabel`.

Names are checked as in Prometheus 2, not 3: over remote write 1.0 a label name with other characters than letters,
digits and underscores must not be sent, and receivers are known to answer 204 and store nothing.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

import re2  # type: ignore[import-untyped]  # ships no types
from pydantic import AfterValidator, BeforeValidator, model_validator

from worker.config import values
from worker.config.section import Section, choice
from worker.config.values import InvalidValueError, shown
from worker.series import LABEL_NAME

METRIC_NAME_LABEL = "__name__"
"""The label that holds a series' metric name."""


class RelabelAction(StrEnum):
    """What a rule does; its input is the values of the source labels, joined by the separator."""

    REPLACE = "replace"
    """Where the regex matches the input, set the target label to the replacement."""

    KEEP = "keep"
    """Drop the series where the regex does not match the input."""

    DROP = "drop"
    """Drop the series where the regex matches the input."""

    KEEPEQUAL = "keepequal"
    """Drop the series where the target label's value is not the input."""

    DROPEQUAL = "dropequal"
    """Drop the series where the target label's value is the input."""

    HASHMOD = "hashmod"
    """Set the target label to a hash of the input, modulo the modulus."""

    LABELMAP = "labelmap"
    """Copy every label whose name the regex matches to the name that the replacement gives."""

    LABELDROP = "labeldrop"
    """Remove every label whose name the regex matches."""

    LABELKEEP = "labelkeep"
    """Remove every label whose name the regex does not match."""

    LOWERCASE = "lowercase"
    """Set the target label to the input in lower case."""

    UPPERCASE = "uppercase"
    """Set the target label to the input in upper case."""


_WITH_TARGET = frozenset(
    {
        RelabelAction.REPLACE,
        RelabelAction.HASHMOD,
        RelabelAction.LOWERCASE,
        RelabelAction.UPPERCASE,
        RelabelAction.KEEPEQUAL,
        RelabelAction.DROPEQUAL,
    }
)

# Keys that mean nothing with an action, and are therefore a misunderstanding.
_MEANINGLESS: Mapping[RelabelAction, tuple[str, ...]] = {
    RelabelAction.KEEPEQUAL: ("separator", "regex", "modulus", "replacement"),
    RelabelAction.DROPEQUAL: ("separator", "regex", "modulus", "replacement"),
    RelabelAction.LABELDROP: ("source_labels", "separator", "target_label", "modulus", "replacement"),
    RelabelAction.LABELKEEP: ("source_labels", "separator", "target_label", "modulus", "replacement"),
    RelabelAction.LOWERCASE: ("replacement",),
    RelabelAction.UPPERCASE: ("replacement",),
}

# A label name in which any part may be a reference to a group; as Prometheus checks it before it knows the groups.
_NAME_TEMPLATE = re.compile(r"(?:[a-zA-Z_]|\$(?:\{\w+\}|\w+))(?:\w|\$(?:\{\w+\}|\w+))*", re.ASCII)
_A_NAME = "a label name (letters, digits and underscores, no digit first: remote write 1.0 allows no other)"
_A_GROUP = "$1, ${1} or ${name} may stand for a group of the regex"

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False  # it would write the regex to stderr

# Prometheus is written in Go, whose regexes know RE2's syntax but for two things: \C, a single byte, and other
# characters than these in the names of groups.
_QUOTATION_OR_ESCAPE = re.compile(r"\\Q.*?(?:\\E|\Z)|\\.", re.DOTALL)
_GROUP_NAME = re.compile(rb"[A-Za-z0-9_]+")

_LOOKAROUND_OR_BACKREFERENCE = re.compile(r"\(\?(?:[=!>]|<[=!]|P=)|(?<!\\)(?:\\\\)*\\[1-9]")


def compiled(regex: str) -> Any:
    """The regex as Prometheus 3 uses it: RE2 over UTF-8 bytes, for the whole input; `.` matches a line end, too.

    Returns a pattern of `re2`. InvalidValueError where it is not in the syntax that Prometheus takes.
    """
    try:
        re2.compile(regex.encode(), _OPTIONS)  # by itself first, so that the error speaks of what the user wrote
        pattern = re2.compile(f"^(?s:{regex})$".encode(), _OPTIONS)
    except re2.error as error:
        raise InvalidValueError(shown(regex), _what_re2_lacks(regex, error)) from None
    if any(escape[0] == r"\C" for escape in _QUOTATION_OR_ESCAPE.finditer(regex)):
        raise InvalidValueError(shown(regex), r"must not match single bytes (\C)")
    if not all(map(_GROUP_NAME.fullmatch, pattern.groupindex)):
        raise InvalidValueError(shown(regex), "must name its groups with letters, digits and underscores only")
    return pattern


def _what_re2_lacks(regex: str, error: Exception) -> str:
    if _LOOKAROUND_OR_BACKREFERENCE.search(regex):
        return (
            "must be in RE2's syntax, as in Prometheus, which has no lookahead or lookbehind ((?=, (?!, (?<=, (?<!), "
            r"no atomic groups ((?>) and no backreferences (\1)"
        )
    reason = error.args[0]
    return f"is not in RE2's syntax: {shown(reason.decode(errors='replace') if isinstance(reason, bytes) else reason)}"


def _text(value: object) -> str:
    """Text as it stands there: blanks and line ends count, and so does nothing at all."""
    if not isinstance(value, str):
        raise InvalidValueError(shown(value), "must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(None, "must be text that UTF-8 can hold") from None
    return value


def _label_names(value: object) -> tuple[str, ...]:
    if value == "":
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidValueError(shown(value), "must be a list of label names, such as [zone, country]")
    names = tuple(map(_text, value))
    if "" in names:
        raise InvalidValueError(None, "must be a list of label names: one of them is empty")
    return names


def _modulus(value: object) -> int:
    # 18 digits: all that a setting can have; Prometheus' own limit is at 20.
    return values.whole_number(0 if value == "" else value, minimum=0, maximum=10**18 - 1, unit="hash values")


def _regex(text: str) -> str:
    compiled(text)
    return text


_Text = Annotated[str, BeforeValidator(_text)]


class RelabelRule(Section):
    """One rule that changes or drops series before they are sent."""

    source_labels: Annotated[tuple[str, ...], BeforeValidator(_label_names)] = ()
    """Labels whose values, joined by the separator, are the rule's input; a missing label is an empty value."""

    separator: _Text = ";"
    """What stands between the values of the source labels."""

    target_label: _Text = ""
    """Label that is set; with `replace` it may refer to groups of the regex (`$1`, `${1}`, `${name}`)."""

    regex: Annotated[_Text, AfterValidator(_regex)] = "(.*)"
    """RE2 expression for the whole input; with `labelmap`, `labeldrop` and `labelkeep`, for a label's whole name."""

    modulus: Annotated[int, BeforeValidator(_modulus)] = 0
    """What the hash of the input is divided by; its remainder is the result."""

    replacement: _Text = "$1"
    """Value that is set, or with `labelmap` name that is set; it may refer to groups of the regex. Empty removes."""

    action: Annotated[RelabelAction, choice(*RelabelAction)] = RelabelAction.REPLACE
    """What the rule does, in upper or lower case."""

    @model_validator(mode="before")
    @classmethod
    def _an_empty_value_is_no_value(cls, given: Any) -> Any:
        """Unlike elsewhere, nothing is a value: no replacement removes a label, no regex matches an empty input."""
        if not isinstance(given, Mapping):
            return given
        for key in given:
            if key not in cls.model_fields:
                problem = f"{shown(key)} is not a known key{values.did_you_mean(str(key), cls.model_fields)}"
                raise InvalidValueError(None, problem)
        return {key: "" if value is None else value for key, value in given.items()}

    @model_validator(mode="after")
    def _is_a_rule_that_prometheus_takes(self) -> Self:
        for key in _MEANINGLESS.get(self.action, ()):
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise InvalidValueError(shown(value), f"{key} must be left out with the action {self.action}")
        if self.action in _WITH_TARGET:
            self._check_target()
        if self.action == RelabelAction.HASHMOD and self.modulus == 0:
            raise InvalidValueError(None, "modulus is required with the action hashmod, and must be more than 0")
        if self.action == RelabelAction.LABELMAP and not _NAME_TEMPLATE.fullmatch(self.replacement):
            problem = f"replacement must be {_A_NAME}, in which {_A_GROUP}"
            raise InvalidValueError(shown(self.replacement), problem)
        return self

    def _check_target(self) -> None:
        if not self.target_label:
            raise InvalidValueError(None, f"target_label is required with the action {self.action}")
        template = self.action == RelabelAction.REPLACE
        if not (_NAME_TEMPLATE if template else LABEL_NAME).fullmatch(self.target_label):
            problem = f"target_label must be {_A_NAME}"
            if template:
                problem += f", in which {_A_GROUP}"
            raise InvalidValueError(shown(self.target_label), problem)


def _leave_a_metric_name(rules: tuple[RelabelRule, ...]) -> tuple[RelabelRule, ...]:
    """Refuse rules that take the metric name from every series, as no receiver takes a series without one."""
    removed_by: int | None = None
    for index, rule in enumerate(rules):
        written = rule.replacement if rule.action == RelabelAction.LABELMAP else rule.target_label
        if rule.action in {RelabelAction.LABELDROP, RelabelAction.LABELKEEP}:
            matched = compiled(rule.regex).search(METRIC_NAME_LABEL.encode()) is not None
            if matched == (rule.action == RelabelAction.LABELDROP):
                removed_by = index
        elif written == METRIC_NAME_LABEL or "$" in written:
            removed_by = None
    if removed_by is not None:
        rule = rules[removed_by]
        problem = (
            f"the rule with index {removed_by} ({rule.action}) removes {METRIC_NAME_LABEL}, the metric's name, and no "
            "later one sets it: receivers take no series without a name"
        )
        raise InvalidValueError(shown(rule.regex), problem)
    return rules


RelabelRules = Annotated[tuple[RelabelRule, ...], AfterValidator(_leave_a_metric_name)]
"""Rules in the order in which they are applied."""
