"""Control groups: hard limits on memory, processes and CPU, where the server may make groups.

Version 1 needs root, or a folder that belongs to the server's user. Version 2 needs delegation
(systemd: `Delegate=yes`); the server then moves itself into a leaf, since only groups without
processes of their own may have limited ones below.

The groups lie beside each other and beside the server, without a common folder: the kernel compares
who wakes with who runs at the level where their folders part, so a group that may run only when
nobody else wants to must be there itself. Below a folder that is as good as others the server
waited for it: p99 of sends doubled.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Limits

CONTROLLERS = ("memory", "pids", "cpu")
FIX = "delegate a control group (systemd: Delegate=yes), or run as root"
_PREFIX = "wkhost-"
_CPU_PERIOD_US = 10_000
"""Short: in its part of a period a group with many threads may have every core."""
_IDLE_PERIOD_US = 100_000
"""Of a group that yields at once anyway. At each period's beginning it is as good as who waits, by
the kernel's account, and may then run until the next tick: p99 of sends felt that."""
_LEAST_QUOTA_US = 1_000
"""The kernel refuses less."""
QUOTA_SLACK = 1.1
"""The kernel hands a quota out in slices: one busy thread that may have exactly a core would be
stopped in many periods."""
_EMPTY_WITHIN_S = 2.0
_MIB = 1024 * 1024


class Group(msgspec.Struct, frozen=True):
    """The groups of one process: controller -> folder."""

    folders: dict[str, Path]
    version: int

    @property
    def name(self) -> str:
        """The plugin's number and a number of the process."""
        return next(iter(self.folders.values())).name

    def attach(self, pid: int) -> None:
        """Put a process (and what it starts from now on) in, where it was not born in it.

        Blocks for milliseconds for each folder that it moves to. Raises PluginError.
        """
        for folder in dict.fromkeys(self.folders.values()):
            if pid not in _pids(folder):
                _write(folder / "cgroup.procs", str(pid))

    def out_of_memory_kills(self) -> int:
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        with contextlib.suppress(OSError):
            for line in (folder / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def memory_bytes(self) -> int:
        """Return what is charged now, 0 where it is not known."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        with contextlib.suppress(OSError):
            return int((folder / name).read_text())
        return 0

    def stopped_periods(self) -> tuple[int, int]:
        """Return how many periods of its CPU quota there were, and in how many it was stopped."""
        folder = self.folders.get("cpu")
        if folder is None:
            return 0, 0
        try:
            lines = (folder / "cpu.stat").read_text().splitlines()
        except OSError:
            return 0, 0
        counts = dict(line.split(" ", 1) for line in lines)
        return int(counts.get("nr_periods", 0)), int(counts.get("nr_throttled", 0))

    def pids(self) -> list[int]:
        """Return the processes in it."""
        return _pids(next(iter(self.folders.values())))

    def set_cpu(self, cores: float, *, idle: bool) -> None:
        """Let it have another quota, and with `idle` only when nobody else wants to run.

        Raises PluginError. Older kernels cannot make a group idle, there the quota is all.
        """
        folder = self.folders.get("cpu")
        if folder is not None:
            period = _IDLE_PERIOD_US if idle else _CPU_PERIOD_US
            for file, value in _cpu_quota(self.version, cores, period):
                _write(folder / file, value)
            with contextlib.suppress(OSError):
                (folder / "cpu.idle").write_text(str(int(idle)))

    def remove(self) -> None:
        """Kill what is left in it and remove it; a group that stays is left to the next start."""
        deadline = time.monotonic() + _EMPTY_WITHIN_S
        for folder in dict.fromkeys(self.folders.values()):
            while not _removed(folder) and time.monotonic() < deadline:
                _kill_all(folder)
                time.sleep(0.0005)


@contextlib.contextmanager
def lent_cpu_share(group: Group) -> Iterator[None]:
    """Let what the calling thread starts meanwhile belong to the group's CPU share at once.

    A child is born where its thread is, and a thread steps aside in microseconds. A process that
    runs moves only when the kernel has seen all its threads, and its start is over by then.
    Version 2 moves whole processes only; there, and where the kernel refuses, `attach` has to do.
    """
    share = group.folders.get("cpu")
    if group.version != 1 or share is None:
        yield
        return
    home = share.parent
    try:
        with contextlib.suppress(PluginError):
            _write(share / "tasks", "0")
        yield
    finally:
        _write(home / "tasks", "0")


class Groups:
    """Makes one group per process, below the group that the server was started in."""

    def __init__(self, homes: dict[str, Path], version: int) -> None:
        """`homes`: controller -> that group's folder."""
        self.homes = homes
        self.version = version

    def create(self, name: str, limits: Limits) -> Group:
        """Raises PluginError; nothing is left then."""
        name = f"{_PREFIX}{os.getpid()}.{name}"
        group = Group({key: home / name for key, home in self.homes.items()}, self.version)
        try:
            for folder in dict.fromkeys(group.folders.values()):
                folder.mkdir(exist_ok=True)
            for controller, folder in group.folders.items():
                for file, value in _settings(self.version, controller, limits):
                    _write(folder / file, value)
        except (OSError, PluginError) as error:
            group.remove()
            raise PluginError(f"control group {name}: {error}") from error
        return group


def open_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Groups:
    """Return where groups can be made. Raises PluginError with the reason where they cannot."""
    places: dict[str, Path] = {}
    unified = None
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in filter(None, controllers.split(",")):
            places[controller] = root / controller / path.lstrip("/")
        if not controllers:
            unified = next((each for each in (root / "unified", root) if _is_v2(each)), None)
            unified = None if unified is None else unified / path.lstrip("/")
    if "memory" in places:
        # A controller may be one of several of a hierarchy (cpu,cpuacct) or not mounted at all.
        v1 = {key: places[key] for key in CONTROLLERS if key in places and places[key].is_dir()}
        return _groups(v1, 1)
    if unified is None or not unified.is_dir():
        raise PluginError(f"no control groups are mounted at {root}")
    return _groups(dict.fromkeys(_delegated(unified), unified), 2)


def _groups(homes: dict[str, Path], version: int) -> Groups:
    """Raises PluginError where no group can be made."""
    for home in dict.fromkeys(homes.values()):
        _remove_dead(home)
        trial = home / f"{_PREFIX}{os.getpid()}.trial"
        try:
            trial.mkdir(exist_ok=True)
        except OSError as error:
            raise PluginError(f"{trial}: {error.strerror} (errno {error.errno}); {FIX}") from error
        _removed(trial)
    return Groups(homes, version)


def _delegated(folder: Path) -> list[str]:
    """Return the controllers that groups below the server's own may use, enabling them."""
    there = (folder / "cgroup.controllers").read_text().split()
    usable = [key for key in CONTROLLERS if key in there]
    if not usable:
        raise PluginError(f"{folder}: none of {', '.join(CONTROLLERS)} is delegated; {FIX}")
    enable = " ".join(f"+{key}" for key in usable)
    try:
        _write(folder / "cgroup.subtree_control", enable)
    except PluginError:
        # EBUSY while it has processes: all of them are moved into a leaf, then it works.
        leaf = folder / "wkhost-server"
        try:
            leaf.mkdir(exist_ok=True)
        except OSError as error:
            raise PluginError(f"{leaf}: {error.strerror} (errno {error.errno}); {FIX}") from error
        for pid in (folder / "cgroup.procs").read_text().split():
            _write(leaf / "cgroup.procs", pid)
        _write(folder / "cgroup.subtree_control", enable)
    return usable


def _settings(version: int, controller: str, limits: Limits) -> list[tuple[str, str]]:
    if controller == "cpu":
        return _cpu_quota(version, limits.cpu_percent / 100)
    memory = str(limits.memory_mb * _MIB)
    found = {
        (1, "memory"): [("memory.limit_in_bytes", memory)],
        (1, "pids"): [("pids.max", str(limits.processes))],
        (2, "memory"): [("memory.max", memory), ("memory.swap.max", "0")],
        (2, "pids"): [("pids.max", str(limits.processes))],
    }
    return found[version, controller]


def _cpu_quota(version: int, cores: float, period: int = _CPU_PERIOD_US) -> list[tuple[str, str]]:
    cores *= QUOTA_SLACK
    period = max(period, round(_LEAST_QUOTA_US / cores))
    quota = max(_LEAST_QUOTA_US, round(cores * period))
    if version == 2:
        return [("cpu.max", f"{quota} {period}")]
    return [("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(quota))]


def _is_v2(folder: Path) -> bool:
    return (folder / "cgroup.controllers").is_file()


def _remove_dead(folder: Path) -> None:
    """Remove the groups of servers that were killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_PREFIX}[0-9]*"):
            server = path.name.removeprefix(_PREFIX).partition(".")[0]
            if not Path(f"/proc/{server}").exists():
                _removed(path)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _pids(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _kill_all(folder: Path) -> None:
    for pid in _pids(folder):
        # Not ourselves, should a thread of ours be stuck in it.
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        if error.errno == errno.ENOENT and path.name == "memory.swap.max":
            return  # a kernel without swap accounting
        raise PluginError(f"{path}: {error.strerror} (errno {error.errno}); {FIX}") from error
