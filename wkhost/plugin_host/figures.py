"""What plugins cost and do, as numbers: for metrics and for `wkhost plugin top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import psutil
import trio

from wkhost.hooks.records import BOUNDS_S, CallRecord, CallRecords
from wkhost.link.contract import AllPluginFigures, EgressFigures, HookFigures, PluginFigures
from wkhost.plugin_host.egress_records import EgressRecord, EgressRecords
from wkhost.plugin_host.observers import OBSERVING_HOOKS
from wkhost.plugin_host.status import pid_of, state_of
from wkhost.plugin_host.supervisor import Supervisor

Observed = Mapping[str, Mapping[str, int]]
"""Observing hook -> lag, skipped and dropped."""


class Usage(msgspec.Struct, frozen=True):
    """What a process and all it started take now."""

    rss_bytes: int = 0
    cpu_s: float = 0.0


def usage(pid: int) -> Usage:
    """Return the usage of the process tree below `pid`, zeros when it is gone. Blocks for a few
    milliseconds."""
    if not pid:
        return Usage()
    rss_bytes, cpu_s = 0, 0.0
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return Usage()
    for process in processes:
        try:
            with process.oneshot():
                times = process.cpu_times()
                rss_bytes += process.memory_info().rss
                cpu_s += times.user + times.system
        except psutil.Error:
            continue
    return Usage(rss_bytes, cpu_s)


async def all_figures(
    supervisors: Sequence[Supervisor],
    records: CallRecords,
    egress: EgressRecords,
    observed: Mapping[str, Observed],
    layers: Mapping[str, dict[str, str]],
) -> AllPluginFigures:
    """Return the figures of every active plugin, in the order given."""
    pids = [pid_of(supervisor) for supervisor in supervisors]
    usages = await trio.to_thread.run_sync(partial(_usages, pids))
    plugins = [
        _figures(
            supervisor,
            used,
            records.of(supervisor.no),
            _egress_figures(egress.find(supervisor.no)),
            observed.get(supervisor.no, {}),
            layers.get(supervisor.no, {}),
        )
        for supervisor, used in zip(supervisors, usages, strict=True)
    ]
    return AllPluginFigures(at=trio.current_time(), bounds_s=list(BOUNDS_S), plugins=plugins)


def _usages(pids: Sequence[int]) -> list[Usage]:
    return [usage(pid) for pid in pids]


def _figures(
    supervisor: Supervisor,
    used: Usage,
    records: Sequence[CallRecord],
    egress: EgressFigures | None,
    observed: Observed,
    layers: dict[str, str],
) -> PluginFigures:
    manifest = supervisor.plan.package.manifest
    generation = supervisor.generation
    kept = {(record.hook, record.version): record for record in records}
    for hook in manifest.hooks:
        key = (hook, manifest.version)
        kept.setdefault(key, CallRecord(supervisor.no, *key))
    hooks = [
        _hook_figures(supervisor, record, observed)
        for _, record in sorted(kept.items())
        if record.hook in manifest.hooks or record.verdicts
    ]
    return PluginFigures(
        no=supervisor.no,
        version=manifest.version,
        state=state_of(supervisor)[0],
        generation=0 if generation is None else generation.number,
        pid=pid_of(supervisor),
        restarts=supervisor.restarts,
        rss_bytes=used.rss_bytes,
        cpu_s=used.cpu_s,
        gives_way=generation is not None and generation.held_to is not None,
        log_lines=supervisor.ring.added,
        log_lines_dropped=supervisor.ring.dropped,
        hooks=hooks,
        layers=layers,
        egress=egress,
    )


def _egress_figures(record: EgressRecord | None) -> EgressFigures | None:
    if record is None:
        return None
    return EgressFigures(
        open=record.open,
        accepted=dict(record.accepted),
        refused=dict(record.refused),
        ended=dict(record.ended),
        sent_bytes=record.sent_bytes,
        received_bytes=record.received_bytes,
    )


def _hook_figures(supervisor: Supervisor, record: CallRecord, observed: Observed) -> HookFigures:
    proxy = supervisor.proxy
    hook = record.hook
    current = record.version == proxy.lines.version
    session = proxy.session
    in_flight, queued = (0, 0)
    if current and session is not None:
        in_flight, queued = session.open_calls_of(hook)
    seen = observed.get(hook, {}) if current and hook in OBSERVING_HOOKS else {}
    return HookFigures(
        hook=hook,
        version=record.version,
        outcomes={outcome.value: count for outcome, count in record.outcomes.items()},
        durations=list(record.durations),
        total_s=record.total_s,
        short_circuits=record.short_circuits,
        breaker_opened=record.opened,
        breaker=proxy.lines[hook].breaker.state.name.lower() if current else "",
        in_flight=in_flight,
        queued=queued,
        lag=seen.get("lag"),
        skipped=seen.get("skipped", 0),
        dropped=seen.get("dropped", 0),
    )
