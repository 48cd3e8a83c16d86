"""Gathers the samples of `GetMetrics` from every part of a server. Counts nothing itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psutil
import trio

from wkhost.errors import ReasonCode
from wkhost.gateway.settings import GatewayStatistics
from wkhost.kernel.kernel import Kernel
from wkhost.link.contract import (
    AllPluginFigures,
    EgressFigures,
    HookFigures,
    Metrics,
    PluginFigures,
)

Number = tuple[list[str], float]
Histogram = tuple[list[str], list[int], float]
_BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
_REASONS = {code.value: code.name.lower() for code in ReasonCode}
_PLUGIN_REASON = "plugin"
_NO_LAYER = ("none", "OFF")
"""How the words on a layer begin where nothing contains the plugin."""


class Figures(Protocol):
    async def figures(self) -> AllPluginFigures: ...


class MetricsSource:
    """Call it for the samples of now. `gateway` gives the counters of the client ports."""

    def __init__(
        self, kernel: Kernel, gateway: Callable[[], GatewayStatistics], plugins: Figures | None
    ) -> None:
        self._kernel = kernel
        self._gateway = gateway
        self._plugins = plugins
        self._process = psutil.Process()
        self._process.cpu_percent()

    async def __call__(self) -> Metrics:
        figures = [] if self._plugins is None else (await self._plugins.figures()).plugins
        # Counting many descriptors takes milliseconds.
        process = await trio.to_thread.run_sync(_process_numbers, self._process)
        numbers: dict[str, list[Number]] = {name: [([], value)] for name, value in process.items()}
        for name, labels, value in self._numbers(figures):
            numbers.setdefault(name, []).append((labels, value))
        histograms: dict[str, list[Histogram]] = {}
        for name, labels, counts, total in self._histograms(figures):
            histograms.setdefault(name, []).append((labels, counts, total))
        return Metrics(numbers, histograms)

    def _numbers(self, figures: list[PluginFigures]) -> Iterator[tuple[str, list[str], float]]:
        statistics = self._kernel.statistics()
        for name, value in (
            *_kernel_numbers(self._kernel, statistics),
            *_gateway_numbers(self._gateway()),
            *_store_numbers(self._kernel),
            *_loop_numbers(),
        ):
            yield name, [], value
        store = self._kernel.store.statistics()
        operations = {
            "write": sum(store.writes.counts),
            "sync": sum(store.syncs.counts),
            "read": store.reads,
        }
        for op, count in operations.items():
            yield "wukongim_db_operations_total", [op], count
        for reason, count in _reasons(statistics["send"]["reasons"]).items():
            yield "wukongim_send_answers_total", [reason], count
        for plugin in figures:
            yield from plugin_numbers(plugin, statistics["hooks"])

    def _histograms(
        self, figures: list[PluginFigures]
    ) -> Iterator[tuple[str, list[str], list[int], float]]:
        store = self._kernel.store.statistics()
        for op, durations in (("write", store.writes), ("sync", store.syncs)):
            name = "wukongim_db_operation_duration_seconds"
            yield name, [op], durations.counts, durations.total_s
        commit = self._kernel.statistics()["commit"]
        sizes = commit["batch_sizes"]
        yield "wukongim_commit_batch_messages", [], sizes, commit["committed"]
        yield "wukongim_commit_duration_seconds", [], commit["durations"], commit["duration_s"]
        for plugin in figures:
            for hook in plugin.hooks:
                labels = _labels(plugin, hook)
                name = "wukongim_plugin_call_duration_seconds"
                yield name, labels, hook.durations, hook.total_s


def _kernel_numbers(kernel: Kernel, statistics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    send, commit = statistics["send"], statistics["commit"]
    users = len(kernel.presence.by_uid)
    yield "wukongim_connections_total", statistics["sessions"]
    yield "app_conn_count_total", statistics["sessions"]
    yield "wukongim_users_online", users
    yield "app_online_user_count_total", users
    yield "wukongim_messages_sent_total", send["reasons"].get(str(int(ReasonCode.SUCCESS)), 0)
    yield "wukongim_cluster_nodes_total", 1
    yield "wukongim_inflight_bytes", send["inflight_bytes"]
    yield "wukongim_lanes", send["lanes"]
    yield "wukongim_channels_active", send["channels"]
    yield "wukongim_commits_total", commit["commits"]
    yield "wukongim_commit_queue_length", commit["queued"]
    yield "wukongim_deliveries_pushed_total", statistics["fanout"]["pushed"]
    yield "wukongim_deliveries_retried_total", statistics["retries"]["retried"]
    yield "wukongim_deliveries_given_up_total", statistics["retries"]["given_up"]


def _gateway_numbers(g: GatewayStatistics) -> Iterator[tuple[str, float]]:
    yield "wukongim_messages_received_total", g.out_msgs
    prefix = "wukongim_gateway_"
    yield prefix + "connections_opened_total", g.opened
    yield prefix + "connections_closed_total", g.closed
    yield prefix + "connections_open", g.connections
    yield prefix + "received_bytes_total", g.in_bytes
    yield prefix + "sent_bytes_total", g.out_bytes
    yield prefix + "received_packets_total", g.in_packets
    yield prefix + "sent_packets_total", g.out_packets
    yield prefix + "sends_total", g.in_msgs
    yield prefix + "turned_away_total", g.turned_away
    yield prefix + "slow_consumers_total", g.slow_consumers
    yield prefix + "dropped_total", g.lossy_dropped
    yield prefix + "protocol_errors_total", g.protocol_errors
    yield prefix + "timeouts_total", g.connect_timeouts + g.idle_timeouts
    yield prefix + "throttled_total", g.throttled


def _store_numbers(kernel: Kernel) -> Iterator[tuple[str, float]]:
    store = kernel.store.statistics()
    yield "wukongim_store_stalls_total", store.busy
    yield "wukongim_store_failures_total", store.failures
    yield "wukongim_store_recoveries_total", store.recoveries
    yield "wukongim_store_rows_written_total", store.rows


def _process_numbers(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        rss = process.memory_info().rss
        times = process.cpu_times()
        return {
            "wukongim_memory_usage_bytes": rss,
            "wukongim_cpu_usage_percent": process.cpu_percent(),
            "process_resident_memory_bytes": rss,
            "process_cpu_seconds_total": times.user + times.system,
            "process_open_fds": process.num_fds(),
            "process_threads": process.num_threads(),
            "process_start_time_seconds": process.create_time(),
            "go_memstats_alloc_bytes": rss,
        }


def _loop_numbers() -> Iterator[tuple[str, float]]:
    yield "go_goroutines", trio.lowlevel.current_statistics().tasks_living
    yield "go_gc_duration_seconds_count", sum(each["collections"] for each in gc.get_stats())


def _reasons(counts: dict[str, int]) -> dict[str, int]:
    """Name the reason codes; those that are not the protocol's are a plugin's own."""
    named: dict[str, int] = {}
    for code, count in counts.items():
        name = _REASONS.get(int(code), _PLUGIN_REASON)
        named[name] = named.get(name, 0) + count
    return named


def _labels(plugin: PluginFigures, hook: HookFigures) -> list[str]:
    return [plugin.no, hook.hook, hook.version]


def plugin_numbers(
    plugin: PluginFigures, hooks: dict[str, Any]
) -> Iterator[tuple[str, list[str], float]]:
    """Yield the samples of one plugin: name, values of the labels, value. `hooks` are the
    dispatcher's statistics."""
    prefix, own = "wukongim_plugin_", [plugin.no]
    yield prefix + "up", own, float(bool(plugin.pid))
    yield prefix + "restarts_total", own, plugin.restarts
    yield prefix + "gives_way", own, float(plugin.gives_way)
    yield prefix + "memory_bytes", own, plugin.rss_bytes
    yield prefix + "cpu_seconds_total", own, plugin.cpu_s
    yield prefix + "log_lines_total", own, plugin.log_lines
    yield prefix + "log_lines_dropped_total", own, plugin.log_lines_dropped
    yield prefix + "held_messages", own, hooks["held"].get(plugin.no, 0)
    yield prefix + "late_verdicts_total", own, hooks["late_verdicts"].get(plugin.no, 0)
    for layer, means in plugin.layers.items():
        held = not means.startswith(_NO_LAYER)
        yield prefix + "sandbox_layer", [plugin.no, layer], float(held)
    for hook in plugin.hooks:
        labels = _labels(plugin, hook)
        for outcome, count in hook.outcomes.items():
            yield prefix + "calls_total", [*labels, outcome], count
        yield prefix + "breaker_opened_total", labels, hook.breaker_opened
        yield prefix + "short_circuits_total", labels, hook.short_circuits
        if hook.breaker:
            yield prefix + "breaker_state", labels, _BREAKER_STATES[hook.breaker]
            yield prefix + "calls_in_flight", labels, hook.in_flight
            yield prefix + "calls_queued", labels, hook.queued
        if hook.lag is not None:
            yield prefix + "observer_lag_messages", [plugin.no, hook.hook], hook.lag
            yield prefix + "observer_skipped_total", [plugin.no, hook.hook], hook.skipped
            yield prefix + "observer_dropped_total", [plugin.no, hook.hook], hook.dropped
    if plugin.egress is not None:
        yield from _egress_numbers(plugin.no, plugin.egress)


def _egress_numbers(no: str, egress: EgressFigures) -> Iterator[tuple[str, list[str], float]]:
    prefix = "wukongim_plugin_egress_"
    yield prefix + "connections", [no], egress.open
    for target, count in egress.accepted.items():
        yield prefix + "accepted_total", [no, target], count
    for reason, count in egress.refused.items():
        yield prefix + "refused_total", [no, reason], count
    for reason, count in egress.ended.items():
        yield prefix + "ended_total", [no, reason], count
    yield prefix + "bytes_total", [no, "sent"], egress.sent_bytes
    yield prefix + "bytes_total", [no, "received"], egress.received_bytes
