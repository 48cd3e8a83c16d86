"""Names the handler that blocks the event loop: a thread pings the loop and looks at its stack."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from types import CodeType, FrameType

from plugin_sdk.log import Log
from plugin_sdk.plugin import Plugin

BLOCKED_S = 0.25
_STEP_S = 0.05


class Watchdog:
    """Logs one line when the loop has been blocked for BLOCKED_S, and one with the whole time."""

    def __init__(self, plugin: Plugin, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._loop_thread = threading.get_ident()
        self._plugin_name = type(plugin).__name__
        self._codes: dict[CodeType, str] = {
            getattr(plugin, name).__code__: name for name in plugin.hooks
        }
        self._answered = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._answered.clear()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:
                return  # the loop is closed: the process is ending
            if not self._answered.wait(BLOCKED_S) and not self._ended.is_set():
                where = self._where()
                self._log.warning("loop blocked", **where, advice="use @hook(blocking=True)")
                self._answered.wait()
                spent = round((time.monotonic() - asked) * 1000)
                self._log.warning("loop free again", **where, blocked_ms=spent)
            self._ended.wait(_STEP_S)

    def _where(self) -> dict[str, str]:
        """The handler on the loop's stack (else the function in front) and the line it is at."""
        frame: FrameType | None = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return {"handler": "unknown", "at": "unknown"}
        at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        front = frame.f_code.co_qualname
        while frame is not None:
            name = self._codes.get(frame.f_code)
            if name is not None:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                return {"handler": f"{self._plugin_name}.{name}", "line": place, "at": at}
            frame = frame.f_back
        return {"handler": front, "at": at}
