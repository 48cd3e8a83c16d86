"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import msgspec
import psutil

from wkhost import __version__

_GIT_TIMEOUT_S = 5.0


class Machine(msgspec.Struct, frozen=True):
    """The machine, as found before the measurement. `load_average` is over 1, 5 and 15 minutes."""

    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    python: str
    load_average: tuple[float, float, float]
    data_filesystem: str
    """Type of the file system that temporary data directories are on; a tmpfs never syncs."""


class Build(msgspec.Struct, frozen=True):
    """What was measured. `commit` is empty outside a git checkout, `-dirty` marks changed files."""

    version: str
    commit: str


def describe_machine(folder: Path) -> Machine:
    """Describe this machine; `folder` is where data will be kept."""
    return Machine(
        cores=os.cpu_count() or 1,
        cpu=_cpu_model(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=tuple(round(each, 2) for each in os.getloadavg()),  # type: ignore[arg-type]
        data_filesystem=_filesystem_of(folder),
    )


def describe_build() -> Build:
    return Build(__version__, _commit())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _filesystem_of(folder: Path) -> str:
    where = folder.resolve()
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if where == Path(mount.mountpoint) or Path(mount.mountpoint) in where.parents
    ]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
