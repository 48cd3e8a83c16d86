"""`wkhost plugin top`: what each plugin does per second and what it costs, live."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wkhost.cli import plugin_offline
from wkhost.cli.plugin_rates import HookRow, PluginRow, rows
from wkhost.cli.plugin_views import cell
from wkhost.cli.session import Session, expected, json_option, pass_session
from wkhost.link.client_sync import SyncLinkClient, connect_operator
from wkhost.link.contract import AllPluginFigures, GetPluginFigures
from wkhost.link.errors import LinkError, NoServerError

WIDE = 118
"""Columns from which on the outcomes stand beside the other figures, not below them."""
NAME_WIDTH = 24
KEY_POLL_S = 0.1
_MIB = 2**20
Justify = Literal["left", "right"]
_BREAKER_STYLES = {"open": "bold red", "half_open": "yellow"}
_FAILURES = ("crash", "timeout", "overload", "short-circuited")


# --- the picture --------------------------------------------------------------------------------


def table(plugins: Sequence[PluginRow], width: int) -> Group:
    """Return the picture of one look, for a terminal of `width` columns."""
    if not plugins:
        return Group(Text("no plugin is enabled"))
    hooks = [row for each in plugins for row in each.hooks]
    wide = width >= WIDE
    parts: list[Table | Text] = [_hook_table(hooks, wide), Text()]
    if not wide and any(map(_outcomes, hooks)):
        parts += [_outcome_table(hooks), Text()]
    return Group(*parts, _process_table(plugins, wide))


def _table(left: Sequence[str], right: Sequence[str], wide: bool) -> Table:
    """Return an empty table: texts, then numbers. Only names are cut where there is no room."""
    found = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for number, name in enumerate((*left, *right)):
        justify: Justify = "left" if number < len(left) else "right"
        width = None if name != "plugin" else NAME_WIDTH
        found.add_column(name, justify=justify, no_wrap=True, min_width=len(name), max_width=width)
    return found


def _hook_table(hooks: Sequence[HookRow], wide: bool) -> Table:
    numbers = ("calls/s", "p50 ms", "p99 ms", "at it", "queue", "lag")
    found = _table(("plugin", "hook"), numbers, wide)
    found.add_column("breaker", no_wrap=True)
    if wide:
        found.add_column("outcomes")
    for row in hooks:
        found.add_row(
            cell(row.plugin, "bold"),
            cell(row.hook),
            f"{row.calls_per_s:,.1f}",
            _ms(row.p50_ms),
            _ms(row.p99_ms),
            str(row.in_flight),
            str(row.queued),
            "" if row.lag is None else f"{row.lag:,}",
            cell(row.breaker.replace("_", "-"), _BREAKER_STYLES.get(row.breaker, "green")),
            *((_outcomes(row),) if wide else ()),
        )
    return found


def _outcome_table(hooks: Sequence[HookRow]) -> Table:
    found = _table(("plugin", "hook"), (), False)
    found.add_column("outcomes")
    for row in hooks:
        found.add_row(cell(row.plugin, "bold"), cell(row.hook), _outcomes(row))
    return found


def _process_table(plugins: Sequence[PluginRow], wide: bool) -> Table:
    numbers = ("pid", "CPU %", "MiB", "restarts", "lines/s", "dropped")
    found = _table(("plugin", "version", "state"), numbers, wide)
    for each in plugins:
        found.add_row(
            cell(each.plugin, "bold"),
            cell(each.version),
            cell(each.state, "green" if each.state == "running" else "yellow"),
            str(each.pid or ""),
            f"{each.cpu_percent:.1f}",
            f"{each.rss_bytes / _MIB:.1f}",
            str(each.restarts),
            f"{each.log_lines_per_s:,.1f}",
            str(each.log_lines_dropped),
        )
    return found


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _outcomes(row: HookRow) -> Text:
    counts = {**row.outcomes, "short-circuited": row.short_circuits}
    return Text("  ").join(
        Text(f"{name} {count:,}", style="red" if name in _FAILURES else "")
        for name, count in counts.items()
        if count
    )


# --- looking ------------------------------------------------------------------------------------


def _look(link: SyncLinkClient) -> AllPluginFigures:
    return expected(link.ask(GetPluginFigures()), AllPluginFigures)


def _looks(data_path: Path, interval: float) -> Iterator[list[PluginRow]]:
    """Yield what happened in each interval. Raises LinkError when the server is not there."""
    with connect_operator(data_path) as link:
        before = _look(link)
        while True:
            time.sleep(interval)
            after = _look(link)
            yield rows(before, after)
            before = after


class Screen:
    """The live picture on a terminal: keys, resizing, and a server that goes and comes back.

    Raises LinkError where no server runs at the beginning.
    """

    def __init__(self, console: Console, data_path: Path, interval: float) -> None:
        self._console = console
        self._data_path = data_path
        self._interval = interval
        self._link = connect_operator(data_path)
        self._plugins: list[PluginRow] | None = None
        self._problem = ""

    def run(self) -> None:
        """Show until Ctrl-C or q. The last picture stays on the terminal."""
        live = Live(console=self._console, screen=True, auto_refresh=False)
        try:
            with suppress(KeyboardInterrupt), _keys(), live:
                self._show(live)
        finally:
            self._link.close()
        if self._plugins is not None:
            self._console.print(table(self._plugins, self._console.width))

    def _show(self, live: Live) -> None:
        before = _look(self._link)
        while self._wait(live):
            try:
                if self._problem:
                    self._link = connect_operator(self._data_path)
                    before, self._problem = _look(self._link), ""
                    continue
                after = _look(self._link)
            except LinkError:
                self._problem = "the server is gone, these are its last figures; waiting for it ..."
                self._link.close()
                continue
            self._plugins = rows(before, after)
            before = after

    def _wait(self, live: Live) -> bool:
        """Draw, then wait for the interval; drawn anew where the terminal changes its size. False:
        the person wants to end."""
        until = time.monotonic() + self._interval
        drawn = None
        while (left := until - time.monotonic()) > 0:
            size = self._console.size
            if size != drawn:
                live.update(self._picture(), refresh=True)
                drawn = size
            if _key(min(left, KEY_POLL_S)) in ("q", "Q"):
                return False
        return True

    def _picture(self) -> Group:
        hint = Text(f"every {self._interval:g} s; q ends", style="dim", no_wrap=True)
        if self._problem:
            hint = Text(self._problem, style="bold red")
        if self._plugins is None:
            return Group(hint)
        return Group(hint, Text(), table(self._plugins, self._console.width))


@contextmanager
def _keys() -> Iterator[None]:
    """Take single keys, unseen, and give the terminal back as it was."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(timeout_s: float) -> str:
    """Return the key that is pressed within the time, "" for none."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return ""
    descriptor = sys.stdin.fileno()
    ready, _, _ = select.select([descriptor], [], [], timeout_s)
    # A terminal that has gone reads as nothing: that is an end as well.
    return os.read(descriptor, 1).decode("latin-1") or "q" if ready else ""


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

    Goes on until q or Ctrl-C, also over restarts of the server. Rates and quantiles are of the last
    interval.
    """
    data_path = session.settings().data_path
    try:
        if not (once or as_json) and session.out.is_terminal:
            Screen(session.out, data_path, interval).run()
            return
        with suppress(KeyboardInterrupt):
            for plugins in _looks(data_path, interval):
                if as_json:
                    session.json(plugins)
                else:
                    session.out.print(table(plugins, session.out.width))
                if once:
                    return
    except NoServerError:
        raise plugin_offline.needs_server("top", data_path) from None
