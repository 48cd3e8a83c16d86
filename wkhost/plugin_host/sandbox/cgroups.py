"""Control groups: hard limits on memory, processes and CPU, where the server may make groups.

Version 1 needs root, or a folder that belongs to the server's user. Version 2 needs delegation
(systemd: `Delegate=yes`); the server then moves itself into a leaf, since only groups without
processes of their own may have limited ones below.
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
_CPU_PERIOD_US = 10_000
"""Short: in its part of a period a group with many threads may have every core."""
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

    def set_cpu_share(self, cores: float) -> None:
        """Let it have another quota than it was made with. Raises PluginError."""
        folder = self.folders.get("cpu")
        if folder is not None:
            for file, value in _cpu_quota(self.version, cores):
                _write(folder / file, value)

    def set_idle(self, *, idle: bool) -> None:
        """Let it run only when nobody else wants to, or as anybody again. Raises OSError."""
        folder = self.folders.get("cpu")
        if folder is not None:
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
    # Groups are made below the one that the server is in.
    home = share.parent.parent
    try:
        with contextlib.suppress(PluginError):
            _write(share / "tasks", "0")
        yield
    finally:
        _write(home / "tasks", "0")


class Groups:
    """Makes one group per process below a folder of the server's own."""

    def __init__(self, folders: dict[str, Path], version: int) -> None:
        self.folders = folders
        self.version = version

    def create(self, name: str, limits: Limits) -> Group:
        """Raises PluginError; nothing is left then."""
        group = Group({key: folder / name for key, folder in self.folders.items()}, self.version)
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

    def close(self) -> None:
        for folder in dict.fromkeys(self.folders.values()):
            _removed(folder)


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
    name = f"wkhost-{os.getpid()}"
    if "memory" in places:
        # A controller may be one of several of a hierarchy (cpu,cpuacct) or not mounted at all.
        v1 = {key: places[key] for key in CONTROLLERS if key in places and places[key].is_dir()}
        return _make({key: folder / name for key, folder in v1.items()}, 1, name)
    if unified is None or not unified.is_dir():
        raise PluginError(f"no control groups are mounted at {root}")
    return _make(dict.fromkeys(_delegated(unified), unified / name), 2, name)


def _make(folders: dict[str, Path], version: int, name: str) -> Groups:
    for folder in dict.fromkeys(folders.values()):
        _remove_dead(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise PluginError(f"{folder}: {error.strerror} (errno {error.errno}); {FIX}") from error
    if version == 2:
        for folder in dict.fromkeys(folders.values()):
            wanted = " ".join(f"+{key}" for key in folders)
            _write(folder / "cgroup.subtree_control", wanted)
    return Groups(folders, version)


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


def _cpu_quota(version: int, cores: float) -> list[tuple[str, str]]:
    cores *= QUOTA_SLACK
    period = max(_CPU_PERIOD_US, round(_LEAST_QUOTA_US / cores))
    quota = max(_LEAST_QUOTA_US, round(cores * period))
    if version == 2:
        return [("cpu.max", f"{quota} {period}")]
    return [("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(quota))]


def _is_v2(folder: Path) -> bool:
    return (folder / "cgroup.controllers").is_file()


def _remove_dead(folder: Path) -> None:
    """Remove the groups of servers that were killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob("wkhost-[0-9]*"):
            if not Path(f"/proc/{path.name.removeprefix('wkhost-')}").exists():
                for inner in [*path.glob("*/"), path]:
                    _removed(inner)


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
