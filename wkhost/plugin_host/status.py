"""Plugins as the operator sees them, in the structs of the link's contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from wkhost.link import contract
from wkhost.plugin_host.manifest import DEFAULT_POLICIES, Manifest
from wkhost.plugin_host.order import Place, order_plugins
from wkhost.plugin_host.registry import Entry
from wkhost.plugin_host.supervisor import Supervisor


def resting(entry: Entry, broken: str) -> contract.PluginStatus:
    """A plugin that no supervisor runs."""
    return contract.PluginStatus(
        no=entry.no,
        version=entry.version,
        enabled=entry.enabled,
        state="failed" if broken else ("stopped" if entry.enabled else "disabled"),
        detail=broken,
        generation=0,
    )


def running(
    entry: Entry, supervisor: Supervisor, call_counts: dict[str, dict[str, int]]
) -> contract.PluginStatus:
    manifest = supervisor.plan.package.manifest
    generation = supervisor.generation
    state, detail = state_of(supervisor)
    pid = pid_of(supervisor)
    rss_bytes, cpu_s = _usage(pid)
    return contract.PluginStatus(
        no=entry.no,
        version=manifest.version,
        enabled=entry.enabled,
        state=state,
        detail=detail,
        last_lines=list(supervisor.last_lines),
        generation=generation.number if generation is not None else 0,
        pid=pid,
        restarts=supervisor.restarts,
        stage=manifest.stage.name.lower(),
        priority=manifest.priority,
        hooks=_policies(manifest),
        rss_bytes=rss_bytes,
        cpu_s=cpu_s,
        calls=call_counts,
        breakers={
            hook: line.breaker.state.name.lower()
            for hook, line in supervisor.proxy.lines.items()
            if hook in manifest.hooks
        },
    )


def pid_of(supervisor: Supervisor) -> int:
    """Return the pid of the process that serves, 0 while there is none."""
    generation = supervisor.generation
    return 0 if generation is None or generation.ended.is_set() else generation.pid


def state_of(supervisor: Supervisor) -> tuple[str, str]:
    """Return (state, detail). Nothing is "running" without a process: a supervisor waits a moment
    for the last words of a process that died before it says so itself."""
    generation = supervisor.generation
    if supervisor.state == "running" and generation is not None and generation.ended.is_set():
        return "backoff", generation.failure
    detail = supervisor.detail
    if not detail and generation is not None and generation.held_to is not None:
        detail = f"gives way: on its own account it is held to {generation.held_to:.2f} cores"
    return supervisor.state, detail


def plugin_order(manifests: Sequence[Manifest]) -> contract.PluginOrder:
    """Return, per hook that anyone has, the plugins in order with the reasons."""
    by_no = {manifest.no: manifest for manifest in manifests}
    places = order_plugins(manifests)
    hooks = {
        hook: [(place.no, place.reason) for place in places if hook in by_no[place.no].hooks]
        for hook in DEFAULT_POLICIES
    }
    return contract.PluginOrder({hook: found for hook, found in hooks.items() if found})


def order_until(no: str, manifests: Mapping[str, Manifest]) -> list[Place]:
    """Return the places up to and including that of `no`."""
    places = order_plugins(manifests.values())
    index = next(i for i, place in enumerate(places) if place.no == no)
    return places[: index + 1]


def statistics(supervisor: Supervisor) -> dict[str, Any]:
    """Return what the plugin's process and its stream are at."""
    generation = supervisor.generation
    return {
        "state": state_of(supervisor)[0],
        "restarts": supervisor.restarts,
        "log_lines_dropped": supervisor.ring.dropped,
        **({} if generation is None else generation.session.statistics()),
    }


def _policies(manifest: Manifest) -> dict[str, str]:
    policies = {hook: spec.policy.value for hook, spec in manifest.hooks.items()}
    if "persist_after" in policies:
        policies["persist_after"] = "retry"
    return policies


def _usage(pid: int) -> tuple[int, float]:
    """Return resident bytes and CPU seconds of a process, zeros when it is gone."""
    if not pid:
        return 0, 0.0
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return process.memory_info().rss, times.user + times.system
    except psutil.Error:
        return 0, 0.0
