"""What processes use, from /proc: CPU of a server with all it started, memory of one process."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil

from wkhost.bench.errors import BenchError

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Memory(msgspec.Struct, frozen=True):
    """Bytes. `pss` counts a shared page once over all that share it, `rss` in full for each."""

    pss: int
    rss: int


class ProcessTree:
    """A process and its descendants as they were when this was made."""

    def __init__(self, pid: int) -> None:
        try:
            children = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            raise BenchError(f"process {pid}: there is none") from None
        self.pid = pid
        self.pids = [pid, *(child.pid for child in children)]

    def cpu_s(self) -> dict[int, float]:
        """Return seconds of user and system time by process.

        Raises BenchError if one has ended meanwhile: its time can no longer be told.
        """
        return {pid: cpu_s(pid) for pid in self.pids}


def cpu_s(pid: int) -> float:
    """Return seconds of user and system time of one process. Raises BenchError."""
    # The name, in brackets, may hold anything; the fields after its last bracket do not.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def rss_bytes(pid: int) -> int:
    """Return the resident memory of one process. Raises BenchError."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        raise BenchError(f"process {pid}: there is none") from None


def memory(pid: int) -> Memory:
    """Return the memory of one process. Raises BenchError; a server shows it to root only."""
    sizes = {}
    for line in _read(pid, "smaps_rollup").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            sizes[name] = int(rest.split()[0]) * 1024
    return Memory(pss=sizes["Pss"], rss=sizes["Rss"])


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except PermissionError as error:
        raise BenchError(f"process {pid}: only root may read its {name}") from error
    except OSError as error:
        raise BenchError(f"process {pid}: {error.strerror}: did it end?") from error
