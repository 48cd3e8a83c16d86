"""Structured log lines on standard error, one JSON object each; the host captures them."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any

from plugin_sdk.secrets import Secrets


class Log:
    """One line per call: `self.log.info("loaded", words=100)`."""

    __slots__ = ("_bound", "_secrets")

    def __init__(self, **bound: Any) -> None:
        self._bound = bound
        self._secrets: Secrets | None = None

    def hide(self, secrets: Secrets) -> None:
        """Keep the values of `secrets` out of all lines from now on."""
        self._secrets = secrets

    def bind(self, **fields: Any) -> Log:
        """A log whose lines carry these fields too."""
        log = Log(**{**self._bound, **fields})
        log._secrets = self._secrets
        return log

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
        self.write_text(json.dumps(line, ensure_ascii=False, default=repr))

    def write_text(self, text: str) -> None:
        """Write text as it is, but for secrets."""
        if self._secrets is not None:
            text = self._secrets.redact(text)
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
