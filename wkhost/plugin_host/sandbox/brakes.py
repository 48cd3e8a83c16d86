"""How a plugin's processes are slowed: by their control group, else by signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.cgroups import Group
from wkhost.plugin_host.sandbox.watch import cpu_seconds, family

PERIOD_S = 0.02
"""Of stopping and letting go on. Whoever wakes in between waits for at most a part of it."""
REFRESH_S = 0.25
"""Descendants that come meanwhile run until then."""


class GroupBrake:
    """A smaller quota, and a group that runs when nobody else wants to; see `fair.Brake`."""

    def __init__(self, group: Group, limit: float, plugin_pid: Callable[[], int]) -> None:
        """`limit`: its quota in cores when nothing slows it. `plugin_pid` returns 0 while the
        process is not known."""
        self._group = group
        self._limit = limit
        self._plugin_pid = plugin_pid

    def used_s(self) -> float:
        return _used_s(self._plugin_pid())

    def stopped_periods(self) -> tuple[int, int]:
        return self._group.stopped_periods()

    def slow(self, share: float) -> None:
        self._set(share, idle=True)

    def release(self) -> None:
        self._set(self._limit, idle=False)

    def _set(self, share: float, *, idle: bool) -> None:
        # The group may be gone; and older kernels cannot make one idle, there the quota is all.
        with contextlib.suppress(PluginError):
            self._group.set_cpu_share(share)
        with contextlib.suppress(OSError):
            self._group.set_idle(idle=idle)


class SignalBrake:
    """Stops the processes for a part of each period; see `fair.Brake`.

    A thread does it, since the loop has turns longer than the parts. It ends with `release` or with
    the last process.
    """

    def __init__(self, plugin_pid: Callable[[], int]) -> None:
        """`plugin_pid` returns 0 while the process is not known."""
        self._plugin_pid = plugin_pid
        self._share: float | None = None
        self._thread: threading.Thread | None = None

    def used_s(self) -> float:
        return _used_s(self._plugin_pid())

    def stopped_periods(self) -> tuple[int, int]:
        return 0, 0

    def slow(self, share: float) -> None:
        self._share = share
        if self._plugin_pid() and not self._running:
            self._thread = threading.Thread(target=self._brake, name="brake", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Returns when no process is stopped any more."""
        self._share = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _brake(self) -> None:
        members: dict[int, int] = {}
        fresh_until = 0.0
        try:
            while (share := self._share) is not None:
                if time.monotonic() >= fresh_until:
                    self._refresh(members)
                    fresh_until = time.monotonic() + REFRESH_S
                if not members:
                    return
                # They may all be busy at once, as far as the cores go.
                part = min(1.0, share / min(len(members), os.cpu_count() or 1))
                time.sleep(PERIOD_S * part)
                if part < 1:
                    _signal_all(members, signal.SIGSTOP)
                    time.sleep(PERIOD_S * (1 - part))
                    _signal_all(members, signal.SIGCONT)
        finally:
            _signal_all(members, signal.SIGCONT)
            for pidfd in members.values():
                os.close(pidfd)

    def _refresh(self, members: dict[int, int]) -> None:
        """Hold a pidfd of each: a pid alone may belong to somebody else by now."""
        plugin = self._plugin_pid()
        for pid in family(plugin):
            if pid in members:
                continue
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                members[pid] = pidfd
        # What is no descendant now was a pid that changed hands between the list and the pidfd.
        there = set(family(plugin))
        for pid in [pid for pid in members if pid not in there]:
            os.close(members.pop(pid))


def _used_s(pid: int) -> float:
    return cpu_seconds(pid) if pid else 0.0


def _signal_all(members: dict[int, int], number: int) -> None:
    for pidfd in members.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
