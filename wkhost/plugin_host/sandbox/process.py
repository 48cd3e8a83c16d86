"""A plugin's process in the sandbox: started, looked at, let go on, watched, ended.

Theory of operation. The host's child is bubblewrap; the plugin is a grandchild with pid 2 of its
own namespace. Boot reports over a socket pair, and the kernel attaches to that report the pid as
the host sees it. Then the host holds a pidfd of both ends of the chain, and the death of either is
known at once; the kernel kills everything in between and below.
"""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from wkhost.errors import PluginError
from wkhost.plugin_host.boot import GO, READY
from wkhost.plugin_host.fair import Brake
from wkhost.plugin_host.process import Places, descends_from, describe_exit
from wkhost.plugin_host.sandbox.brakes import GroupBrake, SignalBrake
from wkhost.plugin_host.sandbox.cgroups import Group
from wkhost.plugin_host.sandbox.checks import Expected, check_process
from wkhost.plugin_host.sandbox.command import Command
from wkhost.plugin_host.sandbox.watch import Watch

LOOK_EVERY_S = 1.0
LAUNCHER_EXIT_S = 0.1
"""How long bubblewrap may take to tell how the plugin ended."""
_CREDENTIALS = struct.Struct("3i")


class Started(msgspec.Struct, frozen=True):
    """A process that waits for the host. `control` is the host's end, non-blocking."""

    popen: subprocess.Popen[bytes]
    control: socket.socket


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Return the host's and the process's end; what comes to the host carries the sender's pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def start(
    command: Command, ours: socket.socket, theirs: socket.socket, boot: Mapping[str, Any]
) -> Started:
    """Start a command and send boot its orders. Raises OSError; descriptors are closed then."""
    try:
        popen = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=(theirs.fileno(), *command.descriptors),
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        for descriptor in command.descriptors:
            os.close(descriptor)
    # Far below the socket's buffer: it never blocks.
    ours.sendall(msgspec.json.encode(boot) + b"\n")
    ours.setblocking(False)
    return Started(popen, ours)


def take_report(control: socket.socket) -> tuple[int, int] | None:
    """Return pid and uid of who said `ready`, as the host sees them; None when it has ended.

    Raises PluginError when something else was said.
    """
    try:
        data, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
    except ConnectionResetError:
        return None
    if not data:
        return None
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and data == READY:
            pid, uid, _ = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])
            return pid, uid
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for descriptor in array.array("i", value):
                os.close(descriptor)
    raise PluginError("the sandbox does not hold: boot's report was not what was expected")


class SandboxProcess:
    """See the module, and `Process` for the methods."""

    def __init__(
        self,
        started: Started,
        places: Places,
        expected: Expected,
        *,
        group: Group | None,
        watch: Watch,
        note: str,
        own_uid: int | None,
        socket_dir: Path,
        alone: bool,
    ) -> None:
        """`alone`: the process cannot start others."""
        popen = self._popen = started.popen
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.outputs = {"out": popen.stdout.fileno(), "err": popen.stderr.fileno()}
        self.places = places
        self.note = note
        self._control: socket.socket | None = started.control
        self._expected = expected
        self._group = group
        self._watch = watch
        if group is not None and "cpu" in group.folders:
            limit = watch.limits.cpu_percent / 100
            self.brake: Brake = GroupBrake(group, limit)
        else:
            self.brake = SignalBrake(lambda: self._plugin, alone=alone)
        self._own_uid = own_uid
        self._socket_dir = socket_dir
        self._plugin = 0
        self._pidfds = {popen.pid: os.pidfd_open(popen.pid)}
        self._ends = select.epoll()
        self._ends.register(self._pidfds[popen.pid], select.EPOLLIN)
        self._status: int | None = None
        self._out_of_memory = False
        for descriptor in self.outputs.values():
            os.set_blocking(descriptor, False)

    @property
    def pid(self) -> int:
        return self._plugin or self._popen.pid

    async def release(self, control: bytes, *, more: bool = False) -> None:
        """Wait for boot's report, look at the process, and let it go on with its token."""
        sock = self._control
        if sock is None:
            return
        try:
            if not self._plugin:
                if not await self._meet(sock):
                    more = False
                    return
                control = GO + control
            sock.sendall(control)
        except BrokenPipeError:
            more = False  # it has died already, which `wait` tells
        finally:
            if not more:
                self._close_control()

    async def _meet(self, sock: socket.socket) -> bool:
        """Find the process and look at it. False: it has ended, which `wait` tells."""
        if self._own_uid is not None:
            # Nobody but the host can write to the folder that the socket is in.
            for path in self._socket_dir.iterdir():
                os.chown(path, self._own_uid, self._own_uid, follow_symlinks=False)
        await trio.lowlevel.wait_readable(sock)
        report = take_report(sock)
        if report is None or not self._adopt(*report):
            return False
        if self._group is not None:
            # The kernel waits in it until nobody uses the old group: some milliseconds.
            await trio.to_thread.run_sync(self._attach, self._group)
        return True

    def owns(self, pid: int) -> bool:
        return pid == self._plugin or descends_from(pid, self._popen.pid)

    def signal(self, number: int) -> None:
        if self._status is not None:
            return
        pidfd = self._pidfds.get(self._plugin)
        try:
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)
            if number == signal.SIGKILL or pidfd is None:
                os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ends by itself just now

    async def died(self) -> None:
        while not self._ends.poll(0):
            with trio.move_on_after(LOOK_EVERY_S) as waiting:
                await trio.lowlevel.wait_readable(self._ends.fileno())
            if waiting.cancelled_caught and await self._watch.exceeded(self._plugin):
                self.signal(signal.SIGKILL)

    async def wait(self) -> int:
        if self._status is not None:
            return self._status
        await self.died()
        with trio.CancelScope(shield=True):
            status = self._status = await self._collect()
        return status

    def exit_text(self, status: int) -> str:
        if self._watch.reason:
            return f"killed by the host: {self._watch.reason}"
        if self._out_of_memory:
            return f"killed for using more than its {self._watch.limits.memory_mb} MiB of memory"
        # bubblewrap tells a signal as a shell does.
        return describe_exit(128 - status if 128 < status < 192 else status)

    def close(self) -> None:
        self._close_control()
        for file in (self._popen.stdout, self._popen.stderr):
            if file is not None:
                file.close()
        if not self._ends.closed:
            self._ends.close()
            for pidfd in self._pidfds.values():
                os.close(pidfd)

    # --- parts ----------------------------------------------------------------------------------

    def _adopt(self, pid: int, uid: int) -> bool:
        """Take the plugin's process as ours, if it is as planned. False: it has ended already.

        Raises PluginError.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        self._pidfds[pid] = pidfd
        self._plugin = pid
        # The pidfd came first, so what is read now is of that very process or of none.
        if not descends_from(pid, self._popen.pid) or uid != self._expected.uid:
            raise PluginError(f"the sandbox does not hold: process {pid} with uid {uid} reported")
        check_process(pid, self._expected)
        self._ends.register(pidfd, select.EPOLLIN)
        return True

    def _attach(self, group: Group) -> None:
        try:
            group.attach(self._plugin)
        except PluginError as error:
            cause = error.__cause__
            # It has died just now, which `wait` tells.
            if not isinstance(cause, OSError) or cause.errno != errno.ESRCH:
                raise

    async def _collect(self) -> int:
        """Bring everything down and reap; only the kernel is waited for."""
        launcher = self._pidfds[self._popen.pid]
        with trio.move_on_after(LAUNCHER_EXIT_S):
            await trio.lowlevel.wait_readable(launcher)
        self.signal(signal.SIGKILL)
        status = self._popen.wait()
        plugin = self._pidfds.get(self._plugin)
        if plugin is not None:
            await trio.lowlevel.wait_readable(plugin)
        if self._group is not None:
            self._out_of_memory = self._group.out_of_memory_kills() > 0
            await trio.to_thread.run_sync(self._group.remove)
        return status

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
