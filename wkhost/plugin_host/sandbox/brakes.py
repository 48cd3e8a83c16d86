"""How a plugin's processes are slowed: by their control group, else by signals.

A group is kept on as few of the CPUs as it may have besides: who wakes finds another one that is
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
from wkhost.plugin_host.sandbox.corner import Corner
from wkhost.plugin_host.sandbox.watch import family

SHORT_SLICE_S = 0.001
"""How long a process that owes time may run until it is stopped again, and so how long anybody
who wakes meanwhile may have to wait."""
LONG_SLICE_S = 0.01
"""The same of one that owes nothing."""
LONGEST_STOP_S = 0.1
MOST_OWED_S = 1.0
REFRESH_S = 0.25
"""Descendants that come meanwhile run until then."""
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
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def used_s(self) -> float:
        return _clocks_s(self._family())

    def stopped_periods(self) -> tuple[int, int]:
        return 0, 0

    def slow(self, share: float) -> None:
        self._share = share
        if self._plugin_pid() and not self._running:
            self._over.clear()
            self._thread = threading.Thread(target=self._brake, name="brake", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Returns when no process is stopped any more, which is at once."""
        self._share = None
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _family(self) -> list[int]:
        pid = self._plugin_pid()
        if not pid:
            return []
        return [pid] if self._alone else family(pid)

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _brake(self) -> None:
        members: dict[int, int] = {}
        fresh_until = used_s = at = owed_s = 0.0
        slice_s = SHORT_SLICE_S
        try:
            while (share := self._share) is not None:
                if time.monotonic() >= fresh_until:
                    self._refresh(members)
                    fresh_until = time.monotonic() + REFRESH_S
                    used_s, at = _clocks_s(members), time.monotonic()
                if not members:
                    return
                self._over.wait(slice_s)
                _signal_all(members, signal.SIGSTOP)
                before_s, since = used_s, at
                used_s, at = _clocks_s(members), time.monotonic()
                # What it took counts, not how long it ran: it may have threads, and we wake late.
                owed_s += used_s - before_s - share * (at - since)
                owed_s = min(max(owed_s, 0.0), MOST_OWED_S)
                if owed_s > 0:
                    self._over.wait(min(owed_s / share, LONGEST_STOP_S))
                _signal_all(members, signal.SIGCONT)
                slice_s = SHORT_SLICE_S if owed_s > 0 else LONG_SLICE_S
        finally:
            _signal_all(members, signal.SIGCONT)
            for pidfd in members.values():
                os.close(pidfd)

    def _refresh(self, members: dict[int, int]) -> None:
        """Hold a pidfd of each: a pid alone may belong to somebody else by now."""
        for pid in self._family():
            if pid in members:
                continue
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                members[pid] = pidfd
        # What is no descendant now was a pid that changed hands between the list and the pidfd.
        there = set(self._family())
        for pid in [pid for pid in members if pid not in there]:
            os.close(members.pop(pid))


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
