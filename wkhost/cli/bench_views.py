"""Reports of measurements as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from wkhost.bench.calls import CallFigures
from wkhost.bench.fanout import FanoutResult
from wkhost.bench.faults.measure import FaultResult
from wkhost.bench.hogs.measure import HogResult
from wkhost.bench.hooks import HooksResult
from wkhost.bench.idle import IdleResult
from wkhost.bench.meter import CpuPerUnit
from wkhost.bench.report import Outcome, Report
from wkhost.bench.samples import Percentiles
from wkhost.bench.send import SendResult
from wkhost.cli.session import Session

_LATENCY = ("p50", "p90", "p99", "max")
_KIB = 1024


def show(session: Session, report: Report) -> None:
    """Print what was measured on what, and the table."""
    machine = report.machine
    load = " ".join(f"{each:.2f}" for each in machine.load_average)
    session.line(f"wkhost {report.wkhost.version} {report.wkhost.commit}".rstrip(), "bold")
    session.line(
        f"{machine.cores} cores {machine.cpu}, Linux {machine.kernel}, Python {machine.python}, "
        f"data on {machine.data_filesystem}, load average before {load}",
        "dim",
    )
    session.out.print(_TABLES[report.command](report.results))
    for sentence in _remarks(report.results):
        session.line(sentence, "yellow")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    table.columns[0].justify = "left"
    return table


def _send(results: Sequence[SendResult]) -> Table:
    table = _table("durable sends", "", *(_plugins(len(each.plugins)) for each in results))
    table.add_row("sends per second", *(f"{each.sends_per_s:,.0f}" for each in results))
    _add_latency(table, "SENDACK", [each.sendack_ms for each in results])
    _add_latency(table, "delivery", [each.delivery_ms for each in results])
    table.add_section()
    cpus = [each.cpu_us_per_send for each in results]
    table.add_row("CPU per send, all processes, µs", *(f"{cpu.total:.1f}" for cpu in cpus))
    added = ["" if each.cpu_us_added is None else f"{each.cpu_us_added:+.1f}" for each in results]
    table.add_row("  against the first", *added)
    table.add_row("  server", *(f"{cpu.server:.1f}" for cpu in cpus))
    for no in _names(results):
        table.add_row(f"  {no}", *(_used(cpu, no) for cpu in cpus))
    table.add_section()
    commits = [each.mean_batch.commit for each in results]
    table.add_row("messages per commit", *("" if n is None else f"{n:.1f}" for n in commits))
    for no in _names(results):
        sizes = [each.mean_batch.plugins.get(no) for each in results]
        table.add_row(f"calls per batch, {no}", *("" if n is None else f"{n:.1f}" for n in sizes))
    return table


def _plugins(count: int) -> str:
    return "no plugin" if not count else f"{count} plugin" + "s" * (count > 1)


def _names(results: Sequence[SendResult]) -> list[str]:
    return list(dict.fromkeys(no for each in results for no in each.plugins))


def _used(cpu: CpuPerUnit, no: str) -> str:
    return f"{cpu.plugins[no]:.1f}" if no in cpu.plugins else ""


def _add_latency(table: Table, name: str, found: Sequence[Percentiles]) -> None:
    table.add_section()
    for part in _LATENCY:
        table.add_row(f"{name} {part}, ms", *(f"{getattr(each, part):.2f}" for each in found))


def _fanout(results: Sequence[FanoutResult]) -> Table:
    table = _table("one group, each RECV with its RECVACK", "", *("" for _ in results))
    table.add_row("sends per second", *(f"{each.sends_per_s:,.1f}" for each in results))
    table.add_row("deliveries per second", *(f"{each.deliveries_per_s:,.0f}" for each in results))
    _add_latency(table, "delivery", [each.delivery_ms for each in results])
    _add_latency(table, "SENDACK", [each.sendack_ms for each in results])
    table.add_section()
    cpus = [each.cpu_us_per_delivery for each in results]
    table.add_row("CPU per delivery, all processes, µs", *(f"{cpu.total:.1f}" for cpu in cpus))
    return table


def _hooks(results: Sequence[HooksResult]) -> Table:
    table = _table(
        "calls through one Python plugin; latency in ms, CPU in µs per call",
        *("in flight", "calls/s", "p50", "p99", "host", "plugin", "batch"),
    )
    for each in results:
        table.add_row(f"{each.inflight} batched", *_figures(each.stream))
        table.add_row(f"{each.inflight} unary", *_figures(each.unary))
        table.add_row("  ratio", f"{each.rate_ratio:.1f}", "", "", f"{each.cpu_ratio:.1f}", "", "")
        table.add_section()
    return table


def _figures(figures: CallFigures) -> list[str]:
    return [
        f"{figures.calls_per_s:,.0f}",
        f"{figures.call_ms.p50:.2f}",
        f"{figures.call_ms.p99:.2f}",
        f"{figures.cpu_us_caller:.1f}",
        f"{figures.cpu_us_plugin:.1f}",
        f"{figures.mean_batch:.1f}",
    ]


def _idle(results: Sequence[IdleResult]) -> Table:
    table = _table(
        "memory of the server per silent connection",
        *("", "connections", "PSS KiB", "RSS KiB", "login CPU µs", "idle cores"),
    )
    for each in results:
        table.add_row(
            each.transport,
            f"{each.connections:,}",
            f"{each.pss_bytes_per_connection / _KIB:.2f}",
            f"{each.rss_bytes_per_connection / _KIB:.2f}",
            f"{each.login_cpu_us:.0f}",
            f"{each.idle_cpu_cores:.3f}",
        )
    return table


def _faults(results: Sequence[FaultResult]) -> Table:
    table = _table(
        "faults under load; p50 and max in ms",
        *("", "sent", "unmoderated", "lost twice order", "refused", "decided", "serving", "left"),
    )
    table.padding = 0
    for each in results:
        truth = each.truth
        table.add_row(
            each.name,
            f"{truth.sent:,}",
            f"{truth.unmoderated}",
            f"{truth.lost} {truth.repeated} {truth.disordered}",
            f"{each.refused_by_policy}",
            _span(each.decision_ms),
            _span(each.serving_ms),
            f"{each.processes_left}+{each.zombies_left}",
        )
    return table


def _span(found: Percentiles) -> str:
    return f"{found.p50:,.4g} {found.max:,.4g}" if found.count else ""


def _hogs(results: Sequence[HogResult]) -> Table:
    table = _table(
        "SENDACKs through a good plugin beside a hog; p99 in ms, the server's CPU and MiB",
        *(
            "hog",
            "hook",
            "p99 ratio",
            "p50 ratio",
            "without",
            "with",
            "cores",
            "cores",
            "refused",
            "memory",
        ),
    )
    for each in results:
        table.add_row(
            each.kind,
            each.hook,
            f"{each.p99_ratio:.2f}",
            f"{each.p50_ratio:.2f}",
            f"{each.p99_without:.1f}",
            f"{each.p99_with:.1f}",
            f"{each.server_cores_without:.2f}",
            f"{each.server_cores_with:.2f}",
            f"{each.refused}",
            f"{each.server_rss_mib:.0f}",
        )
    return table


def _remarks(results: Sequence[Any]) -> list[str]:
    """Return a sentence for all that must be known beside the table."""
    remarks = []
    for each in results:
        outcome = getattr(each, "outcome", None)
        if isinstance(outcome, Outcome):
            remarks += _of_outcome(outcome)
        if isinstance(each, IdleResult) and not each.ok:
            lost = each.connections - each.answering
            remarks.append(f"{each.transport}: {lost} connections did not answer a PING")
        if isinstance(each, HogResult):
            remarks.append(f"{each.kind} hog: {each.hog_state}")
            remarks += [f"{each.kind} hog: {name}: {n}" for name, n in each.violations.items()]
        if isinstance(each, FaultResult):
            remarks += [f"{each.name}: broken: {text}" for text in each.broken]
            remarks += [f"{each.name}: {name}: {value}" for name, value in each.notes.items()]
    return remarks


def _of_outcome(outcome: Outcome) -> list[str]:
    remarks = [f"{name}: {count}" for name, count in outcome.violations.items()]
    refused = {code: count for code, count in outcome.reasons.items() if code != "1"}
    remarks += [f"refused with reason {code}: {count}" for code, count in refused.items()]
    if outcome.due_but_unsent:
        remarks.append(f"{outcome.due_but_unsent} messages were due but could not be sent")
    if outcome.generator_cores > 0.9:
        remarks.append("the load generator used a whole core: it is what limits this figure")
    return remarks


_TABLES: dict[str, Callable[[Any], Table]] = {
    "send": _send,
    "fanout": _fanout,
    "hooks": _hooks,
    "idle": _idle,
    "faults": _faults,
    "hogs": _hogs,
}
