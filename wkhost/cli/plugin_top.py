"""`wkhost plugin top`: what each plugin does per second and what it costs, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Literal

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wkhost.cli import plugin_offline
from wkhost.cli.plugin_views import cell
from wkhost.cli.session import Session, expected, json_option, pass_session
from wkhost.link.client_sync import SyncLinkClient, connect_operator
from wkhost.link.contract import (
    AllPluginFigures,
    GetPluginFigures,
    HookFigures,
    PluginFigures,
)
from wkhost.link.errors import NoServerError

_MIB = 2**20
Justify = Literal["left", "right"]
_BREAKER_STYLES = {"open": "bold red", "half_open": "yellow"}
_FAILURES = ("crash", "timeout", "overload")


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
        hooks=[
            _hook_row(after.no, earlier.get((hook.hook, hook.version)), hook, bounds_s, seconds)
            for hook in after.hooks
            if hook.breaker
        ],
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


def table(plugins: Sequence[PluginRow]) -> Group:
    """Return the picture of one look."""
    hooks = Table(box=None, pad_edge=False)
    names = ("plugin", "hook", "version", "calls/s", "p50 ms", "p99 ms", "outcomes", "at it")
    for name in (*names, "queue", "breaker", "lag"):
        left = name in (*names[:3], "outcomes")
        justify: Justify = "left" if left else "right"
        # Only the outcomes may take several lines where the terminal is narrow.
        hooks.add_column(name, justify=justify, no_wrap=name != "outcomes", min_width=len(name))
    for each in plugins:
        for row in each.hooks:
            hooks.add_row(
                cell(row.plugin, "bold"),
                cell(row.hook),
                cell(row.version),
                f"{row.calls_per_s:,.1f}",
                _ms(row.p50_ms),
                _ms(row.p99_ms),
                _outcomes(row),
                str(row.in_flight),
                str(row.queued),
                cell(row.breaker.replace("_", "-"), _BREAKER_STYLES.get(row.breaker, "green")),
                "" if row.lag is None else f"{row.lag:,}",
            )
    processes = Table(box=None, pad_edge=False)
    for name in ("plugin", "state", "pid", "CPU %", "MiB", "restarts", "log lines/s", "dropped"):
        processes.add_column(name, justify="left" if name in ("plugin", "state") else "right")
    for each in plugins:
        processes.add_row(
            cell(each.plugin, "bold"),
            cell(each.state, "green" if each.state == "running" else "yellow"),
            str(each.pid or ""),
            f"{each.cpu_percent:.1f}",
            f"{each.rss_bytes / _MIB:.1f}",
            str(each.restarts),
            f"{each.log_lines_per_s:.1f}",
            str(each.log_lines_dropped),
        )
    if not plugins:
        return Group(Text("no plugin is enabled"))
    return Group(hooks, Text(), processes)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _outcomes(row: HookRow) -> Text:
    text = Text()
    counts = {**row.outcomes, "short-circuited": row.short_circuits}
    for name, count in counts.items():
        if count:
            failed = name in (*_FAILURES, "short-circuited")
            text.append(f"{name} {count:,}  ", style="red" if failed else "")
    return text


def _look(link: SyncLinkClient) -> AllPluginFigures:
    return expected(link.ask(GetPluginFigures()), AllPluginFigures)


@click.command()
@click.option("--once", is_flag=True, help="Look for one interval, print, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@json_option
@pass_session
def top(session: Session, once: bool, interval: float, as_json: bool) -> None:
    """Show per plugin and hook: calls, durations, outcomes, queues, breaker, CPU, memory.

    Goes on until Ctrl-C. Rates and quantiles are of the last interval.
    """
    settings = session.settings()
    try:
        link = connect_operator(settings.data_path)
    except NoServerError:
        raise plugin_offline.needs_server("top", settings.data_path) from None
    live = None if once or as_json else Live(console=session.out, auto_refresh=False)
    with link, suppress(KeyboardInterrupt), live or nullcontext():
        before = _look(link)
        while True:
            time.sleep(interval)
            after = _look(link)
            plugins = rows(before, after)
            if as_json:
                session.json(plugins)
            elif live is None:
                session.out.print(table(plugins))
            else:
                live.update(table(plugins), refresh=True)
            if once:
                return
            before = after
