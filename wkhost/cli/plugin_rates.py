"""What plugins did between two looks at a server: rates, quantiles, cost."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from wkhost.link.contract import AllPluginFigures, HookFigures, PluginFigures

_LIFECYCLE = ("config_update",)
"""Calls of the host's own; shown only where some were made."""


class HookRow(msgspec.Struct, frozen=True):
    """One plugin at one hook between two looks. Durations in milliseconds, None without calls.

    `outcomes` are counts since the last look. `p50_ms` and `p99_ms` are read off the buckets, so
    they are as exact as the buckets are narrow.
    """

    plugin: str
    hook: str
    version: str
    calls_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    outcomes: dict[str, int]
    short_circuits: int
    in_flight: int
    queued: int
    breaker: str
    lag: int | None


class PluginRow(msgspec.Struct, frozen=True):
    """One plugin between two looks. `cpu_percent` 100 is one core."""

    plugin: str
    version: str
    state: str
    pid: int
    cpu_percent: float
    rss_bytes: int
    restarts: int
    log_lines_per_s: float
    log_lines_dropped: int
    hooks: list[HookRow]


def rows(before: AllPluginFigures, after: AllPluginFigures) -> list[PluginRow]:
    """Return what happened between two looks at the same server."""
    seconds = max(after.at - before.at, 1e-9)
    earlier = {plugin.no: plugin for plugin in before.plugins}
    return [
        _plugin_row(earlier.get(plugin.no), plugin, after.bounds_s, seconds)
        for plugin in after.plugins
    ]


def _plugin_row(
    before: PluginFigures | None, after: PluginFigures, bounds_s: Sequence[float], seconds: float
) -> PluginRow:
    earlier = {} if before is None else {(h.hook, h.version): h for h in before.hooks}
    # Another process starts its CPU time anew.
    same = before is not None and before.pid == after.pid
    cpu_s = after.cpu_s - before.cpu_s if before is not None and same else after.cpu_s
    lines = after.log_lines - (0 if before is None else before.log_lines)
    hooks = [
        _hook_row(after.no, earlier.get((hook.hook, hook.version)), hook, bounds_s, seconds)
        for hook in after.hooks
        if hook.breaker
    ]
    return PluginRow(
        plugin=after.no,
        version=after.version,
        state=after.state,
        pid=after.pid,
        cpu_percent=round(max(0.0, cpu_s) / seconds * 100, 1),
        rss_bytes=after.rss_bytes,
        restarts=after.restarts,
        log_lines_per_s=round(lines / seconds, 1),
        log_lines_dropped=after.log_lines_dropped,
        hooks=[row for row in hooks if row.hook not in _LIFECYCLE or any(row.outcomes.values())],
    )


def _hook_row(
    no: str,
    before: HookFigures | None,
    after: HookFigures,
    bounds_s: Sequence[float],
    seconds: float,
) -> HookRow:
    old_counts = [0] * len(after.durations) if before is None else before.durations
    old_outcomes = {} if before is None else before.outcomes
    counts = [new - old for new, old in zip(after.durations, old_counts, strict=True)]
    return HookRow(
        plugin=no,
        hook=after.hook,
        version=after.version,
        calls_per_s=round(sum(counts) / seconds, 1),
        p50_ms=quantile_ms(counts, bounds_s, 0.5),
        p99_ms=quantile_ms(counts, bounds_s, 0.99),
        outcomes={name: n - old_outcomes.get(name, 0) for name, n in after.outcomes.items()},
        short_circuits=after.short_circuits - (0 if before is None else before.short_circuits),
        in_flight=after.in_flight,
        queued=after.queued,
        breaker=after.breaker,
        lag=after.lag,
    )


def quantile_ms(counts: Sequence[int], bounds_s: Sequence[float], share: float) -> float | None:
    """Return a quantile in milliseconds, straight between a bucket's bounds.

    The last bucket has no upper bound: what falls into it is told as its lower one.
    """
    wanted = sum(counts) * share
    if wanted <= 0:
        return None
    low = 0.0
    for count, high in zip(counts, bounds_s, strict=False):
        if count and wanted <= count:
            return round((low + (high - low) * wanted / count) * 1000, 3)
        wanted -= count
        low = high
    return round(low * 1000, 3)
