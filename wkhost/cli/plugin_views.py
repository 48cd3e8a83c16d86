"""How plugins look on a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from wkhost.cli.session import Session, plain
from wkhost.link.contract import PluginOrder, PluginStatus

_STYLES = {
    "running": "green",
    "disabled": "dim",
    "stopped": "dim",
    "failed": "red",
    "quarantined": "red",
}


ORDER_RULE = """\
1 is asked first. What counts: stage (guard, transform, seal, observe), then
before and after of the manifests, then priority (larger first), then the name."""


def show_status(session: Session, status: PluginStatus, what: str, as_json: bool) -> None:
    """Print what became of a plugin."""
    if as_json:
        session.json(status_json(status))
        return
    state = f": {status.state}" if status.state != what else ""
    detail = f", {status.detail}" if status.detail else ""
    session.line(f"{status.no} {status.version} {what}{state}{detail}")


def status_json(status: msgspec.Struct) -> dict[str, Any]:
    """Return an answer as plain values, without the link's tag."""
    fields: dict[str, Any] = msgspec.to_builtins(status)
    fields.pop("type", None)
    return fields


def cell(text: str, style: str = "") -> Text:
    """One table cell; text of plugins is data, never markup."""
    return Text(plain(text), style=style)


def state_cell(status: PluginStatus) -> Text:
    return cell(status.state, _STYLES.get(status.state, "yellow"))


def list_table(plugins: list[PluginStatus]) -> Table:
    """Return the table of `wkhost plugin list`."""
    table = Table(box=None, pad_edge=False)
    for name in ("plugin", "version", "state", "stage", "hooks", ""):
        table.add_column(name)
    for each in plugins:
        hooks = ", ".join(f"{hook} ({policy})" for hook, policy in each.hooks.items())
        table.add_row(
            cell(each.no, "bold"),
            cell(each.version),
            state_cell(each),
            cell(each.stage),
            cell(hooks),
            cell(each.detail, "dim"),
        )
    return table


def info_table(status: PluginStatus) -> Table:
    """Return the two columns of `wkhost plugin info`."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    rows: list[tuple[str, Text]] = [
        ("plugin", cell(status.no, "bold")),
        ("version", cell(status.version)),
        ("state", state_cell(status)),
    ]
    if status.detail:
        rows.append(("why", cell(status.detail)))
    rows += [("last line", cell(line)) for line in status.last_lines]
    rows.append(("enabled", cell("yes" if status.enabled else "no")))
    rows.append(("place", cell(f"stage {status.stage}, priority {status.priority}")))
    rows += [(f"hook {hook}", cell(f"on failure {p}")) for hook, p in status.hooks.items()]
    if status.pid:
        rows.append(("process", cell(f"pid {status.pid}, generation {status.generation}")))
        rows.append(("restarts", cell(str(status.restarts))))
        rows.append(("memory", cell(f"{status.rss_bytes / 2**20:.1f} MiB")))
        rows.append(("CPU", cell(f"{status.cpu_s:.2f} s")))
    for hook, outcomes in status.calls.items():
        counts = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.items())
        rows.append((f"calls {hook}", cell(counts)))
    for hook, state in status.breakers.items():
        if state != "closed":
            rows.append((f"breaker {hook}", cell(state.replace("_", "-"), "bold red")))
    for name, value in rows:
        table.add_row(name, value)
    return table


def order_table(order: PluginOrder) -> Table:
    """Return the table of `wkhost plugin order`: who is asked first, and why."""
    table = Table(box=None, pad_edge=False)
    for name in ("hook", "", "plugin", "because of"):
        table.add_column(name)
    for hook, places in order.hooks.items():
        for number, (no, reason) in enumerate(places, 1):
            table.add_row(
                cell(hook if number == 1 else ""), str(number), cell(no, "bold"), cell(reason)
            )
    return table
