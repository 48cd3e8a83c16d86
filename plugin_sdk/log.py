"""Structured log lines on standard error, one JSON object each; the host captures them."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any


class Log:
    """One line per call: `self.log.info("loaded", words=100)`."""

    __slots__ = ("_bound",)

    def __init__(self, **bound: Any) -> None:
        self._bound = bound

    def bind(self, **fields: Any) -> Log:
        """A log whose lines carry these fields too."""
        return Log(**{**self._bound, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, error: BaseException, **fields: Any) -> None:
        """An error with its traceback."""
        lines = traceback.format_exception(error)
        self._write("error", event, {**fields, "traceback": "".join(lines)})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        line = {
            **self._bound,
            **fields,
            "time": round(time.time(), 3),
            "level": level,
            "event": event,
        }
        sys.stderr.write(json.dumps(line, ensure_ascii=False, default=repr) + "\n")
        sys.stderr.flush()
