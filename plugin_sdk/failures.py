"""Reports what handlers raise, at a bounded rate: a failing handler must not drown its own log."""

from __future__ import annotations

import time
from collections.abc import Callable

from plugin_sdk.log import Log

TRACEBACKS_PER_SECOND = 5


class FailureLog:
    """Whole tracebacks up to a rate per hook; the rest are counted and told with the next."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._second: dict[str, int] = {}
        self._shown: dict[str, int] = {}
        self._hidden: dict[str, int] = {}

    def report(self, hook: str, error: BaseException) -> None:
        second = int(self._clock())
        if self._second.get(hook) != second:
            self._second[hook] = second
            self._shown[hook] = 0
        if self._shown[hook] >= TRACEBACKS_PER_SECOND:
            self._hidden[hook] = self._hidden.get(hook, 0) + 1
            return
        self._shown[hook] += 1
        hidden = self._hidden.pop(hook, 0)
        more = {"not_shown_before": hidden} if hidden else {}
        self._log.exception("handler failed", error, hook=hook, **more)
