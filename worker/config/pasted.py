"""What stands around `remote_write` in a prometheus.yml, for those who paste more of it than the list.

Owns `external_labels`, which may stand at the top or, as in Prometheus, under `global`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from worker.config import values
from worker.config.mistakes import Mistakes

ELSEWHERE = frozenset(
    {
        "alerting",
        "otlp",
        "remote_read",
        "rule_files",
        "runtime",
        "scrape_config_files",
        "scrape_configs",
        "storage",
        "tracing",
    }
)
"""Top-level keys of Prometheus that have no meaning here."""

ELSEWHERE_PROBLEM = "is for Prometheus itself; take over only remote_write, external_labels and global"

_GLOBAL = (
    "always_scrape_classic_histograms",
    "body_size_limit",
    "convert_classic_histograms_to_nhcb",
    "evaluation_interval",
    "extra_scrape_metrics",
    "keep_dropped_targets",
    "label_limit",
    "label_name_length_limit",
    "label_value_length_limit",
    "metric_name_escaping_scheme",
    "metric_name_validation_scheme",
    "query_log_file",
    "rule_query_offset",
    "sample_limit",
    "scrape_failure_log_file",
    "scrape_interval",
    "scrape_native_histograms",
    "scrape_protocols",
    "scrape_timeout",
    "target_limit",
)
"""Keys of `global` that ask for nothing: they are about scraping, rules and queries."""


def external_labels(file: Mapping[str, object], mistakes: Mistakes) -> Mapping[str, str]:
    """The labels that every series gets; none where there is a mistake in them."""
    within = _global(file.get("global"), mistakes)
    at_the_top, inside = file.get("external_labels"), within.get("external_labels")
    if at_the_top and inside:
        problem = "cannot be given together with external_labels at the top; keep one of them"
        mistakes.add("global.external_labels", None, problem)
    name, given = ("global.external_labels", inside) if inside else ("external_labels", at_the_top)
    try:
        return MappingProxyType({label: _dollars(label, text) for label, text in values.labels(given or {}).items()})
    except values.InvalidValueError as invalid:
        mistakes.add(name, invalid.given, invalid.problem)
        return {}


def _dollars(label: str, text: str) -> str:
    """The value with `$$` for a dollar sign, as in Prometheus 3; a single one means a variable."""
    if "$" in text.replace("$$", "").replace("${", ""):  # that is a mistake wherever it stands
        problem = (
            "must not hold a single $ in a value: Prometheus puts a variable of its environment there, nothing does "
            "here; write the value itself, and a dollar sign as $$"
        )
        raise values.InvalidValueError(label, problem)
    return text.replace("$$", "$")


def _global(given: object, mistakes: Mistakes) -> Mapping[str, object]:
    if not given:
        return {}
    if not isinstance(given, Mapping):
        mistakes.add("global", None, "must be a mapping of keys to values")
        return {}
    known = (*_GLOBAL, "external_labels")
    for key in given:
        if key not in known:
            mistakes.add(f"global.{key}", None, f"is not a known key{values.did_you_mean(key, known)}")
    return given
