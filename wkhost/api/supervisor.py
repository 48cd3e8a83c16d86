"""The kernel's side of an API worker: start it, hand it its socket and link, restart it.

The listening socket stays with the kernel process, so a restart keeps the port and connections
wait in its queue meanwhile. A worker's death costs no message: what it had asked goes on here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import structlog
import trio

import wkhost
from wkhost.api.worker_settings import READY, WorkerSettings, encode_settings
from wkhost.errors import WkhostError

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0
_STEADY_S = 10.0
"""A worker that lived this long starts the back-off again."""
_START_TIMEOUT_S = 30.0
_KILL_AFTER_DRAIN_S = 2.0


class ApiWorkerError(WkhostError):
    """The API worker ended, or hung, before it ever served."""


class ApiWorker:
    """Runs one worker process on `listen`, a bound and listening TCP socket, which stays ours.

    `manager` is the same for the metrics; None serves none.
    """

    def __init__(
        self,
        listen: socket.socket,
        settings: WorkerSettings,
        *,
        manager: socket.socket | None = None,
    ) -> None:
        self._listen = listen
        self._manager = manager
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._failed = False

    @property
    def port(self) -> int:
        port: int = self._listen.getsockname()[1]
        return port

    @property
    def pid(self) -> int:
        """Pid of the running worker, 0 between two of them."""
        return 0 if self._process is None else self._process.pid

    def statistics(self) -> dict[str, int]:
        return {"pid": self.pid, "restarts": self._restarts}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker running; `started()` when the first one serves.

        Must run on the main thread: the system kills the worker with the thread that started it.

        Raises: ApiWorkerError when the first worker never serves. Cancellation: the worker drains.
        """
        backoff_s = _FIRST_BACKOFF_S
        served = False
        while True:
            started = trio.current_time()
            control = self._spawn()
            try:
                ready = await self._wait_ready(control)
                self._failed = not ready
                if ready and not served:
                    served = True
                    task_status.started()
                if ready:
                    log.info("API worker serves", pid=self.pid, port=self.port)
                    await self._wait_exit()
            finally:
                status = await self._end(control)
            if not served:
                raise ApiWorkerError(f"the API worker did not start (exit status {status})")
            if trio.current_time() - started > _STEADY_S:
                backoff_s = _FIRST_BACKOFF_S
            log.error("API worker ended; starting another", status=status, backoff_s=backoff_s)
            await trio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)
            self._restarts += 1

    def _spawn(self) -> trio.SocketStream:
        """Start a process and send it its settings; return our end of its control socket."""
        self._failed = False
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [self._listen.fileno(), theirs.fileno()]
            manager = [] if self._manager is None else [self._manager.fileno()]
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "wkhost.api.worker"),
                    *("--listen-fd", str(descriptors[0])),
                    *("--control-fd", str(descriptors[1])),
                    *("--parent-pid", str(os.getpid())),
                    *(option for fd in manager for option in ("--manager-fd", str(fd))),
                ],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors + manager,
            )
        # The line is far shorter than the socket's buffer, so this does not block.
        ours.sendall(encode_settings(self._settings))
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def _wait_ready(self, control: trio.SocketStream) -> bool:
        said = b""
        with trio.move_on_after(_START_TIMEOUT_S):
            while said != READY:
                try:
                    part = await control.receive_some(64)
                except trio.BrokenResourceError:
                    return False
                if not part:
                    return False
                said += part
            return True
        log.error("API worker does not become ready", pid=self.pid)
        return False

    async def _wait_exit(self) -> None:
        """Return when the process has ended (its status is not yet collected)."""
        descriptor = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def _end(self, control: trio.SocketStream) -> int:
        """Have the worker drain and end if it still runs, kill it if it does not; reap it."""
        process = self._process
        assert process is not None
        with trio.CancelScope(shield=True):
            if self._failed:  # it is ending by itself: let it say why
                with trio.move_on_after(_KILL_AFTER_DRAIN_S):
                    await self._wait_exit()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(self._settings.drain_s + _KILL_AFTER_DRAIN_S):
                    await self._wait_exit()
                if process.poll() is None:
                    log.error("API worker does not end; killing it", pid=process.pid)
                    process.kill()
                    await self._wait_exit()
            status = process.wait()
            await trio.aclose_forcefully(control)
        self._process = None
        return status


def _environment() -> dict[str, str]:
    """Our environment, with the folder that holds this very package first on the path."""
    package = Path(wkhost.__file__).resolve().parent.parent
    others = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(package), others) if part)
    return {**os.environ, "PYTHONPATH": path}
