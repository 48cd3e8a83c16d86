"""Limits that the kernel does not hold here: looked at now and then, and ended at the limit.

Memory is looked at where there is no control group; the size of the data folder always,
since no quota of a file system is at hand. All of it is soft: a burst between two looks passes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.folders import walk
from wkhost.plugin_host.sandbox.tree import read_file

MEASURE_SHARE = 20
"""Measuring the data folder may take one part in so many of the time."""
MEASURE_MEMORY_SHARE = 100
"""The same of memory that is shared."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024


class Watch:
    """Of one process and those it started. `reason` tells what limit was passed, if one was."""

    def __init__(self, limits: Limits, data_dir: Path, *, grouped: bool) -> None:
        self.limits = limits
        self.reason = ""
        self._data_dir = data_dir
        self._memory = None if grouped else _Memory(limits.memory_mb)
        self._data_at = 0.0

    async def exceeded(self, pids: Sequence[int]) -> bool:
        """Whether a limit is passed for which the processes, the plugin's first, have to end."""
        if not pids or self.reason:
            return bool(self.reason)
        if self._memory is not None:
            self.reason = await self._memory.excess(pids)
        self.reason = self.reason or scratch_excess(pids[0], self.limits)
        began = time.monotonic()
        if not self.reason and began >= self._data_at:
            self.reason = await trio.to_thread.run_sync(data_excess, self._data_dir, self.limits)
            took = time.monotonic() - began
            self._data_at = began + MEASURE_SHARE * took
        return bool(self.reason)


class _Memory:
    """What processes use together. Each has its part of the pages that several of them share, which
    is slow to read: 1 ms for 40 MiB."""

    def __init__(self, limit_mb: int) -> None:
        self._limit = limit_mb * _MIB
        self._known_until = 0.0
        self._known_up_to = 0
        """Resident bytes, until then: if they have not grown beyond, no limit is passed, unless
        what was shared is so no more."""

    async def excess(self, pids: Sequence[int]) -> str:
        """Return in words whether the limit is passed, "" when it is not."""
        resident = sum(map(_resident_bytes, pids))
        began = time.monotonic()
        known = resident <= self._known_up_to and began < self._known_until
        if resident <= self._limit or known:
            return ""
        used = await trio.to_thread.run_sync(_memory_bytes, pids)
        self._known_until = began + MEASURE_MEMORY_SHARE * (time.monotonic() - began)
        self._known_up_to = resident + self._limit - used
        if used <= self._limit:
            return ""
        return f"{used // _MIB} MiB of memory are in use, its limit is {self._limit // _MIB}"


def _memory_bytes(pids: Iterable[int]) -> int:
    return sum(map(_proportional_bytes, pids))


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    except OSError:
        return _resident_bytes(pid)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _resident_bytes(pid: int) -> int:
    try:
        return int(read_file(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except OSError:
        return 0  # it has just ended


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
