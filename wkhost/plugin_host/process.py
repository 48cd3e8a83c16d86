"""Launching one plugin process, knowing when it ends, and ending it. Plain operating-system means.

Theory of operation. A `Launcher` makes a `Process`; a sandbox is another launcher. The process is
started by `subprocess.Popen` on the main thread, because its death signal is bound to the thread
that started it. It leads a session and process group of its own. Its end is told by a pidfd; then
the rest of its group is killed *before* it is reaped, while its pid cannot belong to anyone else.
The token goes through an inherited pipe, after `release`: a launcher may look at the process first.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from wkhost.errors import PluginError
from wkhost.link import contract
from wkhost.plugin_host.boot import CONTROL_FD
from wkhost.plugin_host.fair import Brake
from wkhost.plugin_host.manifest import Limits, Manifest

BOOT = Path(__file__).with_name("boot.py")
IMPORT_CHECK = Path(__file__).with_name("import_check.py")
IMPORT_CHECK_TIMEOUT_S = 30
_MAX_ANCESTORS = 32
_MIB = 1024 * 1024


class LaunchSpec(msgspec.Struct, frozen=True):
    """What is to be launched. `runtime_dir` holds the socket that the process will dial."""

    manifest: Manifest
    generation: int
    plugin_dir: Path
    data_dir: Path
    runtime_dir: Path
    digest: str = ""


class Places(msgspec.Struct, frozen=True):
    """Where the process itself finds its things."""

    plugin_dir: Path
    data_dir: Path
    runtime_dir: Path


class Process(Protocol):
    """A launched process and all it started."""

    @property
    def pid(self) -> int:
        """The plugin's own process once `release` has returned."""

    @property
    def places(self) -> Places: ...

    @property
    def note(self) -> str:
        """One line for the operator: what contains the process."""

    @property
    def outputs(self) -> dict[str, int]:
        """Non-blocking descriptors of its output by stream name, closed by `close`."""

    @property
    def brake(self) -> Brake | None:
        """What slows it, None where nothing does."""

    async def release(self, control: bytes, *, more: bool = False) -> None:
        """Hand over the control line; the process may dial from now on.

        `more`: another line follows by another call, and only with that it may dial.

        Raises PluginError when the process is not contained as planned.
        """

    def owns(self, pid: int) -> bool:
        """Whether `pid` is the process or one of its descendants."""

    def signal(self, number: int) -> None:
        """Signal the whole group; nothing happens when it is gone."""

    async def died(self) -> None:
        """Return as soon as a part of it has ended: the rest is on its way down."""

    async def wait(self) -> int:
        """Return the exit status once it has ended and is reaped."""

    def exit_text(self, status: int) -> str:
        """Return in words how it ended, such as "exited with status 1"."""

    def close(self) -> None:
        """Free the descriptors. The process must have ended."""


class Launcher(Protocol):
    async def prepare(self) -> None:
        """Find out, once, what this machine can do. Called before anything is launched."""

    def layers(self, manifest: Manifest) -> dict[str, str]:
        """Return what contains a process, layer by layer, in words; "none" where nothing does."""

    def report(self, manifests: Sequence[Manifest]) -> contract.PluginSandbox:
        """Return what this machine can do, and what it does for each of the plugins. May block."""

    def launch(self, spec: LaunchSpec) -> Process:
        """Start a process. Raises PluginError."""


class PlainLauncher:
    """rlimits, empty environment, closed descriptors, own group, death with the host."""

    async def prepare(self) -> None:
        """There is nothing to find out."""

    def layers(self, manifest: Manifest) -> dict[str, str]:
        limits = manifest.limits
        return {
            "fs": "none",
            "net": "none",
            "pid": "process group, dies with the host",
            "syscalls": "no_new_privs",
            "memory": f"rlimit {limits.memory_mb} MiB of data",
            "files": f"rlimit {limits.open_files} open, {limits.file_mb} MiB each",
            # RLIMIT_NPROC counts all processes of the user, ours included.
            "processes": "none (needs a uid or cgroup of its own)",
            "cpu": "none (needs a cgroup)",
        }

    def report(self, manifests: Sequence[Manifest]) -> contract.PluginSandbox:
        plugins = [
            contract.PluginContainment(each.no, "off", [], self.layers(each)) for each in manifests
        ]
        return contract.PluginSandbox("not used", [], {}, plugins)

    def launch(self, spec: LaunchSpec) -> PlainProcess:
        manifest = spec.manifest
        run: dict[str, Any]
        if manifest.main:
            run = {"module": "plugin_sdk", "path": _sdk_path(), "args": ["--control-fd", "3"]}
        else:
            run = {"command": list(manifest.command)}
        control_read, control_write = os.pipe2(os.O_CLOEXEC)
        try:
            popen = subprocess.Popen(
                _boot_command(run, spec.plugin_dir, manifest.limits, control_read),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(spec.data_dir),
                pass_fds=(control_read,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(control_write)
            raise PluginError(f"{manifest.no}: cannot be started ({error.strerror})") from error
        finally:
            os.close(control_read)
        places = Places(spec.plugin_dir, spec.data_dir, spec.runtime_dir)
        try:
            return PlainProcess(popen, control_write, places)
        except OSError as error:
            os.close(control_write)
            popen.kill()
            popen.wait()
            raise PluginError(f"{manifest.no}: cannot be watched ({error.strerror})") from error


class PlainProcess:
    """A process in a group of its own."""

    note = "no sandbox: it can read, change and reach all that the server can"
    brake = None

    def __init__(self, popen: subprocess.Popen[bytes], control: int, places: Places) -> None:
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.pid = popen.pid
        self.places = places
        self.outputs = {"out": popen.stdout.fileno(), "err": popen.stderr.fileno()}
        self._popen = popen
        self._files = (popen.stdout, popen.stderr)
        self._control = control
        self._pidfd = os.pidfd_open(popen.pid)
        for descriptor in self.outputs.values():
            os.set_blocking(descriptor, False)

    async def release(self, control: bytes, *, more: bool = False) -> None:
        if self._control < 0:
            return
        try:
            os.write(self._control, control)
        except BrokenPipeError:
            pass  # it has died already, which `wait` tells
        finally:
            if not more:
                self._close_control()

    def owns(self, pid: int) -> bool:
        return descends_from(pid, self.pid)

    def signal(self, number: int) -> None:
        if self._popen.returncode is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                # Not yet the leader of its group: it was started a moment ago.
                os.kill(self.pid, number)

    async def died(self) -> None:
        await trio.lowlevel.wait_readable(self._pidfd)

    async def wait(self) -> int:
        await self.died()
        self.signal(signal.SIGKILL)
        return self._popen.wait()

    def exit_text(self, status: int) -> str:
        return describe_exit(status)

    def close(self) -> None:
        self._close_control()
        for file in self._files:
            file.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _close_control(self) -> None:
        if self._control >= 0:
            os.close(self._control)
            self._control = -1


def check_imports(manifest: Manifest, folder: Path) -> None:
    """Raise PluginError, naming file and line, if an import of a Python plugin does not exist.

    Blocks, in a child process with the plugin's limits that runs none of the plugin's code.
    """
    if not manifest.main:
        return
    run = {"script": str(IMPORT_CHECK), "args": [str(folder), manifest.main]}
    try:
        done = subprocess.run(
            _boot_command(run, folder, manifest.limits, -1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(folder),
            timeout=IMPORT_CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PluginError(f"{manifest.no}: the import check took too long") from error
    if done.returncode != 0:
        lines = (done.stdout or done.stderr[-1000:]).decode("utf-8", "replace").splitlines()
        text = "\n".join(ascii(line)[1:-1] for line in lines[-20:])
        raise PluginError(f"{manifest.no}: the code cannot be loaded: {text}")


def describe_exit(status: int) -> str:
    """Return an exit status in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _boot_command(
    run: dict[str, Any], folder: Path, limits: Limits, control_fd: int
) -> Sequence[str]:
    spec = {
        **run,
        "parent": os.getpid(),
        "control_fd": control_fd,
        "folder": str(folder),
        "limits": {
            "RLIMIT_DATA": limits.memory_mb * _MIB,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_FSIZE": limits.file_mb * _MIB,
            "RLIMIT_CORE": 0,
        },
    }
    # No byte code is written: it would be readable for the server's user alone, and in the way of
    # those plugins that have another.
    flags = ("-I", "-S", "-B")
    return [sys.executable, *flags, str(BOOT), msgspec.json.encode(spec).decode()]


def _environment(data_dir: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(data_dir),
        "TMPDIR": str(data_dir),
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "WKHOST_CONTROL_FD": str(CONTROL_FD),
    }


def _sdk_path() -> str:
    spec = importlib.util.find_spec("plugin_sdk")
    if spec is None or spec.origin is None:
        raise PluginError("plugin_sdk: not installed beside wkhost")
    return str(Path(spec.origin).parent.parent)


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether process `pid` is `ancestor` or one of its descendants."""
    for _ in range(_MAX_ANCESTORS):
        if pid == ancestor:
            return True
        pid = _parent_of(pid)
        if pid <= 1:
            return False
    return False


def _parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name, in brackets, may hold anything; the fields after its last bracket do not.
    return int(stat.rpartition(b")")[2].split()[1])
