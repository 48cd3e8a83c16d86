"""Threads for blocking handlers: daemon threads, so that a stuck handler never keeps the process.

Work is bounded by the credit that the plugin grants the host. Results go back to the loop in
batches: one wake-up for all that finished since the last.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

_J = TypeVar("_J")


class BlockingPool(Generic[_J]):
    """`run(job)` on a thread, then `done(jobs)` on the loop. Threads start when first needed."""

    def __init__(
        self,
        size: int,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[_J], None],
        done: Callable[[deque[_J]], None],
    ) -> None:
        self._size = size
        self._loop = loop
        self._run = run
        self._done = done
        self._todo: SimpleQueue[_J] = SimpleQueue()
        self._finished: deque[_J] = deque()
        self._wake_sent = False
        self._threads = 0
        self._waiting = 0

    def submit(self, job: _J) -> None:
        """Queue a job (from the loop's thread)."""
        self._waiting += 1
        if self._threads < min(self._waiting, self._size):
            self._threads += 1
            name = f"blocking-{self._threads}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._todo.put(job)

    def _work(self) -> None:
        while True:
            job = self._todo.get()
            self._run(job)
            self._finished.append(job)
            if not self._wake_sent:
                self._wake_sent = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed: the process is ending

    def _collect(self) -> None:
        self._wake_sent = False
        finished, self._finished = self._finished, deque()
        self._waiting -= len(finished)
        self._done(finished)
