"""What the worker tells about itself: its metrics, its log lines, and the redaction that keeps secrets out of them."""

from worker.observe.logs import LogFormat, LogLevel, configure_logging, get_logger
from worker.observe.metrics import PUSH_OUTCOMES, MetricDescription, Metrics, replace_values
from worker.observe.redaction import REDACTED, Redactor

__all__ = [
    "PUSH_OUTCOMES",
    "REDACTED",
    "LogFormat",
    "LogLevel",
    "MetricDescription",
    "Metrics",
    "Redactor",
    "configure_logging",
    "get_logger",
    "replace_values",
]
