"""What one server used between the beginning and the end of each measured window."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from wkhost.bench.samples import ratio
from wkhost.bench.server import Server


class CpuPerUnit(msgspec.Struct, frozen=True):
    """Microseconds of user and system time per unit of work."""

    total: float
    server: float
    """The server's own process."""
    plugins: dict[str, float]
    """Each plugin's process; counted in `total` too."""
    others: float
    """The API worker, and whatever else the server has started."""


class Meter:
    """Call it where a window begins and where it ends; sums up over windows."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tree = server.tree()
        self._plugins = {pid: no for no, pid in server.plugin_pids().items()}
        self._before: dict[int, float] = {}
        self._inside = False
        self._used: Counter[int] = Counter()

    def __call__(self) -> None:
        """Raises BenchError when a process of the server has ended."""
        now = self._tree.cpu_s()
        if self._inside:
            self._used.update({pid: now[pid] - self._before[pid] for pid in now})
        self._inside = not self._inside
        self._before = now

    def cpu_per(self, units: int) -> CpuPerUnit:
        """Return the CPU time per unit."""

        def each(seconds: float) -> float:
            return ratio(seconds * 1e6, units)

        server = self._used[self._server.pid]
        plugins = {no: self._used[pid] for pid, no in self._plugins.items()}
        total = self._used.total()
        return CpuPerUnit(
            total=each(total),
            server=each(server),
            plugins={no: each(seconds) for no, seconds in plugins.items()},
            others=each(total - server - sum(plugins.values())),
        )


class Batches(msgspec.Struct, frozen=True):
    """Mean sizes, over the whole run. None, or empty: the server's link is not known."""

    commit: float | None
    plugins: dict[str, float]


class BatchCounts:
    """Mean batch sizes from two looks at the server's counters, the first taken by this."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = server.statistics()

    def means(self) -> Batches:
        before, after = self._before, self._server.statistics()
        if not after:
            return Batches(None, {})
        was = before.get("plugins", {})
        streams = {
            no: counts
            for no, counts in after.get("plugins", {}).items()
            if isinstance(counts, dict) and "batches" in counts
        }
        return Batches(
            commit=_mean(before["commit"], after["commit"], "committed", "commits"),
            plugins={
                no: _mean(was.get(no, {}), counts, "calls", "batches")
                for no, counts in streams.items()
            },
        )


def _mean(before: dict[str, Any], after: dict[str, Any], amount: str, batches: str) -> float:
    def grown(name: str) -> float:
        return float(after.get(name, 0) - before.get(name, 0))

    return ratio(grown(amount), grown(batches))
