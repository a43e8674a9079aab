"""The set-up of logging for the whole process.

Owns the form of a log line and the ways an error can reach stderr without passing a logger. Promises that whatever the
process writes there has one form, holds no local variables and none of the secrets it was told of.
"""

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from worker.observe.redaction import Redactor

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]

# Libraries that at INFO tell every request or their own start and stop; what they warn of is kept.
QUIET_LOGGERS = (
    *("asyncio", "httpx", "httpcore", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"),
    *("azure", "botocore", "msal", "urllib3"),
)

# Control characters would let the text of a remote side move the cursor of a terminal or fake a line of its own.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def get_logger() -> FilteringBoundLogger:
    """A logger: `log.info("what happened, in plain words", key=value)`.

    It obeys `configure_logging` also when it was made before.
    """
    return cast(FilteringBoundLogger, structlog.get_logger())


def configure_logging(level: LogLevel, log_format: LogFormat, secrets: Iterable[str]) -> Redactor:
    """Make everything that this process logs come out on stderr in one form, without any of `secrets`.

    This holds for `get_logger`, for the logging of libraries, for Python's warnings, and for errors that nothing
    caught, in a thread, in a destructor or in the event loop. Timestamps are UTC. Tracebacks never show local
    variables. Give the password of basic auth twice, alone and as `user:password`.

    Can be called again, which replaces what was set up. Returns the redactor of `secrets`, for texts that go elsewhere.
    """
    redactor = Redactor(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(sys.stderr, redactor)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _redacting(redactor),
                *_rendering(log_format, colors=sys.stderr.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    return redactor


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to stderr, and keeps secrets out also when a line cannot be made: Python's own would print it raw."""

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        super().__init__(stream)
        self._redactor = redactor

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name that logging calls
        trace = self._redactor.text(traceback.format_exc())
        # Where stderr itself is gone, there is nowhere left to say so, and losing a line must not stop the worker.
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"a log line from {record.pathname}:{record.lineno} could not be written: {trace}\n")


def _redacting(redactor: Redactor) -> Processor:
    def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return cast(EventDict, redactor.value(event))

    return redact


def _rendering(log_format: LogFormat, *, colors: bool) -> tuple[Processor, ...]:
    match log_format:
        case "json":
            return (_in_reading_order, structlog.processors.JSONRenderer(ensure_ascii=False))
        case "console":
            return (
                _visible,
                structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
            )


def _in_reading_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = ("timestamp", "level", "event")
    return {key: event[key] for key in first} | {key: value for key, value in event.items() if key not in first}


def _visible(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    multiline = ("exception", "stack")
    return {
        key: value.translate(_VISIBLE) if isinstance(value, str) and key not in multiline else value
        for key, value in event.items()
    }


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    get_logger().critical("stopped by an unexpected error", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    # A thread that ends itself says so with SystemExit; that is no error.
    if uncaught.exc_value is not None and not isinstance(uncaught.exc_value, SystemExit):
        exc_info = (uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback)
        get_logger().critical("a thread was stopped by an unexpected error", exc_info=exc_info)


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if unraisable.exc_value is not None:
        exc_info = (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
        get_logger().error(
            "an error had nowhere to go", exc_info=exc_info, where=unraisable.err_msg or repr(unraisable.object)
        )
