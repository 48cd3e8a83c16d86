"""Structured logs on stderr: key=value for people on a terminal, one JSON object a line elsewhere.

Modules take `structlog.get_logger(...)` with their own name as `logger`. Records of libraries
that use the standard `logging` go through the same renderer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9,)}


def _one_line(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape control characters, so that no value can pass for another line or move the cursor."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.translate(_ESCAPES)
    return event


def configure(
    level: int = logging.INFO, *, line_numbers: bool = False, stream: TextIO | None = None
) -> None:
    """Set up logging for the process; `level` is a `logging` level, `stream` stderr if None."""
    out = sys.stderr if stream is None else stream
    shared = [*_SHARED]
    if line_numbers:
        shared.append(
            structlog.processors.CallsiteParameterAdder(
                {
                    structlog.processors.CallsiteParameter.FILENAME,
                    structlog.processors.CallsiteParameter.LINENO,
                }
            )
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(out),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "hpack", "asyncio"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def _renderers(out: TextIO) -> list[structlog.typing.Processor]:
    if out.isatty():
        return [_one_line, structlog.dev.ConsoleRenderer(colors=True)]
    return [
        structlog.processors.format_exc_info,
        _one_line,
        structlog.processors.JSONRenderer(),
    ]


def level_of(number: int, *, debug: bool) -> int:
    """Return the `logging` level of the setting logger.level (1 debug to 4 errors, 0 by mode)."""
    if number == 0:
        return logging.DEBUG if debug else logging.INFO
    return {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}[number]
