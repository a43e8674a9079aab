"""What a series is called at a destination: external labels, then the rules of `write_relabel_configs`.

Owns the meaning of a relabelling rule, which is Prometheus' own: a rule set that is copied from prometheus.yml selects
and names the same series here. Promises that the result is a series that remote write 1.0 allows, or is said not to be
one. Pure: knows nothing of samples, and what it found out about a series is for the caller to keep (`SeriesMap`).

Where Prometheus' versions differ, rules mean what they mean in version 3, but names are those of version 2, the only
ones that remote write 1.0 allows. Labels whose names start with `__` are sent like any other, as Prometheus does after
write relabelling; a rule with `labeldrop` removes them.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, assert_never

import re2  # type: ignore[import-untyped]  # ships no types

from worker.config.relabel_rules import METRIC_NAME_LABEL, RelabelAction, RelabelRule, compiled
from worker.config.values import shown
from worker.series import LABEL_NAME, METRIC_NAME, parse_label_block, varint

# Results that are kept by a rule, and serialized labels: the names of labels and metrics, and the zones of one batch.
# 4,096 of about 250 bytes are 1 MB a rule.
_REMEMBERED = 4096


# Series whose result is remembered: those of 1,000 zones with 130 series each.
_MOST_SERIES = 131_072


@dataclass(frozen=True, slots=True)
class Unsendable:
    """A series that relabelling has made impossible to send.

    reason: why, as a sentence for people.
    """

    reason: str


Relabelled: TypeAlias = bytes | Unsendable | None
"""The label block under which a series is sent, None where a rule drops it, or why it cannot be sent."""


class Relabeler:
    """The labels of one destination.

    external_labels: set on every series that does not have the label, before the rules.
    rules:           applied in their order; one that drops the series ends it.
    """

    def __init__(self, external_labels: Mapping[str, str], rules: Sequence[RelabelRule]) -> None:
        self._external_labels = sorted((name, value) for name, value in external_labels.items() if value)
        self._rules = tuple(map(_Rule, rules))

    def __call__(self, block: bytes) -> Relabelled:
        """What becomes of the series with this label block (`worker.series`)."""
        labels = _Labels(parse_label_block(block))
        for name, value in self._external_labels:
            if name not in labels:
                labels.put(name, value)
        if not all(rule.apply(labels) for rule in self._rules) or not labels:
            return None
        return _block(labels)


class SeriesMap:
    """What every series of a ledger is called at one destination, found out once per series.

    Remembers up to `_MOST_SERIES` of them, about 300 bytes each: 40 MB. When it is full it begins anew.

    Two series that get the same labels are one to the receiver. That is as it should be where one follows the other in
    time, as after an account was renamed whose name a rule drops: both are sent under the id of the first.
    """

    def __init__(self, relabel: Callable[[bytes], Relabelled]) -> None:
        self._relabel = relabel
        self._known: dict[int, Relabelled] = {}
        self._first: dict[bytes, int] = {}

    def look_up(self, series: Mapping[int, bytes]) -> dict[int, Relabelled]:
        """What becomes of these series, given as label blocks by series id."""
        if len(self._known) + len(series) > _MOST_SERIES:
            self._known.clear()
            self._first.clear()
        for series_id in sorted(series.keys() - self._known.keys()):
            relabelled = self._known[series_id] = self._relabel(series[series_id])
            if isinstance(relabelled, bytes):
                self._first.setdefault(relabelled, series_id)
        return {series_id: self._known[series_id] for series_id in series}

    def first_named(self, block: bytes) -> int:
        """The first series that was asked for of those with this label block as their result."""
        return self._first[block]


class _Labels(dict[str, str]):
    """Labels while rules change them: a missing one is an empty value, and an empty value removes.

    A label that was set stands behind those that were there before, as in Prometheus: where `labelmap` gives one name
    to several labels, the last one wins.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__(labels)
        self._changed: set[str] = set()

    def value(self, name: str) -> str:
        return self.get(name, "")

    def put(self, name: str, value: str) -> None:
        if not value or name not in self._changed:
            self.pop(name, None)
        if value:
            self._changed.add(name)
            self[name] = value


class _Rule:
    """One rule, with its regex and templates ready for use."""

    def __init__(self, rule: RelabelRule) -> None:
        self._rule = rule
        self._regex = compiled(rule.regex)
        self._target = _Template(rule.target_label, self._regex)
        self._replacement = _Template(rule.replacement, self._regex)
        self._match = lru_cache(_REMEMBERED)(self._search)

    def apply(self, labels: _Labels) -> bool:
        """Change the labels; False where the series is dropped."""
        rule = self._rule
        given = rule.separator.join(map(labels.value, rule.source_labels))
        match rule.action:
            case RelabelAction.KEEP:
                return self._match(given) is not None
            case RelabelAction.DROP:
                return self._match(given) is None
            case RelabelAction.KEEPEQUAL:
                return labels.value(rule.target_label) == given
            case RelabelAction.DROPEQUAL:
                return labels.value(rule.target_label) != given
            case RelabelAction.REPLACE | RelabelAction.HASHMOD | RelabelAction.LOWERCASE | RelabelAction.UPPERCASE:
                self._set_target(labels, given)
            case RelabelAction.LABELMAP | RelabelAction.LABELDROP | RelabelAction.LABELKEEP:
                self._change_names(labels)
            case _:
                assert_never(rule.action)
        return True

    def _set_target(self, labels: _Labels, given: str) -> None:
        match self._rule.action:
            case RelabelAction.HASHMOD:
                labels.put(self._rule.target_label, str(_hash(given) % self._rule.modulus))
            case RelabelAction.LOWERCASE:
                labels.put(self._rule.target_label, _lower(given))
            case RelabelAction.UPPERCASE:
                labels.put(self._rule.target_label, _upper(given))
            case _ if (found := self._match(given)) is not None:
                target, replacement = found
                if LABEL_NAME.fullmatch(target):
                    labels.put(target, replacement)
            case _:
                pass

    def _change_names(self, labels: _Labels) -> None:
        for name, value in tuple(labels.items()):
            found = self._match(name)
            if self._rule.action == RelabelAction.LABELMAP:
                if found is not None:
                    labels.put(found[1], value)
            elif (found is None) == (self._rule.action == RelabelAction.LABELKEEP):
                del labels[name]

    def _search(self, text: str) -> tuple[str, str] | None:
        """What target label and replacement stand for where the regex matches the text; None where it does not."""
        found = self._regex.search(text.encode())
        return None if found is None else (self._target.expand(found), self._replacement.expand(found))


_LABELS = b"\x0a"  # TimeSeries.labels = 1, length-delimited
_NAME = b"\x0a"  # Label.name = 1
_VALUE = b"\x12"  # Label.value = 2

# What Go's `regexp.Expand` takes for a reference, in RE2's syntax, whose classes of letters and digits are Go's.
_REFERENCE = re2.compile(r"\$(?:(\$)|\{([\pL\p{Nd}_]+)\}|([\pL\p{Nd}_]+))")
_GROUP_NUMBER = re.compile("0|[1-9][0-9]{0,8}")  # Go takes more digits, and leading zeros, for a name


class _Template:
    """A text with references to groups of a regex, as Go's `regexp.Expand` reads it.

    `${1}` and `${name}` stand for what the group matched; so do `$1` and `$name`, which take all letters, digits and
    underscores that follow (`$1_total` is the group named 1_total). `$$` is a dollar sign. A group that does not exist,
    or took no part in the match, is empty; a dollar sign that starts none of these stands for itself.
    """

    def __init__(self, template: str, regex: Any) -> None:
        self._parts: list[bytes | int] = []
        end = 0
        for reference in _REFERENCE.finditer(template):
            self._parts.append(template[end : reference.start()].encode())
            end = reference.end()
            dollar, braced, bare = reference.groups("")
            self._parts.append(b"$" if dollar else _group(regex, braced or bare))
        self._parts.append(template[end:].encode())

    def expand(self, found: Any) -> str:
        """The text, for a match of the regex."""
        return b"".join(part if isinstance(part, bytes) else found[part] or b"" for part in self._parts).decode()


def _group(regex: Any, name: str) -> int | bytes:
    """The number of the group with this number or name; no text where there is none."""
    group = int(name) if _GROUP_NUMBER.fullmatch(name) else regex.groupindex.get(name.encode())
    return b"" if group is None or group > regex.groups else group


def _hash(text: str) -> int:
    """Prometheus' hash of a label's value: the last 8 bytes of its MD5, big-endian."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "big")


# Go changes case one character for one, whatever stands around it; Python, by the full rules of Unicode, makes SS of ß
# and gives a last sigma a form of its own.
def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(char.lower()[0] for char in text)


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(_upper_character, text))


def _upper_character(char: str) -> str:
    return next((upper for upper in (char.upper(), char.title()) if len(upper) == 1), char)


def _block(labels: Mapping[str, str]) -> bytes | Unsendable:
    """The label block, where the labels are those of a series that remote write 1.0 allows ("Labels")."""
    metric_name = labels.get(METRIC_NAME_LABEL)
    if metric_name is None:
        return Unsendable(f"relabelling leaves it without a metric name ({METRIC_NAME_LABEL})")
    if not METRIC_NAME.fullmatch(metric_name):
        return Unsendable(f"relabelling gives it the name {shown(metric_name)!r}, which is not a metric name")
    for name in labels:
        if not LABEL_NAME.fullmatch(name):
            return Unsendable(f"relabelling gives it the label {shown(name)!r}, which is not a label name")
    return b"".join(_label(name, value) for name, value in sorted(labels.items()))


@lru_cache(_REMEMBERED)
def _label(name: str, value: str) -> bytes:
    return _field(_LABELS, _field(_NAME, name.encode()) + _field(_VALUE, value.encode()))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content
