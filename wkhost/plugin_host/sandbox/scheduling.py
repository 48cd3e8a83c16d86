"""What the kernel's scheduler is told of processes that give way.

An ordinary user may do all of it, and take it back: of the classes and nice values of single
processes nothing comes back without a privilege.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

LONG_SLICE_S = 0.1
"""The longest that the kernel takes. Who has it is interrupted by whoever wakes with a shorter one,
which is everybody."""
_KEEP_POLICY = 0x08
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, nice, priority, runtime (the slice, in ns), deadline, period. Source:
linux/sched/types.h."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_LEAST_WEIGHT = 19


class Corner:
    """The CPUs that who gives way is kept on: the last of the server's own."""

    def __init__(self, slice_s: float = 0.0) -> None:
        """`slice_s`: how long they may run there at a stretch; 0 for as long as anybody."""
        self._slice_s = slice_s
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
            self._tell(pid, self._all[-width:], self._slice_s)
        self._held = there

    def leave(self, pids: Iterable[int]) -> None:
        """Let them use all CPUs, as anybody."""
        for pid in self._held.union(pids):
            self._tell(pid, self._all, 0.0)
        self._held.clear()
        self._width = len(self._all)

    def _tell(self, pid: int, cpus: Iterable[int], slice_s: float) -> None:
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)
                if self._slice_s:
                    _set_slice(thread, slice_s)


def set_session_weight(pid: int, *, least: bool) -> bool:
    """Let the session of a process weigh least against others', or as much as them.

    The kernel groups sessions where no control group does ("autogroup"); elsewhere this does
    nothing. False: try again later, the kernel takes ten such changes a second.
    """
    try:
        for member in _session(pid):
            with contextlib.suppress(PermissionError):
                Path(f"/proc/{member}/autogroup").write_text(str(_LEAST_WEIGHT if least else 0))
                break
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


def _session(pid: int) -> Iterator[int]:
    """Yield a process and those above it that share its session. Raises OSError.

    What may not be dumped belongs to root, but the first process of a sandbox does not.
    """
    session = os.getsid(pid)
    while os.getsid(pid) == session:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def _threads(pid: int) -> Iterator[int]:
    """Yield the threads of a process, and those that one started before it was yielded."""
    seen: set[str] = set()
    with contextlib.suppress(OSError):  # it has ended
        while new := set(os.listdir(f"/proc/{pid}/task")) - seen:
            seen |= new
            yield from map(int, new)


def _set_slice(thread: int, slice_s: float) -> None:
    """Kernels before 6.12 have one slice for all."""
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    nanoseconds = int(slice_s * 1e9)
    order = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, _KEEP_POLICY, nice, 0, nanoseconds, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(_SCHED_SETATTR[platform.machine()]), thread, order, 0)
