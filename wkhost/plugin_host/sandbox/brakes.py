"""How a plugin's processes are slowed: by their control group, else by signals.

Either way they are kept on as few of the CPUs as they may have: who wakes finds another one that is
idle. Nobody takes it back from inside: the sandbox refuses `sched_setaffinity`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import structlog

from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.cgroups import Group
from wkhost.plugin_host.sandbox.corner import Corner
from wkhost.plugin_host.sandbox.slices import slices_command
from wkhost.plugin_host.sandbox.tree import Tree

log = structlog.get_logger(__name__)


class GroupBrake:
    """A smaller quota, and a group that runs when nobody else wants to; see `fair.Brake`."""

    yields = True

    def __init__(self, group: Group, tree: Tree, limit: float) -> None:
        """`limit`: its quota in cores when nothing slows it."""
        self._group = group
        self._tree = tree
        self._limit = limit
        self._share: float | None = None
        self._corner = Corner()

    def used_s(self) -> float:
        return self._tree.used_s(self._group.pids())

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
    """A program that stops and continues the processes; see `fair.Brake` and `slices`."""

    yields = False

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._share = 0.0
        """That the program was told; 0 when there is none."""
        self._used_s = 0.0
        self._corner = Corner()
        self._program: subprocess.Popen[bytes] | None = None

    def used_s(self) -> float:
        if self._program is None:
            self._used_s = self._tree.used_s(self._tree.pids())
        else:
            self._used_s = self._reported_s(self._program) or self._used_s
        return self._used_s

    def stopped_periods(self) -> tuple[int, int]:
        return 0, 0

    def slow(self, share: float) -> None:
        if not self._tree.first:
            return
        if self._program is not None and self._program.poll() is not None:
            self.release()
        try:
            if self._program is None:
                self._program = self._start()
            if abs(share - self._share) > self._share / 10:
                self._tell(self._program, share)
        except OSError as error:
            # The next look tries again.
            log.warning("plugin_not_slowed", error=str(error))

    def release(self) -> None:
        self._share = 0.0
        program, self._program = self._program, None
        if program is None:
            return
        with program:
            program.kill()
        self._corner.leave(pids := self._tree.pids())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _start(self) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(
            slices_command(self._tree), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        for file in (program.stdin, program.stdout):
            assert file is not None
            os.set_blocking(file.fileno(), False)
        return program

    def _tell(self, program: subprocess.Popen[bytes], share: float) -> None:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), b"%r\n" % share)
        self._share = share

    def _reported_s(self, program: subprocess.Popen[bytes]) -> float | None:
        """Return the last report since the last look, None if there is none."""
        assert program.stdout is not None
        reports = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(program.stdout.fileno(), 4096):
                reports += part
        # Reports are written whole.
        return float(reports.split()[-1]) if reports else None
