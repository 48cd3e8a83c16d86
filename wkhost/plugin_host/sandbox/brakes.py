"""How a plugin's processes are slowed: by their control group, else by signals.

Either way they are kept on as few of the CPUs as they may have: who wakes finds another one that is
idle. Nobody takes it back from inside: the sandbox refuses `sched_setaffinity`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.cgroups import Group
from wkhost.plugin_host.sandbox.scheduling import LONG_SLICE_S, Corner, set_session_weight
from wkhost.plugin_host.sandbox.watch import family

LONGEST_STOP_S = 0.1
"""Long: each time they go on somebody waits for them, however little they take then."""
SHORTEST_SLICE_S = 0.001
LONGEST_SLICE_S = 0.01
"""How long they run until it is seen what they took."""
MOST_OWED_S = 1.0
_CPUCLOCK_SCHED = 2
"""Source: clock_getcpuclockid(3), which makes the id of a process's clock so."""


class GroupBrake:
    """A smaller quota, and a group that runs when nobody else wants to; see `fair.Brake`."""

    def __init__(self, group: Group, limit: float) -> None:
        """`limit`: its quota in cores when nothing slows it."""
        self._group = group
        self._limit = limit
        self._share: float | None = None
        self._corner = Corner()

    def used_s(self) -> float:
        return _clocks_s(self._group.pids())

    def stopped_periods(self) -> tuple[int, int]:
        return self._group.stopped_periods()

    def slow(self, share: float) -> None:
        self._corner.hold(self._group.pids(), share)
        before = self._share
        # A new quota also forgives what was taken beyond the old one.
        if before is None or abs(share - before) > before / 10:
            self._share = share
            self._set(share, idle=True)

    def release(self) -> None:
        self._share = None
        self._corner.leave(self._group.pids())
        self._set(self._limit, idle=False)

    def _set(self, share: float, *, idle: bool) -> None:
        with contextlib.suppress(PluginError):  # the group may be gone
            self._group.set_cpu(share, idle=idle)


class SignalBrake:
    """Stops the processes until what they took beyond their share is made up for; see `fair.Brake`.

    A thread does it, since the loop has turns longer than a slice. It ends with `release` or with
    the last process.
    """

    def __init__(self, plugin_pid: Callable[[], int], *, alone: bool = False) -> None:
        """`plugin_pid` returns 0 while the process is not known. `alone`: it cannot have others."""
        self._plugin_pid = plugin_pid
        self._alone = alone
        self._share: float | None = None
        self._corner = Corner(LONG_SLICE_S)
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._let_go = threading.Event()
        """No process is stopped any more."""

    def used_s(self) -> float:
        return _clocks_s(self._family())

    def stopped_periods(self) -> tuple[int, int]:
        return 0, 0

    def slow(self, share: float) -> None:
        self._share = share
        if self._plugin_pid() and (self._thread is None or not self._thread.is_alive()):
            self._over = threading.Event()
            self._let_go = threading.Event()
            self._thread = threading.Thread(target=self._brake, name="brake", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Returns when no process is stopped any more, which is at once."""
        self._share = None
        self._over.set()
        if self._thread is not None:
            self._let_go.wait()
            self._thread = None
        self._corner.leave(self._family())

    def _family(self) -> list[int]:
        pid = self._plugin_pid()
        if not pid:
            return []
        return [pid] if self._alone else family(pid)

    def _brake(self) -> None:
        over, let_go = self._over, self._let_go
        members: dict[int, int] = {}
        owed_s = 0.0
        light = False
        try:
            self._join(members)
            used_s, at = _clocks_s(members), time.monotonic()
            while (share := self._share) is not None and members:
                self._corner.hold(members, share)
                light = light or set_session_weight(self._plugin_pid(), least=True)
                over.wait(min(max(share * LONGEST_STOP_S, SHORTEST_SLICE_S), LONGEST_SLICE_S))
                before_s, since = used_s, at
                used_s, at = _clocks_s(members), time.monotonic()
                # What it took counts, not how long it ran: it may have threads, and we wake late.
                owed_s += used_s - before_s - share * (at - since)
                owed_s = min(max(owed_s, 0.0), MOST_OWED_S)
                if owed_s > 0:
                    self._stop_all(members)
                    over.wait(min(owed_s / share, LONGEST_STOP_S))
                    used_s = _clocks_s(members)
                _signal_all(members, signal.SIGCONT)
        finally:
            _signal_all(members, signal.SIGCONT)
            for pidfd in members.values():
                os.close(pidfd)
            let_go.set()
        while not set_session_weight(self._plugin_pid(), least=False):
            time.sleep(LONGEST_STOP_S)

    def _stop_all(self, members: dict[int, int]) -> None:
        """Stop them and what they have started; nothing is started any more when it returns."""
        _signal_all(members, signal.SIGSTOP)
        while new := self._join(members):
            _signal_all(new, signal.SIGSTOP)

    def _join(self, members: dict[int, int]) -> dict[int, int]:
        """Bring `members` up to date; return the new ones.

        Each has a pidfd: a pid alone may belong to somebody else by now.
        """
        new = {}
        for pid in self._family():
            if pid not in members:
                with contextlib.suppress(ProcessLookupError):
                    new[pid] = os.pidfd_open(pid)
        # What is no descendant now was a pid that changed hands between the list and the pidfd.
        there = set(self._family())
        members |= new
        for pid in [pid for pid in members if pid not in there]:
            os.close(members.pop(pid))
            new.pop(pid, None)
        return new


def _clocks_s(pids: Iterable[int]) -> float:
    """Return the CPU time of processes, finer than the kernel's ticks."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return total


def _signal_all(members: dict[int, int], number: int) -> None:
    for pidfd in members.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
