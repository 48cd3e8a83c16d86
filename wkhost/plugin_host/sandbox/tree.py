"""The processes of a sandbox.

Nothing but the standard library, since `slices` has to start fast.
"""

from __future__ import annotations

import contextlib
import os
import time

_CPUCLOCK_SCHED = 2
"""Source: clock_getcpuclockid(3), which makes the id of a process's clock so."""
_PART = 65536
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Tree:
    """What the first process of a sandbox started, which is neither slowed nor counted itself.

    Orphans of its namespace are its children.
    """

    def __init__(self, first: int = 0, *, alone: bool = False) -> None:
        """`first`: its pid, 0 while it is not known. `alone`: it has one child, which has none."""
        self.first = first
        self.alone = alone

    def pids(self) -> list[int]:
        """Return the processes, the first one's oldest child first."""
        found = _children(self.first) if self.first else []
        if not self.alone:
            for pid in found:
                found += _children(pid)
        return found

    def used_s(self, pids: list[int]) -> float:
        """Return the CPU time that these have used, and all of the tree that have ended."""
        total_s = sum(map(_clock_s, pids))
        if not self.alone and self.first:
            total_s += sum(map(_waited_for_s, [self.first, *pids]))
        return total_s


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended, here and below
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, read_file(f"/proc/{pid}/task/{task}/children").split())
    return found


def _clock_s(pid: int) -> float:
    """Finer than the kernel's ticks."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return 0.0


def _waited_for_s(pid: int) -> float:
    """Return what children have used that ended and were waited for."""
    with contextlib.suppress(OSError):
        fields = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split(maxsplit=15)
        return (int(fields[13]) + int(fields[14])) * _TICK_S
    return 0.0


def read_file(path: str) -> bytes:
    """In a third of the time of an opened file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, _PART)
        while len(data) % _PART == 0 and (more := os.read(descriptor, _PART)):
            data += more
    finally:
        os.close(descriptor)
    return data
