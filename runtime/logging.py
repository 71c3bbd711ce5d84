"""Log lines: a fixed event name plus fields, to stderr, as text for people or JSON for machines.

Prompts and answers never appear: fields that would carry them are withheld, and tracebacks are
written without local variables.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from runtime.clock import wall_time_ns
from runtime.log_lines import LineWriter

# Fields by which user text could slip into a line.
WITHHELD_FIELDS = frozenset(
    {
        "prompt",
        "text",
        "messages",
        "content",
        "completion",
        "token_ids",
        "prompt_token_ids",
        "output_token_ids",
        "stop_strings",
        "matched_stop",
        "auth_token",
    }
)


def configure_logging(
    process: str,
    *,
    log_format: Literal["console", "json"] = "console",
    level: str = "info",
    ids: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Route all loggers of this process, libraries included, to `stream` (default: stderr).

    `process` and `ids` (such as worker_id) are part of every line.
    """
    stream = sys.stderr if stream is None else stream
    # Both kinds of loggers write one whole line at a time and need no more of a stream.
    lines = cast(TextIO, LineWriter(stream))
    fields = {"process": process, **(ids or {})}

    def bind_process(_: Any, __: str, event: EventDict) -> EventDict:
        return {**fields, **event}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        bind_process,
        _add_timestamp,
        withhold_user_text,
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(default=str)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            pad_event_to=0,
            # The pretty one would print local variables.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(lines),
        cache_logger_on_first_use=False,
    )
    _route_standard_library(shared, renderer, lines, level)


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger with fields bound to it, such as request_id; use one name for each event."""
    logger: FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def withhold_user_text(_: Any, __: str, event: EventDict) -> EventDict:
    """The last line of defence: say that there was text, not which."""
    for name in WITHHELD_FIELDS & event.keys():
        event[name] = "<withheld>"
    return event


def _add_timestamp(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    instant = datetime.fromtimestamp(wall_time_ns() / 1e9, tz=UTC)
    event["timestamp"] = instant.isoformat(timespec="milliseconds")
    return event


def _route_standard_library(
    shared: list[Processor], renderer: Processor, stream: TextIO, level: str
) -> None:
    """Give records of grpc, asyncio and redis the same shape; their debug lines stay out."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
