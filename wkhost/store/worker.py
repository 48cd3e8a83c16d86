"""One long-lived thread that does the store's blocking calls, one after the other, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import trio

_Job = tuple[Callable[[], None], Callable[[Exception | None], None]]


class Worker:
    """A thread beside the trio loop. Made inside a trio run; lives until `stop`.

    It is a daemon: a disk that never answers cannot keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Run `job` in the thread, then `done(error or None)` in the trio thread."""
        self._jobs.put((job, done))

    async def run(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread and raise what it raises.

        Cancellation: the job still runs; its outcome is lost.
        """
        finished = trio.Event()
        outcome: list[Exception] = []

        def done(error: Exception | None) -> None:
            if error is not None:
                outcome.append(error)
            finished.set()

        self.submit(job, done)
        await finished.wait()
        if outcome:
            raise outcome[0]

    def stop(self) -> None:
        """End the thread after the jobs that wait."""
        self._jobs.put(None)

    def _loop(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            error: Exception | None = None
            try:
                job()
            except Exception as e:  # noqa: BLE001 - handed to the trio thread, which raises it
                error = e
            try:
                self._token.run_sync_soon(done, error)
            except trio.RunFinishedError:
                return
