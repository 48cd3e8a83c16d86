"""Limits that the kernel does not hold here: looked at now and then, and ended at the limit.

Memory is looked at where there is no control group; the size of the data folder always,
since no quota of a file system is at hand. All of it is soft: a burst between two looks passes.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import trio

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.folders import walk

MEASURE_SHARE = 20
"""Measuring the data folder may take one part in so many of the time."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024


class Watch:
    """Of one process and those it started. `reason` tells what limit was passed, if one was."""

    def __init__(self, limits: Limits, data_dir: Path, *, grouped: bool) -> None:
        self.limits = limits
        self.reason = ""
        self._data_dir = data_dir
        self._grouped = grouped
        self._data_at = 0.0

    async def exceeded(self, pid: int) -> bool:
        """Whether a limit is passed for which the process has to end. `pid` 0: not yet known."""
        if not pid or self.reason:
            return bool(self.reason)
        if not self._grouped:
            used = resident_bytes(pid)
            if used > self.limits.memory_mb * _MIB:
                self.reason = (
                    f"{used // _MIB} MiB of memory are in use, its limit is {self.limits.memory_mb}"
                )
        self.reason = self.reason or scratch_excess(pid, self.limits)
        began = time.monotonic()
        if not self.reason and began >= self._data_at:
            self.reason = await trio.to_thread.run_sync(data_excess, self._data_dir, self.limits)
            took = time.monotonic() - began
            self._data_at = began + MEASURE_SHARE * took
        return bool(self.reason)


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                children = Path(f"/proc/{each}/task/{task}/children").read_text()
                found += map(int, children.split())
    return found


def resident_bytes(pid: int) -> int:
    total = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return total * _PAGE


def scratch_excess(pid: int, limits: Limits) -> str:
    """Return in words whether its /tmp has too many files; their size is limited by the kernel."""
    for folder in ("tmp", "dev/shm"):
        try:
            status = os.statvfs(f"/proc/{pid}/root/{folder}")
        except OSError:
            continue  # it has just ended
        if status.f_files - status.f_ffree > limits.data_files:
            return f"/{folder} holds more than {limits.data_files} files, its limit"
    return ""


def data_excess(folder: Path, limits: Limits) -> str:
    """Return in words by what a data folder is too large, "" when it is not."""
    size = files = 0
    try:
        for descriptor, entry in walk(folder):
            files += 1
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                size += status.st_blocks * 512
            if files > limits.data_files:
                return f"its data folder holds more than {limits.data_files} files, its limit"
            if size > limits.data_mb * _MIB:
                return f"its data folder holds more than {limits.data_mb} MiB, its limit"
    except PluginError as error:
        return str(error)
    return ""
