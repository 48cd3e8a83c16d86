"""The CPUs that who gives way is kept on."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator


class Corner:
    """The last of the server's own CPUs."""

    def __init__(self) -> None:
        self._all = sorted(os.sched_getaffinity(0))
        self._width = len(self._all)
        self._held: set[int] = set()

    def hold(self, pids: Iterable[int], share: float) -> None:
        """Keep them on as many CPUs as `share` cores need. What they start is born there."""
        width = min(max(math.ceil(share), 1), len(self._all))
        if width != self._width:
            self._width = width
            self._held.clear()
        there = set(pids)
        for pid in there - self._held:
            _keep_on(pid, self._all[-width:])
        self._held = there

    def leave(self, pids: Iterable[int]) -> None:
        """Let them use all CPUs."""
        for pid in self._held.union(pids):
            _keep_on(pid, self._all)
        self._held.clear()
        self._width = len(self._all)


def _keep_on(pid: int, cpus: Iterable[int]) -> None:
    for thread in _threads(pid):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


def _threads(pid: int) -> Iterator[int]:
    """Yield the threads of a process, and those that one started before it was yielded."""
    seen: set[str] = set()
    with contextlib.suppress(OSError):  # it has ended
        while new := set(os.listdir(f"/proc/{pid}/task")) - seen:
            seen |= new
            yield from map(int, new)
