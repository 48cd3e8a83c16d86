"""Stops and continues the processes of a sandbox in turn: they use no more than their share.

A program of its own, `slices_command`. A thread of the server would be late by what the loop holds
the interpreter for, and so would whoever waits for the CPU meanwhile; nor should the loop read so
often what many processes have used. It reads shares, a line each, in cores, and writes what CPU
time the tree has used, in seconds. It ends with its input or with the last of the processes.
Whoever ends it has to let the processes go on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import wkhost
from wkhost.plugin_host.sandbox.corner import Corner
from wkhost.plugin_host.sandbox.tree import Tree

SHORT_SLICE_S = 0.001
"""How long a process that owes time may run until it is stopped again, and so how long anybody
who wakes meanwhile may have to wait."""
LONG_SLICE_S = 0.01
"""The same of one that owes nothing."""
LONGEST_STOP_S = 1.0
MOST_OWED_S = 1.0
REFRESH_S = 0.05
"""What is started while nothing is owed may run so long until it is seen."""


def slices_command(tree: Tree) -> list[str]:
    """Return the program's command."""
    source = os.fspath(Path(wkhost.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); from {__name__} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, str(tree.first), str(int(tree.alone))]


def main() -> None:
    """Read from standard input, write to standard output; see the module."""
    first, alone = map(int, sys.argv[1:])
    tree = Tree(first, alone=bool(alone))
    Slices(tree, shares=sys.stdin.fileno(), reports=sys.stdout.fileno()).keep()


class Slices:
    """Of one sandbox; see the module."""

    def __init__(self, tree: Tree, *, shares: int, reports: int) -> None:
        """Two descriptors."""
        self._tree = tree
        self._shares = shares
        self._reports = reports
        os.set_blocking(reports, False)
        self._input = b""
        self._share = 0.0
        self._members: dict[int, int] = {}
        """Pid -> pidfd: a pid alone may belong to somebody else by now."""
        self._corner = Corner()

    def keep(self) -> None:
        """Returns when there is nobody to hold, or no share."""
        if not self._read():
            return
        self._join()
        at, used_s = time.monotonic(), self._used_s()
        fresh_until = at + REFRESH_S
        owed_s, slice_s = 0.0, SHORT_SLICE_S
        while self._members:
            self._corner.hold(self._members, self._share)
            if not self._pause(slice_s):
                return
            if time.monotonic() >= fresh_until:
                self._join()
                fresh_until = time.monotonic() + REFRESH_S
            since, before_s = at, used_s
            at, used_s = time.monotonic(), self._used_s()
            # What they took counts, not how long they ran: they may have threads, and we wake late.
            owed_s += used_s - before_s - self._share * (at - since)
            owed_s = min(max(owed_s, 0.0), MOST_OWED_S)
            slice_s = LONG_SLICE_S
            if owed_s > 0:
                slice_s = SHORT_SLICE_S
                self._stop()
                if not self._pause(min(owed_s / self._share, LONGEST_STOP_S)):
                    return
                _signal(signal.SIGCONT, self._members.values())

    def _pause(self, seconds: float) -> bool:
        """Wait. False, at once: it is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._shares], [], [], left)[0] and not self._read():
                return False
        return True

    def _read(self) -> bool:
        """Wait for a share. False: there is none any more."""
        data = os.read(self._shares, 4096)
        *lines, self._input = (self._input + data).split(b"\n")
        if lines:
            self._share = float(lines[-1])
        return bool(data)

    def _used_s(self) -> float:
        used_s = self._tree.used_s(list(self._members))
        # Where nobody reads just now the next report tells all; where nobody will, `shares` ends.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._reports, b"%r\n" % used_s)
        # Holding many processes takes more than they do, and is on their account.
        return used_s + time.process_time()

    def _stop(self) -> None:
        """Stop them and what they started; nothing is started any more when it returns."""
        running = list(self._members.values())
        while running:
            _signal(signal.SIGSTOP, running)
            running = self._join()

    def _join(self) -> list[int]:
        """Bring the members up to date. Return the pidfds of new ones."""
        there = set(self._tree.pids())
        new: dict[int, int] = {}
        for pid in there - self._members.keys():
            with contextlib.suppress(ProcessLookupError):
                new[pid] = self._members[pid] = os.pidfd_open(pid)
        if new:
            # Who is not there now is somebody else: the pid changed hands before it was opened.
            there = set(self._tree.pids())
        for pid in self._members.keys() - there:
            os.close(self._members.pop(pid))
            new.pop(pid, None)
        return list(new.values())


def _signal(number: int, pidfds: Iterable[int]) -> None:
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
